"""The workload: an ipykernel, in a fork of the launcher or as a program of its own.

:func:`preload` imports what every kernel needs, once, in the launcher. :func:`run_kernel` runs in
the sandbox, with every wall up. The application object is made after the fork: what ipykernel and
jupyter_client remember of a process (its pid, its parent, its random session) is the child's own.
:func:`execute_kernel` replaces the fork by a new interpreter, which does the same in :func:`main`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import multiprocessing.process
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from .binding import Channels
from .errors import KernelStartError

#: What an ordinary ipykernel has imported by the time it answers its first request. Nothing of the
#: user's own: matplotlib, for one, reads its backend from the environment when it is imported.
PRELOADED: Final = (
    "ipykernel.kernelapp",
    "ipykernel.ipkernel",
    "ipykernel.zmqshell",
    "ipykernel.debugger",
    "ipykernel.subshell_manager",
    "IPython.core.completer",
    "IPython.core.completerlib",
    "IPython.core.debugger",
    "IPython.core.magics",
    "IPython.core.oinspect",
    "IPython.extensions.storemagic",
    "comm",
    "faulthandler",
    "pdb",
    "sqlite3",
    "tornado.platform.asyncio",
    "zmq",
    f"{__package__}.application",
    f"{__package__}.magics",
)
_OPTIONAL: Final = frozenset({"ipykernel.debugger", "ipykernel.subshell_manager"})


#: IPython's own, and ``%sandbox``. No configuration of the user's takes them away.
EXTENSIONS: Final = ("storemagic", f"{__package__}.magics")


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


def preload(modules: Sequence[str] = ()) -> None:
    """Called once by the launcher, with what the spec asks for besides. Holds no secret.

    Raises:
        KernelStartError: one of ``modules`` cannot be imported.
    """
    for name in PRELOADED:
        try:
            importlib.import_module(name)
        except ImportError:
            if name not in _OPTIONAL:
                raise
    importlib.import_module(f"{__package__}.shell").prepare()
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:
            raise KernelStartError(
                f"the module {name} cannot be preloaded", cause=f"{type(error).__name__}: {error}"
            ) from error


def run_kernel(
    endpoints: KernelEndpoints, channels: Channels, arguments: Sequence[str] = ()
) -> int:
    """Called in the sandbox's pid 2. Returns the exit status of the kernel.

    ``arguments`` are further command-line arguments of ipykernel.
    """
    return _run(_write_connection_file(endpoints), channels, arguments)


def execute_kernel(
    endpoints: KernelEndpoints, channels: Channels, arguments: Sequence[str] = ()
) -> NoReturn:
    """As :func:`run_kernel`, in a new program: a memory layout and a hash seed of its own.

    Raises:
        OSError: the interpreter cannot be executed.
    """
    path = _write_connection_file(endpoints)
    for fd in channels.descriptors():
        os.set_inheritable(fd, True)
    # as ipykernel_launcher: nothing in the working directory stands in for what is installed
    program = "import sys; del sys.path[0]; from sandbox_kernel.kernel import main; main()"
    numbers = (str(channels.bound), str(channels.binding))
    command = [sys.executable, "-c", program, path, *numbers, *arguments]
    os.execv(sys.executable, command)  # noqa: S606


def main() -> NoReturn:
    """In the new program of :func:`execute_kernel`."""
    path, bound, binding, *arguments = sys.argv[1:]
    channels = Channels(int(bound), int(binding))
    for fd in channels.descriptors():
        os.set_inheritable(fd, False)
    sys.exit(_run(path, channels, arguments))


def _run(path: str, channels: Channels, arguments: Sequence[str]) -> int:
    from traitlets.config import Config

    from .application import SandboxedKernelApp
    from .shell import DEFAULTS

    _reset_inherited_state()
    status = 0
    try:
        app = SandboxedKernelApp.instance(
            parent_handle=1,  # the init: there, not to be polled
            connection_file=path,
            config=Config(DEFAULTS),
            default_extensions=list(EXTENSIONS),
        )
        app.channels = channels
        app.initialize(list(arguments))
        app.start()
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
    """What the launcher's interpreter remembers of itself and must not be the kernel's.

    Python's own generators (random, uuid, secrets, tempfile) begin anew in a fork by themselves.
    """
    if (numpy_random := sys.modules.get("numpy.random")) is not None:
        numpy_random.seed()
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
