"""What cgroups and limits may be asked for: of one kernel, and of all kernels of a user. Pure.

The keys are those of the spec; a cap has one spelling, whatever version of cgroups holds it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final

from .errors import SpecError
from .parsing import (
    MIB,
    NO_TABLE,
    Table,
    absolute_path,
    integer,
    list_of,
    number,
    pattern,
    size_of,
    table_of,
)

#: Below this the interpreter itself does not fit: the start would be a sure OOM kill.
MEMORY_MINIMUM: Final = 64 * MIB
#: ipykernel alone runs 13 threads; libzmq and BLAS add theirs.
PIDS_MINIMUM: Final = 32
PIDS_MAXIMUM: Final = 4_194_304
CPUS_MINIMUM: Final = 0.01
CPUS_MAXIMUM: Final = 4096.0


@dataclass(frozen=True)
class IoLimit:
    """What may be read from and written to one block device; ``None``: as much as there is.

    Either ``path``, a file or folder of the host on that device, or ``device``, its node or its
    ``major:minor``. A partition stands for its whole disk: Linux limits no less.
    """

    path: str | None = None
    device: str | None = None
    read_bps: int | None = None
    """Bytes a second."""
    write_bps: int | None = None
    """Bytes a second. On cgroup v1 writes through the page cache are not covered."""
    read_iops: int | None = None
    """Operations a second."""
    write_iops: int | None = None
    weight: int | None = None
    """Share among those that compete for the device, from 10 to 1000; 100 is the usual one."""


@dataclass(frozen=True)
class Caps:
    """What a cgroup may use. ``None``, or an empty table, means: no cap was asked for."""

    memory: int | None = None
    """Bytes, page cache and tmpfs included: at this size processes are killed."""
    memory_swap: int | None = None
    """Bytes of swap besides ``memory``; none where only ``memory`` is asked for."""
    memory_high: int | None = None
    """Bytes beyond which the kernel is slowed down and reclaimed from. cgroup v2 only."""
    memory_low: int | None = None
    """Bytes that are reclaimed only when nothing else can be: memory.low, on v1 the soft limit."""
    cpus: float | None = None
    """CPU bandwidth in cores: 1.5 is one and a half."""
    cpu_weight: int | None = None
    """Share of the CPU among those that compete for it, from 1 to 10000; 100 is the usual one."""
    cpuset_cpus: str | None = None
    """The only CPUs, such as ``0-1,3``: ``len(os.sched_getaffinity(0))`` inside."""
    cpuset_mems: str | None = None
    """The only memory nodes, such as ``0``."""
    cpu_rt: float | None = None
    """Seconds of real-time scheduling in each second, on each CPU. cgroup v1 only."""
    pids: int | None = None
    """Tasks: processes and threads."""
    io: tuple[IoLimit, ...] = ()
    hugetlb: Table = NO_TABLE
    """Bytes by size of huge page, such as ``2MB``; 0 refuses them."""
    net_classid: int | None = None
    """What ``tc`` and ``iptables`` of the host know its packets by. cgroup v1 only."""
    net_prio: Table = NO_TABLE
    """Priority of its packets by interface of the host. cgroup v1 only."""
    devices: tuple[str, ...] | None = None
    """Nodes inside that may be used, of :data:`DEVICE_NODES`; ``/dev/null`` always may."""

    def asked(self) -> dict[str, Any]:
        """The caps that are set, by key."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {k: v for k, v in found.items() if v is not None and (v != () or k == "devices")}

    def without(self, keys: Iterable[str]) -> Caps:
        """The same, but as if these had not been asked for."""
        unset = Caps()
        return replace(self, **{key: getattr(unset, key) for key in keys})

    def changed(self, by: Caps, prefix: str = "") -> Caps:
        """What is in force when ``by`` has replaced those of the same keys.

        A new ``memory`` without a ``memory_swap`` leaves no swap, as at the start.

        Raises:
            SpecError: what would be in force then does not go together.
        """
        asked = by.asked()
        if "memory" in asked:
            asked.setdefault("memory_swap", None)
        if "io" in asked:
            named = {(limit.path, limit.device) for limit in by.io}
            asked["io"] = (*(v for v in self.io if (v.path, v.device) not in named), *by.io)
        caps = replace(self, **asked)
        _check_together(caps, prefix)
        return caps


