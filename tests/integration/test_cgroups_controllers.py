"""Every further controller against processes that misbehave; update, pause, events, user's total.

As an ordinary user, on whatever this machine has: what a version cannot hold is refused, and that
is tested too. ``tests/hub`` does what only root can.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.groups import MIB, PATIENCE, Child, Delegated

from sandbox_kernel.engine.cgroups import EventWatch, KernelCgroup, running, sweep
from sandbox_kernel.errors import CgroupError
from sandbox_kernel.spec import Caps, MissingCap, parse_spec

pytestmark = pytest.mark.needs("cgroups")

#: Joins, then spins on one CPU until it is killed.
BURN = "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\nwhile True: pass"
#: Allocates and touches as many MiB as each line says, and answers.
EATER = """
kept = []
while True:
    kept.append(bytearray(int(sys.stdin.readline()) * 2**20))
    print("eaten", flush=True)
"""


def cpu_of(group: KernelCgroup) -> float:
    used = group.usage().cpu_usec
    assert used is not None
    return used / 1e6


def eat(child: Child, size: int) -> None:
    """So many MiB more."""
    assert child.process.stdin is not None
    child.process.stdin.write(f"{size}\n")
    child.process.stdin.flush()


def gone(group: KernelCgroup) -> None:
    assert group.kill() == group.remove() == ()


# -- cpu -----------------------------------------------------------------------------------------


def test_weights_of_100_and_300_share_one_to_three(
    delegated: Delegated, start: type[Child]
) -> None:
    light, heavy = delegated.create("kernel-a", cpu_weight=100), delegated.create(
        "kernel-b", cpu_weight=300
    )  # fmt: skip
    burners = [start(light, BURN), start(heavy, BURN)]
    for burner in burners:
        burner.go()
    end = time.monotonic() + PATIENCE
    before = cpu_of(light), cpu_of(heavy)
    while cpu_of(light) - before[0] < 1.0 and time.monotonic() < end:
        time.sleep(0.05)  # CPU time has no event
    one, three = cpu_of(light) - before[0], cpu_of(heavy) - before[1]
    assert 2.7 < three / one < 3.3
    gone(light)
    gone(heavy)


@pytest.mark.needs("cpuset")
def test_nobody_pins_himself_outside_of_cpuset_cpus(
    delegated: Delegated, start: type[Child]
) -> None:
    group = delegated.create(cpuset_cpus="0", cpuset_mems="0")
    code = """
print(sorted(os.sched_getaffinity(0)), flush=True)
for wanted in ({1}, {0, 1}):
    try:
        os.sched_setaffinity(0, wanted)
    except OSError as error:
        print(errno.errorcode[error.errno], flush=True)
    else:
        print(sorted(os.sched_getaffinity(0)), flush=True)
