"""What somebody sees who runs cells of a sandboxed kernel in JupyterLab."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from ._lab import Lab

pytestmark = pytest.mark.needs("chromium")

GREEDY = """\
rows = []
while True:
    rows.append(bytearray(16 * 1024 * 1024))"""


def test_the_launcher_offers_the_kernel_and_its_notebook_computes(
    start_lab: Callable[..., Lab],
) -> None:
    lab = start_lab()
    lab.open_launcher()
    notebook = lab.new_notebook("Sandboxed Python")
    cell = notebook.run("print(6*7)")
    cell.assert_shows("42")
    cell.assert_prompt("[1]:")
    notebook.run("import os; print('pid', os.getpid())").assert_shows("pid 2")


@pytest.mark.needs("cgroups")
def test_a_cell_that_takes_more_memory_than_its_cap_says_so_and_the_next_one_runs(
    start_lab: Callable[..., Lab], pictures: Path
) -> None:
    lab = start_lab(memory="256M")
    notebook = lab.open_notebook(GREEDY, "print('the kernel is', 'back')")
    greedy, following = notebook.cell(0), notebook.cell(1)
    greedy.run()
    greedy.assert_shows("MemoryCapExceeded: the kernel reached its memory cap of 256 MiB")
    greedy.assert_shows("use less data at once or ask for a larger cap")
    lab.dismiss("Kernel Restarting")
    notebook.wait_until_idle()
    following.run()
    following.assert_shows("the kernel is back")
    following.assert_prompt("[1]:")
    notebook.take_picture(pictures / "memory-cap.png", last=following)
