"""Fixtures that several modules share; a module with other needs has its own of the same name."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from integration.groups import Child, Delegated, children, delegated_directory
from integration.remains import Ground, close_launchers, ground


@pytest.fixture(scope="module")
def launchers() -> Iterator[None]:
    """One for all tests of a module; at its end it ends."""
    yield
    close_launchers()


@pytest.fixture
def here(launchers: None) -> Iterator[Ground]:
    """Where a sandbox leaves nothing."""
    with ground() as found:
        yield found
        found.assert_clean("by this test")


@pytest.fixture
def delegated() -> Iterator[Delegated]:
    """A delegated directory, without a sandbox."""
    with delegated_directory() as found:
        yield found


@pytest.fixture
def start() -> Iterator[type[Child]]:
    """Starts processes in cgroups; at the end they end."""
    with children() as kept:
        yield kept
