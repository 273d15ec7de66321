"""The bare container, without Jupyter: /bin/true, from asking until its exit status is there.

What bubblewrap and runc take for it. Neither makes a link or a cgroup here, and bubblewrap loads no
filter. A container of ours without a kernel is not measured yet: nothing starts one.

    python tests/bench/container_start.py [--rounds 50]
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from _measure import by_turns, report
from _peers import Bubblewrap, Runc, runc_command, write_bundle

BWRAP = [
    "bwrap", "--unshare-all", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc",
    "--tmpfs", "/tmp", "--die-with-parent", "/bin/true",
]  # fmt: skip


def seconds(command: list[str]) -> float:
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin


def with_runc(folder: Path) -> float:
    bundle = folder / f"bundle-{uuid.uuid4().hex[:8]}"
    write_bundle(bundle, folder, ["/bin/true"])
    return seconds(runc_command(bundle, folder))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="skb-") as name:
        folder = Path(name)
        measures: dict[str, Callable[[], float]] = {}
        if Bubblewrap(folder).missing() is None:
            measures["bubblewrap"] = lambda: seconds(BWRAP)
        if Runc(folder).missing() is None:
            measures["runc"] = lambda: with_runc(folder)
        times = by_turns(measures, options.rounds)
        report("bare container, /bin/true", "ms", times, against="bubblewrap", scale=1e3)


if __name__ == "__main__":
    main()
