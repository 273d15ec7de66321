"""The compiled filter, first judged by an interpreter of BPF, then by Linux.

The interpreter can ask what no running process could: any number, on any architecture, with any
arguments, without the call being made. The second half loads the filter into ordinary processes.
"""

from __future__ import annotations

import errno
import itertools
import os
import platform
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import sandbox_kernel
from sandbox_kernel.engine import seccomp
from sandbox_kernel.engine.seccomp import Arch, compile_profile
from sandbox_kernel.engine.seccomp_profile import DEFAULT, Action
from sandbox_kernel.errors import FilterError
from sandbox_kernel.syscalls import libseccomp

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
EPERM = 0x50000 | errno.EPERM
ENOSYS = 0x50000 | errno.ENOSYS
I386, ARM, S390X = 0x40000003, 0x40000028, 0x80000016
FIVE_ZEROS = (0,) * 5
NOTHING = (0,) * 6

Args = tuple[int, ...]


# -- an interpreter of classic BPF, as far as seccomp programs go -------------------------------


def run_bpf(program: bytes, number: int, arch: int, args: Args = NOTHING) -> int:
    """What ``program`` returns for one call. Anything unexpected in it is an error."""
    return trace_bpf(program, number, arch, args)[0]


def trace_bpf(program: bytes, number: int, arch: int, args: Args = NOTHING) -> tuple[int, int]:
    """What ``program`` returns for one call, and after how many instructions."""
    data = struct.pack("<II7Q", number, arch, 0, *args)
    code = list(struct.iter_unpack("<HBBI", program))
    accumulator, position = 0, 0
    for steps in itertools.count(1):
        op, jump_true, jump_false, k = code[position]
        position += 1
        if op == 0x20:
            accumulator = struct.unpack_from("<I", data, k)[0]
        elif op == 0x54:
            accumulator &= k
        elif op == 0x05:
            position += k
        elif op in COMPARE:
            position += jump_true if COMPARE[op](accumulator, k) else jump_false
        elif op == 0x06:
            return int(k), steps
        else:
            raise AssertionError(f"unknown instruction {op:#x}")
    raise AssertionError("count() has no end")


COMPARE: dict[int, Callable[[int, int], bool]] = {
    0x15: lambda a, k: a == k,
    0x25: lambda a, k: a > k,
    0x35: lambda a, k: a >= k,
    0x45: lambda a, k: bool(a & k),
}


@pytest.fixture(scope="session")
def library() -> libseccomp.Seccomp:
    return libseccomp.open_library()


@pytest.fixture(scope="session")
def native(library: libseccomp.Seccomp) -> Arch:
    return Arch(library.native_arch())


@pytest.fixture(scope="session")
def programs() -> dict[Arch, bytes]:
    return {arch: compile_profile(arch=arch) for arch in Arch}


def number_of(library: libseccomp.Seccomp, arch: Arch, name: str) -> int | None:
    """The number of ``name``, or None where the architecture has no such call."""
    number = library.number(arch, name)
    number = DEFAULT.numbers[name] if number is None else number
    return number if number >= 0 else None


#: What each conditional call may have, written down a second time and in another way.
ALLOWED_ARGS: dict[str, Callable[[Args], bool]] = {
    "clone": lambda a: a[0] & 0x7E020000 == 0,
    "unshare": lambda a: a[0] & 0x7E020080 == 0,
    "chmod": lambda a: a[1] & 0o6000 == 0,
    "fchmod": lambda a: a[1] & 0o6000 == 0,
    "creat": lambda a: a[1] & 0o6000 == 0,
    "mkdir": lambda a: a[1] & 0o6000 == 0,
    "fchmodat": lambda a: a[2] & 0o6000 == 0,
    "fchmodat2": lambda a: a[2] & 0o6000 == 0,
    "mkdirat": lambda a: a[2] & 0o6000 == 0,
    "open": lambda a: not (a[1] & 0o20000100 and a[2] & 0o6000),
    "openat": lambda a: not (a[2] & 0o20000100 and a[3] & 0o6000),
    "mknod": lambda a: not a[1] & 0o6000 and a[1] >> 12 & 15 in (0, 8, 1, 12),
    "mknodat": lambda a: not a[2] & 0o6000 and a[2] >> 12 & 15 in (0, 8, 1, 12),
    "socket": lambda a: socket_allowed(a),
    "socketpair": lambda a: socket_allowed(a),
    "ioctl": lambda a: a[1] % 2**32 not in (0x5412, 0x541C),
    "personality": lambda a: a[0] % 2**32 in (0, 8, 0x20000, 0x20008, 0xFFFFFFFF),
}


