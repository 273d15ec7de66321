"""Real sandboxed kernels for the integration tests: started by jupyter_client, as people do.

A kernel is started by :func:`started`, with the ``config`` of a kernelspec of its own. Cells are
run by :func:`run_cell`, which waits for the reply and for ``idle`` and collects what was shown;
:func:`inside` calls a function of the test's own in the kernel.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import queue
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import KernelManager
from probes import TIMEOUT_FACTOR

from sandbox_kernel.client import Launcher
from sandbox_kernel.protocol import Started

#: Seconds. Generous: the machine that runs the tests may be slow, and nothing waits that long.
TIMEOUT = 60.0 * TIMEOUT_FACTOR
#: Seconds that a start may take: those of the spec, unless instructions are emulated.
START_TIMEOUT = min(30.0 * TIMEOUT_FACTOR, 600.0)


@dataclass
class Cell:
    """What one cell did."""

    status: str = ""
    stdout: str = ""
    stderr: str = ""
    result: str = ""
    """``text/plain`` of the value of its last line."""
    ename: str = ""
    evalue: str = ""
    reply: dict[str, Any] = field(default_factory=dict)
    outputs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return self.status == "ok"


def write_kernelspec(
    folder: Path, config: dict[str, Any], *, name: str = "sandboxed-test", **fields: Any
) -> KernelSpecManager:
    """A kernelspec of the sandbox with ``config``; the manager that finds it and no other."""
    path = folder / "kernels" / name
    path.mkdir(parents=True, exist_ok=True)
    if TIMEOUT_FACTOR != 1:
        config = {"start_timeout": START_TIMEOUT} | config
    spec = {
        "argv": [sys.executable, "-m", "sandbox_kernel.launch", "-f", "{connection_file}"],
        "display_name": "Sandboxed Python (test)",
        "language": "python",
        "metadata": {
            "debugger": True,
            "supported_encryption": ["curve"],
            "kernel_provisioner": {"provisioner_name": "sandbox-provisioner", "config": config},
        },
        **fields,
    }
    (path / "kernel.json").write_text(json.dumps(spec))
    return KernelSpecManager(kernel_dirs=[str(folder / "kernels")], ensure_native_kernel=False)


def manager(
    folder: Path, config: dict[str, Any] | None = None, *, fields: dict[str, Any] | None = None,
    **traits: Any,
) -> KernelManager:  # fmt: skip
    """A kernel manager for a sandbox with ``config``; nothing is started."""
    specs = write_kernelspec(folder, config or {}, **(fields or {}))
    return KernelManager(kernel_name="sandboxed-test", kernel_spec_manager=specs, **traits)


@contextlib.contextmanager
def started(
    folder: Path, config: dict[str, Any] | None = None, *, cwd: Path | None = None, **traits: Any
) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """A running kernel and a client that has heard of it. ``cwd`` is the notebook's folder.

    ``folder`` holds the kernelspec and, unless ``cwd`` is given, a fresh workspace ``work``.
    """
    km = manager(folder, config, **traits)
    if cwd is None:
        cwd = folder / "work"
        cwd.mkdir(exist_ok=True)
    km.start_kernel(cwd=str(cwd))
    try:
        with connected(km) as client:
            yield km, client
    finally:
        km.shutdown_kernel(now=True)


@contextlib.contextmanager
def connected(km: KernelManager) -> Iterator[BlockingKernelClient]:
    """A client of a running kernel, after its first ``kernel_info_reply``."""
    client = km.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=TIMEOUT)
        yield client
    finally:
        client.stop_channels()


def run_cell(client: BlockingKernelClient, code: str, *, timeout: float = TIMEOUT) -> Cell:
    """Run ``code``; returns when its reply and its ``idle`` have come."""
    cell = Cell()
    msg_id = client.execute(code)
    deadline = time.monotonic() + timeout
    while True:
        message = client.get_iopub_msg(timeout=max(deadline - time.monotonic(), 0.01))
        if message["parent_header"].get("msg_id") != msg_id:
            continue
        if take_output(cell, message):
            break
    while True:
        reply = client.get_shell_msg(timeout=max(deadline - time.monotonic(), 0.01))
        if reply["parent_header"].get("msg_id") == msg_id:
            break
    cell.reply = reply["content"]
    cell.status = reply["content"]["status"]
    return cell


def take_output(cell: Cell, message: dict[str, Any]) -> bool:
    """Add one iopub message to ``cell``; true for the ``idle`` that ends it."""
    content = message["content"]
    match message["msg_type"]:
        case "stream":
            setattr(cell, content["name"], getattr(cell, content["name"]) + content["text"])
        case "execute_result":
            cell.result = content["data"].get("text/plain", "")
            cell.outputs.append(content)
        case "display_data":
            cell.outputs.append(content)
        case "error":
            cell.ename, cell.evalue = content["ename"], content["evalue"]
        case "status":
            return bool(content["execution_state"] == "idle")
    return False


def value(client: BlockingKernelClient, expression: str) -> Any:
    """The value of a Python expression inside, as JSON carries it."""
    cell = run_cell(client, f"import json as _j; print(_j.dumps({expression}))")
    assert cell.ok, f"{cell.ename}: {cell.evalue}"
    return json.loads(cell.stdout)


def inside(
    client: BlockingKernelClient, function: Callable[..., Any], *arguments: Any,
    timeout: float = TIMEOUT,
) -> Any:  # fmt: skip
    """Call ``function`` inside and return what it returned, as JSON carries it.

    Its source is what is sent, so it imports what it needs itself and knows nothing of its module.
    """
    source = textwrap.dedent(inspect.getsource(function))
    call = f"{function.__name__}(*_json.loads({json.dumps(arguments)!r}))"
    cell = run_cell(
        client,
        f"from __future__ import annotations\nimport json as _json\n{source}\n"
        f"print('\\n' + _json.dumps({call}))",
        timeout=timeout,
    )
    assert cell.ok, f"{cell.ename}: {cell.evalue}"
    return json.loads(cell.stdout.splitlines()[-1])


def environment_files() -> str:
    """Run :func:`inside`: /proc/PID/environ of all that can be read, and that of a child."""
    import glob
    import subprocess

    texts = [subprocess.run(["env"], capture_output=True, check=True).stdout.decode()]
    for path in glob.glob("/proc/[0-9]*/environ"):
        try:
            with open(path) as file:
                texts.append(file.read())
        except OSError:
            pass
    return "\n".join(texts)


def said(km: KernelManager) -> Started:
    """What the supervisor of a running kernel said when it had started."""
    started_message: Started | None = km.provisioner.sandbox.started  # type: ignore[union-attr]
    assert started_message is not None
    return started_message


def kernel_pid(km: KernelManager) -> int:
    """Host pid of the sandbox's pid 2."""
    parent = f"PPid:\t{said(km).init_pid}\n"
    for path in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            text = path.read_text(errors="replace")
            if parent in text and f"NSpid:\t{path.parent.name}\t2\n" in text:
                return int(path.parent.name)
    raise LookupError("no process on this host is pid 2 of the sandbox")


@contextlib.contextmanager
def own_launcher() -> Iterator[None]:
    """A launcher for this block alone: it reads its environment when it starts."""
    _end_launchers()
    try:
        yield
    finally:
        _end_launchers()


def _end_launchers() -> None:
    for launcher in Launcher.close_all():
        launcher.process.wait(timeout=TIMEOUT)


def no_message(client: BlockingKernelClient) -> bool:
    """Is nothing waiting on iopub?"""
    try:
        client.get_iopub_msg(timeout=0)
    except queue.Empty:
        return True
    return False
