"""A launcher with an observer: it fails, is killed or hangs, at one step of set-up.

Run as a script by tests: ``fault_launcher.py STEP ACTION --socket FD``. Production code has no such
switch; the observer is put in here, in a process that only tests start.
"""

from __future__ import annotations

import os
import signal
import sys

from sandbox_kernel import launcher
from sandbox_kernel.engine import steps
from sandbox_kernel.errors import SetupError

STEP = steps.Step[sys.argv[1]]
ACTION = sys.argv[2]
LAUNCHER = os.getpid()


def observe(step: steps.Step) -> None:
    """Called in whichever process is about to do ``step``."""
    if step is not STEP:
        return
    match ACTION:
        case "raise":
            raise SetupError(f"a failure injected at: {step.value}")
        case "crash":
            raise RuntimeError(f"a defect injected at: {step.value}")
        case "kill":
            signal_self(signal.SIGKILL)
        case "kill-launcher":
            os.kill(LAUNCHER, signal.SIGKILL)
        case "stop":  # as a process does that waits for a file system that does not answer
            signal_self(signal.SIGSTOP)
        case "hang":  # the same for a sandbox's pid 1, which cannot stop itself
            signal.pause()
        case _:
            raise ValueError(ACTION)


def signal_self(number: signal.Signals) -> None:
    """Through a pidfd: a supervisor that is locked down has no other way."""
    signal.pidfd_send_signal(os.pidfd_open(os.getpid()), number)


if __name__ == "__main__":
    steps.observe(observe)
    sys.exit(launcher.main(sys.argv[3:]))
