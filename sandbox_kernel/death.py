"""Why a kernel ended, in words for the person who ran the cell. Pure.

The supervisor looks at the exit status and at the cgroup's counters before the cgroup goes, and
tells the frontends before the server can see the death.
"""

from __future__ import annotations

import enum
import signal
from dataclasses import dataclass

from .engine.cgroups import CgroupEvents, CgroupUsage
from .engine.process import ExitStatus
from .spec import GIB, KIB, MIB, Caps


class Cause(enum.Enum):
    """``ename`` of the error that finishes the running cell."""

    MEMORY = "MemoryCapExceeded"
    SYSCALL = "ForbiddenSyscall"
    CRASHED = "KernelCrashed"
    EXITED = "KernelExited"
    KILLED = "KernelKilled"
    LOST = "SandboxLost"


@dataclass(frozen=True)
class Death:
    """``sentence`` is the ``evalue``; ``returncode`` is as ``subprocess`` has it."""

    cause: Cause
    sentence: str
    returncode: int

    def traceback(self) -> list[str]:
        return [f"{self.cause.value}: {self.sentence}"]


def explain(
    status: ExitStatus | None,
    caps: Caps,
    events: CgroupEvents,
    usage: CgroupUsage,
    *,
    on_order: bool,
) -> Death:
    """The death of a kernel that ended with ``status``; ``None`` is: pid 1 went without a word.

    ``on_order`` is true when the client asked for the end.
    """
    if on_order:
        code = status.returncode if status else -signal.SIGKILL
        return Death(Cause.KILLED, "the kernel was ended as asked", code)
    if events.oom_kill and (status is None or status.signal == signal.SIGKILL):
        return _out_of_memory(status, caps, events, usage)
    if status is None:
        return Death(
            Cause.LOST,
            "the sandbox ended without a report: its pid 1 was killed from outside",
            -signal.SIGKILL,
        )
    if status.signal is None:
        return Death(
            Cause.EXITED,
            f"the kernel exited by itself with status {status.code}, as after exit() or os._exit() "
            "in the notebook",
            status.returncode,
        )
    if status.signal == signal.SIGSYS:
        return Death(
            Cause.SYSCALL,
            "the kernel was killed for a system call of a foreign architecture, which the "
            "sandbox's filter forbids",
            status.returncode,
        )
    return Death(
        Cause.CRASHED,
        f"the kernel was {status.describe()}: native code in the notebook crashed, or the "
        "notebook killed it",
        status.returncode,
    )


def _out_of_memory(
    status: ExitStatus | None, caps: Caps, events: CgroupEvents, usage: CgroupUsage
) -> Death:
    code = status.returncode if status else -signal.SIGKILL
    peak = f", peak {human_size(usage.memory_peak)}" if usage.memory_peak else ""
    if events.memory_limit_above and not events.memory_limit:
        text = f"all kernels of this user together used the memory they may use{peak}"
    elif caps.memory is not None:
        text = f"the kernel reached its memory cap of {human_size(caps.memory)}{peak}"
    else:
        text = f"the machine ran out of memory{peak}"
    return Death(Cause.MEMORY, f"{text}; use less data at once or ask for a larger cap", code)


def human_size(size: int) -> str:
    """``1.5 GiB``, ``512 MiB`` …"""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}".replace(".0 ", " ")
    return f"{size} B"
