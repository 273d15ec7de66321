"""A kernel that runs is paused, resumed, given other caps and looked at, through its provisioner.

What is told is compared with what the kernel itself does or sees.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

import probes
import pytest
import zmq
from integration.remains import (
    PATIENCE,
    Ground,
    close_launchers,
    descendants,
    end_of,
    kernel_pid,
    provisioner_of,
    wait_for_end,
)
from integration.sandboxes import TIMEOUT, manager, run_cell, started, value
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

from sandbox_kernel.engine.cgroups import CgroupUsage
from sandbox_kernel.errors import CgroupError, ControlError, SpecError
from sandbox_kernel.protocol import Update
from sandbox_kernel.provisioner import SandboxProvisioner

pytestmark = pytest.mark.needs("cgroups")

MIB = 1024**2
CAPS: dict[str, Any] = {"memory": "512M", "pids": 128, "cpus": 1.5}
#: Spins on a thread of its own, so that the kernel still answers.
BUSY = (
    "import threading\n"
    "threading.Thread(target=lambda: [0 for _ in iter(int, 1)], daemon=True).start()"
)
#: Touches so many MiB and keeps them; one byte a page, since an emulated machine is slow.
EAT = "kept = bytearray({0} * 2**20); kept[::4096] = b'x' * ({0} * 256)"

_T = TypeVar("_T")


def wait(what: Coroutine[Any, Any, _T]) -> _T:
    return asyncio.run(asyncio.wait_for(what, TIMEOUT))


def pause(km: KernelManager) -> None:
    wait(provisioner_of(km).pause())


def resume(km: KernelManager) -> None:
    wait(provisioner_of(km).resume())


def usage(km: KernelManager) -> CgroupUsage:
    return wait(provisioner_of(km).usage())


def update(km: KernelManager, **caps: Any) -> None:
    wait(provisioner_of(km).update(**caps))


def cpu(km: KernelManager) -> int:
    used = usage(km).cpu_usec
    assert used is not None
    return used


def settled_cpu(km: KernelManager, client: BlockingKernelClient) -> int:
    """A process is frozen some instructions before it has left its CPU, which accounts it then."""
    before, now = -1, cpu(km)
    deadline = time.monotonic() + TIMEOUT
    while before != now:
        assert time.monotonic() < deadline
        with pytest.raises(queue.Empty):
            client.get_shell_msg(timeout=0.1)
        before, now = now, cpu(km)
    return now


@contextlib.contextmanager
def heart(km: KernelManager) -> Iterator[zmq.Socket[bytes]]:
    """What a client beats with."""
    info = km.get_connection_info()
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.linger = 0
        socket.connect(f"{info['transport']}://{info['ip']}-{info['hb_port']}")
        yield socket


def beats(socket: zmq.Socket[bytes], milliseconds: int) -> bool:
    socket.send(b"ping")
    return bool(socket.poll(milliseconds)) and socket.recv() == b"ping"


# -- pause and resume -----------------------------------------------------------------------------


def test_a_paused_kernel_uses_no_cpu_and_answers_after_resume(here: Ground) -> None:
    with started(here.folder, CAPS) as (km, client):
        assert run_cell(client, BUSY).ok
        before = cpu(km)
        deadline = time.monotonic() + TIMEOUT
        while cpu(km) - before < 50_000:
            assert time.monotonic() < deadline  # it burns
        pause(km)
        assert provisioner_of(km).paused
        msg_id = client.execute("6 * 7")
        used = settled_cpu(km, client)
        for _ in range(10):
            with pytest.raises(queue.Empty):
                client.get_shell_msg(timeout=0.1)
            assert cpu(km) == used
        resume(km)
        assert not provisioner_of(km).paused
        reply = client.get_shell_msg(timeout=TIMEOUT)
        assert reply["parent_header"]["msg_id"] == msg_id
        assert reply["content"]["status"] == "ok"
        while cpu(km) == used:
            assert time.monotonic() < deadline  # and goes on burning


def test_what_is_asked_twice_is_done_once(here: Ground) -> None:
    with started(here.folder, CAPS) as (km, client):
        resume(km)
        pause(km)
        pause(km)
        resume(km)
        resume(km)
        assert value(client, "1 + 1") == 2


def test_every_cell_that_was_sent_to_a_paused_kernel_runs(here: Ground) -> None:
    """In their order, and more of them than wait between the proxy and the kernel."""
    with started(here.folder, CAPS) as (km, client):
        assert run_cell(client, "seen = []").ok
        pause(km)
        for number in range(100):
            client.execute(f"seen.append({number})")
        resume(km)
        assert value(client, "seen == list(range(100))") is True


def test_the_heart_of_a_paused_kernel_beats_and_that_of_a_hanging_one_does_not(
    here: Ground,
) -> None:
    """A client without a manager goes by its heart alone."""
    with started(here.folder, CAPS) as (km, _), heart(km) as socket:
        assert beats(socket, 30_000)
        pause(km)
        for _ in range(5):
            assert beats(socket, 30_000)
        resume(km)
        assert beats(socket, 30_000)
        os.kill(pid := kernel_pid(km), signal.SIGSTOP)
        assert not beats(socket, 1000)
        pause(km)  # what it owes is answered now
        assert socket.poll(30_000) and socket.recv() == b"ping"
        os.kill(pid, signal.SIGCONT)
        resume(km)
        assert beats(socket, 30_000)


def test_an_interrupt_of_a_paused_kernel_comes_with_the_resume(here: Ground) -> None:
    with started(here.folder, CAPS) as (km, client):
        msg_id = client.execute("print('on', flush=True)\nwhile True: pass")
        while client.get_iopub_msg(timeout=TIMEOUT)["msg_type"] != "stream":
            pass
        pause(km)
        km.interrupt_kernel()
        with pytest.raises(queue.Empty):
            client.get_shell_msg(timeout=0.3)
        resume(km)
        reply = client.get_shell_msg(timeout=TIMEOUT)
        assert reply["parent_header"]["msg_id"] == msg_id
        assert reply["content"]["ename"] == "KeyboardInterrupt"


def test_more_signals_than_its_init_takes_while_it_is_paused(here: Ground) -> None:
    """They are not what the supervisor waits for."""
    with started(here.folder, CAPS) as (km, client):
        pause(km)
        for _ in range(2000):
            wait(provisioner_of(km).send_signal(signal.SIGCONT))
        assert usage(km).pids_current
        resume(km)
        assert value(client, "1 + 1") == 2


# -- the end of a paused kernel -------------------------------------------------------------------


@pytest.mark.parametrize("now", [True, False])
def test_a_paused_kernel_is_shut_down_as_any(now: bool, here: Ground) -> None:
    with started(here.folder, CAPS) as (km, client):
        client.execute("while True: pass")
        pause(km)
        begin = time.monotonic()
        km.shutdown_kernel(now=now)
        assert time.monotonic() - begin < km.shutdown_wait_time * probes.TIMEOUT_FACTOR
        assert not km.is_alive()
        here.assert_clean("by a paused kernel")


@pytest.mark.parametrize("now", [True, False])
def test_a_paused_kernel_is_restarted_and_runs(now: bool, here: Ground) -> None:
    with started(here.folder, CAPS) as (km, client):
        pause(km)
        km.restart_kernel(now=now)
        assert not provisioner_of(km).paused
        client.wait_for_ready(timeout=TIMEOUT)
        assert value(client, "1 + 1") == 2


def test_a_supervisor_that_is_killed_takes_its_paused_kernel_with_it(here: Ground) -> None:
    with started(here.folder, CAPS) as (km, _):
        supervisor = provisioner_of(km).pid
        assert supervisor is not None
        inside = descendants(supervisor)
        pause(km)
        os.kill(supervisor, signal.SIGKILL)
        assert wait_for_end(inside, PATIENCE) == []


#: Starts one kernel, pauses it, says which processes it has.
SERVER = """
import asyncio, json, sys
from pathlib import Path
from integration.sandboxes import manager
from sandbox_kernel.client import Launcher

