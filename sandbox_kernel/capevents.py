"""What happened at the caps of one kernel: lines for the log as it happens, the cause at its end.

Between the counters of a cgroup (:mod:`.engine.cgroups`) and the words for people
(:mod:`.death`). Owned by the supervisor, which reads the counters before the cgroup goes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Final

from .caps import Caps, Change
from .death import Death, TimeUp, explain, tell
from .engine.cgroups import CgroupEvents, CgroupUsage, EventWatch, KernelCgroup
from .engine.process import ExitStatus
from .errors import SandboxError

#: Seconds between two lines for the log: what is inside decides how often something happens.
_NOTICE_INTERVAL: Final = 1.0


class CapEvents:
    """Made before anybody is in the cgroup. ``user`` are the caps of all the user's kernels."""

    def __init__(self, cgroup: KernelCgroup, caps: Caps, user: Caps) -> None:
        self._cgroup = cgroup
        self._caps, self._user = caps, user
        self._watch = EventWatch(cgroup)
        self._start = self._seen = self._told = self._watch.start
        self._last_oom = CgroupEvents()
        self._refused_before = 0
        self._next_notice = 0.0
        self._again = False

    def fileno(self) -> int:
        """Readable when something has happened: call :meth:`news`."""
        return self._watch.fileno()

    def timeout(self) -> float | None:
        """Seconds after which :meth:`news` is to be called though nothing was readable."""
        return max(self._next_notice - time.monotonic(), 0) if self._again else None

    def news(self, *, fired: bool) -> list[str]:
        """Somebody was killed, or refused, or slowed down: lines for the log, at a bounded rate.

        After each event it wants to be called once more: an event of v1 comes before what it is
        about is counted, and what comes too soon after another is told later.
        """
        self._see(_quietly(self._watch.take, self._seen))
        if time.monotonic() < self._next_notice:
            self._again |= fired
            return []
        self._next_notice, self._again = time.monotonic() + _NOTICE_INTERVAL, fired
        news, self._told = self._happened_since(self._told), self._seen
        return tell(news, self._caps, self._usage(), user=self._user)

    def cell_begins(self) -> None:
        """What is refused from here on is refused to this cell. Costs one read, and only with a cap
        on what it counts."""
        if self._caps.pids is not None or self._user.pids is not None:
            self._refused_before = self._refused()

    def death(
        self, status: ExitStatus | None, *, on_order: bool, time_up: TimeUp | None = None
    ) -> Death:
        """Why the kernel ended; see :func:`.death.explain`."""
        self._see(_quietly(self._watch.events, self._seen))
        return explain(
            status, self._caps, self._happened_since(self._start), self._usage(),
            on_order=on_order, user=self._user, time_up=time_up,
            refused=max(self._refused() - self._refused_before, 0),
        )  # fmt: skip

    def changed(self, change: Change) -> tuple[Caps, Caps]:
        """The caps of the kernel and of its user as they would be after ``change``.

        Raises:
            SpecError: they do not go together.
        """
        return self._caps.changed(change.caps), self._user.changed(change.user, "user.")

    @property
    def in_force(self) -> tuple[Caps, Caps]:
        """The caps of the kernel and of its user."""
        return self._caps, self._user

    def use(self, caps: Caps, user: Caps) -> None:
        """These are in force now: what is told from here on names them."""
        self._caps, self._user = caps, user

    @property
    def caps(self) -> Caps:
        """Those in force now."""
        return self._caps

    def close(self) -> None:
        """Before the cgroup is removed. Twice is once."""
        self._watch.close()

    def _refused(self) -> int:
        """Processes and threads, since the cgroup was made."""
        return _quietly(self._cgroup.refusals, None) or 0

    def _usage(self) -> CgroupUsage:
        usage: CgroupUsage = _quietly(self._cgroup.usage, CgroupUsage())
        return usage

    def _see(self, now: CgroupEvents) -> None:
        """Of two OOM kills at two caps the last one is what ended the kernel."""
        new = now.since(self._seen)
        if new.oom or new.oom_above:
            self._last_oom = new
        self._seen = now

    def _happened_since(self, earlier: CgroupEvents) -> CgroupEvents:
        happened = self._seen.since(earlier)
        return dataclasses.replace(
            happened, oom=self._last_oom.oom, oom_above=self._last_oom.oom_above
        )


def _quietly(read: Callable[[], Any], otherwise: Any) -> Any:
    """Counters that cannot be read any more explain nothing and stop nothing."""
    try:
        return read()
    except (SandboxError, OSError):
        return otherwise
