"""One supervisor a kernel: it owns the boundary and everything that has to be undone.

Forked by the launcher. In the host's net namespace it binds the client's endpoints; then it enters
the user namespace and the gateway's net namespace, has the container built, locks itself down and
proxies until the kernel or the client is gone. It holds the connection key and parses the bytes
of a hostile kernel, so after set-up it keeps one capability (to kill what is inside, within its own
user namespace), the kernel's seccomp filter and no way to gain anything.

Every path out goes through one :class:`contextlib.ExitStack`. What a SIGKILL leaves, the launcher
removes: the supervisor writes down each thing on :class:`Leftovers` before it makes it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import zmq

from .channels import ConnectionInfo, FrontEnds, MessageLimits, Proxy, bind_front_ends
from .console import Console
from .death import Cause, Death, explain, tell
from .engine import capabilities, cgroups, container, idmap, messages, process, rootfs, seccomp
from .engine.cgroups import CgroupEvents, CgroupUsage, EventWatch, KernelCgroup
from .engine.container import Container
from .engine.idmap import IdPlan
from .engine.init import InitPlan, Workload
from .engine.network import Link
from .engine.process import ExitStatus
from .engine.rootfs import HostFacts
from .engine.steps import Step, reached
from .environment import complete_environment
from .errors import KernelStartError, ProtocolError, SandboxError, SetupError, describe_errno
from .kernel import KernelEndpoints, run_kernel
from .protocol import (
    Exited,
    Failed,
    FromClient,
    Kill,
    LaunchRequest,
    Notice,
    Signal,
    Started,
    parse_from_client,
)
from .spec import MIB, SandboxSpec, Transport, WorkspaceMode, check_workspace
from .syscalls import CapabilityBit

#: Ports inside the sandbox's own net namespace, above its ephemeral range.
_FIRST_PORT: Final = 61_001
#: Seconds that a client has to send its request.
_REQUEST_TIMEOUT: Final = 10.0
#: Bytes. Queues are bounded below this; a multipart message without an end is not, in libzmq.
_MEMORY_MAXIMUM: Final = 1024 * MIB
#: Seconds that what the kernel still said may take to pass, once it is gone.
_DRAIN_TIMEOUT: Final = 1.0
#: Seconds between two lines about the cgroup: what is inside decides how often something happens.
_NOTICE_INTERVAL: Final = 1.0


class State(enum.Enum):
    """The life of one sandbox."""

    BUILDING = "building"
    STARTING = "starting"
    RUNNING = "running"
    ENDING = "ending"

    @property
    def can_signal(self) -> bool:
        """Is there a kernel that a signal could reach?"""
        return self in (State.STARTING, State.RUNNING)


@dataclass(frozen=True)
class Shared:
    """What the launcher prepared once for all its kernels. No secret."""

    filter: bytes
    """The compiled seccomp program."""
    facts: HostFacts
    cgroup_hint: str | None


class Leftovers:
    """What must be removed after a SIGKILL of the supervisor: paths, on a pipe to the launcher."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def record(self, path: str) -> None:
        """Called *before* the file or socket ``path`` is made.

        A launcher that has died cleans nothing up, and that stops no kernel: the client does it.
        """
        with contextlib.suppress(BrokenPipeError):
            os.write(self._fd, (json.dumps(path) + "\n").encode())

    @staticmethod
    def parse(raw: bytes) -> list[str]:
        """Called by the launcher with all that came through the pipe."""
        paths = []
        for line in raw.splitlines():
            with contextlib.suppress(ValueError):
                path = json.loads(line)
                if isinstance(path, str) and path.startswith("/"):
                    paths.append(path)
        return paths


def run(lifeline: socket.socket, leftovers: Leftovers, shared: Shared) -> int:
    """The whole life of a supervisor; its result is the process's exit status.

    Called in a fork of the launcher, with one thread and no descriptor but those two.
    """
    os.setsid()
    os.umask(0o077)
    process.default_signals()
    try:
        request = _receive_request(lifeline)
        with contextlib.ExitStack() as stack:
            supervisor = _build(stack, request, lifeline, leftovers, shared)
            supervisor.serve()
        return 0
    except SandboxError as error:
        with contextlib.suppress(OSError):
            messages.send(lifeline, Failed(error).to_message())
        return 1
    except (BrokenPipeError, ConnectionResetError):
        return 1  # the client went away while the sandbox was being built
    except Exception as error:
        with contextlib.suppress(OSError):
            messages.send(lifeline, Failed(_defect(error)).to_message())
        raise  # for the traceback in the server's log


