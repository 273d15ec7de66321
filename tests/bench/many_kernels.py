"""What many kernels cost: memory and CPU of idle ones; starts one by one, at once, on top of many.

Each peer has a cgroup of its own with all that it takes: kernels, and of ours the supervisors, the
pid 1s and the launcher. Of that, for 1, 10 and 50 idle kernels, a kernel:

* *private memory*: anonymous memory, tmpfs and what Linux keeps for it, less that of a launcher
  without kernels. It is what one more kernel takes.
* *cgroup memory*: all that is charged, launcher and page cache included, through their number.
* *PSS of the kernel process*: as up to five read it of themselves. Supervisor and pid 1 are not in
  it: only root may read theirs.

    python tests/bench/many_kernels.py [--kernels 50] [--most 200] [--idle 20] [--long]
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import random
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from _groups import Group
from _measure import parser, report, rounds
from _peers import Peer, Plain, Sandboxed, all_peers, ask, available, end_launchers, own_folder
from cell_roundtrip import client_of
from jupyter_client.manager import KernelManager

from sandbox_kernel.client import launcher_command
from sandbox_kernel.engine.cgroups import HINT_VARIABLE
from sandbox_kernel.provisioner import SandboxProvisioner

MIB: Final = 2**20
#: Starts on top of many: the median of so many around each count.
WINDOW: Final = 10

Values = dict[str, dict[str, list[float]]]
"""By title and peer."""


@contextlib.contextmanager
def placed(peer: Peer, group: Group) -> Iterator[None]:
    """All that ``peer`` starts is in ``group``; its launcher is up, and no kernel."""
    before = os.environ.get(HINT_VARIABLE, "")
    end_launchers()
    if group.missing() is None:
        peer.prefix = group.command()
        os.environ[HINT_VARIABLE] = group.hint
        command = (*peer.prefix, *launcher_command(sys.executable))
        SandboxProvisioner._launcher_command = command
    try:
        with peer.running():
            pass
        yield
    finally:
        end_launchers()
        peer.prefix, SandboxProvisioner._launcher_command = (), None
        if before:
            os.environ[HINT_VARIABLE] = before


class Crowd:
    """Kernels of one peer that run at the same time."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.running: list[KernelManager] = []
        self.times: list[float] = []
        """Seconds of each start, of those one by one."""

    def grow(self, count: int) -> None:
        """Until there are so many, one by one."""
        while len(self.running) < count:
            km = self.peer.manager()
            self.running.append(km)
            begin = time.perf_counter()
            self.peer.start(km)
            ask(km)
            self.times.append(time.perf_counter() - begin)

    def shrink(self, count: int) -> None:
        """Until there are so few."""
        while len(self.running) > count:
            km = self.running.pop()
            km.shutdown_kernel(now=True)
            self.peer.after(km)

    def at_once(self, count: int) -> float:
        """Seconds until all of ``count`` more that were asked for together have answered."""
        managers = [self.peer.manager() for _ in range(count)]
        self.running += managers
        begin = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            list(pool.map(self.peer.start, managers))
            list(pool.map(ask, managers))
        return time.perf_counter() - begin

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self.shrink(0)


def pss_of(km: KernelManager) -> float:
    """Bytes, as the kernel reads them of itself."""
    code = "print(open('/proc/self/smaps_rollup').read())"
    with client_of(km) as client:
        said: list[str] = []
        client.execute_interactive(
            code,
            output_hook=lambda m: said.append(m["content"].get("text", "")),
            store_history=False,
        )
    line = next(v for v in "".join(said).splitlines() if v.startswith("Pss:"))
    return int(line.split()[1]) * 1024


def idle(peer: Peer, counts: list[int], seconds: float, found: Values) -> None:
    """Memory at each of ``counts``, the starts on the way there, CPU at the last of them."""

    def add(title: str, value: float) -> None:
        found.setdefault(title, {}).setdefault(peer.name, []).append(value)

    with Group(f"bench-{os.getpid()}") as group, placed(peer, group), Crowd(peer) as crowd:
        counted = group.missing() is None
        before = group.memory() if counted else None
        for count in counts:
            crowd.grow(count)
            if counted and before is not None:
                used = group.memory()
                add(f"private memory a kernel, {count} idle", (used - before).own / count)
                add(f"cgroup memory a kernel, {count} idle", used.charged / count)
        if counted:
            begin, spent = time.perf_counter(), group.cpu_seconds()
            time.sleep(seconds)  # it is what is measured
            share = (group.cpu_seconds() - spent) / (time.perf_counter() - begin)
            add(f"CPU of {counts[-1]} idle kernels", share)
        for count in reversed(counts):  # last: a kernel that has been asked has taken more memory
            crowd.shrink(count)
            pss = statistics.mean(map(pss_of, crowd.running[:5]))
            add(f"PSS of the kernel process, {count} idle", pss)
        for each in crowd.times:
            add(f"start of {counts[-1]}, one by one, each", each)


def at_once(peer: Peer, count: int, found: Values) -> None:
    with Crowd(peer) as crowd:
        taken = found.setdefault(f"start of {count} at once, until all answer", {})
        taken.setdefault(peer.name, []).append(crowd.at_once(count))


def on_top(peer: Peer, most: int) -> None:
    """The start when so many live already, compared with that of the first ones."""
    with Crowd(peer) as crowd:
        crowd.grow(most + WINDOW)
        first = statistics.median(crowd.times[:WINDOW])
        for count in sorted({most // 4, most // 2, most}):
            times = {peer.name: crowd.times[count : count + WINDOW]}
            title = f"start on top of {count}"
            bases = {peer.name: first}
            report(title, "ms", times, against="on top of 0", scale=1e3, bases=bases)


def units(title: str) -> tuple[str, float]:
    """That of the table, and what a value is multiplied by for it."""
    if "memory" in title or "PSS" in title:
        return "MiB", 1 / MIB
    if "CPU" in title:
        return "% of a core", 100
    return ("s", 1) if "at once" in title else ("ms", 1e3)


def main() -> None:
    more = parser(__doc__)
    more.add_argument("--kernels", type=int, default=50)
    more.add_argument("--most", type=int, default=200)
    more.add_argument("--idle", type=float, default=20)
    options = more.parse_args()
    counts = sorted({1, min(10, options.kernels), options.kernels})
    if why := Group("bench").missing():
        print(f"not measured: memory and CPU, {why}", file=sys.stderr)
    found: Values = {}
    with own_folder() as folder:
        peers = _peers(folder, options.long)
        for _ in range(rounds(options, 1, 3)):
            for peer in random.sample(peers, len(peers)):
                idle(peer, counts, options.idle, found)
                at_once(peer, options.kernels, found)
                print(".", end="", file=sys.stderr, flush=True)
        for title in found:
            unit, scale = units(title)
            values = {peer.name: found[title][peer.name] for peer in peers}
            report(title, unit, values, against="plain", scale=scale)
        on_top(Sandboxed(folder, "zygote"), options.most)


def _peers(folder: Path, long: bool) -> list[Peer]:
    """In a long run every one but the pool, which would be empty after its first."""
    if long:
        return [peer for peer in all_peers(folder) if peer.name != "pool"]
    return available(Plain(folder), Sandboxed(folder, "zygote"))


if __name__ == "__main__":
    main()
