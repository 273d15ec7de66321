"""Which families of sockets there are: each but four is code of Linux that no notebook needs."""

from __future__ import annotations

import socket

import pytest
from escape.attacks import Arena, Attack, pair_of_tests
from escape.weaknesses import Wall

#: Without the filter: a socket, or Linux' word that it was built without this family.
THERE = ("0", "EAFNOSUPPORT", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT")


def open_socket(family: int, kind: int, protocol: int) -> str:
    import socket

    from escape.attacker import outcome

    return outcome(lambda: socket.socket(family, kind, protocol).close())


def open_pair(family: int, kind: int, protocol: int) -> str:
    import ctypes

    from escape.attacker import libc

    pair = (ctypes.c_int * 2)()
    if libc.socketpair(family, kind, protocol, pair) == 0:
        return "0"
    import errno

    return errno.errorcode[ctypes.get_errno()]


def socket_attack(name: str, *arguments: int, more: tuple[Wall, ...] = ()) -> Attack:
    return Attack(
        name, open_socket, "EPERM", (Wall.SECCOMP, *more), through=THERE, arguments=arguments
    )


def families() -> list[int]:
    """The families of which any kind of socket is more than refused."""
    import socket

    from escape.attacker import outcome

    found = []
    for family in range(64):
        kinds = range(1, 6)
        if {outcome(lambda f=family, k=k: socket.socket(f, k, 0).close()) for k in kinds} != {
            "EPERM"
        }:
            found.append(family)
    return found


ATTACKS = [
    socket_attack("AF_ALG writes the page cache (CVE-2026-31431)", 38, 5, 0),
    socket_attack("AF_VSOCK reaches the hypervisor", 40, 1, 0),
    socket_attack("AF_RXRPC (CVE-2026-43284, CVE-2026-43500)", 33, 2, 2),
    socket_attack("AF_PACKET", 17, 3, 0, more=(Wall.CAPABILITIES,)),
    socket_attack("AF_PACKET under the name of AF_INET", 2, 10, 0x300, more=(Wall.CAPABILITIES,)),
    socket_attack("AF_NETLINK, kernel events", 16, 3, 15),
    socket_attack("AF_NETLINK, IPsec", 16, 3, 6),
    socket_attack("AF_NETLINK, netfilter", 16, 3, 12),
    socket_attack("AF_NETLINK, socket diagnosis", 16, 3, 4),
    socket_attack("AF_NETLINK, audit", 16, 3, 9),
    socket_attack("raw IP", 2, 3, 1, more=(Wall.CAPABILITIES,)),
    socket_attack("SCTP", 2, 1, 132),
    socket_attack("MPTCP", 2, 1, 262),
    socket_attack("AF_TIPC", 30, 5, 0),
    socket_attack("AF_SMC", 43, 1, 0),
    socket_attack("AF_XDP", 44, 3, 0, more=(Wall.CAPABILITIES,)),
    socket_attack("AF_BLUETOOTH", 31, 3, 1),
    socket_attack("AF_CAN", 29, 3, 1),
    socket_attack("AF_KEY", 15, 3, 2, more=(Wall.CAPABILITIES,)),
    Attack(
        "a pair of AF_TIPC", open_pair, "EPERM", (Wall.SECCOMP,), through=THERE,
        arguments=(30, 5, 0),
    ),
    Attack(
        "every family but unix, inet, inet6 and netlink", families, [1, 2, 10, 16],
        (Wall.SECCOMP, Wall.CAPABILITIES), through=list(range(64)),
    ),
]  # fmt: skip


test_is_held, test_gets_through_without_the_wall = pair_of_tests(ATTACKS)


@pytest.mark.parametrize("family", [socket.AF_UNIX, socket.AF_INET, socket.AF_INET6])
def test_the_three_families_are_there(family: int, arena: Arena) -> None:
    from integration.sandboxes import inside

    assert inside(arena.box().client, open_socket, int(family), 1, 0) == "0"
