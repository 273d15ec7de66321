"""Binding the clients' endpoints with plain sockets."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from sandbox_kernel.channels import Channel, ConnectionInfo, bind_front_ends
from sandbox_kernel.errors import ChannelError


def info(transport: str, ip: str, **ports: int) -> ConnectionInfo:
    data: dict[str, Any] = {f"{c.value}_port": 0 for c in Channel} | ports
    return ConnectionInfo.from_dict(data | {"transport": transport, "ip": ip, "key": "k"})


def test_tcp_reports_the_real_ports() -> None:
    front = bind_front_ends(info("tcp", "127.0.0.1"))
    try:
        ports = [front.info.port(channel) for channel in Channel]
        assert len(set(ports)) == 5 and 0 not in ports
        for channel in Channel:
            with socket.create_connection(("127.0.0.1", front.info.port(channel)), timeout=5):
                pass
            assert not front.sockets[channel].getblocking()
    finally:
        front.close()


def test_tcp_over_ipv6() -> None:
    front = bind_front_ends(info("tcp", "::1"))
    try:
        with socket.create_connection(("::1", front.info.shell_port), timeout=5):
            pass
    finally:
        front.close()


def test_a_port_in_use_is_refused_and_the_others_are_given_back() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with socket.create_server(("127.0.0.1", 0)) as probe:
            free = probe.getsockname()[1]
        with pytest.raises(ChannelError, match="EADDRINUSE") as caught:
            bind_front_ends(info("tcp", "127.0.0.1", shell_port=free, hb_port=port))
        assert f"hb endpoint tcp://127.0.0.1:{port}" in caught.value.fact
        with socket.create_server(("127.0.0.1", free)):
            pass


def test_an_address_of_no_interface_is_refused() -> None:
    with pytest.raises(ChannelError, match="no interface of this host"):
        bind_front_ends(info("tcp", "192.0.2.1"))


def test_ipc_sockets_are_private_and_go_with_close(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        front = bind_front_ends(info("ipc", str(tmp_path / "k")))
    finally:
        assert os.umask(old) == 0
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["k-1", "k-2", "k-3", "k-4", "k-5"]
    assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {0o600}
    front.close()
    assert list(tmp_path.iterdir()) == []
    front.close()


def test_close_leaves_a_successors_socket(tmp_path: Path) -> None:
    front = bind_front_ends(info("ipc", str(tmp_path / "k")))
    (tmp_path / "k-1").unlink()
    with socket.socket(socket.AF_UNIX) as successor:
        successor.bind(str(tmp_path / "k-1"))
        front.close()
        assert [p.name for p in tmp_path.iterdir()] == ["k-1"]


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "k-3"))
    bind_front_ends(info("ipc", str(tmp_path / "k"))).close()


def test_a_socket_that_is_served_is_not(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as served:
        served.bind(str(tmp_path / "k-3"))
        served.listen()
        with pytest.raises(ChannelError, match="another process listens there"):
            bind_front_ends(info("ipc", str(tmp_path / "k")))
    assert [p.name for p in tmp_path.iterdir()] == ["k-3"]


def test_no_other_file_is_removed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(target))
    (tmp_path / "k-2").symlink_to(target)
    with pytest.raises(ChannelError, match="another file is there, which is not a socket"):
        bind_front_ends(info("ipc", str(tmp_path / "k")))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["k-2", "target"]


def test_another_users_socket_is_not_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "k-1"))
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(ChannelError, match=f"a socket of user {owner} is there"):
        bind_front_ends(info("ipc", str(tmp_path / "k")))
    assert [p.name for p in tmp_path.iterdir()] == ["k-1"]


def test_the_longest_path(tmp_path: Path) -> None:
    stem = str(tmp_path) + "/"
    stem += "x" * (107 - len(stem) - 2)
    bind_front_ends(info("ipc", stem)).close()
    with pytest.raises(ChannelError, match=r"has 108 bytes: a unix socket's path may have 107"):
        bind_front_ends(info("ipc", stem + "x"))


def test_a_relative_path_is_refused() -> None:
    with pytest.raises(ChannelError, match="is relative"):
        bind_front_ends(info("ipc", "kernel"))


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(ChannelError, match="its folder does not exist"):
        bind_front_ends(info("ipc", str(tmp_path / "none" / "k")))
