"""Cgroups of a benchmark's own: what everything in them takes, as Linux counts it.

Of a sandbox's supervisor and pid 1 an ordinary user may not read the memory maps: they are not
dumpable. What he may read is the cgroup that he put them in. It needs a directory that was handed
over, as ``SANDBOX_KERNEL_CGROUP`` names it; the tests' own runner does that.

Sources: https://docs.kernel.org/admin-guide/cgroup-v1/memory.html and .../cgroup-v2.html.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sandbox_kernel.engine.cgroups import HINT_VARIABLE, Version, hierarchies

#: Those that a sandbox's caps and the accounts need.
CONTROLLERS: Final = ("memory", "cpu", "cpuacct", "pids", "freezer")
LEAF: Final = "processes"
TIMEOUT: Final = 30


@dataclass(frozen=True)
class Memory:
    """Bytes of all processes in it."""

    charged: int
    """Everything: page cache too, which whoever reads a file first pays for."""
    own: int
    """Anonymous memory, tmpfs and what Linux keeps for them: page tables, stacks, sockets."""

    def __sub__(self, other: Memory) -> Memory:
        return Memory(self.charged - other.charged, self.own - other.own)


class Group:
    """A directory with one leaf, in each hierarchy that was handed over; gone at the end.

    Kernels of ours get leaves beside that one, their supervisors are in it with the launcher.
    """

    def __init__(self, name: str) -> None:
        above = (os.environ.get(HINT_VARIABLE) or "").strip("/")
        self.hint = f"{above}/{name}"
        self.paths: dict[str, Path] = {}
        for hierarchy in hierarchies(Path("/proc")) if above else ():
            if not os.access(hierarchy.mount / above, os.W_OK):
                continue
            path = hierarchy.mount / self.hint
            if hierarchy.version is Version.V1:
                self.paths |= {c: path for c in CONTROLLERS if c in hierarchy.controllers}
            elif "memory" in _words(path.parent / "cgroup.controllers"):
                self.paths[""] = path

    def missing(self) -> str | None:
        """Why nothing can be counted here."""
        if "" in self.paths or {"memory", "cpuacct"} <= self.paths.keys():
            return None
        return f"no cgroup of memory and cpuacct was handed over ({HINT_VARIABLE})"

    def __enter__(self) -> Group:
        for path in set(self.paths.values()):
            path.mkdir()
            (path / LEAF).mkdir()
        if (top := self.paths.get("")) is not None:
            given = _words(top.parent / "cgroup.controllers")
            words = " ".join(f"+{c}" for c in CONTROLLERS if c in given)
            for path in (top.parent, top):
                (path / "cgroup.subtree_control").write_text(words)
        return self

    def __exit__(self, *_: object) -> None:
        """Everything in it has been told to end."""
        deadline = time.monotonic() + TIMEOUT
        for path in set(self.paths.values()):
            for each in (*(p for p in path.iterdir() if p.is_dir()), path):
                while each.exists():
                    with contextlib.suppress(OSError):  # EBUSY until the last one has gone
                        each.rmdir()
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"somebody stays in {each}")

    def command(self) -> tuple[str, ...]:
        """Runs what comes after it, in the leaf from its first instruction on."""
        leaves = " ".join(str(path / LEAF / "cgroup.procs") for path in set(self.paths.values()))
        return ("/bin/sh", "-c", f'for f in {leaves}; do echo $$ >$f; done; exec "$@"', "sh")

    def memory(self) -> Memory:
        if (top := self.paths.get("")) is not None:
            stat = _table(top / "memory.stat")
            own = stat["anon"] + stat["shmem"] + stat["kernel"] + stat["sock"]
            return Memory(int((top / "memory.current").read_text()), own)
        path = self.paths["memory"]
        stat = _table(path / "memory.stat")
        kernel = int((path / "memory.kmem.usage_in_bytes").read_text())
        own = stat["total_rss"] + stat["total_shmem"] + kernel
        return Memory(int((path / "memory.usage_in_bytes").read_text()), own)

    def cpu_seconds(self) -> float:
        if (top := self.paths.get("")) is not None:
            return _table(top / "cpu.stat")["usage_usec"] / 1e6
        return int((self.paths["cpuacct"] / "cpuacct.usage").read_text()) / 1e9


def _words(path: Path) -> list[str]:
    return path.read_text().split()


def _table(path: Path) -> dict[str, int]:
    return {name: int(value) for name, value in map(str.split, path.read_text().splitlines())}
