"""A kernel that prints without end, behind a real server: the server's memory stays bounded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.sandboxes import write_kernelspec

from ._server import JupyterServer
from .conftest import kernel_environment

#: Seconds for which the kernel prints.
LONG = 20
FLOODS = {
    "short lines": "while time.monotonic() < end: print(i := i + 1)",
    "long lines": "while time.monotonic() < end: print('x' * 100_000)",
    "displays": "while time.monotonic() < end: display({'text/plain': 'x' * 10**6}, raw=True)",
}


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
    config = {"output_bytes_per_second": "1M", "output_messages_per_second": 500}
    write_kernelspec(jupyter_environment / "share", config, name="capped")
    server = JupyterServer(tmp_path_factory.mktemp("root"), kernel_environment())
    try:
        yield server
    finally:
        left = server.stop()
    assert left == []


@pytest.mark.parametrize("flood", FLOODS)
@pytest.mark.parametrize("reads", [True, False], ids=["read", "unread"])
@pytest.mark.parametrize("name", ["capped", "sandboxed-python", "python3"])
def test_x(server: JupyterServer, flood: str, reads: bool, name: str) -> None:
    import time

    with server.kernel(name) as (_, wire):
        wire.execute("import time; from IPython.display import display; i = 0").ok()
        peak = Peak(server.process.pid)
        running = wire.start(f"end = time.monotonic() + {LONG}\n{FLOODS[flood]}")
        if reads:
            out = wire.finish(running)
            print(
                name,
                flood,
                "read:",
                peak.grown() / 2**20,
                "MiB; msgs",
                len(out.published),
                "chars",
                len(out.text()),
            )
        else:
            time.sleep(LONG)
            print(name, flood, "unread:", peak.grown() / 2**20, "MiB")
