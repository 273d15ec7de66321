"""The network as a kernel sees it: its own loopback, one link, and nothing at the end of it."""

from __future__ import annotations

import contextlib
import errno
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.sandboxes import inside, run_cell, started, value
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

from sandbox_kernel.engine.network import Link
from sandbox_kernel.supervisor import _FIRST_PORT

LINK = Link()
KERNEL_PORTS = list(range(_FIRST_PORT, _FIRST_PORT + 5))
NOWHERE = {errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL}


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    with started(tmp_path_factory.mktemp("network")) as (km, client):
        yield km, client


@pytest.fixture(scope="module")
def client(running: tuple[KernelManager, BlockingKernelClient]) -> BlockingKernelClient:
    return running[1]


def connecting(addresses: list[list[object]]) -> dict[str, int]:
    """How often each error number was the answer to a connect; 0 is a connection."""
    import socket

    numbers: dict[str, int] = {}
    for host, port in addresses:
        family = socket.AF_INET6 if ":" in str(host) else socket.AF_INET
        with socket.socket(family) as probe:
            probe.settimeout(5)
            try:
                probe.connect((host, port))
                number = 0
            except TimeoutError:
                number = -1
            except OSError as error:
                number = error.errno or -2
        numbers[str(number)] = numbers.get(str(number), 0) + 1
    return numbers


def errors(client: BlockingKernelClient, *addresses: tuple[str, int]) -> set[int]:
    """The distinct error numbers of connections from inside."""
    return {int(n) for n in inside(client, connecting, [list(a) for a in addresses])}


@contextlib.contextmanager
def listener(address: str) -> Iterator[int]:
    """Somebody who listens on the host; the port."""
    with socket.create_server((address, 0)) as server:
        port: int = server.getsockname()[1]
        with socket.create_connection((address if address != "0.0.0.0" else "127.0.0.1", port)):
            pass
        yield port


def own_addresses() -> list[str]:
    """IPv4 addresses of this host besides its loopback."""
    found = []
    for line in Path("/proc/net/fib_trie").read_text().split("Local:")[1].splitlines():
        words = line.split()
        if words[:1] == ["|--"]:
            last = words[1]
        elif "host" in words and "LOCAL" in words and not last.startswith("127."):
            found.append(last)
    return sorted(set(found))


def test_a_listener_on_the_hosts_loopback(client: BlockingKernelClient) -> None:
    with listener("127.0.0.1") as port:
        assert errors(client, ("127.0.0.1", port)) == {errno.ECONNREFUSED}


def test_a_listener_on_every_address_of_the_host(client: BlockingKernelClient) -> None:
    with listener("0.0.0.0") as port:
        for address in own_addresses():
            assert errors(client, (address, port)) <= NOWHERE
        assert errors(client, (LINK.gateway_address, port), ("127.0.0.1", port)) == {
            errno.ECONNREFUSED
        }


def test_an_abstract_unix_socket_of_the_host(client: BlockingKernelClient) -> None:
    """CVE-2020-15257: an abstract name belongs to the net namespace."""
    name = f"skt-{secrets.token_hex(8)}"

    def connect(name: str) -> int:
        import socket

        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect("\0" + name)
            except OSError as error:
                return error.errno or -1
        return 0

    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0" + name)
        server.listen()
        assert connect(name) == 0, "outside it can be reached"
        assert inside(client, connect, name) in (errno.ECONNREFUSED, errno.EPERM)


def test_nothing_listens_at_the_other_end_of_the_link(client: BlockingKernelClient) -> None:
    """On none of all ports, though the proxy is there."""

    def answers(address: str) -> dict[str, list[int]]:
        import socket

        ports: dict[str, list[int]] = {}
        for port in range(1, 65536):
            with socket.socket() as probe:
                number = probe.connect_ex((address, port))
            ports.setdefault(str(number), []).append(port)
        return {number: found[:5] for number, found in ports.items()}

    refused = str(errno.ECONNREFUSED)
    assert inside(client, answers, LINK.gateway_address) == {refused: [1, 2, 3, 4, 5]}


