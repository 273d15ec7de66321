"""A server that is killed with -9 takes its kernels with it, and what it had made for them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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
    while "restless" in sys.argv:
        await kernels.start_kernel(kernel_name="sandboxed-test", cwd=str(folder / "work"))
        print(flush=True)
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
        here.assert_clean("by a server that was killed")


def test_its_whole_process_group(here: Ground) -> None:
    """As a terminal or a service manager does it. The launcher is in a session of its own."""
    with serving(here, caps()) as server:
        family = server.family()
        os.killpg(server.process.pid, signal.SIGKILL)
        assert wait_for_end(family) == []
        here.assert_clean("by a process group that was killed")


def test_while_kernels_run_cells_that_ignore_everything(here: Ground) -> None:
    """Every process of every sandbox is stopped: nobody inside can help."""
    with serving(here, caps()) as server:
        family = server.family()
        inside = [pid for s in server.supervisors for pid in descendants(s)]
        assert len(inside) >= 2 * KERNELS
        for pid in inside:
            os.kill(pid, signal.SIGSTOP)
        os.kill(server.process.pid, signal.SIGKILL)
        assert wait_for_end(family) == []
        here.assert_clean("by stopped sandboxes")


@pytest.mark.parametrize("started", range(4))
def test_while_another_kernel_starts(started: int, here: Ground) -> None:
    """Wherever that start is just then. Before its supervisor has the request only the server knows
    what it has made: an empty directory and a connection file.
    """
    with serving(here, caps(), "restless") as server:
        assert server.process.stdout is not None
        for _ in range(started):
            server.process.stdout.readline()
        os.kill(server.process.pid, signal.SIGKILL)
        assert server.process.wait(PATIENCE) == -signal.SIGKILL
        wait_until(lambda: all(line.startswith("file ") for line in here.left()))
        assert not any(map(os.path.exists, server.connection_files))
        left = [str(path) for path in (here.folder / "jupyter").iterdir()]
        assert len(left) <= 1
        server.connection_files.extend(left)
        sweep_by_the_next_start(here, server)


def test_the_server_and_its_launcher_at_once(here: Ground) -> None:
    """The supervisors are enough."""
    with serving(here, caps()) as server:
        family = server.family()
        kill([server.process.pid, server.launcher])
        assert wait_for_end(family) == []
        here.assert_clean("by supervisors without a launcher")


def test_the_supervisors_alone(here: Ground) -> None:
    """The server lives, and hears of it; the launcher cleans up what is not the server's."""
    with serving(here, caps()) as server:
        inside = [pid for s in server.supervisors for pid in [s, *descendants(s)]]
        kill(server.supervisors)
        assert wait_for_end(inside) == []
        wait_until(lambda: not list(cgroup_directories()))
        assert [line for line in here.left() if line.startswith("socket")] == []
        assert server.process.poll() is None
        assert server.process.stdin is not None
        server.process.stdin.close()
        server.process.wait(PATIENCE)
        sweep_by_the_next_start(here, server)


def test_the_server_and_its_supervisors_at_once(here: Ground) -> None:
    """The launcher is enough for all but the run-time directories, which are empty."""
    with serving(here, caps()) as server:
        family = server.family()
        kill([server.process.pid, *server.supervisors])
        assert wait_for_end(family) == []
        assert not any(map(os.path.exists, server.connection_files))
        wait_until(lambda: not list(cgroup_directories()))
        assert [line for line in here.left() if line.startswith("socket")] == []
        sweep_by_the_next_start(here, server)


def test_all_of_them_at_once(here: Ground) -> None:
    """Nobody is left who could clean up: no process survives, and the next start does the rest."""
    with serving(here, caps()) as server:
        family = server.family()
        kill([server.process.pid, server.launcher, *server.supervisors])
        assert wait_for_end(family) == []
        assert all(map(os.path.isdir, server.directories))
        if caps():
            assert list(cgroup_directories())
        sweep_by_the_next_start(here, server)


def sweep_by_the_next_start(here: Ground, server: Server) -> None:
    """Everything goes but connection files: those lie where every kernel of Jupyter has them, and
    say nothing any more."""
    km = manager(here.folder, caps())
    km.start_kernel(cwd=str(here.work))
    assert not any(map(os.path.exists, server.directories))
    km.shutdown_kernel(now=True)
    for path in server.connection_files:
        Path(path).unlink(missing_ok=True)
    here.assert_clean("after the next start")


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.01)  # for what has no event, such as the end of a cgroup