"""
    child = start(group, code).go()
    assert [child.line(), child.line(), child.line()] == ["[0]", "EINVAL", "[0]"]
    assert child.wait() == 0
    gone(group)


@pytest.mark.needs("cpuset")
def test_cpus_that_are_not_there_are_refused(delegated: Delegated) -> None:
    with pytest.raises(CgroupError, match=r"cpuset") as caught:
        delegated.create(cpuset_cpus="0,8000")
    if not delegated.is_v2("cpuset"):
        assert caught.value.fact == "the cap cpuset_cpus = 0,8000 was refused by the kernel"
        assert "cpuset.cpus is 0" in (caught.value.cause or "")


@pytest.mark.needs("cpuset")
def test_an_empty_cpuset_is_filled_from_above(delegated: Delegated, start: type[Child]) -> None:
    group = delegated.create(cpuset_mems="0")
    child = start(group, "print(len(os.sched_getaffinity(0)), flush=True)").go()
    assert child.line() == str(len(os.sched_getaffinity(0)))
    child.wait()
    gone(group)


def test_real_time_is_refused_where_nobody_handed_it_down(delegated: Delegated) -> None:
    with pytest.raises(CgroupError) as caught:
        delegated.create(cpu_rt=0.1)
    if delegated.is_v2("cpu"):
        assert caught.value.cause == "cgroup v2 has no such limit"
        return
    path = delegated.path("cpu") / "cpu.rt_runtime_us"
    assert caught.value.fact == "the cap cpu_rt = 0.1 was refused by the kernel"
    assert caught.value.cause == f"{path} is 0, and children get a part of that"
    assert caught.value.remedy == f"as root: echo 100000 > {path}"


# -- memory --------------------------------------------------------------------------------------


def test_memory_high_slows_down_or_is_refused(delegated: Delegated) -> None:
    if delegated.is_v2("memory"):
        group = delegated.create(memory_high="64M")
        assert group.warnings == ()
        gone(group)
        return
    with pytest.raises(CgroupError) as caught:
        delegated.create(memory_high="64M")
    assert caught.value.cause == "cgroup v1 has no such limit"
    group = delegated.create(memory_high="64M", memory=64 * MIB, on_missing=MissingCap.WARN)
    (warning,) = group.warnings
    assert warning.startswith("the cap memory_high is not enforced: ")
    assert group.usage().memory_current == 0
    gone(group)


def test_a_larger_and_a_smaller_cap_for_a_kernel_that_runs(
    delegated: Delegated, start: type[Child]
) -> None:
    group = delegated.create(memory=96 * MIB)
    child = start(group, EATER).go()
    eat(child, 48)
    assert child.line() == "eaten"
    group.update(Caps(memory=256 * MIB))
    eat(child, 96)
    assert child.line() == "eaten"
    group.update(Caps(memory=192 * MIB))
    if not delegated.is_v2("memory"):  # v2 takes it and kills
        with pytest.raises(CgroupError, match="cannot be reclaimed"):
            group.update(Caps(memory=64 * MIB))
    assert group.events().oom_kill == 0
    eat(child, 96)
    assert child.wait() == -signal.SIGKILL
    assert group.events().oom_kill == 1
    gone(group)


def test_every_cap_of_a_kernel_that_runs(delegated: Delegated, start: type[Child]) -> None:
    group = delegated.create(pids=32, cpus=1.0, cpu_weight=100, memory=128 * MIB)
    start(group, "")
    changed = parse_spec({"pids": 64, "cpus": 0.5, "cpu_weight": 50, "memory_low": "1M"}).caps
    group.update(changed)
    shown = {name: text for name in WRITTEN if (text := _text(group, name)) is not None}
    assert shown in (
        {"pids.max": "64", "cpu.cfs_quota_us": "50000", "cpu.shares": "512",
         "memory.soft_limit_in_bytes": str(MIB)},
        {"pids.max": "64", "cpu.max": "50000 100000", "cpu.weight": "50", "memory.low": str(MIB)},
    )  # fmt: skip
    gone(group)


WRITTEN = (
    "pids.max", "cpu.cfs_quota_us", "cpu.shares", "memory.soft_limit_in_bytes",
    "cpu.max", "cpu.weight", "memory.low",
)  # fmt: skip


def _text(group: KernelCgroup, name: str) -> str | None:
    found = [leaf.path / name for leaf in group.leaves if (leaf.path / name).exists()]
    return found[0].read_text().strip() if found else None


def test_a_cap_without_a_controller_cannot_be_changed(delegated: Delegated) -> None:
    group = delegated.create(pids=32)
    with pytest.raises(CgroupError, match="made without the controller net_cls"):
        group.update(Caps(net_classid=5))
    gone(group)


# -- block devices -------------------------------------------------------------------------------

#: Writes that many MiB past the page cache and says how long it took.
DIRECT = """
fd = os.open(sys.argv[2], os.O_WRONLY | os.O_DIRECT)
block = mmap.mmap(-1, 2**20)
begin = time.monotonic()
for _ in range(6):
    os.write(fd, block)
