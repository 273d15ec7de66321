"""``make caps-table`` makes a table of all runs or none, and ``--check`` sees any other word."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from xml.sax.saxutils import quoteattr

import pytest
from integration.matrix import normalised
from integration.matrix_expected import COLUMNS

ROOT = Path(__file__).resolve().parents[2]


def _load() -> ModuleType:
    loader = SourceFileLoader("caps_table", str(ROOT / "tools" / "caps-table"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[loader.name] = module  # its dataclasses look themselves up
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = before
    return module


caps_table = _load()
PASSED = {"memory": ("enforced", ""), "cpu_rt": ("refused", "it is 0 <here>")}


def _junit(environment: str, answers: dict[str, tuple[str, str]], inside: str = "") -> str:
    cases = ""
    for cap, (outcome, message) in answers.items():
        fields = {
            "environment": environment, "cap": cap, "tries": "all", "outcome": outcome,
            "message": message,
        }  # fmt: skip
        properties = "".join(
            f"<property name={quoteattr(n)} value={quoteattr(v)}/>" for n, v in fields.items()
        )
        cases += (
            f'<testcase classname="integration.test_caps_matrix" name="t[{cap}]">{inside}'
            f"<properties>{properties}</properties></testcase>"
        )
    other = '<testcase classname="unit.test_x" name="t"><failure/></testcase>'
    return f"<testsuites><testsuite>{other}{cases}</testsuite></testsuites>"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Results of all runs, and a document with no table yet."""
    for column in caps_table.COLUMNS:
        path = tmp_path / column.result
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_junit(column.environment, PASSED))
    (tmp_path / "caps.md").write_text(f"above\n{caps_table.BEGIN}\n{caps_table.END}\nbelow\n")
    return tmp_path


def _run(folder: Path, *more: str) -> int:
    arguments = ["--results", str(folder), "--document", str(folder / "caps.md"), *more]
    status: int = caps_table.main(arguments)
    return status


def test_a_row_for_each_cap_and_a_note_for_each_message(folder: Path) -> None:
    assert _run(folder, "--check") == 1
    assert _run(folder) == 0
    text = (folder / "caps.md").read_text()
    assert "| `memory` | all | enforced | enforced | enforced | enforced | enforced |" in text
    assert "| `cpu_rt` | all |" + 5 * " refused (1) |" in text
    assert "\n1. it is 0 &lt;here&gt;\n" in text
    assert text.startswith("above\n") and text.endswith("\nbelow\n")
    assert _run(folder, "--check") == 0
    assert _run(folder) == 0
    assert (folder / "caps.md").read_text() == text


def test_another_outcome_is_seen(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(folder) == 0
    column = caps_table.COLUMNS[0]
    changed = {**PASSED, "memory": ("refused", "no")}
    (folder / column.result).write_text(_junit(column.environment, changed))
    assert _run(folder, "--check") == 1
    assert "is not what the runs have shown" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("junit", "words"),
    [
        (None, "the run v1-root is missing"),
        ("<testsuites", "is broken"),
        ("<testsuites/>", "no test of the caps was run for v1-root"),
        (_junit("v1-root", PASSED, "<failure/>"), "did not pass"),
        (_junit("v1-root", PASSED, "<skipped/>"), "did not pass"),
        (_junit("v1-user", PASSED), "is of v1-user and not of v1-root"),
        (_junit("v1-root", {"memory": ("enforced", "")}), "no answer to cpu_rt from v1-root"),
    ],
)
def test_half_the_runs_make_no_table(
    folder: Path, capsys: pytest.CaptureFixture[str], junit: str | None, words: str
) -> None:
    before = (folder / "caps.md").read_text()
    path = folder / caps_table.COLUMNS[1].result
    path.unlink() if junit is None else path.write_text(junit)
    assert _run(folder) == 1
    assert words in capsys.readouterr().err
    assert (folder / "caps.md").read_text() == before


def test_the_columns_are_the_environments_that_are_expected() -> None:
    assert tuple(column.environment for column in caps_table.COLUMNS) == COLUMNS


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "/sys/fs/cgroup/cpu/sandbox-kernel-test-7/cpu.rt_runtime_us is 0",
            "<delegated>/cpu.rt_runtime_us is 0",
        ),
        (
            "/sys/fs/cgroup/sandbox-kernel-test-7/tests: not writable for uid 1001, it belongs to "
            "uid 0; remedy: as root: chown 1001 /sys/fs/cgroup/sandbox-kernel/u1001",
            "<delegated>/tests: not writable for uid <uid>, it belongs to uid <uid>; remedy: as "
            "root: chown <uid> /sys/fs/cgroup/sandbox-kernel/u<uid>",
        ),
        ("that of vdb is none; echo bfq > /sys/block/vdb/queue",
         "that of <disk> is none; echo bfq > /sys/block/<disk>/queue"),
    ],
)  # fmt: skip
def test_messages_are_the_same_in_the_next_run(message: str, expected: str) -> None:
    assert normalised(message, "/sandbox-kernel-test-7") == expected
