"""The parent's side of a container: enter the boundary, spawn the init, hold it, end it.

Called by the supervisor, which has one thread until :func:`spawn` has returned. The order is that
of :class:`.steps.Step`; what fails raises a :class:`~sandbox_kernel.errors.SetupError`, after which
the caller ends, and with it everything that it had forked.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

from ..errors import NamespaceError, ProtocolError, SandboxError, SetupError, from_dict
from ..syscalls import Prctl, prctl
from . import idmap, init, messages, namespaces, network, process
from .idmap import IdPlan
from .init import InitPlan, Observed, Workload
from .process import ExitStatus
from .steps import Step, reached


def enter_boundary(ids: IdPlan) -> None:
    """Unshare the user namespace, have it mapped, unshare the gateway's net namespace.

    Afterwards the caller has every capability *inside* and none outside.
    """
    reached(Step.USER_NAMESPACE)
    if ids.helper or ids.privileged:
        _have_it_mapped(ids)
    else:  # the one map that a process may write for itself: its own id
        namespaces.unshare_user()
        reached(Step.ID_MAP)
        idmap.write(ids, os.getpid())
    reached(Step.GATEWAY)
    namespaces.unshare_gateway()


def _have_it_mapped(ids: IdPlan) -> None:
    """Fork the mapper, unshare, wait for its word."""
    ours, mappers = messages.pair()
    me = os.getpid()
    mapper = process.fork_into(lambda: _map_when_told(mappers, ours, ids, me))
    mappers.close()
    with ours:
        namespaces.unshare_user()
        reached(Step.ID_MAP)
        messages.send(ours, {"type": "unshared"})
        answer = messages.receive(ours)
    os.waitpid(mapper, 0)
    if answer is None:
        raise NamespaceError("the process that writes the id maps ended without an answer")
    if answer[0]["type"] != "mapped":
        raise from_dict(answer[0]["error"])


def _map_when_told(channel: socket.socket, other_end: socket.socket, ids: IdPlan, pid: int) -> int:
    """The mapper: stays in the user namespace of the host, writes the maps, says so, ends."""
    other_end.close()
    if messages.receive(channel) is None:
        return 1
    try:
        idmap.write(ids, pid)
    except SandboxError as error:
        messages.send(channel, {"type": "failed", "error": error.to_dict()})
        return 1
    messages.send(channel, {"type": "mapped"})
    return 0


@dataclass
class Container:
    """A running container, held by its init's pidfd and the socket to it."""

    init_pid: int
    pidfd: int
    channel: socket.socket
    observed: Observed

    def go(self) -> None:
        """The walls are up and were looked at: let the init fork the workload."""
        messages.send(self.channel, {"type": "go"})

    def receive(self) -> dict[str, Any] | None:
        """The init's next message without waiting, ``None`` at its end.

        Raises:
            BlockingIOError: there is none yet.
            ProtocolError: it is not a message, or it carries descriptors.
        """
        received = messages.receive(self.channel, flags=socket.MSG_DONTWAIT)
        if received is None:
            return None
        message, fds = received
        if fds:
            for fd in fds:
                os.close(fd)
            raise ProtocolError("the init sent descriptors")
        return message

    def signal(self, number: int) -> None:
        """Have the init send ``number`` to the workload's process group. Never raises or waits.

        A frozen init takes none: they wait in the socket until it is thawed. Where some hundreds
        wait already one more is dropped.
        """
        with contextlib.suppress(OSError):
            message = {"type": "signal", "number": number}
            messages.send(self.channel, message, flags=socket.MSG_DONTWAIT)

    def kill(self) -> None:
        """SIGKILL to pid 1: the kernel ends the whole pid namespace with it."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def reap(self) -> None:
        """Wait until the init, and so every process inside, is gone."""
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.init_pid, 0)

    def close(self) -> None:
        """Kill, reap, close. Idempotent."""
        if self.pidfd < 0:
            return
        self.kill()
        self.reap()
        os.close(self.pidfd)
        self.pidfd = -1
        self.channel.close()


def spawn(
    plan: InitPlan,
    workload: Workload,
    join: Callable[[int], None],
    meanwhile: Callable[[], object] = lambda: None,
) -> Container:
    """Fork the stage, which forks the init; return when every wall is up and was looked at.

    ``join`` moves a process into the container's cgroup: first the stage, because Linux waits for
    RCU at the first move of a while, and stage and init go on meanwhile; then the init, which the
    stage may have forked before it was moved. ``meanwhile`` is called in a thread of this process,
    which has ended when this returns; what it opens is not inside. The workload does not run yet:
    the caller says :meth:`Container.go`.
    """
    reached(Step.STAGE)
    prctl(Prctl.SET_CHILD_SUBREAPER, 1)
    channel, init_end = messages.pair()
    report, stage_end = messages.pair()
    others = (channel, report)
    before = process.children()  # the writer of the audit log is none of the container's
    stage = process.fork_into(lambda: _stage(plan, workload, init_end, stage_end, others))
    init_end.close()
    stage_end.close()
    beside = process.Beside(meanwhile)
    with report:
        try:
            reached(Step.JOIN_CGROUP)
            join(stage)
        except BaseException:
            channel.close()
            process.end_children(but=before)
            raise
        init_pid, netns = _init_of(report, stage)
    pidfd = os.pidfd_open(init_pid)
    container = Container(init_pid, pidfd, channel, Observed(0, False, 0, 0))
    try:
        reached(Step.VETH)
        try:
            network.make_veth(plan.link, netns)
        finally:
            os.close(netns)
        join(init_pid)
        with contextlib.suppress(OSError):  # an init that has failed already has said why
            messages.send(channel, {"type": "joined"})
        container.observed = _walls_of(channel, pidfd)
        beside.finish()
    except BaseException:
        container.close()
        raise
    return container


def _stage(
    plan: InitPlan,
    workload: Workload,
    channel: socket.socket,
    report: socket.socket,
    others: tuple[socket.socket, ...],
) -> int:
    """Lives for a millisecond: after unshare(PID) a process can make no thread, only a fork."""
    for other in others:
        other.close()
    try:
        reached(Step.NAMESPACES)
        namespaces.unshare_container()
        netns = network.open_namespace("self")
        reached(Step.INIT)
        init_pid = process.fork_into(lambda: init.run(plan, workload, channel))
        messages.send(report, {"type": "init", "pid": init_pid}, [netns])
    except SandboxError as error:
        messages.send(report, {"type": "failed", "error": error.to_dict()})
        return 1
    return 0


def _init_of(report: socket.socket, stage: int) -> tuple[int, int]:
    """(host pid of the init, descriptor of the sandbox's net namespace), on a socket of its own:
    on the init's socket the stage's word would race with the init's first message."""
    received = messages.receive(report)
    _, status = os.waitpid(stage, 0)
    if received is None:
        raise NamespaceError(
            "the stage ended before it had forked the init",
            cause=ExitStatus.from_wait(status).describe(),
        )
    message, fds = received
    if message["type"] == "failed":
        raise from_dict(message["error"])
    (netns,) = fds
    return int(message["pid"]), netns


def _walls_of(channel: socket.socket, pidfd: int) -> Observed:
    """Wait for the init's report; what it *saw* decides whether the workload may run."""
    poller = select.poll()
    poller.register(channel, select.POLLIN)
    poller.register(pidfd, select.POLLIN)
    poller.poll()
    try:
        received = messages.receive(channel, flags=socket.MSG_DONTWAIT)
    except BlockingIOError:
        received = None
    if received is None:
        raise SetupError(
            "the sandbox's pid 1 ended while it was building the walls",
            cause="it was killed, or met a defect that the server's log shows",
        )
    message, _ = received
    if message["type"] == "failed":
        raise from_dict(message["error"])
    observed = Observed.from_message(message)
    holes = observed.holes()
    if holes:
        _refuse(holes)
    return observed


def _refuse(holes: list[str]) -> NoReturn:
    raise SetupError(
        "a wall is missing", cause="; ".join(holes), remedy="this is a defect: please report it"
    )