def socket_allowed(args: Args) -> bool:
    family, kind, protocol = args[0] % 2**32, args[1] % 16, args[2] % 2**32
    if family == 1:
        return True
    if family == 16:
        return protocol == 0
    ping = {2: 1, 10: 58}.get(family)
    if ping is None:
        return False
    return (kind == 1 and protocol in (0, 6)) or (kind == 2 and protocol in (0, 17, ping))


def expected(name: str, args: Args, *, unnamed: bool = False) -> int:
    """What the filter must answer for a known name; ``unnamed``: see ``compile_profile(arch=)``."""
    if name in ("clone3", "openat2"):
        return ENOSYS
    if name in ALLOWED_ARGS:
        allowed = ALLOWED_ARGS[name](args)
    else:
        allowed = DEFAULT.decide(name, args) is Action.ALLOW
    return ALLOW if allowed and not unnamed else EPERM


# -- every number -------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", Arch)
@pytest.mark.parametrize("args", [NOTHING, (2**64 - 1,) * 6, (0xFFFF_FFFF_0000_0000,) * 6])
def test_every_number_is_decided_as_the_profile_says(
    arch: Arch, args: Args, programs: dict[Arch, bytes], library: libseccomp.Seccomp, native: Arch
) -> None:
    names = {number_of(library, arch, name): name for name in DEFAULT.names()}
    for number in range(1024):
        name = names.get(number)
        if name is None:
            want = ENOSYS
        else:
            unnamed = arch is not native and library.number(native, name) is None
            want = expected(name, args, unnamed=unnamed)
        assert run_bpf(programs[arch], number, arch, args) == want, (number, name)


@pytest.mark.parametrize("number", [471, 1023, 1024, 4095, 65536, 0x3FFF_FFFF, 0xFFFF_FFFF])
@pytest.mark.parametrize("arch", Arch)
def test_a_number_newer_than_the_profile_is_enosys(
    arch: Arch, number: int, programs: dict[Arch, bytes]
) -> None:
    assert run_bpf(programs[arch], number, arch) == ENOSYS


def test_x32_numbers_kill(programs: dict[Arch, bytes]) -> None:
    numbers = [*range(0x4000_0000, 0x4000_0400), 0x7FFF_FFFF, 0x8000_0000, 0xFFFF_FFFE]
    for number in numbers:
        assert run_bpf(programs[Arch.X86_64], number, Arch.X86_64) == KILL_PROCESS, hex(number)


def test_numbers_with_the_x32_bit_are_only_unknown_where_there_is_no_x32(
    programs: dict[Arch, bytes],
) -> None:
    for number in (0x4000_0000, 0x4000_0027, 0x8000_0000, 0xFFFF_FFFE):
        assert run_bpf(programs[Arch.AARCH64], number, Arch.AARCH64) == ENOSYS


@pytest.mark.parametrize("arch", Arch)
def test_every_other_architecture_kills(arch: Arch, programs: dict[Arch, bytes]) -> None:
    others = [a for a in (*Arch, I386, ARM, S390X, 0, 0xFFFF_FFFF) if a != arch]
    for other in others:
        for number in (*range(1024), 0x4000_0000, 0xFFFF_FFFF):
            assert run_bpf(programs[arch], number, other) == KILL_PROCESS, (hex(other), number)


# -- every condition ----------------------------------------------------------------------------

