"""Why a kernel ended, in words for the person who ran the cell. Pure.

The supervisor looks at the exit status and at the cgroup's counters before the cgroup goes, and
tells the frontends before the server can see the death.
"""

from __future__ import annotations

import enum
import signal
from dataclasses import dataclass
from typing import Final

from .engine.cgroups import CgroupEvents, CgroupUsage
from .engine.process import ExitStatus
from .spec import GIB, KIB, MIB, Caps

#: What native code dies of that cannot go on.
_FAULTS: Final = (
    signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGTRAP,
)  # fmt: skip
#: abort() where the filter of the supervisor refuses SIGABRT to it: the C library falls into an
#: instruction that is none, SIGSEGV on x86_64 and SIGTRAP on aarch64.
_ABORTED: Final = (signal.SIGABRT, signal.SIGSEGV, signal.SIGTRAP)


class Cause(enum.Enum):
    """``ename`` of the error that finishes the running cell."""

    MEMORY = "MemoryCapExceeded"
    PIDS = "PidsCapExceeded"
    TIME = "TimeCapExceeded"
    SYSCALL = "ForbiddenSyscall"
    CRASHED = "KernelCrashed"
    EXITED = "KernelExited"
    KILLED = "KernelKilled"
    LOST = "SandboxLost"


class TimeCap(enum.Enum):
    """The key of the spec."""

    CELL = "cell_timeout"
    LIFETIME = "lifetime"
    IDLE = "idle_timeout"


@dataclass(frozen=True)
class TimeUp:
    """A kernel was told to end since its time was up."""

    cap: TimeCap
    seconds: float
    """The value of the cap."""
    grace: float = 0.0
    """Seconds that it had after an interrupt and did not use; 0: the interrupt itself ended it."""


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
    user: Caps | None = None,
    time_up: TimeUp | None = None,
    refused: int = 0,
) -> Death:
    """The death of a kernel that ended with ``status``; ``None`` is: pid 1 went without a word.

    ``events`` are those of this kernel's life, with ``oom`` and ``oom_above`` of the last kill
    alone, where they are known. ``on_order`` is true when the client asked for the end. ``user``
    are the caps of all kernels of the user together. ``time_up`` is why the supervisor ended it, if
    it did. ``refused`` counts the processes and threads that the running cell did not get.
    """
    code = status.returncode if status else -signal.SIGKILL
    if on_order:
        return Death(Cause.KILLED, "the kernel was ended as asked", code)
    if time_up is not None:
        return Death(Cause.TIME, out_of_time(time_up), code)
    if events.oom_kill and (status is None or status.signal == signal.SIGKILL):
        return _out_of_memory(status, caps, user or Caps(), events, usage)
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
            code,
        )
    if status.signal == signal.SIGSYS:
        return Death(Cause.SYSCALL, _FORBIDDEN, code)
    if refused and status.signal in _FAULTS and (whose := _pids_cap(caps, user or Caps())):
        return Death(Cause.PIDS, _out_of_pids(status, whose, refused), code)
    return Death(
        Cause.CRASHED,
        f"the kernel was {status.describe()}: native code in the notebook crashed, or the "
        "notebook killed it",
        code,
    )


def of_supervisor(status: ExitStatus) -> Death:
    """The death of a supervisor that was killed, and of its sandbox with it.

    Where libzmq gets no memory it aborts.
    """
    sentence = f"the supervisor of the sandbox was {status.describe()}"
    if status.signal in _ABORTED:
        sentence += ", as when what passes through it needs more memory than it may use"
    return Death(Cause.LOST, f"{sentence}; the kernel ended with it", status.returncode)


#: Which one it was Linux tells nobody but its own log, and who may read that.
_FORBIDDEN: Final = (
    "the kernel was killed by SIGSYS: it made a system call in the way of another architecture "
    "(32-bit, or x32), which the sandbox's filter forbids, or it sent itself that signal; if it "
    "was a call, the host's log has its number: as root, journalctl -k --grep sig=31"
)


