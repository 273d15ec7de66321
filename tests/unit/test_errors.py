"""What the package says when it fails, and that it says the same on the other side of a border."""

from __future__ import annotations

import ast
import errno
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox_kernel import errors
from sandbox_kernel.errors import (
    MountError,
    SandboxError,
    SetupError,
    SpecError,
    describe_errno,
    from_dict,
)

PACKAGE = Path(errors.__file__).parent


def subclasses(cls: type[SandboxError]) -> list[type[SandboxError]]:
    """Those that errors.py itself defines."""
    found = [cls]
    for sub in cls.__subclasses__():
        if sub.__module__ == errors.__name__:
            found += subclasses(sub)
    return found


ALL = subclasses(SandboxError)
PLAIN = [cls for cls in ALL if cls is not SpecError]
WALLS = subclasses(SetupError)


# -- the sentence ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "cause", "remedy", "sentence"),
    [
        (None, None, None, "it failed"),
        ("/a", None, None, "it failed (/a)"),
        (None, "why", None, "it failed: why"),
        (None, None, "do", "it failed; remedy: do"),
        ("/a", "why", "do", "it failed (/a): why; remedy: do"),
    ],
)
def test_fact_path_cause_remedy(
    path: str | None, cause: str | None, remedy: str | None, sentence: str
) -> None:
    error = SandboxError("it failed", cause=cause, remedy=remedy, path=path)
    assert error.message == str(error) == sentence


def test_a_path_in_the_fact_is_not_said_twice() -> None:
    assert MountError("/a cannot be mounted", path="/a").message == "/a cannot be mounted"


def test_a_spec_error_is_one_sentence_with_key_value_and_allowed() -> None:
    error = SpecError("pids", "many", "a whole number")
    assert str(error) == "pids = 'many' is not possible: allowed is a whole number"
    assert error.remedy is None


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.EPERM, "operation not permitted (EPERM)"),
        (errno.ENOSPC, "no space left on device (ENOSPC)"),
        (errno.EAGAIN, "resource temporarily unavailable (EAGAIN)"),
        (0, "success (0)"),
        (99_999, "unknown error 99999 (99999)"),
    ],
)
def test_an_errno_is_never_bare(number: int, text: str) -> None:
    assert describe_errno(number) == text


# -- the tree ----------------------------------------------------------------------------------


def test_the_tree_in_the_docstring_is_the_tree() -> None:
    drawn = re.findall(r"(?:^|── )\s*(\w+Error)\b", str(errors.__doc__), re.MULTILINE)
    assert sorted(drawn) == sorted(cls.__name__ for cls in ALL)


def test_every_wall_has_a_name_of_its_own() -> None:
    names = [cls.wall for cls in WALLS if issubclass(cls, SetupError)]
    assert len(set(names)) == len(names) == len(WALLS)


def test_only_a_spec_error_is_a_value_error() -> None:
    assert [cls for cls in ALL if issubclass(cls, ValueError)] == [SpecError]


# -- across a process border -------------------------------------------------------------------


@pytest.mark.parametrize("cls", PLAIN)
def test_there_and_back(cls: type[SandboxError]) -> None:
    error = cls("fact", cause="cause", remedy="remedy", path="/path")
    back = from_dict(json.loads(json.dumps(error.to_dict())))
    assert type(back) is cls
    assert back.to_dict() == error.to_dict()
    assert back.message == error.message


@pytest.mark.parametrize("cls", PLAIN)
def test_there_and_back_with_a_fact_only(cls: type[SandboxError]) -> None:
    back = from_dict(json.loads(json.dumps(cls("fact").to_dict())))
    assert (type(back), back.message) == (cls, "fact")
    assert (back.cause, back.remedy, back.path) == (None, None, None)


@pytest.mark.parametrize("value", ["many", "", 5, 0.5, True, 2**63])
def test_a_spec_error_there_and_back(value: object) -> None:
    error = SpecError("pids", value, "a whole number")
    back = from_dict(json.loads(json.dumps(error.to_dict())))
    assert isinstance(back, SpecError)
    assert (back.key, back.value, back.allowed) == ("pids", value, "a whole number")
    assert back.message == error.message


@pytest.mark.parametrize("value", [None, ["a"], {"source": 1}, b"x", {1, 2}, object()])
def test_a_value_that_json_has_not_is_still_told(value: object) -> None:
    back = from_dict(json.loads(json.dumps(SpecError("mounts", value, "a list").to_dict())))
    assert isinstance(back, SpecError)
    assert back.value == repr(value)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"type": "Exception", "fact": "x"},
        {"type": "KeyboardInterrupt"},
        {"type": None},
        {"type": ["MountError"]},
        {"type": "sandbox_kernel.errors.MountError"},
    ],
)
def test_what_is_not_known_is_a_failure_all_the_same(fields: dict[str, object]) -> None:
    error = from_dict(fields)
    assert type(error) is SetupError
    assert error.message == fields.get("fact", "unknown failure")


# -- the wording of every message in the package -----------------------------------------------


def _raised() -> Iterator[tuple[str, str]]:
    """(place, the literal beginning and end of the fact) of each error that the source makes."""
    names = {cls.__name__ for cls in PLAIN}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
                continue
            if node.func.id not in names:
                continue
            fact = node.args[0]
            parts = fact.values if isinstance(fact, ast.JoinedStr) else [fact]
            text = "".join(
                str(p.value) if isinstance(p, ast.Constant) else "\N{REPLACEMENT CHARACTER}"
                for p in parts
            )
            yield f"{path.relative_to(PACKAGE)}:{node.lineno}", text


def test_facts_are_lower_case_and_no_sentences() -> None:
    found = list(_raised())
    assert len(found) > 40
    wrong = [
        f"{place}: {text}"
        for place, text in found
        if not text
        or re.match(r"[A-Z][a-z]*\b(?<!Landlock)(?<!Python)", text)
        or text.endswith((".", "!"))
    ]
    assert not wrong, "\n".join(wrong)
