"""The caps of one kernel and of all kernels of a user, on cgroup v1, v2 or both.

The supervisor calls :func:`create` before its user namespace is made, the child that becomes the
kernel calls :meth:`KernelCgroup.join`, the supervisor reads :meth:`KernelCgroup.usage` and polls an
:class:`EventWatch`, and whoever is alive at the end calls :meth:`KernelCgroup.kill` and
:meth:`KernelCgroup.remove`. :meth:`KernelCgroup.update`, ``pause`` and ``resume`` are for a kernel
that runs; :func:`running` finds it. :func:`sweep` clears what nobody was left to remove.

No privilege is needed but a directory that belongs to the user in the hierarchy of each
controller; :mod:`.detect` says where it is looked for, and :mod:`.scope` has the user's systemd
make one where there is none.
"""

from __future__ import annotations

from .alarm import MemoryAlarm, Refusals, refusals
from .counters import Counters, Counts
from .detect import Hierarchy, Missing, Search, Tried, hierarchies
from .group import KernelCgroup, create
from .interface import (
    HINT_VARIABLE,
    CgroupEvents,
    CgroupUsage,
    IoUsage,
    Leaf,
    Place,
    Pressure,
    Source,
    Version,
)
from .scope import UserScope
from .sweep import Swept, running, sweep
from .usage import USAGE_FORMAT, usage_from_dict, usage_to_dict
from .watch import EventWatch

__all__ = [
    "HINT_VARIABLE",
    "USAGE_FORMAT",
    "CgroupEvents",
    "CgroupUsage",
    "Counters",
    "Counts",
    "EventWatch",
    "Hierarchy",
    "IoUsage",
    "KernelCgroup",
    "Leaf",
    "MemoryAlarm",
    "Missing",
    "Place",
    "Pressure",
    "Refusals",
    "Search",
    "Source",
    "Swept",
    "Tried",
    "UserScope",
    "Version",
    "create",
    "hierarchies",
    "refusals",
    "running",
    "sweep",
    "usage_from_dict",
    "usage_to_dict",
]
