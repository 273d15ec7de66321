"""A kernel that attacks with messages: what it costs the host is bounded, and others go on.

Each attack runs in a cell of a real sandboxed kernel, which has the connection key, the sockets and
the links themselves. Meanwhile another kernel has to answer, and afterwards the cell has to be
finished: by its own reply or by an error with a name.
"""

from __future__ import annotations

import inspect
import logging
import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
from integration import zmtp
from integration.cells import finish
from integration.remains import (
    cgroup_directories,
    descendants,
    provisioner_of,
    wait_for_end,
)
from integration.sandboxes import TIMEOUT, Cell, run_cell, said, started, take_output, value
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

    def wait_for(self, text: str) -> bool:
        """Is it in the log, now or soon?"""
        deadline = time.monotonic() + TIMEOUT
        while not any(text in line for line in self.log()) and time.monotonic() < deadline:
            run_cell(self.client, "1")
        return any(text in line for line in self.lines)


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
        assert run_cell(client, inspect.getsource(zmtp)).ok
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
    Path("/proc/self/clear_refs").write_text("5")  # the most there is from now on
    server = memory("self")
    # not begin(): what the cell says on iopub may be in the middle of what it attacks with
    msg_id = stage.client.execute(code)
    ask_meanwhile(stage)
    cell = finish(stage.client, msg_id)
    assert (cell.ename or cell.reply.get("ename", "")) in TYPED, cell
    assert memory(stage.supervisor, "VmHWM") < SUPERVISOR_MAXIMUM
    assert memory("self", "VmHWM") - server < SERVER_MAXIMUM
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


# -- on the links -------------------------------------------------------------------------------

_GIB: Final = 1024**3
_CUT: Final = "the link to the kernel's {} channel was cut and made again: the kernel sent a frame"


@pytest.mark.parametrize("channel", ["iopub", "shell", "stdin", "control"])
@pytest.mark.parametrize(
    ("piece", "most"),
    [("frame(b'x' * 2**20, 1)", 2 * _GIB), ("frame(b'x', 1) * 2**16", 256 * MIB)],
    ids=["large frames", "tiny frames"],
)
def test_a_message_without_an_end(stage: Stage, channel: str, piece: str, most: int) -> None:
    """libzmq gathers it: 2 GiB of it, or what becomes 5 GiB, would not fit."""
    attack(stage, f"sent = pour({channel!r}, {piece}, {most})")
    sent = value(stage.client, "sent")
    assert sent < most, f"the link was never cut: {stage.log()}"
    assert any("cut the links to the kernel" in line for line in stage.log()), (sent, stage.lines)
    assert len(stage.lines) < 30, stage.lines
    assert memory(stage.supervisor) < 400 * MIB, "it was not given back"


@pytest.mark.parametrize("channel", ["iopub", "shell", "stdin", "control"])
@pytest.mark.parametrize(
    ("piece", "reason"),
    [
        ("bytes([3]) + (2**63 - 1).to_bytes(8, 'big')", _CUT),
        ("bytes([2]) + (2**31).to_bytes(8, 'big')", _CUT),
        ("b'\\xff' * 4096", _CUT),
        ("bytes([4, 4]) + b'\\x03ABC'", ""),
        ("frame(b'', 0) * 4096", "dropped a message from the kernel on {}: no delimiter"),
    ],
    ids=["endless frame", "2 GiB frame", "noise", "unknown command", "empty messages"],
)
def test_garbage_instead_of_zmtp(stage: Stage, channel: str, piece: str, reason: str) -> None:
    """libzmq passes over a command that it does not know."""
    attack(stage, f"piece = {piece}\npour({channel!r}, piece, len(piece))")
    if reason:
        assert stage.wait_for(reason.format(channel))
    assert len(stage.log()) < 30, stage.lines
    assert all(reason and f" {channel}" in line for line in stage.lines), stage.lines


