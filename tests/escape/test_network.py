"""What the kernel reaches: its own loopback device, and a peer on which nothing listens."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest
from escape.attacks import Arena, Attack, pair_of_tests
from escape.weaknesses import GATEWAY_PORT, Wall

PEER = "100.64.0.1"
#: On the host, while this module runs.
LISTENING = 47_113
ABSTRACT = "sandbox-kernel-escape-test"


@pytest.fixture(scope="module", autouse=True)
def services() -> Iterator[None]:
    """What listens on the host: on its loopback device, and in the abstract namespace."""
    with contextlib.ExitStack() as stack:
        for family, address in (
            (socket.AF_INET, ("127.0.0.1", LISTENING)), (socket.AF_UNIX, "\0" + ABSTRACT),
        ):  # fmt: skip
            listener = stack.enter_context(socket.socket(family))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen()
        yield


def connect(address: str, port: int) -> str:
    import socket

    from escape.attacker import outcome

    with socket.socket() as sock:
        sock.settimeout(5)
        return outcome(sock.connect, (address, port))


def connect_abstract(name: str) -> str:
    import socket

    from escape.attacker import outcome

    with socket.socket(socket.AF_UNIX) as sock:
        return outcome(sock.connect, "\0" + name)


def route_to(address: str) -> str:
    """Is there one? A datagram socket that is connected sends nothing."""
    import socket

    from escape.attacker import outcome

    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET,
                       socket.SOCK_DGRAM) as sock:  # fmt: skip
        return outcome(sock.connect, (address, 80))


def scan(address: str) -> list[int]:
    """Every port on which something listens."""
    import selectors
    import socket

    found = []
    for first in range(1, 65536, 500):
        with selectors.DefaultSelector() as selector:
            socks = []
            for port in range(first, min(first + 500, 65536)):
                sock = socket.socket()
                socks.append(sock)
                sock.setblocking(False)
                code = sock.connect_ex((address, port))
                if code == 115:
                    selector.register(sock, selectors.EVENT_WRITE, port)
                elif code == 0:
                    found.append(port)
            while selector.get_map():
                ready = selector.select(5)
                if not ready:
                    found.append(-1)  # neither open nor refused: something is there
                    break
                for key, _ in ready:
                    selector.unregister(key.fileobj)
                    if key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:  # type: ignore[union-attr]
                        found.append(key.data)
            for sock in socks:
                sock.close()
    return found


def interfaces() -> list[str]:
    import socket

    return sorted(name for _, name in socket.if_nameindex())


def routes() -> list[str]:
    with open("/proc/net/route") as file:
        return sorted({line.split()[0] for line in file.readlines()[1:]})


def forward() -> str:
    """Through the peer to somewhere else: a route of one's own."""
    import errno
    import socket
    import struct

    new_route, request, acknowledge, create = 24, 1, 4, 0x400
    body = struct.pack("=BBBBBBBBI", socket.AF_INET, 0, 0, 0, 254, 4, 0, 1, 0)
    body += struct.pack("=HH4s", 8, 5, socket.inet_aton("100.64.0.1"))
    flags = request | acknowledge | create
    header = struct.pack("=IHHII", 16 + len(body), new_route, flags, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.send(header + body)
        (code,) = struct.unpack_from("=i", sock.recv(4096), 16)
    return errno.errorcode[-code] if code else "0"


def _host_has_route(address: str) -> bool:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        return sock.connect_ex((address, 80)) == 0


def outside(name: str, address: str) -> Attack:
    if _host_has_route(address):
        return Attack(name, route_to, "ENETUNREACH", (Wall.NETWORK,), arguments=(address,))
    return Attack(
        name, route_to, ("ENETUNREACH", "EADDRNOTAVAIL"), arguments=(address,),
        cannot_be_shown="this host has no route there itself",
    )  # fmt: skip


ATTACKS = [
    Attack("a service on the host's loopback device", connect, "ECONNREFUSED", (Wall.NETWORK,),
           arguments=("127.0.0.1", LISTENING)),
    Attack("an abstract socket of the host (CVE-2020-15257)", connect_abstract,
           ("ECONNREFUSED", "EPERM"), (Wall.NETWORK, Wall.LANDLOCK), arguments=(ABSTRACT,)),
    outside("the metadata address", "169.254.169.254"),
    outside("the metadata address by IPv6", "fd00:ec2::254"),
    outside("the network of the host", "192.0.2.1"),
    outside("a name server", "8.8.8.8"),
    Attack("every port of the proxy's peer address", scan, [], (Wall.GATEWAY,),
           through=[GATEWAY_PORT], arguments=(PEER,)),
    Attack("interfaces", interfaces, ["eth0", "lo"], (Wall.NETWORK,),
           through=sorted(name for _, name in socket.if_nameindex()))
    if sorted(n for _, n in socket.if_nameindex()) != ["eth0", "lo"] else
    Attack("interfaces", interfaces, ["eth0", "lo"],
           cannot_be_shown="the interfaces of this host have the same names"),
    Attack("routes", routes, ["eth0"],
           cannot_be_shown="the host's may have the same name; see the addresses above"),
    Attack("a way through the peer", forward, "EPERM", (Wall.CAPABILITIES,)),
]  # fmt: skip


test_is_held, test_gets_through_without_the_wall = pair_of_tests(ATTACKS)


@pytest.mark.needs("landlock")
def test_an_abstract_socket_has_two_walls(arena: Arena) -> None:
    """Without the net namespace Landlock refuses it still, from its sixth version on."""
    from integration.sandboxes import inside, said

    box = arena.box(without=[Wall.NETWORK])
    seen = inside(box.client, connect_abstract, ABSTRACT)
    assert seen == ("EPERM" if said(box.km).landlock_abi >= 6 else "0")
