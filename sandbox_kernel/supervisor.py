"""One supervisor a kernel: it owns the boundary and everything that has to be undone.

Forked by the launcher. In the host's net namespace it binds the client's endpoints; then it enters
the user namespace and the gateway's net namespace, has the container built, locks itself down and
proxies until the kernel or the client is gone. It holds the connection key and parses the bytes
of a hostile kernel, so after set-up it has little left and no way to gain anything: see
:mod:`.lockdown`.

Every path out goes through one :class:`contextlib.ExitStack`. What a SIGKILL leaves, the launcher
removes: the supervisor writes each file down as soon as it is there, see :mod:`.leftovers`.
"""

from __future__ import annotations

import contextlib
import enum
import fcntl
import os
import signal
import socket
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import zmq

from . import control, hostpaths, rundir
from .auditlog import AuditLog
from .beside import Beside
from .binding import BOUND, Binding, Channels
from .capevents import CapEvents
from .channels import (
    BackEnds,
    ConnectionInfo,
    FrontEnds,
    Gauge,
    MessageLimits,
    Proxy,
    bind_front_ends,
)
from .console import Console
from .control import Control
from .deadlines import Act, Deadlines
from .death import Cause, Death
from .engine import cgroups, container, idmap, landlock, process, rootfs
from .engine.cgroups import KernelCgroup, MemoryAlarm
from .engine.container import Container
from .engine.init import InitPlan, Workload
from .engine.network import Link
from .engine.process import ExitStatus
from .engine.rootfs import HostFacts
from .engine.steps import Step, reached
from .environment import complete_environment
from .errors import (
    AuditError,
    ControlError,
    KernelStartError,
    ProtocolError,
    SandboxError,
    SetupError,
)
from .kernel import KernelEndpoints, execute_kernel, run_kernel
from .leftovers import LEFT_BEHIND, FileId, Leftovers
from .lifeline import Lifeline
from .lockdown import Needs, Rules, lock_down
from .meter import KernelMeter
from .protocol import (
    Answer,
    Ask,
    Bind,
    Done,
    Exited,
    Failed,
    FromClient,
    Kill,
    LaunchRequest,
    Pause,
    Refused,
    Resume,
    Signal,
    Started,
)
from .syscalls import Prctl, prctl
from .waiting import Waiting, watch_pressure

#: Bytes of what makes a kernel that waits a client's. A pipe of an ordinary user takes 1 MiB.
_BINDING_MAXIMUM: Final = 512 * 1024
#: Ports inside the sandbox's own net namespace, above its ephemeral range.
_FIRST_PORT: Final = 61_001
#: Seconds that what the kernel still said may take to pass, once it is gone.
_DRAIN_TIMEOUT: Final = 1.0
#: Seconds for which who is told of a death may ask something more, and again after each time; and
#: at most.
_AFTERWARDS: Final = 1.0
_AFTERWARDS_MAXIMUM: Final = 5.0


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
    """The compiled seccomp program of kernels."""
    supervisor_filter: bytes
    """That of supervisors."""
    facts: HostFacts
    cgroup_hint: str | None


