"""One row of docs/caps.md as root, in a mount namespace of its own.

::

    unshare --mount --propagation private python matrix_session.py KEY RANGE FOLDER WORK HINT

Root's ranges are bound as in ``root_session.py``, and the controllers that nobody mounted are
mounted as in ``mounted.py``, so that the launcher and the supervisor see both. What only root can
prepare for a row is in :data:`PREPARED`. Prints the outcome as one line of JSON.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

from hub.mounted import hierarchies, loop_disk
from hub.root_session import bind_tables
from integration.matrix import Scene, attempt
from integration.matrix_rows import ROWS
from integration.remains import close_launchers

Facts = dict[str, Any]


@contextlib.contextmanager
def huge_pages(scene: Scene) -> Iterator[Facts]:
    """Eight of them."""
    pool = Path("/proc/sys/vm/nr_hugepages")
    before = pool.read_text()
    pool.write_text("8")
    try:
        yield {}
    finally:
        pool.write_text(before)


@contextlib.contextmanager
def real_time(scene: Scene) -> Iterator[Facts]:
    """A fifth of each CPU to hand down."""
    Path("/sys/fs/cgroup/cpu", scene.hint, "cpu.rt_runtime_us").write_text("200000")
    yield {}


@contextlib.contextmanager
def disk_with_bfq(scene: Scene) -> Iterator[Facts]:
    """Weights are obeyed by no other scheduler."""
    with loop_disk() as (loop, scheduler):
        scheduler.write_text("bfq")
        yield {"loop": loop}
        scheduler.write_text("none")


PREPARED: Final[dict[str, Callable[[Scene], AbstractContextManager[Facts]]]] = {
    "hugetlb": huge_pages,
    "cpu_rt": real_time,
    "io.weight": disk_with_bfq,
}


def main(key: str, ranges: str, folder: str, work: str, hint: str) -> None:
    signal.alarm(150)
    bind_tables(f"root:{ranges}\n", Path(folder))
    scene = Scene(Path(folder), Path(work), hint)
    row = next(row for row in ROWS if row.key == key)
    prepared = PREPARED[key](scene) if key in PREPARED else contextlib.nullcontext({})
    with hierarchies(hint), prepared as facts:
        scene.facts.update(facts)
        try:
            outcome = attempt(row, scene)
        finally:
            close_launchers()
    print(json.dumps(dataclasses.asdict(outcome)))


if __name__ == "__main__":
    main(*sys.argv[1:])
