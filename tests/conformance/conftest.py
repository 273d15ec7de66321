"""Which kernel is under test, a clean Jupyter environment, and one kernel of each that is needed.

``SANDBOX_KERNEL_TEST_KERNEL=python3`` runs the whole suite against the ordinary ipykernel: that is
the reference, so a test that fails there is wrong.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from jupyter_core.paths import jupyter_data_dir, jupyter_runtime_dir

from ._wire import TIMEOUT, ZmqWire

REFERENCE = "python3"


def kernel_under_test() -> str:
    return os.environ.get("SANDBOX_KERNEL_TEST_KERNEL", "sandboxed-python")


def kernel_environment() -> dict[str, str]:
    """The environment without the developer's own switches for Python and without pytest's.

    The sandbox passes neither on, and ipykernel leaves descriptors 1 and 2 alone where it sees that
    it runs in a test.
    """
    own = ("PYTEST", "PYTHON")
    return {key: value for key, value in os.environ.items() if not key.startswith(own)}


@dataclass(frozen=True)
class RunningKernel:
    """A kernel that the test's own process manages, and a client of it."""

    km: KernelManager
    wire: ZmqWire


@contextlib.contextmanager
def running_kernel(name: str, workspace: Path) -> Iterator[RunningKernel]:
    """Start a kernel in ``workspace``; shut it down at the end and check what it left."""
    km = KernelManager(kernel_name=name)
    km.start_kernel(cwd=str(workspace), env=kernel_environment())
    try:
        wire = connect(km)
        try:
            yield RunningKernel(km, wire)
        finally:
            wire.close()
    finally:
        km.shutdown_kernel()
    assert not km.is_alive()
    assert not Path(km.connection_file).exists()


def connect(km: KernelManager) -> ZmqWire:
    """One more client of a managed kernel, ready."""
    client: BlockingKernelClient = km.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=TIMEOUT)
    except BaseException:
        client.stop_channels()
        raise
    return ZmqWire(client)


def _write_reference_kernelspec(folder: Path) -> None:
    """The ordinary kernel of this environment, for environments that did not install its spec."""
    spec = {
        "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "metadata": {"debugger": True},
    }
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(json.dumps(spec))


@pytest.fixture(scope="package", autouse=True)
def jupyter_environment() -> Iterator[Path]:
    """Every folder that Jupyter and IPython write to is a throw-away one; nothing may stay in it.

    The base is short: the paths of unix sockets below it have to fit into 108 bytes.
    """
    base = Path(tempfile.mkdtemp(prefix="skt-"))
    with pytest.MonkeyPatch.context() as patch:
        found = [os.environ.get("JUPYTER_PATH", ""), str(base / "share"), jupyter_data_dir()]
        patch.setenv("JUPYTER_PATH", os.pathsep.join(filter(None, found)))
        for variable in ("RUNTIME", "CONFIG", "DATA"):
            patch.setenv(f"JUPYTER_{variable}_DIR", str(base / variable.lower()))
        patch.setenv("IPYTHONDIR", str(base / "ipython"))
        patch.setenv("MPLCONFIGDIR", str(base / "matplotlib"))
        # the debugger of an ordinary kernel leaves the dumped cells here
        patch.setenv("TMPDIR", str(base / "tmp"))
        (base / "tmp").mkdir()
        patch.setenv("JUPYTER_PLATFORM_DIRS", "1")
        names = KernelSpecManager().find_kernel_specs()
        if REFERENCE not in names:
            _write_reference_kernelspec(base / "share" / "kernels" / REFERENCE)
        assert kernel_under_test() in {*names, REFERENCE}, (
            f"the kernelspec {kernel_under_test()} is not installed here; found: {sorted(names)}"
        )
        try:
            yield base
            left = [p.name for p in Path(jupyter_runtime_dir()).glob("kernel-*")]
            assert left == [], "connection files or sockets stayed"
        finally:
            shutil.rmtree(base)


@pytest.fixture(scope="package")
def kernel_name() -> str:
    """The name of the kernelspec under test."""
    return kernel_under_test()


@pytest.fixture(scope="module")
def kernel(
    jupyter_environment: Path, kernel_name: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningKernel]:
    """One kernel for all tests of a module that do not kill it."""
    with running_kernel(kernel_name, tmp_path_factory.mktemp("workspace")) as running:
        yield running


@pytest.fixture
def wire(kernel: RunningKernel) -> ZmqWire:
    """The wire to the module's kernel, free and with nothing left over from the test before.

    A kernel that a failed test has left busy is restarted: one failure is to be one failure.
    """
    if not kernel.wire.hears_itself():
        kernel.km.restart_kernel(now=True)
        kernel.wire.wait_until_subscribed()
    kernel.wire.backlog.clear()
    return kernel.wire


@pytest.fixture
def start_kernel(
    jupyter_environment: Path, tmp_path: Path
) -> Iterator[Callable[[str], RunningKernel]]:
    """Start a kernel of the test's own by the name of its kernelspec."""
    with contextlib.ExitStack() as stack:
        yield lambda name: stack.enter_context(running_kernel(name, tmp_path))
