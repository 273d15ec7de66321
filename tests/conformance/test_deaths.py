"""A kernel dies in the middle of a notebook: what nbclient, papermill and a grader make of it.

The last tests say what is expected of python3 and of the sandbox, and run with both: with python3
these are the defects that were reported as nbclient#88 and nbgrader#427.

nbgrader itself is not needed. It runs a submission with nbclient and ``allow_errors``, and gives
all points of a test cell that has no error among its outputs; that is :func:`points`.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import papermill  # type: ignore[import-untyped]
import pytest
from integration.sandboxes import write_kernelspec
from jupyter_client.ioloop.manager import AsyncIOLoopKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from probes import TIMEOUT_FACTOR
from traitlets.config import Config

from . import _notebook
from .conftest import REFERENCE, kernel_environment, kernel_under_test

CRASH: Final = "import ctypes; ctypes.string_at(0)"
#: Seconds after which a test takes a client for one that waits for ever.
FOR_EVER: Final = 8.0 * TIMEOUT_FACTOR

pytestmark = pytest.mark.skipif(
    kernel_under_test() == REFERENCE, reason="python3 is compared here with the sandbox"
)


@dataclass(frozen=True)
class Death:
    """One way to die, and how it is told."""

    name: str
    code: str
    ename: str
    sentence: str
    config: dict[str, Any]
    """Of the kernelspec."""

    @property
    def kernel(self) -> str:
        return f"dies-of-{self.name}"


DEATHS: Final = (
    Death(
        "memory", "data = [bytearray(b'x' * 2**24) for _ in range(64)]", "MemoryCapExceeded",
        "the kernel reached its memory cap of 256 MiB, peak ", {"memory": "256M"},
    ),
    Death(
        "pids",
        "import threading, zmq\n"
        "stop = threading.Event()\n"
        "try:\n"
        "    while True: threading.Thread(target=stop.wait, daemon=True).start()\n"
        "except RuntimeError: zmq.Context().socket(zmq.PAIR)",
        "PidsCapExceeded", "refused for its cap of 64", {"pids": 64},
    ),
    Death(
        "time",
        "while True:\n    try:\n        for _ in iter(int, 1): pass\n"
        "    except KeyboardInterrupt: pass",
        "TimeCapExceeded", "did not end within 0.5 seconds of an interrupt",
        {"cell_timeout": 1, "time_grace": 0.5},
    ),
    Death(
        "syscall", "import ctypes; ctypes.CDLL(None).syscall(0x40000027)", "ForbiddenSyscall",
        "journalctl -k --grep sig=31", {},
    ),
    Death("crash", CRASH, "KernelCrashed", "the kernel was killed by SIGSEGV", {}),
    Death(
        "exit", "import os; os._exit(3)", "KernelExited", "exited by itself with status 3", {}
    ),
)  # fmt: skip


def marked(death: Death) -> Any:
    marks = [pytest.mark.needs("cgroups")] if {"memory", "pids"} & set(death.config) else []
    if death.name == "syscall" and os.uname().machine != "x86_64":
        marks.append(pytest.mark.skip(reason="x32 is a way of x86_64 alone"))
    return pytest.param(death, id=death.name, marks=marks)


each_death = pytest.mark.parametrize("death", [marked(death) for death in DEATHS])


#: nbclient leaves the sockets of a kernel that died to the garbage collector.
leaves_sockets = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@contextlib.contextmanager
def swept() -> Iterator[None]:
    """And in the test that is marked so they have to be collected."""
    try:
        yield
    finally:
        gc.collect()


@pytest.fixture(scope="module", autouse=True)
def kernelspecs(jupyter_environment: Path) -> None:
    """One with the caps of each death, where front ends find it."""
    for death in DEATHS:
        write_kernelspec(jupyter_environment / "share", death.config, name=death.kernel)


def notebook(tmp_path: Path, *sources: str) -> Path:
    path = tmp_path / "notebook.ipynb"
    _notebook.write(path, *sources)
    return path


def errors(cell: _notebook.Notebook) -> list[tuple[str, str, str]]:
    """What a reader of the saved notebook sees."""
    found = [output for output in cell.outputs if output.output_type == "error"]
    return [(output.ename, output.evalue, "\n".join(output.traceback)) for output in found]


def check(cells: list[_notebook.Notebook], death: Death) -> None:
    """The cell shows the sentence, once; the one before is whole, the one after did not run."""
    before, died, after = cells
    assert before.outputs[0].text == "before\n"
    ((ename, evalue, traceback),) = errors(died)
    assert ename == death.ename
    assert death.sentence in evalue
    assert f"{ename}: {evalue}" in traceback
    assert after.outputs == []


# -- the same notebook in each front end --------------------------------------------------------


@each_death
def test_nbclient_shows_why(death: Death, tmp_path: Path) -> None:
    read = _notebook.read(notebook(tmp_path, "print('before')", death.code, "print('after')"))
    with pytest.raises(CellExecutionError) as caught:
        _client(read, death.kernel, tmp_path).execute(env=kernel_environment())
    assert caught.value.ename == death.ename
    assert death.sentence in str(caught.value)
    check(read.cells, death)


@each_death
def test_papermill_shows_why(death: Death, tmp_path: Path) -> None:
    source = notebook(tmp_path, "print('before')", death.code, "print('after')")
    target = tmp_path / "executed.ipynb"
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        papermill.execute_notebook(
            source, target, kernel_name=death.kernel, cwd=tmp_path, progress_bar=False
        )
    assert caught.value.ename == death.ename
    assert death.sentence in caught.value.evalue
    cells = [cell for cell in _notebook.read(target).cells if cell.cell_type == "code"]
    check(cells, death)


def _client(read: _notebook.Notebook, kernel: str, folder: Path, **options: Any) -> NotebookClient:
    """Without a timeout, which is the default of nbclient, and without papermill's help."""
    return NotebookClient(
        read, kernel_name=kernel, resources={"metadata": {"path": str(folder)}}, **options
    )


