"""What a running kernel feels like: round trips and throughput, plain and sandboxed by turns.

The kernels live side by side in one run. A round trip is an ``execute_request`` until its reply
*and* its ``idle``, as a front end sees it; p50 and p99 are over all of them.

    python tests/bench/cell_roundtrip.py [--cells 2000] [--rounds 15]
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from _measure import by_turns, report
from _peers import Peer, Plain, Sandboxed
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

#: Cells in one batch: percentiles are taken of many, and batches alternate between the peers.
BATCH: Final = 50
DISPLAYS: Final = 2000
FLOOD: Final = 100 * 10**6
LOADS: Final[dict[str, tuple[str, float, str]]] = {
    "output of 1 MB": ("print('x' * 1_000_000)", 1, "MB/s"),
    "small displays": (
        "from IPython.display import publish_display_data as p\n"
        f"for i in range({DISPLAYS}): p({{'text/plain': str(i)}})",
        DISPLAYS, "messages/s",
    ),
    "stdout flood of 100 MB": (
        f"for i in range({FLOOD // 10**6}): print('x' * 999_999)", FLOOD / 1e6, "MB/s",
    ),
    "request of 1 MB": ("'" + "x" * 1_000_000 + "';", 1, "MB/s"),
}  # fmt: skip


@contextlib.contextmanager
def client_of(km: KernelManager):  # type: ignore[no-untyped-def]
    client = km.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        yield client
    finally:
        client.stop_channels()


def run(client: BlockingKernelClient, code: str) -> float:
    """Seconds from the request until the reply and ``idle`` are there."""
    begin = time.perf_counter()
    msg_id = client.execute(code, store_history=False)
    idle = False
    while not idle:
        message = client.get_iopub_msg(timeout=120)
        idle = (
            message["parent_header"].get("msg_id") == msg_id
            and message["msg_type"] == "status"
            and message["content"]["execution_state"] == "idle"
        )
    while client.get_shell_msg(timeout=120)["parent_header"].get("msg_id") != msg_id:
        pass
    return time.perf_counter() - begin


def round_trips(clients: dict[str, BlockingKernelClient], cells: int) -> dict[str, list[float]]:
    """Batches of small cells by turns; for each batch in seconds a cell."""
    found: dict[str, list[float]] = {name: [] for name in clients}
    for client in clients.values():
        for _ in range(BATCH):
            run(client, "1")
    for _ in range(cells // BATCH):
        for name in random.sample(list(clients), len(clients)):
            found[name] += [run(clients[name], "1") for _ in range(BATCH)]
    return found


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100)[98]


def tails(trips: dict[str, list[float]], parts: int = 10) -> dict[str, list[float]]:
    """The 99th percentile of each tenth of the run, so that it has a spread."""
    size = {name: len(v) // parts for name, v in trips.items()}
    return {
        n: [p99(v[i * size[n] : (i + 1) * size[n]]) for i in range(parts)] for n, v in trips.items()
    }


def throughput(
    clients: dict[str, BlockingKernelClient], code: str, amount: float, rounds: int
) -> dict[str, list[float]]:
    def measure(client: BlockingKernelClient) -> Callable[[], float]:
        return lambda: amount / run(client, code)

    return by_turns({name: measure(client) for name, client in clients.items()}, rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cells", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="skb-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        peers: list[Peer] = [Plain(folder), Sandboxed(folder, "sandboxed")]
        clients = {
            peer.name: stack.enter_context(client_of(stack.enter_context(peer.running())))
            for peer in peers
        }
        trips = round_trips(clients, options.cells)
        report("round trip of a small cell", "ms", trips, against="plain", scale=1e3)
        report("round trip, p99", "ms", tails(trips), against="plain", scale=1e3)
        for title, (code, amount, unit) in LOADS.items():
            found = throughput(clients, code, amount, options.rounds)
            report(title, unit, found, against="plain")


if __name__ == "__main__":
    main()
