"""``python -m sandbox_kernel.audit FILE``: read an audit log, also what was put aside of it.

A line a request, the oldest first. What clients and kernels have named is shown without control
characters. The exit status is 1 if a line could not be understood: it is named, and the rest shown.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from .auditlog import FORMAT, KEPT
from .errors import AuditError, describe_errno
from .meter import size

_EVENTS: Final = frozenset({"start", "request", "end"})


def main(arguments: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m sandbox_kernel.audit", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("file", help="what the spec calls audit_log")
    parser.add_argument("--kernel", help="of this kernel alone; the beginning of its id will do")
    parser.add_argument("--session", help="of this session of a client alone")
    parser.add_argument("--outcome", help="ok, error, aborted, unanswered or unknown")
    parser.add_argument("--since", type=_moment, help="from then on, such as 2026-01-31T12:00")
    parser.add_argument("--code", type=Path, help="only what ran exactly the text of this file")
    parser.add_argument("--json", action="store_true", help="the lines themselves")
    options = parser.parse_args(arguments)
    try:
        wanted = _Wanted.of(options)
        good = True
        for place, raw in lines(options.file):
            try:
                line = parse(raw)
            except ValueError as error:
                print(f"sandbox-kernel: {place}: {error}", file=sys.stderr)
                good = False
                continue
            if wanted(line):
                print(raw.decode() if options.json else describe(line))
        return 0 if good else 1
    except AuditError as error:
        print(f"sandbox-kernel: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of this has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0


def lines(path: str) -> Iterator[tuple[str, bytes]]:
    """(file and number, line) of all that is kept, the oldest first.

    Raises:
        AuditError: there is no such log, or it cannot be read.
    """
    names = [f"{path}.{number}" for number in range(KEPT, 0, -1)] + [path]
    found = [name for name in names if os.path.lexists(name)]
    for name in found or [path]:
        try:
            with open(name, "rb") as file:
                for number, raw in enumerate(file, 1):
                    yield f"{name}:{number}", raw.rstrip(b"\n")
        except OSError as error:
            raise AuditError(
                "the audit log cannot be read", cause=describe_errno(error.errno or 0), path=name
            ) from error


def parse(raw: bytes) -> dict[str, Any]:
    """One line of the log.

    Raises:
        ValueError: it is none, or of a version that is not known here.
    """
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        raise ValueError("this is no line of JSON, as when a disk was full") from None
    if not isinstance(line, dict) or line.get("v") != FORMAT or line.get("event") not in _EVENTS:
        raise ValueError(f"this is no line of an audit log of version {FORMAT}")
    return line


def describe(line: dict[str, Any]) -> str:
    """For a person."""
    head = f"{line.get('time')} {line.get('user')} {str(line.get('kernel'))[:8]}"
    match line["event"]:
        case "start":
            text = "the kernel started"
        case "end":
            text = f"the kernel ended: {line.get('reason')}"
        case _:
            text = _request(line)
    return _printable(f"{head} {text}")


def _request(line: dict[str, Any]) -> str:
    outcome = f"{line.get('outcome')} {line.get('ename') or ''}".strip()
    parts = [f"{line.get('type')} {outcome}"]
    used = line.get("sandbox") or {}
    if isinstance(used.get("wall_s"), (int, float)):
        parts.append(f"{used['wall_s']:.3f} s")
    if isinstance(used.get("cpu_s"), (int, float)):
        parts.append(f"{used['cpu_s']:.3f} s of cpu")
    if isinstance(used.get("peak_bytes"), int):
        parts.append(f"peak {size(used['peak_bytes'])}")
    parts += [f"{count} {name} refused" for name, count in _denials(line) if name == "forks"]
    parts += [f"{count} processes killed for memory" for n, count in _denials(line) if n != "forks"]
    code = line.get("code")
    if isinstance(code, dict):
        parts.append(f"sha256 {str(code.get('sha256'))[:12]}, {code.get('bytes')} bytes")
        if isinstance(code.get("text"), str):
            parts.append(repr(code["text"][:60]))
    return "; ".join(parts)


def _denials(line: dict[str, Any]) -> list[tuple[str, int]]:
    table = line.get("denials")
    pairs = table.items() if isinstance(table, dict) else ()
    return [(name, count) for name, count in pairs if isinstance(count, int) and count]


def _printable(text: str) -> str:
    """A name that moves the cursor could hide a line."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


@dataclass(frozen=True)
class _Wanted:
    kernel: str
    session: str | None
    outcome: str | None
    since: datetime | None
    code: str | None

    @classmethod
    def of(cls, options: argparse.Namespace) -> _Wanted:
        """Raises:
        AuditError: the file of ``--code`` cannot be read.
        """
        digest = None
        if options.code is not None:
            try:
                digest = hashlib.sha256(options.code.read_bytes()).hexdigest()
            except OSError as error:
                cause = describe_errno(error.errno or 0)
                raise AuditError(
                    "the code to be looked for cannot be read", cause=cause, path=str(options.code)
                ) from error
        kernel = (options.kernel or "").replace("-", "")
        return cls(kernel, options.session, options.outcome, options.since, digest)

    def __call__(self, line: dict[str, Any]) -> bool:
        code = line.get("code")
        return (
            str(line.get("kernel")).startswith(self.kernel)
            and self.session in (None, line.get("session"))
            and self.outcome in (None, line.get("outcome"))
            and (self.since is None or _moment(str(line.get("time"))) >= self.since)
            and (self.code is None or (isinstance(code, dict) and code.get("sha256") == self.code))
        )


def _moment(text: str) -> datetime:
    """A time without a zone is the reader's own."""
    found = datetime.fromisoformat(text)
    return found.astimezone(UTC)


if __name__ == "__main__":
    sys.exit(main())
