"""Give up every privilege, in an order that can be given up only once.

After :func:`become` the process is the kernel's id; after :func:`drop_all` it has no capability in
any set, cannot get one back by ``execve`` and keeps no key of the session it came from.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import PrivilegeError, describe_errno
from ..syscalls import (
    CapabilityBit,
    Prctl,
    SecureBit,
    SyscallError,
    capget,
    capset,
    clear_ambient,
    join_session_keyring,
    prctl,
)

#: Locked: uid 0 means nothing, a change of ids changes no capability, none can be raised again.
_SECURE_BITS: Final = (
    SecureBit.NOROOT
    | SecureBit.NOROOT_LOCKED
    | SecureBit.NO_SETUID_FIXUP
    | SecureBit.NO_SETUID_FIXUP_LOCKED
    | SecureBit.KEEP_CAPS_LOCKED
    | SecureBit.NO_CAP_AMBIENT_RAISE
    | SecureBit.NO_CAP_AMBIENT_RAISE_LOCKED
)


@dataclass(frozen=True)
class ObservedPrivileges:
    """What /proc/PID/status says, not what was asked for."""

    capabilities: int
    """The union of the inheritable, permitted, effective, bounding and ambient sets."""
    no_new_privs: bool
    seccomp: int
    """2 is a filter."""


def become(uid: int, gid: int, *, drop_groups: bool) -> None:
    """Take the ids ``uid`` and ``gid`` (inside), keeping the capabilities for now.

    ``drop_groups`` is false where the map was written without help: the kernel then forbids
    ``setgroups``, and supplementary groups stay, unmapped and without a name.
    """
    try:
        prctl(Prctl.SET_SECUREBITS, int(SecureBit.NO_SETUID_FIXUP))
        if drop_groups:
            os.setgroups([])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise PrivilegeError(
            f"the ids {uid}:{gid} could not be taken", cause=describe_errno(error.errno or 0)
        ) from error


def forget_keys() -> None:
    """A new, empty session keyring: no key of the user's login is reachable."""
    try:
        join_session_keyring()
    except SyscallError as error:
        raise PrivilegeError(
            "a new session keyring could not be joined", cause=describe_errno(error.errno or 0)
        ) from error


def drop_all(keep: Iterable[CapabilityBit] = ()) -> None:
    """No capability in any set but ``keep`` (effective and permitted only), and no_new_privs.

    A new user namespace fills the bounding set again, so it is emptied here, once more.
    """
    try:
        clear_ambient()
        for capability in range(last_capability() + 1):
            if prctl(Prctl.CAPBSET_READ, capability):
                prctl(Prctl.CAPBSET_DROP, capability)
        prctl(Prctl.SET_SECUREBITS, int(_SECURE_BITS))
        prctl(Prctl.SET_NO_NEW_PRIVS, 1)
        mask = sum(1 << int(capability) for capability in keep) & capget()[1]
        capset(effective=mask, permitted=mask, inheritable=0)
    except SyscallError as error:
        raise PrivilegeError(
            "a privilege could not be given up",
            cause=f"{error.syscall}: {describe_errno(error.errno or 0)}",
        ) from error


def last_capability(path: Path = Path("/proc/sys/kernel/cap_last_cap")) -> int:
    """The highest capability that this kernel has; without /proc the largest there can be."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return _probe_last_capability()


def _probe_last_capability() -> int:
    for capability in range(64):
        try:
            prctl(Prctl.CAPBSET_READ, capability)
        except SyscallError:
            return capability - 1
    return 63


def observe_privileges(status: Path = Path("/proc/self/status")) -> ObservedPrivileges:
    """Read what this process really has.

    Raises:
        PrivilegeError: the file cannot be read or lacks a line; then nothing was proven.
    """
    try:
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        union = 0
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            union |= int(lines[name], 16)
        return ObservedPrivileges(union, lines["NoNewPrivs"].strip() == "1", int(lines["Seccomp"]))
    except (OSError, KeyError, ValueError) as error:
        raise PrivilegeError(
            "what this process may do could not be read", cause=str(error), path=str(status)
        ) from error
