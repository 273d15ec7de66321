"""Flags as enums, under the kernel's own names, with the compiler's values."""

from __future__ import annotations

import enum
from typing import Final

from ._ffi import constant as _c

AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = _c("AT_EMPTY_PATH")
AT_RECURSIVE: Final = _c("AT_RECURSIVE")
AT_SYMLINK_NOFOLLOW: Final = _c("AT_SYMLINK_NOFOLLOW")


class CloneFlag(enum.IntFlag):
    """Namespaces, for ``unshare`` and ``setns``."""

    NEWNS = _c("CLONE_NEWNS")
    NEWUTS = _c("CLONE_NEWUTS")
    NEWIPC = _c("CLONE_NEWIPC")
    NEWUSER = _c("CLONE_NEWUSER")
    NEWPID = _c("CLONE_NEWPID")
    NEWNET = _c("CLONE_NEWNET")
    NEWCGROUP = _c("CLONE_NEWCGROUP")
    NEWTIME = _c("CLONE_NEWTIME")


class MountFlag(enum.IntFlag):
    """``mount(2)``."""

    NONE = 0
    RDONLY = _c("MS_RDONLY")
    NOSUID = _c("MS_NOSUID")
    NODEV = _c("MS_NODEV")
    NOEXEC = _c("MS_NOEXEC")
    REMOUNT = _c("MS_REMOUNT")
    BIND = _c("MS_BIND")
    REC = _c("MS_REC")
    SLAVE = _c("MS_SLAVE")
    PRIVATE = _c("MS_PRIVATE")


class UmountFlag(enum.IntFlag):
    """``umount2(2)``."""

    DETACH = _c("MNT_DETACH")
    NOFOLLOW = _c("UMOUNT_NOFOLLOW")


class OpenTreeFlag(enum.IntFlag):
    """``open_tree(2)``; the ``AT_`` flags may be or-ed in."""

    CLONE = _c("OPEN_TREE_CLONE")
    CLOEXEC = _c("OPEN_TREE_CLOEXEC")


class MoveMountFlag(enum.IntFlag):
    """``move_mount(2)``."""

    F_EMPTY_PATH = _c("MOVE_MOUNT_F_EMPTY_PATH")
    T_EMPTY_PATH = _c("MOVE_MOUNT_T_EMPTY_PATH")


class MountAttr(enum.IntFlag):
    """``mount_setattr(2)``."""

    NONE = 0
    RDONLY = _c("MOUNT_ATTR_RDONLY")
    NOSUID = _c("MOUNT_ATTR_NOSUID")
    NODEV = _c("MOUNT_ATTR_NODEV")
    NOEXEC = _c("MOUNT_ATTR_NOEXEC")
    IDMAP = _c("MOUNT_ATTR_IDMAP")


class Resolve(enum.IntFlag):
    """``openat2(2)``."""

    NONE = 0
    NO_MAGICLINKS = _c("RESOLVE_NO_MAGICLINKS")
    NO_SYMLINKS = _c("RESOLVE_NO_SYMLINKS")
    BENEATH = _c("RESOLVE_BENEATH")
    IN_ROOT = _c("RESOLVE_IN_ROOT")


class Prctl(enum.IntEnum):
    """``prctl(2)`` operations."""

    SET_PDEATHSIG = _c("PR_SET_PDEATHSIG")
    GET_DUMPABLE = _c("PR_GET_DUMPABLE")
    SET_DUMPABLE = _c("PR_SET_DUMPABLE")
    SET_KEEPCAPS = _c("PR_SET_KEEPCAPS")
    SET_NAME = _c("PR_SET_NAME")
    SET_NO_NEW_PRIVS = _c("PR_SET_NO_NEW_PRIVS")
    GET_NO_NEW_PRIVS = _c("PR_GET_NO_NEW_PRIVS")
    SET_CHILD_SUBREAPER = _c("PR_SET_CHILD_SUBREAPER")
    CAPBSET_DROP = _c("PR_CAPBSET_DROP")
    CAPBSET_READ = _c("PR_CAPBSET_READ")
    SET_SECUREBITS = _c("PR_SET_SECUREBITS")
    CAP_AMBIENT = _c("PR_CAP_AMBIENT")


#: The second argument of ``Prctl.CAP_AMBIENT``.
PR_CAP_AMBIENT_CLEAR_ALL: Final = _c("PR_CAP_AMBIENT_CLEAR_ALL")


class SecureBit(enum.IntFlag):
    """``Prctl.SET_SECUREBITS``."""

    NOROOT = _c("SECBIT_NOROOT")
    NOROOT_LOCKED = _c("SECBIT_NOROOT_LOCKED")
    NO_SETUID_FIXUP = _c("SECBIT_NO_SETUID_FIXUP")
    NO_SETUID_FIXUP_LOCKED = _c("SECBIT_NO_SETUID_FIXUP_LOCKED")
    KEEP_CAPS_LOCKED = _c("SECBIT_KEEP_CAPS_LOCKED")
    NO_CAP_AMBIENT_RAISE = _c("SECBIT_NO_CAP_AMBIENT_RAISE")
    NO_CAP_AMBIENT_RAISE_LOCKED = _c("SECBIT_NO_CAP_AMBIENT_RAISE_LOCKED")


class CapabilityBit(enum.IntEnum):
    """The few capabilities (within an own user namespace) that this package ever holds."""

    KILL = _c("CAP_KILL")
    SETGID = _c("CAP_SETGID")
    SETUID = _c("CAP_SETUID")
    NET_ADMIN = _c("CAP_NET_ADMIN")
    SYS_ADMIN = _c("CAP_SYS_ADMIN")
