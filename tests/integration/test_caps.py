"""The caps of a kernel hold, and whoever ran into one is told which and how large."""

from __future__ import annotations

import logging
import os
import queue
import re
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import probes
import pytest
from integration.remains import (
    Ground,
    cgroup_directories,
    close_launchers,
    end_of,
    kernel_pid,
)
from integration.sandboxes import run_cell, started, value

from sandbox_kernel.engine.cgroups import running
from sandbox_kernel.errors import CgroupError
from sandbox_kernel.protocol import Exited
from sandbox_kernel.provisioner import SandboxProvisioner
from sandbox_kernel.spec import parse_spec

pytestmark = pytest.mark.needs("cgroups")

MIB = 1024**2


# -- memory ---------------------------------------------------------------------------------------


def test_past_the_memory_cap(here: Ground) -> None:
    """The cell says what happened, and a kernel beside it does not notice."""
    config = {"memory": "256M"}
    with started(here.folder, config) as (_, sibling), started(here.folder, config) as (km, client):
        assert run_cell(sibling, "kept = bytes(64 * 2**20)").ok
        cell = run_cell(
            client, "data = [bytes(16 * 2**20).replace(b'\\0', b'x') for _ in range(64)]"
        )
        assert (cell.status, cell.ename) == ("error", "MemoryCapExceeded")
        found = re.fullmatch(
            r"the kernel reached its memory cap of 256 MiB, peak ([0-9.]+) MiB; "
            r"use less data at once or ask for a larger cap",
            cell.evalue,
        )
        assert found, cell.evalue
        assert 250 <= float(found[1]) <= 256
        assert cell.reply["ename"] == "MemoryCapExceeded"
        assert end_of(km) == Exited(-9, cell.evalue, "MemoryCapExceeded")
        assert value(sibling, "len(kept)") == 64 * MIB


def test_memory_through_files_counts_too(here: Ground) -> None:
    """What lies in /dev/shm and /tmp is memory of the kernel's own cgroup."""
    with started(here.folder, {"memory": "256M"}) as (_, client):
        code = (
            "with open('/dev/shm/big', 'wb') as file:\n"
            "    for _ in range(512): file.write(bytes(2**20))"
        )
        assert run_cell(client, code).ename == "MemoryCapExceeded"


def test_a_child_that_is_killed_for_memory_leaves_its_kernel_alive(here: Ground) -> None:
    """The child is by far the largest, so it is the one that the kernel of the host chooses."""
    with started(here.folder, {"memory": "384M"}) as (km, client):
        code = (
            "import subprocess, sys\n"
            "greedy = 'data = [bytearray(8 * 2**20) for _ in range(1000)]'\n"
            "print(subprocess.run([sys.executable, '-c', greedy]).returncode)"
        )
        cell = run_cell(client, code)
        assert (cell.stdout, cell.status) == ("-9\n", "ok")
        assert km.is_alive()
        assert value(client, "1 + 1") == 2


def test_a_kernel_that_ends_by_itself_is_not_said_to_have_reached_the_cap(here: Ground) -> None:
    """Even where a child was killed for memory before."""
    with started(here.folder, {"memory": "384M"}) as (_, client):
        code = (
            "import os, subprocess, sys\n"
            "greedy = 'data = [bytearray(8 * 2**20) for _ in range(1000)]'\n"
            "subprocess.run([sys.executable, '-c', greedy])\n"
            "os._exit(4)"
        )
        assert run_cell(client, code).ename == "KernelExited"


# -- pids -----------------------------------------------------------------------------------------


def test_a_fork_bomb_gets_an_error_and_the_kernel_answers(here: Ground) -> None:
    with started(here.folder, {"pids": 64}) as (_, client):
        code = (
            "import errno, os, signal\n"
            "children = []\n"
            "try:\n"
            "    while len(children) < 1000:\n"
            "        pid = os.fork()\n"
            "        if pid == 0:\n"
            "            signal.pause()\n"
            "            os._exit(0)\n"
            "        children.append(pid)\n"
            "except OSError as error:\n"
            "    print(errno.errorcode[error.errno], len(children))\n"
            "for pid in children:\n"
            "    os.kill(pid, signal.SIGKILL)\n"
            "    os.waitpid(pid, 0)\n"
        )
        cell = run_cell(client, code)
        assert cell.ok, cell.evalue
        name, count = cell.stdout.split()
        assert name == "EAGAIN"
        assert 16 < int(count) < 64  # the kernel's own threads count
        assert value(client, "1 + 1") == 2


