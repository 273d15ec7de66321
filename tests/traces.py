"""What a run of the tests could leave on this machine, as seen by the user who ran it.

:func:`snapshot` is taken before the first test (``conftest.py``) and after the last
(``leftovers/test_leftovers.py``). Other people's work on the same machine, and other runs of the
same user, must not count: a process counts if it descends from this one, or if it lost its parent
and belongs to a sandbox.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Traces:
    """Each field is a set of things, in words that a failure can show."""

    processes: frozenset[str]
    net_namespaces: frozenset[str]
    """Those that a counted process is in and this process is not."""
    mounts: frozenset[str]
    interfaces: frozenset[str]
    cgroups: frozenset[str]
    files: frozenset[str]

    def __sub__(self, before: Traces) -> list[str]:
        """What is here and was not there before, one line a thing."""
        lines = []
        for field in fields(self):
            new = getattr(self, field.name) - getattr(before, field.name)
            lines += [f"{field.name}: {thing}" for thing in sorted(new)]
        return lines


@dataclass(frozen=True)
class _Process:
    pid: int
    parent: int
    state: str
    command: str

    @property
    def counts(self) -> bool:
        """Zombies do not, nor does the helper that Python itself keeps for shared memory."""
        return self.state != "Z" and "resource_tracker" not in self.command


def snapshot() -> Traces:
    """Everything that counts, now."""
    table = _process_table()
    ours = _ours(table)
    return Traces(
        processes=frozenset(f"{p.pid} {p.command}" for p in ours),
        net_namespaces=frozenset(_net_namespaces(ours)),
        mounts=frozenset(_mounts()),
        interfaces=frozenset(os.listdir("/sys/class/net")),
        cgroups=frozenset(_cgroups()),
        files=frozenset(_files()),
    )


def _process_table() -> dict[int, _Process]:
    table = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            stat = Path(entry.path, "stat").read_text(errors="replace")
            command = Path(entry.path, "cmdline").read_bytes().replace(b"\0", b" ")
        except (FileNotFoundError, ProcessLookupError):
            continue
        name, rest = stat[stat.index("(") + 1 :].rsplit(")", 1)
        state, parent = rest.split()[:2]
        text = command.decode(errors="replace").strip() or f"[{name}]"
        table[int(entry.name)] = _Process(int(entry.name), int(parent), state, text)
    return table


def _ours(table: dict[int, _Process]) -> list[_Process]:
    """Descendants of this process, and sandboxes (with their descendants) whose parent is gone.

    An orphan is handed to the nearest ancestor that reaps orphans, at last to pid 1, so its parent
    is then one of our own ancestors; the sandboxes of another run have that run for a parent.
    """
    me = os.getpid()
    ancestors = {1}
    pid = table[me].parent
    while pid in table:
        ancestors.add(pid)
        pid = table[pid].parent
    children: dict[int, list[_Process]] = {}
    for process in table.values():
        children.setdefault(process.parent, []).append(process)
    roots = children.get(me, [])[:]
    roots += [p for a in ancestors for p in children.get(a, []) if _is_sandbox(p, me)]
    found: dict[int, _Process] = {}
    while roots:
        process = roots.pop()
        if process.pid not in found:
            found[process.pid] = process
            roots += children.get(process.pid, [])
    return [p for p in found.values() if p.counts]


def _is_sandbox(process: _Process, me: int) -> bool:
    """Whether an orphan of this user is a part of a sandbox: by its name or its user namespace."""
    if process.pid == me or _uid(process.pid) != os.getuid():
        return False
    if "sandbox_kernel" in process.command and "pytest" not in process.command:
        return True
    namespace = _namespace(process.pid, "user")
    return namespace is not None and namespace != _namespace(me, "user")


def _uid(pid: int) -> int | None:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return next(int(line.split()[1]) for line in lines if line.startswith("Uid:"))


def _namespace(pid: int, kind: str) -> str | None:
    """``user:[4026531837]``; ``None`` if it is gone or will not say."""
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    except (FileNotFoundError, PermissionError, ProcessLookupError):
        return None


def _net_namespaces(ours: list[_Process]) -> Iterator[str]:
    own = _namespace(os.getpid(), "net")
    for process in ours:
        namespace = _namespace(process.pid, "net")
        if namespace not in (None, own):
            yield str(namespace)


def _mounts() -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, right = line.split(" - ", 1)
        yield f"{left.split()[4]} ({right.split()[0]})"


def _cgroups() -> Iterator[str]:
    """Directories below the cgroup that was handed to this user, in every hierarchy."""
    name = os.environ.get("SANDBOX_KERNEL_CGROUP", "").strip("/")
    if name:
        root = Path("/sys/fs/cgroup")
        for top in (root / name, *root.glob(f"*/{name}")):
            yield from (str(path) for path in top.rglob("*") if path.is_dir())


def _files() -> Iterator[str]:
    """Run-time directories of sandboxes and what lies in them."""
    folders = {tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"}
    folders.add(os.environ.get("XDG_RUNTIME_DIR", "/nonexistent"))
    for folder in folders:
        for path in Path(folder).glob("sandbox[-_]kernel*"):
            if path.lstat().st_uid == os.getuid():
                yield str(path)
                yield from (str(below) for below in path.rglob("*"))
