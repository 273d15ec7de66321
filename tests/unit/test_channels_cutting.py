"""Output beyond the caps: what passes, what is cut, and what the cell is told; with a clock."""

from __future__ import annotations

import json
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from sandbox_kernel.channels.connection import Channel
from sandbox_kernel.channels.cutting import BURST_SECONDS, Cutting
from sandbox_kernel.channels.messages import Composer, Message, Signer, split
from sandbox_kernel.channels.pending import Request
from sandbox_kernel.channels.report import Report
from sandbox_kernel.output import OutputCaps


class Case:
    """What was published is in ``sent``: dicts of parent and content, in order."""

    def __init__(self, **caps: int) -> None:
        self.now = 100.0
        self.sent: list[dict[str, Any]] = []
        self.log: list[str] = []
        self.signer = Signer(b"k", "hmac-sha256")
        composer = Composer(self.signer)
        report = Report(self.log.append, 10.0, clock=lambda: self.now)
        self.cutting = Cutting(
            OutputCaps(**caps), cast(Any, self), composer, report, clock=lambda: self.now
        )

    def send(self, frames: list[bytes], *, essential: bool, parent: bytes) -> None:
        """As the broadcast has it."""
        message = split(frames)
        assert self.signer.verify(message)
        self.sent.append(
            {"parent": message.parent_header, "content": json.loads(message.content)}
            | {"essential": essential}
        )

    def texts(self) -> list[str]:
        return [sent["content"]["text"] for sent in self.sent]

    def stream(self, text: str) -> bool:
        """The kernel says it; true if it passes whole."""
        content = json.dumps({"name": "stdout", "text": text}, ensure_ascii=False).encode()
        message = Message((b"stream",), b"", b"{}", b"{}", b"{}", content)
        if self.cutting.passes(len(content), essential=False):
            return True
        self.cutting.cut(message, len(content))
        return False

    def cell(self, name: bytes) -> Request:
        return Request(Channel.SHELL, (b"c",), name, name.decode(), "execute_request")


def test_without_caps_nobody_is_asked() -> None:
    assert not Case().cutting.active
    assert Case(bytes_per_cell=4096).cutting.active


def test_a_cell_is_told_once_that_it_is_cut_and_once_how_much_was() -> None:
    case = Case(messages_per_cell=2)
    cell = case.cell(b'"one"')
    case.cutting.begin(cell)
    assert [case.stream("0123456789") for _ in range(5)] == [True, True, False, False, False]
    case.cutting.end(cell)
    case.cutting.end(cell)
    size = len('{"name": "stdout", "text": "0123456789"}')
    assert case.texts() == [
        "\n[sandbox] output of this cell is cut here: more than 2 messages a cell "
        "(output_messages_per_cell)\n",
        f"\n[sandbox] output was cut: {3 * size} bytes in 3 messages did not pass\n",
    ]
    assert {sent["parent"] for sent in case.sent} == {b'"one"'}
    assert all(sent["essential"] for sent in case.sent)
    assert case.log == ["cut output: more than 2 messages a cell (output_messages_per_cell)"]


def test_the_next_cell_has_a_budget_of_its_own() -> None:
    case = Case(messages_per_cell=1)
    for name in (b"1", b"2"):
        case.cutting.begin(case.cell(name))
        assert case.stream("a") and not case.stream("b")
    assert [sent["parent"] for sent in case.sent] == [b"1", b"1", b"2"]


def test_the_beginning_of_a_text_that_is_too_long_is_shown() -> None:
    case = Case(bytes_per_cell=4096)
    case.cutting.begin(case.cell(b"1"))
    assert not case.stream("x" * 10_000)
    shown, told = case.texts()
    assert 4000 < len(shown) <= 4096 and set(shown) == {"x"}
    assert "more than 4 KiB a cell (output_bytes_per_cell)" in told


@given(piece=st.text(min_size=1, max_size=20), shift=st.integers(0, 8))
def test_no_character_and_no_escape_is_cut_in_two(piece: str, shift: int) -> None:
    """What is shown is the beginning of the text, whatever is in it."""
    text = "." * shift + piece * 5000
    case = Case(bytes_per_cell=4096)
    case.stream(text)
    shown, _ = case.texts()
    assert shown and text.startswith(shown)


def test_a_second_has_its_share_and_a_burst_passes() -> None:
    case = Case(messages_per_second=10)
    case.cutting.begin(case.cell(b"1"))
    burst = int(10 * BURST_SECONDS)
    assert [case.stream("a") for _ in range(burst + 1)] == [True] * burst + [False]
    case.now += 0.15
    assert [case.stream("a"), case.stream("a")] == [True, False]
    case.now += 3600
    assert sum(case.stream("a") for _ in range(1000)) == burst


def test_what_is_essential_passes_when_output_does_not_and_is_bounded_too() -> None:
    case = Case(messages_per_cell=10)
    case.cutting.begin(case.cell(b"1"))
    assert sum(case.stream("a") for _ in range(100)) == 10
    assert sum(case.cutting.passes(9, essential=True) for _ in range(100)) == 10


def test_what_is_no_stream_is_cut_whole() -> None:
    case = Case(bytes_per_cell=4096)
    message = Message((), b"", b"{}", b"{}", b"{}", b'{"data": {"text/plain": "' + b"x" * 9999)
    assert not case.cutting.passes(10_000, essential=False)
    case.cutting.cut(message, 10_000)
    assert len(case.sent) == 1 and "is cut here" in case.texts()[0]


def test_a_text_that_lies_about_its_end_is_cut_whole() -> None:
    case = Case(bytes_per_cell=4096)
    content = b'{"name": "stdout", "text": "a", "more": [' + b"[" * 99_999
    case.cutting.cut(Message((), b"", b"{}", b"{}", b"{}", content), len(content))
    assert len(case.sent) == 1