def test_a_bomb_that_goes_on_ends_with_its_kernel(here: Ground) -> None:
    """Processes that fork whenever one ends cannot outrun the end of their pid namespace."""
    with started(here.folder, {"pids": 64}) as (km, client):
        code = (
            "import os\n"
            "if os.fork() == 0:\n"
            "    while True:\n"
            "        try:\n"
            "            os.fork()\n"
            "        except OSError:\n"
            "            pass\n"
            "print('armed')"
        )
        assert run_cell(client, code).stdout == "armed\n"
        km.shutdown_kernel(now=True)
    here.assert_clean("by the bomb")


# -- cpus -----------------------------------------------------------------------------------------


def test_half_a_cpu_is_half_a_cpu(here: Ground) -> None:
    """Two processes that do nothing else get one half of a core between them, not two cores."""
    with started(here.folder, {"cpus": 0.5}) as (_, client):
        code = (
            "import os, time\n"
            "start, wall = os.times(), time.monotonic()\n"
            "pid = os.fork()\n"
            "while time.monotonic() - wall < 2: pass\n"
            "if pid == 0: os._exit(0)\n"
            "os.waitpid(pid, 0)\n"
            "end, wall = os.times(), time.monotonic() - wall\n"
            "used = sum(end[:4]) - sum(start[:4])\n"
            "print(used / wall)"
        )
        cell = run_cell(client, code)
        assert cell.ok, cell.evalue
        # Less on a machine that is busy with other things; more by the burst of one period.
        assert 0.1 < float(cell.stdout) < 0.6


# -- the other caps --------------------------------------------------------------------------------


@pytest.mark.needs("cpuset")
def test_the_cpuset_is_what_python_sees(here: Ground) -> None:
    with started(here.folder, {"cpuset_cpus": "0"}) as (_, client):
        seen = "sorted(__import__('os').sched_getaffinity(0))"
        assert value(client, seen) == [0]
        cell = run_cell(client, "import os; os.sched_setaffinity(0, {1})")
        assert cell.ename == "OSError" and "Invalid argument" in cell.evalue
        assert value(client, seen) == [0]


CHILD_LIMITS = """
import os, resource
for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_RTPRIO):
    print(resource.getrlimit(kind)[1])
try:
    [os.dup(0) for _ in range(1000)]
except OSError as error:
    print(error.strerror)
"""


def test_limits_of_each_process_are_only_lowered(here: Ground) -> None:
    """The sandbox's own limit on rtprio is lower than what is asked for here."""
    with started(here.folder, {"rlimits": {"nofile": 256, "rtprio": 50}}) as (_, client):
        code = (
            "import subprocess, sys\n"
            f"child = {CHILD_LIMITS!r}\n"
            "print(subprocess.check_output([sys.executable, '-c', child], text=True))"
        )
        assert run_cell(client, code).stdout.split("\n")[:3] == ["256", "0", "Too many open files"]


def test_only_the_devices_that_may_be_used_are_there(here: Ground) -> None:
    with started(here.folder, {"devices": ["/dev/urandom"]}) as (_, client):
        nodes = "sorted(n for n in ('null', 'zero', 'full', 'random', 'urandom', 'tty')"
        code = f"{nodes} if __import__('os').path.exists('/dev/' + n))"
        assert value(client, code) == ["null", "urandom"]
        assert value(client, "len(open('/dev/urandom', 'rb').read(8))") == 8


