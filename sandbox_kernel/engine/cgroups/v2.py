"""cgroup v2: one hierarchy, controllers handed down directory by directory.

The delegatee owns a directory with its ``cgroup.procs``, ``cgroup.threads`` and
``cgroup.subtree_control``, and not the limit files of the directory itself. Processes live in
leaves only. Source: the kernel's Documentation/admin-guide/cgroup-v2.
"""

from __future__ import annotations

import contextlib
import errno
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ...errors import CgroupError, describe_errno
from ...spec import Caps
from . import blockdev
from .convert import io_weight_of_blkio
from .interface import (
    CPU_PERIOD,
    SCOPE_LEAF,
    Backend,
    CgroupEvents,
    CgroupUsage,
    Files,
    IoUsage,
    Leaf,
    Place,
    Pressure,
    Setting,
    Source,
    cpu_quota,
    fields_of,
    has_line,
    hugetlb_settings,
    keyed,
    lacks_hugetlb,
    number,
    plain_refusal,
    same,
    same_numbers,
    same_pages,
    unaccounted_swap,
    unsupported,
)

#: Where the processes go that stood in a cgroup which systemd delegated to the server itself.
HOST_LEAF: Final = "sandbox-kernel-host"
_HUGETLB: Final = "max"
#: Rounds of moving: processes may fork while they are moved.
_ROUNDS: Final = 5


class V2(Backend):
    """The v2 half of :class:`~sandbox_kernel.engine.cgroups.interface.Backend`."""

    def prepare(self, place: Place, controllers: tuple[str, ...], files: Files) -> None:
        """Write what is missing to ``cgroup.subtree_control`` of the delegated directory.

        Stays as it is when the kernel ends: other kernels of the user need it too.

        Raises:
            CgroupError: the kernel did not take a controller.
        """
        control = place.directory / "cgroup.subtree_control"
        enabled = (files.read(control) or "").split()
        for controller in controllers:
            if controller not in enabled:
                _enable(place, control, controller, files)

    def lacks(self, leaf: Leaf, caps: Caps, files: Files) -> dict[str, CgroupError]:
        found: dict[str, CgroupError] = {}
        if caps.cpu_rt is not None and "cpu" in leaf.controllers:
            found["cpu_rt"] = unsupported(leaf, "cpu_rt", "cgroup v2 has no such limit")
        swap = caps.memory_swap is not None and "memory" in leaf.controllers
        if swap and not self.bounds_swap(leaf, files):
            found["memory_swap"] = unaccounted_swap(leaf)
        found |= lacks_hugetlb(leaf, caps, _HUGETLB)
        for limit in caps.io if "io" in leaf.controllers else ():
            if limit.weight is not None and _weight_file(leaf, str(limit.device), files) is None:
                found["io"] = _no_weight(leaf, str(limit.device), files)
        return found

    def settings(self, leaf: Leaf, caps: Caps, files: Files) -> tuple[Setting, ...]:
        found: list[Setting] = []
        if "memory" in leaf.controllers:
            found += self._memory(leaf, caps, files)
        if "cpu" in leaf.controllers:
            found += _cpu(caps)
        if "cpuset" in leaf.controllers:
            found += _cpuset(caps)
        if "pids" in leaf.controllers and caps.pids is not None:
            found.append(Setting("pids.max", str(caps.pids), same(str(caps.pids))))
        if "io" in leaf.controllers:
            found += _io(leaf, caps, files)
        if "hugetlb" in leaf.controllers:
            found += hugetlb_settings(leaf.path, caps, _HUGETLB)
        return tuple(found)

    def _memory(self, leaf: Leaf, caps: Caps, files: Files) -> Iterator[Setting]:
        """What protects and slows down first: they must not be above the limit when it comes."""
        for name, size in (("low", caps.memory_low), ("high", caps.memory_high)):
            if size is not None:
                yield Setting(f"memory.{name}", str(size), same_pages(size))
        if caps.memory is not None:
            yield Setting("memory.max", str(caps.memory), same_pages(caps.memory))
            if self.bounds_swap(leaf, files):
                swap = caps.memory_swap or 0
                yield Setting("memory.swap.max", str(swap), same_pages(swap))
            # memory.oom.group stays 0, as on v1: a greedy child dies, the kernel can go on.

    def refusal(self, leaf: Leaf, setting: Setting, error: OSError, files: Files) -> CgroupError:
        return plain_refusal(leaf, setting, error)

    def freeze(self, leaf: Leaf, frozen: bool, files: Files, deadline: float) -> bool:
        """``cgroup.events`` says when the last process has stopped, and that can be polled."""
        wanted = 1 if frozen else 0
        with (leaf.path / "cgroup.events").open() as events:
            files.write(leaf.path / "cgroup.freeze", str(wanted))
            poller = select.poll()
            poller.register(events, select.POLLPRI)
            while keyed(events.read(), "frozen") != wanted:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                poller.poll(left * 1000)
                events.seek(0)
        return True

    def bounds_swap(self, leaf: Leaf, files: Files) -> bool:
        return files.read(leaf.path / "memory.swap.max") is not None

    def usage(self, leaf: Leaf, files: Files) -> CgroupUsage:
        events = self.events(leaf, files)
        cpu = files.read(leaf.path / "cpu.stat")  # there without the cpu controller too
        return CgroupUsage(
            memory_current=number(files.read(leaf.path / "memory.current")),
            memory_peak=number(files.read(leaf.path / "memory.peak")),  # since Linux 5.19
            memory_swap=number(files.read(leaf.path / "memory.swap.current")),
            memory_failcnt=events.memory_limit,
            oom_kills=events.oom_kill,
            pids_current=number(files.read(leaf.path / "pids.current")),
            pids_max_events=events.pids_limit,
            cpu_usec=keyed(cpu, "usage_usec"),
            cpu_user_usec=keyed(cpu, "user_usec"),
            cpu_system_usec=keyed(cpu, "system_usec"),
            cpu_throttled_usec=keyed(cpu, "throttled_usec"),
            cpu_throttled_periods=keyed(cpu, "nr_throttled"),
            io=_io_usage(files.read(leaf.path / "io.stat")),
            pressure=_pressure(leaf.path, files),
        )

    def events(self, leaf: Leaf, files: Files) -> CgroupEvents:
        memory = files.read(leaf.path / "memory.events")
        # .local: the counts of memory.events include those of every directory below.
        above = files.read(leaf.path.parent / "memory.events.local")
        return CgroupEvents(
            oom_kill=keyed(memory, "oom_kill"),
            memory_limit=keyed(memory, "max"),
            memory_limit_above=keyed(above, "max"),
            memory_high=keyed(memory, "high"),
            oom=keyed(memory, "oom"),
            oom_above=keyed(above, "oom"),
            pids_limit=keyed(files.read(leaf.path / "pids.events"), "max"),
        )


