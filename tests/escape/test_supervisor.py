"""What a kernel gains that has taken its supervisor over: nothing that it had not.

Code runs in the supervisor where it judges the bytes of its kernel, see ``hostile_supervisor.py``,
and tries what the kernel cannot. Then the same in a supervisor that was not locked down: it gets
through there, or it is said here which other wall it meets.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from escape.hostile_supervisor import ATTACKS, TAKE_OVER
from integration.remains import caps, cgroup_directories, wait_for_end
from integration.sandboxes import TIMEOUT, said, started

from sandbox_kernel.client import Launcher
from sandbox_kernel.provisioner import SandboxProvisioner
from sandbox_kernel.syscalls import CapabilityBit, landlock_abi

#: Attack → the first ABI of Landlock that stops it, where no other wall does.
LANDLOCK = {
    "read the audit log": 1,
    "open the audit log without O_APPEND": 1,
    "signal the writer of the audit log": 6,
    "read a secret of the user": 1,
    "read a file of the workspace": 1,
    "write a file of the workspace": 1,
    "remove a file of the workspace": 1,
    "look into another kernel's run-time directory": 1,
    "read the status of the server": 1,
    "write to another cgroup": 1,
    "put the server into its own cgroup": 1,
    "reach the host through a socket that listens": 4,
    "reach the host through a socket that is disconnected": 4,
    "signal the server through a pidfd": 6,
}
#: Attack → what it gets though the supervisor is not locked down, and from which wall.
ELSEWHERE = {
    "have the audit log open": ("EBADF", "none: it has a pipe, at whose end another process is"),
    "connect to a TCP port of the host": ("ENETUNREACH", "the gateway's net namespace"),
    "trace the server": ("EPERM", "the user namespace"),
    "read the memory of the server": ("EPERM", "the user namespace"),
    "open the memory of the server": ("EACCES", "the user namespace"),
    "read the environment of the server": ("EACCES", "the user namespace"),
    "open the memory of the launcher": ("EACCES", "the user namespace, and it is not dumpable"),
    "mount": ("EPERM", "the user namespace: the mounts are the host's"),
    "enter a namespace": ("EPERM", "the user namespace: the other one is the host's"),
    "take another id": ("EINVAL", "the user namespace: it is not mapped"),
    "load a BPF program": ("EINVAL EPERM", "none, or a sysctl: there was no program to load"),
    "count events": ("EFAULT EACCES EPERM", "none, or a sysctl: there was no event"),
    "open by handle": (
        "EFAULT EPERM",
        "none, or before Linux 6.11 the user namespace: there was no handle",
    ),
    "take a descriptor of the server": ("EBADF", "none: the call was taken, there was no pidfd"),
}


@dataclass(frozen=True)
class Taken:
    """What came of the attacks in one supervisor."""

    outcomes: dict[str, str]
    bait_is_left: bool
    """The file that the launcher was to remove when the supervisor was killed."""


class Stage:
    """A server, another kernel, files of the user: what is worth an attack."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.stack = folder, stack
        self.work = folder / "work"
        self.work.mkdir()
        (self.work / "note.ipynb").write_text("{}")
        (folder / "secret").write_text("secret")
        self.bait = folder / "bait"
        self.audit = folder / "audit.jsonl"
        self.told = self._listen("told", socket.SOCK_SEQPACKET)
        self._listen("unix", socket.SOCK_STREAM)
        self.tcp = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.server = stack.enter_context(subprocess.Popen(["sleep", "1000"]))
        stack.callback(self.server.kill)
        (folder / "other").mkdir()
        self.other, _ = stack.enter_context(started(folder / "other", caps()))

    def take_over(self, folder: Path, *, locked: bool) -> Taken:
        """Start a kernel, let it take its supervisor over, kill that."""
        folder.mkdir()
        for path in (self.bait, Path(f"{self.bait}.other")):
            path.touch()
        (self.folder / "arena").write_text(json.dumps(self._arena(folder) | {"locked": locked}))
        config = caps(audit_log=str(self.audit))
        with hostile(self.folder), started(folder, config, cwd=self.work) as running:
            km, client = running
            client.execute("", user_expressions={"bytes": repr(TAKE_OVER.decode())})
            connection, _ = self.told.accept()
            with connection:
                connection.settimeout(TIMEOUT)
                found = json.loads(connection.recv(65536))
            supervisor, init = said(km).supervisor_pid, said(km).init_pid
            os.kill(supervisor, signal.SIGKILL)
            assert wait_for_end([supervisor, init]) == []
        return Taken(found, self.bait.exists())

    def _arena(self, folder: Path) -> dict[str, Any]:
        provisioner = self.other.provisioner
        assert isinstance(provisioner, SandboxProvisioner) and provisioner.directory
        return {
            "secret": str(self.folder / "secret"),
            "notebook": str(self.work / "note.ipynb"),
            "new": str(folder / "new"),
            "bait": str(self.bait),
            "audit": str(self.audit),
            "unix": str(self.folder / "unix"),
            "kernel": str(provisioner.directory / "k-1"),
            "directory": str(provisioner.directory),
            "tcp": self.tcp.getsockname()[1],
            "server": self.server.pid,
            "cgroup": str(cgroup_file()),
        }

    def _listen(self, name: str, kind: int) -> socket.socket:
        listener = self.stack.enter_context(socket.socket(socket.AF_UNIX, kind))
        listener.bind(str(self.folder / name))
        listener.listen()
        listener.settimeout(TIMEOUT)
        return listener


