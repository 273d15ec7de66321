"""The benchmarks one after the other, then the table of all ratios; what `make bench` runs.

    python tests/bench/_run.py [--rounds N | --long] [NAME...]

NAME is that of a script here, without `.py`; all of them unless some are named. What was measured
is in bench.json (or what BENCH_JSON names), which is begun anew.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Final

import _measure
import _table
from _peers import BWRAP, RUNC

HERE: Final = Path(__file__).resolve().parent
NAMES: Final = tuple(sorted(path.stem for path in HERE.glob("[!_]*.py")))


def main() -> int:
    parser = _measure.parser(__doc__)
    parser.add_argument("names", metavar="NAME", nargs="*")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(NAMES)}")
    _measure.JSON.unlink(missing_ok=True)
    for name, value in machine().items():
        _measure.save("machine", name, value)
    more = ["--long"] if options.long else []
    if options.rounds:
        more += ["--rounds", str(options.rounds)]
    failed = []
    for name in options.names or NAMES:
        print(f"\n== {name}", flush=True)
        if subprocess.run([sys.executable, str(HERE / f"{name}.py"), *more]).returncode:
            failed.append(name)
    print("\n== all ratios\n")
    _table.main()
    if failed:
        print("failed: " + ", ".join(failed), file=sys.stderr)
    return len(failed)


def machine() -> dict[str, str]:
    """What the figures depend on."""
    found = {
        "linux": platform.release(),
        "cpus": str(len(os.sched_getaffinity(0))),
        "load before": f"{os.getloadavg()[0]:.2f}",
        "python": platform.python_version(),
    }
    found |= {name: metadata.version(name) for name in ("ipykernel", "pyzmq", "sandbox-kernel")}
    for command in (BWRAP, RUNC):
        if shutil.which(command):
            said = subprocess.run([command, "--version"], capture_output=True, text=True).stdout
            found[Path(command).name] = said.splitlines()[0].split()[-1]
    return found


if __name__ == "__main__":
    sys.exit(main())