def _defect(error: Exception) -> SetupError:
    return SetupError(
        "the supervisor of the sandbox met a defect",
        cause=f"{type(error).__name__}: {error}",
        remedy="please report it, with the traceback in the server's log",
    )


def _receive_request(lifeline: socket.socket) -> LaunchRequest:
    reached(Step.REQUEST)
    lifeline.settimeout(_REQUEST_TIMEOUT)
    try:
        received = messages.receive(lifeline)
    except TimeoutError as error:
        raise ProtocolError(f"no request came within {_REQUEST_TIMEOUT:g} seconds") from error
    lifeline.setblocking(False)
    if received is None:
        raise ProtocolError("the client went away before it had sent its request")
    message, fds = received
    for fd in fds:
        os.close(fd)
    try:
        return LaunchRequest.from_message(message)
    except (KeyError, TypeError, AttributeError) as error:
        raise ProtocolError("the request is malformed", cause=repr(error)) from error


# -- building -----------------------------------------------------------------------------------


def _build(
    stack: contextlib.ExitStack,
    request: LaunchRequest,
    lifeline: socket.socket,
    leftovers: Leftovers,
    shared: Shared,
) -> Supervisor:
    """Every step of set-up in its order; what is made is on ``stack`` at once."""
    cwd = _working_directory(request)
    facts = _with_links(shared.facts)
    spec = _resolved(request.spec, cwd, facts)
    ids = idmap.plan(
        spec.identity, spec.id_range, uid=os.getuid(), gid=os.getgid(), user=facts.user
    )
    idmap.check_helper(ids)
    _check_writable(spec, ids, cwd)
    mounts = rootfs.plan_rootfs(spec, facts, uid=ids.uid, gid=ids.gid, cwd=cwd)
    reached(Step.LISTEN)
    front_ends = _listen(stack, request, leftovers)
    reached(Step.CGROUP)
    cgroup = _make_cgroup(stack, request, shared)
    watch = EventWatch(cgroup)
    stack.callback(watch.close)
    container.enter_boundary(ids)
    console = Console()
    stack.callback(console.close)
    bound_read, bound_write = os.pipe2(os.O_CLOEXEC)
    link = Link()
    endpoints = _endpoints(link, front_ends.info)
    plan = InitPlan(ids, mounts, link, spec.hostname, shared.filter)
    user = "root" if ids.uid == 0 else facts.user
    workload = Workload(
        run=lambda: run_kernel(endpoints, bound_write, request.arguments),
        environment=complete_environment(
            request.environment, spec, user=user, home=facts.home, uid=ids.uid
        ),
        cwd=cwd,
        console=console.write_end,
        keep=(bound_write,),
        rlimits=spec.rlimits,
    )
    try:
        box = container.spawn(plan, workload, cgroup.join)
    except SandboxError:
        for line in console.read():  # the traceback of a pid 1 that met a defect
            _notice(lifeline, line)
        raise
    stack.callback(box.close)
    stack.callback(_resume, cgroup)  # a frozen process of v1 does not even take a SIGKILL
    os.close(bound_write)
    console.close_write_end()
    reached(Step.LOCK_DOWN)
    _lock_down(shared.filter, ids)
    box.go()
    proxy = Proxy(
        front_ends, backend=_backend(endpoints), limits=MessageLimits(),
        log=lambda text: _notice(lifeline, text),
    )  # fmt: skip
    stack.callback(proxy.close)
    for warning in cgroup.warnings:
        proxy.announce(warning)
    return Supervisor(request, lifeline, cgroup, watch, box, console, proxy, front_ends, bound_read)


def _working_directory(request: LaunchRequest) -> str:
    """Where the kernel starts: the workspace, checked before anything is made.

    Raises:
        SetupError: it does not exist or is not a directory.
    """
    path = _real_path(request.spec.workspace_path or request.cwd)
    check_workspace(path)
    if request.spec.workspace is not WorkspaceMode.NONE and not os.path.isdir(path):
        raise SetupError(
            f"the workspace {path} is not a directory"
            if os.path.lexists(path)
            else f"the workspace {path} does not exist",
            remedy="make it, or set workspace_path to a folder that exists",
        )
    return path


