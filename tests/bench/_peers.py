"""The peers: one way each to get a kernel, all driven by the same client.

``plain`` is ipykernel as every front end starts it. ``bubblewrap`` and ``runc`` are what an
administrator would write around it by hand: no network namespace, no veth, no proxy, no caps. Of
ours there are ``zygote`` (forked from the launcher, as by default), ``cold`` (a new program, as
they are) and ``pool`` (built before it was asked for).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import zmq
from jupyter_client.manager import KernelManager
from jupyter_client.session import Session

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from integration.sandboxes import manager

from sandbox_kernel.client import Launcher
from sandbox_kernel.provisioner import SandboxProvisioner
from sandbox_kernel.spec import KEYS

#: Seconds. Nothing waits that long.
TIMEOUT: Final = 60
KERNEL: Final = ["-m", "ipykernel_launcher", "-f", "{connection_file}"]
#: Debian has runc where the PATH of an ordinary user does not lead.
_PATH: Final = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin"))
BWRAP: Final = shutil.which("bwrap", path=_PATH) or "bwrap"
RUNC: Final = shutil.which("runc", path=_PATH) or "runc"


class Peer:
    """Something that starts a kernel; ``folder`` is the benchmark's, ``work`` the notebook's."""

    name: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / "work"
        self.work.mkdir(exist_ok=True)
        self.prefix: tuple[str, ...] = ()
        """A command that runs what comes after it."""

    def missing(self) -> str | None:
        """Why it cannot be measured here."""
        return None

    def manager(self) -> KernelManager:
        """Not timed: everything that is there before somebody asks for a kernel."""
        raise NotImplementedError

    def start(self, km: KernelManager) -> None:
        """Without what ipykernel says on standard error when it has no parent to watch."""
        km.start_kernel(cwd=str(self.work), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    @contextlib.contextmanager
    def running(self) -> Iterator[KernelManager]:
        """A kernel that has answered once, and is ended at the end."""
        km = self.manager()
        self.start(km)
        try:
            ask(km)
            yield km
        finally:
            km.shutdown_kernel(now=True)
            self.after(km)

    def after(self, km: KernelManager) -> None:
        """Not timed: what is left to remove."""


class Plain(Peer):
    name = "plain"

    def manager(self) -> KernelManager:
        return with_command(self.folder, [*self.prefix, sys.executable, *KERNEL])


class Bubblewrap(Peer):
    name = "bubblewrap"

    def missing(self) -> str | None:
        return None if shutil.which(BWRAP) else "bubblewrap is not installed"

    def manager(self) -> KernelManager:
        # The kernel takes JPY_PARENT_PID for its parent, and it is no process of this namespace.
        command = [
            *self.prefix,
            BWRAP,
            "--unshare-user",
            "--unshare-pid",
            "--unshare-ipc",
            "--unshare-uts",
        ]
        command += ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"]
        command += ["--bind", str(self.folder), str(self.folder), "--die-with-parent"]
        command += ["--unsetenv", "JPY_PARENT_PID", "--setenv", "HOME", str(self.folder)]
        return with_command(self.folder, [*command, sys.executable, *KERNEL])


class Runc(Peer):
    name = "runc"

    def missing(self) -> str | None:
        return None if shutil.which(RUNC) else "runc is not installed"

    def manager(self) -> KernelManager:
        bundle = self.folder / f"bundle-{uuid.uuid4().hex[:8]}"
        km = with_command(self.folder, [*self.prefix, *runc_command(bundle, self.folder)])
        km.connection_file = str(bundle / "kernel.json")
        write_bundle(bundle, self.folder, [sys.executable, *KERNEL[:-1], km.connection_file])
        return km

    def after(self, km: KernelManager) -> None:
        bundle = Path(km.connection_file).parent
        command = [*_runc(self.folder), "delete", "-f", bundle.name]
        subprocess.run(command, capture_output=True)
        shutil.rmtree(bundle, ignore_errors=True)


def runc_command(bundle: Path, folder: Path) -> list[str]:
    return [*_runc(folder), "run", "--bundle", str(bundle), bundle.name]


def _runc(folder: Path) -> list[str]:
    """Not told where its state goes it leaves a folder in the user's run-time directory."""
    return [RUNC, "--root", str(folder / "runc")]


def write_bundle(bundle: Path, folder: Path, arguments: list[str]) -> None:
    """What ``runc spec --rootless`` makes, with the host's files read-only and its network."""
    bundle.mkdir()
    subprocess.run([*_runc(folder), "spec", "--rootless"], cwd=bundle, check=True)
    path = bundle / "config.json"
    config: dict[str, Any] = json.loads(path.read_text())
    passed = ("PATH", "LANG", "VIRTUAL_ENV")
    environment = [f"{name}={os.environ[name]}" for name in passed if name in os.environ]
    config["process"] |= {
        "terminal": False,
        "args": arguments,
        "cwd": str(folder / "work"),
        "env": [*environment, f"HOME={folder}"],
    }
    (bundle / "root").mkdir()
    config["root"] = {"path": "root", "readonly": False}
    config["mounts"] = [m for m in config["mounts"] if m["destination"] != "/sys/fs/cgroup"]
    config["mounts"] += [_bind(each, "ro") for each in host_folders()]
    config["mounts"].append(_bind(folder, "rw"))
    path.write_text(json.dumps(config))


