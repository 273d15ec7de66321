"""The client's side: one launcher a Python interpreter, one lifeline a sandbox.

Used by the provisioner (inside a server with an event loop and many threads) and by the foreground
command. The server never forks Python: it spawns the launcher by exec, once, and asks it. Nothing
here waits: the provisioner does with its event loop, the foreground command with a poll.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from .death import Cause
from .engine import messages
from .environment import launcher_environment, user_buses
from .errors import ControlError, KernelStartError, ProtocolError, SandboxError, describe_errno
from .protocol import (
    Accepted,
    Ask,
    Bind,
    Bound,
    Done,
    Exited,
    Failed,
    FromClient,
    FromSupervisor,
    Kill,
    LaunchRequest,
    Pause,
    Refused,
    Resume,
    Signal,
    Start,
    Started,
    Usage,
    Waits,
    parse_from_supervisor,
)


class Launcher:
    """A running launcher process of one interpreter. Thread-safe; shared by all kernels."""

    _running: ClassVar[dict[tuple[str, ...], Launcher]] = {}
    _lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, command: tuple[str, ...], environment: Mapping[str, str]) -> None:
        self.socket, theirs = messages.pair()
        self.pid = os.getpid()
        try:
            self.process = subprocess.Popen(
                [*command, "--socket", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=launcher_environment(environment),
                cwd="/",
                start_new_session=True,
            )
        except OSError as error:
            self.socket.close()
            raise KernelStartError(
                "the launcher could not be started",
                cause=describe_errno(error.errno or 0),
                path=command[0],
            ) from error
        finally:
            theirs.close()

    @classmethod
    def get(cls, command: tuple[str, ...], environment: Mapping[str, str]) -> Launcher:
        """The launcher of this process for ``command``, started if none lives."""
        with cls._lock:
            launcher = cls._running.get(command)
            if launcher is None or launcher.pid != os.getpid() or not launcher.lives():
                if launcher is not None:
                    launcher.close()
                launcher = cls(command, environment)
                cls._running[command] = launcher
            return launcher

    def lives(self) -> bool:
        """Has it not ended? Reaps it if it has."""
        return self.process.poll() is None

    def start(self) -> socket.socket:
        """Have a supervisor forked; the client's end of its lifeline.

        Raises:
            OSError: the launcher is gone.
        """
        ours, theirs = messages.pair()
        with theirs:
            try:
                messages.send(self.socket, Start().to_message(), [theirs.fileno()])
            except OSError:
                ours.close()
                raise
        return ours

    @classmethod
    def remember(cls, command: tuple[str, ...], word: Bound) -> None:
        """Tell the launcher for ``command`` what to remove with a sandbox. Nothing, if it died."""
        with cls._lock:
            launcher = cls._running.get(command)
        if launcher is not None:
            with contextlib.suppress(OSError):
                messages.send(launcher.socket, word.to_message())

    def close(self) -> None:
        """Let it end once its kernels have. It ends the same way when this process dies."""
        self.socket.close()

    @classmethod
    def close_all(cls) -> list[Launcher]:
        """Used at the end of the foreground command and by tests: let all launchers end."""
        with cls._lock:
            launchers = list(cls._running.values())
            cls._running.clear()
        for launcher in launchers:
            launcher.close()
        return launchers


def launcher_command(python: str, preload: Sequence[str] = ()) -> tuple[str, ...]:
    """How the launcher of the interpreter ``python`` is run, with modules to import ahead.

    ``sys.path`` loses the working directory before anything is imported: nothing there can stand in
    for what is installed. (``-P`` would do it, but kernels and their children would inherit the
    flag, and IPython then leaves the notebook's folder off the path.) ``frozen_modules=off`` is
    what ipykernel's own kernelspec has, for the debugger.
    """
    program = (
        "import sys; del sys.path[0]; from sandbox_kernel.launcher import main; sys.exit(main())"
    )
    more = ("--preload", ",".join(preload)) if preload else ()
    return (python, "-Xfrozen_modules=off", "-c", program, *more)


class Sandbox:
    """One sandbox, from its request to its exit, over its lifeline."""

    _numbers: ClassVar[Iterator[int]] = itertools.count(1)

    def __init__(self, lifeline: socket.socket) -> None:
        self.lifeline = lifeline
        self.started: Started | None = None
        self.exited: Exited | None = None
        self.supervisor_pid: int | None = None
        """Of the host, as soon as the supervisor has the request."""
        self.waits = False
        """It is of the pool, complete, and nobody's yet."""
        self.paused = False
        """As the supervisor has said."""
        self._asked: dict[int, Ask] = {}
        self._supervisor_pidfd = -1
        lifeline.setblocking(False)

    @classmethod
    def launch(
        cls, request: LaunchRequest, command: tuple[str, ...], environment: Mapping[str, str]
    ) -> Sandbox:
        """Ask for a sandbox. Returns at once; :attr:`started` is set when it runs.

        ``environment`` is the server's own. A launcher that died since it was last used is
        replaced, once.
        """
        request = replace(request, buses=user_buses(environment))
        try:
            lifeline = Launcher.get(command, environment).start()
        except OSError:
            try:
                lifeline = Launcher.get(command, environment).start()
            except OSError as error:
                raise KernelStartError(
                    "the launcher ended while it was being asked",
                    cause=describe_errno(error.errno or 0),
                ) from error
        try:
            with contextlib.suppress(OSError):  # who closed it may have said why: take() tells
                messages.send(lifeline, request.to_message())
        except BaseException:
            lifeline.close()
            raise
        return cls(lifeline)

    @property
    def pid(self) -> int | None:
        """Host pid of the supervisor, which stands for the sandbox."""
        return self.started.supervisor_pid if self.started else None

    @property
    def returncode(self) -> int | None:
        """``None`` while the kernel runs."""
        return self.exited.returncode if self.exited else None

    def fileno(self) -> int:
        """For a poll: readable when :meth:`take` has something."""
        return self.lifeline.fileno()

    def take(self) -> FromSupervisor | None:
        """The next message if one is there, without waiting. Notices are the caller's to tell.

        Of a supervisor that was killed the launcher says so, after it has cleaned up. The end of
        the lifeline without a word becomes an :class:`Exited` with -9: both were killed.

        Raises:
            SandboxError: the sandbox could not be built, as the supervisor said.
        """
        if self.exited is not None:
            return None
        try:
            received = messages.receive(self.lifeline)
        except BlockingIOError:
            return None
        except ProtocolError:
            self.kill_supervisor()
            received = None
        except OSError:
            received = None
        if received is None:
            return self._lost()
        message, fds = received
        try:
            return self._understand(parse_from_supervisor(message), fds)
        except ProtocolError:  # it was taken over, or two versions are mixed: the sandbox ends
            self.kill_supervisor()
            return self._lost()
        finally:
            for fd in fds:
                os.close(fd)

    def _understand(self, message: FromSupervisor, fds: list[int]) -> FromSupervisor:
        """Takes the descriptor that is due out of ``fds``."""
        match message:
            case Accepted() if len(fds) == 1 and self._supervisor_pidfd < 0:
                self._supervisor_pidfd = fds.pop()
                self.supervisor_pid = message.supervisor_pid
            case Started() if self.started is not None:
                raise ProtocolError("a sandbox starts once")
            case Waits():
                self.waits = True
            case Started():
                self.started = message
                self.waits = False
            case Failed():
                cause = Cause.LOST.value if self.started else ""
                self.exited = Exited(1, message.error.message, cause)
                if self.started is None:
                    raise message.error
                return self.exited  # whoever polls a kernel that ran wants its end, no exception
            case Exited() if self.started is None:
                self.exited = message
                raise _not_built(message.reason)
            case Exited():
                self.exited = message
            case Done():
                order = self._asked.pop(message.request, None)
                if isinstance(order, (Pause, Resume)):
                    self.paused = isinstance(order, Pause)
            case Refused() | Usage():
                self._asked.pop(message.request, None)
        return message

    def _lost(self) -> Exited:
        reason = "the supervisor of the sandbox was killed"
        self.exited = Exited(-signal.SIGKILL, reason, Cause.LOST.value)
        if self.started is None:
            cause = "it was killed, or the launcher could not load; the server's log says more"
            raise _not_built(cause)
        return self.exited

    def bind(self, order: Bind) -> None:
        """Make a sandbox of the pool that of one kernel: :attr:`started` is set when it is.

        Raises:
            OSError: it has ended.
            ProtocolError: the environment is too large.
        """
        messages.send(self.lifeline, order.to_message())

    def send(self, order: FromClient) -> None:
        """Send a signal or a kill. Never raises: a sandbox that has ended needs neither."""
        with contextlib.suppress(OSError):
            messages.send(self.lifeline, order.to_message())

    @classmethod
    def number(cls) -> int:
        """For an order that has an answer: no other sandbox of this process uses it again."""
        return next(cls._numbers)

    def ask(self, order: Ask) -> bool:
        """Send what has an answer, which :meth:`take` gives. False: there is no room just now.

        Raises:
            ControlError: the sandbox has ended.
        """
        try:
            messages.send(self.lifeline, order.to_message())
        except BlockingIOError:
            return False
        except OSError as error:
            raise ControlError("the kernel does not run", cause="its sandbox has ended") from error
        self._asked[order.request] = order
        return True

    def signal(self, number: int) -> None:
        """``number`` to the kernel's process group."""
        self.send(Signal(number))

    def kill(self) -> None:
        """End the sandbox now."""
        self.send(Kill())

    def kill_supervisor(self) -> None:
        """When the supervisor does not answer a kill: SIGKILL to it; the sandbox dies with it."""
        if self._supervisor_pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._supervisor_pidfd, signal.SIGKILL)

    def close(self) -> None:
        """Close the lifeline: if the sandbox still lives, it ends. Idempotent.

        Shut down first, so that whoever waits on a duplicate of the descriptor wakes.
        """
        with contextlib.suppress(OSError):
            self.lifeline.shutdown(socket.SHUT_RDWR)
        self.lifeline.close()
        if self._supervisor_pidfd >= 0:
            os.close(self._supervisor_pidfd)
            self._supervisor_pidfd = -1


def _not_built(cause: str) -> KernelStartError:
    return KernelStartError("the supervisor ended while it was building the sandbox", cause=cause)


__all__ = ["Launcher", "Sandbox", "SandboxError", "launcher_command"]
