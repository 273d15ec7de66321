"""What idle kernels cost: memory at 1, 10 and 50 of them, their CPU, and the start of the nth.

Memory is the proportional set size (PSS) of every process that a kernel brought with it, its
supervisor and pid 1 included, and what of it is private (USS): pages that only it has. The launcher
is one for all kernels and is listed by itself. Source: proc(5), smaps_rollup.

    python tests/bench/kernel_memory.py [--kernels 50] [--most 200] [--idle 10]
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from _measure import report
from _peers import Peer, Plain, Sandboxed, ask
from jupyter_client.manager import KernelManager

MIB = 2**20


@dataclass(frozen=True)
class Memory:
    """Bytes."""

    pss: int
    private: int


def children_of(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in map(int, (task / "children").read_text().split()):
            found += [child, *children_of(child)]
    return found


def memory_of(pids: list[int]) -> Memory | None:
    """``None`` if the caller may not know: only root can look into what is not dumpable, as the
    supervisor and the pid 1 of a sandbox are not."""
    pss = private = 0
    for pid in pids:
        try:
            text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        except PermissionError:
            return None
        for line in text.splitlines()[1:]:
            name, value = line.split()[:2]
            pss += int(value) * 1024 * (name == "Pss:")
            private += int(value) * 1024 * name.startswith("Private_")
    return Memory(pss, private)


def processes_of(km: KernelManager) -> list[int]:
    """The kernel of a plain one; supervisor, pid 1 and kernel of a sandboxed one."""
    pid = km.provisioner.pid  # type: ignore[union-attr]
    return [pid, *children_of(pid)]


def cpu_seconds(pids: list[int]) -> float:
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def kernels(peer: Peer, count: int):  # type: ignore[no-untyped-def]
    """``count`` of them, started one by one, with the seconds that each took."""
    running: list[KernelManager] = []
    times: list[float] = []
    try:
        for _ in range(count):
            km = peer.manager()
            begin = time.perf_counter()
            running.append(km)
            peer.start(km)
            ask(km)
            times.append(time.perf_counter() - begin)
        yield running, times
    finally:
        for km in running:
            km.shutdown_kernel(now=True)
            peer.after(km)


def at_once(peer: Peer, count: int) -> float:
    """Seconds until all of ``count`` kernels that were asked for at the same time have answered."""
    managers = [peer.manager() for _ in range(count)]
    try:
        begin = time.perf_counter()
        with concurrent.futures.ThreadPoolExecutor(count) as pool:
            list(pool.map(peer.start, managers))
            list(pool.map(ask, managers))
        return time.perf_counter() - begin
    finally:
        for km in managers:
            km.shutdown_kernel(now=True)
            peer.after(km)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernels", type=int, default=50)
    parser.add_argument("--most", type=int, default=200)
    parser.add_argument("--idle", type=float, default=10)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="skb-") as name:
        folder = Path(name)
        peers: list[Peer] = [Plain(folder), Sandboxed(folder, "sandboxed")]
        for count in (1, 10, options.kernels):
            measure(peers, count, options.idle if count == options.kernels else 0)
        together = {p.name: [at_once(p, options.kernels)] for p in peers}
        title = f"start of {options.kernels} kernels at once, until all have answered"
        report(title, "s", together, against="plain")
        with kernels(peers[1], options.most) as (_, times):
            tenth = max(options.most // 20, 1)
            parts = {"the first": times[:tenth], f"number {options.most}": times[-tenth:]}
            report("start with so many running", "ms", parts, against="the first", scale=1e3)


def measure(peers: list[Peer], count: int, idle: float) -> None:
    pss, private, starts, cpu = {}, {}, {}, {}
    for peer in peers:
        with kernels(peer, count) as (running, times):
            pids = [pid for km in running for pid in processes_of(km)]
            used = memory_of(pids)
            if used is not None:
                pss[peer.name], private[peer.name] = [used.pss / count], [used.private / count]
            starts[peer.name] = times
            if idle:
                before = cpu_seconds(pids)
                time.sleep(idle)
                cpu[peer.name] = [(cpu_seconds(pids) - before) / idle * 100]
    if len(pss) == len(peers):
        report(f"PSS a kernel, {count} idle", "MiB", pss, against="plain", scale=1 / MIB)
        title = f"private memory a kernel, {count} idle"
        report(title, "MiB", private, against="plain", scale=1 / MIB)
    else:
        print("not measured: memory, of a sandbox's processes only root may know", file=sys.stderr)
    report(f"start of {count} kernels one by one", "ms", starts, against="plain", scale=1e3)
    if cpu:
        report(f"CPU of {count} idle kernels", "% of a core", cpu, against="plain")


if __name__ == "__main__":
    main()
