"""Where nothing is delegated to the server, the user's systemd makes a scope for all his kernels.

Runs wherever the own cgroup is not delegated: in a session as after ssh, in a plain service of the
user. Whatever a test does, at its end the scope is gone, by itself.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import probes
import pytest
from integration.remains import PATIENCE, descendants, end_of, kernel_pid, wait_for_end
from integration.sandboxes import (
    environment_files,
    inside,
    own_launcher,
    run_cell,
    started,
    value,
)
from jupyter_client.manager import KernelManager

from sandbox_kernel.client import launcher_command
from sandbox_kernel.engine.cgroups import running
from sandbox_kernel.environment import user_buses
from sandbox_kernel.errors import CgroupError
from sandbox_kernel.provisioner import SandboxProvisioner

pytestmark = pytest.mark.needs("systemd-user")

MIB = 1024**2
MANAGER = probes.CGROUP_ROOT / f"user.slice/user-{os.getuid()}.slice/user@{os.getuid()}.service"
SCOPE = MANAGER / "app.slice/sandbox-kernel.scope"
TOTAL = SCOPE / f"user-{os.getuid()}"


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Launchers of this test's own that know of no delegated directory."""
    monkeypatch.delenv("SANDBOX_KERNEL_CGROUP", raising=False)
    before = set(descendants())
    assert gone(SCOPE), "another test has left the scope"
    with own_launcher():
        yield
    assert gone(SCOPE), [str(p.relative_to(SCOPE)) for p in SCOPE.rglob("*") if p.is_dir()]
    assert not wait_for_end(set(descendants()) - before)


def gone(path: Path) -> bool:
    """Whether the directory goes. Nothing tells when systemd removes a cgroup."""
    deadline = time.monotonic() + PATIENCE * probes.TIMEOUT_FACTOR
    while path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    return not path.exists()


def cgroup_of(pid: int) -> Path:
    (line,) = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return probes.CGROUP_ROOT / line.removeprefix("0::/")


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def supervisor_pid(km: KernelManager) -> int:
    assert isinstance(km.provisioner, SandboxProvisioner) and km.provisioner.pid
    return km.provisioner.pid


@pytest.fixture
def other_launcher(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """To be called: kernels start from then on as if another server had started them."""
    python, *rest = launcher_command(sys.executable)
    command = (python, "-q", *rest)
    return lambda: monkeypatch.setattr(SandboxProvisioner, "_launcher_command", command)


# -- that it works ---------------------------------------------------------------------------------


def test_caps_bite_where_nothing_was_delegated(tmp_path: Path) -> None:
    config = {"memory": "256M", "cpus": 1.5, "pids": 64}
    with started(tmp_path, config) as (km, client):
        leaf = cgroup_of(kernel_pid(km))
        assert leaf.parent == SCOPE
        assert (leaf / "memory.max").read_text() == f"{256 * MIB}\n"
        assert (leaf / "cpu.max").read_text() == "150000 100000\n"
        assert cgroup_of(supervisor_pid(km)) == SCOPE / "supervisors"
        assert (SCOPE / "cgroup.procs").read_text() == ""
        code = (
            "import os, signal\n"
            "children = []\n"
            "try:\n"
            "    while len(children) < 200:\n"
            "        if (pid := os.fork()) == 0: signal.pause()\n"
            "        children.append(pid)\n"
            "except OSError as error:\n"
            "    print(error.errno)\n"
            "for pid in children:\n"
            "    os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)"
        )
        assert run_cell(client, code).stdout == f"{errno.EAGAIN}\n"
        greedy = "data = [bytes(16 * 2**20).replace(b'\\0', b'x') for _ in range(64)]"
        cell = run_cell(client, greedy)
        assert cell.ename == "MemoryCapExceeded"
        assert cell.evalue.startswith("the kernel reached its memory cap of 256 MiB")
        end_of(km)


def test_the_kernel_does_not_learn_where_systemd_is(tmp_path: Path) -> None:
    with started(tmp_path, {"pids": 128}) as (_, client):
        text = inside(client, environment_files)
    assert "HOME" in text
    assert "DBUS_SESSION" not in text and os.environ["DBUS_SESSION_BUS_ADDRESS"] not in text


def test_through_the_bus_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    run.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(run))
    with started(tmp_path, {"pids": 128}) as (km, _):
        assert cgroup_of(kernel_pid(km)).parent == SCOPE


def test_through_the_socket_of_systemd_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS")
    assert user_buses(os.environ)[0].endswith("/systemd/private")
    with started(tmp_path, {"pids": 128}) as (km, _):
        assert cgroup_of(kernel_pid(km)).parent == SCOPE


def test_a_kernel_without_a_cap_stays_where_it_is(tmp_path: Path) -> None:
    with started(tmp_path) as (km, _):
        assert cgroup_of(kernel_pid(km)) == cgroup_of(os.getpid())
        assert not SCOPE.exists()


# -- all kernels of the user -----------------------------------------------------------------------