WORD = 2**32 - 1
HIGH = st.sampled_from([0, 1, 0xFFFF_FFFF, 0xDEAD_BEEF])
#: Values near the borders of every condition, and any value at all.
LOW = st.one_of(
    st.integers(0, WORD),
    st.integers(0, 64),
    st.sampled_from([0x5411, 0x5412, 0x5413, 0x541B, 0x541C, 0x541D, 0x80045412, 0x15412]),
    st.sampled_from([8, 0x20000, 0x20008, WORD, WORD - 1, 0x40000, 0x400000, 0x7FFFFFFF]),
    st.sampled_from([17, 0x11, 0x20000000, 0x10000011, 0x3D0F00, 0x80, 0x02000000]),
    st.builds(lambda kind, mode: kind << 12 | mode, st.integers(0, 15), st.integers(0, 0o7777)),
    st.builds(
        lambda bits, rest: bits | rest,
        st.sampled_from([0, 0o100, 0o20000000, 0o20200000, 0o20000100]),
        st.sampled_from([0, 1, 2, 0o2000000, 0o1000, 0o6000]),
    ),
    st.builds(
        lambda kind, flags: kind | flags,
        st.sampled_from([1, 2, 3, 5, 10]),
        st.sampled_from([0, 0o4000, 0o2000000, 0o2004000]),
    ),
    st.sampled_from([1, 2, 6, 10, 16, 17, 58, 132, 256, 262]),
)
ARG = st.builds(lambda high, low: high << 32 | low, HIGH, LOW)


@pytest.mark.parametrize("name", ALLOWED_ARGS)
@pytest.mark.parametrize("arch", Arch)
def test_conditions_mean_what_they_say(
    arch: Arch, name: str, programs: dict[Arch, bytes], library: libseccomp.Seccomp
) -> None:
    number = number_of(library, arch, name)

    @settings(max_examples=300, deadline=None, database=None)
    @given(st.tuples(*[ARG] * 6))
    def check(args: Args) -> None:
        if number is None:
            assert arch is Arch.AARCH64
            return
        want = EPERM if not ALLOWED_ARGS[name](args) else ALLOW
        assert run_bpf(programs[arch], number, arch, args) == want
        assert DEFAULT.decide(name, args) is (Action.ALLOW if want == ALLOW else Action.EPERM)

    check()


@pytest.mark.parametrize("arch", Arch)
def test_every_kind_of_socket(
    arch: Arch, programs: dict[Arch, bytes], library: libseccomp.Seccomp
) -> None:
    protocols = (0, 1, 2, 6, 17, 33, 58, 132, 136, 255, 256, 262, 0x300)
    number = number_of(library, arch, "socket")
    assert number is not None
    for family, kind, protocol in itertools.product(range(50), range(16), protocols):
        args = (family, kind | 0o2004000, protocol, 0, 0, 0)
        want = ALLOW if socket_allowed(args) else EPERM
        assert run_bpf(programs[arch], number, arch, args) == want, args


@pytest.mark.parametrize("arch", Arch)
def test_no_call_goes_through_the_whole_list(arch: Arch, programs: dict[Arch, bytes]) -> None:
    """By halves it takes 20 instructions on average and 120 for ioctl; a list took 160 and 400."""
    steps = [trace_bpf(programs[arch], number, arch)[1] for number in range(471)]
    assert max(steps) < 150
    assert sum(steps) / len(steps) < 40


