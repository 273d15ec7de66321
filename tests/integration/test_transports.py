"""How a client reaches the proxy: unix sockets of the user alone, tcp, and both with CurveZMQ."""

from __future__ import annotations

import json
import os
import queue
import stat
from pathlib import Path
from typing import Any

import pytest
import zmq
from integration.sandboxes import TIMEOUT, Cell, connected, run_cell, started, take_output, value
from jupyter_client.manager import KernelManager
from zmq.utils.monitor import recv_monitor_message

CHANNELS = ("shell", "iopub", "stdin", "hb", "control")
TRANSPORTS = ("ipc", "tcp")


def connection_file(km: KernelManager) -> dict[str, Any]:
    info: dict[str, Any] = json.loads(Path(km.connection_file).read_text())
    return info


def socket_paths(info: dict[str, Any]) -> list[Path]:
    return [Path(f"{info['ip']}-{info[f'{channel}_port']}") for channel in CHANNELS]


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def test_ipc_is_the_default_and_for_the_user_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the run-time directory of the user, of which nothing is left afterwards."""
    run = Path(os.environ["JUPYTER_RUNTIME_DIR"]) / "r"
    run.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(run))
    with started(tmp_path) as (km, client):
        assert value(client, "1 + 1") == 2
        info = connection_file(km)
        assert info["transport"] == km.transport == "ipc"
        paths = socket_paths(info)
        assert len(set(paths)) == 5
        folder = paths[0].parent
        assert {path.parent for path in paths} == {folder}
        assert folder.parent.parent == run
        for directory in (folder, folder.parent):
            assert (mode_of(directory), directory.stat().st_uid) == (0o700, os.getuid())
        for path in paths:
            assert stat.S_ISSOCK(path.lstat().st_mode)
            assert mode_of(path) == 0o600
            assert len(os.fsencode(path)) < 108
        assert sorted(folder.iterdir()) == sorted(paths)
    assert list(run.iterdir()) == []
    run.rmdir()


def test_tcp_is_on_the_loopback_address_alone(tmp_path: Path) -> None:
    with started(tmp_path, {"transport": "tcp"}) as (km, client):
        assert value(client, "1 + 1") == 2
        info = connection_file(km)
        assert info["transport"] == km.transport == "tcp"
        ports = {info[f"{channel}_port"] for channel in CHANNELS}
        assert len(ports) == 5
        assert listening(ports) == {("0100007F", port) for port in ports}
    assert listening(ports) == set()


def listening(ports: set[int]) -> set[tuple[str, int]]:
    """(address as Linux writes it, port) of what listens on this host on one of ``ports``."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            address, port = line.split()[1].split(":")
            if line.split()[3] == "0A" and int(port, 16) in ports:
                found.add((address, int(port, 16)))
    return found


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_connection_file_is_for_the_user_alone(tmp_path: Path, transport: str) -> None:
    with started(tmp_path, {"transport": transport}) as (km, _):
        path = Path(km.connection_file)
        assert (mode_of(path), path.stat().st_uid) == (0o600, os.getuid())
        assert connection_file(km)["key"] == km.session.key.decode()
    assert not path.exists()


@pytest.mark.parametrize("wanted", TRANSPORTS)
@pytest.mark.parametrize("of_manager", TRANSPORTS)
def test_the_managers_own_transport_stays_consistent(
    tmp_path: Path, wanted: str, of_manager: str
) -> None:
    """Whatever was set where: file, manager, sockets and client agree, over a restart too."""
    config = {"transport": wanted}
    with started(tmp_path, config, transport=of_manager) as (km, client):
        for _ in range(2):
            info = connection_file(km)
            assert info["transport"] == km.transport == client.transport
            assert info["ip"] == km.ip
            for channel in CHANNELS:
                assert info[f"{channel}_port"] == getattr(km, f"{channel}_port")
            if info["transport"] == "ipc":
                assert all(mode_of(path) == 0o600 for path in socket_paths(info))
                assert mode_of(socket_paths(info)[0].parent) == 0o700
            assert value(client, "6 * 7") == 42
            km.restart_kernel(now=True)
            client.wait_for_ready(timeout=TIMEOUT)
        assert km.transport == wanted, "the sandbox's own key decides"


