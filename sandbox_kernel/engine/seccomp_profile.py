"""Which system calls a kernel may make, as data. :mod:`sandbox_kernel.engine.seccomp` compiles it.

Read it so: a call is **allowed** when one of the ``ALLOW`` rules that name it has all of its
conditions met. A name that stands anywhere in the profile and is not allowed by then fails with
EPERM, or with ENOSYS where a rule says so. A number that stands nowhere in it, because it is
newer than this file, fails with ENOSYS: programs take that for an older Linux and fall back. Any
other architecture's entry, and x32, kills the process.

So a condition that was forgotten refuses and never allows. The ``EPERM`` rules change nothing in
the compiled filter; they are here so that every name has been decided on by a person, with a
reason, and so that a test can hold the list against libseccomp's.

Conditions look at the low 32 bits (or fewer) of an argument: the kernel takes ``int`` for all of
those, and what a program leaves in the upper half must not decide.
"""

from __future__ import annotations

import enum
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final


class Action(enum.Enum):
    """What happens to a call."""

    ALLOW = "allow"
    EPERM = "EPERM"
    ENOSYS = "ENOSYS"


class Match(enum.Enum):
    """How a condition reads its values."""

    ONE_OF = "one of"
    NONE_OF = "none of"


@dataclass(frozen=True)
class Condition:
    """``args[arg] & mask`` is, or is not, among ``values``; every value lies within ``mask``."""

    arg: int
    values: tuple[int, ...]
    mask: int = 0xFFFF_FFFF
    match: Match = Match.ONE_OF

    def holds(self, args: tuple[int, ...]) -> bool:
        """Whether the six 64-bit arguments ``args`` meet it: the meaning, for tests and people."""
        return (args[self.arg] & self.mask in self.values) is (self.match is Match.ONE_OF)


@dataclass(frozen=True)
class Rule:
    """``action`` for each of ``names`` when all ``conditions`` hold; ``reason`` is for people."""

    names: tuple[str, ...]
    action: Action
    reason: str
    conditions: tuple[Condition, ...] = ()


@dataclass(frozen=True)
class Profile:
    """All rules, and numbers for names that an old libseccomp has not heard of."""

    rules: tuple[Rule, ...]
    numbers: Mapping[str, int] = field(default_factory=dict)

    def names(self) -> frozenset[str]:
        """Every name that the profile decides on."""
        return frozenset(name for rule in self.rules for name in rule.names)

    def decide(self, name: str, args: tuple[int, ...]) -> Action:
        """What happens to the call ``name(*args)``: the meaning of the profile, not its BPF."""
        decided = Action.EPERM if name in self.names() else Action.ENOSYS
        for rule in self.rules:
            if name in rule.names and all(c.holds(args) for c in rule.conditions):
                if rule.action is Action.ALLOW:
                    return Action.ALLOW
                decided = rule.action
        return decided


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _allow(reason: str, names: str, *conditions: Condition) -> Rule:
    return Rule(_names(names), Action.ALLOW, reason, conditions)


def _refuse(reason: str, names: str) -> Rule:
    return Rule(_names(names), Action.EPERM, reason)


# -- allowed whatever the arguments -----------------------------------------------------------

