"""Mounts: none can be changed from inside, and none can be led astray while it is made."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from escape.attacks import SECRET, Arena, Attack, number, pair_of_tests
from escape.weaknesses import Bait, Wall
from integration.sandboxes import inside, run_cell, started

from sandbox_kernel.errors import SandboxError

MOUNT = (Wall.SECCOMP, Wall.CAPABILITIES, Wall.LANDLOCK)
MS_REMOUNT_BIND, MS_BIND, MNT_DETACH = 0x1020, 0x1000, 2


def mount(asked: int, source: str, target: str, flags: int) -> str:
    from escape.attacker import in_child, syscall

    given = [source.encode() + b"\0", target.encode() + b"\0", b"none\0"]
    return in_child(lambda: syscall(asked, *given, flags, 0))


def uncover(asked: int, target: str) -> str:
    """Take a mask off. The child's mounts are the sandbox's own: what is gone is gone."""
    from escape.attacker import in_child, syscall

    return in_child(lambda: syscall(asked, target.encode() + b"\0", 2))


def writable_system() -> list[str]:
    """Folders of the system and of the root in which something can be made."""
    import os

    found = []
    for folder in ("/", "/usr", "/usr/bin", "/etc", "/etc/ssl", "/bin", "/lib", "/var", "/sys"):
        try:
            os.mkdir(f"{folder}/escape-probe")
            os.rmdir(f"{folder}/escape-probe")
            found.append(folder)
        except OSError:
            pass
    return found


ATTACKS = [
    Attack("make the root writable", mount, "EPERM", MOUNT, through=("0", "EINVAL"),
           arguments=(number("mount"), "none", "/", MS_REMOUNT_BIND)),
    Attack("bind over /etc", mount, "EPERM", MOUNT,
           arguments=(number("mount"), "/tmp", "/etc", MS_BIND)),
    Attack("take the mask off /proc/keys", uncover, "EPERM", MOUNT,
           arguments=(number("umount2"), "/proc/keys")),
    Attack("a writable system", writable_system, [],
           cannot_be_shown="its files are root's, whom the id map does not know"),
]  # fmt: skip


test_is_held, test_gets_through_without_the_wall = pair_of_tests(ATTACKS)


# -- symlinks that are exchanged while a mount is made (CVE-2021-30465, CVE-2026-87766) ------------

ROUNDS = 12


def swap_for_ever(folder: str) -> int:
    """Runs in a kernel that has the folder: ``data`` and ``link`` change places without an end.

    In a process of its own; its pid. It has swapped before this returns.
    """
    import ctypes
    import os
    import time

    libc = ctypes.CDLL(None)
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        first, second = f"{folder}/data".encode(), f"{folder}/link".encode()
        said = False
        while True:
            libc.renameat2(-100, first, -100, second, 2)
            if not said:
                os.write(writer, b"1")
                said = True
            time.sleep(0.0001)
    os.close(writer)
    os.read(reader, 1)
    os.close(reader)
    return pid


@pytest.fixture
def project(arena: Arena) -> Iterator[Path]:
    """A writable folder of two kernels: ``data``, and ``link`` that leads to the secrets."""
    folder = arena.host.home / "shared"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "file").write_text("harmless")
    (folder / "link").symlink_to(arena.host.weak / "secrets")
    yield folder
    shutil.rmtree(folder)


@contextlib.contextmanager
def swapping(arena: Arena, folder: Path) -> Iterator[None]:
    """A hostile kernel of the same user, at work in ``folder``."""
    with started(arena._folder, cwd=folder) as (_, client):
        inside(client, swap_for_ever, str(folder))
        yield


def rounds(arena: Arena, project: Path, config: dict[str, Any], read: str) -> list[str]:
    """What each start showed at ``read``, or ``refused``."""
    seen = []
    for _ in range(ROUNDS):
        try:
            with started(arena._folder, config, cwd=project) as (_, client):
                seen.append(run_cell(client, f"print(open({read!r}).read())").stdout.strip())
        except SandboxError:
            seen.append("refused")
    return seen


def test_a_source_that_is_exchanged_never_shows_a_secret(arena: Arena, project: Path) -> None:
    config = {"mounts": [{"source": str(project / "data"), "target": "/data"}]}
    with swapping(arena, project):
        seen = rounds(arena, project, config, "/data/file")
    assert set(seen) <= {"harmless", "refused", ""}, seen
    assert "harmless" in seen, "no start got as far as to show anything"


def test_a_target_that_is_exchanged_never_lands_elsewhere(arena: Arena, project: Path) -> None:
    source = arena.host.weak / "secrets"
    mounts = [{"source": str(source), "target": str(project / "data"), "mode": "ro"}]
    before = sorted(source.iterdir())
    with swapping(arena, project):
        seen = rounds(arena, project, {"mounts": mounts}, str(project / "data" / "file"))
    assert set(seen) <= {SECRET, "refused", "harmless", ""}, seen
    assert sorted(source.iterdir()) == before


def test_a_source_that_a_kernel_made_a_link_is_refused(arena: Arena, project: Path) -> None:
    """Without any race: the kernel that ran before has put a link in its place."""
    config = {"mounts": [{"source": str(project / "link"), "target": "/data"}]}
    with pytest.raises(SandboxError, match="is a symbolic link, in a folder that a kernel can"):
        with started(arena._folder, config, cwd=project):
            pass
    with arena.weakened(Wall.OWN_LINKS), started(arena._folder, config, cwd=project) as (_, client):
        assert run_cell(client, "print(open('/data/file').read())").stdout.strip() == SECRET


def test_a_source_that_is_a_link_when_it_is_opened(arena: Arena, project: Path) -> None:
    """The same without luck: the exchange happens between the check and the opening."""
    mounts = [{"source": str(project / "data"), "target": "/data"}]
    config = {"mounts": mounts, "workspace": "ro"}

    def start(*names: Wall | Bait) -> str:
        with arena.weakened(Bait.EXCHANGE, *names):
            try:
                with started(arena._folder, config, cwd=project) as (_, client):
                    return run_cell(client, "print(open('/data/file').read())").stdout.strip()
            except SandboxError as error:
                return str(error)
            finally:
                (project / "data").rename(project / "link")
                (project / "aside").rename(project / "data")

    seen = start()
    assert "cannot be mounted" in seen and "ELOOP" in seen, seen
    assert start(Wall.NO_SYMLINKS) == SECRET
