"""Frames, headers and signatures, against hostile bytes and against jupyter_client."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from jupyter_client.session import Session

from sandbox_kernel.channels.limits import MessageLimits
from sandbox_kernel.channels.messages import (
    DELIMITER,
    Composer,
    Failure,
    Message,
    Signer,
    check_size,
    join,
    parse_header,
    parse_object,
    parse_parent,
    split,
)
from sandbox_kernel.errors import ProtocolError

LIMITS = MessageLimits()
KEY = b"a-key"
FAILURE = Failure("Died", "it died", ("one", "two"))

frame = st.binary(max_size=40)
identity = frame.filter(lambda raw: raw != DELIMITER)
messages = st.builds(
    Message,
    st.lists(identity, max_size=8).map(tuple),
    frame,
    frame,
    frame,
    frame,
    frame,
    st.lists(frame, max_size=4).map(tuple),
)


@given(messages)
def test_split_undoes_join(message: Message) -> None:
    assert split(join(message)) == message


@given(st.lists(frame | st.just(DELIMITER), max_size=20))
def test_any_frames_are_a_message_or_a_protocol_error(frames: list[bytes]) -> None:
    try:
        message = split(frames)
    except ProtocolError:
        return
    assert join(message) == frames


def test_an_endless_list_of_identities_is_refused() -> None:
    with pytest.raises(ProtocolError, match="no delimiter"):
        split([b"x"] * 9 + [DELIMITER] + [b"{}"] * 5)


_json = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
)


@given(st.binary(max_size=200) | _json.map(lambda value: json.dumps(value).encode()))
@example(b"[" * 60_000)
@example(b'{"a":' * 10_000)
@example(b'{"a": ' + b"9" * 5000 + b"}")
@example(b'{"msg_id": "\\ud800", "msg_type": "x"}')
@example(b'{"msg_id": 1, "msg_type": "x"}')
@example(b'{"msg_id": "", "msg_type": "x"}')
@example(b"\xff\xfe{\x00}\x00")
def test_any_bytes_are_a_header_or_a_protocol_error(raw: bytes) -> None:
    try:
        header = parse_header(raw, LIMITS)
    except ProtocolError:
        return
    assert 0 < len(header.msg_id) <= 512 and 0 < len(header.msg_type) <= 512


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b'{"a": "' + b"x" * 65536 + b'"}', "larger than 65536"),
        (b"[" * 60_000, "not JSON"),
        (b'{"a":' * 10_000, "not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b"[]", "not an object"),
        (b'{"msg_type": "x"}', "without msg_id"),
        (b'{"msg_id": "' + b"x" * 513 + b'", "msg_type": "x"}', "without msg_id"),
    ],
)
def test_why_a_header_is_refused(raw: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        parse_header(raw, LIMITS)


def test_no_parent() -> None:
    assert parse_parent(b"{}", LIMITS) is None
    with pytest.raises(ProtocolError):
        parse_parent(b"{ }", LIMITS)


def test_sizes() -> None:
    limits = MessageLimits(max_frames=2, max_message_bytes=10)
    check_size([b"12345", b"12345"], limits)
    with pytest.raises(ProtocolError, match="larger than 10 bytes"):
        check_size([b"12345", b"123456"], limits)
    with pytest.raises(ProtocolError, match="more than 2 frames"):
        check_size([b"", b"", b""], limits)


# -- the same as Jupyter's own ------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["hmac-sha256", "hmac-sha512", "hmac-md5"])
def test_jupyters_signature_is_ours(scheme: str) -> None:
    session = Session(key=KEY, signature_scheme=scheme)
    frames = session.serialize(session.msg("execute_request", {"code": "1"}), ident=[b"id"])
    message = split(frames)
    assert message.identities == (b"id",)
    assert Signer(KEY, scheme).verify(message)
    assert not Signer(b"other", scheme).verify(message)
    header = parse_header(message.header, LIMITS)
    assert (header.msg_type, header.session) == ("execute_request", session.session)


@given(messages, st.integers(0, 3), st.binary(min_size=1, max_size=4))
def test_a_changed_part_is_noticed(message: Message, part: int, more: bytes) -> None:
    signer = Signer(KEY, "hmac-sha256")
    good = replace(message, signature=signer.sign(message.signed))
    assert signer.verify(good)
    name = ("header", "parent_header", "metadata", "content")[part]
    changed: dict[str, Any] = {name: getattr(good, name) + more}
    assert not signer.verify(replace(good, **changed))


def test_without_a_key_everything_passes_unsigned() -> None:
    signer = Signer(b"", "hmac-sha256")
    assert signer.sign([b"x"]) == b""
    assert signer.verify(Message((), b"whatever", b"", b"", b"", b""))


def read_by_jupyter(frames: list[bytes]) -> tuple[list[bytes], dict[str, Any]]:
    session = Session(key=KEY)
    identities, rest = session.feed_identities(frames)
    return identities, session.deserialize(rest)


def test_jupyter_reads_what_is_composed() -> None:
    composer = Composer(Signer(KEY, "hmac-sha256"))
    parent = b'{"msg_id": "p", "msg_type": "execute_request", "session": "s"}'
    identities, reply = read_by_jupyter(
        composer.error_reply("execute_request", FAILURE, parent, (b"client",))
    )
    assert identities == [b"client"]
    assert reply["msg_type"] == "execute_reply"
    assert reply["parent_header"]["msg_id"] == "p"
    assert reply["content"]["status"] == "error"
    assert reply["content"]["traceback"] == ["one", "two"]
    _, error = read_by_jupyter(composer.error(FAILURE, parent))
    assert error["content"] == {
        "ename": "Died",
        "evalue": "it died",
        "traceback": ["one", "two"],
    }
    _, idle = read_by_jupyter(composer.status("idle", parent))
    assert idle["content"] == {"execution_state": "idle"}
    assert idle["msg_id"] != error["msg_id"] != reply["msg_id"]


def test_an_info_reply_has_what_clients_read_unseen() -> None:
    composer = Composer(Signer(KEY, "hmac-sha256"))
    _, reply = read_by_jupyter(composer.error_reply("kernel_info_request", FAILURE, b"{}", ()))
    assert reply["content"]["protocol_version"].split(".")[0] == "5"
    assert reply["content"]["status"] == "error"
    assert reply["content"]["language_info"]["name"] == "python"  # a notebook is saved with it


def test_a_welcome_has_its_topic_and_no_parent() -> None:
    composer = Composer(Signer(KEY, "hmac-sha256"))
    for topic, identities in ((b"", []), (b"stream", [b"stream"])):
        frames = composer.welcome(topic)
        assert frames is not None
        seen, welcome = read_by_jupyter(frames)
        assert seen == identities
        assert welcome["content"] == {"subscription": topic.decode()}
        assert welcome["parent_header"] == {}
    assert composer.welcome(b"\xff") is None


def test_an_object() -> None:
    assert parse_object(b'{"a": 1}', LIMITS) == {"a": 1}
