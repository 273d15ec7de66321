"""A kernel that prints without end, behind a real server: the server's memory stays bounded."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from integration.sandboxes import write_kernelspec

from ._server import JupyterServer
from ._wire import TIMEOUT
from .conftest import kernel_environment

#: Seconds for which the kernel prints.
LONG: Final = 20
#: What it may take beyond an idle server, in bytes.
ROOM: Final = 64 * 2**20
PRINTS: Final = "while time.monotonic() < end: print(i := i + 1, 'x' * 200)"
#: The server's own limit on the rate of output is for streams alone.
DISPLAYS: Final = "while time.monotonic() < end: display({'text/plain': 'x' * 10**6}, raw=True)"


class Peak:
    """The largest resident size of a process since this was made, in bytes; Linux keeps count."""

    def __init__(self, pid: int) -> None:
        self._proc = Path(f"/proc/{pid}")
        (self._proc / "clear_refs").write_text("5")
        self._idle = self._read("VmRSS")

    def grown(self) -> int:
        return self._read("VmHWM") - self._idle

    def _read(self, name: str) -> int:
        lines = (self._proc / "status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


@pytest.fixture(scope="module")
def server(
    jupyter_environment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[JupyterServer]:
    config = {"output_bytes_per_second": "500K", "output_messages_per_second": 500}
    write_kernelspec(jupyter_environment / "share", config, name="capped")
    server = JupyterServer(tmp_path_factory.mktemp("root"), kernel_environment())
    try:
        yield server
    finally:
        left = server.stop()
    assert left == []


def wait_for(server: JupyterServer, kernel_id: str, state: str) -> None:
    deadline = time.monotonic() + LONG + TIMEOUT
    while server.rest("GET", f"kernels/{kernel_id}")["execution_state"] != state:
        assert time.monotonic() < deadline
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(0.2)


def test_a_server_whose_browser_reads_a_kernel_that_prints_without_end(
    server: JupyterServer,
) -> None:
    with server.kernel("capped") as (_, wire):
        wire.execute("import time; i = 0").ok()
        peak = Peak(server.process.pid)
        execution = wire.execute(f"end = time.monotonic() + {LONG}\n{PRINTS}")
        assert execution.content["status"] == "ok"
        assert peak.grown() < ROOM
        assert "(output_bytes_per_second)" in execution.text("stderr")


def test_a_server_whose_browser_reads_nothing_of_a_kernel_that_displays_without_end(
    server: JupyterServer,
) -> None:
    """What the server has taken it keeps for the browser; without a cap that is gigabytes."""
    with server.kernel("capped") as (kernel_id, wire):
        wire.execute("import time; from IPython.display import display").ok()
        peak = Peak(server.process.pid)
        running = wire.start(f"end = time.monotonic() + {LONG}\n{DISPLAYS}")
        for state in ("busy", "idle"):
            wait_for(server, kernel_id, state)
        assert peak.grown() < ROOM
        assert wire.finish(running).content["status"] == "ok"
