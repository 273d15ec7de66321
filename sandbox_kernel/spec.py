"""What a sandbox is to be, as frozen data: parsed and validated before anything is started.

Pure: no system call, no import from this package but :mod:`sandbox_kernel.errors`. The keys are
those of ``metadata.kernel_provisioner.config`` in a kernelspec. Every key that is unknown, every
value of a wrong type and every value that cannot be is a :class:`~sandbox_kernel.errors.SpecError`
that names the key, the value and what is allowed: a typing error must never remove a limit.

Sizes are integers in bytes, or strings with a binary suffix: ``"512M"``, ``"2G"``, ``"1.5GiB"``.
"""

from __future__ import annotations

import enum
import math
import os.path
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, TypeVar

from .errors import SpecError

SPEC_VERSION: Final = 1

KIB: Final = 1024
MIB: Final = 1024**2
GIB: Final = 1024**3
_LARGEST: Final = 2**63 - 1

#: Below this the interpreter itself does not fit: the start would be a sure OOM kill.
MEMORY_MINIMUM: Final = 64 * MIB
#: ipykernel alone runs 13 threads; libzmq and BLAS add theirs.
PIDS_MINIMUM: Final = 32
PIDS_MAXIMUM: Final = 4_194_304
CPUS_MINIMUM: Final = 0.01
CPUS_MAXIMUM: Final = 4096.0

_E = TypeVar("_E", bound=enum.Enum)


class Identity(enum.Enum):
    """Who the kernel is, inside and outside."""

    KEEP_ID = "keep-id"
    """The user's own id inside and outside."""
    ROOT = "root"
    """Uid 0 inside, the user's own id outside. It has no capability all the same."""
    ISOLATED = "isolated"
    """A subordinate id outside: no file of the user is the kernel's."""


class WorkspaceMode(enum.Enum):
    """What the kernel may do with the folder that the notebook lies in."""

    RW = "rw"
    RO = "ro"
    OVERLAY = "overlay"
    """Writes work and vanish with the kernel."""
    NONE = "none"
    """An empty scratch folder stands in its place."""


class MountMode(enum.Enum):
    """How an extra mount appears."""

    RO = "ro"
    RW = "rw"
    OVERLAY = "overlay"


class NetworkPolicy(enum.Enum):
    """What the kernel reaches beyond its own loopback device."""

    NONE = "none"
    """Only the proxy's peer address, where nothing listens for it."""


class MissingCap(enum.Enum):
    """What happens when a cap was asked for and no controller can hold it."""

    ERROR = "error"
    WARN = "warn"


class Transport(enum.Enum):
    """How the client reaches the proxy."""

    IPC = "ipc"
    """Unix sockets in a directory that only the user can enter."""
    TCP = "tcp"
    """The connection file's own address and ports; any local user can connect."""


@dataclass(frozen=True)
class Mount:
    """One extra mount: host path ``source`` appears at ``target`` (absolute, inside)."""

    source: str
    target: str
    mode: MountMode = MountMode.RO


@dataclass(frozen=True)
class Caps:
    """What the cgroup of one kernel may use. ``None`` means: no cap was asked for."""

    memory: int | None = None
    """Bytes."""
    cpus: float | None = None
    """CPU bandwidth in cores: 1.5 is one and a half."""
    pids: int | None = None
    """Tasks: processes and threads."""

    def asked(self) -> dict[str, float | int]:
        """The caps that are set, by key."""
        return {f.name: v for f in fields(self) if (v := getattr(self, f.name)) is not None}


@dataclass(frozen=True)
class TmpfsLimits:
    """Sizes in bytes of each writable in-memory file system, and its number of inodes."""

    home: int = 1 * GIB
    tmp: int = 1 * GIB
    shm: int = 1 * GIB
    run: int = 64 * MIB
    overlay: int = 1 * GIB
    inodes: int = 100_000


@dataclass(frozen=True)
class SandboxSpec:
    """Everything about one sandbox that is decided before it starts."""

    identity: Identity = Identity.KEEP_ID
    id_range: int = 0
    """Subordinate ids mapped besides the kernel's own, through newuidmap; 0 is none."""
    workspace: WorkspaceMode = WorkspaceMode.RW
    workspace_path: str | None = None
    """Host path of the workspace; ``None`` is the working directory of the kernel."""
    mounts: tuple[Mount, ...] = ()
    hide: tuple[str, ...] = ()
    """Paths below the home that stay hidden besides the built-in list of secret folders."""
    caps: Caps = field(default_factory=Caps)
    on_missing_cap: MissingCap = MissingCap.ERROR
    tmpfs: TmpfsLimits = field(default_factory=TmpfsLimits)
    network: NetworkPolicy = NetworkPolicy.NONE
    env_pass: tuple[str, ...] = ()
    """Names of variables that reach the kernel besides the built-in list."""
    hostname: str = "sandbox"
    transport: Transport = Transport.IPC
    start_timeout: float = 30.0
    """Seconds from the request until the kernel must have bound its channels."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, see :func:`spec_from_dict`."""

        def plain(value: Any) -> Any:
            if isinstance(value, enum.Enum):
                return value.value
            if isinstance(value, dict):
                return {k: plain(v) for k, v in value.items()}
            if isinstance(value, (list, tuple)):
                return [plain(v) for v in value]
            return value

        return {"version": SPEC_VERSION} | {k: plain(v) for k, v in asdict(self).items()}


