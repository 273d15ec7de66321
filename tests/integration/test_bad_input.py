"""What a machine or a configuration lacks: the kernel does not start, the message says what helps.

Where something of the machine is missing it is really missing, see :mod:`integration.constrained`.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from integration import constrained
from integration.constrained import Lack
from integration.remains import Ground, caps, close_launchers, ground
from integration.sandboxes import connected, manager, started, value
from jupyter_client.manager import KernelManager
from traitlets.config import Config

from sandbox_kernel.client import Launcher
from sandbox_kernel.errors import (
    ChannelError,
    FilterError,
    IdMapError,
    NamespaceError,
    NetworkError,
    SandboxError,
    SetupError,
    SpecError,
)
from sandbox_kernel.provisioner import SandboxProvisioner

HERE = Path(__file__).parent


@pytest.fixture
def here(launchers: None) -> Iterator[Ground]:
    with ground() as found:
        yield found
        found.assert_clean("by a kernel that did not start")


def refusal(km: KernelManager, cwd: Path, kind: type[SandboxError]) -> str:
    """Start it, which must fail; the message."""
    with pytest.raises(kind) as caught:
        km.start_kernel(cwd=str(cwd))
    assert type(caught.value) is kind
    assert not km.has_kernel
    return str(caught.value)


# -- what is missing on the machine ---------------------------------------------------------------


def lacking(here: Ground, config: dict[str, Any] | None = None, **lack: Any) -> dict[str, Any]:
    """What came of one start where something is lacking: ``{"started": True}`` or the error."""
    command = [
        sys.executable,
        str(HERE / "start_once.py"),
        str(here.folder),
        json.dumps(config or {}),
    ]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    done = constrained.run(Lack(str(here.folder), **lack), command, env=environment)
    assert done.returncode == 0, done.stderr
    here.assert_clean("by a kernel that did not start")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_nothing_lacking(here: Ground) -> None:
    """The namespaces of the tests below forbid nothing by themselves."""
    assert lacking(here, caps()) == {"started": True}


def test_user_namespaces_forbidden(here: Ground) -> None:
    assert lacking(here, caps(), sysctl=(("user/max_user_namespaces", "0"),)) == {
        "type": NamespaceError.__name__,
        "message": "a new user namespace was refused: no space left on device (ENOSPC): "
        "/proc/sys/user/max_user_namespaces is 0, so this kind of namespace is forbidden here; "
        "remedy: as root: sysctl -w user.max_user_namespaces=15000",
    }


@pytest.mark.parametrize("kind", ["net", "mnt", "pid", "ipc", "uts", "cgroup", "time"])
def test_another_namespace_forbidden(kind: str, here: Ground) -> None:
    """The limit is not that of the sandbox's own user namespace, and is named all the same."""
    alone = kind in ("net", "cgroup")  # the gateway's, and what the init does when it was moved
    what = kind if alone else "mount, pid, net, ipc, uts and time"
    assert lacking(here, caps(), sysctl=((f"user/max_{kind}_namespaces", "0"),)) == {
        "type": NamespaceError.__name__,
        "message": f"a new {what} namespace was refused: no space left on device (ENOSPC): "
        f"/proc/sys/user/max_{kind}_namespaces is 0, so this kind of namespace is forbidden here; "
        f"remedy: as root: sysctl -w user.max_{kind}_namespaces=15000",
    }


def test_a_limit_that_is_used_up(here: Ground) -> None:
    """The gateway's was the last one. No remedy: who else uses them cannot be seen."""
    assert lacking(here, caps(), sysctl=(("user/max_net_namespaces", "1"),)) == {
        "type": NamespaceError.__name__,
        "message": "a new mount, pid, net, ipc, uts and time namespace was refused: "
        "no space left on device (ENOSPC): a limit below /proc/sys/user is used up",
    }