def test_kernels_of_two_launchers_share_the_total(
    tmp_path: Path, other_launcher: Callable[[], None]
) -> None:
    config = {"user": {"memory": "320M"}}
    with started(tmp_path, config) as (one, first):
        assert run_cell(first, "kept = bytes(64 * 2**20).replace(b'\\0', b'x')").ok
        other_launcher()
        with started(tmp_path, config) as (other, second):
            assert parent_of(supervisor_pid(one)) != parent_of(supervisor_pid(other))
            places = {cgroup_of(kernel_pid(km)).parent for km in (one, other)}
            assert places == {TOTAL}
            assert (TOTAL / "memory.max").read_text() == f"{320 * MIB}\n"
            greedy = "data = [bytes(16 * 2**20).replace(b'\\0', b'x') for _ in range(64)]"
            cell = run_cell(second, greedy)
            assert cell.evalue.startswith("all kernels of this user together used the memory")
            end_of(other)
        assert value(first, "len(kept)") == 64 * MIB


def test_a_second_launcher_cannot_start_one_kernel_more(
    tmp_path: Path, other_launcher: Callable[[], None]
) -> None:
    config = {"user": {"kernels": 1}}
    with started(tmp_path, config) as (_, client):
        other_launcher()
        with pytest.raises(CgroupError) as caught, started(tmp_path, config):
            pass
        assert caught.value.message.startswith("1 kernels of this user run already")
        assert value(client, "1 + 1") == 2


CREATE = """
import os, sys
from sandbox_kernel.engine.cgroups import UserScope, create
from sandbox_kernel.spec import Caps, MissingCap
group = create(
    Caps(pids=100), "kernel-crowd", uid=os.getuid(), hint=None, on_missing=MissingCap.ERROR,
    scope=UserScope(tuple(sys.argv[1:]), seconds=100),
)
print(open("/proc/self/cgroup").read().strip(), flush=True)
sys.stdin.read()
assert group.remove() == ()
"""


@pytest.mark.parametrize("bus", [0, -1], ids=["private", "bus"])
def test_many_enter_and_leave_at_once(bus: int) -> None:
    """Each round begins while the scope of the last one is ending."""
    command = [sys.executable, "-c", CREATE, user_buses(os.environ)[bus]]
    expected = "0::/" + str((SCOPE / "supervisors").relative_to(probes.CGROUP_ROOT))
    for _ in range(4):
        crowd = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(4)
        ]
        said = []
        for process in crowd:
            assert process.stdin and process.stdout
            said.append(process.stdout.readline().strip())
            process.stdin.close()  # the next may find nobody there
        assert [process.wait(100) for process in crowd] == [0] * 4
        for process in crowd:
            assert process.stdout
            process.stdout.close()
        assert said == [expected] * 4


# -- what is left ----------------------------------------------------------------------------------


def test_a_supervisor_that_is_killed_leaves_nothing(tmp_path: Path) -> None:
    with started(tmp_path, {"memory": "256M"}) as (km, _):
        os.kill(supervisor_pid(km), signal.SIGKILL)
        end_of(km)
    assert gone(SCOPE)


def test_what_a_killed_one_leaves_beside_another_kernel_is_swept(tmp_path: Path) -> None:
    """The scope stays for the sibling, so systemd removes nothing."""
    config = {"memory": "256M", "user": {"kernels": 3}}
    with started(tmp_path, config) as (sibling, client), started(tmp_path, config) as (km, _):
        leaf = cgroup_of(kernel_pid(km))
        assert leaf.parent == TOTAL
        assert {group.name for group in running(os.getuid(), None)} == {
            leaf.name,
            cgroup_of(kernel_pid(sibling)).name,
        }
        os.kill(supervisor_pid(km), signal.SIGKILL)
        end_of(km)
        assert gone(leaf)
        assert value(client, "1 + 1") == 2


# -- what systemd does not hand down ---------------------------------------------------------------

MORE = {
    "io": {"io": [{"path": "/var/tmp", "read_bps": "10M"}]},
    "cpuset": {"cpuset_cpus": "0"},
    "hugetlb": {"hugetlb": {"2MB": "4M"}},
}


@pytest.mark.parametrize("controller", sorted(MORE))
def test_a_controller_is_held_or_the_drop_in_is_named(tmp_path: Path, controller: str) -> None:
    handed_down = controller in (MANAGER / "cgroup.controllers").read_text().split()
    config = {"memory": "256M", **MORE[controller]}
    if handed_down:
        with started(tmp_path, config) as (km, _):
            leaf = cgroup_of(kernel_pid(km))
            assert leaf.parent == SCOPE
            assert controller in (leaf / "cgroup.controllers").read_text().split()
            assert (leaf / "memory.max").read_text() == f"{256 * MIB}\n"
        return
    with pytest.raises(CgroupError) as caught, started(tmp_path, config):
        pass
    message = caught.value.message
    assert f"controller {controller} is not available" in message
    assert f"{controller} is not in {SCOPE}/cgroup.controllers" in message
    assert "remedy: as root: systemctl edit user@.service" in message


def test_without_a_bus_the_message_names_all_that_was_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS")
    monkeypatch.setattr(
        "sandbox_kernel.client.user_buses", lambda environment: ("unix:path=/nonexistent/bus",)
    )
    with pytest.raises(CgroupError) as caught, started(tmp_path, {"memory": "256M"}):
        pass
    message = caught.value.message
    cause = "(unix:path=/nonexistent/bus: no such file or directory"
    assert f"sandbox-kernel.scope: the user's systemd cannot be reached {cause}" in message
    assert str(cgroup_of(os.getpid())) in message
