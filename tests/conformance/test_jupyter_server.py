"""A running Jupyter server, driven as JupyterLab drives it: REST and websocket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest
from jupyter_core.paths import jupyter_runtime_dir

from . import _notebook
from ._debugging import Findings, debug_cell
from ._notebook import Run
from ._server import JupyterServer
from ._wire import Message, WebsocketWire, type_of
from .conftest import REFERENCE, kernel_environment


@pytest.fixture(scope="module")
def server(
    jupyter_environment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[JupyterServer]:
    """One server for the module. When it has gone, nothing of it or of its kernels is left."""
    server = JupyterServer(tmp_path_factory.mktemp("root"), kernel_environment())
    try:
        yield server
        assert server.kernel_ids() == set(), "a test left a kernel running"
    finally:
        left = server.stop()
    assert left == []
    assert _runtime_files() == []


def _runtime_files() -> list[str]:
    """What lies in the run-time folder besides the secret of the server's cookies."""
    names = {path.name for path in Path(jupyter_runtime_dir()).iterdir()}
    return sorted(names - {"jupyter_cookie_secret"})


def execute(server: JupyterServer, kernel_name: str) -> Run:
    """Execute the notebook cell by cell, answering what it asks."""
    notebook = _notebook.load()
    findings: list[Findings] = []
    with server.kernel(kernel_name) as (_, wire):
        for cell in _notebook.code_cells(notebook):
            answers = ["Ada"] if cell.id == "question" else []
            execution = wire.execute(cell.source, answers=answers)
            cell.outputs = execution.outputs()
            cell.execution_count = execution.content["execution_count"]
            if _notebook.has_tag(cell, _notebook.DEBUGGED):
                findings.append(debug_cell(wire, cell.source, _notebook.STOP_AT))
        info = wire.request("shell", "kernel_info_request")
        notebook.metadata["language_info"] = info["content"]["language_info"]
        left = wire.execute("import os; print(*sorted(os.listdir()))").ok().text().split()
    return Run(notebook, findings[0], tuple(left))


@pytest.fixture(scope="module")
def runs(server: JupyterServer, kernel_name: str) -> tuple[Run, Run]:
    """The run under test and the reference."""
    return execute(server, kernel_name), execute(server, REFERENCE)


def test_the_cells_do_what_they_are_for(runs: tuple[Run, Run]) -> None:
    for run in runs:
        _notebook.check_content(run, greeted="Ada")


def test_outputs_are_those_of_python3(runs: tuple[Run, Run]) -> None:
    sandboxed, reference = runs
    assert sandboxed.comparable() == reference.comparable()


def test_debugger_finds_what_it_finds_in_python3(runs: tuple[Run, Run]) -> None:
    sandboxed, reference = runs
    assert sandboxed.debugged == reference.debugged


def test_interrupt(server: JupyterServer, kernel_name: str) -> None:
    with server.kernel(kernel_name) as (kernel_id, wire):
        running = wire.start("print('running')\nwhile True: pass")
        wire.wait_for_text(running, "running")
        server.rest("POST", f"kernels/{kernel_id}/interrupt")
        execution = wire.finish(running)
        assert execution.content["ename"] == "KeyboardInterrupt"
        assert wire.execute("print('still here')").ok().text() == "still here\n"


def test_restart(server: JupyterServer, kernel_name: str) -> None:
    with server.kernel(kernel_name) as (kernel_id, wire):
        wire.execute("kept = 1").ok()
        server.rest("POST", f"kernels/{kernel_id}/restart")
        wire.wait_until_subscribed()
        execution = wire.execute("kept")
        assert execution.content["ename"] == "NameError"
        assert execution.content["execution_count"] == 1


