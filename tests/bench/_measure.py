"""What every benchmark shares: turns, medians with their spread, ratios, one JSON file.

The machine that runs this is shared and noisy. So peers are measured by turns in one run, what is
printed is a median with the middle half of the measurements, and what counts is the ratio to the
peer of the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

#: Where the results of all benchmarks are gathered: ``{"machine": …, "results": {title: …}}``.
JSON: Final = Path(os.environ.get("BENCH_JSON") or "bench.json")


@dataclass(frozen=True)
class Spread:
    """A median, and between which values the middle half lies."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if len(values) < 2:
            return cls(values[0], values[0], values[0], len(values))
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, len(values))


def parser(doc: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark has, see :func:`rounds`."""
    found = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    found.add_argument("--rounds", type=int, help="how often each thing is measured")
    found.add_argument("--long", action="store_true", help="as often as figures to quote take")
    return found


def rounds(options: argparse.Namespace, few: int, many: int) -> int:
    return int(options.rounds or (many if options.long else few))


def by_turns(
    measures: Mapping[str, Callable[[], float]], rounds: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Each measure once a round, in an order of chance; ``warm_up`` rounds more do not count."""
    found: dict[str, list[float]] = {name: [] for name in measures}
    for turn in range(warm_up + rounds):
        for name in random.sample(list(measures), len(measures)):
            value = measures[name]()
            if turn >= warm_up:
                found[name].append(value)
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return found


def report(
    title: str,
    unit: str,
    values: Mapping[str, Sequence[float]],
    *,
    against: str,
    scale: float = 1,
    bases: Mapping[str, float] | None = None,
) -> None:
    """One table: the ratio to the peer ``against`` first, then the figures. Goes to the JSON too.

    ``values`` are multiplied by ``scale`` for table and JSON, so that both are in ``unit``. With
    ``bases`` each peer is compared with a value of its own, which ``against`` names.
    """
    spreads = {name: Spread.of([v * scale for v in found]) for name, found in values.items()}
    if bases is None:
        bases = dict.fromkeys(spreads, spreads[against].median / scale)
    ratios = {
        name: s.median / (bases[name] * scale) if bases[name] else None
        for name, s in spreads.items()
    }
    print(f"\n{title} [{unit}], ratio to {against}")
    for name, s in spreads.items():
        ratio = "      - " if ratios[name] is None else f"{ratios[name]:7.3f}x"
        print(f"  {name:24s} {ratio}  {s.median:9.3f}  ({s.low:.3f} to {s.high:.3f})  n={s.count}")
    peers = {name: {"ratio": ratios[name], **vars(s)} for name, s in spreads.items()}
    save("results", title, {"unit": unit, "against": against, "peers": peers})


def saved() -> dict[str, Any]:
    """What the file holds."""
    try:
        known: dict[str, Any] = json.loads(JSON.read_text())
    except FileNotFoundError:
        return {}
    return known


def save(part: str, title: str, value: object) -> None:
    known = saved()
    known.setdefault(part, {})[title] = value
    JSON.write_text(json.dumps(known, indent=1) + "\n")
