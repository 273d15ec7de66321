"""What a supervisor made in the file system, written down for whoever outlives it.

The supervisor records each file on a pipe to the launcher as soon as it is there. If it is killed,
the launcher removes what was recorded *and is still that file*: a successor may have put another in
its place, and a person may have put one there before.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass
from typing import Final

#: Exit status of a supervisor whose client is gone, and who may not remove all of what it recorded.
LEFT_BEHIND: Final = 3


@dataclass(frozen=True)
class FileId:
    """One file for as long as it is not changed: device, inode, time of its last change."""

    path: str
    device: int
    inode: int
    changed_ns: int

    @classmethod
    def of(cls, path: str) -> FileId | None:
        """The file that is at ``path`` now, a link itself and not what it points to."""
        try:
            found = os.lstat(path)
        except (OSError, ValueError):  # ValueError: a NUL, which no path has
            return None
        return cls(path, found.st_dev, found.st_ino, found.st_ctime_ns)

    def remove(self) -> None:
        """Unlink it if it is still the same. Never raises."""
        if FileId.of(self.path) == self:
            with contextlib.suppress(OSError):
                os.unlink(self.path)


class Leftovers:
    """The supervisor's end of the pipe."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def record(self, path: str) -> None:
        """Called as soon as ``path`` is there; one that is not there needs no removing.

        A launcher that has died removes nothing, and stops no kernel.
        """
        found = FileId.of(path)
        if found is not None and self._fd >= 0:
            line = json.dumps([found.path, found.device, found.inode, found.changed_ns])
            with contextlib.suppress(BrokenPipeError):
                os.write(self._fd, line.encode() + b"\n")

    def close(self) -> None:
        """Called before the supervisor hears the kernel: the launcher removes what is written here,
        so nobody who took the supervisor over may write."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def parse(raw: bytes) -> list[FileId]:
    """Called by the launcher with all that came through the pipe."""
    files = []
    for line in raw.splitlines():
        with contextlib.suppress(ValueError, TypeError, OverflowError, RecursionError):
            path, device, inode, changed = json.loads(line)
            if isinstance(path, str) and path.startswith("/"):
                files.append(FileId(path, int(device), int(inode), int(changed)))
    return files
