"""What every benchmark shares: turns, medians with their spread, ratios, one JSON file.

The machine that runs this is shared and noisy. So peers are measured by turns in one run, what is
printed is a median with the middle half of the measurements, and what counts is the ratio to the
peer of the same run.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

#: Where the results of all benchmarks are gathered.
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
    title: str, unit: str, values: Mapping[str, Sequence[float]], *, against: str, scale: float = 1
) -> None:
    """One table: the ratio to the peer ``against`` first, then the figures. Goes to the JSON too.

    ``values`` are divided by nothing and multiplied by ``scale`` for the table only.
    """
    spreads = {name: Spread.of(found) for name, found in values.items()}
    base = spreads[against].median
    print(f"\n{title} [{unit}], ratio to {against}")
    for name, s in spreads.items():
        ratio = s.median / base if base else float("nan")
        figures = f"{s.median * scale:9.3f}  ({s.low * scale:.3f} to {s.high * scale:.3f})"
        print(f"  {name:24s} {ratio:7.3f}x  {figures}  n={s.count}")
    _save(title, unit, against, spreads)


def _save(title: str, unit: str, against: str, spreads: Mapping[str, Spread]) -> None:
    try:
        known: dict[str, Any] = json.loads(JSON.read_text())
    except (OSError, ValueError):
        known = {}
    base = spreads[against].median
    known[title] = {
        "unit": unit,
        "against": against,
        "peers": {
            name: {"ratio": s.median / base if base else None, **vars(s)}
            for name, s in spreads.items()
        },
    }
    JSON.write_text(json.dumps(known, indent=1) + "\n")
