"""The few files of a cgroup that a cell needs, as Linux writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sandbox_kernel.engine.cgroups import Counters, Counts, Leaf, Version

V1 = {
    "cpuacct.usage": "1234567890\n",
    "memory.max_usage_in_bytes": "4096\n",
    "memory.usage_in_bytes": "8192\n",
    "memory.stat": "inactive_file 1\ntotal_inactive_file 5\ntotal_shmem 3\n",
    "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
    "pids.events": "max 3\n",
    "blkio.throttle.io_service_bytes": "8:0 Read 10\n8:0 Write 20\n8:16 Read 1\nTotal 31\n",
}
V2 = {
    "cpu.stat": "usage_usec 1234567\nuser_usec 1\n",
    "memory.peak": "4096\n",
    "memory.current": "8192\n",
    "memory.stat": "inactive_file 5\nshmem 3\n",
    "memory.events": "oom 9\noom_kill 2\n",
    "pids.events": "max 3\n",
    "io.stat": "8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=0\n",
}
ALL = ("cpuacct", "memory", "pids", "io")


@pytest.fixture
def leaf(tmp_path: Path) -> Callable[..., Leaf]:
    def make(version: Version, *controllers: str) -> Leaf:
        path = tmp_path / version.name / f"kernel-{len(controllers)}"
        path.mkdir(parents=True)
        for name, text in (V1 if version is Version.V1 else V2).items():
            (path / name).write_text(text)
        return Leaf(version, path, controllers)

    return make


@pytest.mark.parametrize("version", [Version.V1, Version.V2])
def test_both_versions_are_read_alike(version: Version, leaf: Callable[..., Leaf]) -> None:
    counters = Counters([leaf(version, *ALL)])
    try:
        assert counters.read(denials=True) == Counts(1_234_567, 11, 20, 3, 2)
        assert counters.read().refused_forks is None
        assert counters.memory() == {"current": 8192, "inactive_file": 5, "shmem": 3}
    finally:
        counters.close()
        counters.close()
    assert counters.read(denials=True) == Counts()


def test_only_what_is_delegated_on_v1_is_looked_at(leaf: Callable[..., Leaf]) -> None:
    """A file of a controller that does not act in the leaf is somebody else's."""
    counters = Counters([leaf(Version.V1, "pids")])
    try:
        assert counters.read(denials=True) == Counts(refused_forks=3)
        assert counters.memory() == {} and counters.take_peak() is None
        assert not counters.peak_begins_anew
    finally:
        counters.close()


def test_a_peak_that_cannot_begin_anew_is_that_of_the_life(leaf: Callable[..., Leaf]) -> None:
    there = leaf(Version.V2, *ALL)
    (there.path / "memory.peak").chmod(0o444)
    counters = Counters([there])
    try:
        assert not counters.peak_begins_anew
        assert counters.take_peak() == counters.take_peak() == 4096
        assert counters.peak_of_life(4096) == 4096
    finally:
        counters.close()