@pytest.mark.parametrize(
    "death",
    ["import os; os._exit(1)", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"],
    ids=["exit", "killed"],
)
def test_kernel_that_dies_comes_back(server: JupyterServer, kernel_name: str, death: str) -> None:
    with server.kernel(kernel_name) as (kernel_id, wire):
        wire.execute("kept = 1").ok()
        wire.start(death)
        wire.wait_for(_says("restarting"), "status 'restarting'")
        wire.wait_until_subscribed()
        server.look_around()
        execution = wire.execute("kept")
        assert execution.content["ename"] == "NameError"
        assert kernel_id in server.kernel_ids()


def _says(state: str) -> Callable[[str, Message], bool]:
    return lambda _, message: (
        type_of(message) == "status" and message["content"]["execution_state"] == state
    )


def test_two_kernels_at_once(server: JupyterServer, kernel_name: str) -> None:
    """Both are busy at the same time, each waiting for the other's turn; neither sees the other."""
    with server.kernel(kernel_name) as first, server.kernel(kernel_name) as second:
        (_, one), (_, two) = first, second
        asking = one.start("mine = input('first? '); print(mine)", allow_stdin=True)
        question = one.wait_for(lambda channel, _: channel == "stdin", "question")
        one.backlog.insert(0, question)
        assert two.execute("'mine' in globals()").ok().outputs()[0].data["text/plain"] == "False"
        assert two.execute("mine = 2; print(input('second? '))", ["b"]).ok().text() == "b\n"
        assert one.finish(asking, ["a"]).ok().text() == "a\n"
        assert one.execute("print(mine)").ok().text() == "a\n"


def test_two_browsers_on_one_kernel(server: JupyterServer, kernel_name: str) -> None:
    """What one tab executes, the other sees as well."""
    with server.kernel(kernel_name) as (kernel_id, wire):
        other = server.connect(kernel_id)
        try:
            other.wait_until_subscribed()
            running = wire.start("print('to all')")
            other.wait_for_text(running, "to all")
            wire.finish(running).ok()
        finally:
            other.close()


def test_deleted_kernel_is_gone(server: JupyterServer, kernel_name: str) -> None:
    with server.kernel(kernel_name) as (kernel_id, wire):
        wire.execute("1").ok()
        assert kernel_id in server.kernel_ids()
    assert kernel_id not in server.kernel_ids()
    assert list(Path(jupyter_runtime_dir()).glob(f"kernel-{kernel_id}*")) == []


def test_nothing_outlives_a_server_that_is_terminated(
    jupyter_environment: Path, kernel_name: str, tmp_path: Path
) -> None:
    """Two kernels, one of them in an endless loop, when the server is asked to end."""
    server = JupyterServer(tmp_path, kernel_environment())
    wires: list[WebsocketWire] = []
    try:
        wires += [server.connect(server.start_kernel(kernel_name)) for _ in range(2)]
        running = wires[0].start("print('running')\nwhile True: pass")
        wires[0].wait_for_text(running, "running")
        wires[1].execute("1").ok()
        for wire in wires:
            wire.close()
    finally:
        left = server.stop()
    assert len(server.seen) >= 3, "the kernels were not found below the server"
    assert left == []
    assert not list(Path(jupyter_runtime_dir()).glob("kernel-*"))


def launchers(server: JupyterServer) -> list[list[str]]:
    """Command lines of those that live below the server."""
    children = psutil.Process(server.process.pid).children()
    commands = [child.cmdline() for child in children]
    return [words for words in commands if any("sandbox_kernel.launcher" in w for w in words)]


def test_a_launcher_is_there_before_the_first_kernel(
    jupyter_environment: Path, kernel_name: str, tmp_path: Path
) -> None:
    """And is the one that this starts from: there is no other then."""
    options = (
        "--ServerApp.jpserver_extensions={'sandbox_kernel.ahead': True}",
        '--SandboxProvisioner.preload=["json"]',
    )
    server = JupyterServer(tmp_path, kernel_environment(), *options)
    try:
        (ahead,) = launchers(server)
        assert ahead[ahead.index("--preload") + 1] == "json"
        with server.kernel(kernel_name) as (_, wire):
            assert wire.execute("print(6 * 7)").ok().text() == "42\n"
            assert launchers(server) == [ahead]
    finally:
        left = server.stop()
    assert left == []
