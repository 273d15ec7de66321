"""A kernel that sends what it likes, and clients that do not read."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest
import zmq
from integration.proxies import (
    TIMEOUT,
    Message,
    ProxyProcess,
    client_of,
    front_info,
    nothing_on,
    proxy_process,
    published,
    reply_to,
    welcomed,
)
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.session import Session

from sandbox_kernel.channels import Channel, ConnectionInfo, MessageLimits

KIB: Final = 1024
MIB: Final = 1024**2
DELIMITER: Final = b"<IDS|MSG>"


class FakeKernel:
    """The sockets of a kernel, and nobody who minds the protocol."""

    def __init__(self, key: bytes) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.session = Session(key=key)
        self.sockets = {}
        data: dict[str, Any] = {"transport": "tcp", "ip": "127.0.0.1", "key": key}
        for channel in Channel:
            kind = zmq.XPUB if channel is Channel.IOPUB else zmq.ROUTER
            socket = self.context.socket(kind)
            socket.linger = 0
            socket.sndhwm = 100_000
            socket.rcvhwm = 2
            if kind == zmq.ROUTER:
                socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
            else:
                socket.setsockopt(zmq.XPUB_VERBOSE, 1)
            data[channel.port_key] = socket.bind_to_random_port("tcp://127.0.0.1")
            self.sockets[channel] = socket
        self.info = ConnectionInfo.from_dict(data)

    def subscribed(self) -> None:
        """Wait for the proxy's subscriptions, and welcome it."""
        seen = 0
        while seen < 2:
            assert self.sockets[Channel.IOPUB].poll(TIMEOUT * 1000)
            seen += self.sockets[Channel.IOPUB].recv()[:1] == b"\1"
        self.publish("iopub_welcome", {"subscription": ""}, {})

    def take(self, channel: Channel = Channel.SHELL) -> tuple[list[bytes], Message]:
        """The next request: its identities, the proxy's first, and the message."""
        assert self.sockets[channel].poll(TIMEOUT * 1000)
        identities, rest = self.session.feed_identities(self.sockets[channel].recv_multipart())
        return identities, self.session.deserialize(rest)

    def frames(
        self, msg_type: str, content: dict[str, Any], parent: Message | None, *idents: bytes
    ) -> list[bytes]:
        """A well-formed message."""
        message = self.session.msg(msg_type, content, parent=parent)
        return self.session.serialize(message, ident=list(idents))

    def raw(self, channel: Channel, frames: list[bytes]) -> None:
        self.sockets[channel].send_multipart(frames)

    def reply(self, idents: list[bytes], request: Message, **content: Any) -> None:
        reply_type = request["msg_type"].replace("_request", "_reply")
        self.raw(Channel.SHELL, self.frames(reply_type, content, request, *idents))

    def publish(self, msg_type: str, content: dict[str, Any], parent: Message | None) -> None:
        self.raw(Channel.IOPUB, self.frames(msg_type, content, parent, msg_type.encode()))

    def status(self, state: str, parent: Message) -> None:
        self.publish("status", {"execution_state": state}, parent)

    def finish(self, idents: list[bytes], request: Message) -> None:
        """Reply and idle, as all is well."""
        self.reply(idents, request, status="ok")
        self.status("idle", request)

    def close(self) -> None:
        self.context.destroy(linger=0)


class Stand:
    def __init__(self, stack: ExitStack, folder: Path, limits: dict[str, Any]) -> None:
        front = front_info("ipc", folder, uuid.uuid4().hex.encode())
        self.stack = stack
        self.kernel = FakeKernel(front.key)
        stack.callback(self.kernel.close)
        self.proxy: ProxyProcess = stack.enter_context(
            proxy_process(front, self.kernel.info, **limits)
        )
        self.proxy.do("connect")
        self.kernel.subscribed()

    def client(self) -> BlockingKernelClient:
        client = self.stack.enter_context(client_of(self.proxy.info))
        welcomed(client)
        return client

    def still_works(self, client: BlockingKernelClient) -> None:
        """One request goes round; all that came before it was dealt with."""
        msg_id = client.execute("x")
        idents, request = self.kernel.take()
        self.kernel.finish(idents, request)
        assert reply_to(client, msg_id)["content"] == {"status": "ok"}
        published(client, msg_id)

    def still_answers(self, client: BlockingKernelClient) -> None:
        """As :meth:`still_works`, on the control channel, and for a client that reads no iopub."""
        request = client.session.msg("usage_request", {})
        client.control_channel.send(request)
        idents, request = self.kernel.take(Channel.CONTROL)
        self.kernel.raw(Channel.CONTROL, self.kernel.frames("usage_reply", {}, request, *idents))
        reply_to(client, request["header"]["msg_id"], "control")

    def dropped(self) -> dict[str, int]:
        dropped: dict[str, int] = self.proxy.do("state")["dropped"]
        return dropped


