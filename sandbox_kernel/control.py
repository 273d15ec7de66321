"""What a client may have done to a kernel that runs: pause, resume, other caps, its usage.

Owned by the supervisor, which has dropped its capabilities and loaded the filter by then: files of
the cgroup are written by the right of their owner alone. (A supervisor that root started is not
root any more, so for it pausing and other caps are refused.) Every order has one answer, and a
refused one changes nothing.

A paused kernel takes nothing in. What clients ask waits in the proxy and in their own queues, and
runs after the resume; so does a signal, an interrupt too. Only heartbeats are answered, by the
proxy. A kill, and the end of the client, do not wait: see :meth:`Control.release`.
"""

from __future__ import annotations

import contextlib
from typing import Final

from .capevents import CapEvents
from .caps import parse_change
from .channels import Proxy
from .engine.cgroups import KernelCgroup
from .errors import CgroupError, SandboxError, describe_errno
from .meter import KernelMeter
from .protocol import Answer, Ask, Done, GetUsage, Pause, Refused, Resume, Update, Usage

#: Seconds for which the supervisor's loop stands still at most while processes stop or go on; once
#: more where a pause has to be taken back. All but one that hangs in Linux itself stop at once.
_PATIENCE: Final = 1.0


class Control:
    """Obeys in the supervisor's loop. ``events`` learns of other caps, ``proxy`` of a pause."""

    def __init__(
        self, cgroup: KernelCgroup, events: CapEvents, proxy: Proxy, meter: KernelMeter
    ) -> None:
        self._meter = meter
        self._cgroup = cgroup
        self._events = events
        self._proxy = proxy

    def obey(self, order: Ask) -> Answer:
        """Blocks for :data:`_PATIENCE` seconds at most, or twice that. Never raises."""
        try:
            match order:
                case Pause():
                    self._pause()
                case Resume():
                    self._resume()
                case Update():
                    self._update(order)
                case GetUsage():
                    return Usage(order.request, self._meter.snapshot())
        except SandboxError as error:
            return Refused(order.request, error)
        except OSError as error:
            return Refused(order.request, _unexpected(error))
        return Done(order.request)

    def release(self) -> None:
        """Before anything is killed: a frozen process of v1 does not take a SIGKILL. Never raises.

        Also for who was paused past the supervisor, by what owns the cgroup.
        """
        release(self._cgroup)

    def _pause(self) -> None:
        """Heartbeats first: one that is under way when the kernel stops finds no answer."""
        self._proxy.pause()
        try:
            self._cgroup.pause(_PATIENCE)
        except BaseException:
            self._proxy.resume()
            raise

    def _resume(self) -> None:
        self._cgroup.resume(_PATIENCE)
        self._proxy.resume()

    def _update(self, order: Update) -> None:
        """Parsed again: whoever holds the lifeline could have sent it."""
        change = parse_change(order.caps)
        caps, user = self._events.changed(change)
        self._cgroup.update(change.caps, change.user)
        self._events.use(caps, user)


def release(cgroup: KernelCgroup) -> None:
    """Let go whatever is frozen in it. Never raises."""
    if cgroup.can_pause:
        with contextlib.suppress(SandboxError, OSError):
            cgroup.resume(_PATIENCE)


def _unexpected(error: OSError) -> CgroupError:
    return CgroupError(
        "the cgroup of the kernel cannot be read or written",
        cause=describe_errno(error.errno or 0),
        path=str(error.filename) if error.filename else None,
    )
