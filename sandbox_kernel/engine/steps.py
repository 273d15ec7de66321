"""The order of set-up, as names.

Every process on the way calls :func:`reached` *before* it does the step. In production this does
nothing but remember the name for the error message; the tests put an observer in, through which
they inject a failure or a SIGKILL at each step and look at what is left.
"""

from __future__ import annotations

import enum
from collections.abc import Callable


class Step(enum.Enum):
    """Each step of set-up, in the order in which it happens."""

    REQUEST = "read the request"
    LISTEN = "bind the client's endpoints"
    CGROUP = "make the cgroup"
    USER_NAMESPACE = "unshare the user namespace"
    ID_MAP = "write uid_map and gid_map"
    GATEWAY = "unshare the gateway's net namespace"
    STAGE = "fork the stage"
    JOIN_CGROUP = "join the cgroup"
    NAMESPACES = "unshare the container's namespaces"
    INIT = "fork the init"
    VETH = "make the veth pair"
    SOURCES = "open the sources of the mounts"
    ROOTFS = "build the root file system"
    PIVOT = "pivot into the root file system"
    CGROUP_NAMESPACE = "unshare the cgroup namespace"
    LINK = "bring up the sandbox's end of the link"
    PRIVILEGES = "give up every privilege"
    LANDLOCK = "restrict with Landlock"
    SECCOMP = "load the seccomp filter"
    KERNEL = "fork the kernel"
    LOCK_DOWN = "lock the supervisor down"
    BOUND = "wait until the kernel has bound its channels"
    CONNECT = "connect the proxy"


Observer = Callable[[Step], None]
_observer: Observer | None = None


def observe(observer: Observer | None) -> None:
    """Called by tests only: ``observer`` is called with each step, in each process."""
    global _observer
    _observer = observer


def reached(step: Step) -> None:
    """Called by every process of the set-up just before it does ``step``."""
    if _observer is not None:
        _observer(step)