def host_folders() -> list[Path]:
    """Top-level folders of the host, but those that a container has of its own."""
    own = {"proc", "sys", "dev", "tmp", "run", "boot", "lost+found"}
    return [p for p in Path("/").iterdir() if p.name not in own and p.is_dir()]


def _bind(path: Path, mode: str) -> dict[str, Any]:
    options = ["rbind", mode]
    return {"destination": str(path), "type": "none", "source": str(path), "options": options}


class Sandboxed(Peer):
    """This project, with the default walls and caps on memory, CPU and processes."""

    CAPS: Final = {"memory": "1G", "cpus": 2.0, "pids": 512}

    def __init__(self, folder: Path, name: str, config: dict[str, Any] | None = None) -> None:
        super().__init__(folder)
        self.name = name
        self.config = config or {}
        self.specs = folder / name
        self.specs.mkdir(exist_ok=True)
        self.used = False

    def missing(self) -> str | None:
        unknown = self.config.keys() - set(KEYS)
        return f"the spec has no key {', '.join(unknown)}" if unknown else None

    def manager(self) -> KernelManager:
        if self.config.get("pool") and not self.used:
            self.used = True
            with self.running():  # the first start is what fills the pool
                pass
        return manager(self.specs, {**self.CAPS, **self.config})

    def after(self, km: KernelManager) -> None:
        """The next sandbox is built now and not while another peer is measured."""
        if self.config.get("pool"):
            _wait_until_filled(self.config["pool"])


def _wait_until_filled(count: int) -> None:
    pool = SandboxProvisioner._pool
    assert pool._timer is not None
    pool._timer.join(TIMEOUT)
    while pool.count() < count:
        coming = [w.sandbox for w in pool._waiting if not w.sandbox.waits]
        assert coming and select.select(coming, [], [], TIMEOUT)[0], "no sandbox came to wait"


@contextlib.contextmanager
def own_folder() -> Iterator[Path]:
    """A folder for this run; at its end nothing waits and no launcher lives."""
    with tempfile.TemporaryDirectory(prefix="skb-") as name:
        try:
            yield Path(name)
        finally:
            end_launchers()


def end_launchers() -> None:
    """Returns when they and all their sandboxes are gone."""
    for waiting in SandboxProvisioner._pool.clear():
        waiting.close()
    for launcher in Launcher.close_all():
        launcher.process.wait(timeout=TIMEOUT)


def with_command(folder: Path, command: list[str]) -> KernelManager:
    """A manager whose kernel is started by ``command``, over ipc as ours is by default."""
    name = uuid.uuid4().hex[:8]
    km = KernelManager(
        kernel_name="python3", transport="ipc", ip=str(folder / f"s-{name}"),
        connection_file=str(folder / f"kernel-{name}.json"),
    )  # fmt: skip
    spec = km.kernel_spec
    assert spec is not None
    spec.argv = command
    return km


def all_peers(folder: Path) -> list[Peer]:
    """Each way to start a kernel."""
    return available(
        Plain(folder),
        Bubblewrap(folder),
        Runc(folder),
        Sandboxed(folder, "cold", {"zygote": False}),
        Sandboxed(folder, "zygote"),
        Sandboxed(folder, "pool", {"pool": 1}),
    )


def running_peers(folder: Path) -> list[Peer]:
    """Each way to have a kernel that runs: how one of ours was started makes no difference then."""
    return available(Plain(folder), Bubblewrap(folder), Runc(folder), Sandboxed(folder, "zygote"))


def available(*peers: Peer) -> list[Peer]:
    """Those that can be had; the others are named on standard error."""
    for peer in peers:
        if why := peer.missing():
            print(f"not measured: {peer.name}, {why}", file=sys.stderr)
    return [peer for peer in peers if peer.missing() is None]


def ask(km: KernelManager) -> None:
    """One ``kernel_info_request``, until its reply.

    The socket tries anew every 5 ms until the kernel has bound. A usual client does each 100 ms: it
    would add up to that to every peer but ours, which has bound when the start returns.
    """
    info = km.get_connection_info()
    ip, port = info["ip"], info["shell_port"]
    session = Session(key=km.session.key, signature_scheme=km.session.signature_scheme)
    with zmq.Context.instance().socket(zmq.DEALER) as sock:
        sock.linger = 0
        sock.reconnect_ivl = 5
        sock.connect(f"ipc://{ip}-{port}" if info["transport"] == "ipc" else f"tcp://{ip}:{port}")
        session.send(sock, "kernel_info_request")
        if not sock.poll(TIMEOUT * 1000):
            raise TimeoutError("no kernel_info_reply came")
        sock.recv_multipart()