_PLAIN: Final = (
    _allow(
        "read, write and position open files",
        """read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close
        close_range dup dup2 dup3 fcntl flock fsync fdatasync sync syncfs sync_file_range
        ftruncate truncate fallocate fadvise64 readahead sendfile copy_file_range splice tee
        vmsplice cachestat""",
    ),
    _allow(
        "look at files and change their names, owners (no capability: own ids only) and times",
        """stat fstat lstat newfstatat statx statfs fstatfs access faccessat faccessat2 getdents
        getdents64 getcwd chdir fchdir rename renameat renameat2 rmdir link linkat unlink unlinkat
        symlink symlinkat readlink readlinkat chown fchown lchown fchownat umask utime utimes
        futimesat utimensat file_getattr""",
    ),
    _allow(
        "extended attributes; security.* and trusted.* need capabilities that are not there",
        """setxattr lsetxattr fsetxattr getxattr lgetxattr fgetxattr listxattr llistxattr
        flistxattr removexattr lremovexattr fremovexattr setxattrat getxattrat listxattrat
        removexattrat""",
    ),
    _allow(
        "wait for files, timers and events",
        """poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait
        epoll_pwait2 eventfd eventfd2 signalfd signalfd4 timerfd_create timerfd_settime
        timerfd_gettime inotify_init inotify_init1 inotify_add_watch inotify_rm_watch pipe pipe2
        io_setup io_destroy io_submit io_cancel io_getevents io_pgetevents""",
    ),
    _allow(
        "memory; locking is bounded by RLIMIT_MEMLOCK",
        """mmap munmap mprotect mremap msync mincore madvise brk mlock mlock2 munlock mlockall
        munlockall remap_file_pages memfd_create membarrier pkey_alloc pkey_free pkey_mprotect
        mseal map_shadow_stack mbind set_mempolicy get_mempolicy""",
    ),
    _allow(
        "processes and threads; clone has a rule of its own",
        """fork vfork execve execveat exit exit_group wait4 waitid getpid getppid gettid getpgid
        setpgid getpgrp getsid setsid set_tid_address set_robust_list get_robust_list rseq
        restart_syscall pidfd_open pidfd_send_signal process_mrelease prctl arch_prctl
        set_thread_area get_thread_area getcpu uname sysinfo times getrusage getrlimit setrlimit
        prlimit64""",
    ),
    _allow(
        "futexes",
        "futex futex_waitv futex_wake futex_wait futex_requeue",
    ),
    _allow(
        "signals, within the own pid namespace",
        """kill tkill tgkill rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending
        rt_sigtimedwait rt_sigqueueinfo rt_tgsigqueueinfo rt_sigsuspend sigaltstack pause alarm""",
    ),
    _allow(
        "scheduling; real-time classes are bounded by RLIMIT_RTPRIO and RLIMIT_NICE",
        """sched_yield sched_setparam sched_getparam sched_setscheduler sched_getscheduler
        sched_get_priority_max sched_get_priority_min sched_rr_get_interval sched_setaffinity
        sched_getaffinity sched_setattr sched_getattr getpriority setpriority ioprio_set
        ioprio_get""",
    ),
    _allow(
        "read clocks, sleep, timers of the process",
        """time gettimeofday clock_gettime clock_getres nanosleep clock_nanosleep getitimer
        setitimer timer_create timer_settime timer_gettime timer_getoverrun timer_delete""",
    ),
    _allow(
        "ids: without a capability a process can only swap the ids that it has",
        """getuid geteuid getgid getegid getgroups getresuid getresgid setuid setgid setreuid
        setregid setresuid setresgid setfsuid setfsgid setgroups capget capset""",
    ),
    _allow(
        "sockets that exist; socket and socketpair have a rule of their own",
        """connect accept accept4 bind listen shutdown getsockname getpeername setsockopt
        getsockopt sendto recvfrom sendmsg recvmsg sendmmsg recvmmsg""",
    ),
    _allow(
        "System V and POSIX IPC, in an ipc namespace of its own",
        """shmget shmat shmctl shmdt semget semop semctl semtimedop msgget msgsnd msgrcv msgctl
        mq_open mq_unlink mq_timedsend mq_timedreceive mq_notify mq_getsetattr""",
    ),
    _allow("random numbers", "getrandom"),
    _allow(
        "a sandbox inside the sandbox: filters and rulesets only ever take away",
        "seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self",
    ),
)

# -- allowed under a condition ----------------------------------------------------------------

#: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_CLONE_NEW: Final = 0x7E02_0000
#: Only unshare has CLONE_NEWTIME: in clone its bit belongs to the exit signal.
_CLONE_NEWTIME: Final = 0x80
_CLONE_REASON: Final = "no new namespace: a nested user namespace gives back every capability"

_SET_ID: Final = stat.S_ISUID | stat.S_ISGID
_SET_ID_REASON: Final = (
    "no set-uid or set-gid bit: the workspace is the user's own folder outside, and another local"
    " user who works with the notebook's author could run the file"
)

