"""A launcher whose supervisors are taken over by their kernel, one message away.

Run as a script: ``hostile_supervisor.py FOLDER --socket FD``. In a supervisor, when a reply of its
kernel holds :data:`TAKE_OVER`, every attack of this file is tried, right where the bytes of a
kernel are judged: as code would that a kernel got to run there. ``FOLDER/arena`` says what is worth
it, and whether the lock-down is left out. The outcomes go to the test over descriptor 0, which a
supervisor leaves open. Production code has no such switch.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import gc
import json
import mmap
import os
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

TAKE_OVER: Final = b"take the supervisor over"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long
#: Numbers on x86_64; on aarch64 the second one.
_NUMBERS: Final = {
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "kill": (62, 129), "mount": (165, 40),
    "unshare": (272, 97), "setuid": (105, 146), "setns": (308, 268), "bpf": (321, 280),
    "perf_event_open": (298, 241), "io_uring_setup": (425, 425), "keyctl": (250, 219),
    "open_by_handle_at": (304, 265), "userfaultfd": (323, 282), "pidfd_getfd": (438, 438),
    "chroot": (161, 51), "shutdown": (48, 210),
    "sendto": (44, 206), "mmap": (9, 222),
}  # fmt: skip
_CLONE_NEWNET: Final = 0x40000000
_PTRACE_ATTACH: Final = 16
_F_SETSIG: Final = 10

Arena = dict[str, Any]


def _raw(name: str, *arguments: Any) -> int:
    """One system call that has no wrapper, by its number."""
    number = _NUMBERS[name][os.uname().machine == "aarch64"]
    longs = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result: int = _libc.syscall(ctypes.c_long(number), *longs)
    if result < 0:
        raise OSError(ctypes.get_errno(), name)
    return result


# -- attacks: each is told the arena, and returns if it got through --------------------------------


def _read(path: str) -> None:
    with open(path, "rb", buffering=0) as file:
        file.read(16)


def _write(path: str, flags: int = 0, text: bytes = b"") -> None:
    fd = os.open(path, os.O_WRONLY | flags, 0o600)
    try:
        os.write(fd, text)
    finally:
        os.close(fd)


def _find_audit_log(arena: Arena) -> None:
    """Among what is open: whoever has it can clear O_APPEND and overwrite."""
    wanted = os.stat(arena["audit"])
    for fd in range(1024):
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(fd), wanted):
                return
    raise OSError(errno.EBADF, "fstat")


def _signal_writer(arena: Arena) -> None:
    from sandbox_kernel.auditlog import AuditLog

    (log,) = [each for each in gc.get_objects() if isinstance(each, AuditLog)]
    _kill_through_pidfd(log._writer)


def _execute(arena: Arena) -> None:
    """In a child if there can be one; if not, what replaces the supervisor is no success either."""
    try:
        pid = os.fork()
    except OSError:
        os.execv("/bin/true", ["true"])
    if pid == 0:
        os.execv("/bin/true", ["true"])
    if os.waitpid(pid, 0)[1]:
        raise OSError(errno.ENOEXEC, "execve")


def _fork(arena: Arena) -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _connect_unix(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(path)


def _connect_tcp(port: int) -> None:
    with socket.socket(socket.AF_INET) as sock:
        sock.settimeout(2)
        sock.connect(("127.0.0.1", port))


def _reuse_by_shutdown(arena: Arena) -> None:
    fd = arena["listening"]
    _raw("shutdown", fd, socket.SHUT_RDWR)
    _connect_again(fd, arena["tcp"])


def _reuse_by_disconnect(arena: Arena) -> None:
    """connect() to AF_UNSPEC takes any TCP socket back to its beginning."""
    fd = arena["listening"]
    nowhere = struct.pack("=H14x", socket.AF_UNSPEC)
    _libc.connect(fd, nowhere, len(nowhere))
    _connect_again(fd, arena["tcp"])


def _reuse_by_fast_open(arena: Arena) -> None:
    """A send that connects first, at which Landlock does not look."""
    fd = arena["listening"]
    nowhere = struct.pack("=H14x", socket.AF_UNSPEC)
    _libc.connect(fd, nowhere, len(nowhere))
    os.set_blocking(fd, True)
    host = struct.pack("=H2s4s8x", socket.AF_INET, arena["tcp"].to_bytes(2, "big"), b"\x7f\0\0\x01")
    _raw("sendto", fd, b"x", 1, 0x2000_0000, host, len(host))


def _take_the_server_along(arena: Arena) -> None:
    """Who is in its cgroup is frozen and killed with it."""
    for leaf in arena["leaves"]:
        _write(f"{leaf}/cgroup.procs", text=str(arena["server"]).encode())


def _connect_again(fd: int, port: int) -> None:
    os.set_blocking(fd, True)
    host = struct.pack("=H2s4s8x", socket.AF_INET, port.to_bytes(2, "big"), b"\x7f\0\0\x01")
    if _libc.connect(fd, host, len(host)) < 0:
        raise OSError(ctypes.get_errno(), "connect")


def _read_memory(pid: int) -> None:
    text = ctypes.create_string_buffer(8)
    here = struct.pack("=QQ", ctypes.addressof(text), 8)
    there = struct.pack("=QQ", ctypes.addressof(_libc.getpid), 8)
    _raw("process_vm_readv", pid, here, 1, there, 1, 0)


def _attach(pid: int) -> None:
    _raw("ptrace", _PTRACE_ATTACH, pid, 0, 0)


def _kill_through_pidfd(pid: int) -> None:
    fd = os.pidfd_open(pid)
    try:
        signal.pidfd_send_signal(fd, signal.SIGURG)
    finally:
        os.close(fd)


def _signal_through_a_file(pid: int) -> None:
    """F_SETOWN and F_SETSIG: the kernel sends the signal when the file has news."""
    reader, writer = os.pipe()
    try:
        fcntl.fcntl(reader, fcntl.F_SETOWN, pid)
        fcntl.fcntl(reader, _F_SETSIG, signal.SIGURG)
    finally:
        os.close(reader)
        os.close(writer)


def _executable_memory(arena: Arena) -> None:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()


def _make_executable(arena: Arena) -> None:
    page = mmap.mmap(-1, 4096)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    if _libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(4096), 5) < 0:
        raise OSError(ctypes.get_errno(), "mprotect")


def _become_dumpable(arena: Arena) -> None:
    set_dumpable = 4
    if _libc.prctl(set_dumpable, 1, 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _allow_core_dump(arena: Arena) -> None:
    """With the limit 0 a program in core_pattern is started."""
    if _libc.setrlimit(resource.RLIMIT_CORE, struct.pack("=QQ", 0, 0)) < 0:
        raise OSError(ctypes.get_errno(), "setrlimit")


def _tell_the_launcher(arena: Arena) -> None:
    """The launcher removes what its supervisors wrote down, if they are killed."""
    victim = arena["bait"]
    found = os.lstat(victim)
    line = json.dumps([victim, found.st_dev, found.st_ino, found.st_ctime_ns]).encode() + b"\n"
    written = 0
    for fd in range(3, 200):
        with contextlib.suppress(OSError):
            writes = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_WRONLY
            if writes and os.fstat(fd).st_ino == arena["pipe"]:
                written += os.write(fd, line)
    if not written:
        raise OSError(errno.EBADF, "no pipe to the launcher")


ATTACKS: Final[dict[str, Callable[[Arena], object]]] = {
    "read the audit log": lambda a: _read(a["audit"]),
    "open the audit log without O_APPEND": lambda a: _write(a["audit"]),
    "have the audit log open": _find_audit_log,
    "signal the writer of the audit log": _signal_writer,
    "read a secret of the user": lambda a: _read(a["secret"]),
    "read a file of the workspace": lambda a: _read(a["notebook"]),
    "write a file of the workspace": lambda a: _write(a["notebook"]),
    "make a file in the workspace": lambda a: _write(a["new"], os.O_CREAT),
    "remove a file of the workspace": lambda a: os.unlink(a["bait"] + ".other"),
    "rename a file of the workspace": lambda a: os.rename(a["notebook"], a["notebook"]),
    "make a folder": lambda a: os.mkdir(a["new"] + ".folder"),
    "make a symlink": lambda a: os.symlink("/", a["new"] + ".link"),
    "change a mode": lambda a: os.chmod(a["notebook"], 0o600),
    "truncate a file": lambda a: os.truncate(a["notebook"], 1),
    "run a program": _execute,
    "fork": _fork,
    "connect to a unix socket of the host": lambda a: _connect_unix(a["unix"]),
    "connect to another kernel": lambda a: _connect_unix(a["kernel"]),
    "look into another kernel's run-time directory": lambda a: os.listdir(a["directory"]),
    "connect to a TCP port of the host": lambda a: _connect_tcp(a["tcp"]),
    "trace the server": lambda a: _attach(a["server"]),
    "read the memory of the server": lambda a: _read_memory(a["server"]),
    "open the memory of the server": lambda a: _read(f"/proc/{a['server']}/mem"),
    "read the environment of the server": lambda a: _read(f"/proc/{a['server']}/environ"),
    "read the status of the server": lambda a: _read(f"/proc/{a['server']}/status"),
    "open the memory of the launcher": lambda a: _read(f"/proc/{a['launcher']}/mem"),
    "signal the server": lambda a: os.kill(a["server"], signal.SIGURG),
    "signal the server through a pidfd": lambda a: _kill_through_pidfd(a["server"]),
    "signal the server through a file": lambda a: _signal_through_a_file(a["server"]),
    "mount": lambda a: _raw("mount", b"none", b"/tmp", b"tmpfs", 0, b""),
    "change the root": lambda a: _raw("chroot", b"/"),
    "unshare a namespace": lambda a: _raw("unshare", _CLONE_NEWNET),
    "enter a namespace": lambda a: _raw("setns", a["namespace"], 0),
    "take another id": lambda a: _raw("setuid", 0),
    "write to another cgroup": lambda a: _write(a["cgroup"], text=b"0"),
    "load a BPF program": lambda a: _raw("bpf", 0, 0, 0),
    "use io_uring": lambda a: _raw("io_uring_setup", 1, ctypes.create_string_buffer(256)),
    "count events": lambda a: _raw("perf_event_open", 0, 0, -1, -1, 0),
    "use the keyrings": lambda a: _raw("keyctl", 0, -3, 1),
    "hold a page fault": lambda a: _raw("userfaultfd", 1),
    "take a descriptor of the server": lambda a: _raw("pidfd_getfd", 0, 0, 0),
    "open by handle": lambda a: _raw("open_by_handle_at", -100, 0, 0),
    "map executable memory": _executable_memory,
    "make memory executable": _make_executable,
    "become dumpable": _become_dumpable,
    "allow a core dump": _allow_core_dump,
    "make a file without a name": lambda a: os.close(os.memfd_create("x")),
    "have the launcher remove a file": _tell_the_launcher,
    "reach the host through a socket that listens": _reuse_by_shutdown,
    "reach the host through a socket that is disconnected": _reuse_by_disconnect,
    "reach the host by a fast open": _reuse_by_fast_open,
    "memory that its limit does not count": lambda a: _raw("mmap", 0, 4096, 3, 0x21, -1, 0),
    "put the server into its own cgroup": _take_the_server_along,
}


def outcomes(arena: Arena) -> dict[str, str]:
    """``"0"`` for what got through, else the name of the errno."""
    found = {}
    for name, attack in ATTACKS.items():
        try:
            attack(arena)
            found[name] = "0"
        except OSError as error:
            found[name] = errno.errorcode.get(error.errno or 0, str(error))
        except Exception as error:
            found[name] = repr(error)
    return found


# -- the launcher ----------------------------------------------------------------------------------


def main(folder: Path, arguments: list[str]) -> int:
    from sandbox_kernel import launcher, supervisor
    from sandbox_kernel.channels.judge import Judge
    from sandbox_kernel.engine import landlock, steps
    from sandbox_kernel.leftovers import Leftovers

    arena: Arena = {}
    lock_down = supervisor.lock_down

    def noted_and_locked(rules: Any, *others: Any) -> None:
        arena["leaves"] = [str(leaf.path) for leaf in rules.needs.cgroup.leaves]
        if arena["locked"]:
            lock_down(rules, *others)

    judge_reply, close = Judge.reply, Leftovers.close

    def noted(self: Leftovers) -> None:
        """Its number is given to another pipe as soon as it is closed."""
        if self._fd >= 0:
            arena["pipe"] = os.fstat(self._fd).st_ino
        if arena["locked"]:
            close(self)

    def observe(step: steps.Step) -> None:
        """In each supervisor, before it does anything: what its sandbox is to be like."""
        if step is not steps.Step.REQUEST:
            return
        arena.update(json.loads((folder / "arena").read_text()))
        arena["namespace"] = os.open(f"/proc/{arena['server']}/ns/net", os.O_RDONLY)
        arena["launcher"] = os.getppid()
        # as the sockets of the clients' tcp endpoints; without those libzmq would end the process
        arena["listening"] = socket.create_server(("127.0.0.1", 0)).detach()
        if arena["locked"] is False:
            landlock.keep_signals_inside = lambda: False

    def taken_over(self: Judge, channel: Any, frames: list[bytes]) -> bool:
        if any(TAKE_OVER in frame for frame in frames):
            os.write(0, json.dumps(outcomes(arena)).encode())
        return judge_reply(self, channel, frames)

    supervisor.lock_down = noted_and_locked
    Judge.reply = taken_over  # type: ignore[method-assign]
    Leftovers.close = noted  # type: ignore[method-assign]
    steps.observe(observe)
    return launcher.main(arguments)


if __name__ == "__main__":
    told = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    told.connect(f"{sys.argv[1]}/told")
    os.dup2(told.fileno(), 0)
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
