"""Descriptors: none of the host's is left (CVE-2024-21626), and the way out through one is shut."""

from __future__ import annotations

import re

import pytest
from escape.attacks import SECRET, Arena, Attack, pair_of_tests
from escape.weaknesses import DESCRIPTORS, Bait, Wall
from integration.sandboxes import inside, run_cell

from sandbox_kernel.errors import SandboxError


def read_each() -> list[str]:
    """Through every descriptor that is open: its text from the beginning."""
    import os

    found = []
    for fd in range(1024):
        try:
            text = os.pread(fd, 200, 0).decode(errors="replace")
        except OSError:
            continue
        if "secret" in text:
            found.append(text)
    return found


def walk_out() -> list[str]:
    """From every folder that is open: what lies in it, and in those above."""
    import os

    found = []
    for fd in range(1024):
        for way in (".", "..", "../../../../../../.."):
            try:
                names = os.listdir(os.open(way, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd))
            except OSError:
                continue
            inside = os.listdir("/")
            if sorted(names) != sorted(inside) and os.fstat(fd).st_dev != os.stat("/").st_dev:
                found.append(f"{fd} {way}")
    return found


ATTACKS = [
    Attack("an open file of the host (CVE-2024-21626)", read_each, [], (Wall.CLOSE,),
           through=[SECRET], baits=(Bait.DESCRIPTOR,)),
    Attack("an open folder of the host (CVE-2024-21626)", walk_out, [],
           (Wall.CLOSE, Wall.LANDLOCK),
           through=[f"{DESCRIPTORS[1]} {way}" for way in (".", "..", "../../../../../../..")],
           baits=(Bait.DESCRIPTOR,)),
]  # fmt: skip


test_is_held, test_gets_through_without_the_wall = pair_of_tests(ATTACKS)


@pytest.mark.needs("landlock")
def test_a_folder_of_the_host_opens_nothing_even_if_it_were_left(arena: Arena) -> None:
    """Landlock alone: what is in the folder can be listed, and nothing of it opened."""

    def open_beyond(fd: int) -> str:
        import os

        from escape.attacker import outcome

        return outcome(lambda: os.close(os.open("file", os.O_RDONLY, dir_fd=fd)))

    weak = arena.box(baits=[Bait.DESCRIPTOR], without=[Wall.CLOSE])
    assert inside(weak.client, open_beyond, DESCRIPTORS[1]) == "EACCES"
    weaker = arena.box(baits=[Bait.DESCRIPTOR], without=[Wall.CLOSE, Wall.LANDLOCK])
    assert inside(weaker.client, open_beyond, DESCRIPTORS[1]) == "0"


def test_a_working_directory_outside_ends_the_start(arena: Arena) -> None:
    """CVE-2024-21626 to the letter: the folder is named through a descriptor that was left."""
    with pytest.raises(SandboxError) as caught:
        arena.box(baits=[Bait.DESCRIPTOR, Bait.CWD], without=[Wall.CLOSE])
    assert re.search("outside the root|is not there inside", str(caught.value))
    arena.host.assert_unchanged()


def test_without_the_look_the_kernel_would_be_outside(arena: Arena) -> None:
    baits = [Bait.DESCRIPTOR, Bait.CWD]
    box = arena.box(baits=baits, without=[Wall.CLOSE, Wall.LOOK_AT_CWD, Wall.LANDLOCK])
    assert run_cell(box.client, "print(open('file').read())").stdout.strip() == SECRET
