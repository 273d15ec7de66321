"""The debugger on the control channel, as JupyterLab uses it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from . import _notebook
from ._debugging import CLIENT, DebugSession, debug_cell
from ._wire import ZmqWire, type_of
from .conftest import REFERENCE, RunningKernel

LOOP = """\
def total(values):
    result = 0
    for value in values:
        result += value
    return result

total(range(3))
"""


def quickstart_cell() -> str:
    (cell,) = [
        cell
        for cell in _notebook.code_cells(_notebook.load())
        if _notebook.has_tag(cell, _notebook.DEBUGGED)
    ]
    source: str = cell.source
    return source


def test_session_is_that_of_python3(
    start_kernel: Callable[[str], RunningKernel], kernel_name: str
) -> None:
    """The cell of the quickstart notebook: breakpoint, stack, variables, evaluate, step, go."""
    findings = [
        debug_cell(start_kernel(name).wire, quickstart_cell(), _notebook.STOP_AT)
        for name in (kernel_name, REFERENCE)
    ]
    assert findings[0].variables == {"values": "[1, 2, 3, 6]", "total": "12", "count": "4"}
    assert findings[0] == findings[1]


def test_kernel_info_offers_a_debugger(wire: ZmqWire) -> None:
    info = wire.request("control", "kernel_info_request")["content"]
    assert "debugger" in info["supported_features"]


def test_breakpoint_is_hit_in_every_round_of_a_loop(wire: ZmqWire) -> None:
    session = DebugSession(wire)
    session.attach()
    try:
        assert session.set_breakpoint(LOOP, 4)
        running = wire.start(LOOP)
        values = []
        for _ in range(3):
            _, thread, frame = session.stopped()
            values.append(session.local_variables(frame["id"])["value"])
            session.ask("continue", {"threadId": thread})
        assert values == ["0", "1", "2"]
        (shown,) = wire.finish(running).ok().of_type("execute_result")
        assert shown["content"]["data"]["text/plain"] == "3"
    finally:
        session.detach()


def test_stopped_kernel_still_answers_on_control(wire: ZmqWire) -> None:
    """While the shell channel stands still at a breakpoint, the kernel can be asked things."""
    session = DebugSession(wire)
    session.attach()
    try:
        session.set_breakpoint(LOOP, 4)
        running = wire.start(LOOP)
        _, thread, frame = session.stopped()
        info = wire.request("control", "kernel_info_request")["content"]
        assert info["status"] == "ok"
        rich = session.ask(
            "richInspectVariables", {"variableName": "values", "frameId": frame["id"]}
        )
        assert rich["data"]["text/plain"] == "range(0, 3)"
        session.ask("setBreakpoints", _no_breakpoints(frame["source"]["path"]))
        session.ask("continue", {"threadId": thread})
        wire.finish(running).ok()
    finally:
        session.detach()


def _no_breakpoints(path: str) -> dict[str, object]:
    return {"breakpoints": [], "source": {"path": path}, "sourceModified": False}


def test_second_session_after_the_first(wire: ZmqWire) -> None:
    for _ in range(2):
        debug_cell(wire, quickstart_cell(), _notebook.STOP_AT)


def test_request_that_debugpy_refuses_is_answered(wire: ZmqWire) -> None:
    session = DebugSession(wire)
    session.attach()
    try:
        with pytest.raises(AssertionError, match="stackTrace failed"):
            session.ask("stackTrace", {"threadId": 123456})
    finally:
        session.detach()


def test_reply_carries_the_sequence_number_of_its_request(wire: ZmqWire) -> None:
    content = {"type": "request", "seq": 77, "command": "debugInfo", "arguments": CLIENT}
    reply = wire.request("control", "debug_request", content)
    assert type_of(reply) == "debug_reply"
    assert reply["content"]["request_seq"] == 77