@pytest.mark.parametrize("channel", ["stdin", "control"])
def test_a_million_tiny_messages(stage: Stage, channel: str) -> None:
    """What is no message costs the supervisor CPU: so many a second are read, and no more."""
    before, begun = cpu_seconds(stage.supervisor), time.monotonic()
    attack(stage, f"sent = pour({channel!r}, frame(b'') * 2**16, 2**21, patience=3)")
    share = (cpu_seconds(stage.supervisor) - before) / (time.monotonic() - begun)
    assert share < 0.6, f"{share:.0%} of a core"
    assert value(stage.client, "sent") < 2**21
    assert memory(stage.supervisor, "VmHWM") < 200 * MIB
    assert stage.wait_for(f"dropped a message from the kernel on {channel}: no delimiter")


#: How it goes on with who connects to what is now ``peer``.
_HANDSHAKES: Final = {
    "silence": "peer.accept()",
    "another protocol": "peer.accept().sendall(b'HTTP/1.1 200 OK\\r\\n\\r\\n' * 4096)",
    "ZMTP of 2009": "peer.accept().sendall(b'\\x01\\0' + b'\\x02\\0x' * 4096)",
    "another mechanism": "peer.accept().sendall(GREETING.replace(b'NULL', b'OOPS'))",
    "no kind of socket": "peer.shake_hands(b'NOTHING')",
    "another kind of socket": "peer.shake_hands(b'PULL')",
    "endless command": "peer.accept().sendall(GREETING + bytes([6]) + (2**62).to_bytes(8, 'big'))",
    "a long command": "peer.accept().sendall(GREETING + frame(b'\\x05READY' + b'x' * 2**20, 4))",
    "endless pings": "peer.shake_hands(b'ROUTER').sendall(frame(b'\\x04PING\\0\\0', 4) * 2**18)",
}


@pytest.mark.parametrize("how", _HANDSHAKES)
def test_a_handshake_that_is_none(stage: Stage, how: str) -> None:
    """It costs what any link costs, and the other channels go on."""
    before, begun = cpu_seconds(stage.supervisor), time.monotonic()
    code = "import contextlib\npeer = take_over('stdin')\nwith contextlib.suppress(OSError):\n    "
    attack(stage, code + _HANDSHAKES[how])
    attack(stage, "with contextlib.suppress(OSError):\n    peer.connection.recv(2**20, 0x40)")
    share = (cpu_seconds(stage.supervisor) - before) / (time.monotonic() - begun + 1)
    assert share < 0.6, f"{share:.0%} of a core"
    assert memory(stage.supervisor, "VmHWM") < 200 * MIB
    assert len(stage.log()) < 30, stage.lines


def test_a_link_that_is_given_up(stage: Stage) -> None:
    """Cut a hundred times it stays cut; whoever asks is told so, and what to do."""
    msg_id = stage.client.execute(
        "peer, cuts = take_over('stdin'), 0\n"
        "while cuts < 1000:\n"
        "    peer.accept().sendall(GREETING.replace(b'NULL', b'OOPS'))\n"
        "    cuts += 1\n"
    )
    ask_meanwhile(stage)
    cell = finish(stage.client, msg_id)
    for told in (cell.reply, run_cell(stage.client, "6 * 7").reply):
        assert (told["status"], told["ename"]) == ("error", "LinkGivenUp")
        assert told["evalue"].endswith("restart the kernel")
    assert cell.ename == "LinkGivenUp"
    assert stage.wait_for("gave up the link to the kernel's stdin channel: cut too often")
    assert stage.km.is_alive()
    stage.km.restart_kernel(now=True)
    stage.client.wait_for_ready(timeout=TIMEOUT)
    assert value(stage.client, "6 * 7") == 42


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


def _misplaced(channel: str) -> None:
    """Each kind of message, signed and with the right parent, where it does not belong."""
    from ipykernel.kernelapp import IPKernelApp

    app: Any = IPKernelApp.instance()
    kernel = app.kernel
    parent, idents = kernel.get_parent("shell"), kernel._parent_ident["shell"]
    socket = {"shell": app.shell_socket, "control": app.control_socket}[channel]
    if channel == "shell":
        socket = getattr(kernel, "shell_stream", None) or socket
        socket = getattr(socket, "socket", socket)
    for kind in ("status", "stream", "input_request", "execute_request", "comm_msg",
                 "execute_reply" if channel == "control" else "kernel_info_reply"):  # fmt: skip
        kernel.session.send(socket, kind, {"status": "ok"}, parent, ident=idents)