@dataclass(frozen=True)
class UserTotal:
    """What all kernels of a user may use together: the caps of the cgroup above theirs."""

    caps: Caps = field(default_factory=Caps)
    kernels: int | None = None
    """How many at once."""

    def asked(self) -> bool:
        """Is there anything to hold?"""
        return self.kernels is not None or bool(self.caps.asked())


# -- parsers of the caps ------------------------------------------------------------------------

#: The device nodes that a sandbox has.
DEVICE_NODES: Final = (
    "/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty",
)  # fmt: skip

#: Of a CPU or memory node; Linux can be built for 8192 CPUs.
_HIGHEST_NUMBER: Final = 8191
_RANGE = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")
_LIST_ALLOWED = f"a list of numbers up to {_HIGHEST_NUMBER}, such as '0-1,3'"


def parse_numbers(text: str) -> frozenset[int] | None:
    """The numbers of Linux' list format, ``0-1,3``; ``None`` if it is not one."""
    found: set[int] = set()
    for part in text.split(","):
        match = _RANGE.fullmatch(part) if part.isascii() else None
        if match is None:
            return None
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last <= _HIGHEST_NUMBER:
            return None
        found.update(range(first, last + 1))
    return frozenset(found)


def format_numbers(numbers: Iterable[int]) -> str:
    """The shortest text that :func:`parse_numbers` reads as these."""
    ranges: list[list[int]] = []
    for each in sorted(set(numbers)):
        if ranges and ranges[-1][1] == each - 1:
            ranges[-1][1] = each
        else:
            ranges.append([each, each])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in ranges)


def _numbers(key: str, value: object) -> str:
    numbers = parse_numbers(value) if isinstance(value, str) and len(value) <= 4096 else None
    if numbers is None:
        raise SpecError(key, value, _LIST_ALLOWED)
    return format_numbers(numbers)


#: Besides ``path`` and ``device``. iops are 32-bit numbers in Linux.
_IO_RATES: Final[dict[str, Callable[[str, object], int]]] = {
    "read_bps": size_of(1),
    "write_bps": size_of(1),
    "read_iops": integer(1, 2**32 - 1),
    "write_iops": integer(1, 2**32 - 1),
    "weight": integer(10, 1000),
}
_IO_ALLOWED = "a table {path or device, and of " + ", ".join(_IO_RATES) + " at least one}"
_DEVICE = re.compile(r"/dev/[^\x00-\x20]{1,250}|[0-9]{1,4}:[0-9]{1,7}")


def _io_limit(key: str, value: object) -> IoLimit:
    keys = set(value) if isinstance(value, Mapping) else set()
    known = keys <= {"path", "device", *_IO_RATES} and bool(keys & set(_IO_RATES))
    if not isinstance(value, Mapping) or not known or len(keys & {"path", "device"}) != 1:
        raise SpecError(key, value, _IO_ALLOWED)
    path, device = None, None
    if "path" in value:
        path = absolute_path(f"{key}.path", value["path"])
    else:
        parse_device = pattern(_DEVICE, "a node in /dev or 'major:minor'")
        device = parse_device(f"{key}.device", value["device"])
    rates = {k: parse(f"{key}.{k}", value[k]) for k, parse in _IO_RATES.items() if k in value}
    return IoLimit(path, device, **rates)


def _device_node(key: str, value: object) -> str:
    """Others are not in the sandbox, whatever the cgroup would allow."""
    if not isinstance(value, str) or value not in DEVICE_NODES:
        raise SpecError(key, value, "one of " + ", ".join(DEVICE_NODES))
    return value


#: name → (is a size in bytes, the least that an interpreter can live with)
RLIMITS: Final[dict[str, tuple[bool, int]]] = {
    "as": (True, 256 * MIB),
    "core": (True, 0),
    "cpu": (False, 1),
    "data": (True, 64 * MIB),
    "fsize": (True, 0),
    "memlock": (True, 0),
    "msgqueue": (True, 0),
    "nice": (False, 0),
    "nofile": (False, 64),
    "nproc": (False, PIDS_MINIMUM),
    "rtprio": (False, 0),
    "rttime": (False, 0),
    "sigpending": (False, 0),
    "stack": (True, 1 * MIB),
}


def _rlimit(key: str, value: object) -> int:
    is_size, least = RLIMITS[key.rpartition(".")[2]]
    parse = size_of(least) if is_size else integer(least, 2**31 - 1)
    return parse(key, value)


#: Of the spec's key ``rlimits``.
parse_rlimits: Final = table_of(
    re.compile("|".join(RLIMITS)), _rlimit, "a table of limits by name: " + ", ".join(RLIMITS)
)

