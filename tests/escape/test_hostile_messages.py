"""A kernel that attacks with messages: what it costs the host is bounded, and others go on.

Each attack runs in a cell of a real sandboxed kernel, which has the connection key, the sockets and
the links themselves. Meanwhile another kernel has to answer, and afterwards the cell has to be
finished: by its own reply or by an error with a name.
"""

from __future__ import annotations

import inspect
import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from integration.cells import finish
from integration.sandboxes import TIMEOUT, run_cell, said, started, value
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

MIB: Final = 1024**2
#: Beyond what a supervisor needs anyway: ``full_bytes`` of its limits and what comes until a look.
SUPERVISOR_MAXIMUM: Final = 900 * MIB
#: Of this process, which is the server of these kernels.
SERVER_MAXIMUM: Final = 300 * MIB
#: A cell that was attacked by its own kernel ends in one of these ways.
TYPED: Final = {"", "MessageLost", "LinkGivenUp"}
_INSIDE: Final = "from __future__ import annotations\nfrom typing import Any\n"


# -- the stage --------------------------------------------------------------------------------


@dataclass
class Stage:
    """The attacker's kernel and another one, of the same server."""

    km: KernelManager
    client: BlockingKernelClient
    bystander: BlockingKernelClient
    lines: list[str] = field(default_factory=list)
    """What the server's log says of the attacker."""

    @property
    def supervisor(self) -> int:
        return said(self.km).supervisor_pid

    def log(self) -> list[str]:
        assert self.km.is_alive()  # which takes the news in
        return self.lines


