"""``make test-vm`` is honest: what has no result, or one that contradicts itself, is a failure."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
JUNIT = '<testsuites><testsuite name="pytest" time="1.5">{}</testsuite></testsuites>'
PASSED = '<testcase name="a"/>'
FAILED = '<testcase name="b"><failure message="no"/></testcase>'
ERROR = '<testcase name="c"><error message="no"/></testcase>'
SKIPPED = '<testcase name="d"><skipped type="pytest.skip"/></testcase>'
XFAILED = '<testcase name="e"><skipped type="pytest.xfail"/></testcase>'


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"vm_{name}", ROOT / f"tools/vm/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


suites = _load("suites")
machine = _load("machine")


def _result(out: Path, name: str, *, status: int = 0, junit: str | None = None) -> None:
    (out / name).mkdir()
    (out / f"{name}.json").write_text(json.dumps({"status": status, "seconds": 2.0}))
    if junit is not None:
        (out / name / "junit.xml").write_text(junit)


def _report(out: Path, *, status: int = 0) -> int:
    return suites.report(suites.RUNS[:1], out, status)


def test_all_passed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _result(tmp_path, "stock", junit=JUNIT.format(PASSED + PASSED + SKIPPED + XFAILED))
    assert _report(tmp_path) == 0
    assert capsys.readouterr().out.endswith("\n2 passed, 1 skipped, 1 xfailed in 1.50s\n")


@pytest.mark.parametrize(
    ("status", "junit", "words"),
    [
        (1, JUNIT.format(PASSED + FAILED), "pytest ended with 1, 1 failed, 1 passed"),
        (0, JUNIT.format(PASSED + FAILED), "pytest ended with 0, 1 failed, 1 passed"),
        (0, JUNIT.format(PASSED + ERROR), "pytest ended with 0, 1 passed, 1 errors"),
        (2, JUNIT.format(PASSED), "pytest ended with 2, 1 passed"),
        (0, JUNIT.format(""), "pytest ended with 0, no tests ran"),
        (0, "<testsuites><testsui", "no result"),
        (0, None, "no result"),
    ],
)
def test_anything_else_is_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], status: int, junit: str | None, words: str
) -> None:
    _result(tmp_path, "stock", status=status, junit=junit)
    assert _report(tmp_path) == 1
    assert f"stock (user stock, delegated): {words}" in capsys.readouterr().err


def test_no_result_of_a_run_is_a_failure(tmp_path: Path) -> None:
    assert _report(tmp_path) == 1


def test_a_machine_that_failed_is_a_failure_whatever_it_left(tmp_path: Path) -> None:
    _result(tmp_path, "stock", junit=JUNIT.format(PASSED))
    assert _report(tmp_path, status=machine.NO_RESULT) == machine.NO_RESULT


@pytest.mark.parametrize("text", ["", "{", "{}", '{"status": null}', '{"status": "0"}', "[]"])
def test_a_broken_result_is_none(tmp_path: Path, text: str) -> None:
    result = tmp_path / "run.json"
    assert machine.status_of(result) == machine.NO_RESULT
    result.write_text(text)
    assert machine.status_of(result) == machine.NO_RESULT
    result.write_text('{"status": 3}')
    assert machine.status_of(result) == 3
