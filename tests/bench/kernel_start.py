"""From ``start_kernel`` to the first ``kernel_info_reply``, and the shutdown, by turns.

python tests/bench/kernel_start.py [--rounds 15]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from _measure import by_turns, report
from _peers import Peer, all_peers, ask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="skb-") as name:
        peers = all_peers(Path(name))
        shutdowns: dict[str, list[float]] = {peer.name: [] for peer in peers}

        def measure(peer: Peer) -> float:
            km = peer.manager()
            begin = time.perf_counter()
            peer.start(km)
            ask(km)
            there = time.perf_counter()
            km.shutdown_kernel(now=True)
            shutdowns[peer.name].append(time.perf_counter() - there)
            peer.after(km)
            return there - begin

        starts = by_turns({p.name: lambda p=p: measure(p) for p in peers}, options.rounds)
        report("start to kernel_info_reply", "ms", starts, against="plain", scale=1e3)
        report("shutdown", "ms", shutdowns, against="plain", scale=1e3)


if __name__ == "__main__":
    main()
