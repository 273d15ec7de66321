"""Putting caps in force: every limit is written, read back, and believed only then."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from ...errors import CgroupError
from ...spec import Caps, MissingCap
from .interface import Backend, Files, Leaf, Setting, Version
from .v1 import V1
from .v2 import V2

BACKENDS: Final[dict[Version, Backend]] = {Version.V1: V1(), Version.V2: V2()}


def apply(leaf: Leaf, caps: Caps, on_missing: MissingCap, files: Files) -> list[str]:
    """Write every limit of the leaf; the warnings about those that it cannot hold.

    Raises:
        CgroupError: a limit was refused, or it cannot be held and ``on_missing`` is ERROR.
    """
    backend = BACKENDS[leaf.version]
    lacking = backend.lacks(leaf, caps, files)
    warnings = judge(lacking, on_missing)
    for setting in backend.settings(leaf, caps.without(lacking), files):
        _put(leaf, setting, files)
    return warnings


def change(wanted: Sequence[tuple[Leaf, Caps]], files: Files) -> None:
    """Put other limits in force in leaves that are in use: all of them, or none.

    Raises:
        CgroupError: a limit cannot be held (nothing was written), or was refused; what was written
            before it has been written back, as far as Linux takes that.
    """
    for leaf, caps in wanted:
        judge(BACKENDS[leaf.version].lacks(leaf, caps, files), MissingCap.ERROR)
    undo: list[tuple[Path, str]] = []
    try:
        for leaf, caps in wanted:
            for setting in BACKENDS[leaf.version].settings(leaf, caps, files):
                path = leaf.path / setting.file
                before = _line_before(setting, _quietly_read(path, files))
                if before is not None:
                    undo.append((path, before))
                _put(leaf, setting, files)
    except CgroupError:
        for path, value in reversed(undo):
            with contextlib.suppress(OSError):
                files.write(path, value)
        raise


def _put(leaf: Leaf, setting: Setting, files: Files) -> None:
    backend = BACKENDS[leaf.version]
    try:
        files.write(leaf.path / setting.file, setting.value)
        shown = files.read(leaf.path / (setting.shown_in or setting.file))
    except OSError as error:
        raise backend.refusal(leaf, setting, error, files) from error
    _check(leaf.path, setting, shown)


def _quietly_read(path: Path, files: Files) -> str | None:
    try:
        return files.read(path)
    except OSError:  # a file that is only written: devices.allow
        return None


def _line_before(setting: Setting, text: str | None) -> str | None:
    """What to write to have back what a file said; ``None`` if that is not known."""
    lines = (text or "").splitlines()
    if setting.neutral is not None:
        device = setting.value.split()[0]
        there = [line for line in lines if line.split()[:1] == [device]]
        return there[0] if there else f"{device} {setting.neutral}"
    # an empty value (a cpuset of v2) is a line too: nothing is written by an empty write
    return f"{lines[0] if lines else ''}\n" if text is not None and len(lines) < 2 else None


def judge(errors: Mapping[str, CgroupError], on_missing: MissingCap) -> list[str]:
    """The warnings about caps that nothing holds, or one error that names them all."""
    if on_missing is MissingCap.WARN:
        return [f"the cap {cap} is not enforced: {e.message}" for cap, e in errors.items()]
    if len(errors) == 1:
        raise next(iter(errors.values()))
    if errors:
        remedies = list(dict.fromkeys(e.remedy for e in errors.values() if e.remedy))
        facts = dict.fromkeys(e.fact + (f": {e.cause}" if e.cause else "") for e in errors.values())
        raise CgroupError(
            f"the caps {', '.join(errors)} cannot be enforced",
            cause=". ".join(facts),
            remedy=". ".join(remedies) or None,
        )
    return []


def _check(directory: Path, setting: Setting, shown: str | None) -> None:
    try:
        taken = shown is not None and setting.accepts(shown)
    except ValueError:
        taken = False
    if not taken:
        path = directory / setting.file
        where = "it" if setting.shown_in is None else setting.shown_in
        raise CgroupError(
            f"{path} did not take {setting.value!r}",
            cause=f"{where} shows {shown.strip()!r}" if shown is not None else "it is gone",
            path=str(path),
        )
