"""Which controllers are delegated to this user, where, and if not: why not and what helps.

Only reads. The answer for one controller is a :class:`Place`, or a :class:`Missing` that names
every directory that was looked at. Sources of a directory, in this order:

1. the ``hint`` of the caller, a path relative to the mount of each hierarchy, such as
   ``/sandbox-kernel/u1000`` (an empty one is none);
2. the cgroup of this process, if it may write there;
3. on v2, ``sandbox-kernel.scope`` of the user's systemd, once this process is in it: the caller
   enters it, by :mod:`.scope`, if the first two do not do;
4. ``<mount>/sandbox-kernel/u<uid>``, which an administrator made (on v1: and chowned).

The roots (``proc``, and through its mountinfo the mounts) are parameters: unit tests build them
in a temporary directory.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from ...errors import CgroupError
from . import v2
from .interface import (
    HINT_VARIABLE,
    SCOPE_UNIT,
    V1_NAMES,
    V1_ONLY,
    Files,
    Place,
    Source,
    Version,
    unescape,
)


@dataclass(frozen=True)
class Hierarchy:
    """One mounted hierarchy, as this process sees it."""

    version: Version
    controllers: frozenset[str]
    """What is bound to it; empty on v2, where each directory has its own list."""
    mount: Path
    read_only: bool
    own: Path | None
    """The directory of this process; ``None`` if it lies outside what is mounted here."""


@dataclass(frozen=True)
class Tried:
    """One directory that a controller is not available in. ``path`` ``None``: nowhere at all."""

    path: Path | None
    source: Source | None
    cause: str
    remedy: str | None = None

    @property
    def where(self) -> str:
        if self.path is None and self.source is Source.SCOPE:
            return SCOPE_UNIT
        return str(self.path)


@dataclass(frozen=True)
class Missing:
    """One controller that is not available, and everything that was looked at."""

    controller: str
    tried: tuple[Tried, ...]

    def error(self) -> CgroupError:
        """The directory that the user should care about first, then the others."""
        first = next((t for t in self.tried if t.remedy), self.tried[0])
        fact = f"controller {self.controller} is not available"
        if first.path is not None:
            fact += f" under {first.path}"
        others = [f"{t.where}: {t.cause}" for t in self.tried if t is not first]
        cause = first.cause + (f" (tried too: {'; '.join(others)})" if others else "")
        path = str(first.path) if first.path is not None else None
        return CgroupError(fact, cause=cause, remedy=first.remedy, path=path)


# -- reading /proc ------------------------------------------------------------------------------


def hierarchies(proc: Path) -> tuple[Hierarchy, ...]:
    """Every mounted hierarchy, the one mounted last at a mount point only.

    Raises:
        CgroupError: ``<proc>/self/mountinfo`` or ``<proc>/self/cgroup`` cannot be read.
    """
    own = _own_paths(_text(proc / "self/cgroup"))
    found: dict[str, Hierarchy] = {}
    for line in _text(proc / "self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        root, point, options = before.split(" ")[3:6]
        kind, _, super_options = after.split(" ")[:3]
        point = unescape(point)
        found.pop(point, None)  # hidden by this mount, whatever it is
        if kind not in ("cgroup", "cgroup2"):
            continue
        version = Version.V1 if kind == "cgroup" else Version.V2
        words = set(super_options.split(","))
        bound = frozenset(words & own.keys()) if version is Version.V1 else frozenset()
        path = own.get(next(iter(bound), "") if version is Version.V1 else "")
        if version is Version.V1 and not bound:
            continue  # name=systemd and the like hold no controller
        read_only = "ro" in options.split(",") or "ro" in words
        inside = _inside(Path(point), unescape(root), path)
        found[point] = Hierarchy(version, bound, Path(point), read_only, inside)
    # A bind of a part comes after the mount of the whole, and shadows nothing.
    return tuple(sorted(found.values(), key=lambda h: h.own is None))


def _own_paths(text: str) -> dict[str, str]:
    """``{controller: path}`` from ``<proc>/self/cgroup``; the key of v2 is ``""``."""
    paths: dict[str, str] = {}
    for line in text.splitlines():
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            if not controller.startswith("name="):
                paths[controller] = path
    return paths


def _inside(mount: Path, root: str, path: str | None) -> Path | None:
    """Where cgroup ``path`` is below a mount that shows the hierarchy from ``root`` on."""
    if path is None or ".." in PurePosixPath(path).parts or path.endswith(" (deleted)"):
        return None
    try:
        return mount / PurePosixPath(path).relative_to(root)
    except ValueError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise CgroupError(
            f"{path} cannot be read", cause=(error.strerror or "").lower(), path=str(path)
        ) from error


# -- looking for a place ------------------------------------------------------------------------


@dataclass(frozen=True)
class Search:
    """For whom, with which hint, and through what it is looked."""

    uid: int
    hint: str | None
    proc: Path
    files: Files
    left: Path | None = None
    """The cgroup that this process was in before it moved to the scope: it is still its own."""
    no_scope: Tried | None = None
    """Why it did not get into the scope, if it tried."""

    @functools.cached_property
    def mounted(self) -> tuple[Hierarchy, ...]:
        """Read once: a search is for one :func:`create` or one :func:`sweep`."""
        return hierarchies(self.proc)

    def find(self, controller: str) -> Place | Missing:
        """The first directory of the written-down order in which the controller can be used."""
        found = [h for h in self.mounted if _may_hold(h, controller)]
        if not found:
            return Missing(controller, (self._nowhere(controller),))
        # On a hybrid machine a controller that is bound to v1 is not on v2.
        bound = [h for h in found if h.version is Version.V1] or found
        tried: list[Tried] = []
        for hierarchy in bound:
            for source, directory in self.candidates(hierarchy):
                if source is Source.SCOPE and not self.in_scope:
                    tried += [self.no_scope] if self.no_scope else []
                    continue
                refused = self._refusal(controller, hierarchy, source, directory)
                if refused is None:
                    return Place(controller, hierarchy.version, directory, source)
                tried.append(replace(refused, source=source))
        return Missing(controller, tuple(tried))

    def find_all(self, controllers: Iterable[str]) -> dict[str, Place | Missing]:
        """Each controller, as :meth:`find`; those of v2 all in one directory.

        There a process is in one cgroup only. Where no directory has them all, it is the first of
        those that have most, and the others are missing.
        """
        found = {controller: self.find(controller) for controller in controllers}
        together = [
            place
            for place in found.values()
            if isinstance(place, Place) and place.version is Version.V2
        ]
        if len({place.directory for place in together}) < 2:
            return found
        best: dict[str, Place | Missing] = {}
        for place in together:
            here = {p.controller: self._only_in(place, p) for p in together}
            if _count(here) > _count(best):
                best = here
        return found | best

    def _only_in(self, chosen: Place, wanted: Place) -> Place | Missing:
        """``wanted``, but in the directory of ``chosen``."""
        hierarchy = next(h for h in self.mounted if _may_hold(h, wanted.controller))
        directory, source = chosen.directory, chosen.source
        refused = self._refusal(wanted.controller, hierarchy, source, directory)
        if refused is None:
            return replace(wanted, directory=directory, source=source)
        cause = "other caps of this kernel are held elsewhere, and on v2 it is in one cgroup only"
        elsewhere = Tried(wanted.directory, wanted.source, cause)
        return Missing(wanted.controller, (replace(refused, source=source), elsewhere))

    def scope_helps(self, found: Place | Missing) -> bool:
        """Whether the scope comes before what was found, and has not been tried."""
        if self.in_scope or self.no_scope:
            return False
        if isinstance(found, Place) and found.source is not Source.CONVENTIONAL:
            return False
        holding = [h.version for h in self.mounted if _may_hold(h, found.controller)]
        return bool(holding) and Version.V1 not in holding

    @property
    def in_scope(self) -> bool:
        """Whether this process is in the scope."""
        return any(_scope_above(h.own) is not None for h in self.mounted)

    @property
    def own(self) -> Path | None:
        """The cgroup of this process on v2."""
        return next((h.own for h in self.mounted if h.version is Version.V2), None)

    def candidates(self, hierarchy: Hierarchy) -> list[tuple[Source, Path]]:
        """Where kernels of this user may be, in the order in which it is tried."""
        found: list[tuple[Source, Path]] = []
        if self.hint:
            found.append((Source.HINT, hierarchy.mount / check_hint(self.hint)))
        is_v2 = hierarchy.version is Version.V2
        own = (is_v2 and self.left) or hierarchy.own
        scope = _scope_above(own)
        if own is not None and scope is None:
            # Processes that v2.prepare() moved out of the way still own what is above.
            found.append((Source.OWN, own.parent if own.name == v2.HOST_LEAF else own))
        if is_v2:
            above = scope or _scope_above(hierarchy.own)
            found.append((Source.SCOPE, above or self._usual_scope(hierarchy.mount)))
        conventional = hierarchy.mount / "sandbox-kernel" / f"u{self.uid}"
        found.append((Source.CONVENTIONAL, conventional))
        return found

    def _usual_scope(self, mount: Path) -> Path:
        """Where the scope is below a system's systemd, seen from outside of it."""
        user = f"user.slice/user-{self.uid}.slice/user@{self.uid}.service"
        return mount / user / "app.slice" / SCOPE_UNIT

    def _nowhere(self, controller: str) -> Tried:
        """Why no mounted hierarchy has the controller."""
        wanted = V1_NAMES.get(controller, controller)
        try:
            listed = (self.proc / "cgroups").read_text()
        except OSError:
            listed = ""
        for line in listed.splitlines():
            name, _, _, enabled = (line.split() + [""] * 4)[:4]
            if name == wanted and enabled == "0":
                return Tried(
                    None, None, f"it was switched off at boot (cgroup_disable={wanted})",
                    f"boot without cgroup_disable={wanted}",
                )  # fmt: skip
        if controller in V1_ONLY and not any(h.version is Version.V1 for h in self.mounted):
            return Tried(None, None, "cgroup v2 has no such controller")
        if wanted in _own_paths(_text(self.proc / "self/cgroup")):
            return Tried(None, None, "its hierarchy is not mounted in this mount namespace")
        return Tried(None, None, "no cgroup file system that is mounted has it")

    def _refusal(
        self, controller: str, hierarchy: Hierarchy, source: Source, path: Path
    ) -> Tried | None:
        """Why the controller cannot be used in this directory; ``None`` if it can."""
        owner = str(self.uid)
        is_v2 = hierarchy.version is Version.V2
        names = ("cgroup.procs", "cgroup.subtree_control", "cgroup.threads") if is_v2 else ()
        chown = f"chown {owner} " + " ".join([str(path)] + [str(path / name) for name in names])
        if not path.is_dir():
            if hierarchy.read_only:
                return _read_only(path, hierarchy)
            remedy = f"as root: mkdir -p {path} && {chown}"
            return Tried(path, None, "no such directory", remedy)
        if not self.files.writable(path):
            if hierarchy.read_only:
                return _read_only(path, hierarchy)
            cause = f"not writable for uid {owner}, it belongs to uid {path.stat().st_uid}"
            # Nobody should chown the cgroup that a login or the whole machine runs in.
            return Tried(path, None, cause, None if source is Source.OWN else f"as root: {chown}")
        if is_v2:
            return self._v2_refusal(controller, hierarchy, source, path)
        return None

    def _v2_refusal(
        self, controller: str, hierarchy: Hierarchy, source: Source, path: Path
    ) -> Tried | None:
        if controller not in _words(path / "cgroup.controllers"):
            return _not_handed_down(controller, hierarchy.mount, path)
        refused = None
        if controller not in _words(path / "cgroup.subtree_control"):
            refused = self._cannot_enable(controller, source, path)
        return refused or self._cannot_join(hierarchy, source, path)

    def _cannot_enable(self, controller: str, source: Source, path: Path) -> Tried | None:
        control = path / "cgroup.subtree_control"
        if not self.files.writable(control):
            cause = f"{controller} is not in {control}, and that is not writable"
            return Tried(path, None, cause, f"as root: chown {self.uid} {control}")
        count = len(self.files.pids(path))
        # The root of the hierarchy alone may have both processes and controlled children.
        is_root = not (path / "cgroup.type").exists()
        if not count or is_root or v2.can_empty(source, path, self.files):
            return None
        cause = f"{controller} is not in {control}, and cannot be while {count} processes are there"
        return Tried(path, None, cause, self._move_remedy(source, path))

    def _cannot_join(self, hierarchy: Hierarchy, source: Source, path: Path) -> Tried | None:
        """A move on v2 needs write access to cgroup.procs of the common ancestor too."""
        own = hierarchy.own
        if own is None:
            cause = "this process is in a cgroup outside of what is mounted here"
            return Tried(path, None, cause, self._scope_remedy)
        common = path
        while common != own and common not in own.parents:
            common = common.parent
        procs = common / "cgroup.procs"
        if self.files.writable(procs):
            return None
        cause = f"this process is in {own}, and to move from there takes write access to {procs}"
        return Tried(path, None, cause, self._scope_remedy)

    def _move_remedy(self, source: Source, path: Path) -> str | None:
        if source is Source.OWN:
            return self._scope_remedy
        return f"move the processes of {path} to a child of it"

    @property
    def _scope_remedy(self) -> str | None:
        """What systemd would not do for us it would not do for the user either."""
        return None if self.no_scope else _SCOPE


