"""What the proxy costs: the same kernel asked directly and through the proxy, by turns.

Small cells, cells with 1 MB of output, requests of 1 MB, and what arrives of a flood of messages.
No container is there: it is the proxy alone. Turns alternate, so that the machine's moods hit both.

    python tests/bench/proxy_roundtrip.py [--rounds 100 | --long] [--kind ipc]
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from _measure import parser, report, rounds
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
    direct: BlockingKernelClient, proxied: BlockingKernelClient, code: str, turns: int
) -> dict[str, list[float]]:
    """Seconds, direct and through the proxy; three turns more do not count."""
    clients = {"direct": direct, "proxy": proxied}
    times: dict[str, list[float]] = {name: [] for name in clients}
    for turn in range(turns + 3):
        for name, client in clients.items():
            value = seconds(client, code)
            if turn >= 3:
                times[name].append(value)
    return times


def flood(client: BlockingKernelClient) -> tuple[int, float]:
    """How many of the messages arrived, and how many a second."""
    start = time.perf_counter()
    msg_id = client.execute(FLOOD_CODE, store_history=False)
    messages = proxies.published(client, msg_id)
    arrived = sum(m["msg_type"] == "display_data" for m in messages)
    return arrived, arrived / (time.perf_counter() - start)


def main() -> None:
    more = parser(__doc__)
    more.add_argument("--kind", choices=proxies.KINDS, default="ipc")
    options = more.parse_args()
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
            measure(direct, proxied, rounds(options, 100, 500))
            print(proxy.do("state"))


def measure(direct: BlockingKernelClient, proxied: BlockingKernelClient, turns: int) -> None:
    """Both clients stay subscribed throughout, so each gets what the other asked for as well."""
    for name, (code, share) in CELLS.items():
        times = compare(direct, proxied, code, max(int(turns * share), 5))
        report(f"proxy alone, {name}", "ms", times, against="direct", scale=1e3)
    rates: dict[str, list[float]] = {"direct": [], "proxy": []}
    for name, client in (("direct", direct), ("proxy", proxied)) * 2:
        arrived, rate = flood(client)
        rates[name].append(rate)
        print(f"flood of {FLOOD}, {name}: {arrived} arrived")
    report(f"proxy alone, flood of {FLOOD}", "messages/s", rates, against="direct")


if __name__ == "__main__":
    main()
