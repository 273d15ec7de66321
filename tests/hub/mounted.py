"""In a mount namespace of its own: mount the v1 controllers that nobody mounted, and try each.

::

    unshare --mount --propagation private python mounted.py CASE HINT

Prints one line of JSON for the test that started it. A hierarchy of v1 is the whole machine's, only
its mount is this process's: at the end it is dissolved, so that its controllers are free again.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sandbox_kernel.engine.cgroups import KernelCgroup, create
from sandbox_kernel.spec import Caps, MissingCap, parse_spec

MOUNTED = ("net_cls", "net_prio", "perf_event")
PATIENCE = 10.0
MAP_HUGETLB = 0x40000


def make(hint: str, **caps: Any) -> KernelCgroup:
    return create(
        parse_spec(caps).caps if caps else Caps(),
        "kernel-root",
        uid=0,
        hint=hint,
        on_missing=MissingCap.ERROR,
    )


def in_group(group: KernelCgroup, run: Callable[[], Any]) -> Any:
    """What ``run`` returns in a child that is in the group."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            group.join()
            os.write(write_end, json.dumps(run()).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return json.loads(said)


def outcome(call: Callable[[], Any]) -> str:
    try:
        call()
    except OSError as error:
        return os.strerror(error.errno or 0)
    return "ok"


def text(group: KernelCgroup, name: str) -> str:
    (path,) = [leaf.path / name for leaf in group.leaves if (leaf.path / name).exists()]
    return path.read_text().strip()


# -- cases ---------------------------------------------------------------------------------------


def net_classid(hint: str) -> Any:
    """Sockets are marked: ``ss`` reads the class of a listening one."""
    group = make(hint, net_classid=0x100001)

    def listen() -> str:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            command = ["ss", "-H", "-t", "-l", "-n", "--tos", f"sport = :{port}"]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    found = {"file": text(group, "net_cls.classid"), "ss": in_group(group, listen)}
    group.remove()
    return found


def net_prio(hint: str) -> Any:
    group = make(hint, net_prio={"lo": 5})
    found = dict(line.split() for line in text(group, "net_prio.ifpriomap").splitlines())
    group.remove()
    return found


def perf_event(hint: str) -> Any:
    """For accounting: where it is handed over, kernels are in it."""
    group = make(hint, pids=32)
    lines = in_group(group, lambda: Path("/proc/self/cgroup").read_text().splitlines())
    group.remove()
    return [line.split(":")[2] for line in lines if line.split(":")[1] == "perf_event"]


def devices(hint: str) -> Any:
    group = make(hint, devices=["/dev/zero"])

    def look() -> dict[str, str]:
        names = ("null", "zero", "full", "urandom")
        return {name: outcome(lambda n=name: Path("/dev", n).open("rb").close()) for name in names}

    found = in_group(group, look)
    group.remove()
    return found


def hugetlb(hint: str) -> Any:
    """Eight pages are there. Six may be had with a cap of 12M, and seven not."""
    pool = Path("/proc/sys/vm/nr_hugepages")
    before = pool.read_text()
    pool.write_text("8")
    try:
        group = make(hint, hugetlb={"2MB": "12M"})

        def allocate(pages: int) -> str:
            def run() -> None:
                size = pages * 2 * 2**20
                flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_HUGETLB
                with mmap.mmap(-1, size, flags=flags) as memory:
                    for at in range(0, size, 2 * 2**20):
                        memory[at] = 1

            return outcome(run)

        found = {
            "pool": int(pool.read_text()),
            "six": in_group(group, lambda: allocate(6)),
            "seven": in_group(group, lambda: allocate(7)),
        }
        group.remove()
        found["without"] = allocate(7)
    finally:
        pool.write_text(before)
    return found


def cpu_rt(hint: str) -> Any:
    """A real-time loop gets a tenth of its CPU, where it would have had nearly all of it."""
    above = Path("/sys/fs/cgroup/cpu", hint, "cpu.rt_runtime_us")
    above.write_text("200000")
    group = make(hint, cpu_rt=0.1)

    def spin() -> float:
        # Linux keeps the share for each CPU, and may move a loop that has used up one of them.
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        begin, used = time.monotonic(), time.process_time()
        while time.monotonic() < begin + 2:
            pass
        return (time.process_time() - used) / (time.monotonic() - begin)

    found = in_group(group, spin)
    group.remove()
    return found


@contextlib.contextmanager
def loop_disk() -> Iterator[tuple[str, Path]]:
    """A file behind a loop device: its node, and the file that names its scheduler."""
    with tempfile.NamedTemporaryFile(dir="/var/tmp") as file:
        file.truncate(32 * 2**20)
        command = ["losetup", "--find", "--show", "--direct-io=off", file.name]
        loop = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        try:
            yield loop, Path("/sys/block", Path(loop).name, "queue/scheduler")
        finally:
            subprocess.run(["losetup", "--detach", loop], check=True)


def io_weight(hint: str) -> Any:
    """On a disk of its own, whose scheduler may be changed: first not bfq, then bfq."""
    with loop_disk() as (loop, scheduler):
        io = [{"device": loop, "weight": 300}]
        scheduler.write_text("none")
        try:
            make(hint, io=io).remove()
            refused = "it was not"
        except Exception as error:
            refused = str(error)
        scheduler.write_text("bfq")
        group = make(hint, io=io)
        taken = text(group, "blkio.bfq.weight_device")
        group.remove()
        scheduler.write_text("none")
    return {"refused": refused, "taken": taken, "loop": Path(loop).name}


CASES = (net_classid, net_prio, perf_event, devices, hugetlb, cpu_rt, io_weight)


# -- mounting ------------------------------------------------------------------------------------


def mount(source: str, target: str, kind: str, data: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(source.encode(), target.encode(), kind.encode(), 0, data.encode()):
        raise OSError(ctypes.get_errno(), f"mount {kind} {data}")


def hierarchy_of(controller: str) -> int:
    """Its number; 0 is none."""
    lines = (line.split() for line in Path("/proc/cgroups").read_text().splitlines())
    return next(int(words[1]) for words in lines if words[0] == controller)


@contextlib.contextmanager
def hierarchies(hint: str) -> Iterator[None]:
    """Each of MOUNTED below /sys/fs/cgroup, with a directory ``hint`` in it."""
    before = {name: hierarchy_of(name) for name in MOUNTED}
    with tempfile.TemporaryDirectory() as top:
        mount("none", top, "tmpfs", "")
        try:
            for name in MOUNTED:
                os.mkdir(f"{top}/{name}")
                mount("none", f"{top}/{name}", "cgroup", name)
                os.mkdir(f"{top}/{name}/{hint}")
            yield
        finally:
            for name in MOUNTED:
                with contextlib.suppress(FileNotFoundError):
                    os.rmdir(f"{top}/{name}/{hint}")
                subprocess.run(["umount", f"{top}/{name}"], check=True)
                if not before[name]:
                    dissolve(name, f"{top}/{name}")
            subprocess.run(["umount", top], check=True)


def dissolve(name: str, point: str) -> None:
    """A hierarchy that is unmounted while a child is still dying stays; the next time it goes."""
    end = time.monotonic() + PATIENCE
    while hierarchy_of(name):
        if time.monotonic() > end:
            raise TimeoutError(f"the hierarchy of {name} would not go")
        time.sleep(0.05)
        if hierarchy_of(name):
            mount("none", point, "cgroup", name)
            subprocess.run(["umount", point], check=True)


def main(case: str, hint: str) -> None:
    signal.alarm(60)
    with hierarchies(hint):
        found = next(run for run in CASES if run.__name__ == case)(hint)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
