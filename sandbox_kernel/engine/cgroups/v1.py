"""cgroup v1: one hierarchy for each controller, or for a few mounted together.

A user may write every file of a directory that he made himself, so a directory that an
administrator chowned is all the delegation there is. Sources: the kernel's
Documentation/admin-guide/cgroup-v1, and what the kernel answered.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

from ...errors import CgroupError
from ...spec import Caps
from .interface import (
    CPU_PERIOD,
    PAGE,
    Backend,
    CgroupEvents,
    CgroupUsage,
    Files,
    Leaf,
    Place,
    Setting,
    cpu_quota,
    keyed,
    number,
    plain_refusal,
    same,
    same_pages,
)


class V1(Backend):
    """The v1 half of :class:`~sandbox_kernel.engine.cgroups.interface.Backend`."""

    def prepare(self, place: Place, controllers: tuple[str, ...], files: Files) -> None:
        """Nothing to do: a controller of v1 acts in every directory of its hierarchy."""

    def settings(self, leaf: Leaf, caps: Caps, files: Files) -> tuple[Setting, ...]:
        found: list[Setting] = []
        if "memory" in leaf.controllers and caps.memory is not None:
            found += _memory(leaf.path, caps.memory, files)
        if "cpu" in leaf.controllers and caps.cpus is not None:
            quota = str(cpu_quota(caps.cpus))
            # The period first: the kernel checks the quota against it.
            found.append(Setting("cpu.cfs_period_us", str(CPU_PERIOD), same(str(CPU_PERIOD))))
            found.append(Setting("cpu.cfs_quota_us", quota, same(quota)))
        if "pids" in leaf.controllers and caps.pids is not None:
            found.append(Setting("pids.max", str(caps.pids), same(str(caps.pids))))
        return tuple(found)

    def refusal(self, leaf: Leaf, setting: Setting, error: OSError, files: Files) -> CgroupError:
        if setting.file == "cpu.cfs_quota_us" and error.errno == errno.EINVAL:
            above = _cores(leaf.path.parent, files)
            asked = int(setting.value) / CPU_PERIOD
            if above is not None and above < asked:
                return CgroupError(
                    f"the cap cpus = {asked:g} was refused by the kernel",
                    cause=f"{leaf.path.parent} has a quota of {above:g} cores itself",
                    remedy=f"ask for cpus = {above:g} or less",
                    path=str(leaf.path.parent / setting.file),
                )
        return plain_refusal(leaf, setting, error)

    def bounds_swap(self, leaf: Leaf, files: Files) -> bool:
        return files.read(leaf.path / "memory.memsw.limit_in_bytes") is not None

    def usage(self, leaf: Leaf, files: Files) -> CgroupUsage:
        read = _reader(leaf, files)
        events = self.events(leaf, files)
        cpu = number(read("cpuacct", "cpuacct.usage"))  # nanoseconds
        return CgroupUsage(
            memory_current=number(read("memory", "memory.usage_in_bytes")),
            memory_peak=number(read("memory", "memory.max_usage_in_bytes")),
            memory_failcnt=events.memory_limit,
            oom_kills=events.oom_kill,
            pids_current=number(read("pids", "pids.current")),
            pids_max_events=events.pids_limit,
            cpu_usec=None if cpu is None else cpu // 1000,
        )

    def events(self, leaf: Leaf, files: Files) -> CgroupEvents:
        read = _reader(leaf, files)
        memory = "memory" in leaf.controllers
        return CgroupEvents(
            # The eventfd of memory.oom_control fires on removal too; the counter does not.
            oom_kill=keyed(read("memory", "memory.oom_control"), "oom_kill"),
            memory_limit=_failcnt(leaf.path, files) if memory else None,
            memory_limit_above=_failcnt(leaf.path.parent, files) if memory else None,
            pids_limit=keyed(read("pids", "pids.events"), "max"),
        )


def _reader(leaf: Leaf, files: Files) -> Callable[[str, str], str | None]:
    """Reads a file of the leaf if its controller acts there."""

    def read(controller: str, name: str) -> str | None:
        return files.read(leaf.path / name) if controller in leaf.controllers else None

    return read


def _memory(path: Path, size: int, files: Files) -> list[Setting]:
    """Limit, swap and OOM killer. The sum of memory and swap may never be below the memory.

    So a higher limit is written to memsw first, a lower one last. The sum is one page more than
    the memory: the sum is charged first, and Linux 6.18 counts no failure of it, so with equal
    limits nothing would tell that it was this cap that was reached.
    """
    limit = Setting("memory.limit_in_bytes", str(size), same_pages(size))
    found = [limit]
    both_now = number(files.read(path / "memory.memsw.limit_in_bytes"))
    if both_now is not None:
        total = min(size + PAGE, 2**63 - 1)
        both = Setting("memory.memsw.limit_in_bytes", str(total), same_pages(total))
        found = [both, limit] if total > both_now else [limit, both]
    elif files.read(path / "memory.swappiness") is not None:
        found.append(Setting("memory.swappiness", "0", same("0")))
    # A new group inherits oom_kill_disable: with it a kernel at its cap hangs instead of dying.
    if keyed(files.read(path / "memory.oom_control"), "oom_kill_disable") == 1:
        found.append(
            Setting("memory.oom_control", "0", lambda text: keyed(text, "oom_kill_disable") == 0)
        )
    return found


def _failcnt(path: Path, files: Files) -> int | None:
    """Both counters: which one fails depends on the limits and on the version of Linux."""
    counts = [
        number(files.read(path / name)) for name in ("memory.failcnt", "memory.memsw.failcnt")
    ]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def _cores(path: Path, files: Files) -> float | None:
    """The bandwidth of a directory in cores; ``None`` is without a limit."""
    quota = number(files.read(path / "cpu.cfs_quota_us"))
    period = number(files.read(path / "cpu.cfs_period_us"))
    return quota / period if quota is not None and quota > 0 and period else None
