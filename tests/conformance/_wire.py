"""One view of a kernel's channels for every kind of client.

A :class:`Wire` sends requests and yields what comes back, in the order of arrival, from whichever
channel. :class:`ZmqWire` speaks to the kernel as nbclient and JupyterLab's server do,
:class:`WebsocketWire` speaks to a Jupyter server as the browser does. The tests are written once
above both. Nothing here sleeps: every wait is for a message, up to :data:`TIMEOUT`.
"""

from __future__ import annotations

import itertools
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import nbformat
import websocket
import zmq
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.jsonutil import json_default
from jupyter_client.session import Session

Message = dict[str, Any]
Event = tuple[str, Message]
"""The name of the channel, and the message that came on it."""

TIMEOUT: Final = 60.0
"""Seconds until a wait for one message gives up. Only a failure ever takes that long."""


class NothingCame(AssertionError):
    """A message that had to come did not."""


def type_of(message: Message) -> str:
    return str(message["header"]["msg_type"])


def parent_of(message: Message) -> str:
    """The id of the request that the message answers, "" when there is none."""
    return str(message["parent_header"].get("msg_id", ""))


def describe(channel: str, message: Message) -> str:
    """One message in one line, for a failure: what it is, of what kind, and in answer to what."""
    content = message["content"]
    kind = content.get("execution_state") or content.get("event") or content.get("status") or ""
    asked = message["parent_header"].get("msg_type", "nothing")
    return f"{channel} {type_of(message)} {kind} to {asked} {parent_of(message)[-4:]}"


@dataclass(frozen=True)
class Execution:
    """What one ``execute_request`` led to: its reply and everything on iopub but its status."""

    reply: Message
    published: tuple[Message, ...]
    input_requests: tuple[Message, ...] = ()

    @property
    def content(self) -> dict[str, Any]:
        content: dict[str, Any] = self.reply["content"]
        return content

    @property
    def status(self) -> str:
        return str(self.content["status"])

    def text(self, name: str = "stdout") -> str:
        """All that was written to one stream."""
        streams = (m["content"] for m in self.published if type_of(m) == "stream")
        return "".join(c["text"] for c in streams if c["name"] == name)

    def of_type(self, *types: str) -> list[Message]:
        return [m for m in self.published if type_of(m) in types]

    def outputs(self) -> list[nbformat.NotebookNode]:
        """The outputs as a front end would write them into the notebook."""
        shown = self.of_type("stream", "display_data", "execute_result", "error")
        return [nbformat.v4.output_from_msg(m) for m in shown]  # type: ignore[no-untyped-call]

    def ok(self) -> Execution:
        """Itself, if the cell succeeded."""
        assert self.status == "ok", f"the cell failed: {self.content}"
        return self


