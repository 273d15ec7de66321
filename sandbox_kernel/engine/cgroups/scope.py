"""A scope that the user's systemd delegates: for who runs in a session or a plain service.

All supervisors of a user share one, ``sandbox-kernel.scope``, whichever server started them, so
that the user's total holds for all of them. They are in its leaf ``supervisors``, the kernels'
leaves beside it: on cgroup v2 no process may be in a directory that hands down controllers.
systemd removes the scope with all that is in it when the last process has gone.

Source: systemd's org.freedesktop.systemd1(5). ``AttachProcessesToUnit`` is there since systemd
236; where the user's systemd lacks the right to move a process, it asks that of the system.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jeepney import DBusAddress, MatchRule, Message, message_bus, new_method_call
from jeepney.bus import parse_addresses

from ...errors import CgroupError, describe_errno
from .dbus import Connection, Refused
from .interface import SCOPE_LEAF, SCOPE_UNIT

_SYSTEMD: Final = "org.freedesktop.systemd1"
_MANAGER: Final = DBusAddress(
    "/org/freedesktop/systemd1", bus_name=_SYSTEMD, interface=f"{_SYSTEMD}.Manager"
)
#: How a socket is called on which systemd itself listens, with no bus between.
_PRIVATE: Final = "/systemd/private"
#: The scope may end, or somebody else may make it, between two calls.
_TRIES: Final = 5
#: Seconds for one that exists and takes nobody: it is beginning or ending.
_CHANGE_SECONDS: Final = 2.0
#: Error names that an ending or beginning scope, or none at all, answers with.
_NOT_THERE: Final = frozenset(
    {
        f"{_SYSTEMD}.NoSuchUnit",
        f"{_SYSTEMD}.ScopeNotRunning",
        "org.freedesktop.DBus.Error.InvalidArgs",  # "Unit is not active, refusing."
    }
)
#: The scope has no such leaf yet.
_NO_FILE: Final = "org.freedesktop.DBus.Error.FileNotFound"
_EXISTS: Final = f"{_SYSTEMD}.UnitExists"
#: What a bus says on which no systemd is.
_NO_SYSTEMD: Final = frozenset(
    f"org.freedesktop.DBus.Error.{name}"
    for name in ("ServiceUnknown", "NameHasNoOwner", "Disconnected", "Spawn.ChildExited")
)


@dataclass(frozen=True)
class UserScope:
    """How to get into the scope; :func:`.create` does it, before anything is made."""

    buses: tuple[str, ...]
    """D-Bus addresses on which the user's systemd may be, in the order in which they are tried."""
    seconds: float = 20.0
    """After which it is given up."""

    def enter(self) -> None:
        """Move this process into the scope, which is made if need be.

        It is in the leaf ``supervisors`` then, or in the scope itself where that has no leaf yet.

        Raises:
            CgroupError: there is no systemd of this user, it refused, or said nothing in time.
        """
        deadline = time.monotonic() + self.seconds
        tried: list[str] = []
        for bus in self.buses:
            for path in _sockets(bus):
                try:
                    with Connection(path, deadline) as connection:
                        _join(_Manager(connection, direct=path.endswith(_PRIVATE)))
                    return
                except TimeoutError as error:
                    raise _failed(f"{bus} said nothing for {self.seconds:g} seconds") from error
                except OSError as error:
                    reason = describe_errno(error.errno) if error.errno else str(error)
                    tried.append(f"{bus}: {reason}")
                except Refused as error:
                    if error.name not in _NO_SYSTEMD:
                        raise _failed(f"the user's systemd refused: {error}") from error
                    tried.append(f"{bus}: {error}")
        if self.buses:
            why = ", ".join(tried) or f"no socket in {', '.join(self.buses)}"
            raise _failed(f"the user's systemd cannot be reached ({why})")
        raise _failed(
            "the user's systemd cannot be reached (XDG_RUNTIME_DIR and DBUS_SESSION_BUS_ADDRESS "
            "are not set)",
            f"set XDG_RUNTIME_DIR=/run/user/{os.getuid()} for the server"
            if Path(f"/run/user/{os.getuid()}/systemd").is_dir()
            else None,
        )


