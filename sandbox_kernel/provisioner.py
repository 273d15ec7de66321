"""``sandbox-provisioner``: traits of a kernelspec → a spec → a sandbox. No mechanism of its own.

What jupyter_client does with it: construct → ``pre_launch`` → ``launch_kernel`` → ``post_launch``;
``poll`` every few seconds; ``send_signal``, ``terminate``, ``kill``, ``wait``, ``cleanup`` in many
orders, on dead kernels too. One instance survives restarts of its kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from jupyter_client.connect import KernelConnectionInfo
from jupyter_client.localinterfaces import localhost
from jupyter_client.provisioning.local_provisioner import LocalProvisioner
from traitlets import Any as AnyTrait
from traitlets.config.loader import Config, LazyConfigValue

from . import rundir
from .client import Launcher, Sandbox, launcher_command
from .death import Cause
from .engine.cgroups import CgroupUsage
from .errors import (
    CgroupError,
    ChannelError,
    ControlError,
    KernelStartError,
    ProtocolError,
    SandboxError,
    SpecError,
    describe_errno,
)
from .observe import Observation, observe
from .pool import Pool, Recipe, Waiting
from .protocol import (
    SECRETS,
    Answer,
    Ask,
    Bind,
    Bound,
    Done,
    Exited,
    GetUsage,
    LaunchRequest,
    Notice,
    Pause,
    Refused,
    Resume,
    Started,
    Update,
    Usage,
)
from .request import build_request
from .spec import (
    KEYS,
    SandboxSpec,
    Transport,
    change_to_dict,
    kernelspec_config,
    parse_change,
    parse_spec,
)

#: Seconds that a supervisor has to obey a kill before it is killed itself.
_KILL_TIMEOUT = 5.0
#: Seconds beyond the spec's ``start_timeout``, which the supervisor itself keeps where it can.
_START_MARGIN = 5.0
#: Seconds within which a supervisor answers what it is asked; it takes two at most for one order.
_ANSWER_TIMEOUT = 60.0
#: What jupyter_client hands to every provisioner's constructor besides the kernelspec's config.
_FRAMEWORK = frozenset({"kernel_id", "kernel_spec", "parent", "config", "log"})


class _Value(AnyTrait):
    """A value of the spec; on a command line JSON or text: ``--SandboxProvisioner.pids=64``."""

    def from_string(self, s: str) -> Any:
        try:
            value = json.loads(s)
        except (ValueError, RecursionError):
            return s
        return s if value is None else value  # None would mean: not given


def _trait(text: str) -> Any:
    return _Value(default_value=None, allow_none=True, help=text).tag(config=True)


class SandboxProvisioner(LocalProvisioner):
    """Starts each kernel in a rootless container of its own.

    Of :class:`LocalProvisioner` it keeps what concerns the client's side: the connection file, the
    cache of ports and CurveZMQ's keys. The traits are the keys of :mod:`sandbox_kernel.spec`; their
    values are checked there, whether they come from the kernelspec or from the server's config.
    """

    identity = _trait("who the kernel is: 'keep-id', 'root' or 'isolated'")
    id_range = _trait("subordinate ids mapped besides the kernel's own, through newuidmap")
    workspace = _trait("the notebook's folder inside: 'rw', 'ro', 'overlay' or 'none'")
    workspace_path = _trait("host path of the workspace, if not the notebook's folder")
    mounts = _trait("extra mounts: a list of tables {source, target, mode}")
    hide = _trait("further paths that stay hidden where the workspace would show them")
    memory = _trait("memory cap of the kernel, such as '2G'")
    memory_swap = _trait("swap that it may use besides its memory cap, such as '1G'")
    memory_high = _trait("memory beyond which it is slowed down (cgroup v2)")
    memory_low = _trait("memory that is reclaimed last")
    cpus = _trait("CPU cap of the kernel in cores, such as 1.5")
    cpu_weight = _trait("share of the CPU against others, from 1 to 10000; 100 is usual")
    cpuset_cpus = _trait("the only CPUs it runs on, such as '0-1,3'")
    cpuset_mems = _trait("the only memory nodes it uses, such as '0'")
    cpu_rt = _trait("seconds of real-time scheduling in each second of each CPU (cgroup v1)")
    pids = _trait("cap on processes and threads")
    io = _trait("limits on block devices: a list of tables {path or device, write_bps, ...}")
    hugetlb = _trait("cap on huge pages by their size, such as {'2MB': '64M'}")
    net_classid = _trait("class of its packets for tc and iptables (cgroup v1)")
    net_prio = _trait("priority of its packets by interface, such as {'eth0': 5} (cgroup v1)")
    devices = _trait("the only device nodes it may use, such as ['/dev/urandom']")
    rlimits = _trait("limits of each process by name, such as {'nofile': 1024}")
    user = _trait("caps of all kernels of the user together, and 'kernels', how many at once")
    on_missing_cap = _trait("a cap that cannot be enforced: 'error' (no start) or 'warn'")
    home_size = _trait("size of the home in memory")
    tmp_size = _trait("size of /tmp in memory")
    shm_size = _trait("size of /dev/shm")
    run_size = _trait("size of /run in memory")
    overlay_size = _trait("size of what an overlay takes in writes")
    inodes = _trait("files in each file system in memory")
    on_memory_pressure = _trait("memory near the cap: 'warn' in the cell, or 'interrupt' it too")
    warn_throttled = _trait("share of a cell's time held back by cpus beyond which it says so")
    output_bytes_per_second = _trait("output of the kernel in bytes a second, such as '1M'")
    output_messages_per_second = _trait("messages of output a second")
    output_bytes_per_cell = _trait("output of one cell in bytes, such as '10M'")
    output_messages_per_cell = _trait("messages of output of one cell")
    network = _trait("what the kernel reaches: 'none'")
    env_pass = _trait("names of further environment variables that reach the kernel")
    hostname = _trait("host name inside")
    transport = _trait("how clients reach the kernel: 'ipc' or 'tcp'")
    start_timeout = _trait("seconds within which the kernel must have come up")
    cell_timeout = _trait("seconds that one cell may run; then it is interrupted")
    lifetime = _trait("seconds after which the kernel ends, whatever it does")
    idle_timeout = _trait("seconds without use after which the kernel ends")
    time_grace = _trait("seconds that a time cap gives to who was interrupted, before the kill")
    zygote = _trait("false: start each kernel as a new program, not as a fork of the launcher")
    preload = _trait("modules that are imported once for all kernels, such as ['numpy']")
    pool = _trait("sandboxes that wait for the next starts in the same folder")
    audit_log = _trait("path of a file that gets a line for each request, or 'off'")
    audit_code = _trait("true: the code itself is written to the audit log, not its hash alone")

    #: Tests put a launcher with an observer in here.
    _launcher_command: ClassVar[tuple[str, ...] | None] = None
    #: What waits in this process, for kernels of all managers.
    _pool: ClassVar[Pool] = Pool()

    def __init__(self, **kwargs: Any) -> None:
        if (kernel_spec := kwargs.get("kernel_spec")) is not None:
            kernelspec_config(kernel_spec.metadata)
        for key in kwargs.keys() - _FRAMEWORK:
            # traitlets would only warn, and a limit would silently be gone
            if key not in KEYS:
                raise SpecError(key, kwargs[key], "one of the keys " + ", ".join(KEYS))
            if kwargs[key] is None:
                raise SpecError(key, None, "a value, or no such key")
        super().__init__(**kwargs)
        _check_config(self._find_my_config(self.config))
        self.spec: SandboxSpec = parse_spec(
            {key: value for key in KEYS if (value := getattr(self, key)) is not None}
        )
        self.sandbox: Sandbox | None = None
        self.directory: Path | None = None
        self.exit: Exited | None = None
        """How the last kernel ended, if one has."""
        self._shutdown_asked = False
        """Of the kernel that runs: its own end would be no news."""
        self._arguments: list[str] = []
        self._pooled: Waiting | None = None
        """Taken, and not used yet."""
        self._answers: dict[int, asyncio.Future[Answer]] = {}
        """What was asked and has no answer yet, by the number of the order."""

    # -- life ------------------------------------------------------------------------------------

    @property
    def has_process(self) -> bool:
        return self.sandbox is not None

    @property
    def process(self) -> Sandbox | None:  # type: ignore[override]
        """Spyder and others read ``process.pid``."""
        return self.sandbox

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Called before each launch: choose the endpoints, write the connection file.

        Raises:
            ChannelError: the connection file or the run-time directory cannot be written.
        """
        km = self.parent
        if km is None:
            raise KernelStartError(
                "there is no kernel manager", cause="the connection file is written by one"
            )
        self._arguments = list(kwargs.get("extra_arguments") or [])
        if self.spec.transport is Transport.IPC and self.directory is None:
            self._pooled = self._take_from_pool(kwargs)
            self.directory = self._pooled.directory if self._pooled else rundir.make(self.kernel_id)
            km.transport = "ipc"
            km.ip = str(self.directory / "k")
            for number, channel in enumerate(rundir.CHANNELS, 1):
                setattr(km, f"{channel}_port", number)
        elif self.spec.transport is Transport.TCP and km.transport != "tcp":
            km.transport, km.ip = "tcp", localhost()  # the ip of an ipc manager is a path
        try:
            return await super().pre_launch(**kwargs)
        except OSError as error:
            await self.cleanup()
            raise ChannelError(
                "the connection file cannot be written",
                cause=describe_errno(error.errno or 0),
                path=str(km.connection_file or error.filename),
            ) from error
        except BaseException:
            await self.cleanup()
            raise

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:
        """Build the sandbox; returns when the kernel has bound and the proxy is connected.

        Raises:
            SandboxError: a wall, a cap or the kernel did not come up. Nothing is left.
        """
        self.cwd = kwargs.get("cwd") or os.getcwd()
        request = self._request(kwargs, dict(self.connection_info))
        request = dataclasses.replace(request, previous=self._unasked_end())
        command = self._command(cmd[0])
        self.exit, self._shutdown_asked = None, False
        try:
            started = await self._launch(request, command)
        except BaseException as error:
            await asyncio.shield(self._abandon())
            if isinstance(error, SandboxError):
                self.log.error("the sandbox did not start: %s", error)
            raise
        for warning in (*started.warnings, *_exposed(request.connection)):
            self.log.warning("%s", warning)
        if self.spec.pool and self.spec.transport is Transport.IPC:
            plain = dataclasses.replace(request, previous=None)
            self._pool.fill_later(plain, command, self.log.warning)
        self.pid = started.supervisor_pid
        ports = {n: p for n, p in started.connection.items() if n.endswith("_port")}
        self.connection_info.update(ports)  # type: ignore[typeddict-item]
        return self.connection_info

    def _request(self, kwargs: dict[str, Any], connection: dict[str, Any]) -> LaunchRequest:
        km: Any = self.parent
        return build_request(
            self.spec,
            kernel_id=self.kernel_id,
            connection=connection,
            cwd=str(kwargs.get("cwd") or os.getcwd()),
            environment=kwargs.get("env") or {},
            set_by_kernelspec=self.kernel_spec.env,
            connection_file=km.connection_file or f"{tempfile.gettempdir()}/kernel.json",
            arguments=self._arguments,
        )

    def _unasked_end(self) -> Exited | None:
        """How the last kernel ended, where nobody had asked for it: the next one says so."""
        if self.exit is None or self._shutdown_asked or self.exit.cause == Cause.KILLED.value:
            return None
        return self.exit

    def _command(self, python: str) -> tuple[str, ...]:
        return self._launcher_command or launcher_command(python, self.spec.preload)

    def _take_from_pool(self, kwargs: dict[str, Any]) -> Waiting | None:
        if not self.spec.pool:
            return None
        km: Any = self.parent
        command = self._command(km.format_kernel_cmd()[0])
        return self._pool.take(Recipe.of(self._request(kwargs, {}), command))

    async def _launch(self, request: LaunchRequest, command: tuple[str, ...]) -> Started:
        """One of the pool if one was taken and is still good, else a new one."""
        pooled, self._pooled = self._pooled, None
        if pooled is not None and (started := await self._from_pool(pooled, request)):
            return started
        try:
            return await self._new(request, command)
        except CgroupError:
            # the user's total may be full of what only waits
            if not (waiting := self._pool.clear()):
                raise
        if self.sandbox is not None:
            self.sandbox.close()
        for each in waiting:
            await _end(each)
        return await self._new(request, command)

    async def _new(self, request: LaunchRequest, command: tuple[str, ...]) -> Started:
        self.sandbox = sandbox = Sandbox.launch(request, command, os.environ)
        return await self._started(sandbox)

    async def _from_pool(self, pooled: Waiting, request: LaunchRequest) -> Started | None:
        """``None`` if it cannot be had: then it is gone, and the endpoints are free again."""
        self.sandbox = sandbox = pooled.sandbox
        secrets = {name: request.connection[name] for name in SECRETS & request.connection.keys()}
        try:
            if Recipe.of(request, pooled.recipe.command) != pooled.recipe:
                raise ControlError("what it was built from has changed", cause="it is not used")
            if sandbox.supervisor_pid is not None and request.connection_file is not None:
                word = Bound(sandbox.supervisor_pid, request.connection_file)
                Launcher.remember(pooled.recipe.command, word)
            sandbox.bind(
                Bind(secrets, request.environment, request.connection_file, request.sandbox_id)
            )
            return await self._started(sandbox)
        except (SandboxError, OSError) as error:
            self.log.warning("a sandbox of the pool could not be used: %s", error)
        self.sandbox = None
        await _end(pooled)
        rundir.make_again(pooled.directory)
        return None

    async def _started(self, sandbox: Sandbox) -> Started:
        """Wait until it runs, for a bounded time: its supervisor may hang on a dead file system."""
        patience = self.spec.start_timeout + _START_MARGIN
        with contextlib.suppress(asyncio.TimeoutError):
            async with asyncio.timeout(patience):
                while sandbox.started is None:
                    if sandbox.exited is not None or self.sandbox is not sandbox:
                        raise KernelStartError(
                            "the kernel did not start",
                            cause="it was shut down while it was starting",
                        )
                    await self._next()
                return sandbox.started
        raise KernelStartError(
            f"the sandbox was not built within {patience:g} seconds",
            cause="its supervisor does not answer, as when a file system it needs does not",
        )

    async def _abandon(self) -> None:
        """A start that failed or was cancelled: no process, no directory, no connection file.

        Waits until the supervisor has undone what it made: the next start may want the same
        endpoints.
        """
        if self.sandbox is not None:
            await self.kill()
        await self.cleanup()
        if self.parent is not None:
            self.parent.cleanup_connection_file()

    async def _next(self) -> None:
        """Wait until the supervisor says something and take it in."""
        sandbox = self.sandbox
        if sandbox is None or sandbox.exited is not None:
            return
        await _readable(sandbox.fileno())
        if self.sandbox is sandbox:
            self._take(sandbox)

    def _take(self, sandbox: Sandbox) -> None:
        while (message := sandbox.take()) is not None:
            if isinstance(message, Notice):
                self.log.info("kernel %s: %s", self.kernel_id, message.text)
            elif isinstance(message, Exited):
                self.exit = message
                log = self.log.warning if self._unasked_end() else self.log.info
                log("kernel %s: %s", self.kernel_id, message)
            elif isinstance(message, (Done, Refused, Usage)):
                self._answered(message)

    async def poll(self) -> int | None:
        """``None`` while the kernel runs, else its return code; 0 where there is none."""
        if self.sandbox is None:
            return 0
        self._take(self.sandbox)
        return self.sandbox.returncode

    async def wait(self) -> int | None:
        """Until the kernel has ended. Afterwards there is no process."""
        while self.sandbox is not None and self.sandbox.exited is None:
            await self._next()
        if self.sandbox is None:
            return 0
        code = self.sandbox.returncode
        self.sandbox.close()
        self.sandbox = None
        return code

    async def send_signal(self, signum: int) -> None:
        """To the kernel's process group inside. Does nothing where there is none."""
        if self.sandbox is not None and 1 <= signum < signal.NSIG:
            self.sandbox.signal(signum)

    async def terminate(self, restart: bool = False) -> None:
        """SIGTERM to the kernel's process group inside; one that is paused runs on to take it."""
        self._release()
        if self.sandbox is not None:
            self.sandbox.signal(signal.SIGTERM)

    async def kill(self, restart: bool = False) -> None:
        """End the sandbox now; a supervisor that does not obey is killed and it ends with that."""
        sandbox = self.sandbox
        if sandbox is None:
            return
        sandbox.kill()
        with contextlib.suppress(asyncio.TimeoutError, SandboxError):  # a start fails by it
            await asyncio.wait_for(self._ended(sandbox), _KILL_TIMEOUT)
        if sandbox.exited is None:
            sandbox.kill_supervisor()
            with contextlib.suppress(asyncio.TimeoutError, SandboxError):
                await asyncio.wait_for(self._ended(sandbox), _KILL_TIMEOUT)

    async def shutdown_requested(self, restart: bool = False) -> None:
        """Called after the kernel was asked to end: one that is paused runs on to hear of it."""
        self._shutdown_asked = True
        await super().shutdown_requested(restart=restart)
        self._release()

    def _release(self) -> None:
        if self.paused and self.sandbox is not None:
            with contextlib.suppress(ControlError):
                self.sandbox.ask(Resume(self.sandbox.number()))

    async def _ended(self, sandbox: Sandbox) -> None:
        while self.sandbox is sandbox and sandbox.exited is None:
            await self._next()

    async def cleanup(self, restart: bool = False) -> None:
        """Called after every shutdown. On a restart the endpoints keep their names."""
        await super().cleanup(restart=restart)
        if restart:
            return
        self.ports_cached = False
        if self._pooled is not None:
            self._pooled.close()
            self._pooled = None
        if self.sandbox is not None:
            self.sandbox.close()
            self.sandbox = None
        if self.directory is not None:
            rundir.remove(self.directory)
            self.directory = None

    def observed_walls(self) -> Observation:
        """The walls of the running kernel as they are, seen from this process.

        Raises:
            ProtocolError: no kernel runs, or its walls cannot be looked at.
        """
        started = self.sandbox.started if self.sandbox is not None else None
        if started is None:
            raise ProtocolError("no kernel runs that could be looked at")
        return observe(started.supervisor_pid, started.init_pid, started.landlock_abi)

    # -- control of a kernel that runs -----------------------------------------------------------

    @property
    def paused(self) -> bool:
        """Was it paused, and not resumed since? A restart is a resume."""
        return self.sandbox is not None and self.sandbox.paused

    async def pause(self) -> None:
        """Stop every process of the kernel where it is; no cell goes on, nothing uses CPU.

        What is sent to it meanwhile waits, interrupts too, and heartbeats are answered for it. Its
        memory stays. Shutting it down, restarting and killing it need no :meth:`resume` first.

        Raises:
            ControlError: no kernel runs, or it ended before it was paused.
            CgroupError: it has no freezer, or a process did not stop within a second.
        """
        await self._ask("paused", Pause)

    async def resume(self) -> None:
        """Let it run on. Does nothing for one that is not paused.

        Raises:
            ControlError, CgroupError: as :meth:`pause`.
        """
        await self._ask("resumed", Resume)

    async def update(self, **caps: Any) -> None:
        """Other caps for the kernel that runs, by the keys of the spec; the others stay.

        ``memory_swap`` goes with ``memory``. ``user`` is a table of caps for all kernels of the
        user, until one starts that has others in its spec. A cap is changed and cannot be lifted.
        A restart begins with the spec's again. Memory below what is in use is refused on cgroup v1,
        and on v2 ends the kernel.

        Raises:
            SpecError: a key or a value that cannot be; nothing was sent.
            ControlError: no kernel runs, or it ended meanwhile.
            CgroupError: nothing holds a cap, or Linux refused it. Nothing is changed then.
        """
        change = change_to_dict(parse_change(caps))
        await self._ask("given other caps", lambda number: Update(number, change))

    async def usage(self) -> CgroupUsage:
        """What the kernel uses and used, of this moment; ``None`` where no controller accounts it.

        Raises:
            ControlError: no kernel runs, or it ended meanwhile.
        """
        answer = await self._ask("asked for its usage", GetUsage)
        if not isinstance(answer, Usage):
            raise ControlError("the kernel's usage is not known", cause="the supervisor told none")
        return answer.usage

    async def _ask(self, what: str, order: Callable[[int], Ask]) -> Answer:
        """Send one order and wait for its answer. Any number may be under way, in any loop."""
        sandbox = self.sandbox
        if sandbox is None or sandbox.started is None:
            raise ControlError(f"the kernel could not be {what}", cause="no kernel runs")
        number = sandbox.number()
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT):
                while not self._lives(sandbox, what) or not sandbox.ask(order(number)):
                    await _writable(sandbox.fileno())
                while not answer.done() and self._lives(sandbox, what):
                    await _readable(sandbox.fileno(), answer)
                    if self.sandbox is sandbox:
                        self._take(sandbox)
        except TimeoutError:
            raise ControlError(
                f"the kernel could not be {what}",
                cause=f"its supervisor did not answer within {_ANSWER_TIMEOUT:g} seconds",
            ) from None
        finally:
            self._answers.pop(number, None)
        said = answer.result()
        if isinstance(said, Refused):
            raise said.error
        return said

    def _lives(self, sandbox: Sandbox, what: str) -> bool:
        """True, or the error that says that it does not."""
        if self.sandbox is sandbox and sandbox.exited is None:
            return True
        cause = "it has ended" + (f": {sandbox.exited.reason}" if sandbox.exited else "")
        raise ControlError(f"the kernel could not be {what}", cause=cause)

    def _answered(self, message: Answer) -> None:
        """Whoever took it in may be in another loop than who asked."""
        answer = self._answers.pop(message.request, None)
        if answer is not None:
            with contextlib.suppress(RuntimeError):  # that loop is closed: nobody waits any more
                answer.get_loop().call_soon_threadsafe(_settle, answer, message)

    async def get_provisioner_info(self) -> dict[str, Any]:
        """For persistence; a sandbox ends with its server, so there is nothing to come back to."""
        return await super().get_provisioner_info()