@pytest.mark.needs("subordinate-ids")
@pytest.mark.parametrize("program", ["newuidmap", "newgidmap"])
@pytest.mark.parametrize("config", [{"identity": "isolated"}, {"id_range": 10}])
def test_no_newuidmap(program: str, config: dict[str, Any], here: Ground) -> None:
    config = caps(workspace="overlay", **config)
    assert lacking(here, config, absent=(f"/usr/bin/{program}",)) == {
        "type": IdMapError.__name__,
        "message": f"{program} is not installed: mapping subordinate ids needs it; "
        "remedy: as root: apt-get install uidmap, or dnf install shadow-utils",
    }


def test_no_newuidmap_where_none_is_needed(here: Ground) -> None:
    absent = ("/usr/bin/newuidmap", "/usr/bin/newgidmap")
    found = tuple(path for path in absent if os.path.exists(path))
    assert lacking(here, caps(), absent=found) == {"started": True}


def test_no_libseccomp(here: Ground) -> None:
    assert lacking(here, caps(), absent=(_libseccomp(),)) == {
        "type": FilterError.__name__,
        "message": "the seccomp filter cannot be compiled: libseccomp.so.2 is not installed; "
        "remedy: apt-get install libseccomp2 (Debian, Ubuntu), "
        "dnf install libseccomp (Fedora, RHEL)",
    }


def _libseccomp() -> str:
    """Where the dynamic loader finds it."""
    import ctypes

    ctypes.CDLL("libseccomp.so.2")
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "libseccomp.so.2" in line:
            return str(Path(line.split()[-1]).with_name("libseccomp.so.2"))
    raise LookupError("libseccomp.so.2 is not mapped")