#: (call, arguments, allowed): what an attacker or a library would really try.
CASES: tuple[tuple[str, Args, bool], ...] = (
    ("clone", (0x003D0F00, 0, 0, 0, 0, 0), True),  # pthread_create
    ("clone", (0x01200011, 0, 0, 0, 0, 0), True),  # fork
    ("clone", (0x00004111, 0, 0, 0, 0, 0), True),  # vfork with posix_spawn
    *((("clone", (1 << bit | 17, *FIVE_ZEROS), False)) for bit in (17, *range(25, 31))),
    *((("unshare", (1 << bit, *FIVE_ZEROS), False)) for bit in (7, 17, *range(25, 31))),
    ("unshare", (0xFFFF_FFFF_1000_0000, *FIVE_ZEROS), False),
    ("unshare", (0x0400, *FIVE_ZEROS), True),  # CLONE_FILES
    ("openat", (0, 0, 0o2, 0o6777, 0, 0), True),  # no O_CREAT: the kernel ignores the mode
    ("openat", (0, 0, 0o102, 0o644, 0, 0), True),
    ("openat", (0, 0, 0o102, 0o1777, 0, 0), True),
    ("openat", (0, 0, 0o102, 0o4755, 0, 0), False),
    ("openat", (0, 0, 0o102, 0o2755, 0, 0), False),
    ("openat", (0, 0, 0o20200002, 0o4755, 0, 0), False),  # O_TMPFILE
    ("openat", (0, 0, 0o20200002, 0o600, 0, 0), True),
    ("openat", (0, 0, 0o200000, 0o4755, 0, 0), True),  # O_DIRECTORY alone creates nothing
    ("openat", (0, 0, 0xDEAD_BEEF_0000_0042, 0xDEAD_BEEF_0000_09ED, 0, 0), False),
    ("fchmod", (3, 0xDEAD_BEEF_0000_0800, 0, 0, 0, 0), False),
    ("mknodat", (0, 0, 0o10644, 0, 0, 0), True),
    ("mknodat", (0, 0, 0o20666, 0x103, 0, 0), False),
    ("mknodat", (0, 0, 0o60666, 0x800, 0, 0), False),
    ("mknodat", (0, 0, 0o104755, 0, 0, 0), False),
    ("socket", (1, 0o2000001, 0, 0, 0, 0), True),
    ("socket", (2, 0o2004001, 6, 0, 0, 0), True),
    ("socket", (10, 2, 17, 0, 0, 0), True),
    ("socket", (16, 3, 0, 0, 0, 0), True),
    ("socket", (16, 3, 9, 0, 0, 0), False),  # audit
    ("socket", (16, 3, 12, 0, 0, 0), False),  # netfilter
    ("socket", (16, 3, 6, 0, 0, 0), False),  # xfrm
    *((("socket", (family, 3, 0, 0, 0, 0), False)) for family in (0, 3, 4, 9, 15, 17, 21, 29)),
    *((("socket", (family, 5, 0, 0, 0, 0), False)) for family in (31, 33, 38, 40, 43, 44, 45)),
    ("socket", (0xFFFF_FFFF_0000_0026, 5, 0, 0, 0, 0), False),  # AF_ALG, garbage above
    ("socket", (0xFFFF_FFFF_0000_0001, 1, 0, 0, 0, 0), True),
    ("socket", (2, 10, 0x0300, 0, 0, 0), False),  # SOCK_PACKET: AF_PACKET by another name
    ("socket", (2, 10, 0, 0, 0, 0), False),
    ("socket", (2, 3, 255, 0, 0, 0), False),  # raw
    ("socket", (2, 1, 132, 0, 0, 0), False),  # SCTP
    ("socket", (2, 1, 256, 0, 0, 0), False),  # SMC
    ("ioctl", (0, 0x5412, 0, 0, 0, 0), False),
    ("ioctl", (0, 0x541C, 0, 0, 0, 0), False),
    ("ioctl", (0, 0x1_0000_5412, 0, 0, 0, 0), False),
    ("ioctl", (0, 0xFFFF_FFFF_0000_541C, 0, 0, 0, 0), False),
    ("ioctl", (0, 0x5401, 0, 0, 0, 0), True),
    ("ioctl", (0, 0x8004_5412, 0, 0, 0, 0), True),
    ("personality", (0xFFFF_FFFF, *FIVE_ZEROS), True),
    ("personality", (2**64 - 1, *FIVE_ZEROS), True),
    ("personality", (0x0040000, *FIVE_ZEROS), False),  # ADDR_NO_RANDOMIZE
    ("personality", (0x0400000, *FIVE_ZEROS), False),  # READ_IMPLIES_EXEC
)


