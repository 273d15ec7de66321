"""A cell that is still running while the test does something to its kernel."""

from __future__ import annotations

import time

from integration.sandboxes import TIMEOUT, Cell, take_output
from jupyter_client.blocking import BlockingKernelClient

#: What the test waits for before it acts.
RUNNING = "running"


def begin(
    client: BlockingKernelClient, code: str, *, says: bool = False, timeout: float = TIMEOUT
) -> str:
    """Execute ``code``; its message id, once it runs and has said so (by itself if ``says``)."""
    msg_id: str = client.execute(code if says else f"print({RUNNING!r}, flush=True)\n{code}")
    deadline = time.monotonic() + timeout
    while True:
        message = client.get_iopub_msg(timeout=max(deadline - time.monotonic(), 0.01))
        if message["parent_header"].get("msg_id") == msg_id and message["msg_type"] == "stream":
            assert message["content"]["text"].startswith(RUNNING)
            return msg_id


def finish(client: BlockingKernelClient, msg_id: str, *, timeout: float = TIMEOUT) -> Cell:
    """Its outputs from now on, its reply and its ``idle``, or :class:`queue.Empty`."""
    cell = Cell()
    deadline = time.monotonic() + timeout
    while True:
        message = client.get_iopub_msg(timeout=max(deadline - time.monotonic(), 0.01))
        if message["parent_header"].get("msg_id") == msg_id and take_output(cell, message):
            break
    while True:
        reply = client.get_shell_msg(timeout=max(deadline - time.monotonic(), 0.01))
        if reply["parent_header"].get("msg_id") == msg_id:
            break
    cell.reply = reply["content"]
    cell.status = reply["content"]["status"]
    return cell
