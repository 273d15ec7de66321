"""The last test: whatever the tests before it made is gone.

It fails for every run, not only for its own doing: run it after the suite that is suspected.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import traces

from sandbox_kernel.client import Launcher

PATIENCE = 15.0
"""Seconds. A sandbox dies by end of file on a pipe, and its cgroup after its last process."""


def test_nothing_is_left(traces_before: traces.Traces) -> None:
    deadline = time.monotonic() + PATIENCE
    for launcher in Launcher.close_all():  # one that this process keeps is no leftover: it may end
        with contextlib.suppress(subprocess.TimeoutExpired):  # what it waits for is named below
            launcher.process.wait(timeout=PATIENCE)
    while (left := traces.snapshot() - traces_before) and time.monotonic() < deadline:
        time.sleep(0.05)  # mounts, cgroups and orphans have no common event to wait for
    assert not left, "left behind by the tests:\n" + "\n".join(left)


# -- the looking itself ----------------------------------------------------------------------------


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A child that ends with this fixture."""
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE
    ) as child:
        yield child
        child.kill()


def test_a_child_is_seen(sleeper: subprocess.Popen[bytes]) -> None:
    assert any(f"{sleeper.pid} " in line for line in traces.snapshot().processes)


def test_an_orphan_of_a_sandbox_is_seen_and_another_one_is_not() -> None:
    """Both lose their parent; only one is called as a part of a sandbox is."""
    code = (
        "import subprocess, sys\n"
        "for name in ('sandbox_kernel.launcher', 'something.else'):\n"
        "    wait = 'import sys; print(flush=True); sys.stdin.read()'\n"
        "    command = [sys.executable, '-c', wait, name]\n"
        "    child = subprocess.Popen(command, stdin=sys.stdin, stdout=subprocess.PIPE)\n"
        "    child.stdout.readline()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as parent:
        parent.wait(timeout=PATIENCE)  # its input stays open: the orphans wait for the end of it
        seen = "\n".join(traces.snapshot().processes)
    assert "sandbox_kernel.launcher" in seen
    assert "something.else" not in seen


def test_files_and_what_is_in_them_are_seen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    before = traces.snapshot()
    (tmp_path / "sandbox-kernel" / "k").mkdir(parents=True)
    assert [line for line in traces.snapshot() - before if str(tmp_path) in line] == [
        f"files: {tmp_path}/sandbox-kernel",
        f"files: {tmp_path}/sandbox-kernel/k",
    ]
