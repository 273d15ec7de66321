"""How much went over the link of one kernel, as the gateway's end of it counts."""

from __future__ import annotations

import contextlib
import os
from typing import Final

_MOST: Final = 16_384


class LinkTraffic:
    """Opened by the supervisor in the gateway's net namespace, which the file stays bound to.

    ``name`` is the gateway's interface. All that goes over it is Jupyter's messages and what
    carries them, unless the network policy lets through more.
    """

    def __init__(self, name: str) -> None:
        self._name = f"{name}:"
        self._fd = -1
        with contextlib.suppress(OSError):
            self._fd = os.open("/proc/thread-self/net/dev", os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> tuple[int, int] | None:
        """Bytes that the kernel sent and received; ``None`` if that cannot be seen."""
        try:
            text = os.pread(self._fd, _MOST, 0).decode("ascii", "replace")
        except OSError:
            return None
        for line in text.splitlines():
            words = line.split()
            if words[:1] == [self._name] and len(words) >= 10:
                return int(words[1]), int(words[9])
        return None

    def close(self) -> None:
        """Twice is once."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1
