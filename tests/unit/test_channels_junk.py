"""A link that brings junk is left alone until the next second."""

from __future__ import annotations

import pytest

from sandbox_kernel.channels.junk import Junk

MOST = 3


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def junk(clock: Clock) -> Junk:
    return Junk(MOST, clock)


def add(junk: Junk, number: int) -> None:
    for _ in range(number):
        junk.add()


def test_as_many_as_are_allowed_cost_nothing(junk: Junk) -> None:
    add(junk, MOST)
    assert not junk.paused
    assert junk.timeout_ms() is None


def test_one_more_pauses_the_link_for_the_rest_of_the_second(junk: Junk, clock: Clock) -> None:
    clock.now += 0.25
    add(junk, MOST + 1)
    assert junk.paused
    assert junk.timeout_ms() == 751  # rounded up: a poll that wakes before is for nothing
    clock.now += 0.75
    assert not junk.paused
    assert junk.timeout_ms() is None


def test_every_second_has_its_share(junk: Junk, clock: Clock) -> None:
    for _ in range(5):
        add(junk, MOST)
        assert not junk.paused
        junk.add()
        assert junk.paused
        clock.now += 1


def test_a_second_begins_with_what_comes_after_it(junk: Junk, clock: Clock) -> None:
    """Nothing adds up over a long time."""
    for _ in range(10 * MOST):
        clock.now += 0.5
        junk.add()
        assert not junk.paused
