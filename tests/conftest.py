"""What holds for every test: named probes, no skip in CI, no trace of the developer's Jupyter.

The snapshot of the machine before the first test is taken here, for
``leftovers/test_leftovers.py``, which is always the last to run.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator

import probes
import pytest
import traces
from hypothesis import HealthCheck, settings

BEFORE = pytest.StashKey[traces.Traces]()
JUPYTER_FOLDER = pytest.StashKey[str]()

#: Set in CI, and by anybody who wants to be sure that nothing was skipped.
MUST_WORK = bool(os.environ.get("CI") or os.environ.get("MUST_WORK"))
MAY_SKIP = frozenset(filter(None, os.environ.get("SANDBOX_KERNEL_MAY_SKIP", "").split(",")))

# A busy machine is no counterexample, and in CI the same commit gets the same examples.
settings.register_profile(
    "sandbox-kernel",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
    derandomize=MUST_WORK,
    print_blob=True,
)
settings.load_profile("sandbox-kernel")


# -- before the first test and after the last ----------------------------------------------------


def pytest_sessionstart(session: pytest.Session) -> None:
    """Give Jupyter and IPython folders of their own, then look at the machine."""
    folder = tempfile.mkdtemp(prefix="skt-")
    session.config.stash[JUPYTER_FOLDER] = folder
    for variable, name in {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "run",
        "IPYTHONDIR": "ipython",
    }.items():
        os.environ[variable] = os.path.join(folder, name)
        os.mkdir(os.environ[variable], 0o700)
    session.config.stash[BEFORE] = traces.snapshot()


def pytest_sessionfinish(session: pytest.Session) -> None:
    shutil.rmtree(session.config.stash[JUPYTER_FOLDER], ignore_errors=True)


@pytest.fixture
def traces_before(request: pytest.FixtureRequest) -> traces.Traces:
    """The machine before the first test."""
    return request.config.stash[BEFORE]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The check for leftovers comes last, whatever the order on the command line was."""
    items.sort(
        key=lambda item: ("leftovers" in item.path.parts, item.name == "test_nothing_is_left")
    )


# -- probes and skips ----------------------------------------------------------------------------


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test whose ``needs`` names a probe that finds nothing."""
    for mark in item.iter_markers("needs"):
        for probe in mark.args:
            if reason := probes.missing(probe):
                pytest.skip(f"{probe}: {reason}")


def _fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    """In CI a skip is a failure with the same reason, unless its probe may be missing."""
    if not MUST_WORK or report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return
    longrepr = report.longrepr
    reason = longrepr[2] if isinstance(longrepr, tuple) else str(longrepr)
    if reason.removeprefix("Skipped: ").split(":")[0] in MAY_SKIP:
        return
    report.outcome = "failed"
    report.longrepr = f"skipped where nothing may be skipped: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _fail_if_skipped(report)
    return report
