"""One value, two spellings: what a number of cgroup v1 is on v2, and the other way round. Pure.

Sources: the kernel's Documentation/admin-guide; what container run-times agreed upon where the
kernel gives no rule.
"""

from __future__ import annotations

import math
from typing import Final

#: v1: 2 to 262144, 1024 is the usual one. v2: 1 to 10000, 100 is.
SHARES_MINIMUM: Final = 2
SHARES_MAXIMUM: Final = 262_144
WEIGHT_MINIMUM: Final = 1
WEIGHT_MAXIMUM: Final = 10_000
#: blkio.weight.
BLKIO_MINIMUM: Final = 10
BLKIO_MAXIMUM: Final = 1_000
_LARGEST: Final = 2**63 - 1


def shares_of_weight(weight: int) -> int:
    """``cpu.shares`` for the cap ``cpu_weight``: as the scheduler itself scales ``cpu.weight``.

    Linear, so that two kernels with the weights 100 and 300 share 1:3 on both versions.
    """
    return max(SHARES_MINIMUM, round(weight * 1024 / 100))


def weight_of_shares(shares: int) -> int:
    """``cpu.weight`` for a value that was meant as ``cpu.shares``.

    The curve of crun and its kin through the three points that both versions name: the least, the
    usual and the most. It keeps their ranks, not their ratios.
    """
    if shares <= SHARES_MINIMUM:
        return WEIGHT_MINIMUM
    if shares >= SHARES_MAXIMUM:
        return WEIGHT_MAXIMUM
    log = math.log2(shares)
    weight = 10 ** ((log * log + 125 * log) / 612 - 7 / 34)
    return math.ceil(weight - 1e-9)  # 1024 is 100, and not 100 and a rounding error


def io_weight_of_blkio(weight: int) -> int:
    """``io.weight`` (1 to 10000) for a ``blkio.weight`` (10 to 1000), rounded down."""
    return 1 + (weight - BLKIO_MINIMUM) * 9999 // (BLKIO_MAXIMUM - BLKIO_MINIMUM)


def memsw_of_swap(memory: int, swap: int) -> int:
    """``memory.memsw.limit_in_bytes`` of v1: memory and swap in one number."""
    return min(memory + swap, _LARGEST)


def swap_of_memsw(memory: int, memsw: int) -> int:
    """``memory.swap.max`` of v2 for a limit on memory and swap together."""
    return max(memsw - memory, 0)
