"""The launcher: a zygote that has imported what an ipykernel needs and forks one a request.

Started by :mod:`.client`, see ``launcher_command`` there, with a bare environment. It has one
thread, holds no secret and reads no request: it receives one end of a lifeline, forks a supervisor
onto it and keeps it only to say how a supervisor died that could not say so itself. It ends when
its client is gone and its last supervisor has ended; a crash of it costs no running kernel.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import select
import signal
import socket
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import leftovers
from .death import of_supervisor
from .engine import cgroups, messages, process
from .errors import ProtocolError, SandboxError
from .leftovers import LEFT_BEHIND, FileId, Leftovers
from .protocol import Exited, Failed

if TYPE_CHECKING:
    from .supervisor import Shared


@dataclass(frozen=True)
class _Child:
    """A supervisor that runs."""

    pid: int
    leftovers: int
    """The pipe on which it wrote down what it made."""
    lifeline: socket.socket
    """Its own end, never read here: to tell the client how it died."""
    files: list[FileId] = field(default_factory=list)
    """What it cannot write down any more: it is locked down."""


def main(arguments: list[str] | None = None) -> int:
    """The process. Its only output is on standard error, for the server's log."""
    parser = argparse.ArgumentParser(prog="sandbox_kernel.launcher")
    parser.add_argument("--socket", type=int, required=True)
    parser.add_argument("--preload", type=lambda names: tuple(names.split(",")), default=())
    options = parser.parse_args(arguments)
    control = socket.socket(fileno=options.socket)
    control.set_inheritable(False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is for the client
    return Launcher(control, options.preload).serve()


class Launcher:
    """One poll loop over the client's socket and SIGCHLD."""

    def __init__(self, control: socket.socket, modules: tuple[str, ...] = ()) -> None:
        self.control = control
        self.modules = modules
        self.children: dict[int, _Child] = {}
        self.client_lives = True
        self.failure: SandboxError | None = None
        self.wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        process.adopt_orphans()
        process.no_core_dump()
        self._try_to_prepare()

    def _try_to_prepare(self) -> None:
        """A failure is said to every client that asks; nothing starts."""
        try:
            self.shared = _prepare(self.modules)
            self.failure = None
        except SandboxError as error:
            self.failure = error

    def serve(self) -> int:
        """Until the client is gone and every supervisor has ended."""
        poller = select.poll()
        poller.register(self.wake_read, select.POLLIN)
        poller.register(self.control, select.POLLIN)
        while self.client_lives or self.children:
            for fd, _ in poller.poll():
                if fd == self.wake_read:
                    self._reap()
                elif not self._from_client():
                    self.client_lives = False
                    poller.unregister(self.control)
                    self.control.close()
        return 0

    def _from_client(self) -> bool:
        """One message; false at the end. A malformed one is answered by closing its lifeline."""
        try:
            received = messages.receive(self.control)
        except ProtocolError as error:
            print(f"sandbox-kernel launcher: {error}", file=sys.stderr)
            return True
        except OSError:
            return False
        if received is None:
            return False
        message, fds = received
        if message["type"] == "bound":
            self._remember(message)
        if message["type"] != "start" or len(fds) != 1:
            for fd in fds:
                os.close(fd)
            return True
        with contextlib.ExitStack() as stack:
            self._start(stack, stack.enter_context(socket.socket(fileno=fds[0])))
        return True

    def _remember(self, message: dict[str, Any]) -> None:
        child = self.children.get(message.get("supervisor_pid", 0))
        found = FileId.of(str(message.get("connection_file")))
        if child is not None and found is not None:
            child.files.append(found)

    def _start(self, stack: contextlib.ExitStack, lifeline: socket.socket) -> None:
        """``stack`` closes the lifeline, unless there is a child that has it."""
        if self.failure is not None:
            self._try_to_prepare()  # what was missing may have been installed since
        if self.failure is not None:
            with contextlib.suppress(OSError):
                messages.send(lifeline, Failed(self.failure).to_message())
            return
        read_end, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        pid = process.fork_into(lambda: self._supervise(lifeline.detach(), write_end))
        os.close(write_end)
        self.children[pid] = _Child(pid, read_end, lifeline)
        stack.pop_all()

    def _supervise(self, lifeline: int, leftovers: int) -> int:
        """In the fork: nothing of the launcher's but the lifeline and the pipe stays open."""
        from .supervisor import run

        signal.set_wakeup_fd(-1)
        process.close_all_but([0, 1, 2, lifeline, leftovers])
        self.control.detach()
        for child in self.children.values():
            child.lifeline.detach()
        self.children.clear()
        return run(socket.socket(fileno=lifeline), Leftovers(leftovers), self.shared)

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self.wake_read, 512):
                pass
        for pid, status in process.ended_children():
            child = self.children.pop(pid, None)
            if child is not None:
                self._end_orphans()
                with child.lifeline:
                    self._clean_up(child, status)
                    _tell(child, status)

    def _end_orphans(self) -> None:
        """What a supervisor that was killed had forked: it may hang where the supervisor hung."""
        for pid in process.children():
            if pid not in self.children:
                os.kill(pid, signal.SIGKILL)

    def _clean_up(self, child: _Child, status: process.ExitStatus) -> None:
        """What the supervisor would have removed itself, had it not been killed."""
        with os.fdopen(child.leftovers, "rb", buffering=0) as pipe:
            raw = pipe.read(65536) or b""
        if status.signal is None and status.code != LEFT_BEHIND and os.getuid() != 0:
            return  # it has cleaned up itself; one of root's is not root any more by then
        if status.signal is not None:
            print(
                f"sandbox-kernel: a supervisor was {status.describe()}; its sandbox ends with it",
                file=sys.stderr,
            )
        for file in (*leftovers.parse(raw), *child.files):
            file.remove()
        swept = cgroups.sweep(os.getuid(), self.shared.cgroup_hint)
        for problem in swept.problems:
            print(f"sandbox-kernel: {problem}", file=sys.stderr)


def _tell(child: _Child, status: process.ExitStatus) -> None:
    """For a supervisor that could not: the client hears what it died of."""
    if status.signal is not None:
        death = of_supervisor(status)
        with contextlib.suppress(OSError):  # the client is gone, or what is unread fills the socket
            word = Exited(death.returncode, death.sentence, death.cause.value).to_message()
            messages.send(child.lifeline, word, flags=socket.MSG_DONTWAIT)


def _prepare(modules: tuple[str, ...]) -> Shared:
    """Everything that is the same for all kernels: imports, filters, packets, what the host has."""
    from .engine import network, rootfs, seccomp
    from .engine.seccomp_supervisor import SUPERVISOR
    from .kernel import preload
    from .supervisor import Shared

    program = seccomp.compile_profile()
    supervisors = seccomp.compile_profile(SUPERVISOR)
    facts = rootfs.collect_facts()
    network.prepare(network.Link())
    preload(modules)
    hint = os.environ.get(cgroups.HINT_VARIABLE)
    cgroups.sweep(os.getuid(), hint)
    gc.collect()
    gc.freeze()
    return Shared(program, supervisors, facts, hint)


if __name__ == "__main__":
    sys.exit(main())
