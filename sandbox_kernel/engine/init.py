"""Pid 1 of the sandbox: builds the walls around itself, forks the workload, reaps, relays, reports.

Forked by the stage, so it is the first process of the new pid namespace and has one thread. It
gives up everything *before* it forks the workload: whoever takes it over from inside gains nothing
that the workload has not got. What it tells the supervisor is a report, never an order.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import NamespaceError, ProtocolError, SandboxError, SetupError, describe_errno
from ..syscalls import Prctl, prctl
from . import capabilities, landlock, messages, namespaces, network, process, rootfs, seccomp
from .idmap import IdPlan
from .process import ExitStatus
from .rootfs import Operation
from .steps import Step, reached


@dataclass(frozen=True)
class Workload:
    """What runs inside: called in the forked child with every wall up; its result is the status."""

    run: Callable[[], int]
    environment: dict[str, str]
    cwd: str
    console: int
    """Where standard output and error go; standard input is the sandbox's own /dev/null."""
    keep: tuple[int, ...] = ()
    """Descriptors that the workload needs besides 0, 1 and 2."""
    rlimits: tuple[tuple[str, int], ...] = ()
    """Limits of each of its processes by name; they only lower what is there."""


@dataclass(frozen=True)
class InitPlan:
    """Everything that pid 1 has to know."""

    ids: IdPlan
    mounts: tuple[Operation, ...]
    link: network.Link
    hostname: str
    filter: bytes
    """A compiled seccomp program."""


