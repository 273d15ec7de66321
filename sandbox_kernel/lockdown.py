"""The supervisor gives up what it needed to build a sandbox, before the kernel may run.

From then on it parses the bytes of a hostile kernel. Whoever takes it over from inside shall gain
as little as can be: no capability, no program, no process, no file of the user's, no signal to a
process outside, no way to another kernel. What remains is in SECURITY.md.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import rundir
from .engine import capabilities, landlock, process, rootfs, seccomp
from .engine.cgroups import KernelCgroup
from .engine.idmap import IdPlan
from .engine.landlock import Access, Grant
from .engine.rootfs import HostFacts
from .spec import MIB, SandboxSpec
from .syscalls import CapabilityBit

#: Bytes. Queues are bounded below this; a multipart message without an end is not, in libzmq.
_MEMORY_MAXIMUM: Final = 1024 * MIB
_READ: Final = Access.READ_FILE | Access.READ_DIR
_READ_WRITE_FILE: Final = Access.READ_FILE | Access.WRITE_FILE
#: Files of a cgroup that take processes.
_MOVES: Final = frozenset({"cgroup.procs", "cgroup.threads", "tasks"})
#: What a cap on a block device is resolved with, when it is changed. The kernel has a /sys as well.
_DISKS: Final = ("/sys/block", "/sys/devices", "/sys/dev", "/proc/self/mountinfo")


@dataclass(frozen=True)
class Needs:
    """What a supervisor still does once its sandbox is built."""

    cgroup: KernelCgroup
    sockets: Sequence[str]
    """Paths of the clients' unix sockets."""
    connection_file: str | None
    """Removed for a client that is gone."""
    ports: Sequence[int]
    """Where the kernel will listen, behind the link."""


@dataclass(frozen=True)
class Rules:
    """The Landlock rules of one supervisor."""

    needs: Needs
    facts: HostFacts
    spec: SandboxSpec
    cwd: str

    @functools.cached_property
    def ruleset(self) -> int | None:
        """What :func:`.landlock.enforce` takes. Made when it is first asked for, best while the
        sandbox is being built, since that takes longer.

        Raises:
            LandlockError: the kernel has Landlock and refused a rule.
        """
        grants = _grants(self.needs, self.facts, self.spec, self.cwd)
        return landlock.prepare(grants, connect=self.needs.ports)


def lock_down(rules: Rules, ids: IdPlan, uid: int, program: bytes) -> None:
    """Called once, with one thread, before the sandbox's workload may run. There is no way back.

    ``uid`` is the supervisor's own on the host. Started by root it stops being root here: the
    launcher removes what only root can. CAP_KILL (over its own user namespace) stays only where the
    kernel is another user of the host, whom no one could kill otherwise.

    Raises:
        SandboxError: something could not be given up; the caller must end.
    """
    ruleset = rules.ruleset
    if ids.privileged:
        capabilities.become(ids.uid, ids.gid, drop_groups=True)
    another = not ids.privileged and ids.outside_uid() != uid
    capabilities.drop_all(keep=[CapabilityBit.KILL] if another else [])
    process.limit_memory(_MEMORY_MAXIMUM)
    process.no_core_dump()
    landlock.enforce(ruleset)
    seccomp.load(program)


def _grants(needs: Needs, facts: HostFacts, spec: SandboxSpec, cwd: str) -> Iterator[Grant]:
    """The connection file may lie anywhere; among the user's own files the launcher removes it."""
    yield from _code(facts, spec)
    yield from _cgroups(needs.cgroup)
    for path in needs.sockets:
        yield Grant(os.path.dirname(path), Access.REMOVE_FILE)
    for above in rundir.emptied_from(needs.sockets):
        yield Grant(str(above), Access.REMOVE_DIR)
    if needs.connection_file:
        folder = os.path.dirname(needs.connection_file)
        if not any(rootfs.is_within(own, folder) for own in (*facts.homes, cwd)):
            yield Grant(folder, Access.REMOVE_FILE)


def _code(facts: HostFacts, spec: SandboxSpec) -> Iterator[Grant]:
    """A module that is imported late, a line of source for a traceback: what the kernel may read
    as well. Not a part of the environment in which something is hidden from it."""
    hidden = [*spec.hide, *(f"{home}/{name}" for home in facts.homes for name in rootfs.SECRETS)]
    for path in (*(path for path, _ in facts.system), *facts.prefixes):
        if not any(rootfs.is_within(secret, path) for secret in hidden):
            yield Grant(path, _READ)


def _cgroups(cgroup: KernelCgroup) -> Iterator[Grant]:
    """The files of the own leaves, and the right to remove those, which is one to the folder above.

    The files of that directory too, not what lies below it: who reached its limits, and the caps of
    all kernels of the user where there are any. Nobody is moved into either: whoever can be frozen
    or killed with a cgroup could be any process of the user.
    """
    for leaf in cgroup.leaves:
        above = leaf.path.parent
        yield Grant(str(leaf.path), _READ | Access.REMOVE_DIR)
        yield from _files(leaf.path, writes=True)
        yield Grant(str(above), Access.REMOVE_DIR)
        yield from _files(above, writes=above.parent in cgroup.shared_by_total)
    for directory in cgroup.shared_by_total:
        yield Grant(str(directory), Access.READ_DIR | Access.REMOVE_DIR)
    for path in _DISKS:
        yield Grant(path, _READ)


def _files(directory: Path, *, writes: bool) -> Iterator[Grant]:
    for entry in os.scandir(directory):
        if entry.is_file(follow_symlinks=False):
            allowed = writes and entry.name not in _MOVES
            yield Grant(entry.path, _READ_WRITE_FILE if allowed else Access.READ_FILE)
