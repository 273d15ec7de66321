"""papermill executes the quickstart notebook in the sandbox with the outputs of python3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import papermill  # type: ignore[import-untyped]
import pytest
from jupyter_client.manager import AsyncKernelManager

from . import _notebook
from ._debugging import Findings
from ._notebook import Run
from .conftest import REFERENCE
from .test_nbclient import debug_in_thread


def execute(kernel_name: str, folder: Path) -> Run:
    """``folder`` gets the executed notebook; the kernel works in a folder below it."""
    workspace = folder / "workspace"
    workspace.mkdir()
    findings: list[Findings] = []
    managers: list[AsyncKernelManager] = []

    class KnownManager(AsyncKernelManager):
        """papermill makes its own manager; the debugging hook needs to know which."""

        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            managers.append(self)

    async def debug(cell: Any, **_: Any) -> None:
        if _notebook.has_tag(cell, _notebook.DEBUGGED):
            (manager,) = managers
            findings.append(await debug_in_thread(manager.connection_file, cell.source))

    papermill.execute_notebook(
        _notebook.PATH,
        folder / "executed.ipynb",
        kernel_name=kernel_name,
        cwd=workspace,
        progress_bar=False,
        kernel_manager_class=KnownManager,
        on_cell_executed=debug,
    )
    executed = _notebook.read(folder / "executed.ipynb")
    return Run(executed, findings[0], tuple(sorted(path.name for path in workspace.iterdir())))


@pytest.fixture(scope="module")
def runs(
    jupyter_environment: Path, kernel_name: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, Run]:
    """The run under test and the reference."""
    sandboxed = execute(kernel_name, tmp_path_factory.mktemp("sandboxed"))
    return sandboxed, execute(REFERENCE, tmp_path_factory.mktemp("reference"))


def test_the_cells_do_what_they_are_for(runs: tuple[Run, Run]) -> None:
    for run in runs:
        assert run.notebook.metadata.papermill.exception is None
        _notebook.check_content(run, greeted="stranger")


def test_outputs_are_those_of_python3(runs: tuple[Run, Run]) -> None:
    sandboxed, reference = runs
    assert sandboxed.comparable() == reference.comparable()


def test_debugger_finds_what_it_finds_in_python3(runs: tuple[Run, Run]) -> None:
    sandboxed, reference = runs
    assert sandboxed.debugged == reference.debugged


def test_parameters_arrive(jupyter_environment: Path, kernel_name: str, tmp_path: Path) -> None:
    """What papermill is for: a cell of parameters that it puts into the notebook itself."""
    source, target = tmp_path / "source.ipynb", tmp_path / "target.ipynb"
    _notebook.write(source, "print(cups * 2)")
    papermill.execute_notebook(
        source,
        target,
        parameters={"cups": 21},
        kernel_name=kernel_name,
        cwd=tmp_path,
        progress_bar=False,
    )
    executed = _notebook.read(target)
    assert executed.cells[-1].outputs[0].text == "42\n"


def test_failed_cell_is_raised_with_the_kernels_own_traceback(
    jupyter_environment: Path, kernel_name: str, tmp_path: Path
) -> None:
    source, target = tmp_path / "source.ipynb", tmp_path / "target.ipynb"
    _notebook.write(source, "1 / 0", "print('no')")
    with pytest.raises(papermill.PapermillExecutionError, match="division by zero") as caught:
        papermill.execute_notebook(
            source, target, kernel_name=kernel_name, cwd=tmp_path, progress_bar=False
        )
    assert caught.value.ename == "ZeroDivisionError"
    assert _notebook.read(target).cells[-1].outputs == []