@pytest.mark.parametrize(("name", "args", "allowed"), CASES)
@pytest.mark.parametrize("arch", Arch)
def test_what_is_really_tried(
    arch: Arch,
    name: str,
    args: Args,
    allowed: bool,
    programs: dict[Arch, bytes],
    library: libseccomp.Seccomp,
) -> None:
    number = number_of(library, arch, name)
    assert number is not None
    assert run_bpf(programs[arch], number, arch, args) == (ALLOW if allowed else EPERM)


# -- Linux's own opinion --------------------------------------------------------------------------

#: Runs in a child: an ordinary user, no_new_privs, then (with LOAD) the filter.
PRELUDE = """
import ctypes, errno, mmap, os, signal, socket, stat, sys, tempfile
from sandbox_kernel.engine import seccomp
from sandbox_kernel.engine.seccomp_profile import DEFAULT
from sandbox_kernel.syscalls import Prctl, libseccomp, prctl

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
library = libseccomp.open_library()

def number(name):
    found = library.number(library.native_arch(), name)
    return DEFAULT.numbers[name] if found is None else found

def call(name, *args):
    "0, or the name of the errno"
    nr = number(name) if isinstance(name, str) else name
    longs = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    rc = libc.syscall(ctypes.c_long(nr), *longs)
    return 0 if rc >= 0 else errno.errorcode[ctypes.get_errno()]

program = seccomp.compile_profile()
folder = os.getcwd()
if os.geteuid() == 0:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
prctl(Prctl.SET_NO_NEW_PRIVS, 1)
if LOAD:
    seccomp.load(program)
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the child can write whoever it is; pytest's own are closed to others."""
    with tempfile.TemporaryDirectory(prefix="seccomp-") as name:
        os.chmod(name, 0o777)
        yield Path(name)


def run_child(
    code: str, folder: Path, *, load: bool = True, prelude: str = PRELUDE
) -> subprocess.CompletedProcess[str]:
    """Run ``code`` behind the filter (or, as a control, without it) in a fresh interpreter."""
    root = Path(sandbox_kernel.__file__).parents[1]
    script = prelude.replace("LOAD", str(load)) + textwrap.dedent(code)
    environment = {
        "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "PYTHONPATH": str(root),
        "OMP_NUM_THREADS": "2",
    }
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def answer(code: str, folder: Path, *, load: bool) -> str:
    result = run_child(f"print({code})", folder, load=load)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


#: Expression → what the filter must make of it. Without the filter each has another outcome, so
#: none of these can pass because the kernel would have refused it anyway.
REFUSED: dict[str, str] = {
    "call('unshare', 0x10000000)": "EPERM",
    # with CLONE_FS, which Linux refuses beside CLONE_NEWUSER: the control starts no process
    "call('clone', 0x10000211, 0, 0, 0, 0)": "EPERM",
    "call('setns', -1, 0)": "EPERM",
    "call('clone3', 0, 0)": "ENOSYS",
    "call('openat2', -100, b'/', 0, 0)": "ENOSYS",
    "call('io_uring_setup', 1, 0)": "EPERM",
    "call('io_uring_enter', -1, 0, 0, 0, 0, 0)": "EPERM",
    "call('keyctl', 0, -3, 0)": "EPERM",
    "call('add_key', b'user', b'name', b'x', 1, -2)": "EPERM",
    "call('process_vm_readv', os.getpid(), 0, 0, 0, 0, 0)": "EPERM",
    "call('ptrace', 0, 0, 0, 0)": "EPERM",
    "call('pidfd_getfd', -1, 0, 0)": "EPERM",
    "call('name_to_handle_at', -1, b'/', 0, 0, 0)": "EPERM",
    "call('kcmp', os.getpid(), os.getpid(), 2, 0, 0)": "EPERM",
    "call('adjtimex', ctypes.create_string_buffer(256))": "EPERM",
    "call('ioctl', os.open('/dev/null', os.O_RDWR), 0x5412, b'x')": "EPERM",
    "call('ioctl', os.open('/dev/null', os.O_RDWR), 0xbad00005412, b'x')": "EPERM",
    "call('ioctl', os.open('/dev/null', os.O_RDWR), 0x541C, b'x')": "EPERM",
    "call('socket', 40, 5, 0)": "EPERM",
    "call('socket', 38, 5, 0)": "EPERM",
    "call('socket', 16, 3, 15)": "EPERM",
    "call('socket', 2, 1, 132)": "EPERM",
    "call('personality', 0x0040000)": "EPERM",
    "call('mknodat', -100, b'whiteout', stat.S_IFCHR | 0o600, 0)": "EPERM",
    "call('openat', -100, b'suid', os.O_CREAT | os.O_WRONLY, 0o4755)": "EPERM",
    "call('openat', -100, b'.', os.O_TMPFILE | os.O_WRONLY, 0o2755)": "EPERM",
    "call('fchmod', os.open('made', os.O_CREAT | os.O_WRONLY, 0o755), 0o4755)": "EPERM",
    "os.mkdir('d') or call('fchmodat', -100, b'd', 0o2777)": "EPERM",
    "os.mkdir('d') or call('fchmodat2', -100, b'd', 0o2777, 0)": "EPERM",
    "call('mkdirat', -100, b'setgid', 0o2755)": "EPERM",
}


