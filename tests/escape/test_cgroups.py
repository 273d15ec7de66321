"""Cgroups from inside: no file of theirs, and no name of the host's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from escape.attacks import Arena, Attack, every, number, shown
from escape.weaknesses import Wall
from integration.remains import cgroup_directories

MOUNT = (Wall.SECCOMP, Wall.CAPABILITIES, Wall.LANDLOCK)
#: What a mount of an old hierarchy would be, as far as this machine has any.
V1 = Path("/sys/fs/cgroup/memory/cgroup.procs").exists()
pytestmark = pytest.mark.needs("cgroups")


def mount_cgroup(asked: int, kind: str, options: str) -> str:
    """Its release_agent is a program that the host's Linux runs."""
    import os

    from escape.attacker import in_child, syscall

    os.makedirs("/tmp/cgroup", exist_ok=True)
    given = [kind.encode() + b"\0", b"/tmp/cgroup\0", kind.encode() + b"\0"]
    return in_child(lambda: syscall(asked, *given, 0, options.encode() + b"\0"))


def cgroup_mounts() -> list[str]:
    with open("/proc/self/mountinfo") as file:
        kinds = [line.split(" - ")[1].split()[0] for line in file]
    return sorted({kind for kind in kinds if kind.startswith("cgroup")})


def names() -> list[str]:
    """Of the own cgroup in each hierarchy."""
    with open("/proc/self/cgroup") as file:
        return sorted({line.rstrip("\n").split(":", 2)[2] for line in file})


def leave(given: str) -> str:
    """Out of the caps: into the directory that was handed to the user."""
    import glob
    import os

    outcomes = []
    for path in (f"/sys/fs/cgroup/{given}", *glob.glob(f"/sys/fs/cgroup/*/{given}")):
        try:
            os.mkdir(f"{path}/escape")
            os.rmdir(f"{path}/escape")
            outcomes.append("made")
        except OSError as error:
            outcomes.append(type(error).__name__)
    return "made" if "made" in outcomes else "not there"


def bomb() -> str:
    """Directories of cgroups, each of which costs memory of the host's Linux."""
    import os

    from escape.attacker import outcome

    return outcome(lambda: [os.mkdir(f"/sys/fs/cgroup/bomb{n}") for n in range(10)])


GIVEN = os.environ.get("SANDBOX_KERNEL_CGROUP", "").strip("/")
ATTACKS = [
    Attack("no cgroup file system inside", cgroup_mounts, [], (Wall.CGROUP_FILES,),
           through=(["cgroup"], ["cgroup2"], ["cgroup", "cgroup2"])),
    Attack("out of the own cgroup", leave, "not there", (Wall.CGROUP_FILES,), through="made",
           arguments=(GIVEN,)),
    Attack("the host's names of cgroups (CVE-2023-25809)", names, ["/"], (Wall.CGROUP_NAMESPACE,),
           through=["see below"]),
    Attack("mount cgroup v2", mount_cgroup, "EPERM", MOUNT, through=("0", "EBUSY"),
           arguments=(number("mount"), "cgroup2", "")),
    Attack("a bomb of cgroup directories", bomb, ("EROFS", "EACCES", "EPERM", "ENOENT"),
           cannot_be_shown="a directory of the user's own is in 'out of the own cgroup'; the top "
           "is root's"),
]  # fmt: skip
if V1:
    ATTACKS.append(
        Attack("mount cgroup v1 (CVE-2022-0492)", mount_cgroup, "EPERM", MOUNT,
               arguments=(number("mount"), "cgroup", "memory"))
    )  # fmt: skip


@every(ATTACKS)
def test_is_held(attack: Attack, arena: Arena) -> None:
    before = set(cgroup_directories())
    arena.attack(attack)
    assert {p for p in set(cgroup_directories()) ^ before if "kernel-" not in str(p)} == set()


@shown([a for a in ATTACKS if a.code is not names])
def test_gets_through_without_the_wall(attack: Attack, arena: Arena) -> None:
    arena.control(attack)


def test_without_the_namespace_the_host_shows(arena: Arena) -> None:
    from integration.sandboxes import inside

    seen = inside(arena.box(without=[Wall.CGROUP_NAMESPACE]).client, names)
    assert any(GIVEN in name and "kernel-" in name for name in seen), seen
