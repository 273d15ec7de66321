"""A folder for one test, and a look at everything that sandboxes could leave behind it.

``tests/traces.py`` looks at the machine once, after all tests. This looks after *one* start, so
that the step which left something is known by name, and it sees what lies in the folders of one
test: its run-time directory, its connection files, its temporary files.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import probes
import pytest
from integration.sandboxes import TIMEOUT
from jupyter_client.manager import AsyncKernelManager, KernelManager

from sandbox_kernel.client import Launcher
from sandbox_kernel.protocol import Exited
from sandbox_kernel.provisioner import SandboxProvisioner

#: Seconds. A sandbox dies by end of file on a pipe, its cgroup after its last process.
PATIENCE = 15.0
#: Folders in which nobody but a sandbox and its client makes anything.
_WATCHED = ("run", "jupyter", "tmp")
_SET_CHILD_SUBREAPER = 36


def caps(**more: object) -> dict[str, object]:
    """A memory and a pids cap where cgroups were handed to this user, so that one is made."""
    given = {} if probes.missing("cgroups") else {"memory": "512M", "pids": 128}
    return {**given, **more}


@dataclass(frozen=True)
class Ground:
    """Where everything lands that a sandbox and its client make, and what was there before."""

    folder: Path
    before: frozenset[str]

    @property
    def work(self) -> Path:
        """The notebook's folder."""
        return self.folder / "work"

    def left(self) -> list[str]:
        """What is here now and was not before, one line a thing."""
        return sorted(look(self.folder) - self.before)

    def assert_clean(self, what: str = "") -> None:
        """Nothing is left, at the latest after :data:`PATIENCE` seconds."""
        deadline = time.monotonic() + PATIENCE
        while (left := self.left()) and time.monotonic() < deadline:
            wait_for_end(_pids(left), deadline - time.monotonic())
            time.sleep(0.01)  # cgroups and files have no event that one could wait for
        assert not left, f"left behind {what}:\n" + "\n".join(left)


