"""Every cap against a sandboxed kernel that misbehaves, and what came of it.

One :class:`Row` is one row of ``docs/caps.md``: a kernel is started with that one cap, and either
the start is refused by an error, or a cell shows that the cap bites. :func:`attempt` says which;
``matrix_rows.py`` has the rows, ``matrix_expected.py`` what each environment has to answer.
``test_caps_matrix.py`` runs them as an ordinary user, ``tests/hub`` as root.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from integration.remains import kernel_pid
from integration.sandboxes import started
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

from sandbox_kernel.engine.cgroups import KernelCgroup, Version, running
from sandbox_kernel.engine.cgroups.interface import CPU_PERIOD
from sandbox_kernel.errors import SandboxError

#: A cell shows that the cap bites.
ENFORCED = "enforced"
#: The kernel does not start.
REFUSED = "refused"
#: Linux took the value and shows it; on this machine nothing can run into it.
ACCEPTED = "accepted"
#: It starts, and the cell shows that this way round the cap stays open.
NOT_COVERED = "not covered"


@dataclass(frozen=True)
class Outcome:
    kind: str
    message: str = ""
    """Of the error, or why nothing more can be shown. Nothing of this run is in it."""


@dataclass
class Scene:
    """Where the kernels of one attempt run."""

    folder: Path
    """For kernelspecs."""
    work: Path
    """The workspace, on a disk; it holds :data:`DATA`."""
    hint: str
    facts: dict[str, Any] = field(default_factory=dict)
    """What root prepared for this row."""

    @property
    def data(self) -> Path:
        return self.work / "data"

    @contextlib.contextmanager
    def kernel(
        self, config: dict[str, Any], name: str = "a"
    ) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
        """A kernel with a kernelspec of its own."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        with started(folder, config, cwd=self.work) as both:
            yield both

    def group(self, km: KernelManager) -> KernelCgroup:
        """The cgroup of a running kernel."""
        pid = str(kernel_pid(km))
        found = [
            group
            for group in running(os.getuid(), self.hint)
            if any(pid in (v.path / "cgroup.procs").read_text().split() for v in group.leaves)
        ]
        (group,) = found
        return group

    def text(self, km: KernelManager, name: str) -> str:
        """A file of its cgroup, such as ``memory.low``."""
        group = self.group(km)
        (path,) = [v.path / name for v in group.leaves if (v.path / name).exists()]
        return path.read_text().strip()

    def cpu_directory(self, km: KernelManager) -> Path:
        """Where its cap ``cpus`` is; that of a user's total is above."""
        (leaf,) = [v for v in self.group(km).leaves if "cpu" in v.controllers]
        return leaf.path

    def is_v2(self, km: KernelManager, controller: str) -> bool:
        (leaf,) = [v for v in self.group(km).leaves if controller in v.controllers]
        return leaf.version is Version.V2


#: Asserts that the cap bites; or says why that cannot be shown.
Misbehave = Callable[[Scene, KernelManager, BlockingKernelClient], Outcome | None]


@dataclass(frozen=True)
class Row:
    key: str
    controller: str
    tries: str
    """What the kernel does to get past it, in the words of the table."""
    config: Callable[[Scene], dict[str, Any]]
    misbehave: Misbehave


def attempt(row: Row, scene: Scene) -> Outcome:
    """Start a kernel with the cap and let it misbehave.

    Raises:
        AssertionError: it started and the cap did not bite, or the refusal says too little.
    """
    config = row.config(scene)
    try:
        with scene.kernel(config) as (km, client):
            return row.misbehave(scene, km, client) or Outcome(ENFORCED)
    except SandboxError as error:
        refusal = error
    assert refusal.cause, f"a refusal without a cause: {refusal}"
    names = {row.controller, *row.key.split(".")}
    assert any(name in refusal.message for name in names), f"names no cap: {refusal}"
    return Outcome(REFUSED, normalised(refusal.message, scene.hint))


def normalised(message: str, hint: str) -> str:
    """Without what is another one in the next run: paths, uids, names of disks."""
    given = re.escape(hint.strip("/"))
    for pattern, word in (
        (rf"/sys/fs/cgroup/(?:[a-z_,]+/)?{given}", "<delegated>"),
        (r"\bkernel-[\w-]+\.[\w.-]+", "<kernel>"),
        (r"user-[0-9]+", "user-<uid>"),
        (r"user@[0-9]+", "user@<uid>"),
        (r"sandbox-kernel/u[0-9]+", "sandbox-kernel/u<uid>"),
        (r"\buid [0-9]+", "uid <uid>"),
        (r"chown [0-9]+ ", "chown <uid> "),
        (r"\b[0-9]+ processes", "<n> processes"),
        (r"that of \w+ is", "that of <disk> is"),
        (r"/sys/block/\w+/", "/sys/block/<disk>/"),
    ):
        message = re.sub(pattern, word, message)
    return message


# -- measuring -----------------------------------------------------------------------------------


def cpu_of(groups: Sequence[KernelCgroup]) -> float:
    """Seconds of CPU time that they have used together."""
    total = 0
    for group in groups:
        used = group.usage().cpu_usec
        assert used is not None
        total += used
    return total / 1e6


def assert_share(groups: Sequence[KernelCgroup], cores: float, held_by: Path) -> None:
    """They use so many cores, within a tenth, and never more.

    A busy machine gives them less. So a window counts if ``held_by``, the directory with the cap,
    had them wait in nearly every period: then they used up all that the cap lets through.
    """
    for _ in range(20):
        used, waited, begin = cpu_of(groups), throttled(held_by), time.monotonic()
        time.sleep(3)  # CPU time has no event
        lasted = time.monotonic() - begin
        share = (cpu_of(groups) - used) / lasted
        periods = (throttled(held_by) - waited) * CPU_PERIOD / 1e6 / lasted
        assert share < 1.1 * cores
        if share > 0.9 * cores and periods > 0.8:
            return
    raise AssertionError(f"{share:.3f} cores instead of {cores}, throttled in {periods:.0%}")


def throttled(directory: Path) -> int:
    """Periods in which somebody below had to wait for the cap ``cpus`` of the directory."""
    lines = (directory / "cpu.stat").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("nr_throttled "))
