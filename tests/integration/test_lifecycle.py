"""Start, interrupt, restart, shutdown, autorestart, many kernels at once, and every way to die."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import nbformat
import pytest
from integration.cells import RUNNING, begin, finish
from integration.remains import (
    PATIENCE,
    Ground,
    caps,
    descendants,
    end_of,
    kernel_pid,
    provisioner_of,
    wait_for_end,
)
from integration.sandboxes import (
    TIMEOUT,
    manager,
    run_cell,
    started,
    value,
    write_kernelspec,
)
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.ioloop.manager import AsyncIOLoopKernelManager
from jupyter_client.manager import AsyncKernelManager
from jupyter_client.multikernelmanager import AsyncMultiKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from sandbox_kernel.errors import SandboxError
from sandbox_kernel.protocol import Exited

# -- interrupt ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code", ["import time; time.sleep(600)", "while True: pass", "input('never answered')"]
)
def test_interrupt_raises_in_the_cell_within_a_second(code: str, here: Ground) -> None:
    with started(here.folder) as (km, client):
        assert run_cell(client, "kept = 1").ok
        cell = begin(client, code)
        before = time.monotonic()
        km.interrupt_kernel()
        ended = finish(client, cell)
        assert time.monotonic() - before < 1.0
        assert (ended.status, ended.ename) == ("error", "KeyboardInterrupt")
        assert value(client, "kept") == 1


def test_interrupt_of_a_shell_command(here: Ground) -> None:
    """As in an ordinary kernel the command ends and the cell with it, with the status of ^C."""
    with started(here.folder) as (km, client):
        cell = begin(client, f"!echo {RUNNING}; exec sleep 600", says=True)
        before = time.monotonic()
        km.interrupt_kernel()
        print(finish(client, cell))
        assert time.monotonic() - before < 1.0
        assert value(client, "_exit_code") != 0
        code = "[p for p in __import__('os').listdir('/proc') if p.isdigit()]"
        assert value(client, code) == ["1", "2"]


def test_interrupt_of_an_idle_kernel_does_nothing(here: Ground) -> None:
    with started(here.folder) as (km, client):
        km.interrupt_kernel()
        assert value(client, "1 + 1") == 2


# -- restart and shutdown -------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
@pytest.mark.parametrize("now", [False, True])
def test_a_connected_client_goes_on_after_a_restart(
    now: bool, transport: str, here: Ground
) -> None:
    with started(here.folder, {"transport": transport}) as (km, client):
        assert run_cell(client, "lost = 1").ok
        endpoints, inside = km.get_connection_info(), descendants()
        for _ in range(2):
            km.restart_kernel(now=now)
            assert wait_for_end(inside) == []
            inside = descendants()
            assert km.get_connection_info() == endpoints
            client.wait_for_ready(timeout=TIMEOUT)
            assert run_cell(client, "lost").ename == "NameError"
            assert run_cell(client, "lost = 2").ok


@pytest.mark.parametrize(("now", "said"), [(False, "bye\n"), (True, "")])
def test_shutdown(now: bool, said: str, here: Ground) -> None:
    """An orderly one lets the kernel say good-bye; the other one does not wait for it."""
    with started(here.folder) as (km, client):
        code = "import atexit; atexit.register(lambda: open('said', 'w').write('bye\\n'))"
        assert run_cell(client, code).ok
        inside = descendants()
        km.shutdown_kernel(now=now)
        assert wait_for_end(inside) == []
        assert not km.has_kernel
        assert not Path(km.connection_file).exists()
    with suppress(FileNotFoundError):
        said = said.removeprefix((here.work / "said").read_text())
    assert said == ""


@pytest.mark.parametrize("stopped", [False, True])
def test_shutdown_of_a_kernel_that_does_not_listen(stopped: bool, here: Ground) -> None:
    deaf = (
        "import ctypes, signal\n"
        "for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):\n"
        "    signal.signal(number, signal.SIG_IGN)\n"
        "open('gate').close()  # what was printed is on its way by now\n"
        "ctypes.PyDLL(None).sleep(600)  # and keeps the GIL, so that no thread answers\n"
    )
    os.mkfifo(here.work / "gate")
    with started(here.folder) as (km, client):
        km.shutdown_wait_time = 0.5
        begin(client, deaf)
        (here.work / "gate").write_text("")
        inside = descendants()
        if stopped:
            os.kill(kernel_pid(km), signal.SIGSTOP)
        km.shutdown_kernel()
        assert wait_for_end(inside) == []
        exit_ = provisioner_of(km).exit
        assert exit_ == Exited(-9, "the kernel was ended as asked", "KernelKilled")


def test_a_kernel_can_be_killed_while_it_starts(here: Ground) -> None:
    """Neither side hangs, whichever hears of the end first: the start fails, or the kernel that
    has just started is dead.
    """

    async def race(km: AsyncKernelManager) -> BaseException | None:
        start: asyncio.Future[None] = asyncio.ensure_future(km.start_kernel(cwd=str(here.work)))
        while km.provisioner is None or not km.provisioner.has_process:
            await asyncio.sleep(0)
            assert not start.done()
        await km.provisioner.kill()  # shutdown_kernel() itself is not ready for this
        await asyncio.wait([start], timeout=PATIENCE)
        assert start.done()
        if start.exception() is None:
            assert not await km.is_alive()
            await km.shutdown_kernel(now=True)
        return start.exception()

    specs = write_kernelspec(here.folder, caps())
    km = AsyncKernelManager(kernel_name="sandboxed-test", kernel_spec_manager=specs)
    error = asyncio.run(asyncio.wait_for(race(km), TIMEOUT))
    assert error is None or isinstance(error, SandboxError)
    here.assert_clean("by a start that was given up")


# -- autorestart ----------------------------------------------------------------------------------


def test_autorestart(here: Ground) -> None:
    """The restarter of a server sees the death, and the kernel is there again."""

    async def live() -> None:
        specs = write_kernelspec(here.folder, caps())
        km = AsyncIOLoopKernelManager(kernel_name="sandboxed-test", kernel_spec_manager=specs)
        await km.start_kernel(cwd=str(here.work))
        restarted = asyncio.Event()
        assert km._restarter is not None
        km._restarter.stop()  # to go faster than every three seconds
        km._restarter._pcallback = None
        km._restarter.time_to_dead = 0.05
        km._restarter.start()
        km.add_restart_callback(restarted.set)
        try:
            for number in range(2):
                first = provisioner_of(km).sandbox
                client = await ready_client(km)
                client.execute(f"import os; os._exit({number + 3})")
                await asyncio.wait_for(restarted.wait(), PATIENCE)
                restarted.clear()
                while provisioner_of(km).sandbox in (None, first) or not await km.is_alive():
                    await asyncio.sleep(0.01)  # the callback comes before the restart
                client.stop_channels()
            client, shown = await ready_client(km), list[dict[str, Any]]()
            reply = await client.execute_interactive(
                "6 * 7", timeout=TIMEOUT, output_hook=shown.append
            )
            assert reply["content"]["status"] == "ok"
            first = next(m["content"]["text"] for m in shown if m["msg_type"] == "stream")
            why = "KernelExited: the kernel exited by itself with status 4"
            assert first.startswith(
                f"[sandbox] this is a new kernel; the one before it ended: {why}"
            )
            client.stop_channels()
        finally:
            await km.shutdown_kernel(now=True)

    asyncio.run(asyncio.wait_for(live(), TIMEOUT))


async def ready_client(km: AsyncKernelManager) -> AsyncKernelClient:
    client = km.client()
    assert isinstance(client, AsyncKernelClient)
    client.start_channels()
    await client.wait_for_ready(timeout=TIMEOUT)
    return client


# -- several at once ------------------------------------------------------------------------------


def test_five_kernels_at_once_do_not_mix(here: Ground) -> None:
    async def ask(km: Any, number: int) -> list[str]:
        """Each answer of one kernel to a row of questions, as the client of that kernel sees it."""
        client = await ready_client(km)
        texts = []

        def take(message: dict[str, Any]) -> None:
            if message["msg_type"] == "stream":
                texts.append(message["content"]["text"])

        try:
            for step in range(10):
                code = f"name = {number}\nprint(name * 1000 + {step})"
                await client.execute_interactive(code, output_hook=take, timeout=TIMEOUT)
        finally:
            client.stop_channels()
        return "".join(texts).split()

    async def live() -> None:
        specs = write_kernelspec(here.folder, caps())
        kernels = AsyncMultiKernelManager(
            kernel_spec_manager=specs, connection_dir=str(here.folder / "jupyter")
        )
        start = [
            kernels.start_kernel(kernel_name="sandboxed-test", cwd=str(here.work)) for _ in range(5)
        ]
        try:
            ids = await asyncio.gather(*start)
            assert len(set(ids)) == 5
            supervisors = {provisioner_of(kernels.get_kernel(i)).pid for i in ids}
            assert len(supervisors) == 5
            asked = [ask(kernels.get_kernel(i), number) for number, i in enumerate(ids)]
            for number, texts in enumerate(await asyncio.gather(*asked)):
                assert texts == [str(number * 1000 + step) for step in range(10)]
        finally:
            await kernels.shutdown_all(now=True)

    asyncio.run(asyncio.wait_for(live(), TIMEOUT))
    here.assert_clean("by five kernels")


def test_twenty_kernels_in_a_row_leave_nothing_in_the_server(here: Ground) -> None:
    def start_and_stop() -> None:
        km = manager(here.folder)
        km.start_kernel(cwd=str(here.work))
        km.shutdown_kernel(now=True)

    start_and_stop()  # what is made once: the launcher's socket, zmq's own, the event loop
    gc.collect()
    before = open_descriptors()
    for _ in range(20):
        start_and_stop()
    gc.collect()
    assert open_descriptors() == before
    here.assert_clean("by twenty kernels")


def open_descriptors() -> dict[str, int]:
    """What kind of thing is open how many times."""
    kinds: dict[str, int] = {}
    for name in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one of this listing
            kind = os.readlink(f"/proc/self/fd/{name}").split("[")[0]
            kinds[kind] = kinds.get(kind, 0) + 1
    return kinds


# -- every way to die -----------------------------------------------------------------------------

DEATHS = [
    pytest.param("os._exit(3)", "KernelExited", "exited by itself with status 3", 3, id="_exit"),
    pytest.param("os._exit(0)", "KernelExited", "exited by itself with status 0", 0, id="_exit-0"),
    pytest.param("ctypes.string_at(0)", "KernelCrashed", "killed by SIGSEGV", -11, id="segv"),
    pytest.param("os.abort()", "KernelCrashed", "killed by SIGABRT", -6, id="abort"),
    pytest.param(
        "os.kill(os.getpid(), signal.SIGKILL)", "KernelCrashed", "killed by SIGKILL", -9, id="kill"
    ),
    pytest.param(
        "os.closerange(0, 65536)", "KernelCrashed", "killed by SIGABRT", -6,
        id="close-every-descriptor",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("code", "ename", "sentence", "returncode"), DEATHS)
def test_a_death_finishes_the_running_cell_before_the_server_knows(
    code: str, ename: str, sentence: str, returncode: int, here: Ground
) -> None:
    with started(here.folder, caps()) as (km, client):
        assert run_cell(client, "import ctypes, os, signal, time").ok
        cell = client.execute(code)  # not begin(): what it prints may die with it
        waiting = client.execute("print('never')")
        end = end_of(km)
        # Whoever would have sent them has ended: all there will ever be is here now.
        ended = finish(client, cell)
        assert (ended.status, ended.ename) == ("error", ename)
        assert sentence in ended.evalue
        assert ended.reply["ename"] == ename
        assert ended.reply["evalue"] == ended.evalue
        assert finish(client, waiting).status == "error"
        assert end == Exited(returncode, ended.evalue, ename)
    here.assert_clean("by a dead kernel")


def test_sys_exit_in_a_cell_ends_nothing(here: Ground) -> None:
    with started(here.folder) as (_, client):
        cell = run_cell(client, "import sys; sys.exit(7)")
        assert (cell.status, cell.ename, cell.evalue) == ("error", "SystemExit", "7")
        assert value(client, "1 + 1") == 2


def test_quit_ends_the_kernel_in_good_order(here: Ground) -> None:
    with started(here.folder) as (km, client):
        assert run_cell(client, "quit()").ok
        end = end_of(km)
        assert end.returncode == 0
        assert "exited by itself with status 0" in end.reason


def test_a_kill_of_everything_reaches_neither_pid_1_nor_the_host(here: Ground) -> None:
    """The caller itself and pid 1 are exempt, so the kernel goes on."""
    with started(here.folder) as (km, client):
        code = (
            "import os, signal, subprocess\n"
            "child = subprocess.Popen(['sleep', '600'])\n"
            "os.kill(-1, signal.SIGKILL); os.kill(1, signal.SIGKILL)\n"
            "print(child.wait())"
        )
        cell = run_cell(client, code)
        assert (cell.stdout, cell.ename) == ("-9\n", "")
        assert km.is_alive()
        assert value(client, "1 + 1") == 2


@pytest.mark.parametrize("now", [False, True])
def test_a_daemon_does_not_outlive_its_kernel(now: bool, here: Ground) -> None:
    with started(here.folder, caps()) as (km, client):
        code = (
            "import os, signal, subprocess, sys\n"
            "daemon = '''\n"
            "import os, signal\n"
            "if os.fork(): os._exit(0)\n"
            "os.setsid()\n"
            "if os.fork(): os._exit(0)\n"
            "for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):\n"
            "    signal.signal(number, signal.SIG_IGN)\n"
            "while os.getppid() != 1: os.sched_yield()\n"  # who forked it is ending
            "print(os.getpid(), os.getppid(), flush=True)\n"
            "signal.pause()\n"
            "'''\n"
            "child = subprocess.Popen([sys.executable, '-c', daemon], stdout=subprocess.PIPE)\n"
            "child.wait(); print(child.stdout.readline().decode())"
        )
        pid, parent = run_cell(client, code).stdout.split()
        assert parent == "1"
        assert value(client, f"os.path.exists('/proc/{pid}')")
        inside = descendants()
        assert len(inside) == 4  # supervisor, init, kernel, daemon
        km.shutdown_kernel(now=now)
        assert wait_for_end(inside) == []


def notebook_of(*sources: str) -> nbformat.NotebookNode:
    """A notebook with these code cells."""
    cell: dict[str, Any] = {
        "cell_type": "code",
        "metadata": {},
        "outputs": [],
        "execution_count": None,
    }
    cells = [cell | {"source": text, "id": f"c{number}"} for number, text in enumerate(sources)]
    notebook: nbformat.NotebookNode = nbformat.from_dict(  # type: ignore[no-untyped-call]
        {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    )
    return notebook


@pytest.mark.parametrize(
    ("code", "ename"),
    [
        ("import os; os._exit(3)", "KernelExited"),
        ("import ctypes; ctypes.string_at(0)", "KernelCrashed"),
    ],
)
def test_nbclient_raises_and_the_notebook_says_why(code: str, ename: str, here: Ground) -> None:
    notebook = notebook_of("1", code)
    specs = write_kernelspec(here.folder, caps())
    km = AsyncKernelManager(kernel_name="sandboxed-test", kernel_spec_manager=specs)
    client = NotebookClient(
        notebook, km=km, timeout=round(TIMEOUT), resources={"metadata": {"path": str(here.work)}}
    )
    with pytest.raises((CellExecutionError, DeadKernelError)):
        client.execute(cleanup_kc=True)
    (error,) = [o for o in notebook.cells[1].outputs if o.output_type == "error"]
    assert error.ename == ename
    here.assert_clean("by nbclient")
