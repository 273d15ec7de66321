"""Processes: forks that never return twice, statuses, descriptors, limits."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from ..syscalls import Prctl, close_range, prctl

#: (resource, limit) of the kernel and all its children; what cgroups do not bound.
KERNEL_RLIMITS: Final[tuple[tuple[int, int], ...]] = (
    (resource.RLIMIT_MEMLOCK, 64 * 1024 * 1024),
    (resource.RLIMIT_MSGQUEUE, 819_200),
    (resource.RLIMIT_SIGPENDING, 4_096),
    (resource.RLIMIT_NOFILE, 65_536),
    (resource.RLIMIT_RTPRIO, 0),
)


@dataclass(frozen=True)
class ExitStatus:
    """How a process ended: an exit ``code``, or the ``signal`` that killed it."""

    code: int | None = None
    signal: int | None = None

    @classmethod
    def from_wait(cls, status: int) -> ExitStatus:
        """From the status word of ``waitpid``."""
        if os.WIFSIGNALED(status):
            return cls(signal=os.WTERMSIG(status))
        return cls(code=os.WEXITSTATUS(status))

    @property
    def returncode(self) -> int:
        """As ``subprocess`` has it: the code, or minus the signal."""
        if self.signal is not None:
            return -self.signal
        return self.code if self.code is not None else 255

    def describe(self) -> str:
        """For a person."""
        if self.signal is not None:
            try:
                return f"killed by {signal.Signals(self.signal).name}"
            except ValueError:
                return f"killed by signal {self.signal}"
        return f"exited with status {self.code}"


def fork_into(run: Callable[[], int]) -> int:
    """Fork a child that runs ``run`` and exits with its result; the child's pid in the parent.

    The child never unwinds into the caller's frames: no ``finally`` of the parent runs twice.
    """
    pid = os.fork()
    if pid == 0:
        code = 255
        try:
            code = run()
        except BaseException:  # a traceback is all that can be left; the parent sees the status
            with contextlib.suppress(BaseException):
                import traceback

                traceback.print_exc()
        finally:
            os._exit(code)
    return pid


class Beside:
    """``run`` in a thread of its own, for what would only wait for its turn otherwise."""

    def __init__(self, run: Callable[[], object]) -> None:
        self._run = run
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._call, daemon=True)
        self._thread.start()

    def _call(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self._error = error

    def finish(self) -> None:
        """Wait for its end; what it raised is raised here."""
        self._thread.join()
        if self._error is not None:
            raise self._error


def adopt_orphans() -> None:
    """From now on what descends from this process and loses its parent becomes its child."""
    prctl(Prctl.SET_CHILD_SUBREAPER, 1)


def children() -> list[int]:
    """Of the calling thread, zombies included. None is given to another until it is waited for."""
    try:
        return [int(pid) for pid in Path("/proc/thread-self/children").read_text().split()]
    except OSError:  # the system was built without this file
        return []


def end_children(but: Collection[int]) -> None:
    """SIGKILL to every child, and to those that this process then adopts, but for ``but``."""
    while pids := [pid for pid in children() if pid not in but]:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def ended_children() -> Iterator[tuple[int, ExitStatus]]:
    """Wait for each child that has ended, adopted ones too; never for one that lives."""
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            yield found[0], ExitStatus.from_wait(found[1])


def exit_now(code: int) -> NoReturn:
    """Leave without running what the parent registered."""
    os._exit(code)


def close_all_but(keep: Iterable[int]) -> None:
    """Close every descriptor but ``keep``: nothing of the host survives into the sandbox."""
    first = 0
    for fd in sorted(set(keep)):
        if fd > first:
            close_range(first, fd - 1)
        first = fd + 1
    close_range(first)


def default_signals() -> None:
    """Undo every handler and mask that a parent left: an ignored SIGCHLD would lose statuses."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_IGN)  # as the interpreter itself starts
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def apply_rlimits(wanted: Sequence[tuple[str, int]] = ()) -> None:
    """Bound what cgroups do not, for this process and its children; never raises a limit.

    ``wanted`` are further limits by name, such as ``("nofile", 1024)``; of two the lower one holds.
    """
    own = [(getattr(resource, f"RLIMIT_{name.upper()}"), value) for name, value in wanted]
    forbid_core_files()
    for kind, value in (*KERNEL_RLIMITS, *own):
        if kind == resource.RLIMIT_CORE:
            continue  # there is none already
        soft, hard = resource.getrlimit(kind)
        lower = value if hard == resource.RLIM_INFINITY else min(value, hard)
        keep_soft = lower if soft == resource.RLIM_INFINITY else min(soft, lower)
        resource.setrlimit(kind, (keep_soft, lower))


def limit_memory(size: int) -> None:
    """Private writable memory of this process, in bytes: what it may be made to hold by others."""
    resource.setrlimit(resource.RLIMIT_DATA, (size, size))


def forbid_core_files() -> None:
    """No core dump of this process and its children, into a file or into a program of the host.

    Where ``core_pattern`` is a pipe Linux starts its program, as the host's root, whatever the
    limit is: also with 0. With 1 alone it does not (the mark of a program that handles a dump and
    crashes itself), and a file of one byte is less than any dump, so 1 forbids both. A hard limit
    that is 0 already stays.
    """
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    limit = 1 if hard == resource.RLIM_INFINITY else min(hard, 1)
    resource.setrlimit(resource.RLIMIT_CORE, (limit, limit))


def no_core_dump() -> None:
    """For the launcher, and for who holds the connection key: no dump at all, and no /proc/PID/mem
    or ptrace by other processes of the user."""
    forbid_core_files()
    prctl(Prctl.SET_DUMPABLE, 0)


def die_with_parent() -> None:
    """A second wall beside the end-of-file on a pipe: SIGKILL when the parent thread dies."""
    prctl(Prctl.SET_PDEATHSIG, signal.SIGKILL)
