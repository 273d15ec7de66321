"""Cells and kernels end when their time is up, and say so."""

from __future__ import annotations

import asyncio
import logging
import queue
import signal
import time
from typing import Any

import pytest
from integration.cells import begin, finish
from integration.remains import Ground, end_of
from integration.sandboxes import TIMEOUT, manager, run_cell, started, value
from jupyter_client.manager import KernelManager
from probes import TIMEOUT_FACTOR

from sandbox_kernel.protocol import Exited
from sandbox_kernel.provisioner import SandboxProvisioner

SECOND = 1.0 * TIMEOUT_FACTOR
#: Catches every interrupt and goes on.
DEAF = (
    "while True:\n"
    "    try:\n"
    "        for _ in iter(int, 1): pass\n"
    "    except KeyboardInterrupt:\n"
    "        print('no', flush=True)"
)


def provisioner_of(km: KernelManager) -> SandboxProvisioner:
    assert isinstance(km.provisioner, SandboxProvisioner)
    return km.provisioner


# -- a cell ------------------------------------------------------------------------------------


def test_a_cell_whose_time_is_up_is_interrupted_and_its_kernel_lives(here: Ground) -> None:
    with started(here.folder, {"cell_timeout": SECOND}) as (km, client):
        assert run_cell(client, "import time; kept = 42").ok
        for _ in range(2):
            cell = run_cell(client, "time.sleep(600)")
            assert (cell.status, cell.ename) == ("error", "KeyboardInterrupt")
            assert cell.stderr.startswith("[sandbox] the cell has run for its cell_timeout of ")
            assert cell.stderr.endswith(" and is interrupted; in 10 seconds its kernel is killed\n")
        assert value(client, "kept") == 42
        assert km.is_alive()


def test_a_cell_that_goes_on_ends_with_its_kernel(
    here: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    config = {"cell_timeout": SECOND, "time_grace": 0.5}
    with started(here.folder, config) as (km, client):
        msg_id = begin(client, DEAF)
        queued = client.execute("print('never')")
        cell = finish(client, msg_id)
        assert (cell.status, cell.ename) == ("error", "TimeCapExceeded")
        assert cell.evalue.startswith("the cell ran longer than its cell_timeout of ")
        assert " and did not end within 0.5 seconds of an interrupt; split its work" in cell.evalue
        assert cell.stdout == "no\n"
        assert finish(client, queued).reply["ename"] == "TimeCapExceeded"
        assert end_of(km) == Exited(-signal.SIGKILL, cell.evalue, "TimeCapExceeded")
        assert f"TimeCapExceeded: {cell.evalue}" in caplog.text


def test_a_kernel_that_an_interrupt_ends_was_ended_by_the_cap(here: Ground) -> None:
    with started(here.folder, {"cell_timeout": SECOND}) as (km, client):
        code = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_DFL); time.sleep(600)"
        cell = run_cell(client, code)
        assert cell.ename == "TimeCapExceeded" and "did not outlive the interrupt" in cell.evalue
        assert end_of(km).returncode == -signal.SIGINT


def test_many_short_cells_have_their_time_each(here: Ground) -> None:
    """Asked for at once, they wait for each other; that is no time of theirs."""
    with started(here.folder, {"cell_timeout": SECOND}) as (_, client):
        assert run_cell(client, "import time").ok
        asked = [client.execute(f"time.sleep({SECOND} / 2)") for _ in range(4)]
        assert [finish(client, msg_id).status for msg_id in asked] == ["ok"] * 4


@pytest.mark.needs("cgroups")
def test_a_cell_of_a_paused_kernel_has_all_its_time_left(here: Ground) -> None:
    with started(here.folder, {"cell_timeout": 2 * SECOND, "pids": 256}) as (km, client):
        msg_id = begin(client, "import time; time.sleep(600)")
        asyncio.run(provisioner_of(km).pause())
        with pytest.raises(queue.Empty):
            client.get_iopub_msg(timeout=3 * SECOND)
        asyncio.run(provisioner_of(km).resume())
        assert finish(client, msg_id).ename == "KeyboardInterrupt"


# -- a kernel ----------------------------------------------------------------------------------


def test_a_lifetime_that_is_over_ends_the_running_cell(here: Ground) -> None:
    with started(here.folder, {"lifetime": 5 * SECOND, "time_grace": 0.5}) as (km, client):
        cell = run_cell(client, "import time; time.sleep(600)")
        assert cell.ename == "TimeCapExceeded"
        assert cell.evalue.startswith("the kernel has reached its lifetime of ")
        warned, ended = cell.stderr.splitlines()
        assert warned.startswith("[sandbox] the kernel ends in 0.5 seconds, when its lifetime of ")
        assert ended.startswith("[sandbox] the kernel is ended: its lifetime of ")
        assert end_of(km) == Exited(-signal.SIGTERM, cell.evalue, "TimeCapExceeded")