@dataclass
class Wire(ABC):
    """Base class of the two clients; see the module's docstring."""

    backlog: list[Event] = field(default_factory=list, init=False)
    """Messages that came while something else was waited for, oldest first."""

    @abstractmethod
    def send(
        self,
        channel: str,
        msg_type: str,
        content: Mapping[str, Any],
        *,
        parent: Message | None = None,
        header: Mapping[str, Any] | None = None,
    ) -> str:
        """Send a request and return its id. ``header`` adds keys to the message's header."""

    @abstractmethod
    def receive(self, timeout: float) -> Event:
        """The next message on any channel; :class:`TimeoutError` after ``timeout`` seconds."""

    @abstractmethod
    def close(self) -> None:
        """Give up the connection; the kernel stays."""

    def wait_for(
        self, wanted: Callable[[str, Message], bool], what: str, timeout: float = TIMEOUT
    ) -> Event:
        """The first message that is ``wanted``, come or to come; others stay in the backlog."""
        for index, event in enumerate(self.backlog):
            if wanted(*event):
                return self.backlog.pop(index)
        deadline = time.monotonic() + timeout
        while True:
            try:
                event = self.receive(max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                seen = "; ".join(describe(*event) for event in self.backlog)
                raise NothingCame(f"no {what} within {timeout} s; came: {seen}") from None
            if wanted(*event):
                return event
            self.backlog.append(event)

    def wait_until_subscribed(self) -> None:
        """Return when the kernel answers and its iopub reaches this client.

        A subscription takes effect some time after the connection, and what is published before
        is lost without a trace; so is a request that was on its way to a kernel that has just
        been restarted. So ask again until a status arrives with the reply.
        """
        deadline = time.monotonic() + TIMEOUT
        while not self.hears_itself():
            assert time.monotonic() < deadline, "the kernel does not answer"
        self.backlog.clear()

    def hears_itself(self) -> bool:
        """Shell and control answered within seconds, and the answers were seen on iopub too."""
        try:
            for channel in ("shell", "control"):
                asked = self.send(channel, "kernel_info_request", {})
                self.reply_to(asked, channel, timeout=1)
                self.wait_for(_answers(asked), "status on iopub", timeout=1)
        except NothingCame:
            return False
        return True

    def request(
        self,
        channel: str,
        msg_type: str,
        content: Mapping[str, Any] | None = None,
        timeout: float = TIMEOUT,
    ) -> Message:
        """Send a request and return its reply."""
        msg_id = self.send(channel, msg_type, content or {})
        return self.reply_to(msg_id, channel, timeout)

    def reply_to(self, msg_id: str, channel: str = "shell", timeout: float = TIMEOUT) -> Message:
        """The reply to a request that was sent before."""
        return self.wait_for(
            lambda where, message: where == channel and parent_of(message) == msg_id,
            f"reply on {channel}",
            timeout,
        )[1]

    def start(self, code: str, *, subshell: str | None = None, **options: Any) -> str:
        """Ask for an execution and return its id, to be given to :meth:`finish`."""
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": True,
        }
        header = {"subshell_id": subshell} if subshell is not None else None
        return self.send("shell", "execute_request", content | options, header=header)

    def wait_for_text(self, msg_id: str, text: str) -> None:
        """Return when the running cell ``msg_id`` has written ``text``; the message stays."""
        _, message = self.wait_for(
            lambda channel, message: (
                channel == "iopub"
                and parent_of(message) == msg_id
                and type_of(message) == "stream"
                and text in message["content"]["text"]
            ),
            f"{text!r}",
        )
        self.backlog.append(("iopub", message))

    def finish(
        self, msg_id: str, answers: Iterable[str] = (), timeout: float = TIMEOUT
    ) -> Execution:
        """Wait for reply *and* idle of an execution, and answer its questions in turn."""
        left = list(answers)
        reply: Message | None = None
        idle = False
        published: list[Message] = []
        questions: list[Message] = []
        while reply is None or not idle:
            channel, message = self.wait_for(
                lambda _, message: parent_of(message) == msg_id, "rest of the execution"
            )
            if channel == "stdin":
                questions.append(message)
                assert left, f"an unexpected question: {message['content']}"
                self.send("stdin", "input_reply", {"value": left.pop(0)}, parent=message)
            elif channel == "shell":
                reply = message
            elif type_of(message) == "status":
                idle = message["content"]["execution_state"] == "idle"
            else:
                published.append(message)
        assert not left, f"never asked for: {left}"
        return Execution(reply, tuple(published), tuple(questions))

    def execute(self, code: str, answers: Iterable[str] | None = None, **options: Any) -> Execution:
        """Execute a cell. ``answers`` (even empty) says that somebody is there to be asked."""
        msg_id = self.start(code, allow_stdin=answers is not None, **options)
        return self.finish(msg_id, answers or ())


