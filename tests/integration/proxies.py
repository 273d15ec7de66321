"""A proxy in a process of its own, an ipykernel behind it, and clients before it.

Run as a program this file *is* the proxy's process: a stand-in for the supervisor that takes
commands as JSON lines on its standard input and answers each with one on its output.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

import zmq
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.connect import write_connection_file as jupyter_connection_file

from sandbox_kernel.channels import (
    BackEnds,
    ConnectionInfo,
    Gauge,
    MessageLimits,
    Proxy,
    bind_front_ends,
)  # fmt: skip

TIMEOUT: Final = 30
KINDS: Final = ("ipc", "tcp", "ipc+curve", "tcp+curve")

Message = dict[str, Any]

# -- the proxy's process ------------------------------------------------------------------------


def _serve(front: dict[str, Any], back: dict[str, Any], limits: dict[str, Any]) -> None:
    log: list[str] = []
    front_ends = bind_front_ends(ConnectionInfo.from_dict(front))
    assert len(os.listdir("/proc/self/task")) == 1, "libzmq's threads are there too early"
    kept = MessageLimits(**limits)
    back_ends = BackEnds(ConnectionInfo.from_dict(back), kept)
    proxy = Proxy(front_ends, back_ends, limits=kept, log=log.append, gauge=Gauge())
    poller = zmq.Poller()
    poller.register(0, zmq.POLLIN)
    _say(front_ends.info.to_dict())
    while True:
        events = dict(poller.poll(proxy.timeout_ms()))
        proxy.dispatch(events)
        if 0 in events:
            line = os.read(0, 65536)
            command = json.loads(line) if line else {"do": "close"}
            match command["do"]:
                case "connect":
                    proxy.connect_back_ends()
                    proxy.register(poller)
                case "fail":
                    proxy.fail_pending(command["ename"], command["evalue"], ["line 1", "line 2"])
                case "close":
                    proxy.close()
                    _say({"closed": True})
                    return
            _say({"log": log, "dropped": dict(proxy.dropped), "pending": len(proxy._pending)})


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


# -- for the tests ------------------------------------------------------------------------------


class ProxyProcess:
    """Handle of the process; ``info`` says where clients connect."""

    def __init__(self, front: ConnectionInfo, back: ConnectionInfo, limits: dict[str, Any]) -> None:
        arguments = json.dumps([front.to_dict(), back.to_dict(), limits])
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", __file__, arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.info = ConnectionInfo.from_dict(self._answer())

    def do(self, command: str, **arguments: str) -> dict[str, Any]:
        """Returns when it is done, with the state afterwards."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": command, **arguments}).encode() + b"\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the proxy's process ended with status {self.process.wait(TIMEOUT)}"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def stop(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        try:
            self.process.wait(TIMEOUT)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()


def front_info(kind: str, folder: Path, key: bytes = b"") -> ConnectionInfo:
    """Unbound endpoints of one of :data:`KINDS`."""
    transport, _, curve = kind.partition("+")
    data: dict[str, Any] = {
        "transport": transport,
        "ip": str(folder / "k") if transport == "ipc" else "127.0.0.1",
        "key": key or uuid.uuid4().hex.encode(),
        **{f"{name}_port": 0 for name in ("shell", "iopub", "stdin", "control", "hb")},
    }
    if curve:
        data["curve_publickey"], data["curve_secretkey"] = zmq.curve_keypair()
    return ConnectionInfo.from_dict(data)


@contextlib.contextmanager
def proxy_process(
    front: ConnectionInfo, back: ConnectionInfo, **limits: Any
) -> Iterator[ProxyProcess]:
    proxy = ProxyProcess(front, back, limits)
    try:
        yield proxy
    finally:
        proxy.stop()


# -- an ipykernel ---------------------------------------------------------------------------------

_KERNEL: Final = """
import sys
from ipykernel.kernelapp import IPKernelApp
app = IPKernelApp.instance()
app.initialize(["-f", sys.argv[1], "--log-level=ERROR"])
sys.__stdout__.write("bound\\n")
sys.__stdout__.flush()
app.start()
"""


class KernelProcess:
    """An ordinary ipykernel on tcp, bound; nothing of ours is in it."""

    def __init__(self, folder: Path, key: bytes) -> None:
        path, data = jupyter_connection_file(
            str(folder / "kernel.json"), ip="127.0.0.1", transport="tcp", key=key
        )
        self.info = ConnectionInfo.from_dict(dict(data))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _KERNEL, path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"},
        )
        assert self.process.stdout is not None
        while (line := self.process.stdout.readline()) != b"bound\n":
            assert line, "the kernel ended before it had bound"

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextlib.contextmanager
def kernel_process(folder: Path, key: bytes) -> Iterator[KernelProcess]:
    kernel = KernelProcess(folder, key)
    try:
        yield kernel
    finally:
        kernel.stop()


# -- clients --------------------------------------------------------------------------------------


def load(client: BlockingKernelClient, info: ConnectionInfo) -> None:
    client.load_connection_info(cast(Any, info.to_dict()))


@contextlib.contextmanager
def client_of(info: ConnectionInfo, *, hb: bool = False) -> Iterator[BlockingKernelClient]:
    """Jupyter's own client with its own session; its channels are open."""
    client = BlockingKernelClient()
    load(client, info)
    client.start_channels(hb=hb)
    try:
        yield client
    finally:
        client.stop_channels()
        client.context.destroy(linger=0)


def welcomed(client: BlockingKernelClient) -> Message:
    """Wait for the welcome: from here the client misses nothing."""
    while True:
        message: Message = client.get_iopub_msg(timeout=TIMEOUT)
        if message["msg_type"] == "iopub_welcome":
            return message


def published(client: BlockingKernelClient, msg_id: str) -> list[Message]:
    """What iopub says about one request, its idle included."""
    found = []
    while True:
        message: Message = client.get_iopub_msg(timeout=TIMEOUT)
        if message["parent_header"].get("msg_id") == msg_id:
            found.append(message)
            if message["content"].get("execution_state") == "idle":
                return found


def reply_to(client: BlockingKernelClient, msg_id: str, channel: str = "shell") -> Message:
    """The reply to one request."""
    while True:
        message: Message = getattr(client, f"get_{channel}_msg")(timeout=TIMEOUT)
        if message["parent_header"].get("msg_id") == msg_id:
            return message


def run(client: BlockingKernelClient, code: str, **options: Any) -> tuple[Message, list[Message]]:
    """Execute; the reply's content and what was published."""
    msg_id = client.execute(code, **options)
    reply = reply_to(client, msg_id)
    return reply["content"], published(client, msg_id)


def text(messages: list[Message]) -> str:
    return "".join(m["content"]["text"] for m in messages if m["msg_type"] == "stream")


def nothing_on(client: BlockingKernelClient, channel: str) -> bool:
    try:
        getattr(client, f"get_{channel}_msg")(timeout=0)
    except queue.Empty:
        return True
    return False


if __name__ == "__main__":
    _serve(*json.loads(sys.argv[1]))
