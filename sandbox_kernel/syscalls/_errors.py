"""The one failing function of this room."""

from __future__ import annotations

import os
from typing import NoReturn

from ._ffi import ffi


class SyscallError(OSError):
    """A system call failed: ``errno``, ``syscall`` (its kernel name) and ``path`` if it had one."""

    def __init__(self, number: int, syscall: str, path: str | None = None) -> None:
        super().__init__(number, os.strerror(number), path)
        self.syscall = syscall
        self.path = path

    def __str__(self) -> str:
        where = f" on {self.path}" if self.path is not None else ""
        return f"{self.syscall}{where}: {self.strerror}"


def fail(syscall: str, path: str | None = None) -> NoReturn:
    """Raise for the call that just returned -1, from the errno that cffi kept."""
    raise SyscallError(ffi.errno, syscall, path)
