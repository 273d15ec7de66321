"""What /proc and /sys would tell, and what could be changed through them."""

from __future__ import annotations

import os

from escape.attacks import Arena, Attack, pair_of_tests
from escape.weaknesses import Wall
from integration.sandboxes import inside

from sandbox_kernel.engine.rootfs.plan import READ_ONLY, THERMAL, masked

#: The list of the security list, word for word, and what was added since.
LISTED = (
    "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
    "/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list",
    "/proc/timer_stats", "/proc/kallsyms", "/proc/kpagecount", "/proc/kpageflags",
    "/proc/kpagecgroup", "/sys/firmware", "/sys/devices/virtual/powercap",
    *(THERMAL.format(cpu) for cpu in range(os.sysconf("SC_NPROCESSORS_CONF"))),
)  # fmt: skip
MASKED = tuple(dict.fromkeys((*LISTED, *masked(os.sysconf("SC_NPROCESSORS_CONF")))))
CAPS = Wall.CAPABILITIES


def look(path: str) -> str:
    """``hidden`` where it is /dev/null or an empty folder that nothing can be put into."""
    import os
    import stat

    try:
        found = os.stat(path)
    except FileNotFoundError:
        return "absent"
    if stat.S_ISCHR(found.st_mode):
        return "hidden" if found.st_rdev == os.makedev(1, 3) else "shown"
    if stat.S_ISDIR(found.st_mode):
        flags = os.statvfs(path)
        return "hidden" if flags.f_files == 2 and not os.listdir(path) else "shown"
    return "shown"


def is_read_only(path: str) -> str:
    import os

    try:
        return "read-only" if os.statvfs(path).f_flag & os.ST_RDONLY else "writable"
    except FileNotFoundError:
        return "absent"


def write(path: str, text: str) -> str:
    from escape.attacker import outcome

    def attempt() -> None:
        with open(path, "w") as file:
            file.write(text)

    return outcome(attempt)


def open_each(paths: list[str]) -> list[str]:
    import os

    from escape.attacker import outcome

    return [outcome(lambda p=path: os.close(os.open(p, os.O_RDONLY))) for path in paths]


def links_of_pid_1() -> list[str]:
    import os

    from escape.attacker import outcome

    return [outcome(os.readlink, f"/proc/1/{name}") for name in ("exe", "cwd", "root", "fd/0")]


def trace_pid_1() -> str:
    """Without any ptrace: its memory, opened for writing."""
    import os

    from escape.attacker import outcome

    return outcome(lambda: os.close(os.open("/proc/1/mem", os.O_RDWR)))


def processes(numbers: list[int]) -> list[int]:
    """Those of the host that can be named."""
    import os

    return [n for n in numbers if os.path.exists(f"/proc/{n}")]


def mask_attack(path: str) -> Attack:
    if os.path.exists(path):
        return Attack(f"masked {path}", look, "hidden", (Wall.MASKS,), "shown", arguments=(path,))
    return Attack(
        f"masked {path}", look, "absent", arguments=(path,),
        cannot_be_shown="this Linux or this machine has no such file",
    )  # fmt: skip


def read_only_attack(path: str) -> Attack:
    if os.path.exists(path):
        return Attack(
            f"read-only {path}", is_read_only, "read-only", (Wall.READ_ONLY,), "writable",
            arguments=(path,),
        )  # fmt: skip
    return Attack(
        f"read-only {path}", is_read_only, "absent", arguments=(path,),
        cannot_be_shown="this Linux has no such file",
    )  # fmt: skip


ATTACKS = [
    *map(mask_attack, MASKED),
    *map(read_only_attack, READ_ONLY),
    Attack("write /proc/sys/net", write, "EROFS", (Wall.READ_ONLY, CAPS),
           arguments=("/proc/sys/net/ipv4/ip_default_ttl", "65")),
    Attack("write /proc/sys/user", write, "EROFS", (Wall.READ_ONLY, CAPS),
           arguments=("/proc/sys/user/max_inotify_instances", "99")),
    Attack("write core_pattern", write, ("EACCES", "EROFS"),
           arguments=("/proc/sys/kernel/core_pattern", "|/tmp/x"),
           cannot_be_shown="Linux itself asks for root of the host"),
    Attack("trigger sysrq", write, ("EACCES", "EROFS", "ENOENT"),
           arguments=("/proc/sysrq-trigger", "h"),
           cannot_be_shown="Linux itself asks for root of the host"),
    Attack("make oneself unkillable", write, "EACCES",
           arguments=("/proc/self/oom_score_adj", "-999"),
           cannot_be_shown="Linux asks for CAP_SYS_RESOURCE of the first user namespace"),
    Attack("write /sys", write, ("EROFS", "EACCES"),
           arguments=("/sys/class/net/eth0/mtu", "9000"),
           cannot_be_shown="the file is root's, whom the id map does not know"),
    Attack("look into pid 1", open_each, ["EACCES"] * 4, (Wall.DUMPABLE,), through=["0"] * 4,
           arguments=([f"/proc/1/{n}" for n in ("environ", "maps", "auxv", "mem")],)),
    Attack("write the memory of pid 1", trace_pid_1, "EACCES", (Wall.DUMPABLE,)),
    Attack("the files of pid 1", links_of_pid_1, ["EACCES"] * 4, (Wall.DUMPABLE,),
           through=["0"] * 4),
    Attack("processes of the host", processes, [], arguments=([os.getpid(), os.getppid()],),
           cannot_be_shown="without a pid namespace there is no pid 1, and the sandbox has no end"),
]  # fmt: skip


test_is_held, test_gets_through_without_the_wall = pair_of_tests(ATTACKS)


def test_what_is_written_to_a_mask_goes_nowhere(arena: Arena) -> None:
    """A mask is /dev/null by its numbers, not by its name (CVE-2025-31133)."""

    def read_back(path: str) -> str:
        try:
            with open(path, "w") as file:
                file.write("x")
        except OSError:
            pass
        with open(path) as file:
            return file.read()

    assert inside(arena.box().client, read_back, "/proc/interrupts") == ""
