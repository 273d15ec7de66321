"""One wrapper a system call. Paths are ``str``; a failure is :class:`SyscallError`."""

from __future__ import annotations

import os
from typing import Final

from ._constants import (
    AT_EMPTY_PATH,
    AT_RECURSIVE,
    PR_CAP_AMBIENT_CLEAR_ALL,
    CloneFlag,
    MountAttr,
    MountFlag,
    MoveMountFlag,
    Prctl,
    Resolve,
    UmountFlag,
)
from ._errors import fail
from ._ffi import ffi, lib

#: ``sizeof(struct sock_filter)``.
_SOCK_FILTER_SIZE: Final = 8
_MS_PROPAGATION: Final = int(MountFlag.SLAVE | MountFlag.PRIVATE)
_MOVE_FROM: Final = int(MoveMountFlag.F_EMPTY_PATH)
_MOVE_FROM_TO: Final = int(MoveMountFlag.F_EMPTY_PATH | MoveMountFlag.T_EMPTY_PATH)


def unshare(flags: CloneFlag) -> None:
    """``unshare(2)``. With ``NEWUSER`` the caller must have one thread only."""
    if lib.sk_unshare(int(flags)) < 0:
        fail(f"unshare({flags.name})")


def malloc_trim() -> None:
    """``malloc_trim(3)``: what was freed goes back to the system. For glibc alone."""
    lib.sk_malloc_trim()


def setns(fd: int, nstype: CloneFlag) -> None:
    """``setns(2)`` to the namespace (or, for a pidfd, the namespaces) that ``fd`` refers to."""
    if lib.sk_setns(fd, int(nstype)) < 0:
        fail(f"setns({nstype.name})")


def mount(
    source: str, target: str, fstype: str, flags: MountFlag = MountFlag.NONE, data: str = ""
) -> None:
    """``mount(2)``."""
    options = os.fsencode(data) if data else ffi.NULL
    arguments = os.fsencode(source), os.fsencode(target), fstype.encode()
    if lib.sk_mount(*arguments, int(flags), options) < 0:
        fail(f"mount({fstype})" if fstype else "mount", target)


def umount2(target: str, flags: UmountFlag) -> None:
    """``umount2(2)``."""
    if lib.sk_umount2(os.fsencode(target), int(flags)) < 0:
        fail("umount2", target)


def pivot_root(new_root: str, put_old: str) -> None:
    """``pivot_root(2)``."""
    if lib.sk_pivot_root(os.fsencode(new_root), os.fsencode(put_old)) < 0:
        fail("pivot_root", new_root)


def sethostname(name: str) -> None:
    """``sethostname(2)``."""
    raw = name.encode()
    if lib.sk_sethostname(raw, len(raw)) < 0:
        fail("sethostname")


def prctl(operation: Prctl, arg2: int = 0, arg3: int = 0) -> int:
    """``prctl(2)``: the result, which is not negative."""
    result = lib.sk_prctl(int(operation), arg2, arg3, 0, 0)
    if result < 0:
        fail(f"prctl({operation.name})")
    return result


def clear_ambient() -> None:
    """Empty the ambient capability set."""
    prctl(Prctl.CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)


def capset(*, effective: int, permitted: int, inheritable: int) -> None:
    """``capset(2)`` on this thread; each set is a bit mask of ``1 << capability``."""
    if lib.sk_capset(effective, permitted, inheritable) < 0:
        fail("capset")


def capget() -> tuple[int, int, int]:
    """``capget(2)`` of this thread: (effective, permitted, inheritable) bit masks."""
    sets = [ffi.new("uint64_t *") for _ in range(3)]
    if lib.sk_capget(*sets) < 0:
        fail("capget")
    return int(sets[0][0]), int(sets[1][0]), int(sets[2][0])


def open_tree(dirfd: int, path: str, flags: int) -> int:
    """``open_tree(2)``: a descriptor of the mount, detached if ``OPEN_TREE_CLONE`` is set."""
    fd = lib.sk_open_tree(dirfd, os.fsencode(path), int(flags))
    if fd < 0:
        fail("open_tree", path)
    return fd