def out_of_time(up: TimeUp) -> str:
    """The sentence for a kernel that was ended by a time cap."""
    cap = f"{up.cap.value} of {human_time(up.seconds)}"
    match up.cap:
        case TimeCap.CELL:
            end = (
                f"did not end within {human_time(up.grace)} of an interrupt"
                if up.grace
                else "its kernel did not outlive the interrupt"
            )
            return (
                f"the cell ran longer than its {cap} and {end}; split its work or ask for a "
                "longer time"
            )
        case TimeCap.LIFETIME:
            return f"the kernel has reached its {cap}; start it anew to go on"
        case TimeCap.IDLE:
            return f"the kernel was not used for its {cap}; start it anew to go on"


def _pids_cap(caps: Caps, user: Caps) -> str:
    """Empty if there is none. Before Linux 6.11 nothing tells which of two it was."""
    own = f"its cap of {caps.pids}" if caps.pids is not None else ""
    both = f"the cap of {user.pids} for all kernels of this user" if user.pids is not None else ""
    return " or ".join(filter(None, (own, both)))


def _out_of_pids(status: ExitStatus, cap: str, refused: int) -> str:
    what = "a process or thread was" if refused == 1 else f"{refused} processes or threads were"
    return (
        f"the kernel was {status.describe()} in a cell in which {what} refused for {cap}, and "
        "native code often does not survive that; start fewer at once or ask for a larger cap"
    )


def _out_of_memory(
    status: ExitStatus | None, caps: Caps, user: Caps, events: CgroupEvents, usage: CgroupUsage
) -> Death:
    code = status.returncode if status else -signal.SIGKILL
    text = _memory_cause(caps, user, events, usage)
    return Death(Cause.MEMORY, f"{text}; use less data at once or ask for a larger cap", code)


def _memory_cause(caps: Caps, user: Caps, events: CgroupEvents, usage: CgroupUsage) -> str:
    """Whose cap it was, and the peak of this kernel."""
    peak = f", peak {human_size(usage.memory_peak)}" if usage.memory_peak else ""
    if _is_above(events):
        cap = f" ({human_size(user.memory)})" if user.memory is not None else ""
        return f"all kernels of this user together used the memory they may use{cap}{peak}"
    if caps.memory is not None:
        return f"the kernel reached its memory cap of {human_size(caps.memory)}{peak}"
    return f"the machine ran out of memory{peak}"


def _is_above(events: CgroupEvents) -> bool:
    """Was it the limit of the user, and not of the kernel?

    What counts is at whose limit somebody *had* to be killed. Where that is not known: a limit is
    reached often before, and each time something could be reclaimed.
    """
    if events.oom or events.oom_above:
        return bool(events.oom_above)
    return bool(events.memory_limit_above and not events.memory_limit)


def tell(
    events: CgroupEvents, caps: Caps, usage: CgroupUsage, *, user: Caps | None = None
) -> list[str]:
    """Lines for the log about what has just happened to a kernel that lives on, maybe."""
    lines = []
    if events.oom_kill:
        processes = "a process was" if events.oom_kill == 1 else f"{events.oom_kill} processes were"
        lines.append(f"{processes} killed: {_memory_cause(caps, user or Caps(), events, usage)}")
    if events.pids_limit and caps.pids is not None:
        lines.append(f"a new process or thread was refused: the cap is {caps.pids}")
    if events.memory_high and caps.memory_high is not None:
        lines.append(f"slowed down: it uses more than memory_high, {human_size(caps.memory_high)}")
    return lines


def human_size(size: int) -> str:
    """``1.5 GiB``, ``512 MiB`` …"""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size >= unit:
            return f"{size / unit:.1f} {name}".replace(".0 ", " ")
    return f"{size} B"


def human_time(seconds: float) -> str:
    """``90 seconds``, ``1 minute``, ``1.5 hours`` …: the largest unit that shows it exactly."""
    for unit, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        count = round(seconds / unit, 1)
        if count >= 1 and count * unit == seconds:
            return f"{count:g} {name}{'' if count == 1 else 's'}"
    return f"{seconds:g} second{'' if seconds == 1 else 's'}"