print(time.monotonic() - begin, flush=True)
"""


@pytest.fixture
def file_on_disk() -> Iterator[Path]:
    path = Path(f"/var/tmp/skt-{os.getpid()}")
    path.write_bytes(bytes(8 * MIB))
    with path.open("rb+") as file:
        os.fsync(file)
    yield path
    path.unlink()


@pytest.mark.needs("io", "disk")
def test_direct_writes_past_write_bps(
    delegated: Delegated, start: type[Child], file_on_disk: Path
) -> None:
    """Three MiB a second: six take two, but for what the first slice lets through."""
    group = delegated.create(io=[{"path": str(file_on_disk), "write_bps": "3M"}])
    child = start(group, DIRECT.replace("sys.argv[2]", repr(str(file_on_disk))))
    took = float(child.go().line())
    assert 1.5 < took < 10
    child.wait()
    usage = group.usage()
    assert usage.io is not None
    (found,) = running(os.getuid(), delegated.hint)
    assert found.usage().io == usage.io
    (device,) = [d for d in usage.io if d.write_bytes]
    assert device.write_bytes >= 6 * MIB and device.write_operations >= 6
    found.update(parse_spec({"io": [{"path": str(file_on_disk), "write_bps": "1G"}]}).caps)
    child = start(group, DIRECT.replace("sys.argv[2]", repr(str(file_on_disk))))
    assert float(child.go().line()) < took / 2
    child.wait()
    gone(group)


@pytest.mark.needs("io")
def test_a_path_on_no_disk_is_an_error(delegated: Delegated) -> None:
    with pytest.raises(CgroupError) as caught:
        delegated.create(io=[{"path": "/proc", "read_bps": 1000}], on_missing=MissingCap.WARN)
    assert caught.value.fact == "no block device is behind /proc"
    assert caught.value.cause == "it lies on proc"
    with pytest.raises(CgroupError, match=r"/dev/null is no block device"):
        delegated.create(io=[{"device": "/dev/null", "read_bps": 1000}])
    with pytest.raises(CgroupError, match=r"there is no block device 4095:1"):
        delegated.create(io=[{"device": "4095:1", "read_bps": 1000}])


# -- huge pages ----------------------------------------------------------------------------------


@pytest.mark.needs("hugetlb")
def test_huge_pages_are_limited_by_their_size(delegated: Delegated) -> None:
    """What that stops is shown in tests/hub: only root can reserve huge pages to be refused."""
    group = delegated.create(hugetlb={"2MB": "4M"})
    assert _text(group, "hugetlb.2MB.max") == str(4 * MIB)
    assert _text(group, "hugetlb.2MB.rsvd.max") in (str(4 * MIB), None)
    group.update(parse_spec({"hugetlb": {"2MB": 0}}).caps)
    assert _text(group, "hugetlb.2MB.max") == "0"
    gone(group)
    with pytest.raises(CgroupError, match="there are no huge pages of 8MB"):
        delegated.create(hugetlb={"8MB": 0})


# -- what only v1 or only root has ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("cap", "value", "controller"),
    [("net_classid", 5, "net_cls"), ("net_prio", {"lo": 1}, "net_prio")],
)
def test_a_controller_that_nobody_mounted_is_named(
    delegated: Delegated, cap: str, value: object, controller: str
) -> None:
    with pytest.raises(CgroupError) as caught:
        delegated.create(**{cap: value})
    assert caught.value.fact == f"controller {controller} is not available"
    assert caught.value.cause in (
        "no cgroup file system that is mounted has it",
        "cgroup v2 has no such controller",
        "its hierarchy is not mounted in this mount namespace",
    )


def test_devices_need_no_controller(delegated: Delegated) -> None:
    """For an ordinary user the wall is that no other node is there."""
    group = delegated.create(devices=["/dev/null"], pids=32)
    assert group.warnings == ()
    assert not [leaf for leaf in group.leaves if "devices" in leaf.controllers]
    gone(group)


# -- pause and resume ----------------------------------------------------------------------------


def test_who_is_paused_uses_no_cpu_and_goes_on(delegated: Delegated, start: type[Child]) -> None:
    code = """
import threading
threading.Thread(target=lambda: [None for _ in iter(int, 1)], daemon=True).start()
for line in sys.stdin:
    print("here", flush=True)
"""
    group = delegated.create(pids=32, cpus=1.0)
    child = start(group, code).go()
    child.say()
    assert child.line() == "here"
    group.pause()
    used = cpu_of(group)
    child.say()
    assert child.process.stdout is not None
    assert select.select([child.process.stdout], [], [], 0.5)[0] == []
    assert cpu_of(group) == used
    group.resume()
    assert child.line() == "here"
    group.resume()  # twice is once
    gone(group)


def test_who_is_paused_can_be_killed(delegated: Delegated, start: type[Child]) -> None:
    group = delegated.create(pids=32)
    child = start(group, "")
    group.pause()
    assert group.kill() == ()
    assert child.wait() == -signal.SIGKILL
    assert group.remove() == ()


# -- events --------------------------------------------------------------------------------------


@pytest.fixture
def watching() -> Iterator[list[EventWatch]]:
    watches: list[EventWatch] = []
    yield watches
    for watch in watches:
        watch.close()


def wait_for(watch: EventWatch) -> None:
    assert select.select([watch], [], [], PATIENCE)[0]


@pytest.mark.parametrize("whose", ["kernel", "user"])
def test_the_watch_says_whose_memory_ran_out(
    delegated: Delegated, start: type[Child], watching: list[EventWatch], whose: str
) -> None:
    """Both caps are there, and both were reached before; only one of them kills."""
    sizes = {"kernel": (64, 128), "user": (128, 64)}[whose]
    group = delegated.create(memory=sizes[0] * MIB, user={"memory": sizes[1] * MIB})
    watching.append(watch := EventWatch(group))
    assert select.select([watch], [], [], 0)[0] == []
    child = start(group, "bytearray(256 * 2**20)").go()
    wait_for(watch)
    assert child.wait() == -signal.SIGKILL
    happened = watch.take().since(watch.start)
    assert happened.oom_kill == 1
    assert (bool(happened.oom), bool(happened.oom_above)) == (whose == "kernel", whose == "user")
    assert select.select([watch], [], [], 0)[0] == []
    watch.close()
    gone(group)


def test_the_watch_hears_of_a_fork_that_was_refused(
    delegated: Delegated, start: type[Child], watching: list[EventWatch]
) -> None:
    group = delegated.create(pids=4)
    watching.append(watch := EventWatch(group))
    code = """
