"""The profile as data, and the compiler's ways to say no. Nothing is loaded here."""

from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_kernel.engine import seccomp
from sandbox_kernel.engine.seccomp import Arch, compile_profile
from sandbox_kernel.engine.seccomp_profile import (
    DEFAULT,
    NUMBERS,
    Action,
    Condition,
    Match,
    Profile,
    Rule,
)
from sandbox_kernel.errors import FilterError
from sandbox_kernel.syscalls import libseccomp


def words(text: str) -> list[str]:
    return text.split()


#: The Security list and the brief of this wall: names that no edit may ever allow.
NEVER = words("""
    io_uring_setup io_uring_enter io_uring_register userfaultfd keyctl add_key request_key bpf
    perf_event_open kexec_load kexec_file_load init_module finit_module delete_module
    create_module open_by_handle_at name_to_handle_at ptrace process_vm_readv process_vm_writev
    process_madvise pidfd_getfd mount umount2 pivot_root chroot open_tree open_tree_attr
    move_mount fsopen fsconfig fsmount fspick mount_setattr statmount listmount swapon swapoff
    reboot settimeofday clock_settime clock_adjtime adjtimex quotactl quotactl_fd acct syslog
    iopl ioperm sethostname setdomainname nfsservctl vhangup lookup_dcookie kcmp fanotify_init
    move_pages migrate_pages memfd_secret setns
""")

#: Allowed under conditions only: losing the condition is as bad as allowing one of the above.
CONDITIONAL = {
    "clone", "unshare", "chmod", "fchmod", "fchmodat", "fchmodat2", "creat", "open", "openat",
    "mkdir", "mkdirat", "mknod", "mknodat", "socket", "socketpair", "ioctl", "personality",
}  # fmt: skip

#: What the kernel, its libraries and a shell cannot do without.
NEEDED = words("""
    read write mmap mprotect munmap futex rt_sigaction execve wait4 exit_group getrandom clone
    openat socket connect bind sendmsg recvmsg epoll_wait epoll_pwait2 eventfd2 inotify_init1
    prctl arch_prctl seccomp landlock_restrict_self rseq statx close_range faccessat2 pidfd_open
    pidfd_send_signal memfd_create copy_file_range sched_setaffinity get_mempolicy set_mempolicy
    mbind mlock setuid prlimit64 membarrier mseal cachestat map_shadow_stack futex_waitv
    futex_wake futex_wait futex_requeue process_mrelease fchmodat2 shmget mq_open kill
""")


def names(action: Action) -> list[str]:
    return [name for rule in DEFAULT.rules if rule.action is action for name in rule.names]


@pytest.fixture(scope="module")
def library() -> libseccomp.Seccomp:
    return libseccomp.open_library()


# -- the list -----------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", Arch)
def test_nothing_that_libseccomp_knows_is_undecided(
    arch: Arch, library: libseccomp.Seccomp
) -> None:
    known = {library.name(arch, number) for number in range(1024)} - {None}
    assert len(known) > 300
    undecided = {name for name in known if name not in DEFAULT.names()}
    # What a libseccomp of tomorrow adds at the end is new, not undecided: ENOSYS is its answer.
    newest = max(NUMBERS.values())
    assert {n for n in undecided if (library.number(arch, str(n)) or 0) <= newest} == set()


def test_every_name_is_one_that_somebody_knows(library: libseccomp.Seccomp) -> None:
    for name in DEFAULT.names():
        assert library.number(Arch.X86_64, name) is not None or name in NUMBERS, name


def test_no_name_has_two_actions() -> None:
    for a, b in itertools.combinations(Action, 2):
        assert set(names(a)) & set(names(b)) == set()


def test_no_name_stands_twice_without_a_condition() -> None:
    plain = [name for rule in DEFAULT.rules if not rule.conditions for name in rule.names]
    assert sorted(plain) == sorted(set(plain))


def test_no_name_is_allowed_both_plainly_and_under_a_condition() -> None:
    """libseccomp would drop the condition without a word."""
    plain = {name for rule in DEFAULT.rules if not rule.conditions for name in rule.names}
    conditional = {name for rule in DEFAULT.rules if rule.conditions for name in rule.names}
    assert conditional == CONDITIONAL
    assert plain & conditional == set()