def check_hint(hint: str) -> str:
    """The hint as a path relative to a mount; a leading slash means that mount too.

    Raises:
        CgroupError: it leads out of the mount.
    """
    parts = hint.split("/")
    if not {".", ".."} & set(parts) and "\0" not in hint:
        return "/".join(part for part in parts if part)
    raise CgroupError(
        f"{HINT_VARIABLE} = {hint!r} is not possible",
        cause="it must be a path below the mount of each hierarchy, without . and ..",
    )


_SCOPE = "start the server in a scope of its own: systemd-run --user --scope -p Delegate=yes"


def _scope_above(own: Path | None) -> Path | None:
    """The directory of the scope that ``own`` is in."""
    if own is None:
        return None
    return next((p for p in (own, *own.parents) if p.name == SCOPE_UNIT), None)


def _count(found: Mapping[str, Place | Missing]) -> int:
    return sum(isinstance(place, Place) for place in found.values())


def _may_hold(hierarchy: Hierarchy, controller: str) -> bool:
    if hierarchy.version is Version.V1:
        return V1_NAMES.get(controller, controller) in hierarchy.controllers
    return controller in _words(hierarchy.mount / "cgroup.controllers")


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _read_only(path: Path, hierarchy: Hierarchy) -> Tried:
    cause = f"{hierarchy.mount} is mounted read-only"
    return Tried(path, None, cause, "mount it writable; a container needs it from its run-time")


def _not_handed_down(controller: str, mount: Path, path: Path) -> Tried:
    """Some directory above does not name the controller in its cgroup.subtree_control."""
    cause = f"{controller} is not in {path / 'cgroup.controllers'}"
    above = [p for p in (path, *path.parents) if p == mount or mount in p.parents][1:]
    withheld = [p for p in above if controller not in _words(p / "cgroup.subtree_control")]
    for parent in withheld:
        if re.fullmatch(r"user@[0-9]+\.service|user-[0-9]+\.slice|user\.slice", parent.name):
            remedy = (
                "as root: systemctl edit user@.service, with the lines [Service] and "
                "Delegate=cpu cpuset io memory pids, then log in anew"
            )
            return Tried(path, None, cause, remedy)
    writes = [f"echo +{controller} > {p / 'cgroup.subtree_control'}" for p in reversed(withheld)]
    return Tried(path, None, cause, "as root: " + " && ".join(writes) if writes else None)