def test_no_route_but_the_link(client: BlockingKernelClient) -> None:
    table = value(client, "open('/proc/net/route').read().splitlines()[1:]")
    assert [line.split()[:3] for line in table] == [["eth0", "00004064", "00000000"]]
    outside = [("192.0.2.1", 80), ("1.1.1.1", 53), ("10.0.0.1", 80), ("172.17.0.1", 80)]
    assert errors(client, *outside) == {errno.ENETUNREACH}
    assert errors(client, ("2001:db8::1", 80), ("::ffff:192.0.2.1", 80)) <= NOWHERE


def test_the_metadata_service_is_out_of_reach(client: BlockingKernelClient) -> None:
    addresses = [("169.254.169.254", 80), ("169.254.170.2", 80), ("100.100.100.200", 80)]
    assert errors(client, *addresses) == {errno.ENETUNREACH}
    assert errors(client, ("fd00:ec2::254", 80)) <= NOWHERE


def test_no_datagram_leaves(client: BlockingKernelClient) -> None:
    def sending() -> int:
        import socket

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.sendto(b"x", ("192.0.2.1", 53))
            except OSError as error:
                return error.errno or -1
        return 0

    assert inside(client, sending) == errno.ENETUNREACH


def test_names_are_not_resolved_and_that_is_said_at_once(client: BlockingKernelClient) -> None:
    begin = time.monotonic()
    cell = run_cell(client, "import socket; socket.getaddrinfo('example.com', 80)")
    assert cell.ename == "gaierror"
    assert time.monotonic() - begin < 5
    assert value(client, "socket.gethostbyname('localhost')") == "127.0.0.1"
    assert value(client, "socket.gethostbyname(socket.gethostname())") == "127.0.0.1"


def test_the_own_loopback_works(client: BlockingKernelClient) -> None:
    def talk() -> list[str]:
        import socket

        texts = []
        for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET, "100.64.0.2")):
            with socket.create_server((address, 0), family=family) as server:
                with socket.create_connection(server.getsockname()[:2]) as one:
                    other, _ = server.accept()
                    with other:
                        one.sendall(b"hello")
                        texts.append(other.recv(5).decode())
        return texts

    assert LINK.address == "100.64.0.2"
    assert inside(client, talk) == ["hello", "hello"]


def test_two_sandboxes_do_not_reach_each_other(
    client: BlockingKernelClient, tmp_path: Path
) -> None:
    """Both have the same addresses, each in a network of its own."""
    code = "import socket; server = socket.create_server(('0.0.0.0', 0)); server.getsockname()[1]"
    with started(tmp_path) as (_, other):
        port = int(run_cell(other, code).result)
        here, there = LINK.address, LINK.gateway_address
        assert errors(other, (here, port), ("127.0.0.1", port)) == {0}
        assert errors(client, (here, port), (there, port), ("127.0.0.1", port)) == {
            errno.ECONNREFUSED
        }


def test_the_kernels_ports_are_nowhere_on_the_host(client: BlockingKernelClient) -> None:
    """It does listen there, inside; the host has neither the sockets nor the address."""

    def listening() -> list[int]:
        with open("/proc/net/tcp") as file:
            rows = [line.split() for line in file][1:]
        return sorted(int(row[1].split(":")[1], 16) for row in rows if row[3] == "0A")

    assert set(KERNEL_PORTS) <= set(inside(client, listening))
    assert not set(KERNEL_PORTS) & set(listening())
    assert LINK.address not in own_addresses()
    assert LINK.gateway_address not in own_addresses()
    for port in KERNEL_PORTS:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)


def test_no_device_of_the_sandbox_is_on_the_host(client: BlockingKernelClient) -> None:
    names = {name for _, name in socket.if_nameindex()}
    assert LINK.gateway_name not in names
    assert value(client, "[n for _, n in __import__('socket').if_nameindex()]") == ["lo", LINK.name]
