"""cgroup v2: one hierarchy, controllers handed down directory by directory.

The delegatee owns a directory with its ``cgroup.procs``, ``cgroup.threads`` and
``cgroup.subtree_control``, and not the limit files of the directory itself. Processes live in
leaves only. Source: the kernel's Documentation/admin-guide/cgroup-v2.
"""

from __future__ import annotations

import contextlib
import errno
from pathlib import Path
from typing import Final

from ...errors import CgroupError, describe_errno
from ...spec import Caps
from .interface import (
    CPU_PERIOD,
    Backend,
    CgroupEvents,
    CgroupUsage,
    Files,
    Leaf,
    Place,
    Setting,
    Source,
    cpu_quota,
    keyed,
    number,
    plain_refusal,
    same,
    same_pages,
)

#: Where the processes go that stood in a cgroup which systemd delegated to the server itself.
HOST_LEAF: Final = "sandbox-kernel-host"
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

    def settings(self, leaf: Leaf, caps: Caps, files: Files) -> tuple[Setting, ...]:
        found: list[Setting] = []
        if "memory" in leaf.controllers and caps.memory is not None:
            found.append(Setting("memory.max", str(caps.memory), same_pages(caps.memory)))
            if self.bounds_swap(leaf, files):
                found.append(Setting("memory.swap.max", "0", same("0")))
            # memory.oom.group stays 0, as on v1: a greedy child dies, the kernel can go on.
        if "cpu" in leaf.controllers and caps.cpus is not None:
            bandwidth = f"{cpu_quota(caps.cpus)} {CPU_PERIOD}"
            found.append(Setting("cpu.max", bandwidth, same(bandwidth)))
        if "pids" in leaf.controllers and caps.pids is not None:
            found.append(Setting("pids.max", str(caps.pids), same(str(caps.pids))))
        return tuple(found)

    def refusal(self, leaf: Leaf, setting: Setting, error: OSError, files: Files) -> CgroupError:
        return plain_refusal(leaf, setting, error)

    def bounds_swap(self, leaf: Leaf, files: Files) -> bool:
        return files.read(leaf.path / "memory.swap.max") is not None

    def usage(self, leaf: Leaf, files: Files) -> CgroupUsage:
        events = self.events(leaf, files)
        return CgroupUsage(
            memory_current=number(files.read(leaf.path / "memory.current")),
            memory_peak=number(files.read(leaf.path / "memory.peak")),  # since Linux 5.19
            memory_failcnt=events.memory_limit,
            oom_kills=events.oom_kill,
            pids_current=number(files.read(leaf.path / "pids.current")),
            pids_max_events=events.pids_limit,
            # There without the cpu controller too.
            cpu_usec=keyed(files.read(leaf.path / "cpu.stat"), "usage_usec"),
        )

    def events(self, leaf: Leaf, files: Files) -> CgroupEvents:
        memory = files.read(leaf.path / "memory.events")
        return CgroupEvents(
            oom_kill=keyed(memory, "oom_kill"),
            memory_limit=keyed(memory, "max"),
            # .local: the counts of memory.events include those of every directory below.
            memory_limit_above=keyed(files.read(leaf.path.parent / "memory.events.local"), "max"),
            pids_limit=keyed(files.read(leaf.path / "pids.events"), "max"),
        )


def can_empty(source: Source, directory: Path, files: Files) -> bool:
    """Whether the processes in a delegated directory may be moved to a leaf of it.

    Only in the own cgroup, and only where systemd promised to leave it alone: anywhere else the
    processes are somebody else's to place.
    """
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
        _empty(place.directory, files)
    cause = describe_errno(failure.errno or 0)
    if failure.errno == errno.EBUSY:
        count = len(files.pids(place.directory))
        cause = f"{count} processes are in {place.directory} itself, they must be in leaves of it"
    raise CgroupError(
        f"controller {controller} could not be handed down by {control}",
        cause=cause,
        path=str(control),
    )


def _empty(directory: Path, files: Files) -> None:
    """Move every process of ``directory`` to :data:`HOST_LEAF` below it."""
    leaf = directory / HOST_LEAF
    with contextlib.suppress(FileExistsError):
        files.mkdir(leaf)
    for pid in files.pids(directory):
        try:
            files.write(leaf / "cgroup.procs", str(pid))
        except ProcessLookupError:
            pass
        except OSError as error:
            raise CgroupError(
                f"process {pid} could not be moved to {leaf}",
                cause=describe_errno(error.errno or 0),
                path=str(leaf / "cgroup.procs"),
            ) from error