def test_every_rule_has_names_and_a_reason() -> None:
    for rule in DEFAULT.rules:
        assert rule.names
        assert len(rule.reason) > 2, rule.names


def test_only_allowing_rules_have_conditions() -> None:
    """The compiler relies on it: a call that no rule allows is refused."""
    assert all(rule.action is Action.ALLOW for rule in DEFAULT.rules if rule.conditions)


def test_every_condition_can_hold() -> None:
    for rule in DEFAULT.rules:
        for condition in rule.conditions:
            assert 0 <= condition.arg < 6
            assert 0 < condition.mask < 2**32
            assert all(value & ~condition.mask == 0 for value in condition.values)
            assert len(set(condition.values)) == len(condition.values)
        arguments = [condition.arg for condition in rule.conditions]
        assert len(set(arguments)) == len(arguments), "libseccomp takes one comparison an argument"


@pytest.mark.parametrize("name", NEVER)
def test_never(name: str) -> None:
    for args in ((0,) * 6, (2**64 - 1,) * 6):
        assert DEFAULT.decide(name, args) is Action.EPERM


@pytest.mark.parametrize("name", NEEDED)
def test_needed(name: str) -> None:
    args = (1 if name == "socket" else 0,) * 6
    assert DEFAULT.decide(name, args) is Action.ALLOW


@pytest.mark.parametrize("name", ["clone3", "openat2", "invented_tomorrow"])
def test_callers_fall_back(name: str) -> None:
    assert DEFAULT.decide(name, (0,) * 6) is Action.ENOSYS


@pytest.mark.parametrize("arch", Arch)
def test_the_own_numbers_agree_with_libseccomp(arch: Arch, library: libseccomp.Seccomp) -> None:
    for name, number in NUMBERS.items():
        assert library.number(arch, name) in (number, None), name
    assert set(NUMBERS) <= DEFAULT.names()


# -- conditions become comparisons that exclude each other ---------------------------------------


@st.composite
def conditions(draw: st.DrawFn) -> Condition:
    mask = draw(st.integers(1, 0xFFFF_FFFF))
    values = draw(st.lists(st.integers(0, 0xFFFF_FFFF), min_size=1, max_size=5))
    return Condition(
        0, tuple({value & mask for value in values}), mask, draw(st.sampled_from(list(Match)))
    )


@settings(max_examples=500, deadline=None, database=None)
@given(conditions(), st.integers(0, 2**64 - 1), st.data())
def test_alternatives_are_a_partition(
    condition: Condition, argument: int, data: st.DataObject
) -> None:
    flipped = data.draw(st.sampled_from([0, 1, 0x10000]))
    near = data.draw(st.sampled_from(condition.values)) ^ flipped
    for value in (argument, near, near | 0xFFFF_FFFF_0000_0000):
        holding = [a for a in seccomp._alternatives(condition) if value & a.mask == a.value]
        assert len(holding) == condition.holds((value,))


@settings(max_examples=200, deadline=None, database=None)
@given(st.sets(st.integers(0, 600), max_size=100), st.sampled_from(list(Arch)))
def test_unknown_ranges_are_the_complement(known: set[int], arch: Arch) -> None:
    ranges = seccomp._unknown_ranges(arch, known)
    assert ranges == sorted(ranges)
    for number in (*range(700), 0x3FFF_FFFF, 0x4000_0000, 0xFFFF_FFFE, 0xFFFF_FFFF):
        x32 = arch is Arch.X86_64 and 0x4000_0000 <= number < 0xFFFF_FFFF
        inside = any(first <= number <= last for first, last in ranges)
        assert inside is (number not in known and not x32), number


# -- compiled or refused -------------------------------------------------------------------------


def test_the_program_is_always_the_same() -> None:
    assert compile_profile() == compile_profile()


def test_the_program_leaves_room_for_others() -> None:
    """Linux allows 32768 instructions in all the filters of a process together."""
    assert len(compile_profile()) % 8 == 0
    assert len(compile_profile()) // 8 < 1500