# -- CurveZMQ ------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_encryption_works_end_to_end(tmp_path: Path, transport: str) -> None:
    config = {"transport": transport}
    with started(tmp_path, config, transport_encryption="required") as (km, client):
        info = connection_file(km)
        assert info["curve_publickey"]
        assert info["curve_secretkey"]
        assert client.curve_publickey is not None
        assert run_cell(client, "print('over', 'curve')").stdout == "over curve\n"
        assert client.is_alive()
        km.restart_kernel(now=True)
        client.wait_for_ready(timeout=TIMEOUT)
        assert value(client, "6 * 7") == 42


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_nobody_without_the_keys_gets_in(tmp_path: Path, transport: str) -> None:
    """On no channel: neither without Curve, nor with keys of one's own making."""
    config = {"transport": transport}
    with started(tmp_path, config, transport_encryption="required") as (km, client):
        info = connection_file(km)
        server = info["curve_publickey"].encode()
        own = zmq.curve_keypair()
        for channel in CHANNELS:
            assert handshake(km, channel, {}) is False, channel
            assert handshake(km, channel, curve(own[0], own)) is False, channel
            right = curve(server, (server, info["curve_secretkey"].encode()))
            assert handshake(km, channel, right) is True, channel
        assert value(client, "1 + 1") == 2


def test_without_encryption_no_keys_are_needed(tmp_path: Path) -> None:
    with started(tmp_path) as (km, _):
        assert "curve_publickey" not in connection_file(km)
        assert handshake(km, "shell", {}) is True


def curve(server: bytes, own: tuple[bytes, bytes]) -> dict[str, bytes]:
    return {"curve_serverkey": server, "curve_publickey": own[0], "curve_secretkey": own[1]}


def handshake(km: KernelManager, channel: str, options: dict[str, bytes]) -> bool:
    """Whether a new client of ``channel`` is let in, as libzmq itself reports it."""
    kinds = {"shell": zmq.DEALER, "control": zmq.DEALER, "stdin": zmq.DEALER}
    kind = kinds.get(channel, zmq.SUB if channel == "iopub" else zmq.REQ)
    with zmq.Context() as context, context.socket(kind) as probe:
        probe.linger = 0
        for name, key in options.items():
            setattr(probe, name, key)
        good = zmq.EVENT_HANDSHAKE_SUCCEEDED
        bad = (
            zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
            | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_DISCONNECTED
        )  # fmt: skip
        monitor = probe.get_monitor_socket(good | bad)
        try:
            probe.connect(km._make_url(channel))
            assert monitor.poll(int(TIMEOUT * 1000)), "libzmq said nothing"
            return bool(recv_monitor_message(monitor)["event"] == good)
        finally:
            probe.disable_monitor()
            monitor.close(linger=0)


# -- more than one client ------------------------------------------------------------------------


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_two_clients_share_outputs_and_not_replies(tmp_path: Path, transport: str) -> None:
    with started(tmp_path, {"transport": transport}) as (km, first), connected(km) as second:
        msg_id = first.execute("shared = 'kept'; print('for both')")
        for client in (first, second):
            assert outputs_of(client, msg_id) == "for both\n"
        assert first.get_shell_msg(timeout=TIMEOUT)["parent_header"]["msg_id"] == msg_id
        assert value(second, "shared") == "kept"
        assert second.session.session != first.session.session
        with pytest.raises(queue.Empty):
            first.get_shell_msg(timeout=0)


def outputs_of(client: Any, msg_id: str) -> str:
    """What ``client`` hears of the cell ``msg_id``, until its ``idle``."""
    cell = Cell()
    while True:
        message = client.get_iopub_msg(timeout=TIMEOUT)
        if message["parent_header"].get("msg_id") == msg_id and take_output(cell, message):
            return cell.stdout
