"""The caps hold against processes that misbehave, as an ordinary user, on this machine.

Each test has a delegated directory of its own below the one that ``SANDBOX_KERNEL_CGROUP`` names,
and fails if anything is left in it.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import probes
import pytest
from integration.groups import MIB, PATIENCE, Child, Delegated

from sandbox_kernel.engine.cgroups import KernelCgroup, sweep
from sandbox_kernel.errors import CgroupError

pytestmark = pytest.mark.needs("cgroups")

BOMB = """
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("armed", flush=True)
while True:
    try:
        os.fork()
    except BlockingIOError:
        pass
"""


# -- memory --------------------------------------------------------------------------------------


def test_memory_is_killed_at_its_cap(delegated: Delegated, start: type[Child]) -> None:
    cap = 64 * MIB + 5
    group, other = delegated.create(memory=cap), delegated.create("kernel-other", memory=cap)
    sibling = start(other, "print('alive', flush=True); sys.stdin.readline()")
    before = group.events()

    assert start(group, "bytearray(256 * 2**20)").go().wait() == -signal.SIGKILL

    after, usage = group.events(), group.usage()
    assert (before.oom_kill, after.oom_kill) == (0, 1)
    assert after.memory_limit is not None and after.memory_limit > (before.memory_limit or 0)
    assert after.memory_limit_above == before.memory_limit_above
    assert usage.memory_peak is not None and 48 * MIB < usage.memory_peak <= cap
    assert other.events().oom_kill == 0
    assert sibling.go().line() == "alive"
    sibling.close()
    assert group.remove() == other.remove() == ()


def test_memory_within_the_cap_is_not_touched(delegated: Delegated, start: type[Child]) -> None:
    group = delegated.create(memory=128 * MIB)
    assert start(group, "bytearray(64 * 2**20)").go().wait() == 0
    assert group.events().oom_kill == 0
    assert group.remove() == ()


def test_which_cap_it_was(delegated: Delegated, start: type[Child]) -> None:
    """The user's cap is below the kernel's: the kill counts in the kernel's group all the same."""
    size = 64 * MIB
    delegated.limit("memory", v1=f"memory.limit_in_bytes {size}", v2=f"memory.max {size}")
    group = delegated.create(memory=256 * MIB)
    assert start(group, "bytearray(200 * 2**20)").go().wait() == -signal.SIGKILL
    events = group.events()
    assert (events.oom_kill, events.memory_limit) == (1, 0)
    assert events.memory_limit_above is not None and events.memory_limit_above > 0
    assert group.remove() == ()


# -- tasks ---------------------------------------------------------------------------------------


def test_forks_end_at_the_cap(delegated: Delegated, start: type[Child]) -> None:
    group = delegated.create(pids=20)
    code = """
count = 1
while True:
    try:
        pid = os.fork()
    except OSError as error:
        print(count, error.errno, flush=True)
        signal.pause()
    if pid == 0:
        signal.pause()
    count += 1
"""
    assert start(group, code).go().line() == f"20 {errno.EAGAIN}"  # one of the 20 is the first
    assert group.usage().pids_current == 20
    assert group.events().pids_limit == 1
    assert group.kill() == ()
    assert [(leaf.path / "cgroup.procs").read_text() for leaf in group.leaves] == [""] * len(
        group.leaves
    )
    assert group.remove() == ()


#: cgroup v2 has one directory, with the freezer and pids in it: there is nothing to be without.
@pytest.mark.parametrize(
    "use",
    [
        "all",
        pytest.param("no freezer", marks=pytest.mark.needs("cgroup-v1")),
        pytest.param("neither", marks=pytest.mark.needs("cgroup-v1")),
    ],
)
def test_a_living_fork_bomb_is_killed(delegated: Delegated, start: type[Child], use: str) -> None:
    group = delegated.create(pids=40, memory=256 * MIB)
    hidden = {"all": set(), "no freezer": {"freezer"}, "neither": {"freezer", "pids"}}[use]
    child = start(group, BOMB).go()
    assert child.line() == "armed"
    visible = replace(
        group, leaves=tuple(v for v in group.leaves if not hidden & set(v.controllers))
    )
    assert visible.kill(timeout=PATIENCE) == ()
    assert child.wait() == -signal.SIGKILL
    assert group.remove() == ()


def test_stopped_processes_are_killed_too(delegated: Delegated, start: type[Child]) -> None:
    group = delegated.create(pids=40)
    child = start(group, "")
    child.process.send_signal(signal.SIGSTOP)
    assert group.kill() == ()
    assert child.wait() == -signal.SIGKILL
    assert group.remove() == ()


# -- cpu -----------------------------------------------------------------------------------------


def test_two_busy_processes_share_half_a_core(delegated: Delegated, start: type[Child]) -> None:
    """A second of work at half a core lasts two, whatever else the machine does."""
    group = delegated.create(cpus=0.5)
    burn = "begin = time.process_time()\nwhile time.process_time() < begin + 0.5: pass"
    children = [start(group, burn), start(group, burn)]
    used, begin = group.usage().cpu_usec, time.monotonic()
    for child in children:
        child.go()
    assert [child.wait() for child in children] == [0, 0]
    lasted = time.monotonic() - begin
    now = group.usage().cpu_usec
    assert used is not None and now is not None
    assert 0.95 < (now - used) / 1e6 < 1.4
    # One period more may be used up at each end.
    assert (now - used) / 1e6 / lasted < 0.58
    assert lasted < 10 * probes.TIMEOUT_FACTOR
    assert group.remove() == ()


