"""How much gets through: displays of 1 MB, small ones, a flood on stdout, a large request.

What counts is what *arrived* by the cell's ``idle``, a second since the request. The client reads
frames and parses no content: it would be slower than what is measured. All kernels live side by
side, each over unix sockets. ipykernel joins what is printed in one go, so the flood that nobody
flushes is one message of 100 MB.

    python tests/bench/throughput.py [--rounds 3 | --long]
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass
from typing import Final

from _measure import by_turns, parser, report, rounds
from _peers import TIMEOUT, own_folder, running_peers
from cell_roundtrip import client_of
from jupyter_client.blocking import BlockingKernelClient

LARGE: Final = 50
SMALL: Final = 2000
FLOOD: Final = 100
_PUBLISH: Final = "from IPython.display import publish_display_data as p\n"


@dataclass(frozen=True)
class Load:
    """A cell that publishes ``count`` messages (or megabytes of stdout, in whichever messages)."""

    title: str
    code: str
    kind: str
    """The type of the messages that count."""
    count: int
    unit: str
    """``MB/s`` counts the bytes of their content, ``messages/s`` the messages."""


LOADS: Final = (
    Load(
        "displays of 1 MB",
        f"{_PUBLISH}for i in range({LARGE}): p({{'text/plain': 'x' * 1_000_000}})",
        "display_data", LARGE, "MB/s",
    ),
    Load(
        "small displays", f"{_PUBLISH}for i in range({SMALL}): p({{'text/plain': str(i)}})",
        "display_data", SMALL, "messages/s",
    ),
    Load(
        f"stdout flood of {FLOOD} MB", f"for i in range({FLOOD}): print('x' * 999_999)",
        "stream", FLOOD, "MB/s",
    ),
    Load(
        f"stdout flood of {FLOOD} MB, flushed",
        f"for i in range({FLOOD}): print('x' * 999_999, flush=True)",
        "stream", FLOOD, "MB/s",
    ),
    Load("request of 1 MB", "'" + "x" * 1_000_000 + "';", "execute_input", 1, "MB/s"),
)  # fmt: skip


@dataclass(frozen=True)
class Arrived:
    """What one cell brought."""

    amount: float
    """In megabytes or messages."""
    seconds: float


def run(client: BlockingKernelClient, load: Load) -> Arrived:
    """Run the cell of ``load``, until its reply and its ``idle`` are there."""
    sock = client.iopub_channel.socket
    begin = time.perf_counter()
    msg_id = client.execute(load.code, store_history=False)
    amount = 0.0
    while True:
        if not sock.poll(TIMEOUT * 1000):
            raise TimeoutError(f"no idle came: {load.title}")
        _, _, _, header, parent, _, content, *_ = sock.recv_multipart()
        if json.loads(parent).get("msg_id") != msg_id:
            continue
        kind = json.loads(header)["msg_type"]
        if kind == load.kind:
            amount += len(content) / 1e6 if load.unit == "MB/s" else 1
        elif kind == "status" and json.loads(content)["execution_state"] == "idle":
            break
    seconds = time.perf_counter() - begin
    while client.get_shell_msg(timeout=TIMEOUT)["parent_header"].get("msg_id") != msg_id:
        pass
    return Arrived(amount, seconds)


def measure(clients: dict[str, BlockingKernelClient], load: Load, turns: int) -> None:
    shares: dict[str, list[float]] = {name: [] for name in clients}

    def once(name: str) -> float:
        arrived = run(clients[name], load)
        shares[name].append(min(arrived.amount / load.count, 1))
        return arrived.amount / arrived.seconds

    found = by_turns({name: lambda name=name: once(name) for name in clients}, turns)
    report(load.title, load.unit, found, against="plain")
    if any(share < 1 for values in shares.values() for share in values):
        report(f"{load.title}, what arrived", "%", shares, against="plain", scale=100)


def main() -> None:
    options = parser(__doc__).parse_args()
    with own_folder() as folder, contextlib.ExitStack() as stack:
        clients = {
            peer.name: stack.enter_context(client_of(stack.enter_context(peer.running())))
            for peer in running_peers(folder)
        }
        for load in LOADS:
            measure(clients, load, rounds(options, 3, 15))


if __name__ == "__main__":
    main()