class _Lines(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__()
        self.lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture(scope="module")
def bystander(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BlockingKernelClient]:
    with started(tmp_path_factory.mktemp("bystander")) as (_, client):
        yield client


@pytest.fixture
def stage(tmp_path: Path, bystander: BlockingKernelClient) -> Iterator[Stage]:
    with ExitStack() as stack:
        km, client = stack.enter_context(started(tmp_path))
        assert run_cell(
            client, _INSIDE + "".join(map(inspect.getsource, (_frame, _link, _pour)))
        ).ok
        stage = Stage(km, client, bystander)
        assert km.provisioner is not None
        log: Any = km.provisioner.log
        handler, level = _Lines(stage.lines), log.level
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        stack.callback(log.setLevel, level)
        stack.callback(log.removeHandler, handler)
        yield stage


def memory(pid: int | str, what: str = "VmRSS") -> int:
    """Bytes: of now, or with ``VmHWM`` the most there ever were."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(what + ":"):
            return int(line.split()[1]) * 1024
    raise LookupError(what)


def cpu_seconds(pid: int) -> float:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def attack(stage: Stage, code: str) -> None:
    """Run it while the other kernel is asked again and again; all bounds hold."""
    server = memory("self")
    # not begin(): what the cell says on iopub may be in the middle of what it attacks with
    msg_id = stage.client.execute(code)
    ask_meanwhile(stage)
    cell = finish(stage.client, msg_id)
    assert (cell.ename or cell.reply.get("ename", "")) in TYPED, cell
    assert memory(stage.supervisor, "VmHWM") < SUPERVISOR_MAXIMUM
    assert memory("self") - server < SERVER_MAXIMUM
    deadline = time.monotonic() + TIMEOUT
    while not (again := run_cell(stage.client, "6 * 7")).ok:  # links may be on their way back
        assert again.reply["ename"] in TYPED and time.monotonic() < deadline, again


def ask_meanwhile(stage: Stage) -> None:
    """Somebody works with the other kernel, which answers, until the attacking cell has a reply."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        assert value(stage.bystander, "1 + 1") == 2
        if stage.client.shell_channel.msg_ready():
            return
        assert time.monotonic() < deadline, "the cell was never answered"


# -- what the attacks are made of; this runs inside ---------------------------------------------


def _frame(body: bytes, flags: int = 0) -> bytes:
    """As it goes over the wire; flags: 1 more, 2 long, 4 command."""
    if len(body) < 256:
        return bytes([flags, len(body)]) + body
    return bytes([flags | 2]) + len(body).to_bytes(8, "big") + body


def _link(channel: str) -> Any:
    """The link to the supervisor that libzmq has, byte by byte."""
    import os
    import socket

    from ipykernel.kernelapp import IPKernelApp

    port = getattr(IPKernelApp.instance(), f"{channel}_port")
    for name in os.listdir("/proc/self/fd"):
        try:
            link = socket.socket(fileno=os.dup(int(name)))
            own = link.getsockname()
            # ipykernel connects to its own shell as well
            if own[1:] == (port,) and link.getpeername()[0] != own[0]:
                return link
        except OSError:
            continue
    raise LookupError(channel)


def _pour(channel: str, piece: bytes, most: int) -> int:
    """Write on a link until it is cut or ``most`` bytes went; how many did."""
    import select
    import time

    link, sent, deadline = _link(channel), 0, time.monotonic() + 30
    rest = memoryview(piece)
    while sent < most and time.monotonic() < deadline:
        try:
            if link.recv(1, 0x42) == b"":  # MSG_PEEK | MSG_DONTWAIT
                break
        except BlockingIOError:
            pass
        except OSError:
            break
        if not select.select([], [link], [], 0.1)[1]:
            continue
        try:
            count = link.send(rest, 0x4000 | 0x40)  # MSG_NOSIGNAL | MSG_DONTWAIT
        except BlockingIOError:
            continue
        except OSError:
            break
        sent += count
        rest = rest[count:] if count < len(rest) else memoryview(piece)
    return sent


# -- on the links -------------------------------------------------------------------------------

_GIB: Final = 1024**3


@pytest.mark.parametrize("channel", ["iopub", "shell", "stdin", "control"])
@pytest.mark.parametrize(
    ("piece", "most"),
    [("_frame(b'x' * 2**20, 1)", 2 * _GIB), ("_frame(b'x', 1) * 2**16", 256 * MIB)],
    ids=["large frames", "tiny frames"],
)
def test_a_message_without_an_end(stage: Stage, channel: str, piece: str, most: int) -> None:
    """libzmq gathers it: 2 GiB of it, or what becomes 5 GiB, would not fit."""
    attack(stage, f"sent = _pour({channel!r}, {piece}, {most})")
    sent = value(stage.client, "sent")
    assert sent < most, f"the link was never cut: {stage.log()}"
    assert any("cut the links to the kernel" in line for line in stage.log()), (sent, stage.lines)
    assert len(stage.lines) < 30, stage.lines
    assert memory(stage.supervisor) < 400 * MIB, "it was not given back"


@pytest.mark.parametrize("channel", ["iopub", "shell", "stdin", "control"])
@pytest.mark.parametrize(
    "piece",
    [
        "bytes([3]) + (2**63 - 1).to_bytes(8, 'big')",
        "bytes([2]) + (2**31).to_bytes(8, 'big')",
        "b'\\xff' * 4096",
        "bytes([4, 4]) + b'\\x03ABC'",
        "_frame(b'', 0) * 4096",
    ],
    ids=["endless frame", "2 GiB frame", "noise", "unknown command", "empty messages"],
)
def test_garbage_instead_of_zmtp(stage: Stage, channel: str, piece: str) -> None:
    attack(stage, f"piece = {piece}\n_pour({channel!r}, piece, len(piece))")
    assert len(stage.log()) < 30, stage.lines


# -- well-formed and too much -------------------------------------------------------------------


def test_questions_that_nobody_reads(stage: Stage) -> None:
    """On stdin, small enough each: a thousand would wait in libzmq."""
    code = (
        "k = get_ipython().kernel\n"
        "for _ in range(1500):\n"
        "    k.session.send(k.stdin_socket, 'input_request', {'prompt': 'x' * 1_000_000},\n"
        "                   k.get_parent('shell'), ident=k._parent_ident['shell'])\n"
        "k.session.send(k.stdin_socket, 'input_request', {'prompt': 'x' * 2_000_000},\n"
        "               k.get_parent('shell'), ident=k._parent_ident['shell'])\n"
    )
    attack(stage, code)
    assert memory(stage.supervisor, "VmHWM") < 400 * MIB
    while not any("on stdin: larger than" in line for line in stage.log()):
        run_cell(stage.client, "1")
    assert any("on stdin: more than 16 without an answer" in line for line in stage.lines)


def _junk(seconds: float) -> None:
    """Every kind of message that is none, on every channel, as fast as it goes."""
    import time

    from ipykernel.kernelapp import IPKernelApp

    app: Any = IPKernelApp.instance()
    kernel = app.kernel
    idents = kernel._parent_ident["shell"]
    parent = kernel.get_parent("shell")
    good = kernel.session.serialize(kernel.session.msg("execute_reply", {"status": "ok"}, parent))
    nobody = kernel.session.msg("execute_reply", {}, {"header": parent["header"] | {"msg_id": "?"}})
    delimiter, bomb = b"<IDS|MSG>", b'{"a":' * 10_000
    header = b'{"msg_id":%s,"msg_type":%s,"session":"s"}'
    bodies = [
        [b""],
        [b""] * 1100,
        [delimiter],
        [delimiter, b"", bomb, bomb, bomb, bomb],
        [delimiter, b"", b"\xff", b"\xff", b"\xff", b"\xff"],
        [delimiter, b"", header % (b"[1]", b'"status"'), b"{}", b"{}", b"{}"],
        [delimiter, b"", header % (b"9" * 5000, b"{}"), b"{}", b"{}", b"{}"],
        [delimiter, b"", header % (b'"a"', b'"\\ud800"'), b"[]", b"null", b"NaN"],
        [*good[:1], b"0" * 64, *good[2:]],
        kernel.session.serialize(nobody),
        good,
    ]
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for body in bodies:
            for socket in (kernel.shell_streams[0].socket if hasattr(kernel, "shell_streams")
                           else app.shell_socket, app.stdin_socket):  # fmt: skip
                socket.send_multipart([*idents, *body])
                socket.send_multipart([b"somebody", *body])
            if len(body) < 3 or len(body) > 1000:  # the others are for the client to refuse
                app.iopub_socket.send_multipart(body)


def test_junk_on_every_channel(stage: Stage) -> None:
    """Dropped, counted, told at a bounded rate; and to read it all would cost a core."""
    source = inspect.getsource(_junk)
    assert run_cell(stage.client, _INSIDE + source).ok
    before = cpu_seconds(stage.supervisor)
    begun = time.monotonic()
    attack(stage, "_junk(3)")
    share = (cpu_seconds(stage.supervisor) - before) / (time.monotonic() - begun)
    assert share < 0.6, f"{share:.0%} of a core"
    reasons = " ".join(stage.log())
    for reason in ("no delimiter", "fewer than five parts", "wrong signature", "1024 frames"):
        assert reason in reasons
    assert len(stage.lines) < 60


def test_a_console_that_is_flooded(stage: Stage) -> None:
    """What bypasses the channels: cut and left out, and read no faster than a log needs."""
    code = (
        "import os, sys, threading\n"
        "end = getattr(sys.stdout, '_original_stdstream_copy', None) or 1\n"
        "write = lambda: [os.write(end, b'flood\\n' * 10_000) for _ in range(10**6)]\n"
        "threading.Thread(target=write, daemon=True).start()\n"
    )
    assert run_cell(stage.client, code).ok
    before, begun = cpu_seconds(stage.supervisor), time.monotonic()
    while time.monotonic() < begun + 3:
        assert value(stage.bystander, "1 + 1") == 2
        assert value(stage.client, "6 * 7") == 42
        stage.log()  # the server reads, or the news wait and are dropped
    share = (cpu_seconds(stage.supervisor) - before) / (time.monotonic() - begun)
    assert share < 0.6, f"{share:.0%} of a core"
    flood = [line for line in stage.log() if "flood" in line]
    assert 0 < len(flood) < 60 * (time.monotonic() - begun + 1)
    assert any("lines left out" in line for line in flood)
