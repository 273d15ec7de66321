"""``make test-vm``: the suites that start sandboxes, in the test machine, as users of systemd.

Every cap is tried as ``stock``, as ``deleg``, whose systemd delegates ``io`` and ``cpuset`` too,
and in a cgroup that root prepared; what Jupyter expects of a kernel, as ``stock``. In a session,
where nothing is delegated, run the tests of the scope that systemd makes then. Then every attack of
tests/escape, as ``stock``. The whole suites are
run if they are asked for. From the environment:

``VM_TESTS``
    the paths below tests/ to run instead, in each run: ``VM_TESTS="integration/test_caps.py"``
``VM_RUNS``
    the runs to make, such as ``VM_RUNS="deleg prepared"``; there are more than those
    that are made if nothing is said, see ``MORE``
``VM_OUT``
    where the results go: JUnit, what pytest printed, the console. ``build/test-vm``
``VM_SECONDS``
    all the time that the machine has
``PYTEST_ARGS``
    handed to pytest

The last line is pytest's own over all runs. The exit status is 0 only if every run has left a
result that says so and a JUnit file with at least one test, none of which failed.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests"
INSIDE = "/opt/sandbox-kernel"
SUITES = ("integration", "conformance", "escape")
MATRIX = ("integration/test_caps_matrix.py",)
ESCAPE = ("escape/test_[!h]*.py",)
"""Hostile messages are made by the hundred thousand, which takes too long here: on demand."""
HOSTILE = ("escape/test_hostile_messages.py",)
CONFORMANCE = ("conformance/test_jupyter_kernel_test.py",)
CGROUPS = (
    "integration/test_*cap*.py",
    "integration/test_*cgroup*.py",
    "integration/test_control.py",
)
SCOPE = ("integration/test_cgroups_scope.py",)
"""The others about cgroups need a directory that was delegated before."""
FACTOR = 10
"""How much longer everything may take where instructions are emulated."""
SECONDS = 5400.0
SWAP = "512M"
"""So that a cap on swap can be run into; a kernel without one gets none of it."""


@dataclass(frozen=True)
class Run:
    name: str
    user: str
    place: str
    """See ``tests/vm/guest.py``."""
    suites: tuple[str, ...]
    without: tuple[str, ...]
    """Probes that find nothing here, by how the machine is made (``tests/probes.py``)."""
    column: str
    """Of docs/caps.md: what its cgroup is."""


_AS_DEBIAN = ("cgroup-v1", "cpuset", "io", "hugetlb", "git")

RUNS = (
    Run("stock", "stock", "delegated", (*MATRIX, *CONFORMANCE), _AS_DEBIAN, "v2-scope"),
    Run("deleg", "deleg", "delegated", MATRIX, ("cgroup-v1", "hugetlb"), "v2-scope-all"),
    Run("prepared", "deleg", "prepared", MATRIX, ("cgroup-v1",), "v2-prepared"),
    Run("login", "stock", "login", SCOPE, (), "v2-scope"),
    Run("escape", "stock", "delegated", ESCAPE, _AS_DEBIAN, ""),
)
MORE = (
    Run("whole", "stock", "delegated", SUITES, _AS_DEBIAN, "v2-scope"),
    Run("cgroups", "deleg", "prepared", CGROUPS, ("cgroup-v1",), "v2-prepared"),
    Run("hostile", "stock", "delegated", HOSTILE, _AS_DEBIAN, ""),
    Run("service", "deleg", "service", SCOPE, (), "v2-scope-all"),
)
"""Made if they are asked for: emulated, they take too long for each change."""


@dataclass(frozen=True)
class Count:
    passed: int = 0
    failed: int = 0
    errors: int = 0
    skipped: int = 0
    xfailed: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(*map(sum, zip(*map(dataclasses.astuple, (self, other)), strict=True)))

    @property
    def all(self) -> int:
        return sum(dataclasses.astuple(self))

    def __str__(self) -> str:
        names = {"failed": "failed", "passed": "passed", "skipped": "skipped"}
        names |= {"xfailed": "xfailed", "errors": "errors"}
        parts = [f"{getattr(self, n)} {word}" for n, word in names.items() if getattr(self, n)]
        return ", ".join(parts) or "no tests ran"


def main() -> int:
    runs = chosen()
    out = Path(os.environ.get("VM_OUT") or ROOT / "build" / "test-vm").resolve()
    out.mkdir(parents=True, exist_ok=True)
    for run in (*RUNS, *MORE):  # nothing of an earlier time may be taken for a result
        for stale in (out / f"{run.name}.json", out / run.name / "junit.xml"):
            stale.unlink(missing_ok=True)
    with tempfile.NamedTemporaryFile("w", prefix="sandbox-kernel-vm-job-") as job:
        json.dump({"runs": [request(run) for run in runs]}, job)
        job.flush()
        seconds = os.environ.get("VM_SECONDS") or str(SECONDS)
        # setpriv: whoever ends this process ends the machine too.
        command = ["setpriv", "--pdeathsig", "TERM", str(ROOT / "tools" / "vm" / "run")]
        command += ["--job", job.name, "--out", str(out), "--seconds", seconds]
        command += ["--swap", SWAP]
        status = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
    return report(runs, out, status)


def chosen() -> tuple[Run, ...]:
    names = os.environ.get("VM_RUNS", "").split() or [run.name for run in RUNS]
    known = {run.name: run for run in (*RUNS, *MORE)}
    if unknown := [name for name in names if name not in known]:
        sys.exit(f"no run {', '.join(unknown)}: {', '.join(known)} are there")
    return tuple(known[name] for name in names)


def request(run: Run) -> dict[str, Any]:
    """The run as ``tests/vm/guest.py`` reads it."""
    argv = ["pytest", "-p", "no:cacheprovider", f"--junitxml={INSIDE}/result/{run.name}/junit.xml"]
    # those of pyproject.toml, 180 and 120 seconds
    argv += [f"--timeout={180 * FACTOR}", "-o", f"faulthandler_timeout={120 * FACTOR}"]
    argv += [*paths(run.suites), "leftovers", *shlex.split(os.environ.get("PYTEST_ARGS", ""))]
    # What the caller's own machine may go without says nothing about this one.
    environment = {
        "SANDBOX_KERNEL_TIMEOUT_FACTOR": str(FACTOR),
        "SANDBOX_KERNEL_MAY_SKIP": ",".join(run.without),
        "SANDBOX_KERNEL_CAPS_COLUMN": run.column,
    }
    environment |= {name: os.environ[name] for name in ("CI", "MUST_WORK") if name in os.environ}
    fields = {"name": run.name, "user": run.user, "place": run.place}
    return {**fields, "argv": argv, "environment": environment}


def paths(suites: tuple[str, ...]) -> list[str]:
    """What pytest is asked for: ``VM_TESTS``, or those of ``suites`` that hold tests."""
    if wanted := os.environ.get("VM_TESTS", "").split():
        return wanted
    found: list[str] = []
    for suite in suites:
        matches = [str(path.relative_to(TESTS)) for path in sorted(TESTS.glob(suite))]
        if matches and not (TESTS / suite).is_dir():
            found += matches
        elif matches and any((TESTS / suite).rglob("test_*.py")):
            found.append(suite)
        else:
            print(f"no tests in tests/{suite} yet", file=sys.stderr)
    return found


# -- what came of it -------------------------------------------------------------------------------


def report(runs: tuple[Run, ...], out: Path, status: int) -> int:
    total, seconds, wrong = Count(), 0.0, []
    print("\n-- in the test machine " + "-" * 55)
    for run in runs:
        where = f"{run.name} (user {run.user}, {run.place})"
        try:
            ended = json.loads((out / f"{run.name}.json").read_text())["status"]
            count, took = read_junit(out / run.name / "junit.xml")
        except (OSError, ValueError, KeyError, TypeError, ElementTree.ParseError) as error:
            wrong.append(f"{where}: no result ({error})")
            continue
        total, seconds = total + count, seconds + took
        print(f"{where}: {count} in {took:.1f}s")
        if ended != 0 or count.failed or count.errors or not count.all:
            wrong.append(f"{where}: pytest ended with {ended}, {count}")
    print(*wrong, sep="\n", end="\n" if wrong else "", file=sys.stderr)
    print(f"results: {out}", file=sys.stderr)
    print(f"{total} in {seconds:.2f}s", flush=True)
    return status or (1 if wrong else 0)


def read_junit(path: Path) -> tuple[Count, float]:
    """How many tests ended how, and the seconds they took."""
    count, seconds = Count(), 0.0
    root = ElementTree.parse(path).getroot()  # noqa: S314  # pytest's own, of our tests
    for suite in root.iter("testsuite"):
        seconds += float(suite.get("time", "0"))
        for case in suite.iter("testcase"):
            count += outcome(case)
    return count, seconds


def outcome(case: ElementTree.Element) -> Count:
    if case.find("error") is not None:
        return Count(errors=1)
    if case.find("failure") is not None:
        return Count(failed=1)
    skipped = case.find("skipped")
    if skipped is None:
        return Count(passed=1)
    return Count(xfailed=1) if skipped.get("type") == "pytest.xfail" else Count(skipped=1)


if __name__ == "__main__":
    sys.exit(main())
