"""All ratios of one run in one table, from what the benchmarks have written down.

python tests/bench/_table.py            # of bench.json, or of what BENCH_JSON names
"""

from __future__ import annotations

from typing import Any

from _measure import saved


def row(title: str, result: dict[str, Any]) -> str:
    """Ratios of medians; the peer that the others are compared with is left out."""
    cells = [
        f"{name} {peer['ratio']:.3f}"
        for name, peer in result["peers"].items()
        if peer["ratio"] is not None and name != result["against"]
    ]
    return f"{title + ' [' + result['unit'] + ']':58s} {result['against']:>12s}  {'  '.join(cells)}"


def main() -> None:
    known = saved()
    for name, value in known.get("machine", {}).items():
        print(f"{name}: {value}")
    print("\nratios of medians; MB/s, messages/s and % that arrived: more is better, else less is")
    print(f"{'what':58s} {'compared to':>12s}")
    for title, result in known.get("results", {}).items():
        print(row(title, result))


if __name__ == "__main__":
    main()