def test_the_kernel_refuses_the_veth(here: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Really: the supervisor lost CAP_NET_ADMIN just before it asked."""
    code = (
        "import sys\n"
        "from sandbox_kernel import launcher\n"
        "from sandbox_kernel.engine import steps\n"
        "from sandbox_kernel.syscalls import CapabilityBit, capget, capset\n"
        "def observe(step):\n"
        "    if step is steps.Step.VETH:\n"
        "        mask = capget()[1] & ~(1 << 12)\n"
        "        capset(effective=mask, permitted=mask, inheritable=0)\n"
        "steps.observe(observe)\n"
        "sys.exit(launcher.main())"
    )
    command = (sys.executable, "-Xfrozen_modules=off", "-c", code)
    monkeypatch.setattr(SandboxProvisioner, "_launcher_command", command)
    assert refusal(manager(here.folder, caps()), here.work, NetworkError) == (
        "could not make the veth pair sandbox0-eth0: operation not permitted (EPERM)"
    )


@pytest.mark.needs("cgroups")
@pytest.mark.parametrize(
    ("cap", "setting", "controller"),
    [("memory", "512M", "memory"), ("cpus", 1.5, "cpu"), ("pids", 64, "pids")],
)
def test_no_cgroup_for_a_cap(
    cap: str, setting: Any, controller: str, here: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SANDBOX_KERNEL_CGROUP")
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    result = lacking(here, {cap: setting})
    top = f"/sys/fs/cgroup/{controller}/sandbox-kernel/u{os.getuid()}"
    assert result["type"] == "CgroupError"
    assert result["message"].startswith(
        f"controller {controller} is not available under {top}: no such directory (tried too: "
        f"/sys/fs/cgroup/{controller}"
    )
    assert result["message"].endswith(
        f"; remedy: as root: mkdir -p {top} && chown {os.getuid()} {top}"
    )


@pytest.mark.needs("cgroups")
def test_no_cgroup_for_several_caps(here: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SANDBOX_KERNEL_CGROUP")
    monkeypatch.delenv("DBUS_SESSION_BUS_ADDRESS", raising=False)
    message = lacking(here, {"memory": "512M", "pids": 64})["message"]
    assert message.startswith("the caps memory, pids cannot be enforced: ")
    for controller in ("memory", "pids"):
        top = f"/sys/fs/cgroup/{controller}/sandbox-kernel/u{os.getuid()}"
        assert f"controller {controller} is not available under {top}" in message
        assert f"as root: mkdir -p {top} && chown {os.getuid()} {top}" in message


@pytest.mark.needs("cgroups")
def test_cgroups_are_mounted_read_only(here: Ground) -> None:
    """As in a container."""
    message = lacking(here, {"memory": "512M"}, read_only=("/sys/fs/cgroup/memory",))["message"]
    name = os.environ["SANDBOX_KERNEL_CGROUP"].strip("/")
    assert message.startswith(
        f"controller memory is not available under /sys/fs/cgroup/memory/{name}: "
        "/sys/fs/cgroup/memory is mounted read-only"
    )
    assert message.endswith("; remedy: mount it writable; a container needs it from its run-time")


# -- paths ----------------------------------------------------------------------------------------


def test_no_workspace(here: Ground) -> None:
    gone = here.folder / "gone"
    message = refusal(manager(here.folder, caps()), gone, SetupError)
    assert message == (
        f"the workspace {gone} does not exist; "
        "remedy: make it, or set workspace_path to a folder that exists"
    )


def test_no_workspace_at_workspace_path(here: Ground) -> None:
    gone = str(here.folder / "gone")
    message = refusal(manager(here.folder, caps(workspace_path=gone)), here.work, SetupError)
    assert message.startswith(f"the workspace {gone} does not exist; remedy: ")


def test_a_workspace_that_is_a_file(here: Ground) -> None:
    path = here.folder / "file"
    path.touch()
    message = refusal(manager(here.folder, caps(workspace_path=str(path))), here.work, SetupError)
    assert message.startswith(f"the workspace {path} is not a directory; remedy: ")


@pytest.mark.parametrize("path", ["/", "/usr", "/etc/ssl"])
def test_a_workspace_that_is_the_system(path: str, here: Ground) -> None:
    message = refusal(manager(here.folder, caps()), Path(path), SpecError)
    assert message.startswith(
        f"workspace_path = {os.path.realpath(path)!r} is not possible: allowed is a folder that is "
    )
    assert " not within /bin, " in message


def test_a_mount_that_is_not_there(here: Ground) -> None:
    gone = str(here.folder / "gone")
    km = manager(here.folder, caps(mounts=[{"source": gone, "target": "/data"}]))
    with pytest.raises(SetupError, match=f"{gone} cannot be mounted: no such file or directory"):
        km.start_kernel(cwd=str(here.work))


@pytest.mark.parametrize("mode", [0o500, 0o000])
def test_connection_file_unwritable(mode: int, here: Ground) -> None:
    folder = here.folder / "closed"
    folder.mkdir(mode=mode)
    path = folder / "kernel.json"
    km = manager(here.folder, caps(), connection_file=str(path))
    assert refusal(km, here.work, ChannelError) == (
        f"the connection file cannot be written ({path}): permission denied (EACCES)"
    )
    folder.chmod(0o700)
    assert list(folder.iterdir()) == []


def test_connection_file_in_a_folder_that_does_not_exist(here: Ground) -> None:
    path = here.folder / "gone" / "kernel.json"
    km = manager(here.folder, caps(), connection_file=str(path))
    assert refusal(km, here.work, ChannelError) == (
        f"the connection file cannot be written ({path}): no such file or directory (ENOENT)"
    )


def test_no_run_time_directory(here: Ground, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every candidate fails for its own reason, and each is told."""
    long, taken, tmp = (here.folder / name for name in ("x" * 80, "taken", "other-tmp"))
    for path in (long, taken, tmp):
        path.mkdir()
    (taken / "sandbox-kernel").touch()
    (tmp / f"sandbox-kernel-{os.getuid()}").touch()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(taken))
    monkeypatch.setenv("HOME", str(here.folder / "gone"))
    replaced = [*_kept_of_tmp(tmp, here.folder, HERE, Path(sys.prefix)), ("/tmp", str(tmp))]
    assert lacking(here, caps(), replaced=replaced) == {
        "type": ChannelError.__name__,
        "message": f"no run-time directory is usable: {long} is too long for a unix socket; "
        f"{taken}/sandbox-kernel cannot be made: file exists (EEXIST); "
        f"/tmp/sandbox-kernel-{os.getuid()} cannot be made: file exists (EEXIST)",
    }


