"""Cgroups of a test's own below the one that was handed to this user, and processes in them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox_kernel.engine.cgroups import KernelCgroup, Version, create, hierarchies
from sandbox_kernel.spec import MissingCap, UserTotal, parse_spec

MIB = 1024**2
PATIENCE = 30.0
"""Seconds after which a child that should have ended is a failure."""

_numbers = itertools.count()

#: Joins the group given as JSON, says so, waits for a line, then runs the rest.
JOINED = """
import errno, json, mmap, os, signal, sys, time
from sandbox_kernel.engine.cgroups import KernelCgroup
KernelCgroup.from_dict(json.loads(sys.argv[1])).join()
print("joined", flush=True)
sys.stdin.readline()
"""


@dataclass(frozen=True)
class Delegated:
    """One directory of this test's own in every hierarchy."""

    hint: str
    directories: tuple[Path, ...]

    def path(self, controller: str) -> Path:
        """Where the controller is (by its name on v2), as the user of the test sees it."""
        return self._find(controller)[0]

    def is_v2(self, controller: str) -> bool:
        return self._find(controller)[1] is Version.V2

    def _find(self, controller: str) -> tuple[Path, Version]:
        v1_name = {"io": "blkio"}.get(controller, controller)
        for hierarchy in hierarchies(Path("/proc")):
            path = hierarchy.mount / self.hint
            if path not in self.directories:
                continue
            there = hierarchy.controllers
            if hierarchy.version is Version.V2:
                there = frozenset((path / "cgroup.controllers").read_text().split())
            if (controller if hierarchy.version is Version.V2 else v1_name) in there:
                return path, hierarchy.version
        raise LookupError(controller)

    def limit(self, controller: str, *, v1: str, v2: str) -> None:
        """Write ``file value`` as who owns this directory: the limit above the kernels'."""
        path, version = self._find(controller)
        name, value = (v2 if version is Version.V2 else v1).split(" ", 1)
        (path / name).write_text(value)

    def create(
        self,
        name: str = "kernel-t",
        hint: str | None = None,
        on_missing: MissingCap = MissingCap.ERROR,
        user: dict[str, Any] | None = None,
        uid: int | None = None,
        **caps: Any,
    ) -> KernelCgroup:
        """With caps as a kernelspec spells them, unless they are below the spec's minimum."""
        return create(
            caps_of(caps),
            name,
            uid=os.getuid() if uid is None else uid,
            hint=hint or self.hint,
            on_missing=on_missing,
            user=total_of(user or {}),
        )

    def leaves(self) -> list[Path]:
        """What kernels and their users' totals have left."""
        found = [p for d in self.directories for p in d.rglob("*") if p.is_dir()]
        return [p for p in found if p.name.startswith(("kernel-", "user-"))]


def caps_of(values: dict[str, Any]) -> Any:
    """A kernel of a test is small: a few numbers are below what the spec lets through."""
    small = {k: v for k, v in values.items() if k in ("memory", "pids") and isinstance(v, int)}
    rest = {k: v for k, v in values.items() if k not in small}
    stand_in = {k: 2**40 if k == "memory" else 1000 for k in small}
    caps = parse_spec(rest | stand_in).caps
    return type(caps)(**(vars(caps) | small))


def total_of(values: dict[str, Any]) -> UserTotal:
    kernels = values.get("kernels")
    return UserTotal(caps_of({k: v for k, v in values.items() if k != "kernels"}), kernels)


@contextlib.contextmanager
def delegated_directory() -> Iterator[Delegated]:
    """Fails if a kernel's directory is left in it."""
    given = os.environ["SANDBOX_KERNEL_CGROUP"].strip("/")
    hint = f"{given}/t{os.getpid()}-{next(_numbers)}"
    made: list[Path] = []
    for hierarchy in hierarchies(Path("/proc")):
        above, path = hierarchy.mount / given, hierarchy.mount / hint
        if not os.access(above, os.W_OK):
            continue
        if hierarchy.version is Version.V2:
            for controller in (above / "cgroup.controllers").read_text().split():
                (above / "cgroup.subtree_control").write_text(f"+{controller}")
        path.mkdir()
        made.append(path)
        for name in ("cpuset.cpus", "cpuset.mems"):
            if hierarchy.version is Version.V1 and (above / name).exists():
                (path / name).write_text((above / name).read_text())
    here = Delegated(hint, tuple(made))
    try:
        yield here
    finally:
        left = here.leaves()
        for directory in made:
            # After a failed test: kill what is there, so that the next one starts clean.
            for path in sorted((p for p in directory.rglob("*") if p.is_dir()), reverse=True):
                _clear(path)
            directory.rmdir()
    assert not left


def _clear(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for name, value in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
            if (path / name).exists():
                (path / name).write_text(value)
        for pid in (path / "cgroup.procs").read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        try:
            path.rmdir()
        except OSError:
            time.sleep(0.01)
        else:
            return


class Child:
    """A process in the group that waits for :meth:`go`."""

    def __init__(self, group: KernelCgroup, code: str) -> None:
        command = [sys.executable, "-c", JOINED + code, json.dumps(group.to_dict())]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        assert self.line() == "joined"

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def say(self) -> None:
        """One line to its standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def go(self) -> Child:
        self.say()
        return self

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def close(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


@contextlib.contextmanager
def children() -> Iterator[type[Child]]:
    """The class to start them with; those that live at the end are killed."""
    started: list[Child] = []

    class Kept(Child):
        def __init__(self, group: KernelCgroup, code: str) -> None:
            super().__init__(group, code)
            started.append(self)

    try:
        yield Kept
    finally:
        for child in started:
            child.close()
