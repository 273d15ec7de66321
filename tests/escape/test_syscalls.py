"""The filter: every number there is, and the calls that must never be made."""

from __future__ import annotations

import platform
from typing import Any

import pytest
from escape.attacks import Arena, Attack, Box, number, pair_of_tests
from escape.weaknesses import Wall
from integration.sandboxes import inside, value
from probes import TIMEOUT_FACTOR

from sandbox_kernel.engine import seccomp
from sandbox_kernel.engine.seccomp_profile import DEFAULT, Action
from sandbox_kernel.syscalls import libseccomp

X32 = 0x4000_0000
#: uretprobe and uprobe, which Linux lets past every filter since 6.14. They work only for code that
#: Linux itself has put into a traced program; for anybody else they are an error or deadly.
PAST_EVERY_FILTER = {335, 336} if platform.machine() == "x86_64" else set()
NOT_THERE = {"ENOSYS", "SIGILL", "ENXIO"}
NUMBERS = 1024
only_x86_64 = pytest.mark.skipif(platform.machine() != "x86_64", reason="x86_64: x32 is only there")


# -- every number ----------------------------------------------------------------------------------

#: Runs in an interpreter of its own, which has one thread. A child asks one number after the other
#: and says each outcome; where it dies or blocks, that is the outcome, and the next child goes on.
ASK = """
import ctypes, errno, os, signal, sys
libc = ctypes.CDLL(None, use_errno=True)
zero = ctypes.c_long(0)
def child(numbers, pipe):
    me = os.getpid()
    for number in numbers:
        signal.setitimer(signal.ITIMER_REAL, float(sys.argv[4]))
        os.dup2(8, 0)  # one of the calls closes it, and others may take its place
        result = libc.syscall(ctypes.c_long(number), *[zero] * 6)
        code = ctypes.get_errno()
        if os.getpid() != me:  # it was a fork
            os._exit(0)
        word = errno.errorcode.get(code, str(code)) if result == -1 else "0"
        os.write(pipe, (word + chr(10)).encode())
def ask(numbers):
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(0, 8)
        os.dup2(writer, 9)
        os.closerange(10, 64)
        try:
            child(numbers, 9)
        finally:
            os._exit(0)
    os.close(writer)
    status = os.waitpid(pid, 0)[1]
    while os.WIFSTOPPED(status):  # it asked to be traced
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
    os.set_blocking(reader, False)
    said = b""
    try:
        while more := os.read(reader, 65536):
            said += more
    except BlockingIOError:
        pass
    os.close(reader)
    words = said.decode().split()[: len(numbers)]
    if len(words) < len(numbers):
        dead = os.WIFSIGNALED(status)
        words.append(signal.Signals(os.WTERMSIG(status)).name if dead else "ended")
    return words
os.setsid()
left_out = {int(n) for n in sys.argv[3].split(",") if n}
todo = [n for n in range(int(sys.argv[1]), int(sys.argv[2])) if n not in left_out]
found = {n: "-" for n in range(int(sys.argv[1]), int(sys.argv[2]))}
while todo:
    words = ask(todo)
    found.update(zip(todo, words))
    todo = todo[len(words) :]
print(*found.values())
"""


def outcomes(
    first: int, last: int, left_out: str, program: str, seconds: float = 0.25
) -> list[str]:
    """Of each number from ``first`` up to ``last``, with six zeros."""
    import subprocess
    import sys

    command = [sys.executable, "-c", program, str(first), str(last), left_out, str(seconds)]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def names() -> dict[int, str]:
    """Number → name of all that the profile decides on, on this machine."""
    library = libseccomp.open_library()
    table = seccomp._numbers(library, DEFAULT, seccomp.Arch(library.native_arch()))
    return {number: name for name, number in table.items()}


#: Writes every disk of the machine, and takes as long.
SYNC = str(number("sync"))


@pytest.fixture(scope="module")
def with_filter(arena: Arena) -> list[str]:
    return inside(arena.box().client, outcomes, 0, NUMBERS, SYNC, ASK, timeout=150 * TIMEOUT_FACTOR)


@pytest.fixture(scope="module")
def without_filter(arena: Arena) -> list[str]:
    box = arena.box(without=[Wall.SECCOMP])
    return inside(box.client, outcomes, 0, NUMBERS, SYNC, ASK, timeout=150 * TIMEOUT_FACTOR)


def test_every_number_has_the_outcome_of_the_profile(
    with_filter: list[str], without_filter: list[str], arena: Arena
) -> None:
    """Refused with the profile's errno, or what Linux itself makes of it where it is allowed."""
    known = names()

    def is_wrong(asked: int, seen: str, linux: str) -> bool:
        name = known.get(asked)
        action = DEFAULT.decide(name, (0,) * 6) if name else Action.ENOSYS
        if asked in PAST_EVERY_FILTER:
            return seen not in NOT_THERE
        return seen != (linux if action is Action.ALLOW else action.value)

    def again(asked: int, box: Box) -> str:
        """On a busy machine a call may look as if it blocked."""
        found = inside(box.client, outcomes, asked, asked + 1, "", ASK, 5)
        return str(found[0])

    answers = list(zip(with_filter, without_filter, strict=True))
    wrong = {n: known.get(n) for n in range(NUMBERS) if is_wrong(n, *answers[n])}
    boxes = arena.box(), arena.box(without=[Wall.SECCOMP])
    second = {n: tuple(again(n, box) for box in boxes) for n in wrong}
    wrong = {n: (name, second[n]) for n, name in wrong.items() if is_wrong(n, *second[n])}
    assert not wrong, wrong
    arena.host.assert_unchanged()
    arena.assert_others_live()