def test_a_name_that_nobody_knows_is_an_error() -> None:
    profile = replace(DEFAULT, rules=(*DEFAULT.rules, Rule(("opne",), Action.ALLOW, "a typo")))
    with pytest.raises(FilterError, match="no system call named opne"):
        compile_profile(profile)


def test_a_profile_that_is_too_long_is_an_error() -> None:
    values = tuple(range(0, 12000, 2))
    rule = Rule(("ioctl",), Action.ALLOW, "far too many", (Condition(1, values),))
    with pytest.raises(FilterError, match=r"instructions, and Linux takes 4096"):
        compile_profile(Profile((rule,)))


def test_a_profile_full_of_gaps_is_an_error(library: libseccomp.Seccomp) -> None:
    numbers = range(0, 334, 2)
    odd = tuple(n for i in numbers if (n := library.name(Arch.X86_64, i)) is not None)
    with pytest.raises(FilterError, match="gaps between numbers"):
        compile_profile(Profile((Rule(odd, Action.EPERM, "every other"),)), Arch.X86_64)


def test_an_empty_profile_allows_nothing() -> None:
    assert compile_profile(Profile(()))


class FakeLibrary:
    """An opened library of another version, or on another machine."""

    def __init__(self, version: tuple[int, int, int], arch: int) -> None:
        self._version, self._arch = version, arch

    def version(self) -> tuple[int, int, int]:
        return self._version

    def native_arch(self) -> int:
        return self._arch


@pytest.mark.parametrize(
    ("version", "arch", "words"),
    [
        ((2, 4, 4), Arch.X86_64, "libseccomp is 2.4.4, and at least 2.5.0 is needed"),
        ((2, 5, 4), 0x80000016, "written for x86_64 and aarch64.*0x80000016"),
    ],
)
def test_an_unfit_library_or_machine(
    version: tuple[int, int, int], arch: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(libseccomp, "open_library", lambda: FakeLibrary(version, arch))
    with pytest.raises(FilterError, match=words):
        compile_profile()


MISSING = "libseccomp.so.2: cannot open shared object file: No such file or directory"


@pytest.mark.parametrize(
    ("loader", "cause", "remedy"),
    [
        (MISSING, "is not installed", True),
        (f"cannot load library 'libseccomp.so.2': {MISSING}.  Additionally, x", "not inst", True),
        (
            "Error loading shared library libseccomp.so.2: No such file or directory",
            "is not installed",
            True,
        ),
        ("libseccomp.so.2: wrong ELF class: ELFCLASS32", "cannot be used: .*ELFCLASS32", False),
        (
            "libother.so.1: cannot open shared object file: No such file or directory",
            "cannot be used: libother.so.1: cannot open",
            False,
        ),
    ],
)
def test_why_the_library_cannot_be_opened(
    loader: str, cause: str, remedy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> libseccomp.Seccomp:
        raise OSError(loader)

    monkeypatch.setattr(libseccomp, "open_library", refuse)
    with pytest.raises(FilterError, match=cause) as caught:
        compile_profile()
    assert caught.value.fact == "the seccomp filter cannot be compiled"
    assert bool(caught.value.remedy) is remedy
    if remedy:
        assert "apt-get install libseccomp2" in str(caught.value.remedy)
        assert "dnf install libseccomp" in str(caught.value.remedy)


def test_the_real_loader_speaks_as_we_expect() -> None:
    """Ask the loader of this machine for the library under a name that it has not."""
    code = """
from sandbox_kernel.engine import seccomp
from sandbox_kernel.errors import FilterError
seccomp.libseccomp.SONAME = "libseccomp.so.99"
try:
    seccomp.compile_profile()
except FilterError as error:
    print(error.to_dict())
"""
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path), "PATH": ""},
    )
    assert "'libseccomp.so.99 is not installed'" in result.stdout


def test_an_installation_without_the_generated_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sandbox_kernel.syscalls._seccomp_abi", None)
    libseccomp.open_library.cache_clear()
    with pytest.raises(FilterError, match=r"installation of sandbox-kernel is incomplete"):
        compile_profile()
    libseccomp.open_library.cache_clear()
