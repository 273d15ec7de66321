"""What waits for a cell is shown with the first one that shows anything, once."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandbox_kernel.channels.announcements import Announcements
from sandbox_kernel.channels.messages import Composer, Signer, split

HEADER = b'{"msg_id":"m1","msg_type":"execute_request"}'


class Recorder:
    """Stands in for the broadcast."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def send(self, frames: list[bytes], *, essential: bool, parent: bytes) -> None:
        message = split(frames)
        assert essential and parent == message.parent_header
        header, content = json.loads(message.header), json.loads(message.content)
        self.sent.append({"type": header["msg_type"], "parent": parent, **content})


@pytest.fixture
def sent() -> Recorder:
    return Recorder()


@pytest.fixture
def announcements(sent: Recorder) -> Announcements:
    composer = Composer(Signer(b"key", "hmac-sha256"))
    return Announcements(sent, composer)  # type: ignore[arg-type]


def test_the_first_cell_shows_all_and_the_next_nothing(
    announcements: Announcements, sent: Recorder
) -> None:
    announcements.deliver(HEADER, b"{}")
    assert sent.sent == []
    announcements.add("one")
    announcements.add("two")
    announcements.deliver(HEADER, b'{"silent":false}')
    announcements.deliver(HEADER, b"{}")
    assert sent.sent == [
        {
            "type": "stream",
            "parent": HEADER,
            "name": "stderr",
            "text": "[sandbox] one\n[sandbox] two\n",
        }
    ]


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
def test_a_silent_request_is_no_cell(
    announcements: Announcements, sent: Recorder, separators: tuple[str, str]
) -> None:
    announcements.add("one")
    quiet = json.dumps({"code": "1", "silent": True}, separators=separators).encode()
    announcements.deliver(HEADER, quiet)
    assert sent.sent == []
    code = json.dumps({"code": json.dumps({"silent": True}), "silent": False}).encode()
    announcements.deliver(HEADER, code)
    assert len(sent.sent) == 1