def test_without_the_filter_hardly_a_number_is_refused(
    with_filter: list[str], without_filter: list[str]
) -> None:
    """The control: most of the refusals are the filter's, the rest want a capability as well."""
    known = names()
    refused = [n for n in range(NUMBERS) if n in known and with_filter[n] == "EPERM"]
    let_through = [n for n in refused if without_filter[n] != "EPERM"]
    assert len(let_through) > len(refused) / 2, sorted(known[n] for n in refused)


@only_x86_64
def test_every_x32_number_kills(arena: Arena) -> None:
    """None of them waits for anything, so each may take its time to die."""
    found = inside(
        arena.box().client, outcomes, X32, X32 + NUMBERS, "", ASK, 60, timeout=150 * TIMEOUT_FACTOR
    )
    assert set(found) == {"SIGSYS"}
    arena.assert_others_live()


@only_x86_64
def test_without_the_filter_no_x32_number_kills(arena: Arena) -> None:
    box = arena.box(without=[Wall.SECCOMP])
    assert "SIGSYS" not in inside(box.client, outcomes, X32, X32 + 64, "", ASK)


# -- single calls ----------------------------------------------------------------------------------


def call(asked: int, *arguments: Any) -> str:
    """In a child: it may be traced, be somebody else or be killed."""
    from escape.attacker import in_child, syscall

    given = [a.encode() + b"\0" if isinstance(a, str) else a for a in arguments]
    return in_child(lambda: syscall(asked, *given))


def call_with_buffer(asked: int, size: int, *arguments: Any) -> str:
    """The same, where ``"buffer"`` stands for ``size`` zeros."""
    import ctypes

    from escape.attacker import in_child, syscall

    buffer = ctypes.create_string_buffer(size)
    given = [buffer if a == "buffer" else a for a in arguments]
    return in_child(lambda: syscall(asked, *given))


