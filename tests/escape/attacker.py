"""What an attack needs inside. Its text is installed in every sandbox as this very module.

So it imports the standard library alone, and attacks say ``from escape.attacker import …``. Every
outcome is a word: ``"0"`` for a call that worked, else the name of its errno.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
from collections.abc import Callable
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)


def outcome(call: Callable[..., Any], *arguments: Any, **more: Any) -> str:
    """``"0"``, or the errno of the :class:`OSError` that ``call`` raised."""
    try:
        call(*arguments, **more)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    return "0"


def raw(number: int, *arguments: Any) -> tuple[int, int]:
    """(result, errno) of one system call; an ``int`` is passed as a long."""
    longs = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *longs)
    return result, ctypes.get_errno()


def syscall(number: int, *arguments: Any) -> str:
    """``"0"`` if it worked, whatever it returned, else its errno."""
    result, code = raw(number, *arguments)
    return "0" if result >= 0 else errno.errorcode[code]


def in_child(function: Callable[[], object], seconds: float = 10) -> str:
    """What ``function`` returned in a child, or how the child ended, such as ``"SIGSYS"``.

    A child that is still busy after ``seconds`` is ended by SIGALRM.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, seconds)
            os.write(writer, str(function()).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    if said:
        return said
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status)).name
    return f"exit {os.WEXITSTATUS(status)}"
