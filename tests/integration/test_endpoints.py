"""Whose endpoints they are, who is told of an end and when, and who waits for whom.

A start, a restart and a clean-up that go on beside another sandbox of the same endpoints, beside a
client that does not read, and beside a supervisor that does not answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from integration.cells import finish
from integration.remains import (
    PATIENCE,
    Ground,
    close_launchers,
    descendants,
    end_of,
    ground,
    wait_for_end,
)
from integration.sandboxes import (
    TIMEOUT,
    connected,
    inside,
    manager,
    said,
    started,
    value,
    write_kernelspec,
)
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.connect import write_connection_file
from jupyter_client.manager import AsyncKernelManager, KernelManager

from sandbox_kernel.client import Launcher, Sandbox, launcher_command
from sandbox_kernel.engine import messages
from sandbox_kernel.engine.steps import Step
from sandbox_kernel.errors import KernelStartError, SandboxError, SetupError
from sandbox_kernel.protocol import Exited, Failed
from sandbox_kernel.provisioner import SandboxProvisioner
from sandbox_kernel.request import build_request
from sandbox_kernel.spec import parse_spec
from sandbox_kernel.syscalls.libseccomp import SONAME

NAME = "sandboxed-python"


@pytest.fixture
def here() -> Iterator[Ground]:
    with ground() as found:
        yield found
        _end_what_is_stopped()
        close_launchers()
        found.assert_clean("by this test")


def _end_what_is_stopped() -> None:
    """Only a test that failed leaves something, which nobody else would ever end."""
    for pid in descendants():
        if _state(pid) == "T":
            os.kill(pid, signal.SIGKILL)


def _state(pid: int) -> str:
    """Of a process; nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def provisioner_of(km: KernelManager | AsyncKernelManager) -> SandboxProvisioner:
    assert isinstance(km.provisioner, SandboxProvisioner)
    return km.provisioner


def sandbox_of(km: KernelManager | AsyncKernelManager) -> Sandbox:
    found = provisioner_of(km).sandbox
    assert found is not None
    return found


def fault(step: Step, action: str) -> tuple[str, ...]:
    """The command of a launcher all of whose sandboxes meet this."""
    script = Path(__file__).with_name("fault_launcher.py")
    return (sys.executable, "-Xfrozen_modules=off", str(script), step.name, action)


def warm_up(command: tuple[str, ...]) -> None:
    """Wait until its launcher has loaded: it answers a client that goes away at once."""
    with Launcher.get(command, os.environ).start() as lifeline:
        lifeline.settimeout(TIMEOUT)
        lifeline.shutdown(socket.SHUT_WR)
        while lifeline.recv(4096):
            pass


def async_manager(here: Ground, config: dict[str, Any] | None = None) -> AsyncKernelManager:
    specs = write_kernelspec(here.folder, config or {})
    return AsyncKernelManager(kernel_name="sandboxed-test", kernel_spec_manager=specs)


# -- two sandboxes on one connection file, by the kernelspec's argv --------------------------------


