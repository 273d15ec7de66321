"""What the proxy costs: the same kernel asked directly and through the proxy, by turns.

Prints medians and their ratio proxy/direct for small cells, for cells with 1 MB of output, and how
many of a flood of messages arrive. Turns alternate, so that the machine's moods hit both alike.

    python tests/bench/proxy_roundtrip.py [--rounds 200] [--kind ipc]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from jupyter_client.blocking.client import BlockingKernelClient

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from integration import proxies

CELLS: Final = {
    "small cell": ("1", 1.0),
    "1 MB on stdout": ("print('x' * 1_000_000)", 0.1),
    "1 MB request": ("'" + "x" * 1_000_000 + "';", 0.1),
}
FLOOD: Final = 5000
FLOOD_CODE: Final = (
    "from IPython.display import publish_display_data as p\n"
    f"for i in range({FLOOD}): p({{'text/plain': str(i)}})"
)


def seconds(client: BlockingKernelClient, code: str) -> float:
    """One execute, until reply and idle are there."""
    start = time.perf_counter()
    proxies.run(client, code, store_history=False)
    return time.perf_counter() - start


def compare(
    direct: BlockingKernelClient, proxied: BlockingKernelClient, code: str, rounds: int
) -> tuple[float, float]:
    """Medians, direct and through the proxy."""
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(2 * rounds):
        times[turn % 2].append(seconds((direct, proxied)[turn % 2], code))
    return statistics.median(times[0]), statistics.median(times[1])


def flood(client: BlockingKernelClient) -> tuple[int, float]:
    """How many of the messages arrived, and how many a second."""
    start = time.perf_counter()
    msg_id = client.execute(FLOOD_CODE, store_history=False)
    messages = proxies.published(client, msg_id)
    arrived = sum(m["msg_type"] == "display_data" for m in messages)
    return arrived, arrived / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--kind", choices=proxies.KINDS, default="ipc")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="skb-") as name:
        folder = Path(name)
        front = proxies.front_info(options.kind, folder)
        with (
            proxies.kernel_process(folder, front.key) as kernel,
            proxies.proxy_process(front, kernel.info) as proxy,
            proxies.client_of(kernel.info) as direct,
            proxies.client_of(proxy.info) as proxied,
        ):
            proxy.do("connect")
            proxies.welcomed(proxied)
            measure(direct, proxied, options.rounds)
            print(proxy.do("state"))


def measure(direct: BlockingKernelClient, proxied: BlockingKernelClient, rounds: int) -> None:
    """Both clients stay subscribed throughout, so each gets what the other asked for as well."""
    for name, (code, share) in CELLS.items():
        compare(direct, proxied, code, 3)
        one, other = compare(direct, proxied, code, max(int(rounds * share), 5))
        print(f"{name}: direct {one * 1e3:.2f} ms, proxy {other * 1e3:.2f} ms, {other / one:.3f}")
    for name, client in (("direct", direct), ("proxy", proxied)) * 2:
        arrived, rate = flood(client)
        print(f"flood of {FLOOD}, {name}: {arrived} arrived, {rate:.0f} a second")


if __name__ == "__main__":
    main()
