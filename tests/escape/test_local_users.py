"""Another user of the machine reaches no channel of a kernel, though he knows where they are.

A process in a user namespace that is mapped to a subordinate id *is* another uid for the host's
file systems and sockets, so no root is needed to be somebody else.
"""

from __future__ import annotations

import getpass
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from integration.sandboxes import TIMEOUT, run_cell, started, value

pytestmark = pytest.mark.needs("subordinate-ids")

CHANNELS = ("shell", "iopub", "stdin", "hb", "control")

#: Becomes the other user when it is told that the maps are there; then tries, and reports.
_STRANGER = """
import json, os, sys
from sandbox_kernel.syscalls import CloneFlag, unshare
unshare(CloneFlag.NEWUSER)
print("unshared", flush=True)
tries = json.loads(sys.stdin.readline())
os.setgroups([])
os.setresgid(0, 0, 0)
os.setresuid(0, 0, 0)
import zmq
context = zmq.Context()
heard = {}
for name, endpoint in tries["endpoints"].items():
    if endpoint.startswith("ipc://"):
        import socket
        with socket.socket(socket.AF_UNIX) as plain:
            try:
                plain.connect(endpoint.removeprefix("ipc://"))
                heard[name] = "connected"
            except OSError as error:
                heard[name] = type(error).__name__
        continue
    probe = context.socket(zmq.SUB if name == "iopub" else zmq.DEALER)
    probe.linger = 0
    if name == "iopub":
        probe.subscribe(b"")
    probe.connect(endpoint)
    if name == "hb":
        probe.send_multipart([b"", b"ping"])
    heard[name] = probe
print(json.dumps({n: h for n, h in heard.items() if isinstance(h, str)}), flush=True)
sys.stdin.readline()  # meanwhile a cell was run
seen = {n: bool(s.poll(tries["patience"])) for n, s in heard.items() if not isinstance(s, str)}
try:
    file = len(open(tries["file"]).read())
except OSError as error:
    file = type(error).__name__
print(json.dumps({"seen": seen, "file": file}), flush=True)
context.destroy(linger=0)
"""


class Stranger:
    """A process with the first subordinate id of this user as its only id."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _STRANGER], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, cwd="/",
        )  # fmt: skip
        assert self.hear() == "unshared"
        for tool, table in (("newuidmap", "/etc/subuid"), ("newgidmap", "/etc/subgid")):
            first = _first_of(Path(table))
            subprocess.run([tool, str(self.process.pid), "0", first, "1"], check=True)

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, line: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.hear()

    def uid(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("\nUid:\t")[1].split()[1])

    def end(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(TIMEOUT)
        self.process.stdout.close()


def _first_of(table: Path) -> str:
    for line in table.read_text().split():
        name, first, _ = line.split(":")
        if name in (getpass.getuser(), str(os.getuid())):
            return first
    raise LookupError(table)


def visit(folder: Path, config: dict[str, Any], **traits: Any) -> dict[str, Any]:
    """What a stranger sees of a kernel that works with its own client meanwhile."""
    with started(folder, config, **traits) as (km, client):
        stranger = Stranger()
        try:
            tries = {
                "endpoints": {channel: km._make_url(channel) for channel in CHANNELS},
                "file": km.connection_file,
                "patience": 500,
            }
            connected = json.loads(stranger.tell(json.dumps(tries)))
            assert stranger.uid() not in (0, os.getuid())
            assert run_cell(client, "print('a secret')").ok
            last: dict[str, Any] = json.loads(stranger.tell("look"))
            assert value(client, "1 + 1") == 2
        finally:
            stranger.end()
    return {"connected": connected, **last}


def test_with_ipc_nobody_else_can_connect(tmp_path: Path) -> None:
    seen = visit(tmp_path, {"transport": "ipc"})
    assert seen["connected"] == dict.fromkeys(CHANNELS, "PermissionError")
    assert seen["file"] == "PermissionError", "the connection file, with the key"


def test_with_tcp_and_curve_nobody_else_hears_anything(tmp_path: Path) -> None:
    seen = visit(tmp_path, {"transport": "tcp"}, transport_encryption="required")
    assert seen["seen"] == dict.fromkeys(CHANNELS, False)
    assert seen["file"] == "PermissionError"


WARNING = "every user of this machine can connect"


@pytest.mark.parametrize(
    ("config", "traits", "count"),
    [
        ({"transport": "tcp"}, {}, 1),
        ({"transport": "tcp"}, {"transport_encryption": "required"}, 0),
        ({"transport": "ipc"}, {}, 0),
    ],
    ids=["tcp", "tcp and curve", "ipc"],
)
def test_the_log_says_what_is_exposed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture,
    config: dict[str, Any], traits: dict[str, Any], count: int,
) -> None:  # fmt: skip
    with started(tmp_path, config, **traits):
        said = [record.getMessage() for record in caplog.records]
    found = [line for line in said if line.startswith(WARNING)]
    assert len(found) == count
    assert all("127.0.0.1" in line and "transport_encryption" in line for line in found)


def test_with_tcp_alone_others_read_outputs(tmp_path: Path) -> None:
    """The control: what Curve closes, and of what the log warns."""
    seen = visit(tmp_path, {"transport": "tcp"})
    assert seen["seen"]["iopub"] is True
    assert seen["seen"]["hb"] is True
    assert seen["seen"]["shell"] is False, "whoever has no key is not answered"
    assert seen["file"] == "PermissionError"
