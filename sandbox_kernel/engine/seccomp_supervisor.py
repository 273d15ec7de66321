"""Which system calls a supervisor may make once its sandbox is built, as data.

Read as :mod:`.seccomp_profile` is, which is the kernel's. This one is far shorter: after set-up a
supervisor moves messages between sockets that exist, connects to its kernel, kills what is inside
and removes what it made. It starts no program and no process, changes no right, makes no file, and
no memory of it becomes executable: what is imported later must be Python alone.

All other names that the kernel's profile knows fail with EPERM, and numbers that it does not know
with ENOSYS. What can only be said with a path or an address is Landlock's.
"""

from __future__ import annotations

from typing import Final

from .seccomp_profile import DEFAULT, NUMBERS, Action, Condition, Profile, Rule

_CLONE_THREAD: Final = 0x1_0000
#: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_CLONE_NEW: Final = 0x7E02_0000
#: O_CREAT, and the bit that is new in O_TMPFILE.
_CREATES: Final = 0o100 | 0o20000000
_PROT_EXEC: Final = 4
_MAP_SHARED: Final = 1
_MSG_FASTOPEN: Final = 0x2000_0000
_AF_INET: Final = 2
_SOCK_STREAM: Final = 1
_SOCK_TYPE: Final = 0xF
_TCP: Final = (0, 6)
#: F_DUPFD, GETFD, SETFD, GETFL, SETFL, DUPFD_CLOEXEC. Not F_SETOWN and F_SETSIG: with them an open
#: file sends any signal to any process of the user.
_FCNTL: Final = (0, 1, 2, 3, 4, 1030)
#: TCGETS, TIOCOUTQ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX, TIOCGWINSZ.
_IOCTL: Final = (0x5401, 0x5411, 0x541B, 0x5421, 0x5450, 0x5451, 0x5413)
#: PR_SET_NAME, PR_GET_NAME, PR_SET_VMA: threads of libzmq and the allocator name what is theirs.
_PRCTL: Final = (15, 16, 0x53564D41)
_NO_POINTER: Final = Condition(2, (0,), 0xFFFF_FFFF_FFFF_FFFF)


def _allow(reason: str, names: str, *conditions: Condition) -> Rule:
    return Rule(tuple(names.split()), Action.ALLOW, reason, conditions)


_ALLOWED: Final = (
    _allow(
        "read and write what is open; Landlock decides about opening",
        """read write readv writev pread64 lseek close dup flock
        stat fstat lstat newfstatat statx access faccessat faccessat2 getdents getdents64 getcwd
        readlink readlinkat umask""",
    ),
    _allow("no new file", "open", Condition(1, (0,), _CREATES)),
    _allow("no new file", "openat", Condition(2, (0,), _CREATES)),
    _allow(
        "remove sockets, the connection file, the cgroup; Landlock says where",
        "unlink unlinkat rmdir",
    ),
    _allow("flags of descriptors; none that sends signals", "fcntl", Condition(1, _FCNTL)),
    _allow("how much waits in a socket, and what Python asks of a file", "ioctl",
           Condition(1, _IOCTL)),
    _allow(
        "wait for events",
        """poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait
        epoll_pwait2 eventfd eventfd2 pipe2""",
    ),
    _allow("memory", "munmap mremap madvise brk mlock munlock mincore"),
    _allow("memory that is not executable", "mprotect", Condition(2, (0,), _PROT_EXEC)),
    _allow("memory that is not executable, and of its own: its limit does not count what is shared",
           "mmap", Condition(2, (0,), _PROT_EXEC), Condition(3, (0,), _MAP_SHARED)),
    _allow("a thread of libzmq, no process", "clone",
           Condition(0, (_CLONE_THREAD,), _CLONE_THREAD | _CLONE_NEW)),
    _allow(
        "threads",
        """futex futex_waitv futex_wake futex_wait futex_requeue set_robust_list rseq
        set_tid_address sched_yield sched_getaffinity sched_getparam sched_getscheduler gettid
        getcpu membarrier""",
    ),
    _allow("libzmq sets the ordinary class, and ends the process if it may not",
           "sched_setscheduler", Condition(1, (0,))),
    _allow("names of threads and of memory", "prctl", Condition(0, _PRCTL)),
    _allow(
        "its own end, and that of others through pidfds only: Landlock keeps them inside",
        """exit exit_group wait4 waitid pidfd_open pidfd_send_signal restart_syscall getpid
        rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack""",
    ),
    _allow(
        "clocks, and a timer of its own that wakes it when it works",
        "clock_gettime clock_getres gettimeofday time nanosleep clock_nanosleep setitimer",
    ),
    _allow("who and where it is", "getuid geteuid getgid getegid uname sysinfo getrusage times"),
    _allow("read a limit, set none", "prlimit64", _NO_POINTER),
    _allow("read a limit", "getrlimit"),
    _allow("random numbers", "getrandom"),
    _allow(
        "sockets that exist. One that listens in the host's net namespace could be made to connect "
        "there: Landlock refuses that, from ABI 4 on",
        "connect accept accept4 getsockname getpeername setsockopt getsockopt recvfrom recvmsg",
    ),
    _allow("send, and do not connect by it: Landlock looks at connect alone", "sendto",
           Condition(3, (0,), _MSG_FASTOPEN)),
    _allow("send, and do not connect by it", "sendmsg", Condition(2, (0,), _MSG_FASTOPEN)),
    _allow("cut a link to a kernel that sends without an end", "shutdown", Condition(1, (2,))),
    _allow("to the kernel; a unix socket could reach other servers of the user", "socket",
           Condition(0, (_AF_INET,)), Condition(1, (_SOCK_STREAM,), _SOCK_TYPE),
           Condition(2, _TCP)),
)  # fmt: skip

_ABSENT: Final = (Rule(("clone3", "openat2"), Action.ENOSYS, "callers fall back to clone, openat"),)

_decided: Final = frozenset(name for rule in (*_ALLOWED, *_ABSENT) for name in rule.names)
_REFUSED: Final = Rule(
    tuple(sorted(DEFAULT.names() - _decided)), Action.EPERM, "a supervisor has no use for it"
)

SUPERVISOR: Final = Profile((*_ALLOWED, *_ABSENT, _REFUSED), NUMBERS)
"""The profile of every supervisor, from its lock-down on."""
