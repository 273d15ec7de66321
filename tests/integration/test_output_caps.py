"""Output caps of real kernels: what is cut, what the cell says, and what is never lost."""

from __future__ import annotations

from integration.remains import Ground
from integration.sandboxes import run_cell, started

FOREVER = "import time\nend = time.monotonic() + 3\nwhile time.monotonic() < end: print('x' * 200)"


def test_a_cell_that_prints_too_much_shows_its_beginning_and_the_figures(here: Ground) -> None:
    with started(here.folder, {"output_bytes_per_cell": "64K"}) as (_, client):
        cell = run_cell(client, "for i in range(100_000): print(i)")
        assert cell.ok
        assert cell.stdout.startswith("0\n1\n2\n") and len(cell.stdout) < 65536
        cut, figures = (line for line in cell.stderr.splitlines() if line)
        assert cut == (
            "[sandbox] output of this cell is cut here: more than 64 KiB a cell "
            "(output_bytes_per_cell)"
        )
        assert figures.startswith("[sandbox] output was cut: ")
        again = run_cell(client, "print('again')")
        assert (again.stdout, again.stderr) == ("again\n", "")


def test_an_error_and_the_reply_of_a_cell_that_was_cut_arrive(here: Ground) -> None:
    config = {"output_messages_per_cell": 5, "output_messages_per_second": 5}
    with started(here.folder, config) as (_, client):
        code = "from IPython.display import display\nfor i in range(500): display(i)\n1 / 0"
        cell = run_cell(client, code)
        assert (cell.status, cell.ename) == ("error", "ZeroDivisionError")
        assert "messages did not pass" in cell.stderr


def test_a_rate_lets_through_what_it_says(here: Ground) -> None:
    with started(here.folder, {"output_bytes_per_second": "100K"}) as (_, client):
        cell = run_cell(client, FOREVER)
        assert cell.ok and "100 KiB a second (output_bytes_per_second)" in cell.stderr
        assert 200_000 < len(cell.stdout) < 800_000  # a burst of 3 seconds' worth, and 3 seconds
