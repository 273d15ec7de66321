"""cgroup v1: one hierarchy for each controller, or for a few mounted together.

A user may write every file of a directory that he made himself, so a directory that an
administrator chowned is all the delegation there is. Sources: the kernel's
Documentation/admin-guide/cgroup-v1, and what the kernel answered.

``cgroup.procs`` and ``tasks``: a write to ``cgroup.procs`` moves the whole thread group, as on v2,
and that is what this package writes. ``tasks`` moves a single thread, so on v1 the threads of one
process can be in different groups, and one that has access to the file can leave its process's
group alone; inside the sandbox no cgroup file system is mounted. v2 has ``cgroup.threads`` for
that, in threaded groups only. A v1 group takes processes and has children at once, where on v2
processes are in leaves; moving needs write access to the target only, on v2 to the common ancestor.
For a kernel that runs: the freezer stops the threads in ``tasks`` one by one, a fork in between
leaves it in FREEZING, and a frozen process takes SIGKILL when it is thawed; a limit of memory below
what is in use is refused (EBUSY) if reclaim does not get there, where v2 takes it and kills.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from ...caps import format_numbers, parse_numbers
from ...errors import CgroupError
from ...spec import Caps
from . import blockdev
from .convert import memsw_of_swap, shares_of_weight
from .interface import (
    CPU_PERIOD,
    PAGE,
    RT_PERIOD,
    Backend,
    CgroupEvents,
    CgroupUsage,
    Files,
    IoUsage,
    Leaf,
    Place,
    Setting,
    cpu_quota,
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

#: Node of the sandbox → its number; with the terminals, of which every sandbox has its own.
_NODES: Final = {
    "/dev/null": "1:3",
    "/dev/zero": "1:5",
    "/dev/full": "1:7",
    "/dev/random": "1:8",
    "/dev/urandom": "1:9",
    "/dev/tty": "5:0",
}
_HUGETLB: Final = "limit_in_bytes"
_ALWAYS: Final = ("1:3", "5:2", "136:*")
#: Seconds between two looks at the freezer, which tells nobody when it is done.
_POLL: Final = 0.002


class V1(Backend):
    """The v1 half of :class:`~sandbox_kernel.engine.cgroups.interface.Backend`."""

    def prepare(self, place: Place, controllers: tuple[str, ...], files: Files) -> None:
        """Nothing to do: a controller of v1 acts in every directory of its hierarchy."""

    def lacks(self, leaf: Leaf, caps: Caps, files: Files) -> dict[str, CgroupError]:
        found: dict[str, CgroupError] = {}
        if "memory" in leaf.controllers:
            if caps.memory_high is not None:
                found["memory_high"] = unsupported(
                    leaf, "memory_high", "cgroup v1 has no such limit",
                    "ask for memory, or boot with systemd.unified_cgroup_hierarchy=1",
                )  # fmt: skip
            if caps.memory_swap is not None and not self.bounds_swap(leaf, files):
                found["memory_swap"] = unaccounted_swap(leaf)
        found |= _absent(leaf, caps, files)
        if "io" in leaf.controllers and (error := _no_weight(leaf, caps, files)):
            found["io"] = error
        return found

    def settings(self, leaf: Leaf, caps: Caps, files: Files) -> tuple[Setting, ...]:
        found: list[Setting] = []
        for controller, settings in _SETTINGS.items():
            if controller in leaf.controllers:
                found += settings(leaf.path, caps, files)
        return tuple(found)

    def refusal(self, leaf: Leaf, setting: Setting, error: OSError, files: Files) -> CgroupError:
        above = leaf.path.parent
        if setting.file == "cpu.cfs_quota_us" and error.errno == errno.EINVAL:
            cores, asked = _cores(above, files), int(setting.value) / CPU_PERIOD
            if cores is not None and cores < asked:
                return CgroupError(
                    f"the cap cpus = {asked:g} was refused by the kernel",
                    cause=f"{above} has a quota of {cores:g} cores itself",
                    remedy=f"ask for cpus = {cores:g} or less",
                    path=str(above / setting.file),
                )
        if setting.file == "cpu.rt_runtime_us" and error.errno == errno.EINVAL:
            return _rt_refusal(above, setting, files)
        if setting.file in ("cpuset.cpus", "cpuset.mems"):
            return _cpuset_refusal(above, setting, files)
        if setting.file == "memory.limit_in_bytes" and error.errno == errno.EBUSY:
            used = number(files.read(leaf.path / "memory.usage_in_bytes"))
            return CgroupError(
                f"the cap memory = {setting.value} was refused by the kernel",
                cause=f"{used} bytes are in use and cannot be reclaimed",
                remedy="free memory first, or ask for a larger cap",
                path=str(leaf.path / setting.file),
            )
        return plain_refusal(leaf, setting, error)

    def freeze(self, leaf: Leaf, frozen: bool, files: Files, deadline: float) -> bool:
        """Write again until it says so: v1 gives up in FREEZING when a fork raced with it."""
        if "freezer" not in leaf.controllers:
            return False
        state, wanted = leaf.path / "freezer.state", "FROZEN" if frozen else "THAWED"
        while True:
            files.write(state, wanted)
            if (files.read(state) or "").strip() == wanted:
                return True
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL)

    def bounds_swap(self, leaf: Leaf, files: Files) -> bool:
        return files.read(leaf.path / "memory.memsw.limit_in_bytes") is not None

    def usage(self, leaf: Leaf, files: Files) -> CgroupUsage:
        read = _reader(leaf, files)
        events = self.events(leaf, files)
        memory = number(read("memory", "memory.usage_in_bytes"))
        both = number(read("memory", "memory.memsw.usage_in_bytes"))
        throttled = keyed(read("cpu", "cpu.stat"), "throttled_time")
        return CgroupUsage(
            memory_current=memory,
            memory_peak=number(read("memory", "memory.max_usage_in_bytes")),
            memory_swap=None if memory is None or both is None else max(both - memory, 0),
            memory_failcnt=events.memory_limit,
            oom_kills=events.oom_kill,
            pids_current=number(read("pids", "pids.current")),
            pids_max_events=events.pids_limit,
            cpu_usec=_microseconds(number(read("cpuacct", "cpuacct.usage"))),
            cpu_user_usec=_microseconds(number(read("cpuacct", "cpuacct.usage_user"))),
            cpu_system_usec=_microseconds(number(read("cpuacct", "cpuacct.usage_sys"))),
            cpu_throttled_usec=_microseconds(throttled),
            cpu_throttled_periods=keyed(read("cpu", "cpu.stat"), "nr_throttled"),
            io=_io_usage(
                read("io", "blkio.throttle.io_service_bytes"),
                read("io", "blkio.throttle.io_serviced"),
            ),
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


# -- settings, one function a controller --------------------------------------------------------


def _memory(path: Path, caps: Caps, files: Files) -> Iterator[Setting]:
    """Limit, swap and OOM killer. The sum of memory and swap may never be below the memory.

    So a higher limit is written to memsw first, a lower one last. The sum is one page more than
    what was asked for: it is charged first, and Linux 6.18 counts no failure of it, so with equal
    limits nothing would tell that it was this cap that was reached.
    """
    if caps.memory_low is not None:
        size = str(caps.memory_low)
        yield Setting("memory.soft_limit_in_bytes", size, same_pages(caps.memory_low))
    if caps.memory is None:
        return
    limit = Setting("memory.limit_in_bytes", str(caps.memory), same_pages(caps.memory))
    both_now = number(files.read(path / "memory.memsw.limit_in_bytes"))
    if both_now is None:
        yield limit
        if files.read(path / "memory.swappiness") is not None:
            yield Setting("memory.swappiness", "0", same("0"))
    else:
        total = memsw_of_swap(caps.memory, (caps.memory_swap or 0) + PAGE)
        both = Setting("memory.memsw.limit_in_bytes", str(total), same_pages(total))
        yield from (both, limit) if total > both_now else (limit, both)
    # A new group inherits oom_kill_disable: with it a kernel at its cap hangs instead of dying.
    if keyed(files.read(path / "memory.oom_control"), "oom_kill_disable") == 1:
        yield Setting("memory.oom_control", "0", lambda text: keyed(text, "oom_kill_disable") == 0)


def _cpu(path: Path, caps: Caps, files: Files) -> Iterator[Setting]:
    if caps.cpus is not None:
        quota = str(cpu_quota(caps.cpus))
        # The period first: the kernel checks the quota against it.
        yield Setting("cpu.cfs_period_us", str(CPU_PERIOD), same(str(CPU_PERIOD)))
        yield Setting("cpu.cfs_quota_us", quota, same(quota))
    if caps.cpu_weight is not None:
        shares = str(shares_of_weight(caps.cpu_weight))
        yield Setting("cpu.shares", shares, same(shares))
    if caps.cpu_rt is not None:
        runtime = str(round(caps.cpu_rt * RT_PERIOD))
        yield Setting("cpu.rt_period_us", str(RT_PERIOD), same(str(RT_PERIOD)))
        yield Setting("cpu.rt_runtime_us", runtime, same(runtime))


def _cpuset(path: Path, caps: Caps, files: Files) -> Iterator[Setting]:
    """A new group has neither, and takes nobody before it has both: the other is the parent's."""
    for name, asked in (("cpuset.cpus", caps.cpuset_cpus), ("cpuset.mems", caps.cpuset_mems)):
        wanted = asked
        if wanted is None and not (files.read(path / name) or "").strip():
            wanted = (files.read(path.parent / name) or "").strip()
        if wanted is not None:
            yield Setting(name, wanted, same_numbers(wanted))


