"""What the proxy dropped: every case counted, and told to the log at a bounded rate.

A hostile kernel decides how often something is dropped, so it must not decide how often a line is
written. The texts hold no byte that came from a message: reasons are words of ours.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable


class Report:
    """Counts by reason; one line a reason and ``interval`` seconds."""

    def __init__(
        self,
        log: Callable[[str], None],
        interval: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counts: Counter[str] = Counter()
        self._log = log
        self._interval = interval
        self._clock = clock
        self._said: dict[str, tuple[float, int]] = {}

    def __call__(self, reason: str) -> None:
        """It happened once more."""
        self.counts[reason] += 1
        now = self._clock()
        last, told = self._said.get(reason, (-self._interval, 0))
        if now - last < self._interval:
            return
        new = self.counts[reason] - told
        self._said[reason] = (now, self.counts[reason])
        self._log(reason if new == 1 else f"{reason} ({new} times)")
