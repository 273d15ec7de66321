"""nbclient executes the quickstart notebook in the sandbox with the outputs of python3."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from nbclient import NotebookClient

from . import _notebook
from ._debugging import Findings, debug_cell
from ._notebook import Run
from ._wire import TIMEOUT, ZmqWire
from .conftest import REFERENCE, kernel_environment


async def debug_in_thread(connection_file: str, code: str) -> Findings:
    """For a hook: the client that called it goes on reading its own channels meanwhile."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(None, debug_as_second_client, connection_file, code)


def debug_as_second_client(connection_file: str, code: str) -> Findings:
    """Debug a cell over a connection of one's own, while nbclient keeps its own open."""
    wire = ZmqWire.open(connection_file)
    try:
        return debug_cell(wire, code, _notebook.STOP_AT)
    finally:
        wire.close()


def execute(kernel_name: str, workspace: Path) -> Run:
    notebook = _notebook.load()
    findings: list[Findings] = []

    async def debug(cell: Any, **_: Any) -> None:
        if _notebook.has_tag(cell, _notebook.DEBUGGED):
            assert client.km is not None
            findings.append(await debug_in_thread(client.km.connection_file, cell.source))

    client = NotebookClient(
        notebook,
        kernel_name=kernel_name,
        timeout=int(TIMEOUT),
        resources={"metadata": {"path": str(workspace)}},
        on_cell_executed=debug,
    )
    client.execute(env=kernel_environment())
    left = tuple(sorted(path.name for path in workspace.iterdir()))
    return Run(notebook, findings[0], left)


@pytest.fixture(scope="module")
def runs(
    jupyter_environment: Path, kernel_name: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, Run]:
    """The run under test and the reference."""
    sandboxed = execute(kernel_name, tmp_path_factory.mktemp("sandboxed"))
    return sandboxed, execute(REFERENCE, tmp_path_factory.mktemp("reference"))


def test_the_cells_do_what_they_are_for(runs: tuple[Run, Run]) -> None:
    for run in runs:
        _notebook.check_content(run, greeted="stranger")


def test_outputs_are_those_of_python3(runs: tuple[Run, Run]) -> None:
    sandboxed, reference = runs
    assert sandboxed.comparable() == reference.comparable()


def test_debugger_finds_what_it_finds_in_python3(runs: tuple[Run, Run]) -> None:
    sandboxed, reference = runs
    assert sandboxed.debugged == reference.debugged


def test_tagged_cells_see_a_sandbox(runs: tuple[Run, Run], kernel_name: str) -> None:
    sandboxed, reference = runs
    with pytest.raises((AssertionError, KeyError)):
        _notebook.check_saw(reference.saw())
    if kernel_name != REFERENCE:
        _notebook.check_saw(sandboxed.saw())