@pytest.fixture
def by_hand(here: Ground, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    """With the one kernelspec that the command finds; the front end's own file goes at the end."""
    write_kernelspec(here.folder, {}, name=NAME)
    monkeypatch.setenv("JUPYTER_PATH", str(here.folder))
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    yield here
    for path in (here.folder / "jupyter").iterdir():
        path.unlink()


def connection_file(here: Ground) -> str:
    path = str(here.folder / "jupyter" / "kernel.json")
    stem = str(here.folder / "jupyter" / "k")
    write_connection_file(
        path, transport="ipc", ip=stem, key=b"secret", shell_port=1, iopub_port=2, stdin_port=3,
        hb_port=4, control_port=5,
    )  # fmt: skip
    return path


def sockets(here: Ground) -> list[str]:
    return sorted(str(path) for path in (here.folder / "jupyter").glob("k-*"))


def command(path: str) -> list[str]:
    return [sys.executable, "-m", "sandbox_kernel.launch", "-f", path, "--name", NAME]


def run_to_its_end(here: Ground, words: list[str]) -> tuple[int, str]:
    """Its status and what it said."""
    done = subprocess.run(
        words, cwd=here.work, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    return done.returncode, done.stderr


@contextlib.contextmanager
def client_of(path: str) -> Iterator[BlockingKernelClient]:
    client = BlockingKernelClient()
    client.load_connection_file(path)
    client.start_channels(hb=False)  # it would give up a kernel that is not there in a second
    try:
        client.wait_for_ready(timeout=TIMEOUT)
        yield client
    finally:
        client.stop_channels()


@pytest.mark.parametrize("number", [1, 5])
def test_a_file_of_somebody_at_an_endpoint_stays(number: int, by_hand: Ground) -> None:
    """The sockets that were bound before it was met are gone again."""
    path = connection_file(by_hand)
    mine = by_hand.folder / "jupyter" / f"k-{number}"
    mine.write_text("a file of mine")
    assert run_to_its_end(by_hand, command(path)) == (
        1,
        f"sandbox-kernel: the unix socket {mine} could not be bound: another file is there, "
        "which is not a socket\n",
    )
    assert mine.read_text() == "a file of mine"
    assert sockets(by_hand) == [str(mine)]
    assert os.path.exists(path)


def test_a_second_start_on_one_connection_file_takes_nothing_from_the_first(
    by_hand: Ground,
) -> None:
    path = connection_file(by_hand)
    with subprocess.Popen(command(path), cwd=by_hand.work) as first:
        try:
            with client_of(path) as client:
                before = {name: os.lstat(name).st_ino for name in sockets(by_hand)}
                assert len(before) == 5
                status, text = run_to_its_end(by_hand, command(path))
                assert status == 1
                assert text == (
                    f"sandbox-kernel: the unix socket {by_hand.folder}/jupyter/k-1 could not be "
                    "bound: another process listens there\n"
                )
                assert {name: os.lstat(name).st_ino for name in sockets(by_hand)} == before
                assert all(stat.S_ISSOCK(os.lstat(name).st_mode) for name in before)
                assert value(client, "1 + 1") == 2
            with client_of(path) as late:
                assert value(late, "2 + 2") == 4
                late.shutdown(reply=True, timeout=TIMEOUT)
            assert first.wait(PATIENCE) == 0
        finally:
            first.kill()
    assert sockets(by_hand) == []
    assert os.path.exists(path)


# -- a restart beside a client that does not read --------------------------------------------------


@contextlib.contextmanager
def deaf_subscriber(km: KernelManager) -> Iterator[None]:
    """A client of iopub with room for one message, which it never takes."""
    info = km.get_connection_info()
    joint = "-" if info["transport"] == "ipc" else ":"
    with zmq.Context() as context, context.socket(zmq.SUB) as subscriber:
        subscriber.linger = 0
        subscriber.rcvhwm = 1
        subscriber.setsockopt(zmq.RCVBUF, 4096)
        subscriber.connect(f"{info['transport']}://{info['ip']}{joint}{info['iopub_port']}")
        subscriber.subscribe(b"")
        assert subscriber.poll(int(TIMEOUT * 1000)), "the proxy welcomes a subscriber"
        yield


def flood(km: KernelManager) -> None:
    """Sixty outputs of a megabyte, as a client orders it that wants only the reply."""
    client = km.blocking_client()
    client.start_channels(iopub=False, stdin=False, hb=False)
    try:
        msg_id = client.execute("for _ in range(60): print('x' * 2**20, flush=True)")
        while client.get_shell_msg(timeout=TIMEOUT)["parent_header"].get("msg_id") != msg_id:
            pass
    finally:
        client.stop_channels()


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
@pytest.mark.parametrize("now", [True, False])
def test_a_restart_beside_a_client_that_does_not_read(
    now: bool, transport: str, here: Ground
) -> None:
    """The old supervisor takes its time, and removes nothing of the new one's."""
    km = manager(here.folder, {"transport": transport})
    km.start_kernel(cwd=str(here.work))
    try:
        endpoints, old = km.get_connection_info(), descendants()
        with deaf_subscriber(km):
            flood(km)
            km.restart_kernel(now=now)
            assert km.get_connection_info() == endpoints
            assert wait_for_end(old) == []  # whatever it does at its end, it has done
            with connected(km) as client:
                assert value(client, "1 + 1") == 2
        if transport == "ipc":
            directory = provisioner_of(km).directory
            assert directory is not None
            assert sorted(os.listdir(directory)) == [f"k-{n}" for n in range(1, 6)]
    finally:
        km.shutdown_kernel(now=True)


# -- a start that is given up ----------------------------------------------------------------------


async def begun(km: AsyncKernelManager, here: Ground) -> asyncio.Task[None]:
    """A start whose supervisor has got its request and builds."""
    task = asyncio.ensure_future(km.start_kernel(cwd=str(here.work)))
    while km.provisioner is None or provisioner_of(km).sandbox is None:
        await asyncio.sleep(0)
        assert not task.done()
    return task


async def answers(km: AsyncKernelManager) -> bool:
    client = km.client()
    assert isinstance(client, AsyncKernelClient)
    client.start_channels()
    try:
        await client.wait_for_ready(timeout=TIMEOUT)
        reply = await client.execute_interactive("6 * 7", timeout=TIMEOUT)
        return bool(reply["content"]["status"] == "ok")
    finally:
        client.stop_channels()


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_a_start_after_one_that_was_cancelled(transport: str, here: Ground) -> None:
    """At once, and again and again, on the same manager and so on the same endpoints."""

    async def live() -> None:
        km = async_manager(here, {"transport": transport})
        for _ in range(3):
            task = await begun(km, here)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not km.has_kernel
        await km.start_kernel(cwd=str(here.work))
        try:
            assert await answers(km)
        finally:
            await km.shutdown_kernel(now=True)

    asyncio.run(asyncio.wait_for(live(), TIMEOUT))


def test_a_start_after_one_that_was_cancelled_while_it_hung(
    here: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its sockets were bound already; what the launcher removes for it is not the next one's."""
    monkeypatch.setattr("sandbox_kernel.provisioner._KILL_TIMEOUT", 0.2)

    async def live() -> None:
        km = async_manager(here)
        with monkeypatch.context() as patch:
            patch.setattr(SandboxProvisioner, "_launcher_command", fault(Step.CGROUP, "stop"))
            task = await begun(km, here)
            await stopped(fault(Step.CGROUP, "stop"))
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await km.start_kernel(cwd=str(here.work))
        try:
            assert await answers(km)
            assert len(list((here.folder / "run").rglob("k-*"))) == 5
        finally:
            await km.shutdown_kernel(now=True)

    asyncio.run(asyncio.wait_for(live(), TIMEOUT))


def test_starts_that_were_given_up_while_the_launcher_was_busy(
    here: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes to them when the next start is under way, and takes nothing from it."""
    monkeypatch.setattr("sandbox_kernel.provisioner._KILL_TIMEOUT", 0.1)
    command = launcher_command(sys.executable)
    warm_up(command)
    launcher = Launcher._running[command].process.pid

    async def live() -> None:
        km = async_manager(here)
        os.kill(launcher, signal.SIGSTOP)
        try:
            for _ in range(3):
                task = await begun(km, here)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            last = await begun(km, here)
        finally:
            os.kill(launcher, signal.SIGCONT)
        await last
        try:
            assert await answers(km)
            assert os.path.exists(km.connection_file)
            assert len(list((here.folder / "run").rglob("k-*"))) == 5
        finally:
            await km.shutdown_kernel(now=True)

    asyncio.run(asyncio.wait_for(live(), TIMEOUT))


# -- a supervisor that hangs while it builds -------------------------------------------------------

HANGS = [
    *((step, "stop") for step in (
        Step.LISTEN, Step.CGROUP, Step.ID_MAP, Step.VETH, Step.LOCK_DOWN, Step.BOUND,
    )),
    *((step, "hang") for step in (
        Step.JOIN_CGROUP, Step.NAMESPACES, Step.SOURCES, Step.ROOTFS, Step.SECCOMP,
    )),
]  # fmt: skip
"""Steps of the supervisor itself, and of the stage and the init, for which it then waits."""


async def stopped(command: tuple[str, ...]) -> int:
    """Wait until the supervisor, the launcher's only child, has stopped; its pid."""
    launcher = Launcher._running[command].process.pid
    while True:
        children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
        for child in map(int, children):
            if _state(child) == "T":
                return child
        await asyncio.sleep(0.01)  # nobody but its parent is told of a stop


@pytest.mark.parametrize(("step", "action"), HANGS)
def test_a_start_that_hangs_fails_in_time(
    step: Step, action: str, here: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandbox_kernel.provisioner._START_MARGIN", 0.5)
    monkeypatch.setattr("sandbox_kernel.provisioner._KILL_TIMEOUT", 0.5)
    monkeypatch.setattr(SandboxProvisioner, "_launcher_command", fault(step, action))
    warm_up(fault(step, action))
    km = manager(here.folder, {"start_timeout": 1})
    before = time.monotonic()
    with pytest.raises(KernelStartError) as caught:
        km.start_kernel(cwd=str(here.work))
    assert time.monotonic() - before < 10.0
    assert str(caught.value) == (
        "the sandbox was not built within 1.5 seconds: its supervisor does not answer, as when a "
        "file system it needs does not"
    )
    assert not km.has_kernel
    assert not os.path.exists(km.connection_file)
    here.assert_clean("by the start that hung")


@pytest.mark.parametrize("step", [Step.CGROUP, Step.BOUND])
def test_a_kill_ends_a_start_that_hangs(
    step: Step, here: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandbox_kernel.provisioner._KILL_TIMEOUT", 0.2)
    monkeypatch.setattr(SandboxProvisioner, "_launcher_command", fault(step, "stop"))

    async def live() -> BaseException | None:
        km = async_manager(here)
        task = await begun(km, here)
        supervisor = await stopped(fault(step, "stop"))
        await provisioner_of(km).kill()  # what shutdown_kernel(now=True) calls
        assert wait_for_end([supervisor], PATIENCE) == []
        await asyncio.wait([task])
        assert not km.has_kernel
        return task.exception()

    error = asyncio.run(asyncio.wait_for(live(), TIMEOUT))
    assert isinstance(error, KernelStartError)
    here.assert_clean("by the start that was given up")


#: The command with a launcher whose supervisors stop, and less patience.
HANGING_COMMAND = """
import json, sys
from sandbox_kernel import launch
words = json.loads(sys.argv[1])
launch.launcher_command = lambda python, preload: tuple(words)
sys.exit(launch.main(sys.argv[2:]))
"""


def test_the_command_gives_up_a_start_that_hangs(by_hand: Ground) -> None:
    write_kernelspec(by_hand.folder, {"start_timeout": 1}, name=NAME)
    path = connection_file(by_hand)
    words = json.dumps(fault(Step.CGROUP, "stop"))
    status, text = run_to_its_end(
        by_hand, [sys.executable, "-c", HANGING_COMMAND, words, *command(path)[3:]]
    )
    assert status == 1
    assert "sandbox-kernel: the supervisor ended while it was building the sandbox" in text
    assert sockets(by_hand) == []
    assert os.path.exists(path)


# -- after a start that failed ---------------------------------------------------------------------


def test_a_start_and_a_restart_after_ones_that_failed(
    here: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    km = manager(here.folder)

    def fail(what: Any, *arguments: Any, **more: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(SandboxProvisioner, "_launcher_command", fault(Step.ROOTFS, "raise"))
            with pytest.raises(SetupError) as caught:
                what(*arguments, **more)
        assert str(caught.value) == f"a failure injected at: {Step.ROOTFS.value}"
        assert not km.has_kernel
        here.assert_clean("by a start that failed")

    def assert_works() -> None:
        with connected(km) as client:
            assert value(client, "1 + 1") == 2

    fail(km.start_kernel, cwd=str(here.work))
    km.start_kernel(cwd=str(here.work))
    try:
        assert_works()
        fail(km.restart_kernel, now=True)
        km.restart_kernel(now=True)
        assert_works()
        fail(km.restart_kernel)
        km.start_kernel(cwd=str(here.work))
        assert_works()
    finally:
        km.shutdown_kernel(now=True)


#: A launcher for which the library is at a path at which there is nothing yet.
LIBRARY_AT = (
    "import sys; del sys.path[0]; from sandbox_kernel.syscalls import libseccomp\n"
    "libseccomp.SONAME = {path!r}\n"
    "from sandbox_kernel.launcher import main; sys.exit(main())"
)


def test_what_a_launcher_missed_may_be_installed_later(
    here: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same launcher then works: nobody has to restart the server."""
    path = here.folder / "libseccomp.so.2"
    program = (sys.executable, "-c", LIBRARY_AT.format(path=str(path)))
    monkeypatch.setattr(SandboxProvisioner, "_launcher_command", program)
    km = manager(here.folder)
    for _ in range(2):
        with pytest.raises(SandboxError) as caught:
            km.start_kernel(cwd=str(here.work))
        assert "libseccomp" in str(caught.value)
    launcher = Launcher._running[program]
    path.symlink_to(_library())
    km.start_kernel(cwd=str(here.work))
    try:
        assert Launcher._running[program] is launcher
        with connected(km) as client:
            assert value(client, "1 + 1") == 2
    finally:
        km.shutdown_kernel(now=True)


def test_what_was_said_to_a_client_that_was_still_asking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launcher that cannot start anything closes the lifeline, maybe before the request comes."""
    ours, theirs = messages.pair()
    with theirs:
        messages.send(theirs, Failed(SetupError("this machine cannot")).to_message())

    class Quick:
        def start(self) -> socket.socket:
            return ours

    monkeypatch.setattr(Launcher, "get", lambda command, environment: Quick())
    request = build_request(
        parse_spec({}), kernel_id="kernel", connection={}, cwd="/", environment={}
    )
    sandbox = Sandbox.launch(request, ("unused",), {})
    with contextlib.closing(sandbox), pytest.raises(SetupError, match="this machine cannot"):
        sandbox.take()


def _library() -> str:
    """Where the dynamic linker has it."""
    code = f"import ctypes; ctypes.CDLL({SONAME!r}); print(open('/proc/self/maps').read())"
    maps = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return next(line.split()[-1] for line in maps.stdout.splitlines() if "libseccomp" in line)


# -- what the client is told, and what it keeps ----------------------------------------------------


def talk(lines: int, seconds: int) -> None:
    """Write to the console of the sandbox, beside the channels, in each of so many seconds."""
    import os
    import sys
    import time

    console: int = sys.stderr._original_stdstream_copy  # type: ignore[union-attr]
    for _ in range(seconds):
        for _ in range(lines):
            os.write(console, b"x" * 480 + b"\n")
        second = int(time.monotonic())
        while int(time.monotonic()) == second:
            time.sleep(0.01)


def test_the_end_is_told_to_a_client_that_is_behind(here: Ground) -> None:
    """Nobody polled while it talked, and the supervisor was gone before anybody did."""
    with started(here.folder) as (km, client):
        inside(client, talk, 100, 6)
        supervisor = said(km).supervisor_pid
        cell = finish(client, client.execute("import os; os._exit(3)"))
        assert cell.ename == "KernelExited"
        assert wait_for_end([supervisor], PATIENCE) == []
        assert end_of(km) == Exited(3, cell.evalue, "KernelExited")
        assert "exited by itself with status 3" in cell.evalue


def test_nothing_grows_in_the_client(here: Ground, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    with started(here.folder) as (km, client):

        def hear() -> int:
            """The lines that came in the next second or so."""
            caplog.clear()
            inside(client, talk, 40, 1)
            assert km.is_alive()
            return sum("x" * 480 in record.getMessage() for record in caplog.records)

        hear()
        gc.collect()
        before = _size(sandbox_of(km)), descriptors(km)
        assert sum(hear() for _ in range(3)) > 60
        gc.collect()
        assert (_size(sandbox_of(km)), descriptors(km)) == before


def descriptors(km: KernelManager | AsyncKernelManager) -> list[str]:
    """What is open of a sandbox: its lifeline and pidfds. (libzmq opens its own when it likes.)"""
    lifeline = os.readlink(f"/proc/self/fd/{sandbox_of(km).fileno()}")
    found = []
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one of this listing
            found.append(os.readlink(f"/proc/self/fd/{name}"))
    return sorted(link for link in found if link == lifeline or "pidfd" in link)


def _size(sandbox: Sandbox) -> int:
    """Bytes of everything that belongs to one sandbox in this process."""
    seen: dict[int, int] = {}
    queue: list[object] = [vars(sandbox)]
    while queue:
        thing = queue.pop()
        if id(thing) not in seen and not isinstance(thing, type):
            seen[id(thing)] = sys.getsizeof(thing)
            queue += gc.get_referents(thing)
    return sum(seen.values())


def test_waits_that_are_given_up_leave_nothing_in_the_client(here: Ground) -> None:
    async def live() -> None:
        km = async_manager(here)
        await km.start_kernel(cwd=str(here.work))
        try:
            before = descriptors(km)
            for _ in range(50):
                waits = [asyncio.ensure_future(provisioner_of(km).wait()) for _ in range(3)]
                await asyncio.sleep(0)
                for wait in waits:
                    wait.cancel()
                await asyncio.wait(waits)
            assert descriptors(km) == before
        finally:
            await km.shutdown_kernel(now=True)

    asyncio.run(asyncio.wait_for(live(), TIMEOUT))


def test_a_cleanup_wakes_who_waits_and_ends_the_sandbox(here: Ground) -> None:
    async def live() -> None:
        km = async_manager(here)
        await km.start_kernel(cwd=str(here.work))
        processes = descendants()
        assert len(processes) >= 3  # supervisor, init, kernel
        waits = [asyncio.ensure_future(provisioner_of(km).wait()) for _ in range(3)]
        await asyncio.sleep(0)
        assert not any(wait.done() for wait in waits)
        await provisioner_of(km).cleanup(restart=False)
        assert await asyncio.wait_for(asyncio.gather(*waits), PATIENCE) == [0, 0, 0]
        assert not km.has_kernel
        assert wait_for_end(processes) == []
        await km.shutdown_kernel(now=True)

    asyncio.run(asyncio.wait_for(live(), TIMEOUT))


@pytest.mark.parametrize("number", [65, 100_000, 2**40, 0, -1, -9])
def test_a_number_that_is_no_signal_ends_nothing(number: int, here: Ground) -> None:
    with started(here.folder) as (km, client):
        processes = descendants()
        km.signal_kernel(number)
        km.signal_kernel(signal.SIGCONT)  # comes after it, if it comes
        assert value(client, "1 + 1") == 2
        assert km.is_alive()
        assert descendants().keys() == processes.keys()


# -- run-time directories of several servers -------------------------------------------------------

MAKE_AND_REMOVE = """
import os, sys
from sandbox_kernel import rundir
for number in range(500):
    path = rundir.make(f"kernel-{number}")
    assert str(path).startswith(os.environ["XDG_RUNTIME_DIR"] + "/"), path
    rundir.remove(path)
"""


def test_two_servers_make_and_remove_run_time_directories(here: Ground) -> None:
    """Each removes the folder that holds them all when it was the last, and the other wants it."""
    words = [sys.executable, "-c", MAKE_AND_REMOVE]
    servers = [subprocess.Popen(words, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [server.communicate(timeout=TIMEOUT)[1] for server in servers]
    assert [server.returncode for server in servers] == [0, 0], said
    assert list((here.folder / "run").iterdir()) == []
