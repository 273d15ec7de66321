"""What a running kernel feels like: the round trip of a small cell, by turns.

From the ``execute_request`` until its reply *and* its ``idle``, as a front end sees it. All kernels
live side by side, each over unix sockets; batches of cells alternate between them. The 99th
percentile is that of each tenth of the run, so that it has a spread.

    python tests/bench/cell_roundtrip.py [--rounds 40 | --long]    # of 50 cells each
"""

from __future__ import annotations

import contextlib
import random
import statistics
import time
from collections.abc import Iterator
from typing import Final

from _measure import parser, report, rounds
from _peers import TIMEOUT, own_folder, running_peers
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

#: Cells in one batch.
BATCH: Final = 50
PARTS: Final = 10


@contextlib.contextmanager
def client_of(km: KernelManager) -> Iterator[BlockingKernelClient]:
    client = km.blocking_client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=TIMEOUT)
        yield client
    finally:
        client.stop_channels()


def run(client: BlockingKernelClient, code: str) -> float:
    """Seconds from the request until the reply and ``idle`` are there."""
    begin = time.perf_counter()
    msg_id = client.execute(code, store_history=False)
    idle = False
    while not idle:
        message = client.get_iopub_msg(timeout=TIMEOUT)
        idle = (
            message["parent_header"].get("msg_id") == msg_id
            and message["msg_type"] == "status"
            and message["content"]["execution_state"] == "idle"
        )
    while client.get_shell_msg(timeout=TIMEOUT)["parent_header"].get("msg_id") != msg_id:
        pass
    return time.perf_counter() - begin


def round_trips(clients: dict[str, BlockingKernelClient], batches: int) -> dict[str, list[float]]:
    """Seconds of each cell, but those of the first batch."""
    found: dict[str, list[float]] = {name: [] for name in clients}
    for turn in range(batches + 1):
        for name in random.sample(list(clients), len(clients)):
            times = [run(clients[name], "1") for _ in range(BATCH)]
            if turn:
                found[name] += times
    return found


def tails(trips: list[float]) -> list[float]:
    """The 99th percentile of each tenth of a run; of the whole where a tenth has too few."""
    size = len(trips) // PARTS if len(trips) >= 100 * PARTS else len(trips)
    parts = [trips[at : at + size] for at in range(0, len(trips) - size + 1, size)]
    return [statistics.quantiles(part, n=100)[98] for part in parts]


def main() -> None:
    options = parser(__doc__).parse_args()
    with own_folder() as folder, contextlib.ExitStack() as stack:
        clients = {
            peer.name: stack.enter_context(client_of(stack.enter_context(peer.running())))
            for peer in running_peers(folder)
        }
        trips = round_trips(clients, rounds(options, 40, 400))
        report("round trip, p50", "ms", trips, against="plain", scale=1e3)
        last = {name: tails(times) for name, times in trips.items()}
        report("round trip, p99", "ms", last, against="plain", scale=1e3)


if __name__ == "__main__":
    main()
