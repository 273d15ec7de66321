"""The report of a running kernel's walls: what stands, and what is missing where it is missing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from escape.leaky_launcher import LEAKED
from integration.remains import caps
from integration.sandboxes import TIMEOUT, kernel_pid, said, started
from jupyter_client.manager import KernelManager

from sandbox_kernel.client import Launcher
from sandbox_kernel.engine.namespaces import KINDS
from sandbox_kernel.errors import ProtocolError
from sandbox_kernel.observe import Observation, observe
from sandbox_kernel.provisioner import SandboxProvisioner
from sandbox_kernel.syscalls import landlock_abi

#: What says nothing good or bad by itself.
TOLD = {("kernel", "writable mounts"), ("kernel", "oom_score_adj")}
#: Not for other processes of the user to see: it is not dumpable.
UNSEEN = {("init", f"{kind} namespace") for kind in ("pid", "mnt", "user")} | {
    ("supervisor", f"{kind} namespace") for kind in ("user", "net")
}


def look(km: KernelManager) -> Observation:
    assert isinstance(km.provisioner, SandboxProvisioner)
    return km.provisioner.observed_walls()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KernelManager]:
    with started(tmp_path_factory.mktemp("observed"), caps()) as (km, _):
        yield km


@pytest.fixture(scope="module")
def seen(running: KernelManager) -> Observation:
    return look(running)


def test_every_wall_of_a_running_kernel_stands(seen: Observation) -> None:
    print(seen.table())
    assert seen.missing() == ()
    unknown = {(w.process, w.name) for w in seen.walls if w.stands is None}
    if landlock_abi() == 0:
        unknown.discard(("kernel", "Landlock"))
    if not caps():
        unknown.discard(("kernel", "cgroup"))
    assert unknown <= TOLD | UNSEEN


def test_it_looks_at_the_three_processes(running: KernelManager, seen: Observation) -> None:
    assert seen.kernel_pid == kernel_pid(running)
    assert (seen.init_pid, seen.supervisor_pid) == (
        said(running).init_pid, said(running).supervisor_pid,
    )  # fmt: skip
    for process in ("kernel", "init", "supervisor"):
        assert seen.wall(process, "seccomp filter").stands
        assert seen.wall(process, "capabilities").seen == "all five sets are empty"
    for kind in KINDS:
        assert seen.wall("kernel", f"{kind} namespace").stands


def test_what_was_seen_is_told(running: KernelManager, seen: Observation) -> None:
    assert seen.wall("kernel", "uid_map").seen == f"{os.getuid()} is {os.getuid()} (1)"
    assert seen.wall("kernel", "Landlock").seen.startswith(f"ABI {landlock_abi()}, ")
    assert seen.wall("kernel", "network").seen == "eth0, lo"
    assert "/dev/shm" in seen.wall("kernel", "writable mounts").seen
    assert seen.wall("kernel", "core limit").seen in ("0", "1")


@pytest.mark.needs("cgroups")
def test_the_cgroup_is_the_kernels_own(seen: Observation) -> None:
    assert "kernel-" in seen.wall("kernel", "cgroup").seen


def test_the_table_has_a_line_a_wall(seen: Observation) -> None:
    lines = seen.table().splitlines()
    assert len(lines) == len(seen.walls)
    for line, wall in zip(lines, seen.walls, strict=True):
        assert line.split()[0] in ("stands", "unknown")
        assert line.endswith(wall.seen)


# -- where there is none --------------------------------------------------------------------------


def test_a_process_without_a_sandbox_lacks_every_wall() -> None:
    """A shell and its child, looked at as if they were an init and a kernel."""
    with subprocess.Popen(
        ["sh", "-c", "sleep 1000 & echo; wait"], stdout=subprocess.PIPE, start_new_session=True
    ) as shell:
        try:
            assert shell.stdout is not None
            shell.stdout.readline()
            seen = observe(os.getpid(), shell.pid, 0)
        finally:
            os.killpg(shell.pid, 9)
    missing = {(wall.process, wall.name) for wall in seen.missing()}
    assert missing >= {
        *(("kernel", f"{kind} namespace") for kind in KINDS),
        *((p, n) for p in ("kernel", "init", "supervisor")
          for n in ("capabilities", "no_new_privs", "seccomp filter")),
        *((p, "not dumpable") for p in ("init", "supervisor")),
        ("kernel", "uid_map"), ("kernel", "gid_map"),
        ("kernel", "read-only root"), ("kernel", "nosuid"),
    }  # fmt: skip
    assert "MISSING" in seen.table()
    assert seen.wall("kernel", "Landlock").stands is None


def test_a_descriptor_of_the_host_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Path(__file__).with_name("leaky_launcher.py")
    command = (sys.executable, "-Xfrozen_modules=off", str(script), "/etc/passwd")
    monkeypatch.setattr(SandboxProvisioner, "_launcher_command", command)
    with started(tmp_path) as (km, _):
        (missing,) = look(km).missing()
        assert (missing.process, missing.name) == ("kernel", "descriptors")
        assert missing.seen.startswith(f"{LEAKED} is ")
    launcher = Launcher._running.pop(command)
    launcher.close()
    launcher.process.wait(TIMEOUT)


def test_a_kernel_that_is_gone_is_not_looked_at(tmp_path: Path) -> None:
    with started(tmp_path) as (km, _):
        provisioner, now = km.provisioner, said(km)
    assert isinstance(provisioner, SandboxProvisioner)
    with pytest.raises(ProtocolError, match="no kernel runs"):
        provisioner.observed_walls()
    with pytest.raises(ProtocolError, match=f"the sandbox of process {now.init_pid} cannot be"):
        observe(now.supervisor_pid, now.init_pid, now.landlock_abi)
