"""Every exception that this package raises on purpose.

::

    SandboxError
    ├── SpecError           the spec is wrong: key, value, what is allowed (also a ValueError)
    ├── SetupError          a wall or a cap could not be built; the kernel does not start
    │   ├── PlatformError       this operating system, kernel or library cannot do it at all
    │   ├── NamespaceError      a namespace was refused
    │   ├── IdMapError          uid_map, gid_map, newuidmap
    │   ├── MountError          the root file system
    │   ├── NetworkError        veth, addresses, loopback
    │   ├── CgroupError         a cap that was asked for has no controller to hold it
    │   ├── PrivilegeError      capabilities, no_new_privs, ids
    │   ├── FilterError         seccomp, libseccomp
    │   ├── LandlockError       the second wall
    │   ├── ChannelError        an endpoint could not be bound or reached
    │   ├── AuditError          what runs cannot be written down
    │   └── KernelStartError    the walls stand, but the kernel inside did not come up
    ├── ControlError        a kernel was to be paused, changed or asked, and none runs
    └── ProtocolError       the other process said something that is not in the protocol

A message has the order *fact, cause, remedy, path*: lower case, naming the file and the value,
never a bare errno, and never a remedy for a cause that was not detected.

Exceptions do not cross a process border as pickles: :meth:`SandboxError.to_dict` and
:func:`from_dict` carry the fields instead.
"""

from __future__ import annotations

import os
from typing import Any, ClassVar


class SandboxError(Exception):
    """Base class: anything that sandbox-kernel says went wrong."""

    def __init__(
        self,
        fact: str,
        *,
        cause: str | None = None,
        remedy: str | None = None,
        path: str | None = None,
    ) -> None:
        self.fact = fact
        self.cause = cause
        self.remedy = remedy
        self.path = path
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """The whole sentence that a person reads."""
        text = self.fact
        if self.path is not None and self.path not in text:
            text += f" ({self.path})"
        if self.cause:
            text += f": {self.cause}"
        if self.remedy:
            text += f"; remedy: {self.remedy}"
        return text

    def to_dict(self) -> dict[str, Any]:
        """Plain fields for another process, see :func:`from_dict`."""
        return {
            "type": type(self).__name__,
            "fact": self.fact,
            "cause": self.cause,
            "remedy": self.remedy,
            "path": self.path,
        }


class SpecError(SandboxError, ValueError):
    """A key of the spec is unknown, has the wrong type or a value that cannot be.

    Raised before anything is started.
    """

    def __init__(self, key: str, value: object, allowed: str) -> None:
        self.key = key
        self.value = value
        self.allowed = allowed
        super().__init__(f"{key} = {_shown(value)} is not possible", cause=f"allowed is {allowed}")

    def to_dict(self) -> dict[str, Any]:
        return {
            "type": "SpecError",
            "key": self.key,
            "value": self.value if isinstance(self.value, (str, int, float)) else repr(self.value),
            "allowed": self.allowed,
        }


def _shown(value: object) -> str:
    try:
        return repr(value)
    except ValueError:  # Python prints no integer of more than 4300 digits
        return f"a value of type {type(value).__name__} that is too long to print"


class SetupError(SandboxError):
    """A wall or a cap could not be built. The kernel does not start."""

    #: what could not be built, for the log and for tests
    wall: ClassVar[str] = "sandbox"


class PlatformError(SetupError):
    """This operating system, Linux kernel or library cannot do it at all."""

    wall = "platform"


class NamespaceError(SetupError):
    """A namespace was refused."""

    wall = "namespace"


class IdMapError(SetupError):
    """uid_map or gid_map could not be written."""

    wall = "id map"


class MountError(SetupError):
    """The root file system could not be built."""

    wall = "mount"


class NetworkError(SetupError):
    """The veth link, an address or the loopback device could not be set up."""

    wall = "network"


class CgroupError(SetupError):
    """A cap was asked for that no writable controller can hold."""

    wall = "cgroup"


class PrivilegeError(SetupError):
    """Capabilities, ids or no_new_privs could not be given up."""

    wall = "privilege"


class FilterError(SetupError):
    """The seccomp filter could not be compiled or loaded."""

    wall = "seccomp"


class LandlockError(SetupError):
    """Landlock is there but would not take the ruleset."""

    wall = "landlock"


class ChannelError(SetupError):
    """An endpoint could not be bound or reached."""

    wall = "channel"


class AuditError(SetupError):
    """The audit log cannot be opened or written. No kernel runs without the one asked for."""

    wall = "audit log"


class KernelStartError(SetupError):
    """The walls stand, but the kernel inside did not come up."""

    wall = "kernel"


class ControlError(SandboxError):
    """A kernel was to be paused, resumed, given other caps or asked, and does not run or answer."""


class ProtocolError(SandboxError):
    """Another process said something that is not in the protocol."""


def describe_errno(number: int) -> str:
    """``EPERM`` and its text, in the words a person can search for."""
    import errno

    name = errno.errorcode.get(number, str(number))
    return f"{os.strerror(number).lower()} ({name})"


def from_dict(fields: dict[str, Any]) -> SandboxError:
    """The exception that :meth:`SandboxError.to_dict` described in another process.

    An unknown type becomes a plain :class:`SetupError`: a failure never turns into a success.
    """
    kind = str(fields.get("type", ""))
    if kind == "SpecError":
        return SpecError(str(fields["key"]), fields["value"], str(fields["allowed"]))
    classes = {cls.__name__: cls for cls in _subclasses(SandboxError)}
    cls = classes.get(kind, SetupError)
    optional = {key: fields.get(key) for key in ("cause", "remedy", "path")}
    return cls(str(fields.get("fact", "unknown failure")), **optional)


def _subclasses(cls: type[SandboxError]) -> list[type[SandboxError]]:
    found = [cls]
    for sub in cls.__subclasses__():
        if sub is not SpecError:
            found += _subclasses(sub)
    return found