def move_mount(from_fd: int, to_dirfd: int, to_path: str = "") -> None:
    """``move_mount(2)``: attach the detached mount ``from_fd`` at ``to_path`` below ``to_dirfd``.

    With an empty ``to_path`` the target is ``to_dirfd`` itself: no path is looked up at all.
    """
    flags = _MOVE_FROM if to_path else _MOVE_FROM_TO
    if lib.sk_move_mount(from_fd, b"", to_dirfd, os.fsencode(to_path), flags) < 0:
        fail("move_mount", to_path or f"descriptor {to_dirfd}")


def mount_setattr(
    fd: int,
    *,
    set_: MountAttr = MountAttr.NONE,
    clear: MountAttr = MountAttr.NONE,
    propagation: MountFlag = MountFlag.NONE,
    recursive: bool = False,
    userns_fd: int = 0,
) -> None:
    """``mount_setattr(2)`` on the mount that ``fd`` refers to."""
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    wanted = int(propagation) & _MS_PROPAGATION
    if lib.sk_mount_setattr(fd, b"", flags, int(set_), int(clear), wanted, userns_fd) < 0:
        fail("mount_setattr", f"descriptor {fd}")


def openat2(
    dirfd: int, path: str, flags: int, *, mode: int = 0, resolve: Resolve = Resolve.NONE
) -> int:
    """``openat2(2)``: a descriptor; ``O_CLOEXEC`` is always added."""
    raw = os.fsencode(path)
    fd = lib.sk_openat2(dirfd, raw, flags | os.O_CLOEXEC, mode, int(resolve))
    if fd < 0:
        fail("openat2", path)
    return fd


def join_session_keyring() -> None:
    """``keyctl(KEYCTL_JOIN_SESSION_KEYRING)``: a new anonymous one, nothing inherited."""
    if lib.sk_join_session_keyring() < 0:
        fail("keyctl(JOIN_SESSION_KEYRING)")


def seccomp_set_mode_filter(program: bytes) -> None:
    """``seccomp(SECCOMP_SET_MODE_FILTER)``: ``program`` is an array of ``struct sock_filter``."""
    count, rest = divmod(len(program), _SOCK_FILTER_SIZE)
    if rest or not count:
        raise ValueError("a filter is a whole number of 8-byte instructions")
    if lib.sk_seccomp_set_mode_filter(ffi.from_buffer("char[]", program), count) < 0:
        fail("seccomp")


def landlock_abi() -> int:
    """The ABI version of Landlock, or 0 where this kernel has none or it is turned off."""
    return max(lib.sk_landlock_abi(), 0)


def landlock_create_ruleset(*, fs: int, net: int = 0, scoped: int = 0, abi: int) -> int:
    """``landlock_create_ruleset(2)``: a descriptor. ``abi`` says how much of it is known."""
    size = 8 if abi < 4 else 16 if abi < 6 else 24
    fd = lib.sk_landlock_create_ruleset(fs, net, scoped, size, 0)
    if fd < 0:
        fail("landlock_create_ruleset")
    return fd


def landlock_add_path(ruleset: int, access: int, parent: int) -> None:
    """``landlock_add_rule(2)``: allow ``access`` beneath the O_PATH descriptor ``parent``."""
    if lib.sk_landlock_add_path(ruleset, access, parent) < 0:
        fail("landlock_add_rule")


def landlock_add_port(ruleset: int, access: int, port: int) -> None:
    """``landlock_add_rule(2)``: allow ``access`` to the TCP port ``port``, whatever the address."""
    if lib.sk_landlock_add_port(ruleset, access, port) < 0:
        fail("landlock_add_rule", f"port {port}")


def landlock_restrict_self(ruleset: int) -> None:
    """``landlock_restrict_self(2)``."""
    if lib.sk_landlock_restrict_self(ruleset, 0) < 0:
        fail("landlock_restrict_self")


def close_range(first: int, last: int = 2**32 - 1) -> None:
    """``close_range(2)``, both ends included."""
    if lib.sk_close_range(first, last, 0) < 0:
        fail("close_range")