def spec_from_dict(data: Mapping[str, Any]) -> SandboxSpec:
    """The spec that :meth:`SandboxSpec.to_dict` described on the other side of a process border."""
    if data.get("version") != SPEC_VERSION:
        raise SpecError("version", data.get("version"), f"{SPEC_VERSION}")
    flat = {k: v for k, v in data.items() if k not in ("version", "caps", "tmpfs")}
    flat |= {k: v for k, v in data["caps"].items() if v is not None}
    flat |= {("inodes" if k == "inodes" else f"{k}_size"): v for k, v in data["tmpfs"].items()}
    return parse_spec({k: v for k, v in flat.items() if v is not None})


def parse_spec(config: Mapping[str, Any]) -> SandboxSpec:
    """Validate a kernelspec's ``config`` (flat keys) and return the spec it describes.

    Raises:
        SpecError: an unknown key, a wrong type or a value that cannot be; nothing was started.
    """
    unknown = sorted(set(config) - set(_PARSERS))
    if unknown:
        raise SpecError(unknown[0], config[unknown[0]], "one of the keys " + ", ".join(_PARSERS))
    values = {key: _PARSERS[key](key, value) for key, value in config.items()}
    caps = Caps(**{k: values.pop(k) for k in ("memory", "cpus", "pids") if k in values})
    sizes = {k.removesuffix("_size"): values.pop(k) for k in _TMPFS_KEYS if k in values}
    spec = SandboxSpec(caps=caps, tmpfs=TmpfsLimits(**sizes), **values)
    if spec.workspace is WorkspaceMode.NONE and spec.workspace_path is not None:
        raise SpecError("workspace_path", spec.workspace_path, "no path when workspace is 'none'")
    return spec


#: ``metadata.kernel_provisioner`` of a kernelspec may have these keys and no other.
_PROVISIONER_KEYS: Final = ("provisioner_name", "config")


def kernelspec_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The ``config`` of a kernelspec's metadata, whose place must be spelled right as well.

    Raises:
        SpecError: another key beside it, such as ``confg`` or a cap that was put there.
    """
    stanza = metadata.get("kernel_provisioner", {})
    allowed = "a table with the keys " + ", ".join(_PROVISIONER_KEYS)
    if not isinstance(stanza, Mapping):
        raise SpecError("kernel_provisioner", stanza, allowed)
    for key, value in stanza.items():
        if key not in _PROVISIONER_KEYS:
            raise SpecError(f"kernel_provisioner.{key}", value, allowed)
    config = stanza.get("config", {})
    if not isinstance(config, Mapping):
        raise SpecError("kernel_provisioner.config", config, "a table")
    return dict(config)


# -- parsers, one a kind of value -------------------------------------------------------------

_SIZE = re.compile(r"(?P<number>[0-9]{1,19}(?:\.[0-9]{1,9})?)(?:(?P<unit>[KMGT])(?:iB)?)?")
_UNITS = {None: 1, "K": KIB, "M": MIB, "G": GIB, "T": 1024**4}
_SIZE_ALLOWED = "a size in bytes or with a suffix K, M, G or T, such as '512M' or '2G'"


def parse_size(key: str, value: object, *, minimum: int = 1) -> int:
    """Bytes from an integer or from ``"512M"``; ``minimum`` and the result are bytes."""
    allowed = f"{_SIZE_ALLOWED}, at least {minimum}"
    size: int
    if isinstance(value, bool):
        raise SpecError(key, value, allowed)
    if isinstance(value, int):
        size = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value)):
        number, unit = match["number"], _UNITS[match["unit"]]
        if "." in number:
            whole, digits = number.split(".")
            if match["unit"] is None:
                raise SpecError(key, value, allowed)
            size = int(whole) * unit + int(digits) * unit // 10 ** len(digits)
        else:
            size = int(number) * unit
    else:
        raise SpecError(key, value, allowed)
    if not minimum <= size <= _LARGEST:
        raise SpecError(key, value, allowed)
    return size


def _size(minimum: int) -> Callable[[str, object], int]:
    return lambda key, value: parse_size(key, value, minimum=minimum)


def _integer(minimum: int, maximum: int) -> Callable[[str, object], int]:
    def parse(key: str, value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise SpecError(key, value, f"a whole number from {minimum} to {maximum}")
        return value

    return parse


def _number(minimum: float, maximum: float) -> Callable[[str, object], float]:
    def parse(key: str, value: object) -> float:
        allowed = f"a number from {minimum:g} to {maximum:g}"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise SpecError(key, value, allowed)
        if not (minimum <= value <= maximum) or not math.isfinite(value):
            raise SpecError(key, value, allowed)
        return float(value)

    return parse


def _choice(kind: type[_E]) -> Callable[[str, object], _E]:
    def parse(key: str, value: object) -> _E:
        for member in kind:
            if isinstance(value, str) and member.value == value:
                return member
        raise SpecError(key, value, "one of " + ", ".join(repr(m.value) for m in kind))

    return parse


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HOSTNAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


def _pattern(pattern: re.Pattern[str], allowed: str) -> Callable[[str, object], str]:
    def parse(key: str, value: object) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise SpecError(key, value, allowed)
        return value

    return parse


def _path(key: str, value: object) -> str:
    """An absolute path without ``..``; ``~`` is the user's home, and one slash never two."""
    allowed = "an absolute path without '..' or control characters"
    if not isinstance(value, str) or (not value.startswith(("/", "~/")) and value != "~"):
        raise SpecError(key, value, allowed)
    if any(ord(c) < 32 or ord(c) == 127 for c in value) or len(value) > 4000:
        raise SpecError(key, value, allowed)
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        raise SpecError(key, value, allowed) from None
    if ".." in value.split("/"):
        raise SpecError(key, value, allowed)
    path = os.path.normpath(os.path.expanduser(value))
    if not path.startswith("/"):
        raise SpecError(key, value, allowed)
    return "/" + path.lstrip("/")


