"""The caps of one kernel: ``memory``, ``cpus``, ``pids``, on cgroup v1, v2 or both.

The supervisor calls :func:`create` before its user namespace is made, the child that becomes the
kernel calls :meth:`KernelCgroup.join`, the supervisor reads :meth:`KernelCgroup.usage` and
:meth:`KernelCgroup.events`, and whoever is alive at the end calls :meth:`KernelCgroup.kill` and
:meth:`KernelCgroup.remove`. :func:`sweep` clears what nobody was left to remove.

No privilege is needed but a directory that belongs to the user in the hierarchy of each
controller; :mod:`.detect` says where it is looked for.
"""

from __future__ import annotations

from .detect import Hierarchy, Missing, Search, Tried, hierarchies
from .group import KernelCgroup, create
from .interface import HINT_VARIABLE, CgroupEvents, CgroupUsage, Leaf, Place, Source, Version
from .sweep import Swept, sweep

__all__ = [
    "HINT_VARIABLE",
    "CgroupEvents",
    "CgroupUsage",
    "Hierarchy",
    "KernelCgroup",
    "Leaf",
    "Missing",
    "Place",
    "Search",
    "Source",
    "Swept",
    "Tried",
    "Version",
    "create",
    "hierarchies",
    "sweep",
]