def test_a_paused_kernel_uses_no_cpu_and_answers_after_resume(here: Ground) -> None:
    with started(here.folder, {"pids": 64, "cpus": 1.5}) as (km, client):
        code = (
            "import threading\n"
            "threading.Thread(target=lambda: [0 for _ in iter(int, 1)], daemon=True).start()"
        )
        assert run_cell(client, code).ok
        (group,) = running(os.getuid(), os.environ["SANDBOX_KERNEL_CGROUP"])
        group.pause()
        used = group.usage().cpu_usec
        msg_id = client.execute("6 * 7")
        with pytest.raises(queue.Empty):
            client.get_shell_msg(timeout=1)
        assert group.usage().cpu_usec == used
        group.resume()
        reply = client.get_shell_msg(timeout=60)
        assert reply["parent_header"]["msg_id"] == msg_id
        assert reply["content"]["status"] == "ok"
        group.pause()
        km.shutdown_kernel(now=True)  # as if it were not paused


def test_a_cap_of_a_kernel_that_runs_is_changed(here: Ground) -> None:
    with started(here.folder, {"memory": "256M"}) as (_, client):
        (group,) = running(os.getuid(), os.environ["SANDBOX_KERNEL_CGROUP"])
        group.update(parse_spec({"memory": "512M"}).caps)
        assert run_cell(client, "kept = bytes(320 * 2**20).replace(b'\\0', b'x')").ok


# -- the total of a user ---------------------------------------------------------------------------


def test_the_memory_of_the_user_is_told_from_that_of_the_kernel(here: Ground) -> None:
    """Both caps bind: this one ends by the user's, the next by its own."""
    greedy = "data = [bytes(16 * 2**20).replace(b'\\0', b'x') for _ in range(64)]"
    config: dict[str, Any] = {"memory": "1G", "user": {"memory": "256M"}}
    with started(here.folder, config) as (km, client):
        cell = run_cell(client, greedy)
        assert cell.ename == "MemoryCapExceeded"
        whose = "all kernels of this user together used the memory they may use (256 MiB), peak "
        assert cell.evalue.startswith(whose)
        assert end_of(km).reason == cell.evalue
    config = {"memory": "256M", "user": {"memory": "1G"}}
    with started(here.folder, config) as (km, client):
        cell = run_cell(client, greedy)
        assert cell.evalue.startswith("the kernel reached its memory cap of 256 MiB, peak ")
    assert list(cgroup_directories()) == []


def test_one_kernel_more_than_the_user_may_have(here: Ground) -> None:
    config = {"user": {"kernels": 1}}
    with started(here.folder, config) as (_, client):
        with pytest.raises(CgroupError) as caught, started(here.folder, config):
            pass
        assert caught.value.message.startswith("1 kernels of this user run already")
        assert value(client, "1 + 1") == 2
    with started(here.folder, config) as (_, client):
        assert value(client, "1 + 1") == 2


# -- what the log says of a kernel that lives on ---------------------------------------------------