def test_a_kernel_that_ignores_the_end_of_its_lifetime_is_killed(here: Ground) -> None:
    with started(here.folder, {"lifetime": 5 * SECOND, "time_grace": 0.5}) as (km, client):
        code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
        assert run_cell(client, code).ename == "TimeCapExceeded"
        assert end_of(km).returncode == -signal.SIGKILL


def test_a_kernel_that_nobody_uses_ends(here: Ground) -> None:
    with started(here.folder, {"idle_timeout": 2 * SECOND}) as (km, client):
        assert run_cell(client, "import time; time.sleep(0.1)").ok
        end = end_of(km)
        assert (end.returncode, end.cause) == (-signal.SIGTERM, "TimeCapExceeded")
        assert end.reason.startswith("the kernel was not used for its idle_timeout of ")


def test_a_long_cell_is_use(here: Ground) -> None:
    with started(here.folder, {"idle_timeout": SECOND}) as (_, client):
        assert run_cell(client, f"import time; time.sleep({3 * SECOND})").ok


def test_that_a_front_end_is_connected_is_no_use(here: Ground) -> None:
    with started(here.folder, {"idle_timeout": 2 * SECOND}) as (km, client):
        end = time.monotonic() + 20 * SECOND
        while km.is_alive():
            assert time.monotonic() < end
            client.kernel_info()
            try:
                client.get_shell_msg(timeout=0.1)
            except queue.Empty:
                continue
        assert provisioner_of(km).exit is not None
        assert provisioner_of(km).exit.cause == "TimeCapExceeded"  # type: ignore[union-attr]


# -- the kernel after it -----------------------------------------------------------------------


def test_the_next_kernel_begins_with_why_the_last_one_ended(
    here: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    with started(here.folder) as (km, client):
        dead = run_cell(client, "import os; os._exit(3)")
        end = end_of(km)
        assert (end.cause, end.reason) == ("KernelExited", dead.evalue)
        (warning,) = [r for r in caplog.records if dead.evalue in r.getMessage()]
        assert warning.levelno == logging.WARNING
        km.restart_kernel(now=True)
        client.wait_for_ready(timeout=TIMEOUT)
        assert provisioner_of(km).exit is None
        first, second = run_cell(client, "print('here')"), run_cell(client, "print('here')")
        said = "this is a new kernel; the one before it ended: KernelExited: "
        assert first.stderr == f"[sandbox] {said}{dead.evalue}\n"
        assert (first.stdout, second.stdout, second.stderr) == ("here\n", "here\n", "")


@pytest.mark.parametrize("now", [False, True])
def test_a_restart_that_was_asked_for_is_no_news(
    now: bool, here: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    with started(here.folder) as (km, client):
        assert run_cell(client, "1").ok
        km.restart_kernel(now=now)
        client.wait_for_ready(timeout=TIMEOUT)
        assert run_cell(client, "1").stderr == ""
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_who_was_started_for_one_that_was_idle_waits_to_be_used(here: Ground) -> None:
    """A server starts whatever has ended: it would do so again and again."""
    km = manager(here.folder, {"idle_timeout": SECOND})
    km.start_kernel(cwd=str(here.work))
    try:
        assert end_of(km).cause == "TimeCapExceeded"
        km.restart_kernel(now=True)
        client = km.blocking_client()
        client.start_channels()
        client.wait_for_ready(timeout=TIMEOUT)
        with pytest.raises(queue.Empty):  # longer than it may be idle
            client.get_shell_msg(timeout=2 * SECOND)
        assert km.is_alive()
        cell = run_cell(client, "1 + 1")
        assert cell.result == "2" and "not used for its idle_timeout" in cell.stderr
        client.stop_channels()
        assert end_of(km).cause == "TimeCapExceeded"
    finally:
        km.shutdown_kernel(now=True)


# -- processes and threads ---------------------------------------------------------------------

#: libzmq aborts where it gets no thread. It is what the kernel itself is built on.
FULL: dict[str, Any] = {"pids": 64}
NATIVE = (
    "import threading, zmq\n"
    "stop = threading.Event()\n"
    "try:\n"
    "    while True: threading.Thread(target=stop.wait, daemon=True).start()\n"
    "except RuntimeError: pass\n"
)


@pytest.mark.needs("cgroups")
def test_native_code_that_gets_no_thread(here: Ground) -> None:
    with started(here.folder, FULL) as (km, client):
        cell = run_cell(client, NATIVE + "zmq.Context().socket(zmq.PAIR)")
        assert cell.ename == "PidsCapExceeded"
        assert cell.evalue.startswith("the kernel was killed by SIGABRT in a cell in which ")
        assert "refused for its cap of 64, and native code often does not survive" in cell.evalue
        assert end_of(km) == Exited(-signal.SIGABRT, cell.evalue, "PidsCapExceeded")


@pytest.mark.needs("cgroups")
def test_a_crash_later_is_not_blamed_on_a_thread_that_was_refused_before(here: Ground) -> None:
    with started(here.folder, FULL) as (_, client):
        assert run_cell(client, NATIVE + "stop.set()").ok
        assert run_cell(client, "import os; os.abort()").ename == "KernelCrashed"
