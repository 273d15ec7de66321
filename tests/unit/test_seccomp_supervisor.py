"""The supervisor's profile as data: shorter than the kernel's, and never wider where it counts."""

from __future__ import annotations

import pytest

from sandbox_kernel.engine.seccomp import Arch, compile_profile
from sandbox_kernel.engine.seccomp_profile import DEFAULT, Action
from sandbox_kernel.engine.seccomp_supervisor import SUPERVISOR

NOTHING = (0,) * 6


def words(text: str) -> list[str]:
    return text.split()


#: What nobody who takes a supervisor over may ever call, whatever the arguments.
NEVER = words("""
    execve execveat fork vfork kill tkill tgkill ptrace process_vm_readv process_vm_writev mount
    umount2 pivot_root chroot unshare setns setuid setgid setgroups capset bpf io_uring_setup
    perf_event_open keyctl userfaultfd open_by_handle_at pidfd_getfd mkdir mknod symlink link rename
    renameat2 chmod fchmod chown truncate ftruncate creat memfd_create bind listen shutdown
    socketpair setrlimit personality inotify_init1 shmget mq_open landlock_create_ruleset seccomp
    rt_sigqueueinfo timer_create process_madvise
""")


def allowed(name: str, *arguments: int) -> bool:
    return SUPERVISOR.decide(name, (*arguments, *NOTHING)[:6]) is Action.ALLOW


@pytest.mark.parametrize("name", NEVER)
def test_never(name: str) -> None:
    for arguments in (NOTHING, (2**64 - 1,) * 6):
        assert SUPERVISOR.decide(name, arguments) is Action.EPERM


def test_everything_is_decided_that_the_kernels_profile_decides() -> None:
    assert SUPERVISOR.names() == DEFAULT.names()


def test_a_name_has_one_kind_of_rule() -> None:
    """libseccomp drops a conditional rule beside an unconditional one without a word."""
    plain = [n for rule in SUPERVISOR.rules if not rule.conditions for n in rule.names]
    conditional = {n for rule in SUPERVISOR.rules if rule.conditions for n in rule.names}
    assert sorted(plain) == sorted(set(plain))
    assert conditional.isdisjoint(plain)


@pytest.mark.parametrize("arch", Arch)
def test_it_can_be_compiled(arch: Arch) -> None:
    assert len(compile_profile(SUPERVISOR, arch)) < len(compile_profile(DEFAULT, arch))


def test_a_thread_and_no_process() -> None:
    sigchld, thread, new_user = 17, 0x10000, 0x10000000
    assert allowed("clone", thread)
    assert not allowed("clone", sigchld)
    assert not allowed("clone", thread | new_user)


def test_no_new_file() -> None:
    creat, tmpfile, write_only = 0o100, 0o20200000, 0o1
    assert allowed("openat", 0, 0, write_only)
    assert not allowed("openat", 0, 0, creat | write_only)
    assert not allowed("openat", 0, 0, tmpfile)


def test_no_executable_memory() -> None:
    read, write, execute = 1, 2, 4
    for name in ("mmap", "mprotect"):
        assert allowed(name, 0, 0, read | write)
        assert not allowed(name, 0, 0, read | execute)


def test_a_socket_to_the_kernel_and_no_other() -> None:
    unix, inet, inet6, netlink, stream, datagram = 1, 2, 10, 16, 1, 2
    cloexec = 0o2000000
    assert allowed("socket", inet, stream | cloexec, 6)
    for family, kind in ((unix, stream), (inet, datagram), (inet6, stream), (netlink, 3)):
        assert not allowed("socket", family, kind)


def test_limits_are_read_and_not_set() -> None:
    """The pointer counts as a whole: one whose lower half is zero is a pointer."""
    core = 4
    assert allowed("prlimit64", 0, core, 0)
    assert not allowed("prlimit64", 0, core, 0x7F00_0000_0000)


def test_no_signal_through_a_file() -> None:
    get_flags, set_owner, set_signal, set_owner_ex = 3, 8, 10, 15
    assert allowed("fcntl", 3, get_flags)
    for command in (set_owner, set_signal, set_owner_ex):
        assert not allowed("fcntl", 3, command)


def test_the_name_of_a_thread_and_nothing_else_of_prctl() -> None:
    set_name, set_dumpable, set_subreaper = 15, 4, 36
    assert allowed("prctl", set_name)
    assert not allowed("prctl", set_dumpable)
    assert not allowed("prctl", set_subreaper)