@pytest.fixture
def limits(request: pytest.FixtureRequest) -> dict[str, Any]:
    return dict(getattr(request, "param", {}))


@pytest.fixture
def stand(tmp_path: Path, limits: dict[str, Any]) -> Iterator[Stand]:
    with ExitStack() as stack:
        yield Stand(stack, tmp_path, limits)


# -- malformed and forged -----------------------------------------------------------------------


def test_nothing_that_is_malformed_passes_or_harms(stand: Stand) -> None:
    client = stand.client()
    client.execute("x")
    idents, request = stand.kernel.take()
    good = stand.kernel.frames("execute_reply", {"status": "ok"}, request)
    bomb = b"[" * 50_000
    bodies = [
        [],
        [b""],
        [b""] * 1100,
        [b"x"] * 20 + good,
        good[:4],
        [DELIMITER],
        [DELIMITER, b"", bomb, bomb, bomb, bomb],
        [DELIMITER, b"", b"\xff", b"\xff", b"\xff", b"\xff"],
        [DELIMITER, b"", b"{}", b"{}", b"{}", b"{}"],
        [*good[:2], b"9" * 5000, *good[3:]],
        [*good[:2], b"x" * 70_000, *good[3:]],
    ]
    for channel in (Channel.SHELL, Channel.CONTROL):
        for body in bodies:
            stand.kernel.raw(channel, [*idents, *body])
        stand.kernel.raw(channel, [idents[0], *good])
    for body in bodies[1:]:
        stand.kernel.raw(Channel.IOPUB, body)
    stand.kernel.raw(Channel.HB, [idents[0], b"x" * 5000])
    msg_id = client.execute("x")
    stand.kernel.finish(*stand.kernel.take())
    assert reply_to(client, msg_id)["content"] == {"status": "ok"}
    assert nothing_on(client, "shell") and nothing_on(client, "control")
    dropped = stand.dropped()
    reasons = " ".join(dropped)
    assert sum(dropped.values()) >= 2 * len(bodies) + len(bodies) - 1 - 3
    for reason in ("no delimiter", "fewer than five parts", "a wrong signature", "1024 frames"):
        assert reason in reasons
    assert len(stand.proxy.do("state")["log"]) <= len(dropped)


def test_replies_pass_to_who_asked_and_only_once(stand: Stand) -> None:
    client, victim = stand.client(), stand.client()
    msg_id = client.execute("x")
    idents, request = stand.kernel.take()
    victim_id = victim.execute("y")
    victim_idents, _ = stand.kernel.take()
    never_made = request | {"header": request["header"] | {"msg_id": "never-made"}}
    stand.kernel.reply(idents, never_made, forged=1)
    stand.kernel.reply(victim_idents, request, forged=2)
    stand.kernel.reply([idents[0], b"nobody"], request, forged=3)
    wrong = stand.kernel.frames("inspect_reply", {"forged": 4}, request, *idents)
    stand.kernel.raw(Channel.SHELL, wrong)
    for number in (5, 6):
        stand.kernel.reply(idents, request, status="ok", number=number)
    stand.kernel.status("idle", request)
    assert reply_to(client, msg_id)["content"] == {"status": "ok", "number": 5}
    stand.still_works(client)
    assert nothing_on(client, "shell") and nothing_on(victim, "shell")
    assert stand.dropped() == {
        "dropped a message from the kernel on shell: an answer to no request": 5
    }
    assert victim_id != msg_id


def test_a_wrong_signature_moves_nothing(stand: Stand) -> None:
    client = stand.client()
    msg_id = client.execute("x")
    idents, request = stand.kernel.take()
    forger = Session(key=b"another key")
    own, stand.kernel.session = stand.kernel.session, forger
    stand.kernel.finish(idents, request)
    stand.kernel.session = own
    stand.still_works(client)
    state = stand.proxy.do("state")
    assert state["pending"] == 1
    assert state["dropped"] == {
        "dropped a message from the kernel on shell: a wrong signature": 1,
        "dropped a message from the kernel on iopub: a wrong signature": 1,
    }
    assert nothing_on(client, "shell")
    stand.proxy.do("fail", ename="X", evalue="y")
    assert reply_to(client, msg_id)["content"]["ename"] == "X"


