"""Containers of the engine alone, without a kernel: for tests that need many starts.

Run as a script by :func:`starts`, in a process with one thread: ``containers.py REQUEST``, where
the request is JSON. It says one line of JSON a start, see :class:`Start`.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sandbox_kernel.engine import container, idmap, process, rootfs, seccomp, steps
from sandbox_kernel.engine.init import InitPlan, Workload
from sandbox_kernel.engine.network import Link
from sandbox_kernel.errors import SandboxError
from sandbox_kernel.hostpaths import real_path, resolve
from sandbox_kernel.spec import SandboxSpec, parse_spec

READS = 20


@dataclass(frozen=True)
class Start:
    """How one start went."""

    refusal: str = ""
    """The message, if it was refused."""
    texts: tuple[str, ...] = ()
    """What the workload read of the file that it was told, each text once."""


@dataclass(frozen=True)
class Exchange:
    """Two paths that are swapped once in each start: as it comes to ``step``, or as soon as the
    source ``opened`` has been opened."""

    first: str
    second: str
    step: str = ""
    opened: str = ""

    def arrange(self) -> None:
        """In the process that starts one container."""
        steps.observe(lambda step: self.swap() if step.name == self.step else None)
        build: Any = importlib.import_module("sandbox_kernel.engine.rootfs.build")
        openat2 = build.openat2

        def watched(folder: int, path: str, flags: int, **more: Any) -> int:
            found = openat2(folder, path, flags, **more)
            if path == self.opened:
                self.swap()
            return found

        build.openat2 = watched

    def swap(self) -> None:
        here, exchange = -100, 2
        paths = os.fsencode(self.first), os.fsencode(self.second)
        if ctypes.CDLL(None, use_errno=True).renameat2(here, paths[0], here, paths[1], exchange):
            raise OSError(ctypes.get_errno(), self.first)


def starts(
    count: int,
    config: dict[str, Any],
    *,
    cwd: Path,
    read: str,
    home: Path,
    exchange: Exchange | None = None,
) -> list[Start]:
    """Start ``count`` containers, one after the other, that read the file ``read`` inside.

    Each reads it :data:`READS` times: what is there may change meanwhile.
    """
    request = {
        "count": count,
        "config": config,
        "cwd": str(cwd),
        "read": read,
        "exchange": asdict(exchange) if exchange else None,
    }
    done = subprocess.run(
        [sys.executable, __file__, json.dumps(request)],
        stdout=subprocess.PIPE,
        env={**os.environ, "HOME": str(home)},
        check=True,
        timeout=120,
    )
    return [Start(**json.loads(line)) for line in done.stdout.splitlines()]


def _main(request: dict[str, Any]) -> None:
    program = seccomp.compile_profile()
    facts = rootfs.collect_facts()
    spec = parse_spec(request["config"])
    for _ in range(request["count"]):
        read_end, write_end = os.pipe()
        child = process.fork_into(
            lambda end=write_end: _start(spec, facts, program, request, end)  # type: ignore[misc]
        )
        os.close(write_end)
        with os.fdopen(read_end) as said:
            print(json.dumps(asdict(Start(**json.loads(said.read())))), flush=True)
        os.waitpid(child, 0)


def _start(
    spec: SandboxSpec, facts: rootfs.HostFacts, program: bytes, request: dict[str, Any], end: int
) -> int:
    """In the fork: what a supervisor does, from resolving the paths until the workload ends."""
    if request["exchange"]:
        Exchange(**request["exchange"]).arrange()
    try:
        found = _run(spec, facts, program, request)
    except SandboxError as error:
        found = Start(refusal=error.message)
    os.write(end, json.dumps(asdict(found)).encode())
    return 0


def _run(
    spec: SandboxSpec, facts: rootfs.HostFacts, program: bytes, request: dict[str, Any]
) -> Start:
    cwd = real_path(request["cwd"])
    spec = resolve(spec, cwd, facts)
    ids = idmap.plan(spec.identity, 0, uid=os.getuid(), gid=os.getgid(), user=facts.user)
    plan = rootfs.plan_rootfs(spec, facts, uid=ids.uid, gid=ids.gid, cwd=cwd)
    container.enter_boundary(ids)
    read_end, write_end = os.pipe()
    workload = Workload(
        run=lambda: _tell(request["read"]), environment={}, cwd=cwd, console=write_end
    )
    box = container.spawn(
        InitPlan(ids, plan, Link(), spec.hostname, program), workload, lambda pid: None
    )
    try:
        os.close(write_end)
        box.go()
        with os.fdopen(read_end) as console:
            said = console.read()
    finally:
        box.close()
    return Start(texts=tuple(json.loads(said)))


def _tell(path: str) -> int:
    """The workload."""
    texts = set()
    for _ in range(READS):
        with contextlib.suppress(OSError):
            texts.add(Path(path).read_text())
    os.write(1, json.dumps(sorted(texts)).encode())
    return 0


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