def test_a_child_that_was_killed_for_memory_is_in_the_log(
    here: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with started(here.folder, {"memory": "384M"}) as (km, client):
        code = (
            "import subprocess, sys\n"
            "greedy = 'data = [bytearray(8 * 2**20) for _ in range(1000)]'\n"
            "print(subprocess.run([sys.executable, '-c', greedy]).returncode)"
        )
        assert run_cell(client, code).stdout == "-9\n"
        end = time.monotonic() + 30
        wanted = "a process was killed: the kernel reached its memory cap of 384 MiB, peak "
        assert isinstance(km.provisioner, SandboxProvisioner)
        while wanted not in caplog.text and time.monotonic() < end:
            assert km.provisioner.sandbox is not None
            select.select([km.provisioner.sandbox], [], [], 1)
            assert km.is_alive()  # which takes in what the supervisor has said
        assert wanted in caplog.text


# -- what is seen of it ---------------------------------------------------------------------------


def test_caps_are_told_inside_where_programs_look(here: Ground) -> None:
    config = {"memory": "512M", "cpus": 1.5, "pids": 128}
    with started(here.folder, config) as (_, client):
        names = ["MEM_LIMIT", "CPU_LIMIT"]
        code = f"[__import__('os').environ.get(n) for n in {names}]"
        assert value(client, code) == [str(512 * MIB), "1.5"]
    with started(here.folder, {}, cwd=here.work) as (_, client):
        assert value(client, code) == [None, None]


def test_a_library_that_asks_how_many_threads_to_start_sees_the_quota(here: Ground) -> None:
    """And so does an interpreter that the kernel runs; affinity shows a cpuset and no quota."""
    with started(here.folder, {"cpus": 1}) as (_, client):
        assert value(client, "len(__import__('os').sched_getaffinity(0))") == len(
            os.sched_getaffinity(0)
        )
        ask = "import os; print(*(os.environ[n] for n in ('PYTHON_CPU_COUNT', 'OMP_NUM_THREADS')))"
        code = f"import subprocess, sys\nsubprocess.check_output([sys.executable, '-c', {ask!r}])"
        assert run_cell(client, code).result == repr(b"1 1\n")


def test_the_kernel_is_in_the_cgroup_and_cannot_see_where_that_is(here: Ground) -> None:
    config = {"memory": "512M", "cpus": 1.5, "pids": 128}
    with started(here.folder, config) as (km, client):
        assert isinstance(km.provisioner, SandboxProvisioner)
        inside = value(client, "open('/proc/self/cgroup').read().splitlines()")
        assert inside
        assert {line.split(":", 2)[2] for line in inside} == {"/"}
        pid = kernel_pid(km)
        places = _places(pid)
        for controller in ("memory", "pids", "cpu"):
            path = places[controller]
            assert path.parts[-1].startswith("kernel-")
            assert str(pid) in (path / "cgroup.procs").read_text().split()
            assert km.provisioner.pid is not None
            assert str(km.provisioner.pid) not in (path / "cgroup.procs").read_text().split()
        assert _read(places["memory"] / "memory.limit_in_bytes") == 512 * MIB
        assert _read(places["pids"] / "pids.max") >= 128
        period = _read(places["cpu"] / "cpu.cfs_period_us")
        assert _read(places["cpu"] / "cpu.cfs_quota_us") == 1.5 * period
        assert list(cgroup_directories())
    here.assert_clean("by its cgroups")


def _places(pid: int) -> dict[str, Path]:
    """Controller → directory of the process, as the host sees it."""
    places = {}
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            places[controller] = probes.CGROUP_ROOT / controller / path.lstrip("/")
    return places


def _read(path: Path) -> int:
    return int(path.read_text())


def test_a_cap_stays_over_a_restart(here: Ground) -> None:
    with started(here.folder, {"memory": "512M"}) as (km, client):
        km.restart_kernel(now=True)
        client.wait_for_ready(timeout=60)
        assert _read(_places(kernel_pid(km))["memory"] / "memory.limit_in_bytes") == 512 * MIB
        assert len({path.name for path in cgroup_directories()}) == 1


# -- a cap that cannot be had ---------------------------------------------------------------------


@pytest.fixture
def nothing_delegated(here: Ground, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    """As for a user to whom no administrator gave a cgroup; with a launcher that knows of none."""
    close_launchers()
    monkeypatch.delenv("SANDBOX_KERNEL_CGROUP")
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    yield here
    close_launchers()


def test_on_missing_cap_warn_starts_and_says_so(
    nothing_delegated: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    config: dict[str, Any] = {"memory": "512M", "pids": 128, "on_missing_cap": "warn"}
    with started(nothing_delegated.folder, config) as (_, client):
        msg_id = client.execute("1", silent=True)  # whose output no front end shows
        while client.get_shell_msg(timeout=60)["parent_header"]["msg_id"] != msg_id:
            pass
        first, second = run_cell(client, "1 + 1"), run_cell(client, "1 + 1")
    assert (first.result, second.result, second.stderr) == ("2", "2", "")
    lines = first.stderr.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        f"[sandbox] the cap {cap} is not enforced" for cap in ("memory", "pids")
    ]
    said = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    for cap, controller in (("memory", "memory"), ("pids", "pids")):
        (warning,) = [text for text in said if text.startswith(f"the cap {cap} is not enforced: ")]
        assert f"controller {controller} is not available under /sys/fs/cgroup/" in warning
        assert "; remedy: as root: mkdir -p /sys/fs/cgroup/" in warning


def test_without_a_cap_nothing_is_said(
    nothing_delegated: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    with started(nothing_delegated.folder, {"on_missing_cap": "warn"}):
        pass
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