def test_a_client_with_the_wrong_key_reaches_nothing(stand: Stand) -> None:
    client = stand.client()
    data = stand.proxy.info.to_dict() | {"key": "guessed"}
    with client_of(ConnectionInfo.from_dict(data)) as intruder:
        intruder.execute("import os")
        intruder.control_channel.send(intruder.session.msg("shutdown_request", {}))
        reasons: dict[str, int] = {}
        while len(reasons) < 2:
            stand.still_works(client)
            reasons = stand.dropped()
    assert reasons == {
        f"dropped a request from a client on {channel}: a wrong signature": 1
        for channel in ("shell", "control")
    }
    assert not stand.kernel.sockets[Channel.CONTROL].poll(0)


@pytest.mark.parametrize("limits", [{"max_pending": 3}], indirect=True)
def test_the_table_is_bounded(stand: Stand) -> None:
    client = stand.client()
    for _ in range(10):
        client.execute("x")
        stand.kernel.take()
    state = stand.proxy.do("state")
    assert state["pending"] == 3
    assert state["dropped"] == {"forgot a request: 3 wait already": 7}


def test_a_welcome_of_the_kernel_is_for_the_proxy(stand: Stand) -> None:
    client = stand.client()
    stand.kernel.publish("iopub_welcome", {"subscription": "forged"}, {})
    msg_id = client.execute("x")
    stand.kernel.finish(*stand.kernel.take())
    reply_to(client, msg_id)
    assert client.get_iopub_msg(timeout=TIMEOUT)["content"] == {"execution_state": "idle"}


# -- too large ----------------------------------------------------------------------------------


@pytest.mark.parametrize("replied", ["before the cut", "after the cut"])
@pytest.mark.parametrize("limits", [{"max_frame_bytes": 64 * KIB}], indirect=True)
def test_an_output_that_is_too_large_does_not_hang_the_cell(stand: Stand, replied: str) -> None:
    client = stand.client()
    msg_id = client.execute("x")
    idents, request = stand.kernel.take()
    stand.kernel.status("busy", request)
    if replied == "before the cut":
        stand.kernel.reply(idents, request, status="ok")
        assert reply_to(client, msg_id)["content"] == {"status": "ok"}
    stand.kernel.publish("stream", {"name": "stdout", "text": "x" * 100 * KIB}, request)
    stand.kernel.status("idle", request)  # is lost with the link
    if replied == "after the cut":
        while not stand.proxy.do("state")["log"]:
            pass
        stand.kernel.reply(idents, request, status="ok")
        assert reply_to(client, msg_id)["content"] == {"status": "ok"}
    types = [m["msg_type"] for m in published(client, msg_id)]
    assert types == ["status", "stream", "status"]  # the stream says that output was lost
    stand.kernel.subscribed()
    stand.still_works(client)
    state = stand.proxy.do("state")
    assert state["pending"] == 0
    assert "the link to the kernel's iopub channel was cut" in state["log"][0]
    assert str(64 * KIB) in state["log"][0]


@pytest.mark.parametrize("limits", [{"max_frame_bytes": 64 * KIB}], indirect=True)
def test_a_reply_that_is_too_large_becomes_an_error(stand: Stand) -> None:
    client = stand.client()
    msg_id = client.execute("x")
    idents, request = stand.kernel.take()
    stand.kernel.reply(idents, request, status="ok", payload="x" * 100 * KIB)
    stand.kernel.status("idle", request)
    published(client, msg_id)
    fence, asked = stand.kernel.take()
    assert asked["msg_type"] == "kernel_info_request", "the proxy asks whether it was lost"
    assert nothing_on(client, "shell"), "it might still have been on its way"
    stand.kernel.finish(fence, asked)
    content = reply_to(client, msg_id)["content"]
    assert (content["status"], content["ename"]) == ("error", "MessageLost")
    stand.still_works(client)
    assert stand.proxy.do("state")["pending"] == 0


