"""The compiled library, typed by a Protocol: mypy sees every call that crosses into C."""

from __future__ import annotations

from typing import Any, Protocol, cast

from ..errors import PlatformError


class Library(Protocol):
    """What ``_build.py`` declares. Every function returns -1 with errno set on failure."""

    def sk_unshare(self, flags: int) -> int: ...
    def sk_setns(self, fd: int, nstype: int) -> int: ...
    def sk_mount(
        self, source: bytes, target: bytes, fstype: bytes, flags: int, data: bytes | Any
    ) -> int: ...
    def sk_umount2(self, target: bytes, flags: int) -> int: ...
    def sk_pivot_root(self, new_root: bytes, put_old: bytes) -> int: ...
    def sk_sethostname(self, name: bytes, length: int) -> int: ...
    def sk_prctl(self, option: int, arg2: int, arg3: int, arg4: int, arg5: int) -> int: ...
    def sk_capset(self, effective: int, permitted: int, inheritable: int) -> int: ...
    def sk_capget(self, effective: Any, permitted: Any, inheritable: Any) -> int: ...
    def sk_open_tree(self, dirfd: int, path: bytes, flags: int) -> int: ...
    def sk_move_mount(
        self, from_dirfd: int, from_path: bytes, to_dirfd: int, to_path: bytes, flags: int
    ) -> int: ...
    def sk_mount_setattr(
        self,
        dirfd: int,
        path: bytes,
        flags: int,
        attr_set: int,
        attr_clr: int,
        propagation: int,
        userns_fd: int,
    ) -> int: ...
    def sk_openat2(self, dirfd: int, path: bytes, flags: int, mode: int, resolve: int) -> int: ...
    def sk_join_session_keyring(self) -> int: ...
    def sk_seccomp_set_mode_filter(self, filters: Any, count: int) -> int: ...
    def sk_landlock_create_ruleset(
        self, fs: int, net: int, scoped: int, size: int, flags: int
    ) -> int: ...
    def sk_landlock_abi(self) -> int: ...
    def sk_landlock_add_path(self, ruleset: int, access: int, parent: int) -> int: ...
    def sk_landlock_restrict_self(self, ruleset: int, flags: int) -> int: ...
    def sk_close_range(self, first: int, last: int, flags: int) -> int: ...


class Interface(Protocol):
    """The part of cffi's ``ffi`` that this room uses."""

    errno: int
    NULL: Any

    def new(self, cdecl: str, init: Any = None) -> Any: ...
    def from_buffer(self, cdecl: str, buffer: bytes) -> Any: ...


try:
    from . import _lib
except ImportError as error:  # pragma: no cover - a broken installation
    raise PlatformError(
        "the compiled module sandbox_kernel.syscalls._lib cannot be loaded",
        cause=str(error),
        remedy="install sandbox-kernel from a wheel, or build it with a C compiler on Linux",
    ) from error

lib: Library = cast(Library, _lib.lib)
ffi: Interface = cast(Interface, _lib.ffi)


def constant(name: str) -> int:
    """The compiler's value of a C constant that ``_build.py`` lists."""
    return int(getattr(_lib.lib, name))