def _check_writable(spec: SandboxSpec, ids: IdPlan, path: str) -> None:
    """A subordinate id owns nothing: a workspace that is to be writable must be so for it.

    Raises:
        SetupError: it is not, and the notebook's first write would fail.
    """
    uid, gid = ids.outside_uid(), ids.outside_gid()
    if spec.workspace is not WorkspaceMode.RW or uid == os.getuid():
        return
    found = os.stat(path)
    bits = found.st_mode >> (6 if found.st_uid == uid else 3 if found.st_gid == gid else 0)
    if bits & 0o3 != 0o3:
        raise SetupError(
            f"the workspace {path} is not writable for the kernel",
            cause=f"it is host id {uid}:{gid} there and the folder's mode is "
            f"{found.st_mode & 0o7777:04o}, owner {found.st_uid}:{found.st_gid}",
            remedy=f"set workspace to 'overlay' or 'ro', or chown {uid}:{gid} the folder",
        )


def _resolved(spec: SandboxSpec, cwd: str, facts: HostFacts) -> SandboxSpec:
    """Every host path without symlinks, for the plan compares them with the home and each other."""
    secrets = [f"{home}/{name}" for home in facts.homes for name in rootfs.SECRETS]
    hidden = [*spec.hide, *(path for path in secrets if _real_path(path) != path)]
    return dataclasses.replace(
        spec,
        workspace_path=cwd if spec.workspace_path is not None else None,
        mounts=tuple(dataclasses.replace(m, source=_real_path(m.source)) for m in spec.mounts),
        hide=tuple(dict.fromkeys(p for path in hidden for p in (path, _real_path(path)))),
    )


def _with_links(facts: HostFacts) -> HostFacts:
    """With the places at which start-up files really lie, where the home has links to them."""
    names = [f"{home}/{name}" for home in facts.homes for name in rootfs.EXECUTED_OUTSIDE]
    real = tuple(dict.fromkeys(r for name in names if (r := _real_path(name)) != name))
    return dataclasses.replace(facts, executed=real)


def _real_path(path: str) -> str:
    """``path`` without symlinks, whether it exists or not.

    Raises:
        SetupError: it was exchanged while it was looked at.
    """
    try:
        return os.path.realpath(path)
    except OSError as error:
        raise SetupError(
            f"{path} cannot be resolved", cause=describe_errno(error.errno or 0)
        ) from error


def _listen(stack: contextlib.ExitStack, request: LaunchRequest, leftovers: Leftovers) -> FrontEnds:
    info = ConnectionInfo.from_dict(request.connection)
    if info.transport == Transport.IPC.value:
        for path in info.socket_paths():
            leftovers.record(path)
            stack.callback(_unlink, path)
    if request.connection_file:
        leftovers.record(request.connection_file)
    front_ends = bind_front_ends(info)
    stack.callback(front_ends.close)
    return front_ends


def _unlink(path: str) -> None:
    with contextlib.suppress(OSError):
        os.unlink(path)


def _make_cgroup(
    stack: contextlib.ExitStack, request: LaunchRequest, shared: Shared
) -> KernelCgroup:
    group = cgroups.create(
        request.spec.caps,
        f"kernel-{request.sandbox_id}",
        uid=os.getuid(),
        hint=shared.cgroup_hint,
        on_missing=request.spec.on_missing_cap,
        user=request.spec.user,
    )
    stack.callback(group.remove)
    stack.callback(group.kill)
    return group


def _resume(group: KernelCgroup) -> None:
    """Before anything is killed. Never raises."""
    if group.can_pause:
        with contextlib.suppress(SandboxError, OSError):
            group.resume()


def _endpoints(link: Link, info: ConnectionInfo) -> KernelEndpoints:
    first = _FIRST_PORT
    return KernelEndpoints(
        ip=link.address,
        shell_port=first,
        iopub_port=first + 1,
        stdin_port=first + 2,
        control_port=first + 3,
        hb_port=first + 4,
        key=info.key.decode(),
        signature_scheme=info.signature_scheme,
    )


def _backend(endpoints: KernelEndpoints) -> ConnectionInfo:
    """The kernel's own endpoints as the proxy sees them: tcp over the link, without Curve."""
    return ConnectionInfo.from_dict(endpoints.to_connection_file())