# -- settings -----------------------------------------------------------------------------------


def _cpu(caps: Caps) -> Iterator[Setting]:
    if caps.cpus is not None:
        bandwidth = f"{cpu_quota(caps.cpus)} {CPU_PERIOD}"
        yield Setting("cpu.max", bandwidth, same(bandwidth))
    if caps.cpu_weight is not None:
        yield Setting("cpu.weight", str(caps.cpu_weight), same(str(caps.cpu_weight)))


def _cpuset(caps: Caps) -> Iterator[Setting]:
    """Any number is taken; what the directories above let through of it is ``.effective``."""
    for name, wanted in (("cpus", caps.cpuset_cpus), ("mems", caps.cpuset_mems)):
        if wanted is not None:
            shown_in = f"cpuset.{name}.effective"
            yield Setting(f"cpuset.{name}", wanted, same_numbers(wanted), shown_in)


def _io(leaf: Leaf, caps: Caps, files: Files) -> Iterator[Setting]:
    for limit in caps.io:
        device = str(limit.device)
        keys = {"rbps": "read_bps", "wbps": "write_bps", "riops": "read_iops",
                "wiops": "write_iops"}  # fmt: skip
        words = [f"{k}={v}" for k, name in keys.items() if (v := getattr(limit, name)) is not None]
        if words:
            free = " ".join(f"{key}=max" for key in keys)
            line = " ".join([device, *words])
            yield Setting("io.max", line, has_line(device, *words), neutral=free)
        file = _weight_file(leaf, device, files) if limit.weight is not None else None
        if file is not None and limit.weight is not None:
            weight = limit.weight
            if file == "io.weight":
                weight = io_weight_of_blkio(weight)
            accepts = has_line(device, str(weight))
            yield Setting(file, f"{device} {weight}", accepts, neutral="default")