@pytest.mark.parametrize("code", REFUSED)
def test_linux_refuses(code: str, folder: Path) -> None:
    assert answer(code, folder, load=True) == REFUSED[code]


@pytest.mark.parametrize("code", REFUSED)
def test_the_refusal_is_the_filters(code: str, folder: Path) -> None:
    assert answer(code, folder, load=False) != REFUSED[code]


def test_packet_sockets_are_refused(folder: Path) -> None:
    """No control: Linux itself wants CAP_NET_RAW. The interpreter says that we refuse, too."""
    assert answer("call('socket', 17, 3, 0)", folder, load=True) == "EPERM"
    assert answer("call('socket', 2, 10, 0x300)", folder, load=True) == "EPERM"


#: Has to work in the same process, right beside what is refused.
GRANTED = (
    "call('openat', -100, b'plain', os.O_CREAT | os.O_WRONLY, 0o755)",
    "call('openat', -100, b'.', os.O_RDONLY, 0o6777)",
    "os.mkdir('d') or call('fchmodat', -100, b'd', 0o1777)",
    "call('mknodat', -100, b'fifo', stat.S_IFIFO | 0o600, 0)",
    "call('socket', 1, 1, 0)",
    "call('socket', 2, 1 | 0o2000000, 6)",
    "call('socket', 16, 3, 0)",
    "call('personality', 0xffffffff)",
    "call('unshare', 0x400)",
)


@pytest.mark.parametrize("code", GRANTED)
def test_linux_grants(code: str, folder: Path) -> None:
    assert answer(code, folder, load=True) == "0"


def test_a_second_filter_can_be_stacked_and_the_first_stays(folder: Path) -> None:
    code = "(seccomp.load(program), call('io_uring_setup', 1, 0))[1]"
    assert answer(code, folder, load=True) == "EPERM"


def test_a_child_process_is_behind_the_filter_too(folder: Path) -> None:
    code = """
    import subprocess
    line = "import ctypes; print(ctypes.CDLL(None, use_errno=True).unshare(0x10000000), "
    line += "ctypes.get_errno())"
    print(subprocess.run([sys.executable, "-c", line], capture_output=True, text=True).stdout)
    """
    result = run_child(code, folder)
    assert result.stdout.split() == ["-1", str(errno.EPERM)], result.stderr


# -- killed ---------------------------------------------------------------------------------------

only_x86_64 = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="x86_64: only there are x32 and int 0x80"
)

#: mov eax, 20; int 0x80; ret: getpid through the i386 entry.
INT80 = """
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(bytes.fromhex("b814000000cd80c3"))
address = ctypes.addressof(ctypes.c_char.from_buffer(page))
print(ctypes.CFUNCTYPE(ctypes.c_int)(address)() == os.getpid(), flush=True)
"""


