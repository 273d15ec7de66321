"""A debug session as JupyterLab's debugger holds it, over any :class:`~._wire.Wire`."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ._wire import Message, Wire, type_of

CLIENT = {
    "clientID": "conformance",
    "clientName": "conformance tests",
    "adapterID": "python",
    "pathFormat": "path",
    "linesStartAt1": True,
    "columnsStartAt1": True,
    "supportsVariableType": True,
    "supportsVariablePaging": True,
    "supportsRunInTerminalRequest": True,
    "locale": "en",
}


@dataclass(frozen=True)
class Findings:
    """What one session saw. Two kernels that behave alike have equal findings."""

    verified: bool
    """The debugger took the breakpoint for one that can be hit."""
    reason: str
    """Why the thread stopped the first time."""
    frame: str
    line: int
    variables: dict[str, str]
    """The locals at the breakpoint."""
    evaluated: str
    stepped_to: int
    """The line after one step."""
    result: str
    """What the cell returned after it was let go."""
    global_names: tuple[str, ...]
    """What the variable explorer shows at its top level."""


@dataclass
class DebugSession:
    """Requests and events of the debug adapter protocol; each method is one request."""

    wire: Wire
    _seq: itertools.count[int] = field(default_factory=lambda: itertools.count(1))

    def ask(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """The body of the answer to one command on the control channel."""
        content = {
            "type": "request",
            "seq": next(self._seq),
            "command": command,
            "arguments": dict(arguments or {}),
        }
        reply = self.wire.request("control", "debug_request", content)
        assert type_of(reply) == "debug_reply"
        answer = reply["content"]
        assert answer.get("success"), f"{command} failed: {answer}"
        return answer.get("body", {})

    def wait_for_event(self, event: str) -> Message:
        """The next event of a kind on iopub."""
        _, message = self.wire.wait_for(
            lambda channel, message: (
                channel == "iopub"
                and type_of(message) == "debug_event"
                and message["content"]["event"] == event
            ),
            f"debug event {event!r}",
        )
        return message

    def attach(self) -> dict[str, Any]:
        """Start the debugger; the returned debugInfo is that of the running one."""
        assert self.ask("debugInfo")["isStarted"] is False
        self.ask("initialize", CLIENT)
        self.ask("attach")
        info: dict[str, Any] = self.ask("debugInfo")
        assert info["isStarted"] is True
        return info

    def set_breakpoint(self, code: str, line: int) -> bool:
        """Dump the cell and set one breakpoint in it; True when the debugger verified it."""
        path = self.ask("dumpCell", {"code": code})["sourcePath"]
        arguments = {
            "breakpoints": [{"line": line}],
            "source": {"path": path},
            "sourceModified": False,
        }
        (breakpoint_set,) = self.ask("setBreakpoints", arguments)["breakpoints"]
        assert breakpoint_set["line"] == line
        assert self.ask("source", {"source": {"path": path}})["content"] == code
        self.ask("configurationDone")
        return bool(breakpoint_set["verified"])

    def stopped(self) -> tuple[str, int, dict[str, Any]]:
        """Wait until a thread has stopped: the reason, the thread, its innermost frame."""
        body = self.wait_for_event("stopped")["content"]["body"]
        frames = self.ask("stackTrace", {"threadId": body["threadId"]})["stackFrames"]
        assert body["threadId"] in self.ask("debugInfo")["stoppedThreads"]
        return body["reason"], body["threadId"], frames[0]

    def local_variables(self, frame_id: int) -> dict[str, str]:
        scopes = self.ask("scopes", {"frameId": frame_id})["scopes"]
        reference = next(s["variablesReference"] for s in scopes if s["name"] == "Locals")
        variables = self.ask("variables", {"variablesReference": reference})["variables"]
        return {variable["name"]: variable["value"] for variable in variables}

    def detach(self) -> None:
        self.ask("disconnect", {"restart": False, "terminateDebuggee": False})
        assert self.ask("debugInfo")["isStarted"] is False


def debug_cell(wire: Wire, code: str, stop_at: str) -> Findings:
    """Stop ``code`` at the line ``stop_at``, look around, step, let it go, and detach.

    ``code`` must print nothing and end in an expression; the line must be in a function.
    """
    lines = [line.strip() for line in code.splitlines()]
    session = DebugSession(wire)
    info = session.attach()
    assert info["hashMethod"] == "Murmur2"
    verified = session.set_breakpoint(code, lines.index(stop_at) + 1)

    running = wire.start(code)
    reason, thread, frame = session.stopped()
    assert frame["source"]["path"].startswith(info["tmpFilePrefix"])
    variables = session.local_variables(frame["id"])
    expression = {"expression": stop_at.removeprefix("return "), "frameId": frame["id"]}
    evaluated = session.ask("evaluate", expression | {"context": "repl"})["result"]
    session.ask("next", {"threadId": thread})
    _, thread, after = session.stopped()
    session.ask("continue", {"threadId": thread})

    execution = wire.finish(running).ok()
    (shown,) = execution.of_type("execute_result")
    names = [v["name"] for v in session.ask("inspectVariables")["variables"]]
    session.detach()
    return Findings(
        verified=verified,
        reason=reason,
        frame=frame["name"],
        line=frame["line"],
        variables=variables,
        evaluated=evaluated,
        stepped_to=after["line"],
        result=shown["content"]["data"]["text/plain"],
        global_names=tuple(sorted(names)),
    )