#: Flags that make open(2) create something and read its mode: O_CREAT, and the bit that is new
#: in O_TMPFILE (the other one is O_DIRECTORY). Both are the same on x86_64 and aarch64.
_O_CREAT: Final = 0o100
_O_TMPFILE_BIT: Final = 0o20000000
_CREATES: Final = _O_CREAT | _O_TMPFILE_BIT

#: Node types that are no device; type 0 means a regular file.
_NODE_TYPES: Final = (0, stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK)
_NODE_REASON: Final = "no device nodes, and " + _SET_ID_REASON.removeprefix("no ")
_S_IFMT: Final = 0o170000

_AF_UNIX: Final = 1
_AF_INET: Final = 2
_AF_INET6: Final = 10
_AF_NETLINK: Final = 16
_NETLINK_ROUTE: Final = 0
_SOCK_STREAM: Final = 1
_SOCK_DGRAM: Final = 2
#: The other bits of the type are SOCK_NONBLOCK and SOCK_CLOEXEC.
_SOCK_TYPE: Final = 0xF
_TCP: Final = (0, 6)
_UDP: Final = (0, 17)
_ICMP: Final = 1
_ICMPV6: Final = 58

_TIOCSTI: Final = 0x5412
_TIOCLINUX: Final = 0x541C


def _no_bits(arg: int, bits: int) -> Condition:
    return Condition(arg, (0,), bits)


def _creates(flags: int, mode: int) -> tuple[Condition, Condition]:
    """The flags in argument ``flags`` create a file, with a mode that has no set-id bit."""
    some = (_O_CREAT, _O_TMPFILE_BIT, _CREATES)
    return Condition(flags, some, _CREATES), _no_bits(mode, _SET_ID)


def _internet(family: int, kind: int, protocols: tuple[int, ...]) -> tuple[Condition, ...]:
    return Condition(0, (family,)), Condition(1, (kind,), _SOCK_TYPE), Condition(2, protocols)


_CONDITIONAL: Final = (
    _allow(_CLONE_REASON, "clone", _no_bits(0, _CLONE_NEW)),
    _allow(_CLONE_REASON, "unshare", _no_bits(0, _CLONE_NEW | _CLONE_NEWTIME)),
    _allow(_SET_ID_REASON, "chmod fchmod creat mkdir", _no_bits(1, _SET_ID)),
    _allow(_SET_ID_REASON, "fchmodat fchmodat2 mkdirat", _no_bits(2, _SET_ID)),
    # Without O_CREAT the kernel ignores the mode, and old programs leave anything in it.
    _allow(_SET_ID_REASON, "open", _no_bits(1, _CREATES)),
    _allow(_SET_ID_REASON, "open", *_creates(1, 2)),
    _allow(_SET_ID_REASON, "openat", _no_bits(2, _CREATES)),
    _allow(_SET_ID_REASON, "openat", *_creates(2, 3)),
    _allow(_NODE_REASON, "mknod", Condition(1, _NODE_TYPES, _S_IFMT | _SET_ID)),
    _allow(_NODE_REASON, "mknodat", Condition(2, _NODE_TYPES, _S_IFMT | _SET_ID)),
    _allow("sockets within the machine", "socket socketpair", Condition(0, (_AF_UNIX,))),
    # By type and protocol too: AF_INET with SOCK_PACKET becomes AF_PACKET inside the kernel, and
    # IPPROTO_SCTP, DCCP or SMC load modules that hardly anyone has looked at.
    _allow("TCP", "socket socketpair", *_internet(_AF_INET, _SOCK_STREAM, _TCP)),
    _allow("TCP", "socket socketpair", *_internet(_AF_INET6, _SOCK_STREAM, _TCP)),
    _allow("UDP, ping", "socket socketpair", *_internet(_AF_INET, _SOCK_DGRAM, (*_UDP, _ICMP))),
    _allow("UDP, ping", "socket socketpair", *_internet(_AF_INET6, _SOCK_DGRAM, (*_UDP, _ICMPV6))),
    _allow(
        "read the list of interfaces (getifaddrs); other netlink families are a wide open field",
        "socket socketpair",
        Condition(0, (_AF_NETLINK,)),
        Condition(2, (_NETLINK_ROUTE,)),
    ),
    _allow(
        "every ioctl but those that type into a terminal on someone else's behalf",
        "ioctl",
        Condition(1, (_TIOCSTI, _TIOCLINUX), match=Match.NONE_OF),
    ),
    _allow(
        "PER_LINUX, PER_LINUX32, both with UNAME26, the query; no READ_IMPLIES_EXEC, no ASLR off",
        "personality",
        Condition(0, (0, 8, 0x2_0000, 0x2_0008, 0xFFFF_FFFF)),
    ),
)

