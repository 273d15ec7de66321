"""A session of root's with sandboxed kernels, and what it looked like from the host.

Run as a script by tests, in a mount namespace of its own: ``root_session.py RANGE WORKSPACE CONFIG
RESTARTS FOLDER``. ``RANGE`` is ``START:COUNT``, root's subordinate ids, or nothing; it is bound
over /etc/subuid and /etc/subgid, which the host keeps as they are. With ``kill`` for ``RESTARTS``
the supervisor is killed. Prints a JSON object: ``error``, or what was ``seen`` of each kernel.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from integration.remains import (
    close_launchers,
    descendants,
    end_of,
    kernel_pid,
    wait_for_end,
)
from integration.sandboxes import connected, inside, manager, said, value
from jupyter_client.manager import KernelManager

from sandbox_kernel.client import Launcher
from sandbox_kernel.errors import SandboxError
from sandbox_kernel.syscalls import MountFlag, mount

TABLES = ("/etc/subuid", "/etc/subgid")


@dataclasses.dataclass(frozen=True)
class Process:
    """What the host's /proc says of one process."""

    uids: list[int]
    gids: list[int]
    groups: list[int]
    capabilities: dict[str, int]

    @classmethod
    def of(cls, pid: int) -> Process:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        status = dict(line.split(":\t", 1) for line in lines if ":\t" in line)

        def numbers(name: str) -> list[int]:
            return [int(word) for word in status[name].split()]

        names = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
        return cls(
            numbers("Uid"), numbers("Gid"), numbers("Groups"),
            {name: int(status[name], 16) for name in names},
        )  # fmt: skip


def bind_tables(text: str, folder: Path) -> None:
    """Root's ranges, for this mount namespace alone."""
    file = folder / "ranges"
    file.write_text(text)
    file.chmod(0o644)
    for table in TABLES:
        mount(str(file), table, "", MountFlag.BIND)
        assert Path(table).read_text() == text


def identity() -> dict[str, Any]:
    """Who the kernel is by its own account, and what it can write."""
    import os

    with open("/proc/self/uid_map") as uids, open("/proc/self/gid_map") as gids:
        maps = [uids.read().split(), gids.read().split()]
    with open("made", "w") as file:
        file.write("inside")
    return {"ids": [os.getuid(), os.getgid()], "maps": maps}


def look(km: KernelManager, client: Any) -> dict[str, Any]:
    """One running kernel, from both sides."""
    running = said(km)
    (launcher,) = (launcher.process.pid for launcher in Launcher._running.values())
    everybody = {**descendants(launcher)}
    pids = {
        "supervisor": running.supervisor_pid,
        "init": running.init_pid,
        "kernel": kernel_pid(km),
    }
    assert set(pids.values()) <= set(everybody)
    return {
        **{name: dataclasses.asdict(Process.of(pid)) for name, pid in pids.items()},
        "uids": sorted({uid for pid in everybody for uid in Process.of(pid).uids}),
        "inside": inside(client, identity),
        "two": value(client, "1 + 1"),
    }


def session(workspace: Path, config: dict[str, Any], restarts: str, folder: Path) -> dict[str, Any]:
    km = manager(folder, config)
    try:
        km.start_kernel(cwd=str(workspace))
    except SandboxError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    seen = []
    try:
        if restarts == "kill":
            everybody = descendants()
            os.kill(said(km).supervisor_pid, signal.SIGKILL)
            return {"outlived": wait_for_end(everybody), "told": end_of(km).reason}
        for number in range(1 + int(restarts)):
            if number:
                km.restart_kernel(now=bool(number % 2))
            with connected(km) as client:
                seen.append(look(km, client))
    finally:
        km.shutdown_kernel(now=True)
    return {"seen": seen}


if __name__ == "__main__":
    ranges, workspace, config, restarts, folder = sys.argv[1:]
    bind_tables(f"root:{ranges}\n" if ranges else "", Path(folder))
    try:
        result = session(Path(workspace), json.loads(config), restarts, Path(folder))
    finally:
        close_launchers()
    print(json.dumps(result))
