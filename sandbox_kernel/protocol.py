"""What a client (the provisioner or the foreground command), the launcher and a supervisor say.

Two sockets. On the *launcher's* socket the client says :class:`Start`, and hands over one end of a
new packet socket, the *lifeline*; and :class:`Bound`, of a sandbox that it took from its pool. The
launcher forks a supervisor and forgets: it never reads a request, so no child of it inherits
another kernel's key. On the lifeline the client sends one :class:`LaunchRequest`; the supervisor
answers :class:`Accepted`, then :class:`Started` or :class:`Failed`, later maybe :class:`Notice`, at
last :class:`Exited`. One for the pool says :class:`Waits` before it starts, and wants a
:class:`Bind`. The client may send :class:`Signal` and :class:`Kill`, which have no answer, and
:class:`Pause`, :class:`Resume`, :class:`Update` and :class:`GetUsage`. Each of these has a number
of the client's and gets one answer with it, in their order: :class:`Done`, :class:`Refused` or
:class:`Usage`. There is none if the kernel ends first.
The end of the lifeline is the end of the sandbox, whoever closed it and however it died.

Every message is a frozen dataclass with plain fields; :data:`VERSION` is in each request.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from signal import NSIG
from typing import Any, Final

from .engine.cgroups import CgroupUsage, usage_from_dict, usage_to_dict
from .errors import ProtocolError, SandboxError, from_dict
from .spec import SandboxSpec, spec_from_dict

VERSION: Final = 3


@dataclass(frozen=True)
class Start:
    """Client → launcher, with the supervisor's end of the lifeline."""

    def to_message(self) -> dict[str, Any]:
        return {"type": "start", "version": VERSION}


@dataclass(frozen=True)
class Bound:
    """Client → launcher: a sandbox of the pool is a client's now, who has this connection file. Of
    any other the supervisor tells it before it is locked down."""

    supervisor_pid: int
    connection_file: str

    def to_message(self) -> dict[str, Any]:
        return {
            "type": "bound",
            "supervisor_pid": self.supervisor_pid,
            "connection_file": self.connection_file,
        }


@dataclass(frozen=True)
class LaunchRequest:
    """Client → supervisor: everything about one sandbox."""

    sandbox_id: str
    """Letters, digits and ``-``; names the cgroup."""
    spec: SandboxSpec
    connection: Mapping[str, Any] = field(repr=False)
    """The client's connection info: plain JSON types, with the key as text."""
    cwd: str
    environment: Mapping[str, str] = field(repr=False)
    """Already filtered by the client: what is here reaches the kernel."""
    connection_file: str | None = None
    """Removed by the supervisor if the client dies without an orderly end."""
    arguments: tuple[str, ...] = ()
    """Further command-line arguments of the ipykernel."""
    buses: tuple[str, ...] = ()
    """D-Bus addresses of the user's systemd, for a scope that the caps may need."""
    waits: bool = False
    """It is for the pool: the sandbox waits for a :class:`Bind`. The connection's key is nobody's,
    and ``connection_file`` only says in which folder that of the client will be."""
    previous: Exited | None = None
    """How the kernel ended in whose place this one is started, if nobody had asked for its end."""

    def to_message(self) -> dict[str, Any]:
        return {
            "type": "launch",
            "version": VERSION,
            "sandbox_id": self.sandbox_id,
            "spec": self.spec.to_dict(),
            "connection": dict(self.connection),
            "cwd": self.cwd,
            "environment": dict(self.environment),
            "connection_file": self.connection_file,
            "arguments": list(self.arguments),
            "buses": list(self.buses),
            "waits": self.waits,
            "previous": None if self.previous is None else self.previous.to_message(),
        }

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> LaunchRequest:
        """Called by the supervisor."""
        if message.get("type") != "launch" or message.get("version") != VERSION:
            raise ProtocolError(
                f"a request of type {message.get('type')!r}, version {message.get('version')!r}",
                cause=f"this launcher speaks version {VERSION}; two installations are mixed",
            )
        return cls(
            sandbox_id=str(message["sandbox_id"]),
            spec=spec_from_dict(message["spec"]),
            connection=message["connection"],
            cwd=str(message["cwd"]),
            environment={str(k): str(v) for k, v in message["environment"].items()},
            connection_file=message["connection_file"],
            arguments=tuple(str(a) for a in message["arguments"]),
            buses=tuple(str(b) for b in message["buses"]),
            waits=message["waits"] is True,
            previous=None if (p := message["previous"]) is None else Exited.from_message(p),
        )


