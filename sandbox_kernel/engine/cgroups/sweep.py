"""Finding cgroups by their names: those of kernels that run, and what killed supervisors left."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from ...errors import CgroupError, describe_errno
from . import owner, total
from .detect import Hierarchy, Search
from .group import KernelCgroup
from .interface import FILES, V1_NAMES, Files, Leaf, Version


@dataclass(frozen=True)
class Swept:
    """What one :func:`sweep` did."""

    removed: tuple[str, ...]
    """Paths of directories."""
    problems: tuple[str, ...]


def sweep(
    uid: int,
    hint: str | None,
    *,
    proc: Path = Path("/proc"),
    files: Files = FILES,
    timeout: float = 2.0,
) -> Swept:
    """Kill and remove every kernel's cgroup whose supervisor does not live any more.

    Called by the launcher when it starts, and by ``doctor``. Looks into every delegated directory
    that :func:`create` would consider for this user. A directory of another user, of a process
    in another pid or time namespace, or of any other name is left alone. ``timeout`` is in
    seconds for one kernel. Never raises: what did not work is in the answer.
    """
    removed: list[str] = []
    problems: list[str] = []
    search = Search(uid, hint, proc, files)
    try:
        found = _groups(search, living=False)
        empty = [total.directory_of(path, uid) for path in _directories(search)]
    except CgroupError as error:
        return Swept((), (error.message,))
    for group in found:
        problems += group.kill(timeout)
        problems += group.remove(timeout)
        removed += [str(leaf.path) for leaf in group.leaves if not leaf.path.exists()]
    total.leave(empty, files)
    return Swept(tuple(removed), tuple(problems))


def running(
    uid: int, hint: str | None, *, proc: Path = Path("/proc"), files: Files = FILES
) -> tuple[KernelCgroup, ...]:
    """The cgroups of the kernels of this user whose supervisors live, by name.

    Raises:
        CgroupError: ``/proc`` or a delegated directory cannot be read.
    """
    return tuple(_groups(Search(uid, hint, proc, files), living=True))


def _groups(search: Search, *, living: bool) -> list[KernelCgroup]:
    """Those whose owner lives, or those whose owner is known not to."""
    found: dict[str, list[Leaf]] = defaultdict(list)
    for hierarchy in search.mounted:
        for directory in _searched(hierarchy, search):
            for path in _children(directory, search):
                who = owner.owner_of(path.name)
                if who is not None and who.lives(search.proc) is living:
                    found[path.name].append(_leaf(hierarchy, path, search.files))
    return [
        KernelCgroup(name, tuple(leaves), files=search.files)
        for name, leaves in sorted(found.items())
    ]


def _searched(hierarchy: Hierarchy, search: Search) -> list[Path]:
    """Where kernels of one hierarchy are, below a total or not."""
    # The hint and the own cgroup may be one directory.
    found = dict.fromkeys(path for _, path in search.candidates(hierarchy))
    return [p for path in found for p in (path, total.directory_of(path, search.uid))]


def _directories(search: Search) -> list[Path]:
    return [path for h in search.mounted for _, path in search.candidates(h)]


def _children(directory: Path, search: Search) -> list[Path]:
    """Directories of this user; none where we may not even look."""
    found = []
    try:
        for path in search.files.children(directory):
            if path.lstat().st_uid == search.uid:
                found.append(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # another sweep was faster, or it is not for us
    except OSError as error:
        cause = describe_errno(error.errno or 0)
        raise CgroupError(
            f"{directory} cannot be read", cause=cause, path=str(directory)
        ) from error
    return found


def _leaf(hierarchy: Hierarchy, path: Path, files: Files) -> Leaf:
    """As :func:`create` made it: controllers have the names of v2 everywhere but in a mount."""
    v2_names = {v1_name: name for name, v1_name in V1_NAMES.items()}
    controllers = frozenset(v2_names.get(name, name) for name in hierarchy.controllers)
    if hierarchy.version is Version.V2:
        controllers = frozenset((files.read(path / "cgroup.controllers") or "").split())
    return Leaf(hierarchy.version, path, tuple(sorted(controllers)))