# -- making and removing -------------------------------------------------------------------------


def test_every_directory_is_ours_and_then_gone(delegated: Delegated) -> None:
    group = delegated.create(memory=64 * MIB, cpus=0.01, pids=32)
    assert {leaf.path for leaf in group.leaves} == set(delegated.leaves())
    assert all(leaf.path.parent in delegated.directories for leaf in group.leaves)
    assert {"memory", "cpu", "pids"} <= {c for leaf in group.leaves for c in leaf.controllers}
    assert group.remove() == group.remove() == group.kill() == ()
    assert delegated.leaves() == []


def test_an_occupied_group_says_who_is_in_it(delegated: Delegated, start: type[Child]) -> None:
    group = delegated.create(pids=32)
    child = start(group, "")
    (leaf,) = [v for v in group.leaves if "pids" in v.controllers]
    problems = group.remove(timeout=0.05)
    expected = f"cgroup {leaf.path} could not be removed: pids {child.process.pid} are in it"
    assert expected in problems
    child.go()  # ends by itself, and remove() waits for that
    assert group.remove() == ()


def test_a_group_that_is_gone_takes_nobody(delegated: Delegated) -> None:
    group = delegated.create(pids=32)
    assert group.remove() == ()
    with pytest.raises(CgroupError, match=r"this process could not join .*: no such file"):
        group.join()


def test_join_pid_moves_another_process(delegated: Delegated) -> None:
    group = delegated.create(pids=32)
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as process:
        group.join_pid(process.pid)
        assert group.usage().pids_current == 1
    assert group.remove() == ()


@pytest.mark.needs("cgroup-v1")
def test_a_refusal_in_the_middle_leaves_nothing(delegated: Delegated) -> None:
    """The directory above has a quarter of a core, so the kernel refuses one core below it."""
    (delegated.path("cpu") / "cpu.cfs_quota_us").write_text("25000")
    with pytest.raises(CgroupError) as caught:
        delegated.create(memory=64 * MIB, cpus=1.0, pids=32)
    above = delegated.path("cpu")
    assert caught.value.cause == f"{above} has a quota of 0.25 cores itself"
    assert delegated.leaves() == []
    group = delegated.create(memory=64 * MIB, cpus=0.25, pids=32)
    assert group.remove() == ()


def test_a_missing_controller_is_named_by_path(delegated: Delegated) -> None:
    """For a user of whom this machine has never heard: this one's may be in the usual place."""
    stranger = os.getuid() + 1_000_000
    nowhere = delegated.path("pids").parent / "nowhere"
    hint = str(Path(delegated.hint).parent / "nowhere")
    with pytest.raises(CgroupError) as caught:
        delegated.create(hint=hint, uid=stranger, pids=32)
    text = caught.value.message
    assert f"controller pids is not available under {nowhere}: no such directory" in text
    assert f"remedy: as root: mkdir -p {nowhere} && chown {stranger} {nowhere}" in text


# -- after a supervisor that was killed ----------------------------------------------------------

SUPERVISOR = """
import json, os, sys
from sandbox_kernel.engine.cgroups import create
from sandbox_kernel.spec import Caps, MissingCap
group = create(Caps(memory=2**28, pids=32), "kernel-s", uid=os.getuid(), hint=sys.argv[1],
               on_missing=MissingCap.ERROR)
if os.fork() == 0:
    group.join()
    print(json.dumps(group.to_dict()), flush=True)
sys.stdin.readline()
"""


def _supervisor(hint: str) -> tuple[subprocess.Popen[str], KernelCgroup]:
    """A process that made a group, whose child is in it; both wait on their standard input."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISOR, hint], stdin=pipe, stdout=pipe, text=True
    )
    assert process.stdout is not None
    return process, KernelCgroup.from_dict(json.loads(process.stdout.readline()))


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate(timeout=PATIENCE)  # until the child too has closed standard output


def test_sweep_after_kill_9(delegated: Delegated) -> None:
    dead, orphaned = _supervisor(delegated.hint)
    living, kept = _supervisor(delegated.hint)
    dead.kill()
    dead.wait(PATIENCE)
    assert orphaned.usage().pids_current == 1

    swept = sweep(os.getuid(), delegated.hint)

    assert set(swept.removed) == {str(leaf.path) for leaf in orphaned.leaves}
    assert swept.problems == ()
    assert set(delegated.leaves()) == {leaf.path for leaf in kept.leaves}
    assert kept.usage().pids_current == 1
    _end(dead)
    assert kept.kill() == kept.remove() == ()
    _end(living)


def test_another_process_can_clean_up(delegated: Delegated) -> None:
    process, group = _supervisor(delegated.hint)
    process.kill()
    process.wait(PATIENCE)
    assert group.kill() == group.remove() == ()
    _end(process)