def read_own_memory(asked: int) -> str:
    import ctypes
    import os

    from escape.attacker import syscall

    class Vector(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

    text, taken = ctypes.create_string_buffer(b"text"), ctypes.create_string_buffer(8)
    there, here = (Vector(ctypes.addressof(b), 4) for b in (text, taken))
    got = syscall(asked, os.getpid(), ctypes.byref(here), 1, ctypes.byref(there), 1, 0)
    return "0" if got == "0" and taken.value == b"text" else got


def take_descriptor(asked: int) -> str:
    """Of another process: a child that waits."""
    import os
    import signal

    from escape.attacker import syscall

    pid = os.fork()
    if pid == 0:
        signal.pause()
        os._exit(0)
    handle = os.pidfd_open(pid)
    try:
        return syscall(asked, handle, 0, 0)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(handle)


def enter_i386() -> str:
    """``mov eax, 20; int 0x80; ret`` is getpid in the way of 32-bit programs."""
    import ctypes
    import mmap
    import os

    from escape.attacker import in_child

    def run() -> str:
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(bytes.fromhex("b814000000cd80c3"))
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        return "0" if ctypes.CFUNCTYPE(ctypes.c_int)(address)() == os.getpid() else "other"

    return in_child(run)


def never(
    name: str, *arguments: Any, through: Any = "0", size: int = 0, held: str = "EPERM",
    more: tuple[Wall, ...] = (), unshown: str = "",
) -> Attack:  # fmt: skip
    """A call that is refused, by the name before the first word that explains it."""
    asked = number(name.split()[0])
    return Attack(
        name,
        call_with_buffer if size else call,
        held,
        () if unshown else (Wall.SECCOMP, *more),
        through,
        arguments=(asked, size, *arguments) if size else (asked, *arguments),
        cannot_be_shown=unshown,
    )


HERE = -100
#: Landlock refuses every change of the mounts as well.
MOUNT = (Wall.CAPABILITIES, Wall.LANDLOCK)
FIRST_NAMESPACE = "Linux itself wants {} of the first user namespace, and says EPERM as well"
ATTACKS = [
    never("io_uring_setup", 1, "buffer", size=256, through=("0", "ENOSYS")),
    never("io_uring_enter", -1, 0, 0, 0, 0, 0, through=("EBADF", "ENOSYS")),
    never("io_uring_register", -1, 0, 0, 0, through=("EBADF", "EINVAL", "ENOSYS")),
    never("userfaultfd", 1, through=("0", "ENOSYS")),
    never("add_key", "user", "name", "x", 1, -2),
    never("request_key", "user", "name", 0, -2, through="ENOKEY"),
    never("keyctl", 0, -3, 0),
    never("bpf", 1, "buffer", 100_000, size=100_000, through="E2BIG"),
    never("perf_event_open", 0, 0, -1, -1, 0, through=("EFAULT", "EACCES", "ENOSYS")),
    never("kexec_load", 0, 0, 0, 0, unshown=FIRST_NAMESPACE.format("CAP_SYS_BOOT")),
    never("kexec_file_load", -1, -1, 0, 0, 0, unshown=FIRST_NAMESPACE.format("CAP_SYS_BOOT")),
    never("init_module", 0, 0, "", unshown=FIRST_NAMESPACE.format("CAP_SYS_MODULE")),
    never("finit_module", -1, "", 0, unshown=FIRST_NAMESPACE.format("CAP_SYS_MODULE")),
    never("delete_module", "name", 0, unshown=FIRST_NAMESPACE.format("CAP_SYS_MODULE")),
    never("name_to_handle_at", HERE, "/", 0, 0, 0, through="EFAULT"),
    never("open_by_handle_at", -1, 0, 0, unshown=FIRST_NAMESPACE.format("CAP_DAC_READ_SEARCH")),
    never("ptrace", 0, 0, 0, 0),
    Attack("process_vm_readv", read_own_memory, "EPERM", (Wall.SECCOMP,),
           arguments=(number("process_vm_readv"),)),
    never("process_vm_writev", 1, 0, 0, 0, 0, 0, through="0"),
    never("process_madvise", -1, 0, 0, 0, 0, through=("EBADF", "EINVAL")),
    Attack("pidfd_getfd", take_descriptor, "EPERM", (Wall.SECCOMP,),
           arguments=(number("pidfd_getfd"),)),
    never("kcmp", 2, 2, 2, 0, 0),
    never("mount", "none", "/tmp", "tmpfs", 0, 0, more=MOUNT),
    never("umount2", "/proc/kallsyms", 2, more=MOUNT),
    never("pivot_root", "/absent", "/absent", more=MOUNT, through="ENOENT"),
    never("chroot", "/tmp", more=MOUNT),
    never("open_tree", HERE, "/", 0),
    never("move_mount", -1, "", -1, "", 4 | 64, through="EBADF", more=MOUNT),
    never("fsopen", "tmpfs", 0, more=MOUNT),
    never("fspick", HERE, "/tmp", 0, more=MOUNT),
    never("fsmount", -1, 0, 0, through="EBADF", more=MOUNT),
    never("fsconfig", -1, 0, 0, 0, 0, through=("EBADF", "EINVAL")),
    never("mount_setattr", -1, "", 0x1000, "buffer", 32, size=32, through=("EBADF", "0"),
          more=MOUNT),
    never("clone3", 0, 0, held="ENOSYS", through="EINVAL"),
    never("openat2", HERE, "/", 0, 0, held="ENOSYS", through="EINVAL"),
    never("personality without ASLR", 0x004_0000),
    never("personality with executable data", 0x040_0000),
    never("memfd_secret", 0, through=("0", "ENOSYS")),
    never("fanotify_init", 0x200, 0, through=("0", "ENOSYS")),
    never("syslog", 3, "buffer", 64, size=64,
          unshown="Linux may be told to keep its log from users (dmesg_restrict)"),
    never("modify_ldt", 0, "buffer", 16, size=16, through=("0", "ENOSYS")),
    never("sethostname", "name", 4, more=(Wall.CAPABILITIES,)),
    never("setdomainname", "name", 4, more=(Wall.CAPABILITIES,)),
    never("acct", 0, unshown=FIRST_NAMESPACE.format("CAP_SYS_PACCT")),
    never("reboot", 0, 0, 0, 0, through="EINVAL", more=(Wall.CAPABILITIES,)),
    never("swapon", "/tmp/x", 0, unshown=FIRST_NAMESPACE.format("CAP_SYS_ADMIN")),
    never("settimeofday", "buffer", 0, size=16, unshown=FIRST_NAMESPACE.format("CAP_SYS_TIME")),
    never("adjtimex", "buffer", size=256),
]  # fmt: skip
if platform.machine() == "x86_64":
    ATTACKS.append(
        Attack("the i386 entry", enter_i386, ("SIGSYS", "SIGSEGV"), (Wall.SECCOMP,),
               through=("0", "SIGSEGV"))
    )  # fmt: skip


test_is_held, test_gets_through_without_the_wall = pair_of_tests(ATTACKS)


# -- what must work --------------------------------------------------------------------------------


def test_a_child_and_a_thread_are_behind_the_filter(arena: Arena) -> None:
    def modes() -> list[str]:
        import subprocess
        import threading

        texts = [subprocess.check_output(["cat", "/proc/self/status"], text=True)]

        def look() -> None:
            with open("/proc/thread-self/status") as file:
                texts.append(file.read())

        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        return [t.split("Seccomp:\t")[1].split()[0] for t in texts]

    assert inside(arena.box().client, modes) == ["2", "2"]
    assert value(arena.box().client, "1") == 1
