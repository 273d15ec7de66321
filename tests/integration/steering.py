"""The test's side of ``steered_launcher.py``: what goes wrong next, at which step, and to whom.

A process that is to be killed says so and waits. Its message carries the kernel's word of who sent
it, so this side gets the host's pid even of a sandbox's pid 1, which could not kill itself.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.remains import PATIENCE, close_launchers

from sandbox_kernel.client import Launcher
from sandbox_kernel.engine.steps import Step
from sandbox_kernel.provisioner import SandboxProvisioner

_CREDENTIALS = struct.Struct("3i")


class Steering:
    """One order at a time, for every sandbox that starts from then on."""

    def __init__(self, folder: Path) -> None:
        script = Path(__file__).with_name("steered_launcher.py")
        self.command = (
            sys.executable, "-Xfrozen_modules=off", str(script), str(folder / "steer"),
        )  # fmt: skip
        self.log = folder / "steer.log"
        """Standard error of the launcher and of all that it forked."""
        self.order = "go on"
        self.reached: list[int] = []
        """Host pids of the processes that came to the step and were held there."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.bind(self.command[-1])
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def at(self, step: Step, action: str) -> None:
        """``raise``, ``crash``, ``kill`` or ``kill-launcher`` at ``step``."""
        self.order = f"{step.name} {action}"
        self.reached.clear()
        self.log.write_text("")

    def go_on(self) -> None:
        """The next starts are ordinary."""
        self.order = "go on"

    @property
    def launcher(self) -> Launcher:
        """The one that runs, or ran last."""
        return Launcher._running[self.command]

    def close(self) -> None:
        """After the launchers have ended."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE)
        self._listener.close()
        os.unlink(self.command[-1])

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # the shutdown
            while True:
                connection, _ = self._listener.accept()
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
                with connection, contextlib.suppress(ConnectionError):
                    while self._answer(connection):
                        pass

    def _answer(self, connection: socket.socket) -> bool:
        """One message of a process of a launcher; false when all of them are gone."""
        message, ancillary, _, _ = connection.recvmsg(64, socket.CMSG_SPACE(_CREDENTIALS.size))
        if not message:
            return False
        if message == b"what":
            connection.send(self.order.encode())
            return True
        pid = _CREDENTIALS.unpack(ancillary[0][2])[0]
        self.reached.append(pid)
        if message == b"kill":
            os.kill(pid, signal.SIGKILL)
        else:
            victim = self.launcher.process.pid
            os.kill(victim, signal.SIGKILL)
            os.waitid(os.P_PID, victim, os.WEXITED | os.WNOWAIT)
            connection.send(b"go on")
        return True


@contextlib.contextmanager
def steering(folder: Path) -> Iterator[Steering]:
    """Every start of this process goes through a launcher that obeys."""
    steers = Steering(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SandboxProvisioner, "_launcher_command", steers.command)
        try:
            yield steers
        finally:
            close_launchers()
            steers.close()
