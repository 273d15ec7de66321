"""What is taken off a cell, and the one word that kernel and proxy share."""

from __future__ import annotations

import pytest

from sandbox_kernel import magics
from sandbox_kernel.channels.accounting import FIGURES
from sandbox_kernel.magics import without_first_line


def test_kernel_and_proxy_mean_the_same_message() -> None:
    assert magics.FIGURES == FIGURES


@pytest.mark.parametrize(
    ("cell", "left"),
    [
        (["%%sandbox\n", "1/0\n"], ["\n", "1/0\n"]),
        (["%%sandbox  \n", "1\n"], ["\n", "1\n"]),
        (["%%sandbox"], ["\n"]),
        (["%%sandbox 7\n", "1\n"], None),
        (["%%sandboxed\n", "1\n"], None),
        (["1\n", "%%sandbox\n"], None),
        ([], None),
    ],
)
def test_only_the_first_line_is_taken_off_and_lines_keep_their_numbers(
    cell: list[str], left: list[str] | None
) -> None:
    assert without_first_line(list(cell)) == (cell if left is None else left)
