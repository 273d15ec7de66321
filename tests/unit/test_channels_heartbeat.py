"""Heartbeats pass to the kernel, and are answered in its place while it is paused."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import zmq

from sandbox_kernel.channels.heartbeat import Heartbeat

PATIENCE = 30_000


class Heart:
    """A client with a REQ socket, and the ROUTER that it beats at."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.client = context.socket(zmq.REQ)
        self.front = context.socket(zmq.ROUTER)
        self.front.bind("inproc://heart")
        self.client.connect("inproc://heart")
        self.heartbeat = Heartbeat(self.front)

    def beat(self) -> list[bytes]:
        """As the proxy takes it."""
        self.client.send(b"ping")
        assert self.front.poll(PATIENCE)
        return self.front.recv_multipart()

    def answered(self) -> bool:
        return bool(self.client.poll(0)) and self.client.recv() == b"ping"


@pytest.fixture
def heart() -> Iterator[Heart]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield Heart(context)
    context.destroy(linger=0)


def test_a_kernel_that_runs_answers_itself(heart: Heart) -> None:
    frames = heart.beat()
    assert heart.heartbeat.asked(frames)
    assert not heart.answered()
    assert heart.heartbeat.answered(frames)


def test_one_that_is_paused_is_answered_for(heart: Heart) -> None:
    heart.heartbeat.pause()
    for _ in range(3):
        assert not heart.heartbeat.asked(heart.beat())
        assert heart.answered()
    heart.heartbeat.resume()
    assert heart.heartbeat.asked(heart.beat())
    assert not heart.answered()


def test_what_is_owed_is_answered_at_the_pause_and_only_once(heart: Heart) -> None:
    late = heart.beat()
    assert heart.heartbeat.asked(late)
    heart.heartbeat.pause()
    assert heart.answered()
    heart.heartbeat.pause()
    assert not heart.answered()
    heart.heartbeat.resume()
    assert not heart.heartbeat.answered(late)  # the kernel's own answer comes too late
    again = heart.beat()
    assert heart.heartbeat.asked(again)
    assert heart.heartbeat.answered(again)


def test_who_never_answers_costs_no_memory(heart: Heart) -> None:
    for number in range(1000):
        heart.heartbeat.asked([b"%d" % number, b"", b"ping"])
    assert len(heart.heartbeat._asked) == 64
    heart.heartbeat.pause()
    assert len(heart.heartbeat._answered) == 64