@only_x86_64
@pytest.mark.parametrize("number", [0x4000_0000 | 39, 0x4000_0000 | 0x3FF, -2])
def test_an_x32_call_kills_the_process(number: int, folder: Path) -> None:
    result = run_child(f"print('before', flush=True)\ncall({number})\nprint('after')", folder)
    assert (result.stdout, result.returncode) == ("before\n", -signal.SIGSYS)


@only_x86_64
def test_a_call_through_the_i386_entry_kills_the_process(folder: Path) -> None:
    control = run_child(INT80, folder, load=False)
    there = control.returncode == 0
    assert there or control.returncode == -signal.SIGSEGV, control.stderr
    result = run_child(INT80, folder)
    assert result.returncode == (-signal.SIGSYS if there else -signal.SIGSEGV)
    assert "True" not in result.stdout


@only_x86_64
def test_a_killing_call_in_a_thread_ends_the_whole_process(folder: Path) -> None:
    code = """
    import threading
    thread = threading.Thread(target=call, args=(0x40000027,))
    thread.start()
    thread.join()
    print("still here")
    """
    result = run_child(code, folder)
    assert (result.stdout, result.returncode) == ("", -signal.SIGSYS)


# -- ordinary work --------------------------------------------------------------------------------

WORK = {
    "threads": """
        import threading
        from concurrent.futures import ThreadPoolExecutor
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(lambda x: x * x, range(100))) == 328350
        """,
    "subprocess": """
        import subprocess
        assert subprocess.check_output(["sh", "-c", "echo a | cat; ulimit -n >&2"]) == b"a\\n"
        assert os.system("true") == 0
        """,
    "multiprocessing": """
        import multiprocessing
        from multiprocessing import shared_memory
        for method in ("fork", "spawn", "forkserver"):
            with multiprocessing.get_context(method).Pool(2) as pool:
                assert pool.map(abs, [-1, -2]) == [1, 2]
        block = shared_memory.SharedMemory(create=True, size=100)
        block.close()
        block.unlink()
        """,
    "asyncio": """
        import asyncio
        async def main():
            process = await asyncio.create_subprocess_exec("true")
            assert await process.wait() == 0
            server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
            address = server.sockets[0].getsockname()
            reader, writer = await asyncio.open_connection(*address)
            assert await reader.read() == b""
            writer.close()
            server.close()
        asyncio.run(main())
        """,
    "network": """
        assert socket.getaddrinfo("127.0.0.1", 80)
        assert socket.if_nameindex()
        a, b = socket.socketpair()
        a.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, b"\\0\\0\\0\\0")])
        assert b.recv(9) == b"x"
        """,
    "files": """
        import shutil
        from pathlib import Path
        for path in ("tree/a/b", "tree/c"):
            Path(path).mkdir(parents=True)
            Path(path, "file").write_text("x" * 100000)
        os.chmod("tree/c", 0o1777)
        os.mkfifo("fifo")
        shutil.copytree("tree", "copy")
        shutil.make_archive("archive", "gztar", "tree")
        shutil.unpack_archive("archive.tar.gz", "unpacked")
        assert Path("unpacked/a/b/file").stat().st_size == 100000
        with tempfile.NamedTemporaryFile() as file, tempfile.TemporaryFile() as nameless:
            file.write(b"x")
            nameless.write(b"x")
        shutil.rmtree("tree")
        """,
    "sqlite": """
        import sqlite3
        with sqlite3.connect("data.db") as db:
            db.execute("pragma journal_mode = wal")
            db.execute("create table t (x)")
            db.executemany("insert into t values (?)", [(i,) for i in range(100)])
        assert db.execute("select sum(x) from t").fetchone() == (4950,)
        db.close()
        """,
    "numpy": """
        import numpy
        a = numpy.random.default_rng(1).random((300, 300))
        assert numpy.allclose(a @ numpy.linalg.inv(a), numpy.eye(300))
        numpy.save("a.npy", a)
        assert numpy.load("a.npy", mmap_mode="r").shape == (300, 300)
        """,
    "pandas": """
        import pandas
        frame = pandas.DataFrame({"a": [1, 2], "b": ["x", "y"]})
        frame.to_csv("frame.csv", index=False)
        assert pandas.read_csv("frame.csv").equals(frame)
        """,
    "matplotlib": """
        import matplotlib
        matplotlib.use("agg")
        from matplotlib import pyplot
        pyplot.plot([1, 2, 3])
        pyplot.savefig("plot.png")
        assert os.path.getsize("plot.png") > 1000
        """,
    "zmq": """
        import zmq
        context = zmq.Context()
        with context.socket(zmq.REP) as rep, context.socket(zmq.REQ) as req:
            port = rep.bind_to_random_port("tcp://127.0.0.1")
            req.connect(f"tcp://127.0.0.1:{port}")
            req.send(b"question")
            assert rep.recv() == b"question"
        context.term()
        """,
    "debugpy": """
        import debugpy
        host, port = debugpy.listen(("127.0.0.1", 0))
        with socket.create_connection((host, port)) as client:
            assert client.recv(15) == b"Content-Length:"
        """,
    "pty": """
        import pty
        pid, fd = pty.fork()
        if pid == 0:
            os.execvp("sh", ["sh", "-c", "stty -a >/dev/null; tty"])
        out = b""
        try:
            while chunk := os.read(fd, 1000):
                out += chunk
        except OSError:
            pass
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0 and b"/dev/" in out, out
        """,
}
#: What also wants a program: named here, and left out only where that program is not installed.
PROGRAM_WORK = {
    "git": """
        import subprocess
        for words in ("init -q repo", "-C repo commit -q --allow-empty -m x", "clone -q repo twin"):
            author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
            subprocess.run(["git", *author, *words.split()], check=True)
        """,
    "gcc": """
        import subprocess
        with open("a.c", "w") as file:
            file.write("int main(void) { return 42; }")
        subprocess.run(["gcc", "-o", "a", "a.c"], check=True)
        assert subprocess.call(["./a"]) == 42
        """,
}


