"""The table of requests that a client waits for; and the log that cannot be flooded."""

from __future__ import annotations

from sandbox_kernel.channels.connection import Channel
from sandbox_kernel.channels.messages import Header
from sandbox_kernel.channels.pending import PendingTable, Request
from sandbox_kernel.channels.report import Report

A, B = (b"client-a",), (b"client-b",)


def header(msg_id: str, msg_type: str = "execute_request") -> Header:
    return Header(msg_id, msg_type, "")


def add(table: PendingTable, msg_id: str, msg_type: str = "execute_request") -> bool:
    return table.add(Channel.SHELL, A, header(msg_id, msg_type), b"raw")


def answer(
    table: PendingTable,
    msg_id: str,
    msg_type: str = "execute_reply",
    channel: Channel = Channel.SHELL,
    client: tuple[bytes, ...] = A,
) -> Request | None:
    return table.answered(channel, client, header(msg_id), msg_type)


def test_it_waits_for_reply_and_idle_in_any_order() -> None:
    table = PendingTable(10)
    for order in ("reply first", "idle first"):
        add(table, order)
        if order == "reply first":
            assert answer(table, order)
            assert len(table) == 1
        table.status(order, "busy")
        table.status(order, "idle")
        if order == "idle first":
            assert len(table) == 1
            assert answer(table, order)
        assert len(table) == 0


def test_only_the_right_reply_is_one() -> None:
    table = PendingTable(10)
    add(table, "1")
    assert answer(table, "2") is None
    assert answer(table, "1", client=B) is None
    assert answer(table, "1", channel=Channel.CONTROL) is None
    assert answer(table, "1", msg_type="inspect_reply") is None
    assert answer(table, "1") is not None
    assert answer(table, "1") is None, "a second time"


def test_the_oldest_is_forgotten() -> None:
    table = PendingTable(2)
    assert add(table, "1") and add(table, "2")
    assert not add(table, "3")
    assert [request.msg_id for request in table] == ["2", "3"]
    assert table.status("1", "idle") is None


def test_two_clients_with_the_same_id() -> None:
    table = PendingTable(10)
    for client in (A, B):
        table.add(Channel.SHELL, client, header("1"), b"raw")
    assert len(table) == 2
    assert answer(table, "1", client=A) and answer(table, "1", client=B)


def test_which_cell_runs() -> None:
    table = PendingTable(10)
    add(table, "0", "kernel_info_request")
    assert table.executing() is None
    add(table, "1")
    add(table, "2")
    assert (first := table.executing()) is not None and first.msg_id == "1"
    table.status("2", "busy")
    assert (busy := table.executing()) is not None and busy.msg_id == "2"
    answer(table, "2")
    assert (left := table.executing()) is not None and left.msg_id == "1"


def test_the_log_has_a_line_a_reason_and_interval() -> None:
    lines: list[str] = []
    now = 100.0
    report = Report(lines.append, 10.0, clock=lambda: now)
    for _ in range(1000):
        report("one")
    report("other")
    assert lines == ["one", "other"]
    now = 111.0
    report("one")
    assert lines[2:] == ["one (1000 times)"]
    assert report.counts == {"one": 1001, "other": 1}


def test_the_cell_that_runs_is_the_oldest_without_a_reply() -> None:
    table = PendingTable(10)
    assert table.cell is None
    add(table, "asked before", "kernel_info_request")
    assert table.cell is None
    for msg_id in "abc":
        add(table, msg_id)
    table.status("b", "busy")  # whatever the kernel says of another
    numbers = {request.msg_id: request.number for request in table}
    assert table.cell == numbers["a"]
    answer(table, "b")
    assert table.cell == numbers["a"]
    answer(table, "a")
    assert table.cell == numbers["c"]
    (c,) = [request for request in table if request.msg_id == "c"]
    c.replied = True  # as when the proxy answers in the kernel's stead
    assert table.cell is None


def test_a_cell_that_is_asked_for_twice_or_forgotten_does_not_run_for_ever() -> None:
    table = PendingTable(2)
    add(table, "twice")
    add(table, "twice")
    answer(table, "twice")
    assert table.cell is None
    table.status("twice", "idle")
    add(table, "forgotten")
    first = table.cell
    add(table, "b", "kernel_info_request")
    add(table, "c", "kernel_info_request")
    assert first is not None and table.cell is None