@dataclass(frozen=True)
class Accepted:
    """Supervisor → client, with its own pidfd: it has the request and begins to build."""

    supervisor_pid: int

    def to_message(self) -> dict[str, Any]:
        return {"type": "accepted", "supervisor_pid": self.supervisor_pid}


@dataclass(frozen=True)
class Started:
    """Supervisor → client: the kernel has bound its channels, the proxy is connected."""

    supervisor_pid: int
    init_pid: int
    """Host pid of the sandbox's pid 1."""
    connection: Mapping[str, Any] = field(repr=False)
    """The connection info with the ports that are really bound."""
    warnings: tuple[str, ...] = ()
    landlock_abi: int = 0

    def to_message(self) -> dict[str, Any]:
        return {
            "type": "started",
            "supervisor_pid": self.supervisor_pid,
            "init_pid": self.init_pid,
            "connection": dict(self.connection),
            "warnings": list(self.warnings),
            "landlock_abi": self.landlock_abi,
        }


@dataclass(frozen=True)
class Failed:
    """Supervisor → client: the sandbox was not built, nothing is left of it."""

    error: SandboxError

    def to_message(self) -> dict[str, Any]:
        return {"type": "failed", "error": self.error.to_dict()}


@dataclass(frozen=True)
class Notice:
    """Supervisor → client: a line for the log."""

    text: str

    def to_message(self) -> dict[str, Any]:
        return {"type": "notice", "text": self.text}


@dataclass(frozen=True)
class Exited:
    """Supervisor → client, after the frontend was told: how the kernel ended."""

    returncode: int
    """As ``subprocess`` has it: the exit status, or minus the signal."""
    reason: str
    """One sentence for a person."""
    cause: str = ""
    """The ``ename`` of the error that the notebook shows, such as ``MemoryCapExceeded``;
    ``KernelKilled`` is an end that was asked for, and none of them one that is not known."""

    def to_message(self) -> dict[str, Any]:
        return {
            "type": "exited",
            "returncode": self.returncode,
            "reason": self.reason,
            "cause": self.cause,
        }

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Exited:
        return cls(int(message["returncode"]), str(message["reason"]), str(message["cause"]))

    def __str__(self) -> str:
        return f"{self.cause}: {self.reason}" if self.cause else self.reason


@dataclass(frozen=True)
class Waits:
    """Supervisor → client: the kernel is up and waits for a :class:`Bind`."""

    def to_message(self) -> dict[str, Any]:
        return {"type": "waits"}


#: What of a connection info a sandbox can be given when its endpoints are bound already.
SECRETS: Final = frozenset({"key", "signature_scheme", "curve_publickey", "curve_secretkey"})


@dataclass(frozen=True)
class Bind:
    """Client → supervisor: the sandbox that waits is for this client now, once and for all.

    Answered by :class:`Started` or :class:`Failed`.
    """

    secrets: Mapping[str, str] = field(repr=False)
    """Of the client's connection info: those of :data:`SECRETS` that it has."""
    environment: Mapping[str, str] = field(repr=False)
    """As in :class:`LaunchRequest`."""
    connection_file: str | None = None
    """In the folder that the request named."""
    kernel: str = ""
    """What the ``sandbox_id`` would have been; for the audit log."""

    def to_message(self) -> dict[str, Any]:
        return {
            "type": "bind",
            "secrets": dict(self.secrets),
            "environment": dict(self.environment),
            "connection_file": self.connection_file,
            "kernel": self.kernel,
        }

    @classmethod
    def from_message(cls, message: Mapping[str, Any]) -> Bind:
        path = message["connection_file"]
        return cls(
            secrets={k: str(v) for k, v in message["secrets"].items() if k in SECRETS},
            environment={str(k): str(v) for k, v in message["environment"].items()},
            connection_file=None if path is None else str(path),
            kernel=str(message["kernel"]),
        )


@dataclass(frozen=True)
class Signal:
    """Client → supervisor: a signal for the kernel's process group."""

    number: int

    def to_message(self) -> dict[str, Any]:
        return {"type": "signal", "number": self.number}


@dataclass(frozen=True)
class Kill:
    """Client → supervisor: end the sandbox now."""

    def to_message(self) -> dict[str, Any]:
        return {"type": "kill"}


