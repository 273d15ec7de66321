"""An ordinary user's machine that lacks something, made of an ordinary user's own namespaces.

Run as a script with one JSON argument, the fields of :class:`Lack`: it enters a user and a mount
namespace of its own, in which it may forbid and hide things, and runs a command there. The
command's first ``exec`` takes its capabilities away, and it is an ordinary user again.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from sandbox_kernel.syscalls import CloneFlag, MountAttr, MountFlag, mount, mount_setattr, unshare


@dataclass(frozen=True)
class Lack:
    """What is not to be had."""

    scratch: str
    """A folder for the whiteouts."""
    sysctl: tuple[tuple[str, str], ...] = ()
    """(path below /proc/sys, value)."""
    absent: tuple[str, ...] = ()
    """Files that are not there, whatever links lead to them."""
    read_only: tuple[str, ...] = ()
    """Mount points that are mounted read-only."""
    replaced: Sequence[tuple[str, str]] = ()
    """(folder, folder that is in its place)."""


def run(lack: Lack, command: list[str], **options: object) -> subprocess.CompletedProcess[str]:
    """Run ``command`` where that is lacking; both outputs as text."""
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [sys.executable, __file__, json.dumps(asdict(lack)), *command],
        capture_output=True, text=True, check=False, **options,
    )  # fmt: skip


# -- in the process -------------------------------------------------------------------------------


def enter(lack: Lack) -> None:
    """Own namespaces with the user's own id, then everything that is lacking."""
    uid, gid = os.getuid(), os.getgid()
    unshare(CloneFlag.NEWUSER)
    for name, text in (
        ("setgroups", "deny"), ("gid_map", f"{gid} {gid} 1"), ("uid_map", f"{uid} {uid} 1")
    ):  # fmt: skip
        Path("/proc/self", name).write_text(text)
    unshare(CloneFlag.NEWNS)
    mount("none", "/", "", MountFlag.REC | MountFlag.SLAVE)
    for folder, other in lack.replaced:
        mount(other, folder, "", MountFlag.BIND | MountFlag.REC)
    for point in lack.read_only:
        fd = os.open(point, os.O_PATH)
        mount_setattr(fd, set_=MountAttr.RDONLY)
        os.close(fd)
    for folder in {os.path.dirname(os.path.realpath(path)) for path in lack.absent}:
        _hide(folder, lack)
    for path, value in lack.sysctl:
        Path("/proc/sys", path).write_text(value)


def _hide(folder: str, lack: Lack) -> None:
    """An overlay without an upper layer; a whiteout is the absence of a file."""
    layer = Path(lack.scratch, f"absent{folder.replace('/', '-')}")
    layer.mkdir()
    for path in lack.absent:
        if os.path.dirname(os.path.realpath(path)) == folder:
            for name in {os.path.basename(path), os.path.basename(os.path.realpath(path))}:
                os.mknod(layer / name, 0o020000, os.makedev(0, 0))
    mount("overlay", folder, "overlay", MountFlag.NONE, f"lowerdir={layer}:{folder},userxattr")


if __name__ == "__main__":
    fields = json.loads(sys.argv[1])
    enter(Lack(**fields))
    os.execv(sys.argv[2], sys.argv[2:])
