"""The link: one veth pair between the gateway's net namespace and the sandbox's.

The messages are pyroute2's, so that no wire format is written by hand; the socket is our own, so
that a whole configuration is one ``sendmsg`` and no thread is started in a process that still has
to unshare. Both ends get their interface index when they are made, so that no answer is awaited.

Encoding a message takes longer than the kernel takes to obey it, so it is done once, by
:func:`prepare`, in the process that all others are forked from.
"""

from __future__ import annotations

import errno
import functools
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST
from pyroute2.netlink.rtnl import RTM_NEWADDR, RTM_NEWLINK
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from ..errors import NetworkError, describe_errno

_IFF_UP: Final = 1
_LOOPBACK_INDEX: Final = 1
_HEADER: Final = struct.Struct("=IHHII")
_NLMSG_ERROR: Final = 2
_NUMBER: Final = struct.Struct("=i")
#: Stands for the descriptor of a net namespace in what is encoded before there is one.
_SOME_NETNS: Final = 0x7AFE_57E7


@dataclass(frozen=True)
class Link:
    """Names and addresses of both ends. The network is the link's alone."""

    gateway_name: str = "sandbox0"
    gateway_address: str = "100.64.0.1"
    name: str = "eth0"
    address: str = "100.64.0.2"
    prefix_length: int = 30
    index: int = 2
    """Interface index of each end in its own namespace, where 1 is ``lo``."""


@dataclass(frozen=True)
class _Packet:
    """Encoded requests, numbered from 1 on."""

    raw: bytes
    what: tuple[str, ...]
    """Each request, for people."""


def prepare(link: Link) -> None:
    """Called once before any fork: encode what :func:`make_veth` and the other end will send."""
    _pair_packet(link)
    _inside_packet(link)


def make_veth(link: Link, peer_netns: int) -> None:
    """Called in the gateway's namespace: both ends, the gateway's up and with its address.

    The sandbox's end stays down until :func:`configure_inside`: a peer that is to be up while the
    pair is still being made is refused with ENOTCONN. ``peer_netns`` is a descriptor of
    the sandbox's net namespace.

    Raises:
        NetworkError: the kernel refused one of the two requests.
    """
    packet = _pair_packet(link)
    before, after = packet.raw.split(_NUMBER.pack(_SOME_NETNS))
    _transact(_Packet(before + _NUMBER.pack(peer_netns) + after, packet.what))


def configure_inside(link: Link) -> None:
    """Called by the init in the sandbox's namespace: ``lo`` up, the address on its end.

    Raises:
        NetworkError: the kernel refused one of the three requests.
    """
    _transact(_inside_packet(link))


@functools.cache
def _pair_packet(link: Link) -> _Packet:
    """Both ends and the gateway's address; the namespace of the peer is still to be filled in."""
    peer = {
        "index": link.index,
        "attrs": [("IFLA_IFNAME", link.name), ("IFLA_NET_NS_FD", _SOME_NETNS)],
    }
    pair: dict[str, Any] = {
        "attrs": [
            ("IFLA_INFO_KIND", "veth"),
            ("IFLA_INFO_DATA", {"attrs": [("VETH_INFO_PEER", peer)]}),
        ]
    }
    attributes = [("IFLA_IFNAME", link.gateway_name), ("IFLA_LINKINFO", pair)]
    return _encode(
        [
            (f"make the veth pair {link.gateway_name}-{link.name}",
             _link_message(link.index, attributes, create=True)),
            (f"give {link.gateway_name} the address {link.gateway_address}",
             _address_message(link.index, link.gateway_address, link.prefix_length)),
        ]
    )  # fmt: skip


@functools.cache
def _inside_packet(link: Link) -> _Packet:
    """``lo`` and the sandbox's end up, and the address of that."""
    return _encode(
        [
            ("bring up lo", _link_message(_LOOPBACK_INDEX, [])),
            (f"bring up {link.name}", _link_message(link.index, [])),
            (f"give {link.name} the address {link.address}",
             _address_message(link.index, link.address, link.prefix_length)),
        ]
    )  # fmt: skip


def open_namespace(pid: int | str) -> int:
    """A descriptor of the net namespace of ``pid``."""
    path = f"/proc/{pid}/ns/net"
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NetworkError(
            "a net namespace could not be opened",
            cause=describe_errno(error.errno or 0),
            path=path,
        ) from error


def _link_message(index: int, attributes: list[tuple[str, Any]], *, create: bool = False) -> Any:
    message = ifinfmsg()
    message["index"] = index
    message["flags"] = _IFF_UP
    message["change"] = _IFF_UP
    message["attrs"] = attributes
    message["header"]["type"] = RTM_NEWLINK
    message["header"]["flags"] = NLM_F_CREATE | NLM_F_EXCL if create else 0
    return message


def _address_message(index: int, address: str, prefix_length: int) -> Any:
    message = ifaddrmsg()
    message["family"] = socket.AF_INET
    message["prefixlen"] = prefix_length
    message["index"] = index
    message["attrs"] = [("IFA_LOCAL", address), ("IFA_ADDRESS", address)]
    message["header"]["type"] = RTM_NEWADDR
    message["header"]["flags"] = NLM_F_CREATE | NLM_F_EXCL
    return message


def _encode(requests: Sequence[tuple[str, Any]]) -> _Packet:
    """All requests in one packet; each wants to be acknowledged."""
    raw = b""
    for sequence, (_, message) in enumerate(requests, 1):
        message["header"]["sequence_number"] = sequence
        message["header"]["flags"] |= NLM_F_REQUEST | NLM_F_ACK
        message.encode()
        raw += bytes(message.data)
    return _Packet(raw, tuple(what for what, _ in requests))


def _transact(packet: _Packet) -> None:
    """Send all requests at once and wait for the acknowledgement of each."""
    try:
        netlink = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
    except OSError as error:
        raise NetworkError(
            "a netlink socket was refused", cause=describe_errno(error.errno or 0)
        ) from error
    with netlink:
        try:
            netlink.send(packet.raw)
            waiting = dict(enumerate(packet.what, 1))
            while waiting:
                _acknowledge(netlink.recv(65536), waiting)
        except OSError as error:
            raise NetworkError(
                "the kernel did not answer on netlink", cause=describe_errno(error.errno or 0)
            ) from error


def _acknowledge(packet: bytes, waiting: dict[int, str]) -> None:
    """Take the acknowledgements in ``packet`` off ``waiting``; a refusal raises."""
    offset = 0
    while offset + _HEADER.size <= len(packet):
        length, kind, _, sequence, _ = _HEADER.unpack_from(packet, offset)
        if kind == _NLMSG_ERROR:
            (number,) = _NUMBER.unpack_from(packet, offset + _HEADER.size)
            what = waiting.pop(sequence, "configure the link")
            if number:
                raise NetworkError(f"could not {what}", cause=_refusal(-number))
        offset += max((length + 3) & ~3, _HEADER.size)


def _refusal(number: int) -> str:
    text = describe_errno(number)
    if number == errno.EOPNOTSUPP:
        text += "; the kernel has no veth driver, or its module 'veth' is not loaded"
    return text
