"""The bare container, without Jupyter: /bin/true, from asking until its exit status is there.

``ours`` asks a launcher that runs (see ``_bare_launcher.py``: the engine without ipykernel), with
what a kernel has around it: eight namespaces, veth, caps, Landlock, filter. It is timed until the
status, and until all that was made is removed. ``bubblewrap`` makes neither a link nor a cgroup and
loads no filter; ``runc`` makes no link and no cgroup. CPU time is that of all processes that took
part and were waited for, in user and system mode: it is less noisy than the clock on the wall.

    python tests/bench/container_start.py [--rounds 30 | --long]
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Final

from _bare_launcher import BareLauncher
from _measure import by_turns, parser, report, rounds
from _peers import BWRAP, Peer, Runc, Sandboxed, available, own_folder, runc_command, write_bundle
from _peers import Bubblewrap as BubblewrapPeer

TRUE: Final = "/bin/true"
COMMAND: Final = [
    BWRAP, "--unshare-all", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc",
    "--tmpfs", "/tmp", "--die-with-parent", TRUE,
]  # fmt: skip


class Measures:
    """Seconds a container; CPU seconds, and those until the end of the clean-up, beside them."""

    def __init__(self, folder: Path, launcher: BareLauncher) -> None:
        self.folder = folder
        self.launcher = launcher
        self.cpu: dict[str, list[float]] = {"bubblewrap": [], "runc": [], "ours": []}
        self.undone: list[float] = []
        self.steps: dict[str, list[float]] = {}

    def bubblewrap(self) -> float:
        return self._run("bubblewrap", COMMAND)

    def runc(self) -> float:
        bundle = self.folder / f"bundle-{uuid.uuid4().hex[:8]}"
        write_bundle(bundle, self.folder, [TRUE])
        return self._run("runc", runc_command(bundle, self.folder))

    def _run(self, name: str, command: list[str]) -> float:
        before, begin = children_cpu(), time.perf_counter()
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        seconds = time.perf_counter() - begin
        self.cpu[name].append(children_cpu() - before)
        return seconds

    def ours(self) -> float:
        begin, clock = time.perf_counter(), time.time_ns()
        self.launcher.ask([TRUE])
        assert self.launcher.status() == 0
        seconds = time.perf_counter() - begin
        end = self.launcher.end()
        self.undone.append(time.perf_counter() - begin)
        self.cpu["ours"].append(end.cpu)
        for step, when in end.steps.items():
            self.steps.setdefault(step, []).append((when - clock) / 1e6)
        return seconds


def children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    options = parser(__doc__).parse_args()
    with own_folder() as folder:
        peers: list[Peer] = [BubblewrapPeer(folder), Runc(folder)]
        names = [peer.name for peer in available(*peers)]
        with BareLauncher(folder / "work", Sandboxed.CAPS) as launcher:
            found = Measures(folder, launcher)
            measures: dict[str, Callable[[], float]] = {"ours": found.ours}
            measures |= {name: getattr(found, name) for name in names}
            times = by_turns(measures, rounds(options, 30, 300), warm_up=3)
    against = "bubblewrap" if "bubblewrap" in names else "ours"
    whole = times | {"ours, undone": found.undone[3:]}
    report("bare container", "ms", whole, against=against, scale=1e3)
    cpu = {name: found.cpu[name][3:] for name in times}
    report("bare container, CPU time", "ms", cpu, against=against, scale=1e3)
    if "runc" in names:
        report("bare container, and runc", "ms", whole, against="runc", scale=1e3)
    print("\nwhen each step of ours begins, medians [ms]")
    last = 0.0
    medians = {step: statistics.median(when) for step, when in found.steps.items()}
    for step, at in sorted(medians.items(), key=lambda item: item[1]):
        print(f"{at:8.2f}  +{at - last:6.2f}  {step}")
        last = at


if __name__ == "__main__":
    main()
