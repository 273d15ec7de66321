"""A server that is killed with -9 takes its kernels with it, and what it had made for them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from integration.remains import (
    PATIENCE,
    Ground,
    caps,
    cgroup_directories,
    close_launchers,
    descendants,
    ground,
    wait_for_end,
)
from integration.sandboxes import manager

KERNELS = 3

#: A server: starts kernels, says which processes it has, lives until the end of its input.
SERVER = """
import asyncio, json, sys
from pathlib import Path
from integration.sandboxes import write_kernelspec
from jupyter_client.multikernelmanager import AsyncMultiKernelManager
from sandbox_kernel.client import Launcher

async def main(folder, config, number):
    kernels = AsyncMultiKernelManager(
        kernel_spec_manager=write_kernelspec(folder, config),
        connection_dir=str(folder / "jupyter"),
    )
    start = [kernels.start_kernel(kernel_name="sandboxed-test", cwd=str(folder / "work"))
             for _ in range(number)]
    ids = await asyncio.gather(*start)
    (launcher,) = Launcher._running.values()
    print(json.dumps({
        "launcher": launcher.process.pid,
        "supervisors": [kernels.get_kernel(i).provisioner.pid for i in ids],
        "connection_files": [kernels.get_kernel(i).connection_file for i in ids],
        "directories": [str(kernels.get_kernel(i).provisioner.directory) for i in ids],
    }), flush=True)
    endless = [kernels.start_kernel(kernel_name="sandboxed-test", cwd=str(folder / "work"))]
    if "restless" in sys.argv:
        while True:
            one = await kernels.start_kernel(
                kernel_name="sandboxed-test", cwd=str(folder / "work"))
            print(one, flush=True)
    await asyncio.to_thread(sys.stdin.read)

asyncio.run(main(Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])))
"""


@pytest.fixture
def here() -> Iterator[Ground]:
    with ground() as found:
        yield found
        close_launchers()
        found.assert_clean("by this test")


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[str]
    launcher: int
    supervisors: list[int]
    connection_files: list[str]
    directories: list[str]

    def family(self) -> list[int]:
        """The server and everything below it."""
        return [self.process.pid, *descendants(self.process.pid)]


@contextlib.contextmanager
def serving(here: Ground, config: dict[str, Any], *more: str) -> Iterator[Server]:
    """In a session of its own, as a daemon has it."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    arguments = [str(here.folder), json.dumps(config), str(KERNELS), *more]
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, *arguments], env=environment, start_new_session=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            server = Server(process, **json.loads(line))
            assert len(server.family()) >= 2 + 3 * KERNELS
            yield server
        finally:
            process.kill()


def kill(pids: list[int]) -> None:
    """All at once: none sees the end of another before its own."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_the_server_alone(transport: str, here: Ground) -> None:
    """The end of its lifelines is the end of all, and nothing that it had made is left."""
    with serving(here, caps(transport=transport)) as server:
        assert all(map(os.path.exists, server.connection_files))
        family = server.family()
        os.kill(server.process.pid, signal.SIGKILL)
        assert wait_for_end(family) == []
    # What of a server's directory only the server itself removes, the next start does.
    left = [line for line in here.left() if "/run/" not in line]
    assert left == []
    assert_next_start_sweeps(here)


def assert_next_start_sweeps(here: Ground) -> None:
    km = manager(here.folder, caps())
    km.start_kernel(cwd=str(here.work))
    km.shutdown_kernel(now=True)
    here.assert_clean("after the next start")
