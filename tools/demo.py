"""Execute ``notebooks/quickstart.ipynb`` in the kernel "Sandboxed Python" and print what it saw.

Run by ``make demo``. Printed are the outputs of the cells tagged ``sandbox-saw``, and how long the
start and the run took. Any failure (no such kernel, a cell that raises, nothing tagged) is an exit
status of 1 with the reason.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError

from sandbox_kernel import __version__
from sandbox_kernel.errors import SandboxError

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "quickstart.ipynb"
KERNEL = "sandboxed-python"
TAG = "sandbox-saw"
CELL_TIMEOUT = 120
"""Seconds for one cell."""


def main() -> int:
    if not NOTEBOOK.exists():
        print(f"{NOTEBOOK} is not there", file=sys.stderr)
        return 1
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    # A folder of its own: the sandbox may write to its workspace, and not to this checkout.
    with tempfile.TemporaryDirectory(prefix="sandbox-kernel-demo-", dir=_writable()) as folder:
        shutil.copytree(NOTEBOOK.parent, folder, dirs_exist_ok=True)
        try:
            started, ran = execute(notebook, folder)
        except (SandboxError, CellExecutionError, DeadKernelError) as exc:
            print(f"the notebook did not run: {exc}", file=sys.stderr)
            return 1
    seen = [cell for cell in notebook.cells if TAG in cell.metadata.get("tags", ())]
    if not any(cell.outputs for cell in seen):
        print(f"no cell tagged {TAG!r} has an output: {NOTEBOOK}", file=sys.stderr)
        return 1
    cells = sum(cell.cell_type == "code" for cell in notebook.cells)
    print(f"sandbox-kernel {__version__}: {NOTEBOOK.name}, kernel {KERNEL!r}, uid {os.getuid()}")
    print("\n-- what the sandbox saw " + "-" * 54)
    for cell in seen:
        print("\n".join(texts(cell.outputs)))
    print("\n-- how long it took " + "-" * 58)
    print(f"start, until the kernel answered  {started:6.2f} s")
    print(f"run, {cells:3d} cells                   {ran:6.2f} s")
    return 0


def _writable() -> str | None:
    """The home, as any notebook's folder would be in it; the temporary folder if it is not ours."""
    home = Path.home()
    return str(home) if os.access(home, os.W_OK) else None


def execute(notebook: nbformat.NotebookNode, folder: str) -> tuple[float, float]:
    """Run every cell in place; seconds that the start took, and the cells."""
    client = NotebookClient(
        notebook,
        kernel_name=KERNEL,
        timeout=CELL_TIMEOUT,
        resources={"metadata": {"path": folder}},
    )
    client.reset_execution_trackers()
    begin = time.perf_counter()
    with client.setup_kernel():
        started = time.perf_counter()
        for index, cell in enumerate(notebook.cells):
            client.execute_cell(cell, index)
        return started - begin, time.perf_counter() - started


def texts(outputs: list[nbformat.NotebookNode]) -> Iterator[str]:
    """The text of each output that has one."""
    for output in outputs:
        if output.output_type == "stream":
            yield output.text.rstrip("\n")
        elif "data" in output and "text/plain" in output.data:
            yield output.data["text/plain"].rstrip("\n")


if __name__ == "__main__":
    sys.exit(main())
