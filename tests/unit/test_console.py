"""The kernel's own output is hostile: cut, cleaned, bounded, before a terminal or a log sees it."""

from __future__ import annotations

import os
import types
import unicodedata
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_kernel import console as console_module
from sandbox_kernel.console import Console, clean

LINE = 500
LINES_A_SECOND = 50
MARK = "\N{REPLACEMENT CHARACTER}"


class Clock:
    """The second that it is."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(console_module, "time", types.SimpleNamespace(monotonic=clock.monotonic))
    return clock


@pytest.fixture
def console(clock: Clock) -> Iterator[Console]:
    console = Console()
    yield console
    console.close()


def write(console: Console, raw: bytes) -> None:
    assert os.write(console.write_end, raw) == len(raw)


# -- one line ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"Segmentation fault", "Segmentation fault"),
        (b"  blanks around \r", "blanks around \ufffd"),
        (b"a\tb", "a\tb"),
        ("Grüße, 你好".encode(), "Grüße, 你好"),
        (b"\x1b[31mred\x1b[0m", f"{MARK}[31mred{MARK}[0m"),
        (b"\x1b]0;title\x07", f"{MARK}]0;title{MARK}"),
        (b"\x1b]52;c;cm0gLXJm\x07", f"{MARK}]52;c;cm0gLXJm{MARK}"),
        (b"\x1bP1$r\x1b\\", f"{MARK}P1$r{MARK}\\"),
        (b"a\rb\x08c\x7fd\x00e", f"a{MARK}b{MARK}c{MARK}d{MARK}e"),
        (b"\xc2\x9b31m", f"{MARK}31m"),  # CSI as one C1 character
        (b"\x9b31m", f"{MARK}31m"),  # the same byte is not UTF-8
        (b"\xff\xfe", MARK * 2),
        (b"", ""),
        (b" \t ", ""),
    ],
)  # fmt: skip
def test_cleaning(raw: bytes, text: str) -> None:
    assert clean(raw) == text


@pytest.mark.parametrize("code", [0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)])
def test_no_text_is_turned_around(code: int) -> None:
    assert clean(f"a{chr(code)}b".encode()) == f"a{MARK}b"


@pytest.mark.parametrize("code", [0x061C, 0x2028, 0x2029])
def test_the_rarer_controls(code: int) -> None:
    assert clean(f"a{chr(code)}b".encode()) == f"a{MARK}b"


@settings(derandomize=True, database=None, deadline=None)
@given(
    raw=st.binary(max_size=300) | st.text(max_size=200).map(lambda t: t.encode("utf-8", "replace"))
)
def test_no_control_character_survives(raw: bytes) -> None:
    text = clean(raw)
    assert len(text) <= LINE
    assert not [c for c in text if unicodedata.category(c) == "Cc" and c != "\t"]
    assert clean(text.encode()) == text


@pytest.mark.parametrize("raw", [b"x" * 10_000, "ü".encode() * 10_000, b"\xff" * 10_000])
def test_a_line_is_bounded(raw: bytes) -> None:
    assert len(clean(raw)) == LINE


# -- many lines --------------------------------------------------------------------------------


def test_lines_come_as_they_are_complete(console: Console) -> None:
    assert console.read() == []
    write(console, b"one\ntwo\nthr")
    assert console.read() == ["one", "two"]
    assert console.read() == []
    write(console, b"ee\n\n\n")
    assert console.read() == ["three"]
    assert not console.at_end


def test_a_character_may_come_in_two_pieces(console: Console) -> None:
    first, last = "ü\n".encode()[:1], "ü\n".encode()[1:]
    write(console, first)
    assert console.read() == []
    write(console, last)
    assert console.read() == ["ü"]


def test_the_last_line_needs_no_end(console: Console) -> None:
    write(console, b"Fatal Python error: Aborted")
    assert console.read() == []
    console.close_write_end()
    assert console.read() == ["Fatal Python error: Aborted"]
    assert console.at_end
    assert console.read() == []


def test_a_line_without_end_is_not_kept_for_ever(console: Console) -> None:
    for _ in range(20):
        write(console, b"x" * 65_536)
        for line in console.read():
            assert len(line) <= LINE
        assert len(console._partial) <= LINE
    assert len(console.tail()) <= 5 * LINE + 4 * len(" | ")


def test_a_flood_is_bounded_and_what_is_left_out_is_counted(console: Console, clock: Clock) -> None:
    passed: list[str] = []
    for _ in range(10):
        write(console, b"flood\n" * 10_000)
        passed += console.read()
    assert passed == ["flood"] * LINES_A_SECOND
    clock.now += 1
    write(console, b"later\nmore\n")
    assert console.read() == [f"({100_000 - LINES_A_SECOND} lines left out) later", "more"]
    clock.now += 1
    write(console, b"quiet\n")
    assert console.read() == ["quiet"]


def test_every_second_has_its_share(console: Console, clock: Clock) -> None:
    for _ in range(3):
        write(console, b"line\n" * 200)
        assert LINES_A_SECOND <= len(console.read()) <= LINES_A_SECOND + 1
        clock.now += 1


def test_empty_lines_cost_nothing(console: Console) -> None:
    write(console, b"\n" * 60_000)
    assert console.read() == []
    write(console, b"line\n")
    assert console.read() == ["line"]


def test_the_tail_is_the_last_five_even_of_a_flood(console: Console) -> None:
    assert console.tail() == ""
    write(console, b"".join(b"%d\n" % n for n in range(1000)))
    console.read()
    assert console.tail() == "995 | 996 | 997 | 998 | 999"


def test_the_tail_is_clean(console: Console) -> None:
    write(console, b"\x1b[2Jgone\n")
    console.read()
    assert console.tail() == f"{MARK}[2Jgone"


# -- how much is read --------------------------------------------------------------------------

_PIECE = 65_536
#: Pieces that are read in a second.
_SHARE = 16


def test_so_much_is_read_in_a_second_and_no_more(console: Console, clock: Clock) -> None:
    assert console.pause() == 0
    clock.now += 10
    for number in range(_SHARE):
        assert console.pause() == 0, number
        write(console, b"x" * _PIECE)
        console.read()
        clock.now += 1 / 64
    assert console.pause() == 1 - _SHARE / 64
    clock.now += 0.5
    assert console.pause() == 0.25
    clock.now += 0.25
    assert console.pause() == 0


def test_every_second_has_its_share_of_bytes(console: Console, clock: Clock) -> None:
    for _ in range(3):
        clock.now += 1
        for _ in range(_SHARE):
            assert console.pause() == 0
            write(console, b"\n" * _PIECE)
            console.read()
        assert console.pause() == 1


def test_the_end_is_not_paused(console: Console, clock: Clock) -> None:
    console.close_write_end()
    assert console.read() == []
    assert console.at_end
    assert console.pause() == 0


# -- descriptors -------------------------------------------------------------------------------


def test_no_descriptor_is_left_or_inherited() -> None:
    console = Console()
    ends = console.read_end, console.write_end
    assert not any(os.get_inheritable(fd) for fd in ends)
    assert os.get_blocking(console.read_end) is False
    assert os.get_blocking(console.write_end) is True
    console.close()
    for fd in ends:
        with pytest.raises(OSError):
            os.fstat(fd)
    console.close()
    console.close_write_end()
