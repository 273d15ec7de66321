"""The last test: whatever the tests before it made is gone.

It fails for every run, not only for its own doing: run it after the suite that is suspected.
"""

from __future__ import annotations

import time

import traces

PATIENCE = 15.0
"""Seconds. A sandbox dies by end of file on a pipe, and its cgroup after its last process."""


def test_nothing_is_left(traces_before: traces.Traces) -> None:
    deadline = time.monotonic() + PATIENCE
    while (left := traces.snapshot() - traces_before) and time.monotonic() < deadline:
        time.sleep(0.05)  # mounts, cgroups and orphans have no common event to wait for
    assert not left, "left behind by the tests:\n" + "\n".join(left)