km = manager(Path(sys.argv[1]), json.loads(sys.argv[2]))
km.start_kernel(cwd=sys.argv[1] + "/work")
asyncio.run(km.provisioner.pause())
(launcher,) = Launcher._running.values()
pids = [launcher.process.pid, km.provisioner.pid]
print(json.dumps([pids, km.connection_file]), flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def serving_a_paused_kernel(
    here: Ground,
) -> Iterator[tuple[subprocess.Popen[str], list[int], Path]]:
    """The server, its launcher and supervisor, the connection file."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-c", SERVER, str(here.folder), json.dumps(CAPS)]
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            pids, connection_file = json.loads(line)
            yield process, pids, Path(connection_file)
        finally:
            process.kill()


def test_a_server_that_is_killed_takes_its_paused_kernel_with_it(here: Ground) -> None:
    with serving_a_paused_kernel(here) as (server, _, _):
        family = [server.pid, *descendants(server.pid)]
        assert len(family) >= 5
        server.kill()
        assert wait_for_end(family, PATIENCE * probes.TIMEOUT_FACTOR) == []
    here.assert_clean("by a server that was killed")


def test_where_nobody_is_left_the_next_launcher_ends_a_paused_kernel(here: Ground) -> None:
    """Server, launcher and supervisor at once: what is frozen does not even see it."""
    with serving_a_paused_kernel(here) as (server, others, connection):
        family = [server.pid, *descendants(server.pid)]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in (server.pid, *others):
                os.kill(pid, number)
        assert wait_for_end([server.pid, *others], PATIENCE * probes.TIMEOUT_FACTOR) == []
        assert wait_for_end(family, 0.1) != []
        close_launchers()  # one sweeps when it starts
        km = manager(here.folder, CAPS)
        km.start_kernel(cwd=str(here.work))
        assert wait_for_end(family, PATIENCE * probes.TIMEOUT_FACTOR) == []
        km.shutdown_kernel(now=True)
        connection.unlink(missing_ok=True)
    here.assert_clean("after the next start")


# -- other caps -----------------------------------------------------------------------------------


def test_more_memory_lets_a_cell_live_and_less_ends_it_at_the_new_cap(here: Ground) -> None:
    with started(here.folder, {"memory": "256M"}) as (km, client):
        update(km, memory="640M")
        assert run_cell(client, EAT.format(320)).ok
        assert run_cell(client, "del kept").ok
        update(km, memory="384M")
        cell = run_cell(client, EAT.format(512))
        assert cell.ename == "MemoryCapExceeded"
        assert cell.evalue.startswith("the kernel reached its memory cap of 384 MiB, peak ")
        assert end_of(km).reason == cell.evalue


def test_memory_that_is_in_use_is_not_taken_away(here: Ground) -> None:
    """v1 refuses; v2 takes the limit and kills, and the new cap is told."""
    with started(here.folder, {"memory": "512M"}) as (km, client):
        assert run_cell(client, EAT.format(256)).ok
        if probes.missing("cgroup-v1") is None:
            with pytest.raises(CgroupError, match="bytes are in use and cannot be reclaimed"):
                update(km, memory="128M")
            assert value(client, "len(kept)") == 256 * MIB
        else:
            update(km, memory="128M")
            assert end_of(km).reason.startswith("the kernel reached its memory cap of 128 MiB")


@pytest.mark.needs("cpuset")
def test_what_was_changed_before_a_refusal_is_changed_back(here: Ground) -> None:
    """The memory is written first, and the CPU is not there."""
    with started(here.folder, {"memory": "256M", "cpuset_cpus": "0"}) as (km, client):
        with pytest.raises(CgroupError, match="cpuset"):
            update(km, memory="1G", cpuset_cpus="8000")
        cell = run_cell(client, EAT.format(512))
        assert cell.evalue.startswith("the kernel reached its memory cap of 256 MiB, peak 25")


SPIN = "import time as _t\n_end = _t.monotonic() + {}\nwhile _t.monotonic() < _end: pass"


def share_of_a_cpu(km: KernelManager) -> float:
    """Of what a cell that spins got, by the account of the kernel."""
    client = km.blocking_client()
    client.start_channels()
    client.wait_for_ready(timeout=TIMEOUT)
    try:
        before, begin = cpu(km), time.monotonic()
        assert run_cell(client, SPIN.format(2)).ok
        return (cpu(km) - before) / 1e6 / (time.monotonic() - begin)
    finally:
        client.stop_channels()


def test_less_cpu_is_less_cpu(here: Ground) -> None:
    with started(here.folder, {"cpus": 1}) as (km, _):
        update(km, cpus=0.25)
        assert 0.05 < share_of_a_cpu(km) < 0.35
        throttled = usage(km).cpu_throttled_usec
        assert throttled is not None and throttled > 0


FORKS = """
import os, signal
def children():
    made = []
    try:
        while len(made) < 200:
            pid = os.fork()
            if pid == 0:
                signal.pause()
            made.append(pid)
    except OSError:
        pass
    for pid in made:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return len(made)
"""


def test_more_processes_and_fewer(here: Ground) -> None:
    with started(here.folder, {"pids": 64}) as (km, client):
        assert run_cell(client, FORKS).ok
        first = value(client, "children()")
        assert 0 < first < 64
        update(km, pids=96)
        assert first + 32 - 3 <= value(client, "children()") <= first + 32 + 3
        update(km, pids=48)
        assert first - 16 - 3 <= value(client, "children()") <= first - 16 + 3
        refused = usage(km).pids_max_events
        assert refused is not None and refused >= 3


@pytest.mark.needs("cpuset")
def test_the_cpus_that_python_sees(here: Ground) -> None:
    count = len(os.sched_getaffinity(0))
    if count < 2:
        pytest.skip("cpuset: this machine has one CPU")
    seen = "len(__import__('os').sched_getaffinity(0))"
    with started(here.folder, {"cpuset_cpus": "0"}) as (km, client):
        assert value(client, seen) == 1
        update(km, cpuset_cpus="0-1")
        assert value(client, seen) == 2
        update(km, cpuset_cpus="1")
        assert value(client, "sorted(__import__('os').sched_getaffinity(0))") == [1]
        with pytest.raises(CgroupError, match="cpuset"):
            update(km, cpuset_cpus="8000")
        assert value(client, seen) == 1


@pytest.mark.needs("cpuset")
def test_the_weight_decides_between_two_kernels_on_one_cpu(here: Ground) -> None:
    config = {"cpuset_cpus": "0", "cpu_weight": 100}
    with (
        started(here.folder, config) as (light, one),
        started(here.folder, config) as (heavy, two),
    ):
        update(heavy, cpu_weight=400)
        assert run_cell(one, BUSY).ok and run_cell(two, BUSY).ok
        before = cpu(light), cpu(heavy)
        deadline = time.monotonic() + TIMEOUT
        while cpu(light) - before[0] < 500_000:
            assert time.monotonic() < deadline
            time.sleep(0.05)  # CPU time has no event
        assert 3 < (cpu(heavy) - before[1]) / (cpu(light) - before[0]) < 5


def test_a_cap_that_nothing_holds_is_refused_and_nothing_is_changed(here: Ground) -> None:
    with started(here.folder, {"pids": 64}) as (km, client):
        assert run_cell(client, FORKS).ok
        first = value(client, "children()")
        with pytest.raises(CgroupError) as caught:
            update(km, pids=96, net_classid=5)
        assert caught.value.fact == "the cap net_classid of a running kernel cannot be changed"
        assert caught.value.cause == "its cgroup was made without the controller net_cls"
        with pytest.raises(CgroupError) as caught:
            update(km, pids=96, user={"pids": 500})
        assert caught.value.cause == "it was started without a total of its user"
        if probes.missing("cgroup-v1") is None:
            with pytest.raises(CgroupError, match="cgroup v1 has no such limit"):
                update(km, pids=96, memory_high="256M")
        assert abs(value(client, "children()") - first) <= 3


def test_caps_of_a_paused_kernel_are_changed_too(here: Ground) -> None:
    with started(here.folder, {"memory": "256M"}) as (km, client):
        pause(km)
        update(km, memory="512M")
        resume(km)
        assert run_cell(client, EAT.format(320)).ok


def test_the_total_of_the_user(here: Ground) -> None:
    config = {"memory": "1G", "user": {"memory": "256M"}}
    with started(here.folder, config) as (km, client):
        update(km, user={"memory": "512M"})
        assert run_cell(client, EAT.format(320)).ok
        assert run_cell(client, "del kept").ok
        update(km, user={"memory": "384M"})
        cell = run_cell(client, EAT.format(512))
        whose = "all kernels of this user together used the memory they may use (384 MiB)"
        assert cell.evalue.startswith(whose)


def test_a_restart_begins_with_the_caps_of_the_spec(here: Ground) -> None:
    with started(here.folder, {"memory": "256M"}) as (km, client):
        update(km, memory="1G")
        km.restart_kernel(now=True)
        client.wait_for_ready(timeout=TIMEOUT)
        cell = run_cell(client, EAT.format(512))
        assert cell.evalue.startswith("the kernel reached its memory cap of 256 MiB")


# -- usage ----------------------------------------------------------------------------------------


def test_memory_grows_by_what_a_cell_allocates(here: Ground) -> None:
    with started(here.folder, CAPS) as (km, client):
        before = usage(km)
        assert run_cell(client, "kept = bytes(100 * 2**20).replace(b'\\0', b'x')\nlen(kept)").ok
        after = usage(km)
        assert before.memory_current and after.memory_current and after.memory_peak
        grown = after.memory_current - before.memory_current
        assert 90 * MIB < grown < 130 * MIB
        assert after.memory_current <= after.memory_peak <= 512 * MIB
        assert after.pids_current and 2 < after.pids_current < 64
        assert run_cell(client, "del kept").ok
        less = usage(km).memory_current
        assert less is not None and less < after.memory_current - 80 * MIB


def test_cpu_is_what_a_cell_burned(here: Ground) -> None:
    with started(here.folder, CAPS) as (km, client):
        used = cpu(km)
        code = "import time\nwhile time.process_time() < {}: pass"
        spent = value(client, "__import__('time').process_time()")
        assert run_cell(client, code.format(spent + 1)).ok
        assert 0.9e6 < cpu(km) - used < 2e6


@pytest.fixture
def on_disk() -> Iterator[Path]:
    path = Path(f"/var/tmp/skt-control-{os.getpid()}")
    path.mkdir()
    yield path
    (path / "big").unlink(missing_ok=True)
    path.rmdir()


DIRECT = """
import mmap, os
fd = os.open("big", os.O_WRONLY | os.O_CREAT | os.O_DIRECT)
block = mmap.mmap(-1, 2**20)
for _ in range(8):
    os.write(fd, block)
os.close(fd)
"""


@pytest.mark.needs("io", "disk")
def test_what_was_written_past_the_cache(here: Ground, on_disk: Path) -> None:
    config = {"io": [{"path": str(on_disk), "write_bps": "1G"}]}
    with started(here.folder, config, cwd=on_disk) as (km, client):
        before = sum(device.write_bytes for device in usage(km).io or ())
        assert run_cell(client, DIRECT).ok
        after = usage(km).io
        assert after is not None
        assert 8 * MIB <= sum(device.write_bytes for device in after) - before < 16 * MIB


# -- who asks, and whom ---------------------------------------------------------------------------


def test_all_of_many_at_once_are_answered(here: Ground) -> None:
    """More than fit into the socket."""

    async def ask(of: SandboxProvisioner) -> list[Any]:
        many = [of.usage() for _ in range(400)]
        others = (of.pause(), of.update(pids=100), of.update(net_classid=1))
        return await asyncio.gather(*many, *others, return_exceptions=True)

    with started(here.folder, CAPS) as (km, client):
        answers = wait(ask(provisioner_of(km)))
        assert all(isinstance(answer, CgroupUsage) for answer in answers[:400])
        assert answers[400:402] == [None, None]
        assert isinstance(answers[402], CgroupError)
        assert provisioner_of(km).paused
        resume(km)
        assert provisioner_of(km)._answers == {}
        assert value(client, "1 + 1") == 2


def test_a_value_that_cannot_be_is_not_sent(here: Ground) -> None:
    with started(here.folder, CAPS) as (km, _):
        sandbox = provisioner_of(km).sandbox
        assert sandbox is not None
        for caps in ({"memory": "5"}, {"mem": "1G"}, {"pids": None}, {}, {"hostname": "x"},
                     {"user": {"kernels": 3}}, {"memory_swap": "1G"}):  # fmt: skip
            with pytest.raises(SpecError):
                update(km, **caps)
        assert sandbox._asked == {}


@pytest.mark.parametrize(
    ("caps", "key"),
    [({"memory": "5"}, "memory"), ({"hostname": "x"}, "hostname"), ({}, "caps"),
     ({"user": 5}, "user"), ({"memory_low": "1G"}, "memory_low")],
)  # fmt: skip
def test_the_supervisor_judges_by_itself(caps: dict[str, Any], key: str, here: Ground) -> None:
    """The last one is wrong beside the memory cap in force only."""
    with started(here.folder, CAPS) as (km, client):
        asked = provisioner_of(km)._ask("changed", lambda number: Update(number, caps))
        with pytest.raises(SpecError) as caught:
            wait(asked)
        assert caught.value.key == key
        assert value(client, "1 + 1") == 2


def test_a_kernel_that_does_not_run_is_told(here: Ground) -> None:
    km = manager(here.folder, CAPS)
    km.start_kernel(cwd=str(here.work))
    held = provisioner_of(km)
    km.shutdown_kernel(now=True)
    for asked in (held.pause(), held.resume(), held.update(pids=64), held.usage()):
        with pytest.raises(ControlError, match=r"^the kernel could not be .*: no kernel runs$"):
            wait(asked)
    assert not held.paused


def test_a_kernel_that_ends_meanwhile_is_told(here: Ground) -> None:
    async def ask_and_kill(of: SandboxProvisioner) -> list[Any]:
        assert of.sandbox is not None
        of.sandbox.kill()
        return await asyncio.gather(
            *(of.usage() for _ in range(20)), of.pause(), return_exceptions=True
        )

    with started(here.folder, CAPS) as (km, _):
        answers = wait(ask_and_kill(provisioner_of(km)))
        said = {str(answer) for answer in answers if isinstance(answer, ControlError)}
        assert len(answers) == sum(isinstance(answer, ControlError) for answer in answers)
        told = (
            "there is no kernel any more: it was told to end",
            "the kernel does not run: its sandbox has ended",  # and its word is not read yet
        )
        ended = r"the kernel could not be .*: it has ended: the kernel was ended as asked"
        assert all(text in told or re.fullmatch(ended, text) for text in said), said


def test_a_kernel_that_ends_by_itself_meanwhile_is_told(here: Ground) -> None:
    """In the middle of what is asked again and again."""

    async def ask_until_the_end(of: SandboxProvisioner) -> str:
        while True:
            try:
                await of.usage()
            except ControlError as error:
                return str(error)

    with started(here.folder, CAPS) as (km, client):
        client.execute("import os, time; time.sleep(0.3); os._exit(3)")
        text = wait(ask_until_the_end(provisioner_of(km)))
        assert text.startswith("the kernel could not be asked for its usage: it has ended: ")
        assert "exited by itself with status 3" in text


def test_a_client_without_a_manager_does_not_take_a_paused_kernel_for_dead(here: Ground) -> None:
    with started(here.folder, CAPS) as (km, _):
        client = BlockingKernelClient(connection_file=km.connection_file)
        client.load_connection_file()
        client.start_channels()
        try:
            client.wait_for_ready(timeout=TIMEOUT)
            pause(km)
            for _ in range(3):
                with pytest.raises(queue.Empty):
                    client.get_control_msg(timeout=0.8)
                assert client.is_alive()
            resume(km)
        finally:
            client.stop_channels()