@dataclass(frozen=True)
class Pause:
    """Client → supervisor: stop every process of the kernel until :class:`Resume`."""

    request: int

    def to_message(self) -> dict[str, Any]:
        return {"type": "pause", "request": self.request}


@dataclass(frozen=True)
class Resume:
    """Client → supervisor: let them run on. Done too where nothing was paused."""

    request: int

    def to_message(self) -> dict[str, Any]:
        return {"type": "resume", "request": self.request}


@dataclass(frozen=True)
class Update:
    """Client → supervisor: other caps for the kernel that runs."""

    request: int
    caps: Mapping[str, Any]
    """As a kernelspec spells them, ``user`` among them. The supervisor parses them: what is no cap
    is :class:`Refused`."""

    def to_message(self) -> dict[str, Any]:
        return {"type": "update", "request": self.request, "caps": dict(self.caps)}


@dataclass(frozen=True)
class GetUsage:
    """Client → supervisor: what does the kernel use? Answered by :class:`Usage`."""

    request: int

    def to_message(self) -> dict[str, Any]:
        return {"type": "get_usage", "request": self.request}


@dataclass(frozen=True)
class Done:
    """Supervisor → client: it is so now."""

    request: int

    def to_message(self) -> dict[str, Any]:
        return {"type": "done", "request": self.request}


@dataclass(frozen=True)
class Refused:
    """Supervisor → client: nothing was changed, and why."""

    request: int
    error: SandboxError

    def to_message(self) -> dict[str, Any]:
        return {"type": "refused", "request": self.request, "error": self.error.to_dict()}


@dataclass(frozen=True)
class Usage:
    """Supervisor → client: what the cgroup of the kernel accounted just now."""

    request: int
    usage: CgroupUsage

    def to_message(self) -> dict[str, Any]:
        usage = usage_to_dict(self.usage)
        return {"type": "usage", "request": self.request, "usage": usage}


Ask = Pause | Resume | Update | GetUsage
"""What has an answer."""
Answer = Done | Refused | Usage
FromSupervisor = Accepted | Waits | Started | Failed | Notice | Exited | Answer
FromClient = Bind | Signal | Kill | Ask


def parse_from_supervisor(message: Mapping[str, Any]) -> FromSupervisor:
    """Called by the client for each message on the lifeline."""
    try:
        match message["type"]:
            case "accepted":
                return Accepted(int(message["supervisor_pid"]))
            case "started":
                return Started(
                    supervisor_pid=int(message["supervisor_pid"]),
                    init_pid=int(message["init_pid"]),
                    connection=dict(message["connection"]),
                    warnings=tuple(str(w) for w in message["warnings"]),
                    landlock_abi=int(message["landlock_abi"]),
                )
            case "waits":
                return Waits()
            case "failed":
                return Failed(from_dict(message["error"]))
            case "notice":
                return Notice(str(message["text"]))
            case "exited":
                return Exited.from_message(message)
            case "done":
                return Done(_request(message))
            case "refused":
                return Refused(_request(message), from_dict(message["error"]))
            case "usage":
                return Usage(_request(message), usage_from_dict(message["usage"]))
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise ProtocolError("a message of the supervisor is malformed") from error
    raise ProtocolError(f"the supervisor said {message['type']!r}, which is not in the protocol")


def parse_from_client(message: Mapping[str, Any]) -> FromClient:
    """Called by the supervisor for each message after the request."""
    try:
        match message["type"]:
            case "bind":
                return Bind.from_message(message)
            case "signal":
                return Signal(_signal_number(message["number"]))
            case "kill":
                return Kill()
            case "pause":
                return Pause(_request(message))
            case "resume":
                return Resume(_request(message))
            case "update":
                return Update(_request(message), _caps(message.get("caps")))
            case "get_usage":
                return GetUsage(_request(message))
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise ProtocolError("a message of the client is malformed") from error
    raise ProtocolError(f"the client said {message['type']!r}, which is not in the protocol")


def _request(message: Mapping[str, Any]) -> int:
    """The client's number of what it asked."""
    value = message.get("request")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**63:
        raise ProtocolError(f"request = {value!r} is no number of a request")
    return value


def _caps(value: object) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ProtocolError(f"caps = {value!r} is no table of caps")
    return dict(value)


def _signal_number(value: object) -> int:
    """A number that ``kill`` takes; anything else would end the sandbox's init."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < NSIG:
        raise ProtocolError(f"{value!r} is no signal number")
    return value