@pytest.mark.parametrize("channel", ["shell", "control"])
def test_messages_on_the_wrong_channel(stage: Stage, channel: str) -> None:
    """No client sees one: what passes there is one reply to each request."""
    assert run_cell(stage.client, "from typing import Any\n" + inspect.getsource(_misplaced)).ok
    attack(stage, f"_misplaced({channel!r})")
    assert stage.wait_for(
        f"dropped a message from the kernel on {channel}: an answer to no request"
    )
    assert not stage.client.control_channel.msg_ready()
    assert not stage.client.shell_channel.msg_ready()


def test_a_client_that_reads_no_output(stage: Stage) -> None:
    """More than memory may hold of it waits nowhere; replies pass, and the end is seen later."""
    stage.client.iopub_channel.stop()
    lazy = BlockingKernelClient()
    lazy.load_connection_info(stage.km.get_connection_info())
    lazy.context.rcvhwm = 2
    lazy.start_channels(shell=False, stdin=False, hb=False, control=False)
    try:
        while lazy.get_iopub_msg(timeout=TIMEOUT)["msg_type"] != "iopub_welcome":
            pass
        code = "for _ in range(600):\n    print('x' * 2**20, flush=True)\nprint('last')"
        msg_id = stage.client.execute(code)
        ask_meanwhile(stage)
        assert stage.client.get_shell_msg(timeout=TIMEOUT)["content"]["status"] == "ok"
        assert memory(stage.supervisor, "VmHWM") < 400 * MIB
        cell = Cell()
        while (message := lazy.get_iopub_msg(timeout=TIMEOUT))["parent_header"][
            "msg_id"
        ] != msg_id or not take_output(cell, message):
            pass
        assert len(cell.stdout) < 400 * MIB
        assert "were dropped: the client did not read as fast" in cell.stderr
        assert any("dropped output on iopub: a client reads slower" in s for s in stage.log())
    finally:
        lazy.stop_channels()
        lazy.context.destroy(linger=0)


# -- a supervisor that gets no memory ------------------------------------------------------------


def leave(pid: int, size: int) -> None:
    """No more memory than that is to be had by it, on top of what it has."""
    limit = memory(pid, "VmData") + size
    resource.prlimit(pid, resource.RLIMIT_DATA, (limit, limit))


def test_a_frame_for_which_there_is_no_memory(stage: Stage) -> None:
    """libzmq cuts the link, as for one that is larger than the limit."""
    leave(stage.supervisor, 16 * MIB)
    attack(stage, "pour('control', frame(b'x' * 2**25), 2**25)")
    assert stage.wait_for(_CUT.format("control"))


def test_a_supervisor_that_reaches_its_limit(stage: Stage) -> None:
    """libzmq aborts then. The client is told why, and nothing of the sandbox stays."""
    family = [stage.supervisor, *descendants(stage.supervisor)]
    leave(stage.supervisor, 32 * MIB)
    stage.client.execute("pour('control', frame(b'x', 1) * 2**16, 2**31)")
    assert wait_for_end(family, 20) == []
    deadline = time.monotonic() + TIMEOUT
    while stage.km.is_alive():
        assert time.monotonic() < deadline, "the client was never told"
    ended = provisioner_of(stage.km).exit
    assert ended is not None
    assert -ended.returncode in (signal.SIGABRT, signal.SIGSEGV, signal.SIGTRAP)
    assert ", as when what passes through it needs more memory than it may use" in ended.reason
    assert any(ended.reason in line for line in stage.lines)
    assert value(stage.bystander, "1 + 1") == 2
    name = f"kernel-{stage.km.kernel_id.replace('-', '')}"
    assert not [path for path in cgroup_directories() if path.name.startswith(name)]
    stage.km.restart_kernel(now=True)
    stage.client.wait_for_ready(timeout=TIMEOUT)
    assert value(stage.client, "6 * 7") == 42


def test_junk_on_every_channel(stage: Stage) -> None:
    """Dropped, counted, told at a bounded rate."""
    source = inspect.getsource(_junk)
    assert run_cell(stage.client, _INSIDE + source).ok
    attack(stage, "_junk(3)")
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
