"""What a cell is charged with, and what is written down of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest

from sandbox_kernel.channels import Account, Entry, MessageLimits, Reading
from sandbox_kernel.channels.accounting import KEY, Accounting, with_account
from sandbox_kernel.channels.connection import Channel
from sandbox_kernel.channels.messages import Header, Message, Signer, parse_header, split
from sandbox_kernel.channels.pending import Request
from sandbox_kernel.errors import AuditError

A = (b"client-a",)
SIGNER = Signer(b"key", "hmac-sha256")
LIMITS = MessageLimits(max_pending=3)


class Kernel:
    """A meter whose counters the test moves."""

    peak_of = "cell"

    def __init__(self) -> None:
        self.now, self.cpu, self.peak = 0.0, 0, 0

    def works(self, seconds: float, *, peak: int = 0) -> None:
        self.now += seconds
        self.cpu += int(seconds * 1_000_000)
        self.peak = max(self.peak, peak)

    def read(self) -> Reading:
        return Reading(self.now, cpu_usec=self.cpu, sent_bytes=7)

    def take_peak(self) -> int | None:
        peak, self.peak = self.peak, 0
        return peak

    def use(self) -> str:
        return "use"

    def cell(self, account: Account) -> str:
        return f"cell {account.cpu_s}"

    def usage(self) -> dict[str, Any] | None:
        return {"pid": 2}


class Notes:
    """A journal that keeps its entries, or fails."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.fails = False

    def code(self, msg_type: str, content: bytes) -> Mapping[str, Any] | None:
        return {"bytes": len(content)}

    def write(self, entry: Entry) -> None:
        if self.fails:
            raise AuditError("no")
        self.entries.append(entry)


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def notes() -> Notes:
    return Notes()


@pytest.fixture
def accounting(kernel: Kernel, notes: Notes) -> Accounting:
    return Accounting(LIMITS, kernel, notes)


def ask(
    accounting: Accounting, msg_id: str, msg_type: str = "execute_request", subshell: str = ""
) -> None:
    header = Header(msg_id, msg_type, "session", "ada", subshell)
    accounting.began(Channel.SHELL, A, header, b"{}")


def request(msg_id: str, msg_type: str = "execute_request") -> Request:
    return Request(Channel.SHELL, A, b"raw", msg_id, msg_type)


def reply(content: dict[str, Any], metadata: bytes = b"{}") -> Message:
    parts = (b"{}", b"{}", metadata, json.dumps(content).encode())
    return Message(A, SIGNER.sign(parts), *parts)


def answer(accounting: Accounting, msg_id: str, **content: Any) -> Account:
    account = accounting.answered(request(msg_id), reply({"status": "ok"} | content))
    assert account is not None
    return account


def test_a_cell_is_charged_from_its_request_to_its_reply(
    accounting: Accounting, kernel: Kernel
) -> None:
    kernel.works(1)
    ask(accounting, "1")
    kernel.works(2, peak=50)
    account = answer(accounting, "1")
    assert (account.cpu_s, account.wall_s, account.peak_bytes) == (2.0, 2.0, 50)
    assert account.to_dict() == {
        "cpu_s": 2.0, "wall_s": 2.0, "peak_bytes": 50, "peak_of": "cell",
        "io": None, "net": {"sent_bytes": 0},
    }  # fmt: skip
    kernel.works(1)
    ask(accounting, "2")
    assert answer(accounting, "2").peak_bytes == 0, "each peak begins anew"


def test_a_cell_that_waited_begins_with_the_reply_to_the_one_before(
    accounting: Accounting, kernel: Kernel
) -> None:
    ask(accounting, "1")
    ask(accounting, "2")
    ask(accounting, "3")
    kernel.works(2, peak=90)
    assert answer(accounting, "1").cpu_s == 2.0
    kernel.works(3, peak=40)
    second = answer(accounting, "2")
    assert (second.cpu_s, second.wall_s, second.peak_bytes) == (3.0, 3.0, 40)
    assert answer(accounting, "3").cpu_s == 0.0


def test_cells_of_two_subshells_are_charged_with_all_that_was_used_meanwhile(
    accounting: Accounting, kernel: Kernel
) -> None:
    ask(accounting, "1")
    kernel.works(1, peak=70)
    ask(accounting, "2", subshell="b")
    kernel.works(1, peak=30)
    first = answer(accounting, "1")
    kernel.works(1, peak=20)
    second = answer(accounting, "2")
    assert (first.cpu_s, first.peak_bytes) == (2.0, 70)
    assert (second.cpu_s, second.peak_bytes) == (2.0, 30)


