"""What all kernels of a user may use together: a directory between the delegated one and theirs.

``<delegated>/user-<uid>`` is made with the first kernel that has a total in its spec, and removed
with the last. Each kernel that starts puts the total of its own spec in force there. Who makes or
removes one holds the lock of the delegated directory.

It binds who configures the server, not the user himself: he owns the directory. What must hold
against the user are limits of the delegated directory, which the Hub or an administrator sets.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...errors import CgroupError
from ...spec import MissingCap, UserTotal
from . import limits, owner
from .interface import Files, Leaf, Place, by_directory, could_not_be_made

_NAME = re.compile(r"user-[0-9]+")


@dataclass(frozen=True)
class Entered:
    """What :func:`enter` made of the places: the same ones one level deeper."""

    places: tuple[Place, ...]
    warnings: tuple[str, ...]


def directory_of(delegated: Path, uid: int) -> Path:
    """Where the kernels of this user are, if they have a total."""
    return delegated / f"user-{uid}"


def is_a_users(directory: Path) -> bool:
    """Is it one that :func:`enter` made?"""
    return _NAME.fullmatch(directory.name) is not None


def enter(
    places: Sequence[Place],
    total: UserTotal,
    uid: int,
    on_missing: MissingCap,
    files: Files,
    locks: contextlib.ExitStack,
) -> Entered:
    """Make the user's directory in every hierarchy with the total in force; ``locks`` stay held.

    Raises:
        CgroupError: as many kernels as may be are there, or a limit was refused.
    """
    grouped = by_directory(places)
    warnings: list[str] = []
    for delegated in sorted(grouped):
        locks.enter_context(files.locked(delegated))
    directories = [directory_of(delegated, uid) for delegated in grouped]
    _check_count(directories, total.kernels, files)
    for delegated, here in grouped.items():
        controllers = tuple(place.controller for place in here)
        limits.BACKENDS[here[0].version].prepare(here[0], controllers, files)
        path = directory_of(delegated, uid)
        try:
            with contextlib.suppress(FileExistsError):
                files.mkdir(path)
        except OSError as error:
            raise could_not_be_made(path, error) from error
        leaf = Leaf(here[0].version, path, controllers)
        warnings += limits.apply(leaf, total.caps, on_missing, files)
    deeper = tuple(replace(p, directory=directory_of(p.directory, uid)) for p in places)
    return Entered(deeper, tuple(dict.fromkeys(warnings)))


def leaf_above(leaf: Leaf) -> Leaf | None:
    """The user's directory that a kernel's leaf is in, if its user has a total."""
    above = leaf.path.parent
    return replace(leaf, path=above) if _NAME.fullmatch(above.name) else None


def leave(directories: Iterable[Path], files: Files) -> None:
    """Remove those that are a user's and that no kernel is in any more. Never raises."""
    for path in dict.fromkeys(directories):
        if is_a_users(path):
            with contextlib.suppress(OSError), files.locked(path.parent):
                if path.is_dir() and not files.children(path):
                    files.rmdir(path)


def _check_count(directories: Sequence[Path], allowed: int | None, files: Files) -> None:
    names = {p.name for d in directories for p in files.children(d) if owner.owner_of(p.name)}
    if allowed is not None and len(names) >= allowed:
        raise CgroupError(
            f"{len(names)} kernels of this user run already",
            cause=f"user.kernels is {allowed}",
            remedy="shut one down",
            path=str(directories[0]),
        )