@pytest.mark.parametrize("work", WORK)
def test_ordinary_work_goes_on(work: str, folder: Path) -> None:
    result = run_child(textwrap.dedent(WORK[work]) + "print('done')", folder)
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr


@pytest.mark.parametrize("program", PROGRAM_WORK)
def test_ordinary_programs_work(program: str, folder: Path) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program}: it is not installed")
    result = run_child(textwrap.dedent(PROGRAM_WORK[program]) + "print('done')", folder)
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr


# -- failures -------------------------------------------------------------------------------------


def test_loading_without_no_new_privs_says_so(folder: Path) -> None:
    code = """
    from sandbox_kernel.errors import FilterError
    try:
        seccomp.load(program)
    except FilterError as error:
        print(error)
    """
    script = PRELUDE.replace("prctl(Prctl.SET_NO_NEW_PRIVS, 1)", "")
    assert script != PRELUDE
    result = run_child(code, folder, load=False, prelude=script)
    assert "cannot be loaded: no_new_privs is not set" in result.stdout, result.stderr


@pytest.mark.parametrize("program", [b"", b"x", b"\x06\0\0\0\0\0\xff", b"\xff" * 8])
def test_a_program_that_is_none_is_not_loaded(program: bytes, folder: Path) -> None:
    code = f"""
    from sandbox_kernel.errors import FilterError
    try:
        seccomp.load({program!r})
    except FilterError as error:
        print(error)
    """
    result = run_child(code, folder, load=False)
    assert result.stdout.startswith("the seccomp filter cannot be loaded: "), result.stderr
    assert "Errno" not in result.stdout


def test_a_program_longer_than_linux_takes_is_not_loaded() -> None:
    """Also where its length does not fit into the 16 bits of struct sock_fprog."""
    for count in (4097, 65536, 65537):
        with pytest.raises(FilterError):
            seccomp.load(struct.pack("<HBBI", 0x06, 0, 0, ALLOW) * count)