async def _end(pooled: Waiting) -> None:
    """End a sandbox of the pool and wait until it has, for a bounded time."""
    pooled.sandbox.kill()
    with contextlib.suppress(SandboxError):  # as it ends before it has started
        async with asyncio.timeout(_KILL_TIMEOUT):
            while pooled.sandbox.exited is None:
                await _readable(pooled.sandbox.fileno())
                pooled.sandbox.take()
    pooled.close()


def _exposed(connection: Mapping[str, Any]) -> Iterator[str]:
    """What others on this machine reach, if anything: jupyter_client does not say it."""
    if connection["transport"] == "tcp" and "curve_secretkey" not in connection:
        yield (
            f"every user of this machine can connect to this kernel's ports on {connection['ip']}, "
            "read its outputs and what its cells ask for, and end it with data without an end; "
            "running code needs the key. Remedy: "
            "transport = 'ipc', or CurveZMQ: c.KernelManager.transport_encryption = 'required'"
        )


def _check_config(config: Config) -> None:
    """What of the server's config reaches this class: known keys, whole values.

    Raises:
        SpecError: an unknown key, or an ``append`` to a list that traitlets would drop in silence.
    """
    for key, value in config.items():
        if isinstance(value, Config):
            continue  # a section of its own, for another class
        if key not in KEYS:
            raise SpecError(key, value, "one of the keys " + ", ".join(KEYS))
        if value is None:
            raise SpecError(key, None, "a value, or no such key")
        if isinstance(value, LazyConfigValue):
            raise SpecError(key, value, "a whole value: a list is set, not appended to")