def run(sock: socket.socket, leftovers: Leftovers, shared: Shared) -> int:
    """The whole life of a supervisor; its result is the process's exit status.

    Called in a fork of the launcher, with one thread and no descriptor but the lifeline and the
    pipe of ``leftovers``. The client learns of the end when everything is undone: it may start the
    next kernel on the same endpoints at once.
    """
    os.setsid()
    os.umask(0o077)
    process.default_signals()
    prctl(Prctl.SET_DUMPABLE, 1)  # the launcher is not; the id maps are below our /proc directory
    lifeline, request, connection_file = Lifeline(sock), None, None
    try:
        reached(Step.REQUEST)
        request = lifeline.request()
        heard = lifeline.accept()
        if not heard and lifeline.order() is not None:
            return 1  # given up in good order before it began; the next start may be under way
        if request.connection_file:
            connection_file = FileId.of(request.connection_file)
            leftovers.record(request.connection_file)
        if not heard:
            raise ProtocolError("the client went away before its sandbox was begun")
        with contextlib.ExitStack() as stack:
            supervisor = _build(stack, request, lifeline, leftovers, shared)
            if request.waits and (path := supervisor.request.connection_file):
                connection_file = FileId.of(path)
            death = supervisor.serve()
        last: Failed | Exited = Exited(death.returncode, death.sentence, death.cause.value)
    except SandboxError as error:
        last = Failed(error)
    except Exception as error:
        traceback.print_exc()  # for the server's log
        last = Failed(_defect(error))
    if not lifeline.say(last):
        _stand_in(request, connection_file)
        if connection_file is not None and FileId.of(connection_file.path) == connection_file:
            return LEFT_BEHIND
    return 1 if isinstance(last, Failed) else 0


def _stand_in(request: LaunchRequest | None, connection_file: FileId | None) -> None:
    """For a client that is gone: remove what it would have removed, had it not been killed."""
    if connection_file is not None:
        connection_file.remove()
    if request is not None:
        with contextlib.suppress(SandboxError):
            for path in ConnectionInfo.from_dict(request.connection).socket_paths()[:1]:
                rundir.remove_emptied(Path(path).parent)


def _defect(error: Exception) -> SetupError:
    return SetupError(
        "the supervisor of the sandbox met a defect",
        cause=f"{type(error).__name__}: {error}",
        remedy="please report it, with the traceback in the server's log",
    )


# -- building -----------------------------------------------------------------------------------