# -- refused ----------------------------------------------------------------------------------

_ABSENT: Final = (
    Rule(
        _names("clone3 openat2"),
        Action.ENOSYS,
        "flags and mode lie in a structure that a filter cannot see; callers fall back to clone"
        " and openat on ENOSYS, and only on that",
    ),
)

_REFUSED: Final = (
    _refuse("enter another namespace", "setns"),
    _refuse(
        "the mount API and the root directory",
        """mount umount2 pivot_root chroot open_tree open_tree_attr move_mount fsopen fsconfig
        fsmount fspick mount_setattr statmount listmount listns swapon swapoff""",
    ),
    _refuse("a second way to make every call, past this filter", "io_uring_setup io_uring_enter"),
    _refuse("as above", "io_uring_register"),
    _refuse("holds the kernel still at a page fault: every exploit's tool", "userfaultfd"),
    _refuse("keyrings are not namespaced by content", "add_key request_key keyctl"),
    _refuse("programs inside the kernel, and its counters", "bpf perf_event_open"),
    _refuse(
        "look into, write into or take from another process",
        """ptrace process_vm_readv process_vm_writev process_madvise pidfd_getfd kcmp
        move_pages migrate_pages""",
    ),
    _refuse("open files past every mount (the shocker escape)", "open_by_handle_at"),
    _refuse("is of use with open_by_handle_at only", "name_to_handle_at"),
    _refuse("files past the page cache's owner; nothing here needs it", "memfd_secret"),
    _refuse("flags of files that the owner outside could not undo", "file_setattr"),
    _refuse("watch a whole file system", "fanotify_init fanotify_mark"),
    _refuse(
        "another kernel, or code in this one",
        """kexec_load kexec_file_load create_module init_module finit_module delete_module
        get_kernel_syms query_module""",
    ),
    _refuse(
        "the clock of the machine",
        "settimeofday clock_settime clock_adjtime adjtimex",
    ),
    _refuse(
        "administration of the machine",
        """reboot acct quotactl quotactl_fd syslog sethostname setdomainname vhangup
        lookup_dcookie set_mempolicy_home_node""",
    ),
    _refuse("ports and segments of the processor", "iopl ioperm modify_ldt"),
    _refuse(
        "which security modules there are",
        "lsm_get_self_attr lsm_set_self_attr lsm_list_modules",
    ),
    _refuse(
        "obsolete, or never implemented",
        """_sysctl sysfs ustat uselib nfsservctl getpmsg putpmsg afs_syscall tuxcall security
        vserver epoll_ctl_old epoll_wait_old""",
    ),
)

#: From 424 on a number is the same on every architecture: the kernel's own promise since 5.1.
NUMBERS: Final[Mapping[str, int]] = {
    name: number
    for number, name in enumerate(
        _names(
            """pidfd_send_signal io_uring_setup io_uring_enter io_uring_register open_tree
            move_mount fsopen fsconfig fsmount fspick pidfd_open clone3 close_range openat2
            pidfd_getfd faccessat2 process_madvise epoll_pwait2 mount_setattr quotactl_fd
            landlock_create_ruleset landlock_add_rule landlock_restrict_self memfd_secret
            process_mrelease futex_waitv set_mempolicy_home_node cachestat fchmodat2
            map_shadow_stack futex_wake futex_wait futex_requeue statmount listmount
            lsm_get_self_attr lsm_set_self_attr lsm_list_modules mseal setxattrat getxattrat
            listxattrat removexattrat open_tree_attr file_getattr file_setattr listns"""
        ),
        start=424,
    )
}

DEFAULT: Final = Profile(_PLAIN + _CONDITIONAL + _ABSENT + _REFUSED, NUMBERS)
"""The profile of every kernel."""
