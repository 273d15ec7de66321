"""Paths of the host, resolved and judged before the first system call that changes anything.

The plan compares paths with the home, with the Python environment and with each other, so it gets
them without symlinks. What is exchanged for a link afterwards is refused when it is opened.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Sequence
from typing import Final

from .engine import rootfs
from .engine.idmap import IdPlan
from .engine.rootfs import HostFacts
from .errors import AuditError, MountError, SetupError, describe_errno
from .protocol import LaunchRequest
from .spec import MountMode, SandboxSpec, WorkspaceMode, check_workspace


def working_directory(request: LaunchRequest) -> str:
    """Where the kernel starts: the workspace, resolved.

    Raises:
        SetupError: it does not exist or is not a directory.
        SpecError: it is one that cannot be a workspace.
    """
    path = real_path(request.spec.workspace_path or request.cwd)
    check_workspace(path)
    if request.spec.workspace is not WorkspaceMode.NONE and not os.path.isdir(path):
        raise SetupError(
            f"the workspace {path} is not a directory"
            if os.path.lexists(path)
            else f"the workspace {path} does not exist",
            remedy="make it, or set workspace_path to a folder that exists",
        )
    return path


def check_writable(spec: SandboxSpec, ids: IdPlan, path: str) -> None:
    """A subordinate id owns nothing: a workspace that is to be writable must be so for it.

    Raises:
        SetupError: it is not, and the notebook's first write would fail.
    """
    uid, gid = ids.outside_uid(), ids.outside_gid()
    if spec.workspace is not WorkspaceMode.RW or uid == os.getuid():
        return
    found = os.stat(path)
    bits = found.st_mode >> (6 if found.st_uid == uid else 3 if found.st_gid == gid else 0)
    if bits & 0o3 != 0o3:
        raise SetupError(
            f"the workspace {path} is not writable for the kernel",
            cause=f"it is host id {uid}:{gid} there and the folder's mode is "
            f"{found.st_mode & 0o7777:04o}, owner {found.st_uid}:{found.st_gid}",
            remedy=f"set workspace to 'overlay' or 'ro', or chown {uid}:{gid} the folder",
        )


def check_audit_log(spec: SandboxSpec, cwd: str, facts: HostFacts) -> None:
    """The log is what the kernel did: it must not be able to see or change it.

    ``spec`` and ``cwd`` are resolved already.

    Raises:
        AuditError: the file lies in a folder that is mounted in the sandbox.
    """
    if spec.audit_log is None:
        return
    folder = real_path(os.path.dirname(spec.audit_log))
    inside = [mount.source for mount in spec.mounts] + list(facts.prefixes)
    if spec.workspace is not WorkspaceMode.NONE:
        inside.append(cwd)
    for place in inside:
        if rootfs.is_within(folder, place):
            raise AuditError(
                "the audit log is within the kernel's reach",
                cause=f"{place} is mounted in the sandbox",
                remedy="name a file in a folder that no kernel sees, such as ~/.local/state",
                path=spec.audit_log,
            )


def resolve(spec: SandboxSpec, cwd: str, facts: HostFacts) -> SandboxSpec:
    """The spec with every host path resolved; ``hide`` gets the ends of links to secrets too.

    Raises:
        MountError: a link decides what is mounted that a kernel with this spec can have made.
    """
    secrets = [f"{home}/{name}" for home in facts.homes for name in rootfs.SECRETS]
    hidden = [*spec.hide, *(path for path in secrets if real_path(path) != path)]
    writable = [real_path(m.source) for m in spec.mounts if m.mode is MountMode.RW]
    if spec.workspace is WorkspaceMode.RW:
        writable.append(cwd)
    if spec.workspace_path is not None:
        _follow(spec.workspace_path, writable)
    mounts = [dataclasses.replace(m, source=_follow(m.source, writable)) for m in spec.mounts]
    return dataclasses.replace(
        spec,
        workspace_path=cwd if spec.workspace_path is not None else None,
        mounts=tuple(mounts),
        hide=tuple(dict.fromkeys(p for path in hidden for p in (path, real_path(path)))),
    )


#: As many symbolic links as Linux follows on one path.
_MOST_LINKS: Final = 40


def _follow(path: str, writable: Sequence[str]) -> str:
    """``path`` without symlinks, unless one lies in a folder that kernels can write: with it a
    kernel could have the next one mount whatever of the user's it likes (CVE-2021-30465).

    Each link is read once, and what was found is opened without following any.

    Raises:
        MountError: there is such a link, or there are too many.
    """
    done, rest, links = "/", path.split("/")[::-1], 0
    while rest:
        name = rest.pop()
        if name in ("", ".", ".."):
            done = os.path.dirname(done) if name == ".." else done
            continue
        place = os.path.join(done, name)
        try:
            link = os.readlink(place)
        except OSError:  # no link, or not there: opening it will say so
            done = place
            continue
        if any(rootfs.is_within(place, folder) for folder in writable):
            raise MountError(
                f"{path} cannot be mounted",
                cause=f"{place} is a symbolic link, in a folder that a kernel can write",
                remedy="name the folder that it leads to",
            )
        links += 1
        if links > _MOST_LINKS:
            raise MountError(f"{path} cannot be mounted", cause=describe_errno(errno.ELOOP))
        done = "/" if link.startswith("/") else done
        rest += link.split("/")[::-1]
    return done


def with_links(facts: HostFacts) -> HostFacts:
    """With the places at which start-up files really lie, where the home has links to them."""
    names = [f"{home}/{name}" for home in facts.homes for name in rootfs.EXECUTED_OUTSIDE]
    real = tuple(dict.fromkeys(r for name in names if (r := real_path(name)) != name))
    return dataclasses.replace(facts, executed=real)


def real_path(path: str) -> str:
    """``path`` without symlinks, whether it exists or not.

    Raises:
        SetupError: it was exchanged while it was looked at.
    """
    try:
        return os.path.realpath(path)
    except OSError as error:
        raise SetupError(
            f"{path} cannot be resolved", cause=describe_errno(error.errno or 0)
        ) from error
