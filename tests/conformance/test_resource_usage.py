"""The real jupyter-resource-usage in a real server: it shows the sandbox's cap and use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ._server import JupyterServer
from .conftest import kernel_environment

pytestmark = pytest.mark.needs("cgroups")

MIB = 1024**2
EAT = "kept = bytearray(100 * 2**20); kept[::4096] = b'x' * 25600"


@pytest.fixture(scope="module")
def server(
    jupyter_environment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[JupyterServer]:
    server = JupyterServer(
        tmp_path_factory.mktemp("root"),
        kernel_environment(),
        "--ServerApp.jpserver_extensions=jupyter_resource_usage=True",
        "--SandboxProvisioner.memory=512M",
        "--SandboxProvisioner.cpus=1.0",
    )
    try:
        yield server
    finally:
        left = server.stop()
    assert left == []


def usage(server: JupyterServer, kernel_id: str) -> dict[str, Any]:
    """What its sidebar asks for."""
    answer = server.rest("GET", f"metrics/v1/kernel_usage/get_usage/{kernel_id}")
    assert answer["kernel_id"] == kernel_id
    content: dict[str, Any] = answer["content"]
    assert "reason" not in content, content
    return content


def test_the_sidebar_shows_the_cap_and_what_is_used_of_it(server: JupyterServer) -> None:
    with server.kernel("sandboxed-python") as (kernel_id, wire):
        before = usage(server, kernel_id)
        wire.execute(EAT).ok()
        after = usage(server, kernel_id)
        assert after["host_virtual_memory"]["total"] == 512 * MIB
        assert after["kernel_memory"] - before["kernel_memory"] >= 90 * MIB
        assert after["cpu_count"] == 1
        assert (after["hostname"], after["pid"]) == ("sandbox", 2)


def test_the_extensions_own_limits_are_those_of_the_environment(server: JupyterServer) -> None:
    """``MEM_LIMIT`` and ``CPU_LIMIT`` are what its configuration reads, here in the kernel."""
    code = (
        "from jupyter_resource_usage.config import ResourceUseDisplay\n"
        "shown = ResourceUseDisplay(); print(shown.mem_limit, shown.cpu_limit)"
    )
    with server.kernel("sandboxed-python") as (_, wire):
        assert wire.execute(code).ok().text().split() == [str(512 * MIB), "1.0"]