def cgroup_file() -> Path | None:
    """A file of the other kernel's cgroup that takes a 0 and does nothing with it."""
    for path in cgroup_directories():
        for name in ("cgroup.freeze", "cgroup.clone_children"):
            if path.name.startswith("kernel-") and (path / name).exists():
                return path / name
    return None


@contextmanager
def hostile(folder: Path) -> Iterator[None]:
    """Every start in this block goes through a launcher whose supervisors can be taken over."""
    script = Path(__file__).with_name("hostile_supervisor.py")
    command = (sys.executable, "-Xfrozen_modules=off", str(script), str(folder))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SandboxProvisioner, "_launcher_command", command)
        yield
    launcher = Launcher._running.pop(command)
    launcher.close()
    launcher.process.wait(TIMEOUT)


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sks-"))
        yield Stage(Path(folder), stack)


@pytest.fixture(scope="module")
def locked(stage: Stage) -> Taken:
    return stage.take_over(stage.folder / "locked", locked=True)


@pytest.fixture(scope="module")
def unlocked(stage: Stage) -> Taken:
    """The control: the same supervisor without its lock-down."""
    return stage.take_over(stage.folder / "unlocked", locked=False)


def test_an_attack_has_one_reason_at_most() -> None:
    assert set(LANDLOCK) | set(ELSEWHERE) <= set(ATTACKS)
    assert not set(LANDLOCK) & set(ELSEWHERE)


@pytest.mark.needs("cgroups")
@pytest.mark.parametrize("attack", ATTACKS)
def test_it_fails_in_a_supervisor(attack: str, locked: Taken) -> None:
    """Where this Linux has too old a Landlock for it, it gets through: SECURITY.md says so."""
    if LANDLOCK.get(attack, 0) > landlock_abi():
        assert locked.outcomes[attack] == "0"
    else:
        assert locked.outcomes[attack] in ("EPERM", "EACCES", "EBADF", "ENETUNREACH")


@pytest.mark.needs("cgroups")
@pytest.mark.parametrize("attack", ATTACKS)
def test_it_gets_through_without_the_lock_down(attack: str, unlocked: Taken) -> None:
    expected, _ = ELSEWHERE.get(attack, ("0", ""))
    assert unlocked.outcomes[attack] in expected.split()


@pytest.mark.needs("cgroups")
def test_the_launcher_removes_nothing_that_a_supervisor_names_later(
    locked: Taken, unlocked: Taken
) -> None:
    assert locked.bait_is_left
    assert not unlocked.bait_is_left


# -- seen from outside -----------------------------------------------------------------------------


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def core_limit(pid: int) -> list[str]:
    (line,) = [v for v in Path(f"/proc/{pid}/limits").read_text().splitlines() if "core" in v]
    return line.split()[4:6]


def is_dumpable(pid: int) -> bool:
    """The files of one that is not belong to root."""
    return os.stat(f"/proc/{pid}/environ").st_uid == os.getuid()


@pytest.mark.parametrize(
    ("identity", "capabilities"),
    [
        pytest.param("keep-id", 0, id="the kernel is the user itself"),
        pytest.param("root", 0, id="the kernel is the user itself under another number"),
        pytest.param(
            "isolated", 1 << CapabilityBit.KILL, id="the kernel is somebody else",
            marks=pytest.mark.needs("subordinate-ids"),
        ),
    ],
)  # fmt: skip
def test_what_a_supervisor_still_has(identity: str, capabilities: int, tmp_path: Path) -> None:
    config = {"identity": identity, "workspace": "none"}
    with started(tmp_path, config) as (km, _):
        pid = said(km).supervisor_pid
        seen = status(pid)
        assert [int(seen[f"Cap{name}"], 16) for name in ("Prm", "Eff")] == [capabilities] * 2
        assert [int(seen[f"Cap{name}"], 16) for name in ("Inh", "Bnd", "Amb")] == [0] * 3
        assert (seen["NoNewPrivs"], seen["Seccomp"]) == ("1", "2")
        assert core_limit(pid) == ["1", "1"]
        assert not is_dumpable(pid)
    assert wait_for_end([pid]) == []


def test_a_launcher_that_nobody_looks_into(tmp_path: Path) -> None:
    with started(tmp_path) as (km, _):
        assert is_dumpable(os.getpid())
        launcher = int(status(said(km).supervisor_pid)["PPid"])
        assert not is_dumpable(launcher)
        assert core_limit(launcher) == ["1", "1"]
