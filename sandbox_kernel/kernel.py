"""The workload: an ipykernel, in a fork of the launcher or as a program of its own.

:func:`preload` imports what every kernel needs, once, in the launcher. :func:`run_kernel` runs in
the sandbox, with every wall up. The application object is made after the fork: what ipykernel and
jupyter_client remember of a process (its pid, its parent, its random session) is the child's own.
:func:`execute_kernel` replaces the fork by a new interpreter, which does the same in :func:`main`.

A kernel of the pool comes up before anybody wants it. It waits in its event loop until the
supervisor sends a :class:`Binding` with what is the client's: key and environment.
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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

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
)
_OPTIONAL: Final = frozenset({"ipykernel.debugger", "ipykernel.subshell_manager"})


#: Configuration that anything else overrides. A kernel's history ends with it, in a file of its own
#: file system or not; a file takes 5 ms of its start, and a thread.
DEFAULTS: Final = {"HistoryManager": {"hist_file": ":memory:"}}


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


@dataclass(frozen=True)
class Channels:
    """Descriptors between a kernel that comes up and its supervisor."""

    bound: int
    """Gets :data:`WAITS` when the kernel waits for its binding, if it is to, and :data:`BOUND` when
    its channels are bound and it is its client's."""
    binding: int = -1
    """Where its :class:`Binding` comes from; -1: it is nobody's but the one client's."""

    def descriptors(self) -> tuple[int, ...]:
        return (self.bound,) if self.binding < 0 else (self.bound, self.binding)


#: What a kernel writes to :attr:`Channels.bound`.
WAITS: Final = b"w"
BOUND: Final = b"b"


@dataclass(frozen=True)
class Binding:
    """What makes a kernel that waits that of one client."""

    key: str = field(repr=False)
    signature_scheme: str
    environment: dict[str, str] = field(repr=False)
    """The whole one."""

    def encode(self) -> bytes:
        return json.dumps(vars(self)).encode()

    @classmethod
    def decode(cls, raw: bytes) -> Binding:
        """In the kernel, before anything of a client's runs."""
        return cls(**json.loads(raw))


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
    command = [sys.executable, "-Xfrozen_modules=off", "-c", program, path, *numbers, *arguments]
    os.execv(sys.executable, command)  # noqa: S606


def main() -> NoReturn:
    """In the new program of :func:`execute_kernel`."""
    path, bound, binding, *arguments = sys.argv[1:]
    channels = Channels(int(bound), int(binding))
    for fd in channels.descriptors():
        os.set_inheritable(fd, False)
    sys.exit(_run(path, channels, arguments))


def _run(path: str, channels: Channels, arguments: Sequence[str]) -> int:
    from ipykernel.kernelapp import IPKernelApp
    from tornado.ioloop import IOLoop
    from traitlets.config import Config

    before = dict(os.environ)

    class SandboxedKernelApp(IPKernelApp):
        """An ipykernel that says when it has bound, and waits for its client if it is to."""

        def parse_command_line(self, argv: list[str] | None = None) -> None:
            """Only if there is something: to make the parser of all options takes milliseconds."""
            if argv:
                super().parse_command_line(argv)

        def init_sockets(self) -> None:
            """Without the warning of plain tcp: these ports are in a net namespace of their own."""
            level = self.log.level
            self.log.setLevel(logging.ERROR)
            super().init_sockets()  # type: ignore[no-untyped-call]
            self.log.setLevel(level)

        def init_heartbeat(self) -> None:
            super().init_heartbeat()  # type: ignore[no-untyped-call]
            if channels.binding < 0:
                self.say_bound()

        def start(self) -> None:
            if channels.binding >= 0:
                loop = IOLoop.current()
                loop.add_handler(channels.binding, self.bind, loop.READ)
                loop.add_callback(os.write, channels.bound, WAITS)
            super().start()  # type: ignore[no-untyped-call]

        def bind(self, fd: int, events: int) -> None:
            IOLoop.current().remove_handler(fd)
            binding = Binding.decode(_read_all(fd))
            _exchange_environment(before, binding.environment)
            self.session.signature_scheme = binding.signature_scheme
            self.session.key = binding.key.encode()
            _rewrite_key(path, binding)
            self.say_bound()

        def say_bound(self) -> None:
            os.write(channels.bound, BOUND)
            os.close(channels.bound)

    _reset_inherited_state()
    status = 0
    try:
        app = SandboxedKernelApp.instance(
            parent_handle=1,  # the init: there, not to be polled
            connection_file=path,
            config=Config(DEFAULTS),
        )
        app.initialize(list(arguments))  # type: ignore[no-untyped-call]
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


def _rewrite_key(path: str, binding: Binding) -> None:
    """For whoever connects to the kernel from inside, as with ``%connect_info``."""
    with open(path, "r+") as file:
        info = json.load(file)
        info |= {"key": binding.key, "signature_scheme": binding.signature_scheme}
        file.seek(0)
        file.truncate()
        json.dump(info, file)


def _read_all(fd: int) -> bytes:
    """To the end; closed then."""
    with os.fdopen(fd, "rb") as file:
        return file.read()


def _exchange_environment(before: Mapping[str, str], environment: Mapping[str, str]) -> None:
    """``environment`` in place of ``before``; what the kernel itself set meanwhile stays."""
    for name in before.keys() - environment.keys():
        os.environ.pop(name, None)
    os.environ.update(environment)
    time.tzset()


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
