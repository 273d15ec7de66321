"""How much a kernel may say on iopub: the spec's keys ``output_*``. Pure.

Held by the proxy, see :mod:`.channels.cutting`; no cgroup knows of messages.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from .parsing import KIB, integer, size_of


@dataclass(frozen=True)
class OutputCaps:
    """``None``: no cap. What is beyond is cut; ``status``, ``error`` and replies never are."""

    bytes_per_second: int | None = None
    """On average; a burst of some seconds' worth passes."""
    messages_per_second: int | None = None
    bytes_per_cell: int | None = None
    messages_per_cell: int | None = None

    def asked(self) -> bool:
        """Is there anything to hold?"""
        return self != OutputCaps()


PREFIX: Final = "output_"
_SIZE: Final = size_of(4 * KIB)
_COUNT: Final = integer(1, 2**31 - 1)

OUTPUT_PARSERS: Final[dict[str, Callable[[str, object], Any]]] = {
    "output_bytes_per_second": _SIZE,
    "output_messages_per_second": _COUNT,
    "output_bytes_per_cell": _SIZE,
    "output_messages_per_cell": _COUNT,
}
"""Of the spec; a key is :data:`PREFIX` and the name of a field."""