_USER_ALLOWED = "a table of caps for all kernels of the user together, and 'kernels', how many"


def parse_user(key: str, value: object) -> UserTotal:
    """Of the spec's key ``user``."""
    if isinstance(value, UserTotal):
        return value
    keys = [k for k in CAP_PARSERS if k != "devices"]
    if not isinstance(value, Mapping):
        raise SpecError(key, value, _USER_ALLOWED)
    for name in value:
        if name not in (*keys, "kernels"):
            raise SpecError(f"{key}.{name}", value[name], "one of the keys " + ", ".join(keys))
    caps = parse_caps({k: v for k, v in value.items() if k != "kernels"}, prefix=f"{key}.")
    kernels = None
    if "kernels" in value:
        kernels = integer(1, 10_000)(f"{key}.kernels", value["kernels"])
    return UserTotal(caps, kernels)


CAP_PARSERS: Final[dict[str, Callable[[str, object], Any]]] = {
    "memory": size_of(MEMORY_MINIMUM),
    "memory_swap": size_of(0),
    "memory_high": size_of(MEMORY_MINIMUM),
    "memory_low": size_of(MIB),
    "cpus": number(CPUS_MINIMUM, CPUS_MAXIMUM),
    "cpu_weight": integer(1, 10_000),
    "cpuset_cpus": _numbers,
    "cpuset_mems": _numbers,
    "cpu_rt": number(0.001, 1.0),
    "pids": integer(PIDS_MINIMUM, PIDS_MAXIMUM),
    "io": list_of(_io_limit, "a list of tables, each " + _IO_ALLOWED),
    "hugetlb": table_of(
        re.compile(r"[1-9][0-9]{0,3}[KMG]B"), size_of(0),
        "a table of sizes by size of huge page, such as {'2MB': '64M'}",
    ),
    "net_classid": integer(1, 2**32 - 1),
    "net_prio": table_of(
        re.compile(r"[^\s/]{1,15}"), integer(0, 2**31 - 1),
        "a table of priorities by interface, such as {'eth0': 5}",
    ),
    "devices": list_of(_device_node, "a list of nodes of " + ", ".join(DEVICE_NODES)),
}  # fmt: skip

#: The keys that are fields of :class:`Caps`.
CAP_KEYS: Final = tuple(CAP_PARSERS)


def parse_caps(config: Mapping[str, Any], prefix: str = "") -> Caps:
    """Each cap alone, then those that depend on another. ``prefix`` is for the error's key.

    Raises:
        SpecError: a value that cannot be, alone or beside another.
    """
    caps = Caps(**{k: CAP_PARSERS[k](prefix + k, value) for k, value in config.items()})
    _check_together(caps, prefix)
    return caps


def _check_together(caps: Caps, prefix: str) -> None:
    if caps.memory_swap is not None and caps.memory is None:
        raise SpecError(f"{prefix}memory_swap", caps.memory_swap, "a size beside one of memory")
    for key in ("memory_high", "memory_low"):
        size = getattr(caps, key)
        if size is not None and caps.memory is not None and size > caps.memory:
            raise SpecError(f"{prefix}{key}", size, f"a size up to that of memory, {caps.memory}")


@dataclass(frozen=True)
class Change:
    """Other caps for a kernel that runs, and for all kernels of its user together."""

    caps: Caps = field(default_factory=Caps)
    user: Caps = field(default_factory=Caps)


_CHANGE_ALLOWED: Final = "one of the caps " + ", ".join((*CAP_KEYS, "user"))


def parse_change(config: Mapping[str, Any]) -> Change:
    """The keys are those of the spec. How many kernels run at once is no cap of one that runs.

    Called by the provisioner before anything is sent, and by the supervisor again.

    Raises:
        SpecError: an unknown key, a value that cannot be, or nothing to be changed.
    """
    for key, value in config.items():
        if key not in CAP_PARSERS and key != "user":
            raise SpecError(key, value, _CHANGE_ALLOWED)
        if value is None:
            raise SpecError(key, None, "a value: a cap is changed, it cannot be lifted")
    caps = parse_caps({key: value for key, value in config.items() if key != "user"})
    user = parse_user("user", config.get("user", {}))
    if user.kernels is not None:
        raise SpecError("user.kernels", user.kernels, "no such key for a kernel that runs")
    if not caps.asked() and not user.caps.asked():
        raise SpecError("caps", dict(config), "at least " + _CHANGE_ALLOWED)
    return Change(caps, user.caps)