@dataclass(frozen=True)
class Observed:
    """What the init saw of its own walls, read from /proc after the last one was built."""

    capabilities: int
    no_new_privs: bool
    seccomp: int
    landlock_abi: int

    def to_message(self) -> dict[str, Any]:
        return {"type": "walls"} | asdict(self)

    @classmethod
    def from_message(cls, message: dict[str, Any]) -> Observed:
        """Parse what arrived, which may be hostile."""
        try:
            return cls(
                capabilities=int(message["capabilities"]),
                no_new_privs=message["no_new_privs"] is True,
                seccomp=int(message["seccomp"]),
                landlock_abi=int(message["landlock_abi"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError("the init's report of its walls is malformed") from error

    def holes(self) -> list[str]:
        """Walls that should stand and do not; empty is what a start needs."""
        found = []
        if self.capabilities:
            found.append(f"capabilities {self.capabilities:#x} are left")
        if not self.no_new_privs:
            found.append("no_new_privs is not set")
        if self.seccomp != 2:
            found.append(f"seccomp mode is {self.seccomp}, not 2")
        return found


def run(plan: InitPlan, workload: Workload, channel: socket.socket) -> int:
    """The whole life of pid 1; its result is the process's exit status."""
    try:
        for standard in (1, 2):
            os.dup2(workload.console, standard)
        process.close_all_but([0, 1, 2, channel.fileno(), *workload.keep])
        observed = _build_walls(plan, channel)
        messages.send(channel, observed.to_message())
        _await(channel, "go")
        reached(Step.KERNEL)
        reaper = _Reaper()
        child = process.fork_into(lambda: _run_workload(workload, channel))
        for fd in workload.keep:
            os.close(fd)
        messages.send(channel, {"type": "kernel", "pid": child})
    except SandboxError as error:
        with contextlib.suppress(OSError):
            messages.send(channel, {"type": "failed", "error": error.to_dict()})
        return 1
    except OSError as error:
        told = SetupError(
            "the sandbox's pid 1 could not go on",
            cause=describe_errno(error.errno or 0),
            path=str(error.filename) if error.filename else None,
        )
        with contextlib.suppress(OSError):  # unless it was the supervisor that is gone
            messages.send(channel, {"type": "failed", "error": told.to_dict()})
        return 1
    return _live(channel, child, reaper)


def _build_walls(plan: InitPlan, channel: socket.socket) -> Observed:
    reached(Step.SOURCES)
    prctl(Prctl.SET_DUMPABLE, 1)
    sources = rootfs.open_sources(plan.mounts)
    namespaces.bound_user_namespaces()
    namespaces.bound_shared_counts()
    joined = os.getuid() != plan.ids.uid
    if joined:  # cgroup v1 lets nobody move a process that has another id
        _await(channel, "joined")
    capabilities.become(plan.ids.uid, plan.ids.gid, drop_groups=not plan.ids.denies_setgroups)
    prctl(Prctl.SET_DUMPABLE, 1)  # the change of ids cleared it, and /proc/self must stay ours
    reached(Step.ROOTFS)
    root = rootfs.build(plan.mounts, sources)
    sources.close()
    reached(Step.PIVOT)
    rootfs.pivot(root)
    os.close(root)
    namespaces.set_hostname(plan.hostname)
    if not joined:
        _await(channel, "joined")
    reached(Step.CGROUP_NAMESPACE)
    namespaces.unshare_cgroup()
    reached(Step.LINK)
    network.configure_inside(plan.link)
    reached(Step.PRIVILEGES)
    capabilities.forget_keys()
    capabilities.drop_all()
    reached(Step.LANDLOCK)
    abi = landlock.restrict(rootfs.writable_targets(plan.mounts))
    reached(Step.SECCOMP)
    seccomp.load(plan.filter)
    prctl(Prctl.SET_DUMPABLE, 0)
    seen = capabilities.observe_privileges()
    return Observed(seen.capabilities, seen.no_new_privs, seen.seccomp, abi)


def _await(channel: socket.socket, kind: str) -> None:
    """Wait for the supervisor's word; its end is ours."""
    received = messages.receive(channel)
    if received is None:
        process.exit_now(1)
    message, fds = received
    if fds or message["type"] != kind:
        raise NamespaceError(f"the init waited for {kind!r} and got {message['type']!r}")


def _run_workload(workload: Workload, channel: socket.socket) -> int:
    """In the child: pid 2, a session of its own, nothing open but what it needs."""
    os.setsid()
    process.default_signals()
    prctl(Prctl.SET_DUMPABLE, 1)
    process.apply_rlimits(workload.rlimits)
    os.umask(0o022)
    channel.close()
    process.close_all_but([0, 1, 2, *workload.keep])
    os.environ.clear()
    os.environ.update(workload.environment)
    enter(workload.cwd)
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return workload.run()


def enter(cwd: str) -> None:
    """chdir, and prove that the result lies inside the root (CVE-2024-21626).

    Raises:
        SetupError: it does not exist inside, or the kernel calls it unreachable.
    """
    try:
        os.chdir(cwd)
        where = os.getcwd()
    except OSError as error:
        raise SetupError(f"the working directory {cwd} is not there inside") from error
    if not where.startswith("/"):
        raise SetupError(f"the working directory {cwd} lies outside the root: {where}")


class _Reaper:
    """SIGCHLD as a descriptor that can be polled. Made before the first fork, so none is missed."""

    def __init__(self) -> None:
        self.read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while os.read(self.read_end, 512):
                pass

    def statuses(self) -> dict[int, ExitStatus]:
        """Every child that has ended, by pid."""
        ended: dict[int, ExitStatus] = {}
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                ended[pid] = ExitStatus.from_wait(status)
        return ended


def _live(channel: socket.socket, child: int, reaper: _Reaper) -> int:
    """Reap and relay until the workload ends or the supervisor is gone; then everything ends."""
    poller = select.poll()
    poller.register(channel, select.POLLIN)
    poller.register(reaper.read_end, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poller.poll()}
        if reaper.read_end in ready:
            reaper.drain()
        status = reaper.statuses().get(child)
        if status is not None:
            with contextlib.suppress(OSError):
                messages.send(channel, {"type": "exited"} | asdict(status))
            return 0
        if channel.fileno() in ready and not _relay(channel, child):
            return 0


def _relay(channel: socket.socket, child: int) -> bool:
    """One message of the supervisor's; false when it is gone."""
    try:
        received = messages.receive(channel)
    except OSError:
        return False
    if received is None:
        return False
    message, fds = received
    for fd in fds:
        os.close(fd)
    if message["type"] == "signal":
        with contextlib.suppress(OSError, OverflowError):
            os.killpg(child, int(message["number"]))
    return True
