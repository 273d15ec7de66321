"""A launcher of containers without a kernel, asked over its socket, one at a time.

It is a zygote as that of the product is, one thread and a fork for each request, but has imported
no ipykernel: what is measured is the container. Each is built by the engine as the supervisor of a
kernel has it built, with all namespaces, the link, the caps, Landlock and the filter. Not part of
it are the proxy, the endpoints and the supervisor's own lock-down, which a program has no use for.

Run as a script by :class:`BareLauncher`: ``_bare_launcher.py SOCKET CWD CAPS``.
"""

from __future__ import annotations

import contextlib
import gc
import json
import mmap
import os
import select
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from sandbox_kernel.engine import (
    cgroups,
    container,
    idmap,
    landlock,
    messages,
    process,
    rootfs,
    seccomp,
    steps,
)
from sandbox_kernel.engine.container import Container
from sandbox_kernel.engine.init import InitPlan, Workload
from sandbox_kernel.engine.network import Link
from sandbox_kernel.errors import SandboxError
from sandbox_kernel.hostpaths import real_path, resolve
from sandbox_kernel.spec import SandboxSpec, parse_spec


@dataclass(frozen=True)
class End:
    """All that was made is removed."""

    cpu: float
    """Seconds, of every process that took part."""
    steps: dict[str, int]
    """When each began, in nanoseconds of ``time.time_ns``."""


class BareLauncher:
    """The client's side."""

    def __init__(self, cwd: Path, caps: Mapping[str, Any]) -> None:
        cwd.mkdir(exist_ok=True)
        self.socket, theirs = messages.pair()
        with theirs:
            arguments = [str(theirs.fileno()), str(cwd), json.dumps(dict(caps))]
            self.process = subprocess.Popen(
                [sys.executable, __file__, *arguments], pass_fds=[theirs.fileno()]
            )

    def __enter__(self) -> BareLauncher:
        self._answer("ready")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.socket.close()
        self.process.wait(timeout=60)

    def ask(self, command: list[str]) -> None:
        messages.send(self.socket, {"type": "start", "command": command})

    def status(self) -> int:
        return int(self._answer("status")["code"])

    def end(self) -> End:
        answer = self._answer("end")
        return End(answer["cpu"], answer["steps"])

    def _answer(self, kind: str) -> dict[str, Any]:
        received = messages.receive(self.socket)
        if received is None or received[0]["type"] != kind:
            raise RuntimeError(f"the launcher was to say {kind!r} and said {received}")
        return received[0]


# -- the process -----------------------------------------------------------------------------------


class Clock:
    """When each step began: in memory that all processes of a start share."""

    def __init__(self) -> None:
        self.slots = memoryview(mmap.mmap(-1, 8 * len(steps.Step))).cast("Q")
        self.number = {step: number for number, step in enumerate(steps.Step)}
        steps.observe(self.write)

    def write(self, step: steps.Step) -> None:
        self.slots[self.number[step]] = time.time_ns()

    def read(self) -> dict[str, int]:
        return {step.value: self.slots[n] for step, n in self.number.items() if self.slots[n]}


@dataclass(frozen=True)
class Shared:
    """What is the same for all containers."""

    spec: SandboxSpec
    facts: rootfs.HostFacts
    filter: bytes
    cwd: str


def serve(client: socket.socket, shared: Shared) -> None:
    clock = Clock()
    messages.send(client, {"type": "ready"})
    while (received := messages.receive(client)) is not None:
        command = received[0]["command"]
        child = process.fork_into(lambda command=command: supervise(client, shared, command))
        used = os.wait4(child, 0)[2]
        cpu = used.ru_utime + used.ru_stime
        messages.send(client, {"type": "end", "cpu": cpu, "steps": clock.read()})


def supervise(client: socket.socket, shared: Shared, command: list[str]) -> int:
    """In the fork: what a supervisor does, but for what it does for a kernel."""
    try:
        with contextlib.ExitStack() as stack:
            box = build(stack, shared, command)
            box.go()
            messages.send(client, {"type": "status", "code": status_of(box)})
    except SandboxError as error:
        messages.send(client, {"type": "failed", "why": error.message})
        return 1
    return 0


def build(stack: contextlib.ExitStack, shared: Shared, command: list[str]) -> Container:
    facts, cwd = shared.facts, shared.cwd
    spec = resolve(shared.spec, cwd, facts)
    ids = idmap.plan(spec.identity, 0, uid=os.getuid(), gid=os.getgid(), user=facts.user)
    plan = rootfs.plan_rootfs(spec, facts, uid=ids.uid, gid=ids.gid, cwd=cwd)
    steps.reached(steps.Step.CGROUP)
    group = cgroups.create(
        spec.caps,
        f"kernel-{uuid.uuid4().hex}",
        uid=os.getuid(),
        hint=os.environ.get(cgroups.HINT_VARIABLE),
        on_missing=spec.on_missing_cap,
    )
    stack.callback(group.remove)
    stack.callback(group.kill)
    container.enter_boundary(ids)
    landlock.keep_signals_inside()
    workload = Workload(
        run=lambda: os.execv(command[0], command), environment={}, cwd=cwd, console=2
    )
    init = InitPlan(ids, plan, Link(), spec.hostname, shared.filter)
    box = container.spawn(init, workload, group.join_pid)
    stack.callback(box.close)
    return box


def status_of(box: Container) -> int:
    """Wait for the init's word."""
    while True:
        select.select([box.channel], [], [])
        message = box.receive()
        if message is None or message["type"] == "failed":
            raise SandboxError("pid 1 ended without the status of what it ran", cause=str(message))
        if message["type"] == "exited":
            return int(message["code"])


def main(number: str, cwd: str, caps: str) -> None:
    spec = parse_spec(json.loads(caps))
    shared = Shared(spec, rootfs.collect_facts(), seccomp.compile_profile(), real_path(cwd))
    process.adopt_orphans()
    gc.collect()
    gc.freeze()
    serve(socket.socket(fileno=int(number)), shared)


if __name__ == "__main__":
    main(*sys.argv[1:])
