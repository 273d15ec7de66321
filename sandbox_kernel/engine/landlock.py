"""Landlock, for the sandbox a second wall behind the mounts and for the supervisor the first one.

*In the sandbox* (:func:`restrict`) everything visible may be read and executed; writing is allowed
beneath the paths that the mount plan made writable, and nowhere else. From ABI 6 on, abstract unix
sockets and signals outside the own domain are refused as well.

*In the supervisor* there are two layers. :func:`keep_signals_inside` comes before the sandbox is
forked, so that the sandbox lies in the same domain: a domain that was entered after could signal
nobody who was there before, and the supervisor has to kill. :func:`prepare` and :func:`enforce`
come last, with what is still needed.

Where the running kernel has no Landlock the other walls stand alone, and each function says so in
its result; where it has one that will not take the rules, nothing starts.
"""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NoReturn

from ..errors import LandlockError, describe_errno
from ..syscalls import (
    SyscallError,
    landlock_abi,
    landlock_add_path,
    landlock_add_port,
    landlock_create_ruleset,
    landlock_restrict_self,
)


class Access(enum.IntFlag):
    """``LANDLOCK_ACCESS_FS_*``, with the ABI that brought each."""

    EXECUTE = 1 << 0
    WRITE_FILE = 1 << 1
    READ_FILE = 1 << 2
    READ_DIR = 1 << 3
    REMOVE_DIR = 1 << 4
    REMOVE_FILE = 1 << 5
    MAKE_CHAR = 1 << 6
    MAKE_DIR = 1 << 7
    MAKE_REG = 1 << 8
    MAKE_SOCK = 1 << 9
    MAKE_FIFO = 1 << 10
    MAKE_BLOCK = 1 << 11
    MAKE_SYM = 1 << 12
    REFER = 1 << 13
    TRUNCATE = 1 << 14
    IOCTL_DEV = 1 << 15


_NEWER: Final = {Access.REFER: 2, Access.TRUNCATE: 3, Access.IOCTL_DEV: 5}
_READ: Final = Access.EXECUTE | Access.READ_FILE | Access.READ_DIR
#: Not granted anywhere: no device node can be made.
_NEVER: Final = Access.MAKE_CHAR | Access.MAKE_BLOCK
#: What makes sense on something that is not a directory; the kernel refuses the rest with EINVAL.
_ON_FILES: Final = int(
    Access.EXECUTE | Access.WRITE_FILE | Access.READ_FILE | Access.TRUNCATE | Access.IOCTL_DEV
)
#: ``LANDLOCK_SCOPE_*``, both since ABI 6.
_SCOPE_ABSTRACT: Final = 1
_SCOPE_SIGNAL: Final = 2
_SCOPE_ABI: Final = 6
#: ``LANDLOCK_ACCESS_NET_*``, both since ABI 4.
_BIND_TCP: Final = 1
_CONNECT_TCP: Final = 2
_NET_ABI: Final = 4


@dataclass(frozen=True)
class Grant:
    """What :func:`prepare` leaves allowed at ``path``, and beneath it if that is a directory."""

    path: str
    access: Access


def handled(abi: int) -> Access:
    """Every access that the running kernel can refuse."""
    access = Access(0)
    for right in Access:
        if _NEWER.get(right, 1) <= abi:
            access |= right
    return access


def restrict(writable: Iterable[str]) -> int:
    """Restrict this process and its children; the ABI in force, 0 where there is no Landlock.

    Called after the last mount, with no_new_privs set. ``writable`` are paths inside; one that
    does not exist is skipped, since nothing can be written there.

    Raises:
        LandlockError: the kernel has Landlock and refused the rules.
    """
    abi = landlock_abi()
    if abi == 0:
        return 0
    everything = handled(abi)
    scoped = _SCOPE_ABSTRACT | _SCOPE_SIGNAL if abi >= _SCOPE_ABI else 0
    try:
        ruleset = landlock_create_ruleset(fs=int(everything), scoped=scoped, abi=abi)
        try:
            _allow(ruleset, "/", int(_READ & everything))
            for path in writable:
                _allow(ruleset, path, int(everything & ~_NEVER))
            landlock_restrict_self(ruleset)
        finally:
            os.close(ruleset)
    except SyscallError as error:
        _refused(error)
    return abi


def keep_signals_inside() -> bool:
    """No signal from this process to one that it does not fork from now on; false below ABI 6.

    Nothing else is restricted: a domain that handles no file forbids no mount.

    Raises:
        LandlockError: the kernel has that scope and refused it.
    """
    abi = landlock_abi()
    if abi < _SCOPE_ABI:
        return False
    try:
        ruleset = landlock_create_ruleset(fs=0, scoped=_SCOPE_SIGNAL, abi=abi)
        try:
            landlock_restrict_self(ruleset)
        finally:
            os.close(ruleset)
    except SyscallError as error:
        _refused(error)
    return True


def prepare(grants: Iterable[Grant], *, connect: Iterable[int]) -> int | None:
    """A ruleset that allows ``grants``, TCP to the ports ``connect``, and nothing else.

    Called while the paths can still be looked up; what is not there is left out. The result is a
    descriptor for :func:`enforce`, ``None`` where there is no Landlock. Unix sockets with a path
    are not covered by any ABI up to 7: the caller's filter has to refuse new sockets.

    Raises:
        LandlockError: the kernel has Landlock and refused a rule.
    """
    abi = landlock_abi()
    if abi == 0:
        return None
    everything = handled(abi)
    mask = int(everything)  # what two flags of an enum make costs as much as the system call
    net = _BIND_TCP | _CONNECT_TCP if abi >= _NET_ABI else 0
    scoped = _SCOPE_ABSTRACT if abi >= _SCOPE_ABI else 0
    try:
        ruleset = landlock_create_ruleset(fs=int(everything), net=net, scoped=scoped, abi=abi)
        try:
            for grant in grants:
                _allow(ruleset, grant.path, int(grant.access) & mask)
            for port in connect if net else ():
                landlock_add_port(ruleset, _CONNECT_TCP, port)
        except BaseException:
            os.close(ruleset)
            raise
    except SyscallError as error:
        _refused(error)
    return ruleset


def enforce(ruleset: int | None) -> None:
    """Put this process behind what :func:`prepare` made, with no_new_privs set. No way back."""
    if ruleset is None:
        return
    try:
        landlock_restrict_self(ruleset)
    except SyscallError as error:
        _refused(error)
    finally:
        os.close(ruleset)


def _refused(error: SyscallError) -> NoReturn:
    raise LandlockError(
        "the kernel has Landlock but did not take the rules",
        cause=f"{error.syscall}: {describe_errno(error.errno or 0)}",
    ) from error


def _allow(ruleset: int, path: str, access: int) -> None:
    try:
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    try:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            access &= _ON_FILES
        if access:  # the kernel refuses a rule that allows nothing
            landlock_add_path(ruleset, access, fd)
    finally:
        os.close(fd)