def _pids(path: Path, caps: Caps, files: Files) -> Iterator[Setting]:
    if caps.pids is not None:
        yield Setting("pids.max", str(caps.pids), same(str(caps.pids)))


def _io(path: Path, caps: Caps, files: Files) -> Iterator[Setting]:
    for limit in caps.io:
        for name in ("read_bps", "write_bps", "read_iops", "write_iops"):
            value = getattr(limit, name)
            if value is not None:
                line = f"{limit.device} {value}"
                accepts = has_line(*line.split())
                yield Setting(f"blkio.throttle.{name}_device", line, accepts, neutral="0")
        if limit.weight is not None:
            line = f"{limit.device} {limit.weight}"
            accepts = has_line(*line.split())
            yield Setting("blkio.bfq.weight_device", line, accepts, neutral="0")


def _hugetlb(path: Path, caps: Caps, files: Files) -> Iterator[Setting]:
    return hugetlb_settings(path, caps, _HUGETLB)


def _net_cls(path: Path, caps: Caps, files: Files) -> Iterator[Setting]:
    if caps.net_classid is not None:
        yield Setting("net_cls.classid", str(caps.net_classid), same(str(caps.net_classid)))


def _net_prio(path: Path, caps: Caps, files: Files) -> Iterator[Setting]:
    for interface, priority in caps.net_prio:
        line = f"{interface} {priority}"
        accepts = has_line(interface, str(priority))
        yield Setting("net_prio.ifpriomap", line, accepts, neutral="0")


