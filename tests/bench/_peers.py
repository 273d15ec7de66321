"""The peers: one way each to get a kernel, all driven by the same client.

``plain`` is ipykernel as every front end starts it. ``bubblewrap`` and ``runc`` are what an
administrator would write around it by hand: no network namespace, no veth, no proxy, no caps.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import zmq
from jupyter_client.manager import KernelManager
from jupyter_client.session import Session

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from integration.sandboxes import manager

#: Seconds. Nothing waits that long.
TIMEOUT: Final = 60
KERNEL: Final = ["-m", "ipykernel_launcher", "-f", "{connection_file}"]


class Peer:
    """Something that starts a kernel; ``folder`` is the benchmark's, ``work`` the notebook's."""

    name: str

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / "work"
        self.work.mkdir(exist_ok=True)

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
        return with_command(self.folder, [sys.executable, *KERNEL])


class Bubblewrap(Peer):
    name = "bubblewrap"

    def missing(self) -> str | None:
        return None if shutil.which("bwrap") else "bubblewrap is not installed"

    def manager(self) -> KernelManager:
        # The kernel takes JPY_PARENT_PID for its parent, and it is no process of this namespace.
        command = ["bwrap", "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
        command += ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"]
        command += ["--bind", str(self.folder), str(self.folder), "--die-with-parent"]
        command += ["--unsetenv", "JPY_PARENT_PID", "--setenv", "HOME", str(self.folder)]
        return with_command(self.folder, [*command, sys.executable, *KERNEL])


class Runc(Peer):
    name = "runc"

    def missing(self) -> str | None:
        return None if shutil.which("runc") else "runc is not installed"

    def manager(self) -> KernelManager:
        bundle = self.folder / f"bundle-{uuid.uuid4().hex[:8]}"
        km = with_command(self.folder, runc_command(bundle, self.folder))
        km.connection_file = str(bundle / "kernel.json")
        write_bundle(bundle, self.folder, [sys.executable, *KERNEL[:-1], km.connection_file])
        return km

    def after(self, km: KernelManager) -> None:
        bundle = Path(km.connection_file).parent
        root = ["runc", "--root", str(self.folder / "runc")]
        subprocess.run([*root, "delete", "-f", bundle.name], capture_output=True)
        shutil.rmtree(bundle, ignore_errors=True)


def runc_command(bundle: Path, folder: Path) -> list[str]:
    root = str(folder / "runc")
    return ["runc", "--root", root, "run", "--bundle", str(bundle), bundle.name]


def write_bundle(bundle: Path, folder: Path, arguments: list[str]) -> None:
    """What ``runc spec --rootless`` makes, with the host's files read-only and its network."""
    bundle.mkdir()
    subprocess.run(["runc", "spec", "--rootless"], cwd=bundle, check=True)
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

    def manager(self) -> KernelManager:
        return manager(self.folder, {**self.CAPS, **self.config})


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
    """Those that are there; the others are named on standard error."""
    found: list[Peer] = [
        Plain(folder), Bubblewrap(folder), Runc(folder), Sandboxed(folder, "sandboxed"),
    ]  # fmt: skip
    for peer in found:
        if why := peer.missing():
            print(f"not measured: {peer.name}, {why}", file=sys.stderr)
    return [peer for peer in found if peer.missing() is None]


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