def _build(
    stack: contextlib.ExitStack,
    request: LaunchRequest,
    lifeline: Lifeline,
    leftovers: Leftovers,
    shared: Shared,
) -> Supervisor:
    """Every step of set-up in its order; what is made is on ``stack`` at once."""
    deadline = time.monotonic() + request.spec.start_timeout
    cwd = hostpaths.working_directory(request)
    facts = hostpaths.with_links(shared.facts)
    spec = hostpaths.resolve(request.spec, cwd, facts)
    ids = idmap.plan(
        spec.identity, spec.id_range, uid=os.getuid(), gid=os.getgid(), user=facts.user
    )
    idmap.check_helper(ids)
    hostpaths.check_writable(spec, ids, cwd)
    hostpaths.check_audit_log(spec, cwd, facts)
    journal = _open_journal(stack, request)
    mounts = rootfs.plan_rootfs(spec, facts, uid=ids.uid, gid=ids.gid, cwd=cwd)
    reached(Step.LISTEN)
    front_ends = _listen(stack, request, leftovers)
    reached(Step.CGROUP)
    cgroup = _make_cgroup(stack, request, shared)
    events = CapEvents(cgroup, request.spec.caps, request.spec.user.caps)
    stack.callback(events.close)
    alarm = MemoryAlarm(cgroup)
    stack.callback(alarm.close)
    user_id = os.getuid()
    container.enter_boundary(ids)
    landlock.keep_signals_inside()
    console = Console()
    stack.callback(console.close)
    pipes = _Pipes(request.waits)
    stack.callback(pipes.close)
    link = Link()
    endpoints = _endpoints(link, front_ends.info)
    plan = InitPlan(ids, mounts, link, spec.hostname, shared.filter)
    user = "root" if ids.uid == 0 else facts.user
    start_kernel = run_kernel if spec.zygote else execute_kernel

    def environment(filtered: Mapping[str, str]) -> dict[str, str]:
        return complete_environment(filtered, spec, user=user, home=facts.home, uid=ids.uid)

    workload = Workload(
        run=lambda: start_kernel(endpoints, pipes.inside, request.arguments),
        environment=environment(request.environment),
        cwd=cwd,
        console=console.write_end,
        keep=pipes.inside.descriptors(),
        rlimits=spec.rlimits,
    )
    needs = Needs(cgroup, tuple(front_ends.files), request.connection_file, endpoints.ports())
    rules = Rules(needs, facts, spec, cwd)
    try:
        box = container.spawn(plan, workload, cgroup.join_pid, lambda: rules.ruleset)
    except SandboxError:
        for line in console.read():  # the traceback of a pid 1 that met a defect
            lifeline.notice(line)
        raise
    stack.callback(box.close)
    stack.callback(control.release, cgroup)  # a frozen process of v1 does not even take a SIGKILL
    pipes.close_inside()
    console.close_write_end()
    gauge = Gauge()
    stack.callback(gauge.close)
    meter = KernelMeter(
        cgroup, events, hostname=spec.hostname, link=link.gateway_name, denials=journal is not None
    )
    stack.callback(meter.close)
    pressure = watch_pressure() if request.waits else -1
    reached(Step.LOCK_DOWN)
    leftovers.close()
    lock_down(rules, ids, user_id, shared.supervisor_filter)
    box.go()
    limits = MessageLimits()
    back_ends = BackEnds(_backend(endpoints), limits)
    stack.callback(back_ends.close)
    if request.waits:
        bind = Waiting(
            lifeline, box, console, events, back_ends, pipes.bound, pressure, deadline
        ).serve()
        request, front_ends = _bound_to(bind, request, front_ends)
        if journal is not None:
            journal.kernel = bind.kernel
        info = front_ends.info
        there = Binding(info.key.decode(), info.signature_scheme, environment(bind.environment))
        pipes.send(there)
        # Its endpoints listen since long, and it is up: the rest goes on while the client connects.
        lifeline.say(_started(box, front_ends, cgroup))
        deadline = time.monotonic() + spec.start_timeout
        if pressure >= 0:  # Linux takes its time to end a trigger
            threading.Thread(target=os.close, args=(pressure,), daemon=True).start()
    proxy = Proxy(
        front_ends, back_ends, limits=limits, log=lifeline.notice, gauge=gauge,
        meter=meter, journal=journal, output=spec.output,
    )  # fmt: skip
    stack.callback(proxy.close)
    beside = Beside(spec, cgroup, events, alarm, proxy, box.signal)
    proxy.watch_cells(beside)
    if request.previous is not None:
        proxy.announce(f"this is a new kernel; the one before it ended: {request.previous}")
    for warning in cgroup.warnings:
        proxy.announce(warning)
    return Supervisor(
        request, lifeline, cgroup, events, box, console, proxy, front_ends, pipes.bound, deadline,
        meter, journal, beside,
    )  # fmt: skip


class _Pipes:
    """Between a kernel that comes up and its supervisor; what of it is inside."""

    def __init__(self, waits: bool) -> None:
        self.bound, bound = os.pipe2(os.O_CLOEXEC)
        binding, self.binding = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK) if waits else (-1, -1)
        if waits:
            os.set_blocking(binding, True)
            with contextlib.suppress(OSError):  # who has many pipes already gets small ones
                fcntl.fcntl(self.binding, fcntl.F_SETPIPE_SZ, _BINDING_MAXIMUM)
        self.inside = Channels(bound, binding)

    def close_inside(self) -> None:
        for fd in self.inside.descriptors():
            os.close(fd)
        self.inside = Channels(-1)

    def send(self, binding: Binding) -> None:
        """The kernel waits for it, so the pipe is empty and there is nothing to wait for.

        Raises:
            ProtocolError: it does not fit.
        """
        raw = binding.encode()
        try:
            written = os.write(self.binding, raw)
        except BrokenPipeError:
            written = len(raw)  # it has just died, which is told elsewhere
        except BlockingIOError:
            written = 0
        os.close(self.binding)
        self.binding = -1
        if written < len(raw):
            raise ProtocolError(f"the environment of the kernel is too large: {len(raw)} bytes")

    def close(self) -> None:
        """What the supervisor still has; it closes ``bound`` itself when the kernel has bound."""
        if self.binding >= 0:
            os.close(self.binding)