def _list_of(
    parse_item: Callable[[str, object], Any], allowed: str
) -> Callable[[str, object], Any]:
    def parse(key: str, value: object) -> tuple[Any, ...]:
        if isinstance(value, (str, bytes)) or not isinstance(value, (list, tuple)):
            raise SpecError(key, value, allowed)
        return tuple(parse_item(f"{key}[{i}]", item) for i, item in enumerate(value))

    return parse


def _mount(key: str, value: object) -> Mount:
    if isinstance(value, Mount):
        return value
    allowed = "a table {source, target, mode}, mode one of 'ro', 'rw', 'overlay'"
    keys = set(value) if isinstance(value, Mapping) else set()
    if not isinstance(value, Mapping) or not {"source"} <= keys <= {"source", "target", "mode"}:
        raise SpecError(key, value, allowed)
    source = _path(f"{key}.source", value["source"])
    target = _path(f"{key}.target", value.get("target", source))
    if is_system(target):
        raise SpecError(f"{key}.target", target, f"a path outside {', '.join(SYSTEM_TARGETS)}")
    return Mount(source, target, _choice(MountMode)(f"{key}.mode", value.get("mode", "ro")))


#: No workspace and no extra mount may stand in for these or lie below them: they are the walls.
SYSTEM_TARGETS: Final = (
    "/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/run",
    "/sbin", "/sys", "/usr", "/var/run",
)  # fmt: skip


#: Not these themselves, though folders below them: others' files lie there, or other kernels'.
SHARED_TARGETS: Final = ("/", "/home", "/tmp", "/var", "/var/tmp")


def is_system(path: str) -> bool:
    """Is ``path`` one that belongs to the sandbox itself, or lies in one?"""
    return path in SHARED_TARGETS or any(
        path == t or path.startswith(t + "/") for t in SYSTEM_TARGETS
    )


def check_workspace(path: str) -> str:
    """The workspace path if it may be one, else :class:`SpecError`: never ``/``, ``/etc`` …"""
    if is_system(path):
        raise SpecError(
            "workspace_path",
            path,
            f"a folder that is none of {', '.join(SHARED_TARGETS)} and not within "
            + ", ".join(SYSTEM_TARGETS),
        )
    return path


_TMPFS_KEYS: Final = (
    "home_size", "tmp_size", "shm_size", "run_size", "overlay_size", "inodes",
)  # fmt: skip

_PARSERS: Final[dict[str, Callable[[str, object], Any]]] = {
    "identity": _choice(Identity),
    "id_range": _integer(0, 2**31 - 1),
    "workspace": _choice(WorkspaceMode),
    "workspace_path": lambda key, value: check_workspace(_path(key, value)),
    "mounts": _list_of(_mount, "a list of tables {source, target, mode}"),
    "hide": _list_of(_path, "a list of absolute paths or of paths that begin with ~/"),
    "memory": _size(MEMORY_MINIMUM),
    "cpus": _number(CPUS_MINIMUM, CPUS_MAXIMUM),
    "pids": _integer(PIDS_MINIMUM, PIDS_MAXIMUM),
    "on_missing_cap": _choice(MissingCap),
    "home_size": _size(MIB),
    "tmp_size": _size(MIB),
    "shm_size": _size(MIB),
    "run_size": _size(MIB),
    "overlay_size": _size(MIB),
    "inodes": _integer(1000, 2**31 - 1),
    "network": _choice(NetworkPolicy),
    "env_pass": _list_of(
        _pattern(_NAME, "the name of an environment variable"), "a list of names of variables"
    ),
    "hostname": _pattern(_HOSTNAME, "a host name of small letters, digits and '-', up to 63"),
    "transport": _choice(Transport),
    "start_timeout": _number(1.0, 600.0),
}

#: Every key that a kernelspec's config may have, for the reference and for completion.
KEYS: Final = tuple(_PARSERS)
