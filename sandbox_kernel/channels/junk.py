"""Messages of the kernel that were dropped: each costs CPU here, and nothing there.

An honest kernel sends none. So a link that brought more than ``junk_a_second`` of them is not read
until the next second: then its messages wait in libzmq's bounded queue and in the kernel itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

_SECOND: Final = 1.0


class Junk:
    """Of one link. Made by the proxy, which does not read the link while it is :attr:`paused`."""

    def __init__(self, a_second: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = a_second
        self._clock = clock
        self._since = clock()
        self._count = 0

    def add(self) -> None:
        """One more was dropped."""
        if self._clock() - self._since >= _SECOND:
            self._since, self._count = self._clock(), 0
        self._count += 1

    @property
    def paused(self) -> bool:
        """Is the link not to be read now?"""
        return self._count > self._most and self._clock() - self._since < _SECOND

    def timeout_ms(self) -> int | None:
        """When the link is to be read again; ``None``: it is read."""
        if not self.paused:
            return None
        return max(int((self._since + _SECOND - self._clock()) * 1000), 0) + 1
