"""Paths of the host, resolved and judged before the first system call that changes anything.

The plan compares paths with the home, with the Python environment and with each other, so it gets
them without symlinks. What is exchanged for a link afterwards is refused when it is opened.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Final

from .engine import rootfs
from .engine.idmap import IdPlan
from .engine.rootfs import HostFacts
from .errors import MountError, SetupError, describe_errno
from .protocol import LaunchRequest
from .spec import MountMode, SandboxSpec, WorkspaceMode, check_workspace

#: As Linux has it: more are a loop.
_MOST_LINKS: Final = 40


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


def resolve(spec: SandboxSpec, cwd: str, facts: HostFacts) -> SandboxSpec:
    """The spec with every host path resolved; ``hide`` gets the ends of links to secrets too.

    Raises:
        MountError: a link decides what is mounted that a kernel with this spec can have made.
    """
    secrets = [f"{home}/{name}" for home in facts.homes for name in rootfs.SECRETS]
    hidden = [*spec.hide, *(path for path in secrets if real_path(path) != path)]
    _check_links(spec, cwd)
    return dataclasses.replace(
        spec,
        workspace_path=cwd if spec.workspace_path is not None else None,
        mounts=tuple(dataclasses.replace(m, source=real_path(m.source)) for m in spec.mounts),
        hide=tuple(dict.fromkeys(p for path in hidden for p in (path, real_path(path)))),
    )


def _check_links(spec: SandboxSpec, cwd: str) -> None:
    """What an earlier kernel left in its workspace must not lead the next one's mounts elsewhere.

    Links outside of what is writable inside are the user's own, and are followed.
    """
    named = [m.source for m in spec.mounts]
    if spec.workspace_path is not None:
        named.append(spec.workspace_path)
    writable = [real_path(m.source) for m in spec.mounts if m.mode is MountMode.RW]
    if spec.workspace is WorkspaceMode.RW:
        writable.append(cwd)
    for path in named:
        for link in links_on(path):
            for folder in writable:
                if rootfs.is_within(os.path.dirname(link), folder):
                    raise MountError(
                        f"{real_path(path)} cannot be shown inside",
                        cause=f"the way to it, {path}, leads through the symbolic link {link}, and "
                        f"{folder} is writable inside: a kernel may have made that link",
                        remedy="name the folder itself that is meant",
                    )


def links_on(path: str) -> list[str]:
    """Every symbolic link that is followed on the way along ``path``, by its real place."""
    found: list[str] = []
    here, names = "/", path.split("/")
    while names and len(found) < _MOST_LINKS:
        name = names.pop(0)
        if name in ("", "."):
            continue
        if name == "..":
            here = os.path.dirname(here)
            continue
        here = os.path.join(here, name)
        try:
            to = os.readlink(here)
        except OSError:
            continue  # not a link, or not there: then it is no way to anything
        found.append(here)
        here = "/" if to.startswith("/") else os.path.dirname(here)
        names = to.split("/") + names
    return found


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
