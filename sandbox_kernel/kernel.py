"""The workload: an ipykernel in a process that was forked from the launcher.

:func:`preload` imports what every kernel needs, once, in the launcher. :func:`run_kernel` runs in
the sandbox, with every wall up. The application object is made after the fork: what ipykernel and
jupyter_client remember of a process (its pid, its parent, its random session) is the child's own.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import multiprocessing.process
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

#: What an ordinary ipykernel has imported by the time it answers its first request. Nothing of the
#: user's own: matplotlib, for one, reads its backend from the environment when it is imported.
PRELOADED: Final = (
    "ipykernel.kernelapp",
    "ipykernel.ipkernel",
    "ipykernel.zmqshell",
    "ipykernel.debugger",
    "ipykernel.subshell_manager",
    "IPython.core.completer",
    "IPython.core.magics",
    "IPython.extensions.storemagic",
    "comm",
    "sqlite3",
    "zmq",
)
_OPTIONAL: Final = frozenset({"ipykernel.debugger", "ipykernel.subshell_manager"})


@dataclass(frozen=True)
class KernelEndpoints:
    """Where the kernel binds, in its own net namespace, and the key that signs its messages."""

    ip: str
    shell_port: int
    iopub_port: int
    stdin_port: int
    control_port: int
    hb_port: int
    key: str = field(repr=False)
    signature_scheme: str = "hmac-sha256"

    def ports(self) -> tuple[int, ...]:
        """All five."""
        return (
            self.shell_port, self.iopub_port, self.stdin_port, self.control_port, self.hb_port
        )  # fmt: skip

    def to_connection_file(self) -> dict[str, Any]:
        return {"transport": "tcp"} | vars(self)


def preload() -> None:
    """Called once by the launcher. Starts no thread, opens no socket, holds no secret."""
    for name in PRELOADED:
        try:
            importlib.import_module(name)
        except ImportError:
            if name not in _OPTIONAL:
                raise


def run_kernel(endpoints: KernelEndpoints, bound: int, arguments: Sequence[str] = ()) -> int:
    """Called in the sandbox's pid 2. Returns the exit status of the kernel.

    ``bound`` is a descriptor; one byte goes there when all five channels are bound, and it is
    closed. ``arguments`` are further command-line arguments of ipykernel.
    """
    from ipykernel.kernelapp import IPKernelApp

    class SandboxedKernelApp(IPKernelApp):
        """An ipykernel that says when it has bound."""

        def init_sockets(self) -> None:
            """Without the warning of plain tcp: these ports are in a net namespace of their own."""
            level = self.log.level
            self.log.setLevel(logging.ERROR)
            super().init_sockets()  # type: ignore[no-untyped-call]
            self.log.setLevel(level)

        def init_heartbeat(self) -> None:
            super().init_heartbeat()  # type: ignore[no-untyped-call]
            os.write(bound, b"1")
            os.close(bound)

    path = _write_connection_file(endpoints)
    _reset_inherited_state()
    status = 0
    try:
        app = SandboxedKernelApp.instance(parent_handle=1)  # the init: there, not to be polled
        app.initialize(["-f", path, *arguments])  # type: ignore[no-untyped-call]
        app.start()  # type: ignore[no-untyped-call]
    except SystemExit as leaving:
        status = _exit_status(leaving)
    finally:
        _run_exit_functions()
    return status


def _write_connection_file(endpoints: KernelEndpoints) -> str:
    folder = os.environ["JUPYTER_RUNTIME_DIR"]
    os.makedirs(folder, mode=0o700, exist_ok=True)
    path = os.path.join(folder, "kernel.json")
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w") as file:
        json.dump(endpoints.to_connection_file(), file)
    return path


def _reset_inherited_state() -> None:
    """What the launcher's interpreter remembers of itself and must not be the kernel's."""
    sys.argv = ["ipykernel_launcher", "-f", "kernel.json"]
    # a child of multiprocessing looks for modules there, and proves itself with the key
    multiprocessing.process.ORIGINAL_DIR = os.getcwd()  # type: ignore[attr-defined]
    multiprocessing.current_process().authkey = os.urandom(32)
    time.tzset()
    sys.path[:] = [path for path in sys.path if path]


def _exit_status(leaving: SystemExit) -> int:
    if leaving.code is None:
        return 0
    return leaving.code if isinstance(leaving.code, int) else 1


def _run_exit_functions() -> None:
    """What the interpreter does at its end; a fork leaves by ``os._exit`` and would skip it."""
    import atexit
    import threading

    with contextlib.suppress(Exception):
        threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
