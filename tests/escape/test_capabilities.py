"""What capabilities would be good for: of each that Linux can give in a user namespace, one use."""

from __future__ import annotations

from escape.attacks import Arena, Attack, pair_of_tests
from escape.weaknesses import Wall
from integration.sandboxes import inside

CAPS = Wall.CAPABILITIES


def sets() -> list[str]:
    with open("/proc/self/status") as file:
        lines = dict(line.split(":\t", 1) for line in file if ":\t" in line)
    names = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")
    return ["empty" if int(lines[name], 16) == 0 else "not empty" for name in names]


def raise_all() -> str:
    """capset, and the ambient set; in a child, since capset takes away as well."""
    import ctypes

    from escape.attacker import in_child, libc, outcome

    def check(result: int) -> None:
        if result < 0:
            raise OSError(ctypes.get_errno(), "")

    header = (ctypes.c_uint32 * 2)(0x2008_0522, 0)
    data = (ctypes.c_uint32 * 6)(1 << 21, 1 << 21, 1 << 21, 0, 0, 0)  # CAP_SYS_ADMIN
    prctl_ambient, raise_it = 47, 2

    def attempt() -> str:
        taken = outcome(lambda: check(libc.capset(header, data)))
        return f"{taken} {outcome(lambda: check(libc.prctl(prctl_ambient, raise_it, 21, 0, 0)))}"

    return in_child(attempt)


def execute_for_more() -> str:
    """Whatever setuid program there is: no_new_privs and nosuid make it an ordinary one."""
    import glob
    import os
    import subprocess

    programs = [
        path for folder in ("/usr/bin", "/usr/sbin") for path in glob.glob(f"{folder}/*")
        if os.stat(path).st_mode & 0o4000
    ]  # fmt: skip
    if not programs:
        return "none"
    command = f"cat /proc/self/status > /tmp/status; exec {programs[0]} --help"
    subprocess.run(["sh", "-c", command], capture_output=True, stdin=subprocess.DEVNULL)
    flags = os.statvfs(programs[0]).f_flag
    return "nosuid" if flags & os.ST_NOSUID else "suid"


def chown_to_another() -> str:
    import os

    from escape.attacker import outcome

    path = "/tmp/own"
    open(path, "w").close()
    return outcome(os.chown, path, 0, -1)


def read_without_permission() -> str:
    """CAP_DAC_OVERRIDE, within the own ids."""
    import os

    from escape.attacker import outcome

    path = "/tmp/closed"
    with open(path, "w"):
        os.chmod(path, 0)
    try:
        return outcome(lambda: open(path).close())
    finally:
        os.unlink(path)


def bind_low_port() -> str:
    import socket

    from escape.attacker import outcome

    with socket.socket() as sock:
        return outcome(sock.bind, ("127.0.0.1", 80))


def mark_packets() -> str:
    import socket

    from escape.attacker import outcome

    with socket.socket() as sock:
        return outcome(sock.setsockopt, socket.SOL_SOCKET, 36, 1)  # SO_MARK


def change_interface() -> str:
    """An ordinary route socket, which is allowed; the change wants CAP_NET_ADMIN."""
    import errno
    import socket
    import struct

    new_link, request, acknowledge, up = 16, 1, 4, 1
    body = struct.pack("=BxHiII", 0, 0, 1, 0, up)  # lo down
    header = struct.pack("=IHHII", 16 + len(body), new_link, request | acknowledge, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.send(header + body)
        (code,) = struct.unpack_from("=i", sock.recv(4096), 16)
        if code == 0:
            again = struct.pack("=BxHiII", 0, 0, 1, up, up)
            sock.send(header + again)
            sock.recv(4096)
    return errno.errorcode[-code] if code else "0"


def become_nobody_else() -> list[str]:
    import os

    from escape.attacker import in_child, outcome

    return [in_child(lambda: outcome(os.setuid, 0)), in_child(lambda: outcome(os.setgroups, [0]))]


def signal_pid_1() -> str:
    """It may be said; a pid 1 takes no signal from inside that it did not ask for."""
    import os
    import signal
    import time

    os.kill(1, signal.SIGKILL)
    os.kill(1, signal.SIGTERM)
    os.kill(1, signal.SIGSTOP)
    time.sleep(0.05)
    with open("/proc/1/stat") as file:
        return file.read().rsplit(")", 1)[1].split()[0]


ATTACKS = [
    Attack("all five sets are empty", sets, ["empty"] * 5, (CAPS,),
           through=["empty", "not empty", "not empty", "not empty", "empty"]),
    Attack("take capabilities back", raise_all, "EPERM EPERM", (CAPS,), through="0 0"),
    Attack("a setuid program", execute_for_more, ("nosuid", "none"),
           cannot_be_shown="without no_new_privs and nosuid it would run as root of nobody: "
           "the id map does not know the owner"),
    Attack("CAP_DAC_OVERRIDE", read_without_permission, "EACCES", (CAPS,)),
    Attack("CAP_NET_BIND_SERVICE", bind_low_port, "EACCES", (CAPS,)),
    Attack("CAP_NET_RAW: mark packets", mark_packets, "EPERM", (CAPS,)),
    Attack("CAP_NET_ADMIN: change an interface", change_interface, "EPERM", (CAPS,)),
    Attack("CAP_CHOWN: give a file to root", chown_to_another, ("EINVAL", "EPERM"),
           cannot_be_shown="the id map knows no other id"),
    Attack("CAP_SETUID and CAP_SETGID", become_nobody_else, ["EINVAL", "EPERM"],
           cannot_be_shown="the id map knows no other id"),
    Attack("end or stop pid 1", signal_pid_1, "S",
           cannot_be_shown="Linux itself guards the first process of a pid namespace"),
]  # fmt: skip


test_is_held, test_gets_through_without_the_wall = pair_of_tests(ATTACKS)


def test_a_child_has_none_either(arena: Arena) -> None:
    def of_a_child() -> list[str]:
        import subprocess

        text = subprocess.check_output(["cat", "/proc/self/status"], text=True)
        return [line.split()[1] for line in text.splitlines() if line.startswith("Cap")]

    assert inside(arena.box().client, of_a_child) == ["0" * 16] * 5
