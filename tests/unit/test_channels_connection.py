"""Connection info: what is accepted, what is refused, and the file."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from jupyter_client.connect import write_connection_file as jupyter_connection_file

from sandbox_kernel.channels.connection import (
    Channel,
    ConnectionInfo,
    read_connection_file,
    write_connection_file,
)
from sandbox_kernel.errors import ChannelError, ProtocolError, SpecError

PUBLIC, SECRET = zmq.curve_keypair()


def data(**changes: Any) -> dict[str, Any]:
    return {
        "transport": "tcp",
        "ip": "127.0.0.1",
        "shell_port": 1001,
        "iopub_port": 1002,
        "stdin_port": 1003,
        "control_port": 1004,
        "hb_port": 1005,
        "key": "a-key",
        "signature_scheme": "hmac-sha256",
    } | changes


def test_what_jupyter_writes_is_read(tmp_path: Path) -> None:
    path, written = jupyter_connection_file(
        str(tmp_path / "k.json"), key=b"a-key", curve_publickey=PUBLIC, curve_secretkey=SECRET
    )
    info = read_connection_file(path)
    assert {c.value: info.port(c) for c in Channel} == {
        c.value: written[f"{c.value}_port"]  # type: ignore[literal-required]
        for c in Channel
    }
    assert (info.key, info.curve_publickey, info.curve_secretkey) == (b"a-key", PUBLIC, SECRET)


def test_endpoints() -> None:
    tcp = ConnectionInfo.from_dict(data())
    assert tcp.endpoint(Channel.HB) == "tcp://127.0.0.1:1005"
    assert tcp.socket_paths() == []
    six = ConnectionInfo.from_dict(data(ip="::1"))
    assert six.endpoint(Channel.SHELL) == "tcp://[::1]:1001"
    ipc = ConnectionInfo.from_dict(data(transport="ipc", ip="/run/k", shell_port=1))
    assert ipc.endpoint(Channel.SHELL) == "ipc:///run/k-1"
    assert ipc.socket_paths()[0] == "/run/k-1" and len(ipc.socket_paths()) == 5


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("transport", "pgm"),
        ("ip", ""),
        ("ip", None),
        ("ip", "127.0.0.1/../x"),
        ("shell_port", 65536),
        ("shell_port", -1),
        ("shell_port", True),
        ("shell_port", "1"),
        ("hb_port", None),
        ("key", 3),
        ("key", b"\xff"),
        ("signature_scheme", "hmac-rot13"),
        ("signature_scheme", "hmac-shake_128"),
        ("signature_scheme", "sha256"),
        ("signature_scheme", None),
        ("curve_publickey", PUBLIC),
        ("curve_secretkey", "too short"),
    ],
)
def test_nonsense_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(SpecError) as caught:
        ConnectionInfo.from_dict(data(**{key: value}))
    assert key.replace("public", "").replace("secret", "") in caught.value.key.replace(
        "public", ""
    ).replace("secret", "")


def test_no_secret_is_in_a_repr_or_an_error() -> None:
    info = ConnectionInfo.from_dict(
        data(key="hush-hush", curve_publickey=PUBLIC, curve_secretkey=SECRET)
    )
    for secret in ("hush-hush", PUBLIC.decode(), SECRET.decode()):
        assert secret not in repr(info)
    with pytest.raises(SpecError) as caught:
        ConnectionInfo.from_dict(data(curve_publickey=PUBLIC, curve_secretkey="hush-hush"))
    assert "hush-hush" not in str(caught.value)


@given(st.dictionaries(st.sampled_from(list(data())), st.integers() | st.text() | st.none()))
def test_any_dict_is_an_info_or_a_spec_error(changes: dict[str, object]) -> None:
    try:
        info = ConnectionInfo.from_dict(data(**changes))
    except SpecError:
        return
    assert ConnectionInfo.from_dict(json.loads(json.dumps(info.to_dict()))) == info


def test_the_file_is_private_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "kernel.json"
    path.write_text("old", encoding="utf-8")
    path.chmod(0o644)
    info = ConnectionInfo.from_dict(data(curve_publickey=PUBLIC, curve_secretkey=SECRET))
    write_connection_file(str(path), info, kernel_name="sandboxed-python")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_connection_file(str(path)) == info
    assert json.loads(path.read_text(encoding="utf-8"))["kernel_name"] == "sandboxed-python"
    assert [p.name for p in tmp_path.iterdir()] == ["kernel.json"]


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "kernel.json").mkdir()
    with pytest.raises(ChannelError, match=r"kernel\.json could not be written"):
        write_connection_file(str(tmp_path / "kernel.json"), ConnectionInfo.from_dict(data()))
    assert [p.name for p in tmp_path.iterdir()] == ["kernel.json"]


@pytest.mark.parametrize("content", ["", "[]", "{", "[" * 60_000, '{"a": "' + "x" * 70_000 + '"}'])
def test_a_file_that_is_no_object_is_a_protocol_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "kernel.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ProtocolError):
        read_connection_file(str(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ChannelError, match="ENOENT"):
        read_connection_file(str(tmp_path / "none.json"))
