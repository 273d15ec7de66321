"""The root file system: facts of the host → a plan that is data → its execution.

* :mod:`.facts`      what is on this host (read once, before anything is unshared)
* :mod:`.plan`       pure: spec and facts → a sorted tuple of operations
* :mod:`.operations` what one operation is
* :mod:`.build`      executes a plan through descriptors, then pivots
"""

from __future__ import annotations

from .build import Sources, build, open_sources, pivot
from .facts import HostFacts, collect_facts
from .operations import Operation
from .plan import EXECUTED_OUTSIDE, SECRETS, is_within, plan_rootfs, writable_targets

__all__ = [
    "EXECUTED_OUTSIDE",
    "SECRETS",
    "HostFacts",
    "Operation",
    "Sources",
    "build",
    "collect_facts",
    "is_within",
    "open_sources",
    "pivot",
    "plan_rootfs",
    "writable_targets",
]