def _devices(path: Path, caps: Caps, files: Files) -> Iterator[Setting]:
    if caps.devices is None:
        return
    yield Setting("devices.deny", "a", lambda text: not text.strip(), "devices.list")
    for number_ in dict.fromkeys([*_ALWAYS, *(_NODES[node] for node in caps.devices)]):
        accepts = has_line("c", number_, "rw")
        yield Setting("devices.allow", f"c {number_} rw", accepts, "devices.list")


_SETTINGS: Final[dict[str, Callable[[Path, Caps, Files], Iterator[Setting]]]] = {
    "memory": _memory,
    "cpu": _cpu,
    "cpuset": _cpuset,
    "pids": _pids,
    "io": _io,
    "hugetlb": _hugetlb,
    "net_cls": _net_cls,
    "net_prio": _net_prio,
    "devices": _devices,
}


# -- what cannot be held, and why ---------------------------------------------------------------


def _absent(leaf: Leaf, caps: Caps, files: Files) -> dict[str, CgroupError]:
    """Files that this Linux kernel was built without."""
    needed = {
        "cpu_rt": ("cpu", "cpu.rt_runtime_us", "CONFIG_RT_GROUP_SCHED"),
        "memory_low": ("memory", "memory.soft_limit_in_bytes", "CONFIG_MEMCG_V1"),
    }
    found: dict[str, CgroupError] = {}
    for cap in needed.keys() & caps.asked().keys():
        controller, name, option = needed[cap]
        if controller in leaf.controllers and not (leaf.path / name).exists():
            cause = f"{leaf.path / name} is not there: Linux was built without {option}"
            found[cap] = unsupported(leaf, cap, cause)
    return found | lacks_hugetlb(leaf, caps, _HUGETLB)