_T = TypeVar("_T")


def _settle(future: asyncio.Future[_T], value: _T) -> None:
    if not future.done():
        future.set_result(value)


async def _readable(fd: int, or_done: asyncio.Future[Any] | None = None) -> None:
    """Wait until ``fd`` is readable, in whichever loop runs, or ``or_done`` is done."""
    loop = asyncio.get_running_loop()
    await _ready(fd, loop.add_reader, loop.remove_reader, or_done)


async def _writable(fd: int) -> None:
    """Wait until something can be sent."""
    loop = asyncio.get_running_loop()
    await _ready(fd, loop.add_writer, loop.remove_writer, None)


async def _ready(
    fd: int,
    add: Callable[[int, Callable[[], None]], Any],
    remove: Callable[[int], Any],
    or_done: asyncio.Future[Any] | None,
) -> None:
    """On a duplicate: several coroutines may wait at once, and a loop knows one reader and one
    writer a descriptor."""
    duplicate = os.dup(fd)
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wake(_: object = None) -> None:
        _settle(ready, None)

    add(duplicate, wake)
    if or_done is not None:
        or_done.add_done_callback(wake)
    try:
        await ready
    finally:
        if or_done is not None:
            or_done.remove_done_callback(wake)
        remove(duplicate)
        os.close(duplicate)
