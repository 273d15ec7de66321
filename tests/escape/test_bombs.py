"""Bombs: each is bounded, explained, and leaves the host and the kernels beside it as they were."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from escape.attacks import RECORD, Arena, Attack, Box, every, install, number, shown
from escape.weaknesses import Wall
from integration.remains import caps
from integration.sandboxes import Cell, inside, run_cell, started
from probes import TIMEOUT_FACTOR

MIB = 1024**2
PATIENCE = 60 * TIMEOUT_FACTOR
PIDS = 64
INODES = 1000
pytestmark = pytest.mark.needs("cgroups")


# -- what no cgroup counts ------------------------------------------------------------------------


def count_inotify() -> int:
    """Instances, until one is refused."""
    import ctypes
    import os

    from escape.attacker import libc

    found: list[int] = []
    try:
        while len(found) < 2000 and (fd := libc.inotify_init()) >= 0:
            found.append(fd)
        return len(found)
    finally:
        ctypes.set_errno(0)
        for fd in found:
            os.close(fd)


def count_signals() -> int:
    """Queued real-time signals, in a child that blocks them."""
    import os

    from escape.attacker import in_child, libc

    def queue() -> int:
        import signal

        signal.pthread_sigmask(signal.SIG_BLOCK, {40})
        me, sent = os.getpid(), 0
        while sent < 20_000 and libc.sigqueue(me, 40, 0) == 0:
            sent += 1
        return sent

    return int(in_child(queue))


def count_message_queues(asked: int) -> int:
    """POSIX queues of ten messages of 8 KiB, until one is refused."""
    import ctypes
    import os

    from escape.attacker import libc, raw

    attributes = (ctypes.c_long * 8)(0, 10, 8192, 0)
    names = []
    while len(names) < 2000:
        name = f"bomb{len(names)}".encode() + b"\0"
        fd, _ = raw(asked, name, os.O_CREAT | os.O_RDWR, 0o600, attributes)
        if fd < 0:
            break
        os.close(fd)
        names.append(name)
    unlink = {240: 241, 180: 181}[asked]
    for name in names:
        libc.syscall(unlink, name)
    return len(names)


def count_terminals() -> int:
    import os

    found = []
    try:
        while len(found) < 400:
            found.append(os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        pass
    count = len(found)
    for fd in found:
        os.close(fd)
    return count


def count_descriptors() -> int:
    import os
    import resource

    from escape.attacker import in_child

    def fill() -> int:
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        count = 0
        try:
            while count < 200_000:
                os.open("/dev/null", os.O_RDONLY)
                count += 1
        except OSError:
            pass
        return count

    return int(in_child(fill, 60))


def count_pipes() -> int:
    import os

    from escape.attacker import in_child

    def fill() -> int:
        count = 0
        try:
            while count < 100_000:
                os.pipe()
                count += 1
        except OSError:
            pass
        return count

    return int(in_child(fill, 60))


def count_inodes() -> int:
    """Files in /dev/shm."""
    import os
    import shutil

    os.mkdir("/dev/shm/bomb")
    count = 0
    try:
        while count < 5000:
            os.close(os.open(f"/dev/shm/bomb/{count}", os.O_CREAT | os.O_WRONLY))
            count += 1
    except OSError:
        pass
    shutil.rmtree("/dev/shm/bomb")
    return count


def lock_memory() -> int:
    """MiB that can be locked, up to 128."""
    import mmap

    from escape.attacker import in_child, libc

    def lock() -> int:
        import ctypes

        count = 0
        while count < 128:
            page = mmap.mmap(-1, 1 << 20)
            address = ctypes.addressof(ctypes.c_char.from_buffer(page))
            if libc.mlock(ctypes.c_void_p(address), ctypes.c_size_t(1 << 20)) != 0:
                break
            globals().setdefault("kept", []).append(page)
            count += 1
        return count

    return int(in_child(lock))


class UpTo:
    """Equal to every number of a range: what is counted depends a little on what is there."""

    def __init__(self, least: int, most: int) -> None:
        self.least, self.most = least, most

    def __eq__(self, other: object) -> bool:
        return isinstance(other, int) and self.least <= other <= self.most

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{self.least} to {self.most}"


def _host(name: str) -> int:
    return int(Path("/proc/sys/user", name).read_text())


MOST_INOTIFY = _host("max_inotify_instances") // 8
QUEUED = 4096
ATTACKS = [
    Attack("inotify instances", count_inotify, UpTo(1, MOST_INOTIFY), (Wall.COUNTS,),
           through=UpTo(MOST_INOTIFY + 1, _host("max_inotify_instances"))),
    Attack("queued signals", count_signals, UpTo(1000, QUEUED), (Wall.RLIMITS,),
           through=UpTo(QUEUED + 1, 20_000)),
    Attack("POSIX message queues", count_message_queues, UpTo(0, 10),
           arguments=(number("mq_open"),),
           cannot_be_shown="Landlock refuses them all; a login's own limit is the same"),
    Attack("pseudo terminals", count_terminals, UpTo(1, 256), (Wall.PTY_LIMIT,),
           through=UpTo(257, 400)),
    Attack("descriptors of a process", count_descriptors, UpTo(500, 65_536),
           cannot_be_shown="the login's own limit may be lower"),
    Attack("pipes of a process", count_pipes, UpTo(200, 32_768),
           cannot_be_shown="they are bounded by the descriptors and by the memory cap"),
    Attack("inodes of a file system in memory", count_inodes, UpTo(INODES - 50, INODES),
           (Wall.INODES,), through=UpTo(INODES + 1, 5000)),
    Attack("locked memory", lock_memory, UpTo(0, 64),
           cannot_be_shown="the login's own limit may be lower"),
]  # fmt: skip


@every(ATTACKS)
def test_is_held(attack: Attack, arena: Arena) -> None:
    arena.attack(attack)
    assert_host_can_work()


@shown(ATTACKS)
def test_gets_through_without_the_wall(attack: Attack, arena: Arena) -> None:
    arena.control(attack)


def test_without_landlock_the_rlimit_bounds_message_queues(arena: Arena) -> None:
    box = arena.box(without=[Wall.LANDLOCK])
    assert 0 < inside(box.client, count_message_queues, number("mq_open")) <= 10


def assert_host_can_work() -> None:
    """What a bomb uses up is there for the user outside: a process, files, a pipe, a terminal."""
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    for fd in (*os.pipe(), *os.openpty()):
        os.close(fd)
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"x" * MIB)


# -- what a cgroup counts, and what ends a kernel --------------------------------------------------


@contextlib.contextmanager
def victim(arena: Arena, name: str, **config: Any) -> Iterator[Box]:
    """A kernel with small caps for one bomb; afterwards host and neighbours are as before."""
    RECORD.tried.add(name)
    given = {**caps(memory="192M", pids=PIDS), "tmp_size": "1G", **config}
    with started(arena._folder, given, cwd=arena.host.work) as (km, client):
        install(client)
        yield Box(km, client, contextlib.ExitStack())
    arena.host.assert_unchanged()
    assert_host_can_work()
    arena.assert_others_live()
    RECORD.held.add(name)


def bomb(box: Box, code: str) -> Cell:
    return run_cell(box.client, code, timeout=PATIENCE)


def test_a_fork_bomb(arena: Arena) -> None:
    code = """
    import os, signal
    pids = []
    try:
        while len(pids) < 5000:
            pid = os.fork()
            if pid == 0:
                signal.pause()
                os._exit(0)
            pids.append(pid)
    except OSError as error:
        print(len(pids), error.errno)
    for pid in pids:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
    """
    with victim(arena, "fork bomb") as box:
        count, code_of_errno = map(int, bomb(box, code.replace("\n    ", "\n")).stdout.split())
        assert 0 < count < PIDS and code_of_errno == 11
        assert bomb(box, "1 + 1").result == "2"


def test_a_bomb_of_threads(arena: Arena) -> None:
    code = """
    import threading
    stop, count = threading.Event(), 0
    try:
        while count < 5000:
            threading.Thread(target=stop.wait).start()
            count += 1
    except RuntimeError as error:
        print(count)
    stop.set()
    """
    with victim(arena, "thread bomb") as box:
        assert 0 < int(bomb(box, code.replace("\n    ", "\n")).stdout) < PIDS


#: name → (the cell, what its death is called). ``None``: the kernel lives on.
DEATHS = {
    "memory": ("x = [bytearray(2**20) for _ in range(4000)]", "MemoryCapExceeded"),
    "memory through tmpfs": (
        "f = open('/tmp/big', 'wb')\nfor _ in range(1000): f.write(b'x' * 2**20)\nf.flush()",
        "MemoryCapExceeded",
    ),
    "SIGSEGV": ("import ctypes; ctypes.string_at(0)", "KernelCrashed"),
    "abort": ("import os; os.abort()", "KernelCrashed"),
    "deep recursion": (
        "import sys, threading\nsys.setrecursionlimit(10**9)\n"
        "class A:\n    def __getattr__(self, n): return getattr(self, n + 'x')\n"
        "def f(n): return [*map(f, [n + 1])]\nf(0)",
        "KernelCrashed",
    ),
    "os._exit": ("import os; os._exit(3)", "KernelExited"),
    "a call of a foreign architecture": (
        "import ctypes; ctypes.CDLL(None).syscall(0x40000027)", "ForbiddenSyscall",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DEATHS)
def test_a_kernel_that_kills_itself_is_explained(name: str, arena: Arena) -> None:
    code, ename = DEATHS[name]
    if name.startswith("a call of") and os.uname().machine != "x86_64":
        ename = "KernelCrashed"
    with victim(arena, name) as box:
        cell = bomb(box, code)
        assert cell.ename == ename, (cell.ename, cell.evalue)
        assert len(cell.evalue) > 20


def test_memory_through_two_processes(arena: Arena) -> None:
    """Neither has as much as the cap; together they have more."""
    code = (
        "import os, signal\n"
        "pids = []\n"
        "for _ in range(3):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        x = bytearray(120 * 2**20)\n"
        "        for at in range(0, len(x), 4096): x[at] = 1\n"
        "        signal.pause()\n"
        "    pids.append(pid)\n"
        "print(os.waitpid(-1, 0)[1])\n"
        "for pid in pids:\n"
        "    try: os.kill(pid, 9)\n"
        "    except OSError: pass\n"
    )
    with victim(arena, "memory through two processes") as box:
        cell = bomb(box, code)
        assert cell.stdout.strip() == "9" or cell.ename == "MemoryCapExceeded"


#: Cells after which the kernel answers as before.
SURVIVED = {
    "sys.exit": "import sys; sys.exit(3)",
    "kill(-1)": "import os, signal\ntry: os.kill(-1, signal.SIGKILL)\nexcept OSError: pass",
    "kill of pid 1": "import os; os.kill(1, 9)",
    "null byte in a path": "try: open('a' + chr(0))\nexcept ValueError: print('refused')",
    "null byte in an output": "print(chr(0) * 1000)",
    "a sparse file of 1024 TiB": (
        "import os\nf = os.open('/tmp/sparse', os.O_CREAT | os.O_RDWR)\n"
        "try: os.truncate(f, 2**50)\nexcept OSError: pass\nos.close(f); os.unlink('/tmp/sparse')"
    ),
    "an endless line": "print('x' * (8 * 2**20))",
    "names that end nothing": "print('</script>' + chr(27) + ']0;title' + chr(7) + chr(13))",
    "recursion": "def f(): return f()\ntry: f()\nexcept RecursionError: print('refused')",
}  # fmt: skip


@pytest.fixture(scope="module")
def survivor(arena: Arena) -> Iterator[Box]:
    with victim(arena, "one kernel for all that it survives") as box:
        yield box


@pytest.mark.parametrize("name", SURVIVED)
def test_a_kernel_lives_on(name: str, survivor: Box, arena: Arena) -> None:
    RECORD.tried.add(name)
    bomb(survivor, SURVIVED[name])
    assert bomb(survivor, "6 * 7").result == "42"
    arena.host.assert_unchanged()
    arena.assert_others_live()
    RECORD.held.add(name)


def test_closing_every_descriptor(arena: Arena) -> None:
    """The kernel is deaf or dead then; it can be ended, and is not replaced by anything."""
    with victim(arena, "close of every descriptor") as box:
        box.client.execute("import os; os.closerange(0, 65536)")
        deadline = time.monotonic() + 2
        while box.km.is_alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        box.km.shutdown_kernel(now=True)
        assert not box.km.is_alive()


def supervisor_peak(box: Box) -> int:
    """Bytes, the most that it ever held."""
    from integration.sandboxes import said

    status = Path(f"/proc/{said(box.km).supervisor_pid}/status").read_text()
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) * 1024


def test_a_flood_of_output(arena: Arena) -> None:
    """More than fits anywhere: it passes or is dropped, and nobody holds it.

    As binary buffers, which cost the least time of all that is output, and a little as text.
    """
    code = (
        "from ipykernel.kernelapp import IPKernelApp as _A\n"
        "_k = _A.instance().kernel\n"
        "_buffer = bytes(2**20)\n"
        "for _ in range(200):\n"
        "    _k.session.send(_k.iopub_socket, 'display_data', {'data': {}}, buffers=[_buffer])\n"
        "for _ in range(5): print('x' * 2**20, flush=True)"
    )
    with victim(arena, "output flood", memory="1G") as box:
        before = supervisor_peak(box)
        assert bomb(box, code).ok
        assert supervisor_peak(box) - before < 150 * MIB
        assert bomb(box, "6 * 7").result == "42"


def test_a_huge_message(arena: Arena) -> None:
    """Above the limit of the proxy: it never arrives, and the supervisor does not hold it."""
    code = (
        "from ipykernel.kernelapp import IPKernelApp as _A\n"
        "_k = _A.instance().kernel\n"
        "_k.session.send(_k.iopub_socket, 'display_data', {'data': {}},"
        " buffers=[bytes(100 * 2**20)])"
    )  # fmt: skip
    with victim(arena, "huge message", memory="768M") as box:
        before = supervisor_peak(box)
        box.client.execute(code)
        deadline = time.monotonic() + 10
        while supervisor_peak(box) == before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert supervisor_peak(box) - before < 256 * MIB


# -- the workspace ---------------------------------------------------------------------------------


def deep(folder: str) -> int:
    """A thousand folders, one in the other, beyond what a path can name."""
    import os

    top = os.open(".", os.O_RDONLY)
    os.mkdir(folder)
    os.chdir(folder)
    for _ in range(1000):
        os.mkdir("d" * 50)
        os.chdir("d" * 50)
    os.fchdir(top)
    os.close(top)
    return 1000


def odd_names(folder: str) -> int:
    """What no program expects of a name."""
    import os

    names = [b"\n", b"\xff\xfe", b"-rf", b"x" * 255, b"\x1b[2J", b"..\xc0\xaf", b" ", b"$(id)"]
    for name in names:
        with open(os.path.join(folder.encode(), name), "w"):
            pass
    return len(names)


def huge_file(path: str) -> str:
    import os

    from escape.attacker import outcome

    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        return outcome(os.ftruncate, fd, 2**50)
    finally:
        os.close(fd)


def test_what_is_left_in_the_workspace_stops_nobody(arena: Arena) -> None:
    """Deep folders, odd names and a sparse file; the sandbox ends at once, for it reads none."""
    folder = arena.host.work / "odd"
    folder.mkdir()
    with victim(arena, "folders 1000 deep, illegal names, a sparse file") as box:
        assert inside(box.client, deep, "odd/deep") == 1000
        assert inside(box.client, odd_names, "odd") == 8
        assert inside(box.client, huge_file, "odd/huge") in ("0", "EFBIG", "EINVAL")
        began = time.monotonic()
    assert time.monotonic() - began < PATIENCE
    huge = (folder / "huge").stat()
    assert huge.st_blocks * 512 < MIB
    with started(arena._folder, cwd=arena.host.work) as (_, client):
        assert run_cell(client, "1 + 1").result == "2"
    remove_deep(folder)


def remove_deep(folder: Path) -> None:
    """One level after the other: the way down is longer than a path may be."""
    while (folder / "deep").exists() and (below := next((folder / "deep").iterdir(), None)):
        below.rename(folder / "next")
        (folder / "deep").rmdir()
        (folder / "next").rename(folder / "deep")
    shutil.rmtree(folder)