def _cut_iopub(stand: Stand, request: Message) -> None:
    """By an output that is too large; returns when it is there again."""
    stand.kernel.publish("stream", {"name": "stdout", "text": "x" * 100 * KIB}, request)
    stand.kernel.subscribed()
    while not any("iopub channel was cut" in line for line in stand.proxy.do("state")["log"]):
        pass


@pytest.mark.parametrize("limits", [{"max_frame_bytes": 64 * KIB}], indirect=True)
def test_an_idle_that_overtakes_its_reply_does_not_lose_it(stand: Stand) -> None:
    """They come on two links; after a cut of iopub the reply is still to be had."""
    client = stand.client()
    msg_id = client.execute("x")
    idents, request = stand.kernel.take()
    _cut_iopub(stand, request)
    stand.kernel.status("idle", request)
    published(client, msg_id)
    stand.kernel.reply(idents, request, status="ok")
    assert reply_to(client, msg_id)["content"] == {"status": "ok"}
    assert stand.proxy.do("state")["pending"] == 0


@pytest.mark.parametrize("limits", [{"max_frame_bytes": 64 * KIB}], indirect=True)
def test_an_idle_that_overtakes_the_fence_does_not_lose_it(stand: Stand) -> None:
    """All links were cut: shell is there again first, and its fence is under way."""
    client = stand.client()
    msg_id = client.execute("x")
    idents, request = stand.kernel.take()
    stand.kernel.reply(idents, request, status="ok", payload="x" * 100 * KIB)
    fence, asked = stand.kernel.take()
    _cut_iopub(stand, request)
    stand.kernel.status("idle", asked)
    other = client.execute("x")  # whose idle says that the proxy has seen the idle
    idents, request = stand.kernel.take()
    stand.kernel.status("idle", request)
    published(client, other)
    stand.kernel.reply(fence, asked, status="ok")
    content = reply_to(client, msg_id)["content"]
    assert (content["status"], content["ename"]) == ("error", "MessageLost")
    published(client, msg_id)
    stand.kernel.reply(idents, request, status="ok")
    assert reply_to(client, other)["content"] == {"status": "ok"}
    assert stand.proxy.do("state")["pending"] == 0
    assert (
        stand.dropped().get(
            "dropped a message from the kernel on shell: an answer to no request", 0
        )
        == 0
    )


@pytest.mark.parametrize("limits", [{"max_message_bytes": 64 * KIB}], indirect=True)
def test_many_frames_that_are_too_large_together_are_dropped(stand: Stand) -> None:
    client = stand.client()
    frames = stand.kernel.frames("display_data", {}, None, b"topic")
    stand.kernel.raw(Channel.IOPUB, [*frames, *[b"x" * KIB] * 100])
    stand.still_works(client)
    assert stand.dropped() == {
        "dropped a message from the kernel on iopub: larger than 65536 bytes": 1
    }


# -- slow and greedy ----------------------------------------------------------------------------

_QUEUE = {"iopub_queue_bytes": 2 * MIB, "iopub_reserve_bytes": MIB}


@pytest.mark.parametrize("limits", [_QUEUE], indirect=True)
def test_a_reader_that_sleeps_through_a_flood_still_sees_idle(stand: Stand) -> None:
    client = stand.client()
    msg_id = client.execute("x")
    idents, request = stand.kernel.take()
    stand.kernel.status("busy", request)
    for number in range(4000):
        text = f"{number:>5000}"
        stand.kernel.publish("stream", {"name": "stdout", "text": text}, request)
    stand.kernel.finish(idents, request)
    assert reply_to(client, msg_id)["content"] == {"status": "ok"}
    while stand.proxy.do("state")["pending"]:
        pass  # the idle has passed the proxy, and nobody has read anything
    messages = published(client, msg_id)
    streams = [m["content"] for m in messages if m["msg_type"] == "stream"]
    numbers = [int(c["text"]) for c in streams if c["name"] == "stdout"]
    assert numbers == sorted(numbers)
    assert len(numbers) < 4000
    told = [c["text"] for c in streams if c["name"] == "stderr"]
    assert sum(int(t.split()[1]) for t in told) == 4000 - len(numbers)
    assert messages[-1]["content"] == {"execution_state": "idle"}


#: Seconds for which a client of the next test reads nothing, and messages that it gets meanwhile.
_STALL = 10.0
_CELLS = 2500


