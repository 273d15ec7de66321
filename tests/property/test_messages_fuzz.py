"""No bytes make a parser do anything but return what it says or raise ProtocolError.

``corpus/`` holds inputs that once were of interest; each is replayed with every parser.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_kernel.channels.limits import MessageLimits
from sandbox_kernel.channels.messages import (
    DELIMITER,
    Message,
    Signer,
    join,
    parse_header,
    parse_object,
    parse_parent,
    split,
)
from sandbox_kernel.engine import messages
from sandbox_kernel.errors import ProtocolError
from sandbox_kernel.protocol import parse_from_client, parse_from_supervisor

LIMITS: Final = MessageLimits()
CORPUS: Final = sorted((Path(__file__).parent / "corpus").iterdir())
PARSERS: Final[dict[str, Callable[[bytes], Any]]] = {
    "header": lambda raw: parse_header(raw, LIMITS),
    "parent": lambda raw: parse_parent(raw, LIMITS),
    "object": lambda raw: parse_object(raw, LIMITS),
    "packet": messages.decode,
    "from the supervisor": lambda raw: parse_from_supervisor(messages.decode(raw)),
    "from the client": lambda raw: parse_from_client(messages.decode(raw)),
}
many = settings(max_examples=300)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
_NAMES: Final = (
    "type", "text", "number", "returncode", "reason", "error", "supervisor_pid", "init_pid",
    "connection", "warnings", "landlock_abi", "msg_id", "msg_type", "session", "request", "caps",
    "usage", "secrets", "environment", "connection_file",
)  # fmt: skip
_TYPES: Final = (
    "accepted", "waits", "started", "failed", "notice", "exited", "done", "refused", "usage",
    "bind", "signal", "kill", "pause", "resume", "update", "get_usage",
)  # fmt: skip
packets = st.fixed_dictionaries(
    {"type": st.sampled_from(_TYPES) | json_values},
    optional=dict.fromkeys(_NAMES[1:], json_values),
).map(lambda value: json.dumps(value).encode())
raws = st.binary(max_size=200) | packets | json_values.map(lambda v: json.dumps(v).encode())


def survives(parser: Callable[[bytes], Any], raw: bytes) -> None:
    with contextlib.suppress(ProtocolError):
        parser(raw)


@pytest.mark.parametrize("path", CORPUS, ids=lambda path: path.name)
@pytest.mark.parametrize("name", PARSERS)
def test_the_corpus(name: str, path: Path) -> None:
    survives(PARSERS[name], path.read_bytes())


@pytest.mark.parametrize("name", PARSERS)
@many
@given(raw=raws)
def test_any_bytes(name: str, raw: bytes) -> None:
    survives(PARSERS[name], raw)


@many
@given(frames=st.lists(st.binary(max_size=20) | st.just(DELIMITER), max_size=12))
def test_any_frames(frames: list[bytes]) -> None:
    """What is split is joined to the same frames again, and no signature is right by chance."""
    try:
        message = split(frames)
    except ProtocolError:
        return
    assert join(message) == frames
    assert isinstance(message, Message)
    assert not Signer(b"a key", "hmac-sha256").verify(message)