class _Manager:
    """The calls to systemd that are needed here."""

    def __init__(self, connection: Connection, *, direct: bool) -> None:
        self.connection = connection
        self.direct = direct
        if not direct:
            connection.call(message_bus.Hello())

    def subscribe(self) -> None:
        """Have the signals of jobs and units sent."""
        if not self.direct:
            rule = MatchRule(type="signal", sender=_SYSTEMD, interface=_MANAGER.interface)
            self.connection.call(message_bus.AddMatch(rule))
        self._call("Subscribe")

    def start(self) -> None:
        """Make the scope with the caller in it; returns when it is there."""
        job = self._call("StartTransientUnit", "ssa(sv)a(sa(sv))", _transient_unit())[0]
        ended = self.connection.wait(lambda name, body: name == "JobRemoved" and body[1] == job)
        if (result := ended[3]) != "done":
            raise Refused(f"{_SYSTEMD}.Job", f"the start of {SCOPE_UNIT} ended with {result!r}")

    def attach(self, leaf: str) -> None:
        """Move the caller into the scope. 0 is who sends this, in whatever pid namespace it is."""
        self._call("AttachProcessesToUnit", "ssau", (SCOPE_UNIT, leaf, [0]))

    def wait_for_change(self) -> None:
        """Until the scope has begun or is gone, or some seconds."""
        until = time.monotonic() + _CHANGE_SECONDS
        if until < self.connection.deadline:
            with contextlib.suppress(TimeoutError):
                self.connection.wait(_is_change, until)
        else:
            self.connection.wait(_is_change)

    def _call(self, method: str, signature: str | None = None, body: Any = ()) -> tuple[Any, ...]:
        message: Message = new_method_call(_MANAGER, method, signature, body)
        return self.connection.call(message)


def _join(manager: _Manager) -> None:
    """The scope may be there or not, and come or go at any time."""
    subscribed = False
    for _ in range(_TRIES):
        try:
            return _attach(manager)
        except Refused as error:
            if error.name not in _NOT_THERE:
                raise
            refused = error
        if not subscribed:
            manager.subscribe()
            subscribed = True
        try:
            return manager.start()
        except Refused as error:
            if error.name != _EXISTS:
                raise
            manager.wait_for_change()
    raise refused


def _attach(manager: _Manager) -> None:
    """To the leaf. Who began the scope makes it, and only then may hand controllers down."""
    try:
        manager.attach("/" + SCOPE_LEAF)
    except Refused as error:
        if error.name != _NO_FILE:
            raise
    else:
        return
    try:
        manager.attach("")
    except Refused as error:
        if error.name in _NOT_THERE:
            raise
        manager.attach("/" + SCOPE_LEAF)  # made meanwhile


def _transient_unit() -> tuple[Any, ...]:
    """The arguments of StartTransientUnit. ``fail``: never end a job that somebody else began."""
    properties = [
        ("Description", ("s", "Sandboxed Jupyter kernels")),
        ("Slice", ("s", "app.slice")),
        ("PIDs", ("au", [0])),  # who sends this
        ("Delegate", ("b", True)),
        ("CollectMode", ("s", "inactive-or-failed")),
    ]
    return SCOPE_UNIT, "fail", properties, []


def _is_change(member: str, body: tuple[Any, ...]) -> bool:
    unit = {"JobRemoved": 2, "UnitRemoved": 0}.get(member)
    return unit is not None and body[unit] == SCOPE_UNIT


def _sockets(bus: str) -> Iterator[str]:
    """The unix sockets that a D-Bus address names; none if it cannot be read."""
    with contextlib.suppress(ValueError, KeyError):
        for transport, parts in parse_addresses(bus):
            if transport == "unix" and "path" in parts:
                yield parts["path"]
            elif transport == "unix" and "abstract" in parts:
                yield "\0" + parts["abstract"]


def _failed(cause: str, remedy: str | None = None) -> CgroupError:
    return CgroupError(f"{SCOPE_UNIT} could not be entered", cause=cause, remedy=remedy)
