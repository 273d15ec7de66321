"""From ``start_kernel`` to the first ``kernel_info_reply``, and the shutdown, by turns.

python tests/bench/kernel_start.py [--rounds 7 | --long]
"""

from __future__ import annotations

import time

from _measure import by_turns, parser, report, rounds
from _peers import Peer, all_peers, ask, own_folder


def main() -> None:
    options = parser(__doc__).parse_args()
    with own_folder() as folder:
        peers = all_peers(folder)
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

        turns = rounds(options, 7, 50)
        starts = by_turns({p.name: lambda p=p: measure(p) for p in peers}, turns)
        report("start to kernel_info_reply", "ms", starts, against="plain", scale=1e3)
        shutdowns = {name: times[1:] for name, times in shutdowns.items()}  # that of the warm-up
        report("shutdown", "ms", shutdowns, against="plain", scale=1e3)


if __name__ == "__main__":
    main()
