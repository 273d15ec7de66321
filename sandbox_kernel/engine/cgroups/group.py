"""The cgroup of one kernel: made with its limits, joined, read, killed, removed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final, TypeVar

from ...errors import CgroupError, ProtocolError, describe_errno
from ...spec import Caps, MissingCap
from . import owner, processes
from .detect import Missing, Search, check_hint
from .interface import (
    CONTROLLER_OF,
    FILES,
    OPTIONAL_CONTROLLERS,
    Backend,
    CgroupEvents,
    CgroupUsage,
    Files,
    Leaf,
    Place,
    Setting,
    Source,
    Version,
)
from .v1 import V1
from .v2 import V2

BACKENDS: Final[dict[Version, Backend]] = {Version.V1: V1(), Version.V2: V2()}
#: The version of :meth:`KernelCgroup.to_dict`.
FORMAT: Final = 1

_Record = TypeVar("_Record", CgroupUsage, CgroupEvents)


@dataclass(frozen=True)
class KernelCgroup:
    """What :func:`create` made. Plain data: it holds no descriptor and may cross a fork."""

    name: str
    """The directory name in every hierarchy, with the owner in it."""
    leaves: tuple[Leaf, ...]
    warnings: tuple[str, ...] = ()
    """Caps that are not enforced, for :attr:`MissingCap.WARN` only."""
    files: Files = field(default=FILES, compare=False, repr=False)

    def join(self) -> None:
        """Move the calling process into every leaf. Called by the child that becomes the kernel.

        The thread group moves as a whole; memory that it charged before stays where it was.

        Raises:
            CgroupError: at least one leaf did not take it. The caller must end then: it may
                already be in others.
        """
        self._join("0", "this process")

    def join_pid(self, pid: int) -> None:
        """Move another process of the same user, as :meth:`join`."""
        self._join(str(pid), f"process {pid}")

    def usage(self) -> CgroupUsage:
        """A snapshot over all leaves. Never raises for a leaf that is gone: its fields are None."""
        found = [BACKENDS[leaf.version].usage(leaf, self.files) for leaf in self.leaves]
        return _merge(CgroupUsage(), found)

    def events(self) -> CgroupEvents:
        """A snapshot of the counters. Read it before :meth:`kill` and :meth:`remove`."""
        found = [BACKENDS[leaf.version].events(leaf, self.files) for leaf in self.leaves]
        return _merge(CgroupEvents(), found)

    def kill(self, timeout: float = 5.0) -> tuple[str, ...]:
        """SIGKILL to every process in the leaves, until they are empty or ``timeout`` seconds.

        Forbids forks first, so ``pids_limit`` may count some. Returns the problems; never raises
        for a process or a directory that is gone.
        """
        return tuple(processes.kill_all(self.leaves, self.files, time.monotonic() + timeout))

    def remove(self, timeout: float = 2.0) -> tuple[str, ...]:
        """Remove every leaf; waits up to ``timeout`` seconds for processes that are ending.

        Idempotent. Kills nobody. Returns the problems, so that they travel with the failure that
        led here.
        """
        deadline = time.monotonic() + timeout
        problems: list[str] = []
        for leaf in self.leaves:
            problems += processes.remove_leaf(leaf, self.files, deadline)
        return tuple(problems)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: who outlives the supervisor can clean up after it."""
        leaves = [
            {"version": v.version.value, "path": str(v.path), "controllers": list(v.controllers)}
            for v in self.leaves
        ]
        return {
            "format": FORMAT,
            "name": self.name,
            "leaves": leaves,
            "warnings": list(self.warnings),
        }

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> KernelCgroup:
        """What :meth:`to_dict` described in another process.

        Raises:
            ProtocolError: not that, or a path that :func:`create` does not make. The result can
                kill and remove, so only names of our own pass.
        """
        try:
            if data["format"] != FORMAT:
                raise ProtocolError(f"format {data['format']!r} of a cgroup is not {FORMAT}")
            name, warnings = str(data["name"]), tuple(map(str, data["warnings"]))
            leaves = tuple(
                Leaf(Version(v["version"]), Path(v["path"]), tuple(map(str, v["controllers"])))
                for v in data["leaves"]
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ProtocolError(
                "the description of a cgroup is broken", cause=str(error)
            ) from error
        for leaf in leaves:
            path = leaf.path
            if not path.is_absolute() or ".." in path.parts or path.name != name:
                raise ProtocolError(f"{path} is not a cgroup of {name!r}", path=str(path))
        if owner.owner_of(name) is None:
            raise ProtocolError(f"{name!r} is not the name of a kernel's cgroup")
        return KernelCgroup(name, leaves, warnings)

    def _join(self, word: str, who: str) -> None:
        for leaf in self.leaves:
            path = leaf.path / "cgroup.procs"
            try:
                self.files.write(path, word)
            except OSError as error:
                raise CgroupError(
                    f"{who} could not join the cgroup {leaf.path}",
                    cause=describe_errno(error.errno or 0),
                    path=str(path),
                ) from error


def create(
    caps: Caps,
    name: str,
    *,
    uid: int,
    hint: str | None,
    on_missing: MissingCap,
    proc: Path = Path("/proc"),
    files: Files = FILES,
) -> KernelCgroup:
    """Make the cgroup of one kernel with the caps in force, and nobody in it.

    Called by the supervisor, as an ordinary user, before its user namespace is made. ``name`` is
    ``kernel-<id>``; the pid and start time of the caller are added, so that :func:`sweep` knows
    later whether it lives. ``hint`` is the value of ``SANDBOX_KERNEL_CGROUP``.

    Guarantees: every cap that was asked for was written and read back. Controllers that only
    account or help to kill are used where they are delegated.

    Raises:
        CgroupError: a cap has no controller (unless ``on_missing`` is WARN), or a directory or a
            limit was refused. Nothing that was made is left.
    """
    if hint:
        check_hint(hint)  # even if no cap is asked for: a wrong one is never passed over
    search = Search(uid, hint, proc, files)
    leaf_name = owner.myself(proc).leaf_name(name)
    asked = {cap: CONTROLLER_OF[cap] for cap in caps.asked()}
    found = {controller: search.find(controller) for controller in asked.values()}
    missing = {cap: m for cap, c in asked.items() if isinstance(m := found[c], Missing)}
    warnings = _judge(missing, on_missing)
    required = [place for place in found.values() if isinstance(place, Place)]
    optional = [
        place
        for controller in OPTIONAL_CONTROLLERS
        if controller not in found
        and isinstance(place := search.find(controller), Place)
        # Only where the directory was named for this: elsewhere a kernel without caps stays in the
        # cgroup that its server is in, and below whatever caps that has.
        and place.source is Source.HINT
    ]
    made: list[Leaf] = []
    try:
        for places in _by_directory(required).values():
            leaf = _make(leaf_name, places, _beside(places, optional), files, made)
            _apply(leaf, caps, files)
            warnings += _judge_swap(leaf, caps, on_missing, proc, files)
        for places in _by_directory(optional).values():
            if all(leaf.path.parent != places[0].directory for leaf in made):
                _make_optional(leaf_name, places, files, made)
    except BaseException as error:
        problems = KernelCgroup(leaf_name, tuple(made), files=files).remove()
        if problems and isinstance(error, CgroupError):
            raise _with_problems(error, problems) from error
        raise
    return KernelCgroup(leaf_name, tuple(made), tuple(warnings), files)


# -- steps of create() --------------------------------------------------------------------------


def _judge(missing: Mapping[str, Missing], on_missing: MissingCap) -> list[str]:
    """The warnings about caps without a controller, or the error."""
    errors = {cap: m.error() for cap, m in missing.items()}
    if on_missing is MissingCap.WARN:
        return [f"the cap {cap} is not enforced: {e.message}" for cap, e in errors.items()]
    if len(errors) == 1:
        raise next(iter(errors.values()))
    if errors:
        remedies = [e.remedy for e in errors.values() if e.remedy]
        raise CgroupError(
            f"the caps {', '.join(errors)} cannot be enforced",
            cause=". ".join(e.fact + (f": {e.cause}" if e.cause else "") for e in errors.values()),
            remedy=". ".join(remedies) or None,
        )
    return []


def _by_directory(places: Sequence[Place]) -> dict[Path, list[Place]]:
    """Controllers that are mounted together, or on v2, share one directory."""
    grouped: dict[Path, list[Place]] = {}
    for place in places:
        grouped.setdefault(place.directory, []).append(place)
    return grouped


def _beside(places: Sequence[Place], optional: Sequence[Place]) -> list[Place]:
    return [place for place in optional if place.directory == places[0].directory]


def _make(
    name: str, places: Sequence[Place], beside: Sequence[Place], files: Files, made: list[Leaf]
) -> Leaf:
    """One new leaf; it is in ``made`` as soon as it exists."""
    first = places[0]
    backend = BACKENDS[first.version]
    backend.prepare(first, tuple(p.controller for p in places), files)
    controllers = [place.controller for place in places]
    for place in beside:
        try:
            backend.prepare(place, (place.controller,), files)
        except CgroupError:
            continue  # it only accounts
        controllers.append(place.controller)
    leaf = Leaf(first.version, first.directory / name, tuple(controllers))
    try:
        files.mkdir(leaf.path)
    except OSError as error:
        raise CgroupError(
            f"cgroup {leaf.path} could not be made",
            cause=describe_errno(error.errno or 0),
            path=str(leaf.path),
        ) from error
    made.append(leaf)
    return leaf


def _make_optional(name: str, places: list[Place], files: Files, made: list[Leaf]) -> None:
    try:
        _make(name, places[:1], places[1:], files, made)
    except CgroupError:
        return  # no cap depends on it; usage() says None


def _apply(leaf: Leaf, caps: Caps, files: Files) -> None:
    """Write every limit of the leaf, and believe only what the kernel shows afterwards."""
    backend = BACKENDS[leaf.version]
    for setting in backend.settings(leaf, caps, files):
        path = leaf.path / setting.file
        try:
            files.write(path, setting.value)
            shown = files.read(path)
        except OSError as error:
            raise backend.refusal(leaf, setting, error, files) from error
        _check(path, setting, shown)


def _check(path: Path, setting: Setting, shown: str | None) -> None:
    try:
        taken = shown is not None and setting.accepts(shown)
    except ValueError:
        taken = False
    if not taken:
        raise CgroupError(
            f"{path} did not take {setting.value!r}",
            cause=f"it shows {shown.strip()!r}" if shown is not None else "it is gone",
            path=str(path),
        )


def _judge_swap(
    leaf: Leaf, caps: Caps, on_missing: MissingCap, proc: Path, files: Files
) -> list[str]:
    """Without a swap account a kernel at its memory cap would fill the swap of the machine."""
    if "memory" not in leaf.controllers or caps.memory is None:
        return []
    swaps = (files.read(proc / "swaps") or "").splitlines()[1:]
    if BACKENDS[leaf.version].bounds_swap(leaf, files) or not swaps:
        return []
    error = CgroupError(
        f"the cap memory = {caps.memory} does not hold swap under {leaf.path.parent}",
        cause="the machine uses swap and its Linux kernel does not account it",
        remedy="boot with swapaccount=1, or switch swap off",
        path=str(leaf.path.parent),
    )
    if on_missing is MissingCap.WARN:
        return [error.message]
    raise error


def _with_problems(error: CgroupError, problems: Sequence[str]) -> CgroupError:
    cause = "; ".join(([error.cause] if error.cause else []) + ["then: " + p for p in problems])
    return CgroupError(error.fact, cause=cause, remedy=error.remedy, path=error.path)


def _merge(empty: _Record, found: Sequence[_Record]) -> _Record:
    """Each field from the first leaf that knows it."""
    values: dict[str, int | None] = {}
    for item in fields(empty):
        known = [v for record in found if (v := getattr(record, item.name)) is not None]
        values[item.name] = known[0] if known else None
    return type(empty)(**values)
