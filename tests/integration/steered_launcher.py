"""A launcher whose sandboxes fail, or are held to be killed, at one step of set-up.

Run as a script: ``steered_launcher.py SOCKET --socket FD``. At its first step each supervisor asks
the test that listens at ``SOCKET`` what is to happen and where, see :mod:`integration.steering`.
The connection is descriptor 0, the only one that a supervisor, a stage and an init have in common
and leave open. What would be on the server's standard error is in ``SOCKET.log``. Production code
has no such switch.
"""

from __future__ import annotations

import os
import socket
import sys

from sandbox_kernel import launcher
from sandbox_kernel.engine.steps import Step, observe
from sandbox_kernel.errors import SetupError

_order = ""


def _observe(step: Step) -> None:
    """Called in whichever process is about to do ``step``; who is forked later knows the order."""
    global _order
    if step is Step.REQUEST:
        os.write(0, b"what")
        _order = os.read(0, 64).decode()
    where, _, action = _order.partition(" ")
    if where != step.name:
        return
    match action:
        case "raise":
            raise SetupError(f"a failure injected at: {step.value}")
        case "crash":
            raise RuntimeError(f"a defect injected at: {step.value}")
        case "kill" | "kill-launcher":
            os.write(0, action.encode())
            os.read(0, 64)  # a SIGKILL comes, or the word to go on
        case _:
            raise ValueError(action)


if __name__ == "__main__":
    steer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    steer.connect(sys.argv[1])
    os.dup2(steer.fileno(), 0)
    os.dup2(os.open(f"{sys.argv[1]}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    observe(_observe)
    sys.exit(launcher.main(sys.argv[2:]))