@pytest.mark.parametrize("count", [1, 2])
def test_who_reads_nothing_for_ten_seconds_then_gets_every_reply_and_idle(
    stand: Stand, count: int
) -> None:
    """More of both than libzmq holds for a client by itself, and a flood of output between them."""
    clients = [stand.client() for _ in range(count)]
    client = clients[0]
    before = _resident(stand)
    asked: list[str] = []
    for number in range(_CELLS):
        asked.append(client.execute(str(number)))
        idents, request = stand.kernel.take()
        stand.kernel.status("busy", request)
        stand.kernel.publish("stream", {"name": "stdout", "text": "x" * 50_000}, request)
        stand.kernel.finish(idents, request)
    stand.still_answers(client)
    limits = MessageLimits()
    assert _resident(stand) - before < limits.iopub_queue_bytes * 2
    assert not stand.kernel.sockets[Channel.SHELL].poll(_STALL * 1000)  # nobody asks for anything
    for idle in _idles(clients):
        assert sorted(idle) == sorted(asked)  # those that found no room at first come later
    replies = [client.get_shell_msg(timeout=TIMEOUT) for _ in asked]
    assert [reply["parent_header"]["msg_id"] for reply in replies] == asked


def _idles(clients: list[BlockingKernelClient]) -> list[list[str]]:
    """For each client what it sees the idle of, until that is as many as there are cells. All read
    at once: who does not holds up the others."""
    seen: list[list[str]] = [[] for _ in clients]
    poller = zmq.Poller()
    for client in clients:
        poller.register(client.iopub_channel.socket, zmq.POLLIN)
    while min(map(len, seen)) < _CELLS:
        ready = dict(poller.poll(TIMEOUT * 1000))
        assert ready, f"idles that were seen: {[len(idle) for idle in seen]}"
        for client, idle in zip(clients, seen, strict=True):
            if client.iopub_channel.socket in ready:
                message = client.get_iopub_msg(timeout=TIMEOUT)
                if message["content"].get("execution_state") == "idle":
                    idle.append(message["parent_header"]["msg_id"])
    return seen


def _resident(stand: Stand) -> int:
    """Bytes of memory of the proxy's process."""
    pages = Path(f"/proc/{stand.proxy.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")


@pytest.mark.parametrize("limits", [{"stall_seconds": 3.0}], indirect=True)
def test_one_sleeping_client_does_not_stop_the_other(stand: Stand) -> None:
    client, sleeper = stand.client(), stand.client()
    msg_id = client.execute("x")
    idents, request = stand.kernel.take()
    for number in range(3000):
        text = f"{number:>5000}"
        stand.kernel.publish("stream", {"name": "stdout", "text": text}, request)
    stand.kernel.finish(idents, request)
    messages = published(client, msg_id)
    numbers = [int(m["content"]["text"]) for m in messages if m["msg_type"] == "stream"]
    assert numbers == list(range(3000)), "the one that reads misses nothing"
    state = stand.proxy.do("state")
    assert [line for line in state["log"] if "did not read from iopub" in line] == state["log"]
    assert state["log"]
    # when it reads again it takes part again
    while sleeper.iopub_channel.msg_ready():
        sleeper.get_iopub_msg(timeout=TIMEOUT)
    seen_again = False
    while not seen_again:
        stand.still_works(client)
        seen_again = sleeper.iopub_channel.msg_ready()


@pytest.mark.parametrize("limits", [{"back_hwm": 4}], indirect=True)
def test_a_kernel_that_does_not_read_stops_no_other_channel(stand: Stand) -> None:
    client = stand.client()
    payload = "x" * MIB
    ids = [client.execute(payload) for _ in range(40)]
    client.control_channel.send(client.session.msg("usage_request", {}))
    _, request = stand.kernel.take(Channel.CONTROL)
    assert request["msg_type"] == "usage_request"
    taken = [stand.kernel.take()[1]["header"]["msg_id"] for _ in ids]
    assert taken == ids, "all arrive, in order, once it reads"


def test_json_of_ours_is_json(stand: Stand) -> None:
    """Clients of other languages read it as well: no NaN, plain ascii."""
    client = stand.client()
    client.execute("x")
    stand.kernel.take()
    stand.proxy.do("fail", ename="X", evalue="\N{SNOWMAN}\ud800")
    socket = client.shell_channel.socket
    assert socket.poll(TIMEOUT * 1000)
    *_, content = socket.recv_multipart()
    assert content.isascii()
    assert json.loads(content)["evalue"].startswith("\N{SNOWMAN}")