@contextlib.contextmanager
def ground() -> Iterator[Ground]:
    """For one test. Its path is short: those of unix sockets below it must fit into 108 bytes.

    This process adopts the orphans of whatever it starts for as long, so that no process can hide
    by losing its parent. Launchers that run before count as there, and so does one that is started
    meanwhile and still known to :class:`Launcher`: it is for the next kernel.
    """
    folder = Path(tempfile.mkdtemp(prefix="ski-", dir="/tmp"))
    for name in (*_WATCHED, "work"):
        (folder / name).mkdir(mode=0o700)
    with _adopting(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_RUNTIME_DIR", str(folder / "run"))
        patch.setenv("JUPYTER_RUNTIME_DIR", str(folder / "jupyter"))
        patch.setenv("TMPDIR", str(folder / "tmp"))
        patch.setattr(tempfile, "tempdir", str(folder / "tmp"))
        try:
            yield Ground(folder, look(folder))
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def look(folder: Path) -> frozenset[str]:
    """Every thing that counts, in words."""
    return frozenset(
        [
            *(f"process {pid} {command}" for pid, command in descendants().items()),
            *(f"cgroup {path}" for path in cgroup_directories()),
            *(f"mount {point}" for point in _mounts(folder)),
            *(f"interface {name}" for name in os.listdir("/sys/class/net")),
            *(f"socket {path}" for path in _bound_sockets(folder)),
            *(f"file {path}" for path in _files(folder)),
        ]
    )


def close_launchers() -> None:
    """Let every launcher of this process end, and wait until it has. Called after the last test."""
    for launcher in Launcher.close_all():
        launcher.process.wait(timeout=PATIENCE)


# -- processes ----------------------------------------------------------------------------------


def provisioner_of(km: KernelManager | AsyncKernelManager) -> SandboxProvisioner:
    """That of a kernel that runs or ran."""
    assert isinstance(km.provisioner, SandboxProvisioner)
    return km.provisioner


def standing(km: KernelManager) -> set[tuple[str, str, bool | None]]:
    """Its walls as they are observed, whose each is and whether it stands."""
    return {(w.process, w.name, w.stands) for w in provisioner_of(km).observed_walls().walls}


def kernel_pid(km: KernelManager) -> int:
    """The host's pid of the kernel: the first child of the sandbox's pid 1."""
    sandbox = provisioner_of(km).sandbox
    running = sandbox.started if sandbox else None
    assert running is not None
    init = running.init_pid
    children = Path(f"/proc/{init}/task/{init}/children").read_text().split()
    return int(children[0])


def descendants(top: int | None = None) -> dict[int, str]:
    """Pid → command of all that live below process ``top`` (this one), but known launchers."""
    known = {launcher.process.pid for launcher in Launcher._running.values()}
    children: dict[int, list[int]] = {}
    commands: dict[int, str] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and (found := _stat(int(entry.name))):
            parent, state, name = found
            children.setdefault(parent, []).append(int(entry.name))
            if state not in "ZX":
                commands[int(entry.name)] = _command(int(entry.name)) or f"[{name}]"
    below, queue = [], [top or os.getpid()]
    while queue:
        found_here = children.get(queue.pop(), [])
        below += found_here
        queue += found_here
    return {
        pid: commands[pid]
        for pid in below
        if pid in commands and pid not in known and "resource_tracker" not in commands[pid]
    }


def readable(fd: int, deadline: float) -> bool:
    """Wait for it; false at ``deadline``, of the monotonic clock. select() knows 1024 descriptors,
    and a process with many kernels has more."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(max(deadline - time.monotonic(), 0) * 1000))


def wait_for_end(pids: Iterable[int], timeout: float = TIMEOUT) -> list[int]:
    """Wait until all of these processes have ended; those that have not after ``timeout``."""
    deadline = time.monotonic() + timeout
    alive = []
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        with os.fdopen(pidfd):
            if not readable(pidfd, deadline):
                alive.append(pid)
    return alive


def end_of(km: KernelManager) -> Exited:
    """Wait for the death of the kernel by the event that its server gets; how it was explained."""
    provisioner = km.provisioner
    assert isinstance(provisioner, SandboxProvisioner) and provisioner.sandbox
    deadline = time.monotonic() + TIMEOUT
    while km.is_alive():
        assert readable(provisioner.sandbox.fileno(), deadline)
    assert provisioner.exit is not None
    return provisioner.exit


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    """Orphans among our descendants become our children, not those of some other process."""
    prctl = ctypes.CDLL(None).prctl
    assert prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0
    try:
        yield
    finally:
        assert prctl(_SET_CHILD_SUBREAPER, 0, 0, 0, 0) == 0
        _reap_orphans()


def _reap_orphans() -> None:
    """Only those that are nobody's: subprocess has to find the status of what it started."""
    known = {launcher.process.pid for launcher in Launcher._running.values()}
    for entry in os.scandir("/proc"):
        found = _stat(int(entry.name)) if entry.name.isdigit() else None
        if found and found[0] == os.getpid() and found[1] == "Z" and int(entry.name) not in known:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(int(entry.name), os.WNOHANG)


def _stat(pid: int) -> tuple[int, str, str] | None:
    """(parent, state letter, name) of a process; ``None`` if it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    name, rest = text[text.index("(") + 1 :].rsplit(")", 1)
    state, parent = rest.split()[:2]
    return int(parent), state, name


def _command(pid: int) -> str:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return raw.replace(b"\0", b" ").decode(errors="replace").strip()


def _pids(lines: list[str]) -> list[int]:
    return [int(line.split()[1]) for line in lines if line.startswith("process ")]


# -- things -------------------------------------------------------------------------------------


def cgroup_directories() -> Iterator[Path]:
    """Below the cgroup that was handed to this user, in every hierarchy; without our own leaf."""
    if name := os.environ.get("SANDBOX_KERNEL_CGROUP", "").strip("/"):
        root = Path("/sys/fs/cgroup")
        for top in (root / name, *root.glob(f"*/{name}")):
            # not rglob: it fails where a directory vanishes while it looks
            here = (Path(path) for path, _, _ in os.walk(top))
            yield from (path for path in here if path not in (top, top / "tests"))


def _mounts(folder: Path) -> Iterator[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, right = line.split(" - ", 1)
        point, source = left.split()[4], right.split()[1]
        if source == "sandbox" or point.startswith(str(folder)):
            yield f"{point} ({source})"


def _bound_sockets(folder: Path) -> Iterator[str]:
    """Unix sockets that are bound in one of :data:`_WATCHED`, even where their file is gone."""
    for line in Path("/proc/net/unix").read_text(errors="replace").splitlines()[1:]:
        path = line.split(maxsplit=7)[-1]
        if any(f"{folder}/{name}/" in path for name in _WATCHED):
            yield path


def _files(folder: Path) -> Iterator[Path]:
    """But what is in the notebook's folder, and the kernelspec: those are the test's own."""
    for name in _WATCHED:
        for path, folders, files in os.walk(folder / name):
            yield from (Path(path, entry) for entry in (*folders, *files))
