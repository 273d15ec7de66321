"""What the plan has to know of this host: read once, before anything is unshared."""

from __future__ import annotations

import grp
import os
import pwd
import site
import sys
from dataclasses import dataclass

from ...errors import MountError


@dataclass(frozen=True)
class HostFacts:
    """The user, the Python environment and the system directories of this host."""

    user: str
    group: str
    home: str
    prefixes: tuple[str, ...]
    """Directories that make up the Python environment, absolute and resolved."""
    system: tuple[tuple[str, str | None], ...] = ()
    """(path, link target or None) of /usr, /bin, /lib … as far as they exist."""
    aliases: tuple[tuple[str, str], ...] = ()
    """(path, real path) of environment directories that are reached through a symlink."""
    other_homes: tuple[str, ...] = ()
    """Where logins look besides ``home``: the password database's home, if it is another one."""
    executed: tuple[str, ...] = ()
    """Where the names of ``plan.EXECUTED_OUTSIDE`` really lie, as far as they are links."""
    processors: int = 1
    """How many the machine can have, those that are off included."""

    @property
    def homes(self) -> tuple[str, ...]:
        """Every folder whose secrets and start-up files are guarded."""
        return (self.home, *self.other_homes)


#: Directories on ``sys.path`` that are not the environment, whatever put them there.
_NEVER = (
    "/",
    "/dev",
    "/etc",
    "/home",
    "/proc",
    "/root",
    "/run",
    "/sys",
    "/tmp",
    "/var",
    "/var/tmp",
)

#: Top-level directories that the sandbox has for itself.
_KEPT = ("/boot", "/dev", "/etc", "/proc", "/run", "/sys")

#: What an installed system is; everything else of ``/`` stays outside.
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")


def collect_facts() -> HostFacts:
    """Called by the launcher, which runs in the Python environment that the kernel will have.

    Raises:
        MountError: the user has no entry in the password database, or a home that cannot be one.
    """
    uid, gid = os.getuid(), os.getgid()
    try:
        entry = pwd.getpwuid(uid)
    except KeyError as error:
        raise MountError(
            f"uid {uid} has no name",
            cause="the password database has no entry for it",
            path="/etc/passwd",
        ) from error
    try:
        group = grp.getgrgid(gid).gr_name
    except KeyError:
        group = str(gid)
    named = os.path.normpath(os.environ.get("HOME") or entry.pw_dir)
    home = os.path.realpath(named)  # as the workspace is: the two are compared
    if not named.startswith("/") or not _may_be_home(home):
        named = home = f"/home/{entry.pw_name}"
    prefixes, aliases = python_prefixes(home)
    if named != home:
        aliases = (*aliases, (named, home))
    other = os.path.realpath(entry.pw_dir or "/")
    guard = other != home and (other == "/root" or other not in _NEVER)
    other_homes = (other,) if guard else ()
    return HostFacts(
        entry.pw_name, group, home, prefixes, system_directories(), aliases, other_homes,
        processors=os.sysconf("SC_NPROCESSORS_CONF"),
    )  # fmt: skip


def _may_be_home(path: str) -> bool:
    """A file system of the sandbox's own will be mounted there: not over the system."""
    top = "/" + path.split("/")[1]
    return path == "/root" or (path not in _NEVER and top not in (*_SYSTEM, *_KEPT))


def system_directories() -> tuple[tuple[str, str | None], ...]:
    """(path, link target or None) of the system directories that exist."""
    found: list[tuple[str, str | None]] = []
    for path in _SYSTEM:
        if os.path.islink(path):
            found.append((path, os.readlink(path)))
        elif os.path.isdir(path):
            found.append((path, None))
    return tuple(found)


def python_prefixes(home: str) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """The environment of this interpreter: (real directories, (alias, real) pairs).

    The prefix (a venv), its base prefix, the folder that the executable really lies in, user site
    if it is used, and every directory on ``sys.path``; never one that would show the whole home or
    stand in for something that the sandbox has for itself.
    """
    candidates = [sys.prefix, sys.exec_prefix, sys.base_prefix, sys.base_exec_prefix]
    if site.ENABLE_USER_SITE:
        candidates.append(site.getusersitepackages())
    candidates += [path for path in sys.path if path and os.path.isdir(path)]
    candidates.append(os.path.dirname(os.path.realpath(sys.executable)))
    real: list[str] = []
    aliases: list[tuple[str, str]] = []
    for candidate in candidates:
        path = os.path.abspath(candidate)
        resolved = os.path.realpath(path)
        if (
            not os.path.isdir(resolved)
            or resolved in _NEVER
            or (home + "/").startswith(resolved + "/")
        ):
            continue
        if path != resolved:
            aliases.append((path, resolved))
        real.append(resolved)
    return _without_nested(real), tuple(dict.fromkeys(aliases))


def _without_nested(paths: list[str]) -> tuple[str, ...]:
    """Drop what lies below another entry or below /usr, which is bound whole."""
    kept: list[str] = []
    for path in sorted(set(paths)):
        if not any(path == k or path.startswith(k + "/") for k in [*kept, "/usr"]):
            kept.append(path)
    return tuple(kept)
