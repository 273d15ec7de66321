"""No namespace below the sandbox's own, and none of the host's to enter."""

from __future__ import annotations

import errno
import os
from typing import Any

from escape.attacks import Arena, Attack, number, pair_of_tests
from escape.weaknesses import Wall
from integration.sandboxes import inside

NEW = {
    "mnt": 0x0002_0000, "cgroup": 0x0200_0000, "uts": 0x0400_0000, "ipc": 0x0800_0000,
    "user": 0x1000_0000, "pid": 0x2000_0000, "net": 0x4000_0000, "time": 0x80,
}  # fmt: skip
#: What stands before a namespace of another kind: only a new user namespace would do without.
BEFORE = (Wall.SECCOMP, Wall.CAPABILITIES)


def unshare(flags: int) -> str:
    from escape.attacker import in_child, libc, outcome

    def attempt() -> str:
        import ctypes

        if libc.unshare(flags) == 0:
            return "0"
        raise OSError(ctypes.get_errno(), "")

    return in_child(lambda: outcome(attempt))


def clone(asked: int, flags: int) -> str:
    """A raw clone whose child leaves at once."""
    import os

    from escape.attacker import in_child, raw

    def attempt() -> str:
        import errno

        pid, code = raw(asked, flags | 17, 0, 0, 0, 0)
        if pid == 0:
            os._exit(0)
        if pid < 0:
            return errno.errorcode[code]
        os.waitpid(pid, 0)
        return "0"

    return in_child(attempt)


def become_root() -> str:
    """A nested user namespace in which all capabilities are back: what so many exploits need."""
    from escape.attacker import in_child, libc

    def attempt() -> str:
        if libc.unshare(0x1000_0000) != 0:
            return "refused"
        with open("/proc/self/status") as file:
            full = next(line for line in file if line.startswith("CapEff"))
        return "all capabilities" if full.split()[1] != "0" * 16 else "none"

    return in_child(attempt)


def raise_the_limit() -> str:
    from escape.attacker import outcome

    def attempt() -> None:
        with open("/proc/sys/user/max_user_namespaces", "w") as file:
            file.write("100")

    return outcome(attempt)


def enter(asked: int, kind: str) -> str:
    """The sandbox's own: it is there, and has the same rights as any other."""
    import os

    from escape.attacker import in_child, syscall

    fd = os.open(f"/proc/self/ns/{kind}", os.O_RDONLY)
    try:
        return in_child(lambda: syscall(asked, fd, 0))
    finally:
        os.close(fd)


def namespaces_of_others() -> list[str]:
    """Of pid 1: through them one could leave for wherever it is."""
    import os

    from escape.attacker import outcome

    return [outcome(os.open, f"/proc/1/ns/{k}", os.O_RDONLY) for k in ("mnt", "net", "user")]


def write_maps() -> list[str]:
    from escape.attacker import outcome

    def write(name: str, text: str) -> None:
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)

    return [outcome(write, *pair) for pair in (("uid_map", "0 0 1"), ("setgroups", "allow"))]


def join_by_pidfd(asked: int) -> str:
    """All namespaces of a process at once, by its pidfd: here those of pid 1."""
    import os

    from escape.attacker import in_child, syscall

    fd = os.pidfd_open(1)
    try:
        return in_child(lambda: syscall(asked, fd, 0x0002_0000))
    finally:
        os.close(fd)


def _unshare_attack(kind: str) -> Attack:
    alone = kind == "user"
    walls = (Wall.SECCOMP, Wall.USER_NAMESPACES) if alone else BEFORE
    return Attack(f"unshare {kind}", unshare, "EPERM", walls, arguments=(NEW[kind],))


ATTACKS = [
    *(_unshare_attack(kind) for kind in NEW),
    *(
        Attack(f"clone with a new {kind} namespace", clone, "EPERM",
               (Wall.SECCOMP, Wall.USER_NAMESPACES) if kind == "user" else BEFORE,
               arguments=(number("clone"), NEW[kind]))
        for kind in NEW if kind != "time"
    ),
    Attack("a nested user namespace where only the filter is gone", unshare, ("EPERM", "ENOSPC"),
           (Wall.SECCOMP, Wall.USER_NAMESPACES), arguments=(NEW["user"],)),
    Attack("all capabilities by a nested user namespace", become_root, "refused",
           (Wall.SECCOMP, Wall.USER_NAMESPACES), through="all capabilities"),
    Attack("raise max_user_namespaces", raise_the_limit, ("EROFS", "EACCES"),
           (Wall.READ_ONLY, Wall.CAPABILITIES)),
    *(
        Attack(f"setns {kind}", enter, "EPERM", (Wall.SECCOMP, Wall.CAPABILITIES),
               through=("0", "EINVAL"), arguments=(number("setns"), kind))
        for kind in ("mnt", "net", "uts")
    ),
    Attack("setns by a pidfd of pid 1", join_by_pidfd, "EPERM",
           (Wall.SECCOMP, Wall.CAPABILITIES, Wall.DUMPABLE), through=("0", "EINVAL"),
           arguments=(number("setns"),)),
    Attack("the namespaces of pid 1", namespaces_of_others, ["EACCES"] * 3, (Wall.DUMPABLE,),
           through=["0"] * 3),
    Attack("write the id map again", write_maps, ["EPERM", "EACCES"],
           cannot_be_shown="a map can be written once, whoever asks"),
]  # fmt: skip


test_is_held, test_gets_through_without_the_wall = pair_of_tests(ATTACKS)


def test_each_wall_before_a_user_namespace_holds_alone(arena: Arena) -> None:
    """The probe: ENOSPC is the limit's word, EPERM the filter's."""
    seen: dict[str, Any] = {}
    for wall in (Wall.SECCOMP, Wall.USER_NAMESPACES):
        box = arena.box(without=[wall])
        seen[wall.name] = inside(box.client, unshare, NEW["user"])
    names = [errno.errorcode[n] for n in (errno.ENOSPC, errno.EPERM)]
    assert seen == dict(zip(("SECCOMP", "USER_NAMESPACES"), names, strict=True))


def test_no_namespace_of_the_host_is_shared(arena: Arena) -> None:
    def own() -> dict[str, int]:
        import os

        kinds = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")
        return {kind: os.stat(f"/proc/self/ns/{kind}").st_ino for kind in kinds}

    host = {kind: os.stat(f"/proc/self/ns/{kind}").st_ino for kind in (*NEW,)}
    seen = inside(arena.box().client, own)
    assert [kind for kind in NEW if host[kind] == seen[kind]] == []
    control = inside(arena.box(without=[Wall.NETWORK]).client, own)
    assert [kind for kind in NEW if host[kind] == control[kind]] == ["net"]