@leaves_sockets
def test_with_python3_no_cell_says_anything(tmp_path: Path) -> None:
    """For comparison: the reason is nowhere, neither in the exception nor in the notebook."""
    read = _notebook.read(notebook(tmp_path, "print('before')", CRASH, "print('after')"))
    with swept(), pytest.raises(DeadKernelError, match=r"^Kernel died$"):
        _client(read, REFERENCE, tmp_path).execute(env=kernel_environment())
    assert read.cells[1].outputs == []


# -- nbclient#88 ----------------------------------------------------------------------------------


@leaves_sockets
@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        pytest.param(REFERENCE, "waits for ever", id="python3"),
        pytest.param("dies-of-exit", "KernelExited", id="sandbox"),
    ],
)
def test_a_client_whose_kernel_died_and_was_restarted_does_not_wait_for_ever(
    kernel: str, expected: str, tmp_path: Path
) -> None:
    """nbclient looks every second whether the kernel lives. Where a server restarts what has died,
    it does when it is looked at, and nobody answers the cell any more.
    """
    read = _notebook.read(notebook(tmp_path, "import os; os._exit(3)"))  # at once, without a dump
    with swept():
        assert asyncio.run(_execute_and_restart(read, kernel, tmp_path)) == expected


async def _execute_and_restart(read: _notebook.Notebook, kernel: str, folder: Path) -> str:
    """How it ends. The restarter is that of a server, but quicker to see a death."""
    config = Config({"KernelRestarter": {"time_to_dead": 0.02}})
    km = AsyncIOLoopKernelManager(kernel_name=kernel, config=config)
    client = _client(read, kernel, folder, km=km)
    running = asyncio.ensure_future(client.async_execute(env=kernel_environment()))
    try:
        await asyncio.wait([running], timeout=FOR_EVER)
        if not running.done():
            assert await km.is_alive(), "it is dead, and nobody restarted it"
            running.cancel()
            with contextlib.suppress(DeadKernelError):  # which nbclient makes of it
                await running
            return "waits for ever"
        with pytest.raises(CellExecutionError) as caught:
            running.result()
        assert [ename for ename, _, _ in errors(read.cells[0])] == [caught.value.ename]
        return str(caught.value.ename)
    finally:
        await km.shutdown_kernel(now=True)


# -- nbgrader#427 ---------------------------------------------------------------------------------


def points(cell: _notebook.Notebook) -> int:
    """Of a test cell that is worth one, by the rule of nbgrader."""
    return int(not errors(cell))


@leaves_sockets
@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        pytest.param(REFERENCE, [1, 1], id="python3"),
        pytest.param("dies-of-crash", [0, 0], id="sandbox"),
    ],
)
def test_a_test_cell_in_which_the_kernel_died_is_not_passed(
    kernel: str, expected: list[int], tmp_path: Path
) -> None:
    """The solution crashes when the first test calls it: no assertion is ever seen to fail."""
    solution = f"def solution():\n    {CRASH}"
    tests = ["assert solution() == 42", "assert 1 + 1 == 3"]
    read = _notebook.read(notebook(tmp_path, solution, *tests))
    with swept(), contextlib.suppress(DeadKernelError):
        _client(read, kernel, tmp_path, allow_errors=True).execute(env=kernel_environment())
    assert [points(cell) for cell in read.cells[1:]] == expected
