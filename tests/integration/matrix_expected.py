"""What each environment has to answer to each cap: the one place that says so.

A cap that is refused everywhere from one day to the next fails here, and so does one that is let
through where nothing holds it. A phrase is part of the message, so that it is refused for the
reason that is meant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from integration.matrix import ACCEPTED, ENFORCED, NOT_COVERED, REFUSED, Outcome, Row

#: The columns of docs/caps.md; ``SANDBOX_KERNEL_CAPS_COLUMN`` says which one a run is for.
V1_USER, V1_ROOT = "v1-user", "v1-root"
V2_SCOPE, V2_SCOPE_ALL, V2_PREPARED = "v2-scope", "v2-scope-all", "v2-prepared"
COLUMNS: Final = (V1_USER, V1_ROOT, V2_SCOPE, V2_SCOPE_ALL, V2_PREPARED)


@dataclass(frozen=True)
class Expected:
    kind: str
    phrase: str = ""


_BITES = Expected(ENFORCED)
_V1_ONLY = Expected(REFUSED, "cgroup v2 has no such")
_NO_WEIGHT = Expected(REFUSED, "weights are obeyed by the scheduler bfq")


def _row(v1: Expected = _BITES, v2: Expected = _BITES, **others: Expected) -> dict[str, Expected]:
    """The same on each version, but where an environment is named (``-`` is written ``_``)."""
    both = {V1_USER: v1, V1_ROOT: v1, V2_SCOPE: v2, V2_SCOPE_ALL: v2, V2_PREPARED: v2}
    named = {name.replace("_", "-"): expected for name, expected in others.items()}
    assert named.keys() <= both.keys()
    return both | named


def _refused(phrase: str) -> Expected:
    return Expected(REFUSED, phrase)


def _accepted(phrase: str) -> Expected:
    return Expected(ACCEPTED, phrase)


def _withheld(controller: str) -> Expected:
    return _refused(f"{controller} is not in <delegated>/cgroup.controllers")


def _unmounted(controller: str) -> Expected:
    return _refused(f"{controller} is not available: no cgroup file system that is mounted has it")


_NOT_BY_DEBIAN: Final = {"v2_scope": _withheld("io")}

EXPECTED: Final[dict[str, dict[str, Expected]]] = {
    "memory": _row(),
    "memory_swap": _row(v1=_accepted("no swap")),
    "memory_high": _row(v1=_refused("cgroup v1 has no such limit")),
    "memory_low": _row(_accepted("it protects"), _accepted("it protects")),
    "cpus": _row(),
    "cpu_weight": _row(),
    "cpuset_cpus": _row(v2_scope=_withheld("cpuset")),
    "cpuset_mems": _row(
        _accepted("one memory node"), _accepted("one memory node"), v2_scope=_withheld("cpuset")
    ),
    "cpu_rt": _row(
        v2=_V1_ONLY, v1_user=_refused("cpu.rt_runtime_us is 0, and children get a part of that")
    ),
    "pids": _row(),
    "io.read_bps": _row(**_NOT_BY_DEBIAN),
    "io.write_bps": _row(**_NOT_BY_DEBIAN),
    "io.write_bps.buffered": _row(v1=Expected(NOT_COVERED), **_NOT_BY_DEBIAN),
    "io.read_iops": _row(**_NOT_BY_DEBIAN),
    "io.write_iops": _row(**_NOT_BY_DEBIAN),
    "io.weight": _row(_NO_WEIGHT, _NO_WEIGHT, v1_root=_accepted("loop device"), **_NOT_BY_DEBIAN),
    "hugetlb": _row(
        v2=_withheld("hugetlb"), v1_user=_accepted("no huge pages are reserved"),
        v2_prepared=_BITES,
    ),
    "net_classid": _row(v1=_unmounted("net_cls"), v2=_V1_ONLY, v1_root=_BITES),
    "net_prio": _row(
        v1=_unmounted("net_prio"), v2=_V1_ONLY, v1_root=_accepted("no packet of a sandbox")
    ),
    "devices": _row(),
    "rlimits": _row(),
    "user.memory": _row(),
    "user.pids": _row(),
    "user.cpus": _row(),
    "user.kernels": _row(),
    "pause and resume": _row(),
    "usage: CPU time": _row(),
    "usage: perf_event": _row(v1_user=Expected(NOT_COVERED)),
}  # fmt: skip


def check(row: Row, column: str, outcome: Outcome, record_property: Any) -> None:
    """The outcome is the one that is expected; it goes to JUnit for ``tools/caps-table``."""
    expected = EXPECTED[row.key][column]
    assert (outcome.kind, outcome.message) == (expected.kind, outcome.message)
    assert expected.phrase in outcome.message
    for name, text in (
        ("environment", column),
        ("cap", row.key),
        ("tries", row.tries),
        ("outcome", outcome.kind),
        ("message", outcome.message),
    ):
        record_property(name, text)
