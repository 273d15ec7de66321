"""libseccomp, typed and thin: a filter context, names to numbers, the export.

:mod:`sandbox_kernel.engine.seccomp` is the only caller. The library is opened on the first
:func:`open_library` and not at import, so that its absence is the caller's error to explain and
everything else of this package works without it. Every function of libseccomp that can fail
returns a negative errno; :func:`_check` turns it into a :class:`LibseccompError`.
"""

from __future__ import annotations

import functools
import importlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, Protocol, cast

SONAME: Final = "libseccomp.so.2"

#: The kernel's AUDIT_ARCH values, which libseccomp takes as its tokens.
ARCH_X86_64: Final = 0xC000003E
ARCH_AARCH64: Final = 0xC00000B7

ACT_ALLOW: Final = 0x7FFF0000
ACT_KILL_PROCESS: Final = 0x80000000
ACT_ERRNO: Final = 0x00050000
"""With the errno in the low 16 bits."""

_ATTR_ACT_BADARCH: Final = 2
_ATTR_OPTIMIZE: Final = 8
_OPTIMIZE_BINARY_TREE: Final = 2
_CMP_MASKED_EQ: Final = 7
_NAME_UNKNOWN: Final = -1


class MaskedEqual(NamedTuple):
    """``args[arg] & mask == value``: the one comparison we use, see the engine for why."""

    arg: int
    mask: int
    value: int


class Library(Protocol):
    """What ``_seccomp_build.py`` declares."""

    def seccomp_version(self) -> Any: ...
    def seccomp_init(self, def_action: int) -> Any: ...
    def seccomp_release(self, ctx: Any) -> None: ...
    def seccomp_arch_native(self) -> int: ...
    def seccomp_arch_add(self, ctx: Any, arch_token: int) -> int: ...
    def seccomp_arch_remove(self, ctx: Any, arch_token: int) -> int: ...
    def seccomp_attr_set(self, ctx: Any, attr: int, value: int) -> int: ...
    def seccomp_syscall_resolve_name_arch(self, arch_token: int, name: bytes) -> int: ...
    def seccomp_syscall_resolve_num_arch(self, arch_token: int, num: int) -> Any: ...
    def seccomp_rule_add_array(
        self, ctx: Any, action: int, syscall: int, arg_cnt: int, arg_array: Any
    ) -> int: ...
    def seccomp_export_bpf(self, ctx: Any, fd: int) -> int: ...
    def free(self, memory: Any) -> None: ...


class _Interface(Protocol):
    """The part of cffi's ``ffi`` that this module uses."""

    NULL: Any

    def dlopen(self, name: str) -> Any: ...
    def new(self, cdecl: str, init: Any) -> Any: ...
    def string(self, cdata: Any) -> bytes: ...


class LibseccompError(OSError):
    """A function of libseccomp failed: ``errno`` and ``function``, its name."""

    def __init__(self, number: int, function: str) -> None:
        super().__init__(number, os.strerror(number))
        self.function = function

    def __str__(self) -> str:
        return f"{self.function}: {self.strerror}"


class Filter:
    """One filter context, see :meth:`Seccomp.filter`. Rules go in, a program comes out."""

    def __init__(self, seccomp: Seccomp, ctx: Any, arch: int) -> None:
        self._seccomp = seccomp
        self._ctx = ctx
        self.arch = arch

    def add(self, action: int, number: int, conditions: Sequence[MaskedEqual] = ()) -> None:
        """One rule: ``action`` for ``number`` (native numbering) when all conditions hold.

        Raises:
            LibseccompError: EACCES when ``action`` is the default action anyway, EFAULT when the
                filter is for a foreign architecture and libseccomp has no name for ``number``.
        """
        rows = [(c.arg, _CMP_MASKED_EQ, c.mask, c.value) for c in conditions]
        array = self._seccomp.ffi.new("struct scmp_arg_cmp[]", rows)
        lib = self._seccomp.lib
        rc = lib.seccomp_rule_add_array(self._ctx, action, number, len(rows), array)
        _check(rc, f"seccomp_rule_add_array({number})")

    def export(self) -> bytes:
        """The program: an array of ``struct sock_filter``, 8 bytes each."""
        fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            _check(self._seccomp.lib.seccomp_export_bpf(self._ctx, fd), "seccomp_export_bpf")
            file.seek(0)
            return file.read()


class Seccomp:
    """The opened library."""

    def __init__(self, lib: Library, ffi: _Interface) -> None:
        self.lib = lib
        self.ffi = ffi

    def version(self) -> tuple[int, int, int]:
        """Such as ``(2, 5, 4)``."""
        version = self.lib.seccomp_version()
        return int(version.major), int(version.minor), int(version.micro)

    def native_arch(self) -> int:
        """The token of the architecture that this process runs on."""
        return int(self.lib.seccomp_arch_native())

    def number(self, arch: int, name: str) -> int | None:
        """The number of ``name`` on ``arch``; ``None`` when this libseccomp has not heard of it.

        Negative (below -1) when the architecture has no such system call.
        """
        number = int(self.lib.seccomp_syscall_resolve_name_arch(arch, name.encode()))
        return None if number == _NAME_UNKNOWN else number

    def name(self, arch: int, number: int) -> str | None:
        """The name of ``number`` on ``arch``, or ``None``."""
        text = self.lib.seccomp_syscall_resolve_num_arch(arch, number)
        if text == self.ffi.NULL:
            return None
        try:
            return self.ffi.string(text).decode()
        finally:
            self.lib.free(text)

    @contextmanager
    def filter(self, *, default: int, foreign: int, arch: int) -> Iterator[Filter]:
        """A context for one architecture: ``default`` for what no rule names, ``foreign`` for
        calls through any other architecture's entry (and for x32 numbers on x86_64).

        Raises:
            LibseccompError: an action that this Linux kernel does not know, no memory.
        """
        ctx = self.lib.seccomp_init(default)
        if ctx == self.ffi.NULL:
            # the only two reasons: no memory, or an action that libseccomp does not accept
            _check(-22, "seccomp_init")
        try:
            set_attr = self.lib.seccomp_attr_set
            _check(set_attr(ctx, _ATTR_ACT_BADARCH, foreign), "seccomp_attr_set(ACT_BADARCH)")
            _check(
                set_attr(ctx, _ATTR_OPTIMIZE, _OPTIMIZE_BINARY_TREE), "seccomp_attr_set(OPTIMIZE)"
            )
            if arch != self.native_arch():
                _check(self.lib.seccomp_arch_add(ctx, arch), "seccomp_arch_add")
                _check(self.lib.seccomp_arch_remove(ctx, self.native_arch()), "seccomp_arch_remove")
            yield Filter(self, ctx, arch)
        finally:
            self.lib.seccomp_release(ctx)


@functools.cache
def open_library() -> Seccomp:
    """libseccomp, opened once in a process.

    Raises:
        ImportError: ``_seccomp_abi`` was not generated: the installation is broken.
        OSError: the dynamic loader's own words about :data:`SONAME`. Not cached: a library
            that is installed meanwhile is found.
    """
    ffi = importlib.import_module("sandbox_kernel.syscalls._seccomp_abi").ffi
    return Seccomp(cast(Library, ffi.dlopen(SONAME)), cast(_Interface, ffi))


def _check(rc: int, function: str) -> None:
    if rc < 0:
        raise LibseccompError(-rc, function)