def test_what_is_no_cell_is_not_charged_and_what_runs_code_is_written_down(
    accounting: Accounting, notes: Notes
) -> None:
    ask(accounting, "1", "complete_request")
    ask(accounting, "2", "debug_request")
    assert accounting.answered(request("1", "complete_request"), reply({"status": "ok"})) is None
    assert accounting.answered(request("2", "debug_request"), reply({"success": True})) is not None
    (entry,) = notes.entries
    assert (entry.msg_type, entry.outcome) == ("debug_request", "unknown")


@pytest.mark.parametrize(
    ("content", "outcome", "ename"),
    [
        ({"status": "ok"}, "ok", ""),
        ({"status": "error", "ename": "ZeroDivisionError"}, "error", "ZeroDivisionError"),
        ({"status": "error", "ename": "x" * 1000}, "error", "x" * 200),
        ({"status": "error", "ename": 7}, "error", ""),
        ({"status": "aborted"}, "aborted", ""),
        ({"status": ["ok"]}, "unknown", ""),
        ({}, "unknown", ""),
    ],
)
def test_the_outcome_is_what_the_reply_says(
    content: dict[str, Any], outcome: str, ename: str, accounting: Accounting, notes: Notes
) -> None:
    ask(accounting, "1")
    accounting.answered(request("1"), reply(content))
    (entry,) = notes.entries
    assert (entry.outcome, entry.ename) == (outcome, ename)
    assert (entry.msg_id, entry.session, entry.username) == ("1", "session", "ada")
    assert entry.code == {"bytes": 2}


def test_a_reply_in_the_kernels_stead_is_charged_and_written_down_once(
    accounting: Accounting, kernel: Kernel, notes: Notes
) -> None:
    ask(accounting, "1")
    kernel.works(1)
    assert accounting.failed(request("1"), "MemoryCapExceeded")[KEY]["cpu_s"] == 1.0
    assert accounting.failed(request("1"), "MemoryCapExceeded") == {}
    (entry,) = notes.entries
    assert (entry.outcome, entry.ename) == ("error", "MemoryCapExceeded")


def test_what_nobody_answers_is_written_down_too(accounting: Accounting, notes: Notes) -> None:
    for number in range(5):
        ask(accounting, str(number))
    assert [entry.msg_id for entry in notes.entries] == ["0", "1"], "beyond the bound"
    ask(accounting, "4")
    accounting.close()
    accounting.close()
    assert [e.msg_id for e in notes.entries] == ["0", "1", "4", "2", "3", "4"]
    assert {e.outcome for e in notes.entries} == {"unanswered"}


def test_a_journal_that_fails_is_remembered_and_the_reply_passes(
    accounting: Accounting, notes: Notes
) -> None:
    notes.fails = True
    ask(accounting, "1")
    assert answer(accounting, "1") is not None
    assert isinstance(accounting.broken, AuditError)
    assert accounting.journal is None


def test_figures_of_a_cell_are_those_up_to_now_or_of_its_end(
    accounting: Accounting, kernel: Kernel
) -> None:
    ask(accounting, "1")
    kernel.works(1)
    assert accounting.figures("cell", "1") == "cell 1.0"
    kernel.works(1)
    answer(accounting, "1")
    kernel.works(5)
    assert accounting.figures("cell", "1") == "cell 2.0", "the reply was faster than the message"
    assert accounting.figures("cell", "other") == accounting.figures("kernel", "1") == "use"
    assert Accounting(LIMITS).figures("kernel", "") == "this kernel is not measured\n"


@pytest.mark.parametrize(
    ("metadata", "kept"),
    [
        (b'{"status":"ok","sandbox":{"cpu_s":0}}', {"status": "ok"}),
        (b'["no object"]', {}),
        (b"no JSON", {}),
        (b'{"large":"' + b"x" * 70_000 + b'"}', {}),
    ],
)
def test_what_the_kernel_says_in_its_place_is_replaced_and_signed_anew(
    metadata: bytes, kept: dict[str, Any], accounting: Accounting, kernel: Kernel
) -> None:
    ask(accounting, "1")
    kernel.works(3)
    account = answer(accounting, "1")
    message = with_account(reply({"status": "ok"}, metadata), account, SIGNER, MessageLimits())
    assert json.loads(message.metadata) == kept | {KEY: account.to_dict()}
    assert SIGNER.verify(message)
    assert not SIGNER.verify(split([*A, b"<IDS|MSG>", b"x", *message.signed]))


def test_a_header_names_its_user_and_its_subshell() -> None:
    raw = {"msg_id": "1", "msg_type": "t", "session": "s", "username": "ada", "subshell_id": "b"}
    found = parse_header(json.dumps(raw).encode(), MessageLimits())
    assert (found.username, found.subshell) == ("ada", "b")
    del raw["username"]
    found = parse_header(json.dumps(raw | {"subshell_id": None}).encode(), MessageLimits())
    assert (found.username, found.subshell) == ("", "")