def _kept_of_tmp(other: Path, *needed: Path) -> Iterator[tuple[str, str]]:
    """Where ``other`` takes the place of /tmp: what is needed of the latter, in the former."""
    for top in dict.fromkeys(Path(*p.parts[:3]) for p in needed if p.parts[:2] == ("/", "tmp")):
        (other / top.name).mkdir()
        yield str(other / top.name), str(top)


def test_a_run_time_directory_that_is_too_long_is_passed_over(
    here: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = here.folder / ("x" * 80)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    with started(here.folder, caps()) as (km, client):
        assert km.ip.startswith(str(here.folder / "jupyter"))
        assert value(client, "1 + 1") == 2


def test_an_endpoint_that_is_taken(here: Ground) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        km = manager(here.folder, caps(transport="tcp"), hb_port=port, cache_ports=False)
        assert refusal(km, here.work, ChannelError) == (
            f"the hb endpoint tcp://127.0.0.1:{port} could not be bound: another process uses the "
            "address, address already in use (EADDRINUSE)"
        )


# -- the spec -------------------------------------------------------------------------------------

WRONG = [
    ("memroy", "512M", "memroy = '512M' is not possible: allowed is one of the keys identity, "),
    ("memory", "512X", "memory = '512X' is not possible: allowed is a size in bytes or with a "),
    ("memory", "1M", "memory = '1M' is not possible: allowed is a size in bytes or with a suffix"),
    ("memory", True, "memory = True is not possible: allowed is a size in bytes or with a suffix"),
    ("cpus", "2", "cpus = '2' is not possible: allowed is a number from 0.01 to 4096"),
    ("cpus", 0, "cpus = 0 is not possible: allowed is a number from 0.01 to 4096"),
    ("pids", 1.5, "pids = 1.5 is not possible: allowed is a whole number from 32 to 4194304"),
    ("pids", 3, "pids = 3 is not possible: allowed is a whole number from 32 to 4194304"),
    ("identity", "me", "identity = 'me' is not possible: allowed is one of 'keep-id', 'root', "),
    ("workspace", "rx", "workspace = 'rx' is not possible: allowed is one of 'rw', 'ro', "),
    ("workspace_path", "work", "workspace_path = 'work' is not possible: allowed is an absolute "),
    ("network", "full", "network = 'full' is not possible: allowed is one of 'none'"),
    ("mounts", "/data", "mounts = '/data' is not possible: allowed is a list of tables {source, "),
    ("env_pass", ["A B"], "env_pass[0] = 'A B' is not possible: allowed is the name of an "),
    ("start_timeout", 0, "start_timeout = 0 is not possible: allowed is a number from 1 to 600"),
]


@pytest.fixture
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Not even a launcher, not even for a moment."""
    close_launchers()
    yield
    assert Launcher._running == {}


@pytest.mark.parametrize(("key", "setting", "message"), WRONG)
def test_a_wrong_spec(
    key: str, setting: Any, message: str, here: Ground, nothing_starts: None
) -> None:
    """Whether it comes from the kernelspec or from the server's own config."""
    km = manager(here.folder, {key: setting})
    assert refusal(km, here.work, SpecError).startswith(message)
    assert here.left() == []
    km = manager(here.folder)
    km.update_config(Config({"SandboxProvisioner": {key: setting}}))
    assert refusal(km, here.work, SpecError).startswith(message)


def test_the_server_s_config_is_used_at_all(here: Ground) -> None:
    km = manager(here.folder)
    km.update_config(Config({"SandboxProvisioner": {"hostname": "from-the-server"}}))
    km.start_kernel(cwd=str(here.work))
    with connected(km) as client:
        assert value(client, "__import__('socket').gethostname()") == "from-the-server"
    km.shutdown_kernel(now=True)