def _no_weight(leaf: Leaf, caps: Caps, files: Files) -> CgroupError | None:
    """A weight is obeyed by the scheduler bfq alone; the file takes it all the same."""
    for limit in (limit for limit in caps.io if limit.weight is not None):
        device = str(limit.device)
        if (now := blockdev.scheduler(device, files)) != "bfq":
            name = blockdev.name(device, files)
            return unsupported(
                leaf, "io", f"weights are obeyed by the scheduler bfq, that of {name} is {now}",
                f"as root: echo bfq > /sys/block/{name}/queue/scheduler",
            )  # fmt: skip
    return None


def _rt_refusal(above: Path, setting: Setting, files: Files) -> CgroupError:
    given = (files.read(above / setting.file) or "").strip()
    return CgroupError(
        f"the cap cpu_rt = {int(setting.value) / RT_PERIOD:g} was refused by the kernel",
        cause=f"{above / setting.file} is {given}, and children get a part of that",
        remedy=f"as root: echo {setting.value} > {above / setting.file}",
        path=str(above / setting.file),
    )


def _cpuset_refusal(above: Path, setting: Setting, files: Files) -> CgroupError:
    given = parse_numbers((files.read(above / setting.file) or "").strip()) or frozenset()
    cap = setting.file.replace(".", "_")
    return CgroupError(
        f"the cap {cap} = {setting.value} was refused by the kernel",
        cause=f"{above / setting.file} is {format_numbers(given) or 'empty'}",
        remedy=f"ask for a part of {format_numbers(given)}" if given else None,
        path=str(above / setting.file),
    )


# -- reading ------------------------------------------------------------------------------------


def _reader(leaf: Leaf, files: Files) -> Callable[[str, str], str | None]:
    """Reads a file of the leaf if its controller acts there."""

    def read(controller: str, name: str) -> str | None:
        return files.read(leaf.path / name) if controller in leaf.controllers else None

    return read


def _microseconds(nanoseconds: int | None) -> int | None:
    return None if nanoseconds is None else nanoseconds // 1000


def _io_usage(sizes: str | None, counts: str | None) -> tuple[IoUsage, ...] | None:
    """From lines like ``8:0 Read 4096``, in two files."""
    if sizes is None or counts is None:
        return None
    table: dict[str, dict[str, int]] = {}
    for suffix, text in (("bytes", sizes), ("operations", counts)):
        for line in text.splitlines():
            words = line.split()
            if len(words) == 3 and words[1] in ("Read", "Write"):
                values = table.setdefault(words[0], {})
                values[f"{words[1].lower()}_{suffix}"] = int(words[2])
    return tuple(IoUsage(device, **values) for device, values in sorted(table.items()))


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