def _weight_file(leaf: Leaf, device: str, files: Files) -> str | None:
    """What obeys a weight on this disk: bfq, or iocost where the administrator enabled it."""
    if blockdev.scheduler(device, files) == "bfq" and (leaf.path / "io.bfq.weight").exists():
        return "io.bfq.weight"
    top = next((p for p in leaf.path.parents if (p / "io.cost.qos").exists()), None)
    if top is not None:
        words = fields_of(files.read(top / "io.cost.qos")).get(device, {})
        if words.get("enable") == "1" and (leaf.path / "io.weight").exists():
            return "io.weight"
    return None


def _no_weight(leaf: Leaf, device: str, files: Files) -> CgroupError:
    name = blockdev.name(device, files)
    now = blockdev.scheduler(device, files)
    return unsupported(
        leaf, "io",
        f"weights are obeyed by the scheduler bfq, that of {name} is {now}, or by io.cost.qos, "
        "which is not enabled for it",
        f"as root: echo bfq > /sys/block/{name}/queue/scheduler",
    )  # fmt: skip


# -- reading ------------------------------------------------------------------------------------


def _io_usage(text: str | None) -> tuple[IoUsage, ...] | None:
    if text is None:
        return None
    keys = ("rbytes", "wbytes", "rios", "wios")
    return tuple(
        IoUsage(device, *(int(words.get(key, 0)) for key in keys))
        for device, words in sorted(fields_of(text).items())
    )


def _pressure(path: Path, files: Files) -> tuple[Pressure, ...] | None:
    found = []
    for resource in ("cpu", "memory", "io"):
        try:
            lines = fields_of(files.read(path / f"{resource}.pressure"))
        except OSError:  # switched off by psi=0, or by cgroup.pressure
            continue
        if "some" in lines:
            full = lines.get("full", {}).get("total")
            some = lines["some"]
            found.append(
                Pressure(
                    resource, int(some["total"]), int(full) if full else None, float(some["avg10"])
                )
            )
    return tuple(found) or None


# -- handing down controllers -------------------------------------------------------------------


def can_empty(source: Source, directory: Path, files: Files) -> bool:
    """Whether the processes in a delegated directory may be moved to a leaf of it.

    Only in our scope, where they are supervisors that have just come, and in the own cgroup, if
    systemd promised to leave it alone: anywhere else they are somebody else's to place.
    """
    if source is Source.SCOPE:
        return True
    return source is Source.OWN and files.delegated_by_systemd(directory)


def _enable(place: Place, control: Path, controller: str, files: Files) -> None:
    for _ in range(_ROUNDS):
        try:
            files.write(control, f"+{controller}")
            return
        except OSError as error:
            failure = error
        movable = can_empty(place.source, place.directory, files)
        if failure.errno != errno.EBUSY or not movable:
            break
        _empty(place, files)
    cause = describe_errno(failure.errno or 0)
    if failure.errno == errno.EBUSY:
        count = len(files.pids(place.directory))
        cause = f"{count} processes are in {place.directory} itself, they must be in leaves of it"
    raise CgroupError(
        f"controller {controller} could not be handed down by {control}",
        cause=cause,
        path=str(control),
    )


def _empty(place: Place, files: Files) -> None:
    """Move every process of a delegated directory to the leaf of it that is for them."""
    leaf = SCOPE_LEAF if place.source is Source.SCOPE else HOST_LEAF
    for pid in files.pids(place.directory):
        move(pid, place.directory / leaf, files)


def move(pid: int, leaf: Path, files: Files) -> None:
    """Put a process, unless it is gone, into a directory, which is made if need be.

    Raises:
        CgroupError: it could not be made, or did not take the process.
    """
    path = leaf
    try:
        with contextlib.suppress(FileExistsError):
            files.mkdir(leaf)
        path = leaf / "cgroup.procs"
        with contextlib.suppress(ProcessLookupError):
            files.write(path, str(pid))
    except OSError as error:
        raise CgroupError(
            f"process {pid} could not be moved to {leaf}",
            cause=describe_errno(error.errno or 0),
            path=str(path),
        ) from error