@dataclass
class ZmqWire(Wire):
    """The kernel's own channels, from its connection file. Channels must have been started."""

    client: BlockingKernelClient

    def _channels(self) -> dict[str, Any]:
        names = ("shell", "control", "stdin", "iopub")
        return {name: getattr(self.client, f"{name}_channel") for name in names}

    def send(
        self,
        channel: str,
        msg_type: str,
        content: Mapping[str, Any],
        *,
        parent: Message | None = None,
        header: Mapping[str, Any] | None = None,
    ) -> str:
        message = self.client.session.msg(msg_type, dict(content), parent=parent)
        message["header"].update(header or {})
        self._channels()[channel].send(message)
        return str(message["header"]["msg_id"])

    def receive(self, timeout: float) -> Event:
        poller = zmq.Poller()
        channels = self._channels()
        for channel in channels.values():
            poller.register(channel.socket, zmq.POLLIN)
        ready = {socket for socket, _ in poller.poll(round(timeout * 1000))}
        for name, channel in channels.items():
            if channel.socket in ready:
                _, message = self.client.session.recv(channel.socket)
                return name, message
        raise TimeoutError

    @classmethod
    def open(cls, connection_file: str) -> ZmqWire:
        """Connect one more client to a kernel; ready when the kernel answers on both ways.

        Works in any thread: the client's own ``wait_for_ready`` would bring an event loop along.
        """
        client = BlockingKernelClient(connection_file=connection_file)
        client.load_connection_file()
        client.start_channels()
        wire = cls(client)
        try:
            wire.wait_until_subscribed()
        except BaseException:
            wire.close()
            raise
        return wire

    def close(self) -> None:
        self.client.stop_channels()


@dataclass
class WebsocketWire(Wire):
    """``/api/kernels/…/channels`` with the binary protocol that JupyterLab speaks."""

    socket: websocket.WebSocket
    session: Session = field(default_factory=lambda: Session(key=b""))

    SUBPROTOCOL = "v1.kernel.websocket.jupyter.org"

    def send(
        self,
        channel: str,
        msg_type: str,
        content: Mapping[str, Any],
        *,
        parent: Message | None = None,
        header: Mapping[str, Any] | None = None,
    ) -> str:
        message = self.session.msg(msg_type, dict(content), parent=parent)
        message["header"].update(header or {})
        parts = [channel.encode()]
        for key in ("header", "parent_header", "metadata", "content"):
            parts.append(json.dumps(message[key], default=json_default).encode())
        self.socket.send_binary(_join(parts))
        return str(message["header"]["msg_id"])

    def receive(self, timeout: float) -> Event:
        deadline = time.monotonic() + timeout
        opcode = websocket.ABNF.OPCODE_PING
        while opcode in (websocket.ABNF.OPCODE_PING, websocket.ABNF.OPCODE_PONG):
            # the server's pings must not prolong the wait; and 0 would make the socket non-blocking
            self.socket.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                opcode, data = self.socket.recv_data(control_frame=True)
            except websocket.WebSocketTimeoutException:
                raise TimeoutError from None
        assert opcode == websocket.ABNF.OPCODE_BINARY, f"not the binary protocol: {opcode} {data!r}"
        channel, *parts = _split(data)
        keys = ("header", "parent_header", "metadata", "content")
        message: Message = {key: json.loads(part) for key, part in zip(keys, parts, strict=False)}
        message |= {"buffers": parts[4:], "msg_type": message["header"]["msg_type"]}
        return channel.decode(), message

    def close(self) -> None:
        self.socket.close()


def _answers(msg_id: str) -> Callable[[str, Message], bool]:
    return lambda _, message: parent_of(message) == msg_id


def _join(parts: list[bytes]) -> bytes:
    """The frame of the v1 protocol: number of offsets, the offsets, the parts (little endian)."""
    offsets = [8 * (len(parts) + 2)]
    for part in parts:
        offsets.append(offsets[-1] + len(part))
    numbers = [len(offsets), *offsets]
    return b"".join(number.to_bytes(8, "little") for number in numbers) + b"".join(parts)


def _split(data: bytes) -> list[bytes]:
    """The parts of a v1 frame: the channel, header, parent, metadata, content, buffers."""
    count = int.from_bytes(data[:8], "little")
    offsets = [int.from_bytes(data[8 * i : 8 * i + 8], "little") for i in range(1, count + 1)]
    return [data[a:b] for a, b in itertools.pairwise(offsets)]
