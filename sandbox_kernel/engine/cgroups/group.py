"""The cgroup of one kernel: made with its limits, joined, read, killed, removed."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from ...errors import CgroupError, ProtocolError, describe_errno
from ...spec import Caps, MissingCap, UserTotal
from . import blockdev, limits, owner, processes, total, v2
from .detect import Missing, Search, Tried, check_hint
from .interface import (
    CONTROLLER_OF,
    FILES,
    OPTIONAL_CONTROLLERS,
    SCOPE_LEAF,
    SCOPE_UNIT,
    CgroupEvents,
    CgroupUsage,
    Files,
    Leaf,
    Place,
    Source,
    Version,
    by_directory,
    could_not_be_made,
    keyed,
)
from .limits import BACKENDS

#: The version of :meth:`KernelCgroup.to_dict`.
FORMAT: Final = 1

_Record = TypeVar("_Record", CgroupUsage, CgroupEvents)


class Scope(Protocol):
    """:class:`.scope.UserScope`, or what a test has instead."""

    def enter(self) -> None:
        """Move this process into the scope, or raise a :class:`CgroupError`."""


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

    def refusals(self) -> int | None:
        """Of :meth:`events` the forks and clones that were refused: one read of one file."""
        for leaf in self.leaves:
            if "pids" in leaf.controllers:
                return keyed(self.files.read(leaf.path / "pids.events"), "max")
        return None

    def update(self, caps: Caps, user: Caps | None = None, *, proc: Path = Path("/proc")) -> None:
        """Put these caps in force instead of those of the same keys; the others stay.

        ``user`` are caps of all kernels of the user, written first; they hold until a kernel
        starts that has others in its spec. ``memory_swap`` goes with ``memory``: without it there
        is no swap. A limit of memory below what is in use is refused on v1 and leads to a kill on
        v2. May be called while the kernel is paused.

        Raises:
            CgroupError: the cgroup has no controller for a cap, or a limit was refused. Nothing is
                changed then.
        """
        user = blockdev.resolve(user or Caps(), proc, self.files)
        caps = blockdev.resolve(caps, proc, self.files)
        above = [leaf for v in self.leaves if (leaf := total.leaf_above(v)) is not None]
        if user.asked() and not above:
            raise CgroupError(
                f"the cap user.{next(iter(user.asked()))} of a running kernel cannot be changed",
                cause="it was started without a total of its user",
                remedy="start it with a table user",
            )
        _check_held(above, user, "user.")
        _check_held(self.leaves, caps, "")
        limits.change([*((v, user) for v in above), *((v, caps) for v in self.leaves)], self.files)

    def pause(self, timeout: float = 5.0) -> None:
        """Stop every process in the leaves, until :meth:`resume` or :meth:`kill`.

        Raises:
            CgroupError: there is no freezer, or not all have stopped in time; they run on then.
        """
        try:
            self._freeze(True, timeout)
        except CgroupError:
            with contextlib.suppress(CgroupError):
                self._freeze(False, timeout)
            raise

    def resume(self, timeout: float = 5.0) -> None:
        """Let them run on. Does nothing where none was paused.

        Raises:
            CgroupError: there is no freezer, or it did not let go in time.
        """
        self._freeze(False, timeout)

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
        total.leave((leaf.path.parent for leaf in self.leaves), self.files)
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

    @property
    def shared_by_total(self) -> tuple[Path, ...]:
        """The delegated directories, where the leaves are in a user's own: :meth:`remove` locks
        them and removes that one with its last kernel."""
        above = [leaf.path.parent for leaf in self.leaves]
        return tuple(path.parent for path in above if total.is_a_users(path))

    @property
    def can_pause(self) -> bool:
        """Is there a freezer?"""
        return any(v.version is Version.V2 or "freezer" in v.controllers for v in self.leaves)

    def _freeze(self, frozen: bool, timeout: float) -> None:
        word = "paused" if frozen else "resumed"
        if not self.can_pause:
            raise CgroupError(
                f"the kernel cannot be {word}",
                cause="it has no cgroup with a freezer",
                remedy="have the controller freezer delegated, or use cgroup v2",
            )
        deadline = time.monotonic() + timeout
        for leaf in self.leaves:
            if leaf.version is Version.V1 and "freezer" not in leaf.controllers:
                continue
            try:
                done = BACKENDS[leaf.version].freeze(leaf, frozen, self.files, deadline)
            except OSError as error:
                done, cause = False, describe_errno(error.errno or 0)
            else:
                cause = f"not all of its processes are after {timeout:g} seconds"
            if not done:
                raise CgroupError(
                    f"the kernel could not be {word}", cause=cause, path=str(leaf.path)
                )

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
    user: UserTotal | None = None,
    scope: Scope | None = None,
    proc: Path = Path("/proc"),
    files: Files = FILES,
) -> KernelCgroup:
    """Make the cgroup of one kernel with the caps in force, and nobody in it.

    Called by the supervisor, as an ordinary user, before its user namespace is made. ``name`` is
    ``kernel-<id>``; the pid and start time of the caller are added, so that :func:`sweep` knows
    later whether it lives. ``hint`` is the value of ``SANDBOX_KERNEL_CGROUP``. With a total in
    ``user`` the leaves are below a directory that holds it, see :mod:`.total`. ``scope`` is entered
    if a cap or a total needs it (on v2); the calling process stays in it then.

    Guarantees: every cap that was asked for was written and read back. Controllers that only
    account or help to kill are used where they are delegated.

    Raises:
        CgroupError: a cap has no controller (unless ``on_missing`` is WARN), a directory or a
            limit was refused, a path is on no disk, or as many kernels as may be run already.
            Nothing that was made is left.
    """
    if hint:
        check_hint(hint)  # even if no cap is asked for: a wrong one is never passed over
    search = Search(uid, hint, proc, files)
    leaf_name = owner.myself(proc).leaf_name(name)
    caps = blockdev.resolve(_without_devices(caps, search), proc, files)
    user = user or UserTotal()
    user = UserTotal(blockdev.resolve(user.caps, proc, files), user.kernels)
    search, required, warnings = _find(caps, user, search, on_missing, scope)
    optional = _optional(required, search)
    made: list[Leaf] = []
    with contextlib.ExitStack() as locks:
        above = {place.directory for place in (*required, *optional)}
        try:
            if user.asked():
                entered = total.enter((*required, *optional), user, uid, on_missing, files, locks)
                warnings += entered.warnings
                required = list(entered.places[: len(required)])
                optional = list(entered.places[len(required) :])
            for places in by_directory(required).values():
                leaf = _make(leaf_name, places, _beside(places, optional), files, made)
                warnings += limits.apply(leaf, caps, on_missing, files)
                warnings += _judge_swap(leaf, caps, on_missing, proc, files)
            for places in by_directory(optional).values():
                if all(leaf.path.parent != places[0].directory for leaf in made):
                    _make_optional(leaf_name, places, files, made)
        except BaseException as error:
            locks.close()
            problems = KernelCgroup(leaf_name, tuple(made), files=files).remove()
            total.leave((total.directory_of(path, uid) for path in above), files)
            if problems and isinstance(error, CgroupError):
                raise _with_problems(error, problems) from error
            raise
    return KernelCgroup(leaf_name, tuple(made), tuple(warnings), files)


def _check_held(leaves: Sequence[Leaf], caps: Caps, prefix: str) -> None:
    held = {controller for leaf in leaves for controller in leaf.controllers}
    for cap in caps.asked():
        if CONTROLLER_OF[cap] not in held:
            raise CgroupError(
                f"the cap {prefix}{cap} of a running kernel cannot be changed",
                cause=f"its cgroup was made without the controller {CONTROLLER_OF[cap]}",
                remedy=f"start it with a cap {prefix}{cap}",
            )


# -- steps of create() --------------------------------------------------------------------------


def _without_devices(caps: Caps, search: Search) -> Caps:
    """``devices.*`` is for the privileged; for all others the wall is that no other node exists."""
    if caps.devices is None:
        return caps
    usable = search.files.privileged() and isinstance(search.find("devices"), Place)
    return caps if usable else caps.without(["devices"])


def _find(
    caps: Caps, user: UserTotal, search: Search, on_missing: MissingCap, scope: Scope | None
) -> tuple[Search, list[Place], list[str]]:
    """Where each controller is that a cap needs, the user's or the kernel's own; the warnings.

    The search is another one if this process has moved to the scope.
    """
    asked = {cap: CONTROLLER_OF[cap] for cap in caps.asked()}
    asked |= {f"user.{cap}": CONTROLLER_OF[cap] for cap in user.caps.asked()}
    search, found = _look(asked.values(), search, scope)
    if user.kernels is not None and not any(isinstance(p, Place) for p in found.values()):
        search, more = _look(OPTIONAL_CONTROLLERS, search, scope, one_is_enough=True)
        found |= more
        places = [p for p in found.values() if isinstance(p, Place)]
        found = {p.controller: p for p in places[:1]} or found
        asked["user.kernels"] = next(iter(found))
    missing = {cap: m.error() for cap, c in asked.items() if isinstance(m := found[c], Missing)}
    warnings = limits.judge(missing, on_missing)
    return search, [place for place in found.values() if isinstance(place, Place)], warnings


def _look(
    controllers: Iterable[str], search: Search, scope: Scope | None, *, one_is_enough: bool = False
) -> tuple[Search, dict[str, Place | Missing]]:
    """Where the controllers are; the scope is left out if those before it have what is needed."""
    found = search.find_all(controllers)
    lacking = [place for place in found.values() if search.scope_helps(place)]
    there = [p for p in found.values() if isinstance(p, Place) and p not in lacking]
    if scope is None or not lacking or (one_is_enough and there):
        return search, found
    search = _enter(search, scope)
    return search, search.find_all(found)


def _enter(search: Search, scope: Scope) -> Search:
    """Move this process to the scope; the search from there, or the one that knows why not."""
    left = search.own
    try:
        scope.enter()
        entered = replace(search, left=left)
        if entered.own is not None and entered.own.name == SCOPE_UNIT:
            v2.move(os.getpid(), entered.own / SCOPE_LEAF, search.files)
            entered = replace(search, left=left)
    except CgroupError as error:
        cause = error.cause or error.fact
        return replace(search, no_scope=Tried(None, Source.SCOPE, cause, error.remedy))
    if entered.in_scope:
        return entered
    cause = f"systemd said that this process is in it, and it is in {entered.own}"
    return replace(search, no_scope=Tried(None, Source.SCOPE, cause))


def _optional(required: Sequence[Place], search: Search) -> list[Place]:
    """Only where the directory is there for this: elsewhere a kernel without caps stays in the
    cgroup that its server is in, and below whatever caps that has. On v2 it can be in no other
    directory than that of its caps, and limits on io hold for the page cache only beside memory."""
    there = {place.controller for place in required}
    chosen = {place.directory for place in required if place.version is Version.V2}
    found = [search.find(c) for c in OPTIONAL_CONTROLLERS if c not in there]
    return [
        place
        for place in found
        if isinstance(place, Place)
        and (
            place.source in (Source.HINT, Source.SCOPE)
            or (place.controller == "memory" and "io" in there and place.version is Version.V2)
        )
        and (place.version is Version.V1 or not chosen or place.directory in chosen)
    ]


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
            continue  # it only accounts, or extends a limit on io to the page cache
        controllers.append(place.controller)
    leaf = Leaf(first.version, first.directory / name, tuple(controllers))
    try:
        files.mkdir(leaf.path)
    except OSError as error:
        raise could_not_be_made(leaf.path, error) from error
    made.append(leaf)
    return leaf


def _make_optional(name: str, places: list[Place], files: Files, made: list[Leaf]) -> None:
    try:
        _make(name, places[:1], places[1:], files, made)
    except CgroupError:
        return  # no cap depends on it; usage() says None


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
    values: dict[str, Any] = {}
    for item in fields(empty):
        known = [v for record in found if (v := getattr(record, item.name)) is not None]
        values[item.name] = known[0] if known else None
    return type(empty)(**values)