def _bound_to(
    bind: Bind, request: LaunchRequest, front_ends: FrontEnds
) -> tuple[LaunchRequest, FrontEnds]:
    """The request and the endpoints of a sandbox of the pool, for the client that has it now."""
    path = bind.connection_file
    if path is not None and os.path.dirname(path) != os.path.dirname(request.connection_file or ""):
        raise ProtocolError(
            "the sandbox that waited cannot remove the connection file",
            cause=f"it is in another folder than {request.connection_file}",
            path=path,
        )
    info = ConnectionInfo.from_dict(front_ends.info.to_dict() | dict(bind.secrets))
    request = replace(
        request, connection=info.to_dict(), environment=bind.environment, connection_file=path
    )
    return request, replace(front_ends, info=info)


def _open_journal(stack: contextlib.ExitStack, request: LaunchRequest) -> AuditLog | None:
    """First of all: its writer is no part of the sandbox."""
    spec = request.spec
    if spec.audit_log is None:
        return None
    journal = AuditLog(spec.audit_log, kernel=request.sandbox_id, with_code=spec.audit_code)
    stack.callback(journal.close)
    return journal


def _listen(stack: contextlib.ExitStack, request: LaunchRequest, leftovers: Leftovers) -> FrontEnds:
    front_ends = bind_front_ends(ConnectionInfo.from_dict(request.connection))
    stack.callback(front_ends.close)
    for path in front_ends.files:
        leftovers.record(path)
    return front_ends


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
        scope=cgroups.UserScope(request.buses),
    )
    stack.callback(group.remove)
    stack.callback(group.kill)
    return group


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


# -- serving ------------------------------------------------------------------------------------


