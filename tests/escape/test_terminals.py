"""Typing into somebody's terminal, and the terminals that there are."""

from __future__ import annotations

from escape.attacks import Attack, pair_of_tests
from escape.weaknesses import Wall

#: TIOCSTI, and what a filter that compares 64 bits would miss.
TIOCSTI = 0x5412
TIOCLINUX = 0x541C
HIGH_BITS = 0xBAD_0000_0000


def type_into(request: int) -> str:
    """Into a pseudo terminal of the sandbox's own that is the session's: the best case."""
    import os

    from escape.attacker import in_child, raw

    def attempt() -> str:
        import errno
        import fcntl
        import platform
        import termios

        os.setsid()
        _, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        ioctl = 29 if platform.machine() == "aarch64" else 16
        result, code = raw(ioctl, slave, request, b"x")
        return "0" if result == 0 else errno.errorcode[code]

    return in_child(attempt)


def terminal_of_the_session() -> str:
    import os

    from escape.attacker import outcome

    return outcome(lambda: os.close(os.open("/dev/tty", os.O_RDWR)))


def terminals_among_descriptors() -> list[int]:
    import os

    return [fd for fd in range(1024) if os.isatty(fd)]


def steal_terminals() -> list[str]:
    """Every node that could be a terminal of the host's; the sandbox's own has none yet."""
    import glob
    import os

    names = [*glob.glob("/dev/tty?*"), *glob.glob("/dev/pts/[0-9]*"), "/dev/console"]
    return sorted(name for name in names if os.path.exists(name))


ATTACKS = [
    Attack("TIOCSTI", type_into, "EPERM", (Wall.SECCOMP,), through=("0", "EIO"),
           arguments=(TIOCSTI,)),
    Attack("TIOCSTI with more bits", type_into, "EPERM", (Wall.SECCOMP,), through=("0", "EIO"),
           arguments=(HIGH_BITS | TIOCSTI,)),
    Attack("TIOCLINUX", type_into, "EPERM", (Wall.SECCOMP,), through="ENOTTY",
           arguments=(TIOCLINUX,)),
    Attack("TIOCLINUX with more bits", type_into, "EPERM", (Wall.SECCOMP,), through="ENOTTY",
           arguments=(HIGH_BITS | TIOCLINUX,)),
    Attack("the terminal of the session", terminal_of_the_session, "ENXIO",
           cannot_be_shown="the launcher of the tests has no terminal that it could leave"),
    Attack("a terminal among the descriptors", terminals_among_descriptors, [],
           cannot_be_shown="as above; test_descriptors.py shows that an open one would be found"),
    Attack("nodes of terminals", steal_terminals, [], (Wall.DEVICES,),
           through=(["/dev/console"], ["/dev/console", "/dev/tty0"])),
]  # fmt: skip


test_is_held, test_gets_through_without_the_wall = pair_of_tests(ATTACKS)
