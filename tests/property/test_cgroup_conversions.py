"""For all values: a number of cgroup v1 is the right one on v2, and the other way round."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sandbox_kernel.engine.cgroups.convert import (
    io_weight_of_blkio,
    memsw_of_swap,
    shares_of_weight,
    swap_of_memsw,
    weight_of_shares,
)

bounded = settings(derandomize=True, database=None, deadline=None, max_examples=300)
LARGEST = 2**63 - 1


@pytest.mark.parametrize(
    ("shares", "weight"),
    [(0, 1), (1, 1), (2, 1), (1024, 100), (262_144, 10_000), (2**40, 10_000)],
)
def test_the_points_that_both_versions_name(shares: int, weight: int) -> None:
    assert weight_of_shares(shares) == weight


@bounded
@given(shares=st.integers(-5, 300_000))
def test_more_shares_are_no_smaller_weight(shares: int) -> None:
    here, more = weight_of_shares(shares), weight_of_shares(shares + 1)
    assert 1 <= here <= more <= 10_000
    assert type(here) is int


@pytest.mark.parametrize(("weight", "shares"), [(1, 10), (100, 1024), (10_000, 102_400)])
def test_the_scheduler_scales_weights_linearly(weight: int, shares: int) -> None:
    assert shares_of_weight(weight) == shares


@bounded
@given(weight=st.integers(1, 10_000), other=st.integers(1, 10_000))
@example(weight=100, other=300)
def test_two_weights_share_alike_on_v1(weight: int, other: int) -> None:
    """To the half share by which a number of v1 is rounded."""
    ratio = Fraction(shares_of_weight(weight), shares_of_weight(other))
    wanted = Fraction(weight, other)
    assert abs(ratio - wanted) <= wanted * Fraction(1, 9)
    assert 2 <= shares_of_weight(weight) <= 262_144


def test_one_to_three_is_one_to_three() -> None:
    assert shares_of_weight(300) == 3 * shares_of_weight(100)


@bounded
@given(weight=st.integers(10, 999))
@example(weight=10)
@example(weight=999)
def test_blkio_weights_keep_their_order(weight: int) -> None:
    assert 1 <= io_weight_of_blkio(weight) < io_weight_of_blkio(weight + 1) <= 10_000
    exact = 1 + Fraction((weight - 10) * 9999, 990)
    assert 0 <= exact - io_weight_of_blkio(weight) < 1


def test_the_ends_of_blkio_weights() -> None:
    assert (io_weight_of_blkio(10), io_weight_of_blkio(1000)) == (1, 10_000)


@bounded
@given(memory=st.integers(1, LARGEST), swap=st.integers(0, LARGEST))
@example(memory=LARGEST, swap=LARGEST)
def test_swap_goes_into_one_number_and_comes_out_of_it(memory: int, swap: int) -> None:
    both = memsw_of_swap(memory, swap)
    assert memory <= both <= LARGEST
    if memory + swap <= LARGEST:
        assert swap_of_memsw(memory, both) == swap


@bounded
@given(memory=st.integers(0, LARGEST), memsw=st.integers(0, LARGEST))
def test_less_than_memory_is_no_swap(memory: int, memsw: int) -> None:
    swap = swap_of_memsw(memory, memsw)
    assert swap == (memsw - memory if memsw > memory else 0)