class Supervisor:
    """One running sandbox: one poll loop over client, init, console and channels."""

    def __init__(
        self,
        request: LaunchRequest,
        lifeline: Lifeline,
        cgroup: KernelCgroup,
        events: CapEvents,
        box: Container,
        console: Console,
        proxy: Proxy,
        front_ends: FrontEnds,
        bound: int,
        deadline: float,
        meter: KernelMeter,
        journal: AuditLog | None,
        beside: Beside,
    ) -> None:
        self.journal = journal
        self.request = request
        self.lifeline = lifeline
        self.cgroup = cgroup
        self.events = events
        self.box = box
        self.console = console
        self.proxy = proxy
        self.control = Control(cgroup, events, proxy, meter)
        self.deadlines: Deadlines | None = None
        """From the moment on when the kernel runs."""
        self.cell: int | None = None
        proxy.before_cell(events.cell_begins)
        self.front_ends = front_ends
        self.bound = bound
        self.state = State.STARTING
        self.status: ExitStatus | None = None
        self.on_order = False
        self.console_paused = False
        self.asked: set[int] = set()
        """Signals that the client had sent to the kernel."""
        self.deadline = deadline
        self.poller = zmq.Poller()
        self.actions: dict[int, Callable[[], None]] = {
            lifeline.fileno(): self._from_client,
            box.channel.fileno(): self._from_init,
            box.pidfd: self._init_gone,
            console.read_end: self._from_console,
            bound: self._kernel_bound,
            events.fileno(): self._from_cgroup,
            beside.fileno(): beside.look,
        }
        for fd in self.actions:
            self.poller.register(fd, zmq.POLLIN)

    def serve(self) -> Death:
        """Until the kernel or the client is gone, and the frontends know why.

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
            for fd in self.actions.keys() & events.keys():  # the others are the proxy's
                self.actions[fd]()
            if self.events.timeout() == 0:
                self._from_cgroup(fired=False)
            if self.console_paused and not self.console.pause():
                self._pause_console(False)
            try:
                self.proxy.dispatch(events)
            except AuditError as error:
                self.box.kill()
                self.proxy.fail_pending("AuditLogFailed", error.message, [error.message])
                raise
            if self.deadlines is not None:
                self._look_at_cell(self.deadlines)
        return self._end()

    def _timeout_ms(self) -> int | None:
        pause = self.console.pause() if self.console_paused else None
        timeouts = [_milliseconds(pause)]
        if self.state is State.STARTING:
            timeouts.append(_milliseconds(max(self.deadline - time.monotonic(), 0)))
        else:
            timeouts += [self.proxy.timeout_ms(), _milliseconds(self.events.timeout())]
        if self.deadlines is not None:
            timeouts.append(_milliseconds(self.deadlines.timeout()))
        return min((t for t in timeouts if t is not None), default=None)

    def _look_at_cell(self, deadlines: Deadlines) -> None:
        """Which one runs, and whether its time is up, or the kernel's."""
        before, self.cell = self.cell, self.proxy.cell
        if None not in (before, self.cell) and self.cell != before:  # one that was queued
            self.events.cell_begins()
        deadlines.see(self.cell, self.proxy.uses)
        while (due := deadlines.due()) is not None:
            self.lifeline.notice(due.text)
            if due.act is not Act.KILL:  # of which the error tells more
                self.proxy.tell(due.text)
            match due.act:
                case Act.INTERRUPT:
                    self.box.signal(signal.SIGINT)
                case Act.TERMINATE:
                    self.box.signal(signal.SIGTERM)
                case Act.KILL:
                    self.box.kill()
                    self.control.release()

    def _forget(self, fd: int) -> None:
        with contextlib.suppress(KeyError):
            self.poller.unregister(fd)

    def _from_client(self) -> None:
        try:
            order = self.lifeline.order()
        except BlockingIOError:
            return
        if order is None:
            self._client_is_gone()
        else:
            self._obey(order)

    def _obey(self, order: FromClient) -> None:
        match order:
            case Signal():
                if self.state.can_signal:
                    self.asked.add(order.number)
                    self.box.signal(order.number)
            case Kill():
                self.on_order = True
                self.box.kill()
                self.control.release()  # it does not run on before it dies
            case Bind():
                raise ProtocolError("a sandbox is bound to one client, and once")
            case _:
                self.lifeline.say(self._answer(order))

    def _answer(self, order: Ask) -> Answer:
        """Who sends many and reads none of the answers loses them, after a wait for each."""
        if self.on_order:  # what is dying is not to be frozen again
            error = ControlError("there is no kernel any more", cause="it was told to end")
        elif self.state is State.STARTING:
            error = ControlError("there is no kernel yet", cause="it is starting")
        else:
            answer = self.control.obey(order)
            if isinstance(answer, Done) and self.deadlines is not None:
                if isinstance(order, Pause):
                    self.deadlines.pause()
                elif isinstance(order, Resume):
                    self.deadlines.resume()
            return answer
        return Refused(order.request, error)

    def _client_is_gone(self) -> None:
        """However it died: nothing of the sandbox outlives it."""
        self._forget(self.lifeline.fileno())
        self.on_order = True
        self.box.kill()
        self.control.release()

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
            self.lifeline.notice(line)
        if self.console.at_end:
            self._forget(self.console.read_end)
        elif self.console.pause() and not self.console_paused:
            self._pause_console(True)

    def _pause_console(self, pause: bool) -> None:
        """Not to read it bounds what a kernel can have done here by writing."""
        self.console_paused = pause
        if pause:
            self._forget(self.console.read_end)
        else:
            self.poller.register(self.console.read_end, zmq.POLLIN)

    def _from_cgroup(self, *, fired: bool = True) -> None:
        for line in self.events.news(fired=fired):
            self.lifeline.notice(line)

    def _kernel_bound(self) -> None:
        self._forget(self.bound)
        said = os.read(self.bound, 1)
        os.close(self.bound)
        if said != BOUND:
            return  # it died; the init says more
        reached(Step.CONNECT)
        self.proxy.connect_back_ends()
        self.proxy.register(self.poller)
        self.state = State.RUNNING
        if self.journal is not None:
            self.journal.started()
        last = self.request.previous
        again = last is not None and last.cause == Cause.TIME.value
        self.deadlines = Deadlines(self.request.spec, wait_for_use=again)
        if self.request.waits:
            return  # the client knows since it has bound it
        if not self.lifeline.say(_started(self.box, self.front_ends, self.cgroup)):
            self._client_is_gone()

    def _did_not_start(self, why: str) -> KernelStartError:
        cause = self.console.with_tail(why)
        return KernelStartError("the kernel did not come up inside the sandbox", cause=cause)

    def _death(self) -> Death:
        time_up = self.deadlines.blame(self.status) if self.deadlines is not None else None
        on_order = self.on_order or self._ended_as_asked()
        return self.events.death(self.status, on_order=on_order, time_up=time_up)

    def _ended_as_asked(self) -> bool:
        """By a signal that the client sent, but for the one that means: interrupt the cell."""
        number = self.status.signal if self.status else None
        return number in self.asked - {signal.SIGINT}

    def _end(self) -> Death:
        """Tell the frontends first: the client will only say 'dead' to them."""
        death = self._death()
        if not self.on_order:
            self._drain()
        if death.cause is not Cause.KILLED:
            somebody_waits = self.proxy.cell is not None
            self.proxy.fail_pending(death.cause.value, death.sentence, death.traceback())
            if somebody_waits:
                self._answer_afterwards()
        self.proxy.finish_accounts()
        if self.journal is not None:
            self.journal.ended(death.cause.value, death.sentence, death.returncode)
        return death

    def _answer_afterwards(self) -> None:
        """Clients do not stop at once: papermill asks who the kernel is before it raises the error
        of a cell, graders run all other cells. Each is answered with why the kernel ended.
        """
        for fd in self.actions.keys() - {self.lifeline.fileno()}:
            self._forget(fd)
        now, uses = time.monotonic(), self.proxy.uses
        deadline, latest = now + _AFTERWARDS, now + _AFTERWARDS_MAXIMUM
        while not self.on_order and (left := deadline - time.monotonic()) > 0:
            timeouts = (_milliseconds(left), self.proxy.timeout_ms())
            events = dict(self.poller.poll(min(t for t in timeouts if t is not None)))
            if self.lifeline.fileno() in events:
                self._from_client()
            self.proxy.dispatch(events)
            if self.proxy.uses != uses:
                uses, deadline = self.proxy.uses, min(time.monotonic() + _AFTERWARDS, latest)

    def _drain(self) -> None:
        """What the kernel said before it ended still passes, for a bounded time."""
        deadline = time.monotonic() + _DRAIN_TIMEOUT
        while time.monotonic() < deadline:
            events = dict(self.poller.poll(10))
            sockets = {s: e for s, e in events.items() if s not in self.actions}
            if not sockets:
                return
            self.proxy.dispatch(sockets)


def _started(box: Container, front_ends: FrontEnds, cgroup: KernelCgroup) -> Started:
    return Started(
        supervisor_pid=os.getpid(),
        init_pid=box.init_pid,
        connection=front_ends.info.to_dict(),
        warnings=cgroup.warnings,
        landlock_abi=box.observed.landlock_abi,
    )


def _milliseconds(seconds: float | None) -> int | None:
    """For poll(): rounded up, or it would wake too early and again and again."""
    return None if seconds is None else int(seconds * 1000) + 1


def _status(message: dict[str, Any]) -> ExitStatus | None:
    """The init's word, which may be a lie: only its form is trusted."""
    code, number = message.get("code"), message.get("signal")
    if isinstance(code, int) and 0 <= code <= 255:
        return ExitStatus(code=code)
    if isinstance(number, int) and 0 < number < 128:
        return ExitStatus(signal=number)
    return None