def _lock_down(program: bytes, ids: IdPlan) -> None:
    """From here on the supervisor is what a hostile kernel attacks.

    Started by root it stops being root: the launcher removes what only root can.
    """
    if ids.privileged:
        capabilities.become(ids.uid, ids.gid, drop_groups=True)
    capabilities.drop_all(keep=[CapabilityBit.KILL])
    seccomp.load(program)
    process.limit_memory(_MEMORY_MAXIMUM)
    process.no_core_dump()


def _notice(lifeline: socket.socket, text: str) -> None:
    """Dropped where the client does not read: a slow one must not stop the proxy."""
    with contextlib.suppress(OSError):
        messages.send(lifeline, Notice(text).to_message())


# -- serving ------------------------------------------------------------------------------------


class Supervisor:
    """One running sandbox: one poll loop over client, init, console and channels."""

    def __init__(
        self,
        request: LaunchRequest,
        lifeline: socket.socket,
        cgroup: KernelCgroup,
        watch: EventWatch,
        box: Container,
        console: Console,
        proxy: Proxy,
        front_ends: FrontEnds,
        bound: int,
    ) -> None:
        self.request = request
        self.lifeline = lifeline
        self.cgroup = cgroup
        self.watch = watch
        self.seen = self.told = watch.start
        self.last_oom = CgroupEvents()
        self.next_notice = 0.0
        self.box = box
        self.console = console
        self.proxy = proxy
        self.front_ends = front_ends
        self.bound = bound
        self.state = State.STARTING
        self.status: ExitStatus | None = None
        self.on_order = False
        self.client_gone = False
        self.deadline = time.monotonic() + request.spec.start_timeout
        self.poller = zmq.Poller()
        self.actions: dict[int, Callable[[], None]] = {
            lifeline.fileno(): self._from_client,
            box.channel.fileno(): self._from_init,
            box.pidfd: self._init_gone,
            console.read_end: self._from_console,
            bound: self._kernel_bound,
            watch.fileno(): self._from_cgroup,
        }
        for fd in self.actions:
            self.poller.register(fd, zmq.POLLIN)

    def serve(self) -> None:
        """Until the kernel or the client is gone.

        Raises:
            KernelStartError: the kernel ended, or said nothing, before it had bound its channels.
        """
        reached(Step.BOUND)
        while self.state is not State.ENDING:
            events = dict(self.poller.poll(self._timeout_ms()))
            if self.state is State.STARTING and time.monotonic() > self.deadline:
                raise self._did_not_start(
                    f"it said nothing for {self.request.spec.start_timeout:g} seconds"
                )
            for fd in [fd for fd in events if isinstance(fd, int)]:
                self.actions[fd]()
            self.proxy.dispatch(events)
        self._end()

    def _timeout_ms(self) -> int | None:
        if self.state is State.STARTING:
            return max(int((self.deadline - time.monotonic()) * 1000), 0) + 1
        return self.proxy.timeout_ms()

    def _forget(self, fd: int) -> None:
        with contextlib.suppress(KeyError):
            self.poller.unregister(fd)

    def _from_client(self) -> None:
        try:
            received = messages.receive(self.lifeline, flags=socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            received = None
        if received is None:
            self._client_is_gone()
            return
        message, fds = received
        for fd in fds:
            os.close(fd)
        self._obey(parse_from_client(message))

    def _obey(self, order: FromClient) -> None:
        match order:
            case Signal():
                if self.state.can_signal:
                    self.box.signal(order.number)
            case Kill():
                self.on_order = True
                _resume(self.cgroup)
                self.box.kill()

    def _client_is_gone(self) -> None:
        """However it died: nothing of the sandbox outlives it, not even the connection file."""
        self._forget(self.lifeline.fileno())
        self.client_gone = self.on_order = True
        if self.request.connection_file:
            _unlink(self.request.connection_file)
        _resume(self.cgroup)
        self.box.kill()

    def _from_init(self) -> None:
        try:
            message = self.box.receive()
        except BlockingIOError:
            return
        except (ProtocolError, OSError):
            self.box.kill()
            message = None
        if message is None:
            self._forget(self.box.channel.fileno())
        elif message["type"] == "exited":
            self.status = _status(message)
        elif message["type"] == "failed" and self.state is State.STARTING:
            raise self._did_not_start(str(message.get("error", {}).get("fact", "")))

    def _init_gone(self) -> None:
        """Pid 1 is dead, and with it every process inside. Its last word may still be there."""
        self._forget(self.box.pidfd)
        with contextlib.suppress(BlockingIOError, ProtocolError, OSError):
            while (message := self.box.receive()) is not None:
                if message["type"] == "exited":
                    self.status = _status(message)
        self._from_console()
        if self.state is State.STARTING:
            raise self._did_not_start(self._death().sentence)
        self.state = State.ENDING

    def _from_console(self) -> None:
        for line in self.console.read():
            _notice(self.lifeline, line)
        if self.console.at_end:
            self._forget(self.console.read_end)

    def _from_cgroup(self) -> None:
        """Somebody was killed, or refused, or slowed down: for the log, at a bounded rate."""
        self._see(_quietly(self.watch.take, self.seen))
        if time.monotonic() < self.next_notice:
            return
        self.next_notice = time.monotonic() + _NOTICE_INTERVAL
        spec = self.request.spec
        usage = _quietly(self.cgroup.usage, CgroupUsage())
        news, self.told = self._happened_since(self.told), self.seen
        for line in tell(news, spec.caps, usage, user=spec.user.caps):
            _notice(self.lifeline, line)

    def _see(self, now: CgroupEvents) -> None:
        """Of two OOM kills at two caps the last one is what ended the kernel."""
        new = now.since(self.seen)
        if new.oom or new.oom_above:
            self.last_oom = new
        self.seen = now

    def _happened_since(self, earlier: CgroupEvents) -> CgroupEvents:
        happened = self.seen.since(earlier)
        return dataclasses.replace(
            happened, oom=self.last_oom.oom, oom_above=self.last_oom.oom_above
        )

    def _kernel_bound(self) -> None:
        self._forget(self.bound)
        said = os.read(self.bound, 1)
        os.close(self.bound)
        if not said:
            return  # it died; the init says more
        reached(Step.CONNECT)
        self.proxy.connect_back_ends()
        self.proxy.register(self.poller)
        self.state = State.RUNNING
        started = Started(
            supervisor_pid=os.getpid(),
            init_pid=self.box.init_pid,
            connection=self.front_ends.info.to_dict(),
            warnings=self.cgroup.warnings,
            landlock_abi=self.box.observed.landlock_abi,
        )
        pidfd = os.pidfd_open(os.getpid())
        try:
            messages.send(self.lifeline, started.to_message(), [pidfd])
        except OSError:
            self._client_is_gone()
        finally:
            os.close(pidfd)

    def _did_not_start(self, why: str) -> KernelStartError:
        tail = self.console.tail()
        cause = why + (f"; it last said: {tail}" if tail else "")
        return KernelStartError("the kernel did not come up inside the sandbox", cause=cause)

    def _death(self) -> Death:
        self._see(_quietly(self.watch.events, self.seen))
        return explain(
            self.status,
            self.request.spec.caps,
            self._happened_since(self.watch.start),
            _quietly(self.cgroup.usage, CgroupUsage()),
            on_order=self.on_order,
            user=self.request.spec.user.caps,
        )

    def _end(self) -> None:
        """Tell the frontends first, the client afterwards: it will say 'dead' to them."""
        death = self._death()
        self._drain()
        if death.cause is not Cause.KILLED:
            self.proxy.fail_pending(death.cause.value, death.sentence, death.traceback())
        if not self.client_gone:
            with contextlib.suppress(OSError):
                messages.send(self.lifeline, Exited(death.returncode, death.sentence).to_message())

    def _drain(self) -> None:
        """What the kernel said before it ended still passes, for a bounded time."""
        if self.client_gone:
            return
        deadline = time.monotonic() + _DRAIN_TIMEOUT
        while time.monotonic() < deadline:
            events = dict(self.poller.poll(10))
            sockets = {s: e for s, e in events.items() if not isinstance(s, int)}
            if not sockets:
                return
            self.proxy.dispatch(sockets)


def _status(message: dict[str, Any]) -> ExitStatus | None:
    """The init's word, which may be a lie: only its form is trusted."""
    code, number = message.get("code"), message.get("signal")
    if isinstance(code, int) and 0 <= code <= 255:
        return ExitStatus(code=code)
    if isinstance(number, int) and 0 < number < 128:
        return ExitStatus(signal=number)
    return None


def _quietly(read: Callable[[], Any], otherwise: Any) -> Any:
    """Counters that cannot be read any more explain nothing and stop nothing."""
    try:
        return read()
    except (SandboxError, OSError):
        return otherwise