try:
    while os.fork(): pass
    signal.pause()
except BlockingIOError:
    print("refused", flush=True)
    signal.pause()
"""
    assert start(group, code).go().line() == "refused"
    if delegated.is_v2("pids"):  # v1 counts it and tells nobody
        wait_for(watch)
    assert watch.take().since(watch.start).pids_limit == 1
    assert select.select([watch], [], [], 0)[0] == []
    watch.close()
    gone(group)


# -- the total of a user -------------------------------------------------------------------------


def test_kernels_share_what_their_user_may_use(delegated: Delegated, start: type[Child]) -> None:
    user = {"pids": 12, "memory": 128 * MIB}
    first = delegated.create("kernel-a", pids=10, user=user)
    second = delegated.create("kernel-b", pids=10, user=user)
    above = {leaf.path.parent for leaf in first.leaves}
    assert above == {leaf.path.parent for leaf in second.leaves}
    assert {path.name for path in above} == {f"user-{os.getuid()}"}
    code = """
count = 1
try:
    while os.fork(): count += 1
    signal.pause()
except BlockingIOError:
    print(count, flush=True)
    signal.pause()
"""
    assert start(first, code).go().line() == "10"
    assert start(second, code).go().line() == "2"  # with the ten of the other
    gone(first)
    assert above == {path for path in above if path.is_dir()}
    gone(second)
    assert not [path for path in above if path.exists()]


def test_so_many_kernels_at_once_and_no_more(delegated: Delegated) -> None:
    user = {"kernels": 2}
    first, second = (delegated.create(f"kernel-{n}", user=user) for n in "ab")
    with pytest.raises(CgroupError) as caught:
        delegated.create("kernel-c", user=user)
    assert caught.value.fact == "2 kernels of this user run already"
    assert (caught.value.cause, caught.value.remedy) == ("user.kernels is 2", "shut one down")
    assert {g.name for g in running(os.getuid(), delegated.hint)} == {first.name, second.name}
    gone(first)
    third = delegated.create("kernel-c", user=user)
    gone(second)
    gone(third)
    assert delegated.leaves() == []


def test_a_start_that_fails_leaves_no_directory_of_the_user(delegated: Delegated) -> None:
    with pytest.raises(CgroupError):
        delegated.create(cpu_rt=0.5, user={"kernels": 1})
    assert delegated.leaves() == []


SUPERVISOR = """
import os, signal, sys
from sandbox_kernel.engine.cgroups import create
from sandbox_kernel.spec import Caps, MissingCap, UserTotal
group = create(Caps(pids=32), "kernel-s", uid=os.getuid(), hint=sys.argv[1],
               on_missing=MissingCap.ERROR, user=UserTotal(Caps(pids=64), 1))
group.join()
print("joined", flush=True)
signal.pause()
"""


def test_sweep_takes_the_users_directory_too(delegated: Delegated) -> None:
    command = [sys.executable, "-c", SUPERVISOR, delegated.hint]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "joined\n"
        (group,) = running(os.getuid(), delegated.hint)
        assert re.match(r"kernel-s\.", group.name)
        assert group.usage().pids_current == 1
        assert KernelCgroup.from_dict(json.loads(json.dumps(group.to_dict()))) == group
        process.kill()
    assert running(os.getuid(), delegated.hint) == ()
    swept = sweep(os.getuid(), delegated.hint)
    assert swept.problems == () and swept.removed
    assert delegated.leaves() == []


# -- the snapshot --------------------------------------------------------------------------------


def test_the_snapshot_tells_user_system_and_throttled(
    delegated: Delegated, start: type[Child]
) -> None:
    group = delegated.create(cpus=0.2, memory=128 * MIB, pids=32)
    code = """
begin = time.process_time()
while time.process_time() < begin + 0.2: sum(range(10000))
for _ in range(20000): os.stat("/")
print("done", flush=True)
sys.stdin.readline()
"""
    child = start(group, code).go()
    assert child.line() == "done"
    usage = group.usage()
    assert usage.cpu_user_usec is not None and usage.cpu_user_usec > 100_000
    assert usage.cpu_system_usec is not None and usage.cpu_system_usec > 0
    assert usage.cpu_throttled_usec is not None and usage.cpu_throttled_usec > 50_000
    assert usage.cpu_throttled_periods is not None and usage.cpu_throttled_periods >= 1
    assert usage.memory_swap in (0, None)
    assert usage.memory_peak is not None and usage.memory_current is not None
    assert 0 < usage.memory_current <= usage.memory_peak <= 128 * MIB
    assert usage.pids_current == 1
    if delegated.is_v2("cpu") and Path("/proc/pressure/cpu").exists():
        assert usage.pressure is not None
        assert {p.resource for p in usage.pressure} == {"cpu", "memory", "io"}
    child.say()
    child.wait()
    gone(group)
