"""The messages of the link: encoded once, for every net namespace there will be."""

from __future__ import annotations

import pytest

from sandbox_kernel.engine import network
from sandbox_kernel.engine.network import Link

LINKS = [Link(), Link("g", "10.0.0.1", "inside0", "10.0.0.2", 24, 7)]


@pytest.mark.parametrize("link", LINKS, ids=lambda link: link.name)
def test_one_number_of_the_packet_is_the_namespace(link: Link) -> None:
    """Whatever else is in it, what stands for the descriptor is there once, so it can be put in."""
    packet = network._pair_packet(link)
    assert packet.raw.count(network._NUMBER.pack(network._SOME_NETNS)) == 1
    assert link.gateway_name.encode() in packet.raw
    assert link.name.encode() in packet.raw
    assert len(packet.what) == 2


def test_nothing_is_encoded_after_the_preparation() -> None:
    link = Link(index=11)
    network.prepare(link)
    before = [
        cached.cache_info().misses for cached in (network._pair_packet, network._inside_packet)
    ]
    assert network._pair_packet(link) is network._pair_packet(link)
    assert network._inside_packet(link) is network._inside_packet(link)
    after = [
        cached.cache_info().misses for cached in (network._pair_packet, network._inside_packet)
    ]
    assert after == before
