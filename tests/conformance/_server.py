"""A real Jupyter server in a process of its own, and the little that a browser asks of it."""

from __future__ import annotations

import contextlib
import json
import queue
import re
import secrets
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import websocket

from ._wire import TIMEOUT, WebsocketWire


class JupyterServer:
    """``jupyter server`` on a free port of the loopback device.

    ``root`` is its root folder and thereby the working directory of its kernels; ``options`` are
    further ones of its command line. ``module`` is what Python runs, ``jupyterlab`` for one with a
    front end.
    """

    def __init__(
        self,
        root: Path,
        environment: dict[str, str],
        *options: str,
        module: str = "jupyter_server",
    ) -> None:
        self.token = secrets.token_hex(16)
        self.log: list[str] = []
        self._addresses: queue.SimpleQueue[str] = queue.SimpleQueue()
        #: every process that was ever seen below the server, and the server
        self.seen: set[psutil.Process] = set()
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                module,
                "--no-browser",
                "--allow-root",
                "--ServerApp.ip=127.0.0.1",
                "--ServerApp.port=0",
                f"--ServerApp.root_dir={root}",
                f"--IdentityProvider.token={self.token}",
                *options,
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            cwd=root,
            env=environment,
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        try:
            self.address = self._addresses.get(timeout=TIMEOUT)
            self._wait_until_listening()
        except (queue.Empty, TimeoutError):
            self.stop()
            raise AssertionError(f"the server did not start:\n{''.join(self.log)}") from None

    def _wait_until_listening(self) -> None:
        """The server names its address a moment before it listens, and says nothing after."""
        deadline = time.monotonic() + TIMEOUT
        host, port = self.address.split(":")
        while time.monotonic() < deadline:
            try:
                socket.create_connection((host, int(port)), timeout=TIMEOUT).close()
                return
            except ConnectionRefusedError:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(0.02)
                    break
        raise TimeoutError

    def _read_log(self) -> None:
        """Drain the server's stderr, so that it never blocks, and find its address there."""
        assert self.process.stderr is not None
        with self.process.stderr as stderr:
            for line in stderr:
                self.log.append(line)
                if match := re.search(r"http://(127\.0\.0\.1:[0-9]+)/", line):
                    self._addresses.put(match[1])

    def rest(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The decoded answer of one request to the REST interface, None where it is empty."""
        request = urllib.request.Request(
            f"http://{self.address}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"token {self.token}", "Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            text = response.read()
        return json.loads(text) if text else None

    def start_kernel(self, name: str) -> str:
        """Start a kernel and return its id."""
        kernel_id: str = self.rest("POST", "kernels", {"name": name})["id"]
        self.look_around()
        return kernel_id

    def connect(self, kernel_id: str) -> WebsocketWire:
        """The channels of a kernel as a browser opens them."""
        channels = websocket.create_connection(
            f"ws://{self.address}/api/kernels/{kernel_id}/channels",
            timeout=TIMEOUT,
            header={"Authorization": f"token {self.token}"},
            subprotocols=[WebsocketWire.SUBPROTOCOL],
        )
        assert channels.getsubprotocol() == WebsocketWire.SUBPROTOCOL
        return WebsocketWire(channels)

    @contextlib.contextmanager
    def kernel(self, name: str) -> Iterator[tuple[str, WebsocketWire]]:
        """A started kernel and a wire to it; deleted at the end."""
        kernel_id = self.start_kernel(name)
        wire = self.connect(kernel_id)
        try:
            wire.wait_until_subscribed()
            yield kernel_id, wire
        finally:
            wire.close()
            self.look_around()
            self.rest("DELETE", f"kernels/{kernel_id}")

    def kernel_ids(self) -> set[str]:
        return {kernel["id"] for kernel in self.rest("GET", "kernels")}

    def look_around(self) -> None:
        """Remember the processes that live below the server now."""
        with contextlib.suppress(psutil.NoSuchProcess):
            server = psutil.Process(self.process.pid)
            self.seen |= {server, *server.children(recursive=True)}

    def stop(self) -> list[str]:
        """Terminate the server as an init system does; return what of it outlived it.

        A process is waited for up to :data:`~._wire.TIMEOUT` seconds; one that is still there
        then is described, and killed so that the machine stays clean.
        """
        self.look_around()
        self.process.terminate()
        try:
            self.process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        deadline = time.monotonic() + TIMEOUT
        left = psutil.wait_procs(list(self.seen), timeout=deadline - time.monotonic())[1]
        descriptions = []
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                descriptions.append(f"{process.pid}: {process.cmdline()}")
                process.kill()
        self._reader.join(TIMEOUT)
        return descriptions
