"""The rows of ``docs/caps.md``: for each cap a configuration, and cells that try to get past it.

What is run inside is sent as source (:func:`integration.sandboxes.inside`), so those functions
import what they need.
"""

from __future__ import annotations

import os
import queue
import subprocess
import time
from pathlib import Path
from typing import Any

import probes
import pytest
from integration.cells import begin, finish
from integration.matrix import (
    ACCEPTED,
    NOT_COVERED,
    Misbehave,
    Outcome,
    Row,
    Scene,
    assert_share,
    cpu_of,
)
from integration.remains import kernel_pid
from integration.sandboxes import inside, run_cell, value
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

from sandbox_kernel.errors import CgroupError
from sandbox_kernel.spec import parse_spec

MIB = 2**20
GREEDY = "kept = [bytes(16 * 2**20).replace(b'\\0', b'x') for _ in range(64)]"
HUGE = 2 * MIB
#: So little that a busy machine has it left.
CORES = 0.25
#: With so little a kernel is slow to start.
PATIENT = {"start_timeout": 120}


# -- what is run inside --------------------------------------------------------------------------


def bomb(keep: bool) -> list[Any]:
    """Forks until it gets no more; how that was said, and how many there were."""
    import errno
    import os
    import signal

    children: list[int] = []
    said = "nothing"
    try:
        while len(children) < 1000:
            pid = os.fork()
            if pid == 0:
                signal.alarm(120)
                signal.pause()
                os._exit(0)
            children.append(pid)
    except OSError as error:
        said = errno.errorcode[error.errno or 0]
    for pid in [] if keep else children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return [said, len(children)]


#: So many processes that stay.
HOLD = """
for _ in range({count}):
    if os.fork() == 0:
        signal.alarm(120)
        signal.pause()
"""


def burn(cpus: list[int]) -> None:
    """One busy loop on each of these CPUs, which goes on."""
    import os
    import signal

    for cpu in cpus:
        if os.fork() == 0:
            signal.alarm(120)
            os.sched_setaffinity(0, {cpu})
            while True:
                pass


def direct(way: str, size: int, count: int) -> float:
    """Read or write so many blocks past the page cache; the seconds it took."""
    import mmap
    import os
    import time

    fd = os.open("data", os.O_DIRECT | (os.O_RDONLY if way == "read" else os.O_WRONLY))
    block = mmap.mmap(-1, size)
    start = time.monotonic()
    for number in range(count):
        if way == "read":
            os.preadv(fd, [block], number * size)
        else:
            os.pwritev(fd, [block], number * size)
    took = time.monotonic() - start
    os.close(fd)
    return took


def huge_pages(count: int) -> str:
    import mmap
    import os

    size = 2 * 2**20
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000  # MAP_HUGETLB
    try:
        with mmap.mmap(-1, count * size, flags=flags) as memory:
            for number in range(count):
                memory[number * size] = 1
    except OSError as error:
        return os.strerror(error.errno or 0)
    return "ok"


# -- memory --------------------------------------------------------------------------------------


def memory(scene: Scene, km: KernelManager, client: BlockingKernelClient) -> None:
    """A kernel beside it, with the same cap, does not notice."""
    with scene.kernel({"memory": "256M"}, "b") as (_, sibling):
        assert run_cell(sibling, "kept = bytes(64 * 2**20)").ok
        cell = run_cell(client, GREEDY)
        assert cell.ename == "MemoryCapExceeded"
        assert cell.evalue.startswith("the kernel reached its memory cap of 256 MiB, peak ")
        assert value(sibling, "len(kept)") == 64 * MIB


#: Slowly: who is at the limit and has pages on their way to the swap may be killed before.
SWAPPED = """
import time
first = []
for _ in range(210):
    first.append(bytes(2**20).replace(b'\\0', b'x'))
    time.sleep(0.01)
"""


def memory_swap(scene: Scene, km: KernelManager, client: BlockingKernelClient) -> Outcome | None:
    """More than memory alone fits, more than both does not."""
    is_v2 = scene.is_v2(km, "memory")
    if is_v2:
        assert scene.text(km, "memory.swap.max") == str(128 * MIB)
    else:
        both = int(scene.text(km, "memory.memsw.limit_in_bytes"))
        assert 0 <= both - (192 + 128) * MIB <= 4096
    if len(Path("/proc/swaps").read_text().splitlines()) < 2:
        return Outcome(ACCEPTED, "the machine has no swap")
    assert run_cell(client, SWAPPED).ok
    assert (scene.group(km).usage().memory_swap or 0) > 8 * MIB
    cell = run_cell(client, GREEDY)
    assert cell.ename == "MemoryCapExceeded", cell.evalue
    return None


GROW = """
import threading, time
kept = []
def grow():
    for _ in range(400):
        kept.append(bytes(2**20).replace(b'\\0', b'x'))
        time.sleep(0.01)
threading.Thread(target=grow, daemon=True).start()
"""


def memory_high(scene: Scene, km: KernelManager, client: BlockingKernelClient) -> None:
    """It grows on and stays there all the same: its pages are taken away, or it has to wait."""
    group = scene.group(km)
    assert run_cell(client, GROW).ok
    deadline = time.monotonic() + 30 * probes.TIMEOUT_FACTOR
    while not group.events().memory_high:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    until = time.monotonic() + 5
    while time.monotonic() < until:
        assert (group.usage().memory_current or 0) < (128 + 32) * MIB
        time.sleep(0.05)
    assert group.events().oom_kill == 0


def memory_low(scene: Scene, km: KernelManager, client: BlockingKernelClient) -> Outcome:
    name = "memory.low" if scene.is_v2(km, "memory") else "memory.soft_limit_in_bytes"
    assert scene.text(km, name) == str(64 * MIB)
    return Outcome(ACCEPTED, "it protects, where the whole machine runs out of memory")


# -- cpu -----------------------------------------------------------------------------------------


def cpus(scene: Scene, km: KernelManager, client: BlockingKernelClient) -> None:
    inside(client, burn, sorted(os.sched_getaffinity(0)))
    assert_share([scene.group(km)], CORES, scene.cpu_directory(km))


def cpu_weight(scene: Scene, km: KernelManager, client: BlockingKernelClient) -> None:
    """Two kernels with the weights 100 and 300, on one CPU."""
    with scene.kernel({"cpu_weight": 300}, "b") as (km_heavy, heavy):
        groups = scene.group(km), scene.group(km_heavy)
        for each in (client, heavy):
            inside(each, burn, [min(os.sched_getaffinity(0))])
        before = [cpu_of([group]) for group in groups]
        deadline = time.monotonic() + 60 * probes.TIMEOUT_FACTOR
        while cpu_of(groups[:1]) - before[0] < 1.0 and time.monotonic() < deadline:
            time.sleep(0.05)  # CPU time has no event
        one, three = (cpu_of([g]) - b for g, b in zip(groups, before, strict=True))
        assert 2.7 < three / one < 3.3


def cpuset_cpus(scene: Scene, km: KernelManager, client: BlockingKernelClient) -> None:
    seen = "sorted(__import__('os').sched_getaffinity(0))"
    assert value(client, seen) == [0]
    cell = run_cell(client, "import os; os.sched_setaffinity(0, {1})")
    assert cell.ename == "OSError" and "Invalid argument" in cell.evalue
    assert run_cell(client, "os.sched_setaffinity(0, {0, 1})").ok
    assert value(client, seen) == [0]


def cpuset_mems(scene: Scene, km: KernelManager, client: BlockingKernelClient) -> Outcome | None:
    allowed = "[v.split()[1] for v in open('/proc/self/status') if v.startswith('Mems_allowed_l')]"
    assert value(client, allowed) == ["0"]
    if len(list(Path("/sys/devices/system/node").glob("node[0-9]*"))) < 2:
        return Outcome(ACCEPTED, "the machine has one memory node")
    return None


FIFO = """
import os, time
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # the share is one of each CPU
end = time.monotonic() + 30
while os.sched_getscheduler(0) != os.SCHED_FIFO and time.monotonic() < end: time.sleep(0.01)
start, used = time.monotonic(), time.process_time()
while time.monotonic() < start + 2: pass
print((time.process_time() - used) / (time.monotonic() - start))
"""


def cpu_rt(scene: Scene, km: KernelManager, client: BlockingKernelClient) -> None:
    """No kernel makes itself real-time (``rlimits``), so root does that to it."""
    cell = begin(client, FIFO)
    os.sched_setscheduler(kernel_pid(km), os.SCHED_FIFO, os.sched_param(1))
    share = float(finish(client, cell).stdout)
    assert 0.05 < share < 0.15, f"it ran for {share:.3f} of the time"


# -- processes -----------------------------------------------------------------------------------


def pids(scene: Scene, km: KernelManager, client: BlockingKernelClient) -> None:
    said, count = inside(client, bomb, False)
    assert said == "EAGAIN" and 16 < count < 64  # the kernel's own threads count
    assert value(client, "1 + 1") == 2


LIMITS = """
import os, resource
print(resource.getrlimit(resource.RLIMIT_NOFILE)[1], resource.getrlimit(resource.RLIMIT_RTPRIO)[1])
try:
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))
except ValueError as error:
    print(error)
try:
    [os.dup(0) for _ in range(1000)]
except OSError as error:
    print(error.strerror)
"""


def rlimits(scene: Scene, km: KernelManager, client: BlockingKernelClient) -> None:
    child = f"subprocess.check_output([sys.executable, '-c', {LIMITS!r}], text=True)"
    code = f"import subprocess, sys\nprint({child})"
    lines = run_cell(client, code).stdout.split("\n")
    assert lines[:3] == ["256 0", "not allowed to raise maximum limit", "Too many open files"]


def pause(scene: Scene, km: KernelManager, client: BlockingKernelClient) -> None:
    inside(client, burn, sorted(os.sched_getaffinity(0)))
    group = scene.group(km)
    group.pause()
    used = cpu_of([group])
    msg_id = client.execute("6 * 7")
    with pytest.raises(queue.Empty):
        client.get_shell_msg(timeout=1)
    assert cpu_of([group]) == used
    group.resume()
    reply = client.get_shell_msg(timeout=60)
    assert reply["parent_header"]["msg_id"] == msg_id
    assert cpu_of([group]) > used


# -- block devices -------------------------------------------------------------------------------


def io_config(name: str, limit: object) -> Any:
    return lambda scene: {"io": [{"path": str(scene.data), name: limit}]}


def io(way: str, name: str, size: int, count: int) -> Misbehave:
    """``count`` blocks take two seconds with the cap, and far less with another one."""

    def misbehave(scene: Scene, km: KernelManager, client: BlockingKernelClient) -> None:
        took = inside(client, direct, way, size, count)
        assert 1.3 < took < 10 * probes.TIMEOUT_FACTOR
        larger = {"io": [{"path": str(scene.data), name: 2**30}]}
        scene.group(km).update(parse_spec(larger).caps)
        assert inside(client, direct, way, size, count) < took / 2

    return misbehave


def io_buffered(scene: Scene, km: KernelManager, client: BlockingKernelClient) -> Outcome | None:
    """The kernel fills the page cache; when that is written, whose writing is it?

    On v2 that of the cgroup which made the file; one that changes hands is noticed later.
    """
    start = time.monotonic()
    assert run_cell(client, "open('fresh', 'wb').write(bytes(6 * 2**20))").ok
    os.sync()
    took = time.monotonic() - start
    written = sum(device.write_bytes for device in scene.group(km).usage().io or ())
    if not scene.is_v2(km, "io"):
        assert written < 3 * MIB  # a page that was short of memory may be written by itself
        return Outcome(NOT_COVERED, "on cgroup v1 nobody knows whose the page cache is")
    assert took > 1.3 and written >= 6 * MIB
    return None


def io_weight(scene: Scene, km: KernelManager, client: BlockingKernelClient) -> Outcome:
    """Root gives it a disk with bfq: a file, behind a loop device."""
    name = "io.bfq.weight" if scene.is_v2(km, "io") else "blkio.bfq.weight_device"
    assert "300" in scene.text(km, name).split()
    return Outcome(ACCEPTED, "the only disk with bfq here is a loop device, which none compete for")


def io_weight_config(scene: Scene) -> dict[str, Any]:
    disk = {"device": scene.facts["loop"]} if "loop" in scene.facts else {"path": str(scene.data)}
    return {"io": [{**disk, "weight": 300}]}


# -- the others ----------------------------------------------------------------------------------


def hugetlb(scene: Scene, km: KernelManager, client: BlockingKernelClient) -> Outcome | None:
    """Six pages of 2 MiB are 12 MiB, the seventh is refused."""
    name = f"hugetlb.2MB.{'max' if scene.is_v2(km, 'hugetlb') else 'limit_in_bytes'}"
    assert scene.text(km, name) == str(6 * HUGE)
    free = Path("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages").read_text()
    if int(free) < 7:
        assert inside(client, huge_pages, 1) == "Cannot allocate memory"
        return Outcome(ACCEPTED, "no huge pages are reserved, so there are none to be refused")
    assert inside(client, huge_pages, 6) == "ok"
    assert inside(client, huge_pages, 7) == "Cannot allocate memory"
    scene.group(km).update(parse_spec({"hugetlb": {"2MB": 7 * HUGE}}).caps)
    assert inside(client, huge_pages, 7) == "ok"
    return None


def net_classid(scene: Scene, km: KernelManager, client: BlockingKernelClient) -> None:
    """Every socket of it is marked, whether it wants or not."""
    assert run_cell(client, "import socket; s = socket.create_server(('127.0.0.1', 5999))").ok
    enter = ["nsenter", f"--net=/proc/{kernel_pid(km)}/ns/net"]
    command = [*enter, "ss", "-H", "-t", "-l", "-n", "--tos", "sport = :5999"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "class_id:0x100001" in shown


def net_prio(scene: Scene, km: KernelManager, client: BlockingKernelClient) -> Outcome:
    shown = dict(line.split() for line in scene.text(km, "net_prio.ifpriomap").splitlines())
    assert shown["lo"] == "5"
    return Outcome(ACCEPTED, "no packet of a sandbox leaves through an interface of the host")


def devices(scene: Scene, km: KernelManager, client: BlockingKernelClient) -> None:
    names = "('null', 'zero', 'full', 'random', 'urandom', 'tty')"
    there = f"sorted(n for n in {names} if __import__('os').path.exists('/dev/' + n))"
    assert value(client, there) == ["null", "urandom"]
    assert value(client, "len(open('/dev/urandom', 'rb').read(8))") == 8
    cell = run_cell(client, "import os; os.mknod('/tmp/zero', 0o20666, os.makedev(1, 5))")
    assert cell.ename == "PermissionError"


# -- the total of a user -------------------------------------------------------------------------


def user_memory(scene: Scene, km: KernelManager, client: BlockingKernelClient) -> None:
    """What two kernels use counts together, and the larger one ends."""
    with scene.kernel({"user": {"memory": "256M"}}, "b") as (_, other):
        assert run_cell(other, "kept = bytes(64 * 2**20).replace(b'\\0', b'x')").ok
        cell = run_cell(client, GREEDY)
        assert cell.ename == "MemoryCapExceeded"
        assert cell.evalue.startswith("all kernels of this user together used the memory they may")
        assert value(other, "len(kept)") == 64 * MIB


def user_pids(scene: Scene, km: KernelManager, client: BlockingKernelClient) -> None:
    """What one has taken, the other does not get, until it ends."""
    with scene.kernel({"user": {"pids": 96}}, "b") as (_, other):
        said, alone = inside(other, bomb, False)
        assert said == "EAGAIN" and 16 < alone < 96
        assert run_cell(client, f"import os, signal\n{HOLD.format(count=alone // 2)}").ok
        said, beside = inside(other, bomb, False)
        assert said == "EAGAIN" and alone - alone // 2 - 4 <= beside <= alone - alone // 2 + 4


def user_cpus(scene: Scene, km: KernelManager, client: BlockingKernelClient) -> None:
    with scene.kernel({"user": {"cpus": CORES}, **PATIENT}, "b") as (km_other, other):
        for each in (client, other):
            inside(each, burn, sorted(os.sched_getaffinity(0)))
        groups = scene.group(km), scene.group(km_other)
        assert_share(groups, CORES, scene.cpu_directory(km).parent)


def user_kernels(scene: Scene, km: KernelManager, client: BlockingKernelClient) -> None:
    with pytest.raises(CgroupError) as caught, scene.kernel({"user": {"kernels": 1}}, "b"):
        pass
    assert caught.value.fact == "1 kernels of this user run already"
    assert value(client, "1 + 1") == 2


# -- what is counted -----------------------------------------------------------------------------


def accounting(scene: Scene, km: KernelManager, client: BlockingKernelClient) -> None:
    """What children used counts too."""
    group = scene.group(km)
    before = cpu_of([group])
    code = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    run = f"import subprocess, sys; subprocess.check_call([sys.executable, '-c', {code!r}])"
    assert run_cell(client, run).ok
    assert cpu_of([group]) - before > 0.3


def perf_event(scene: Scene, km: KernelManager, client: BlockingKernelClient) -> Outcome | None:
    lines = Path(f"/proc/{kernel_pid(km)}/cgroup").read_text().splitlines()
    paths = [line.split(":")[2] for line in lines if line.split(":")[1] == "perf_event"]
    if any("/kernel-" in path for path in paths):
        return None
    if any(line.startswith("0::") and "/kernel-" in line for line in lines):
        return None  # perf takes any cgroup of v2 by its name
    return Outcome(NOT_COVERED, "no hierarchy of v1 has perf_event, so perf knows no cgroups")


def fixed(**config: Any) -> Any:
    return lambda scene: config


ROWS = (
    Row("memory", "memory", "allocates 1 GiB", fixed(memory="256M"), memory),
    Row("memory_swap", "memory", "allocates more than memory and swap",
        fixed(memory="192M", memory_swap="128M"), memory_swap),
    Row("memory_high", "memory", "keeps on growing", fixed(memory_high="128M"), memory_high),
    Row("memory_low", "memory", "none: it protects", fixed(memory_low="64M"), memory_low),
    Row("cpus", "cpu", "busy loops on every core", fixed(cpus=CORES, **PATIENT), cpus),
    Row("cpu_weight", "cpu", "two kernels compete, 100 against 300", fixed(cpu_weight=100),
        cpu_weight),
    Row("cpuset_cpus", "cpuset", "`sched_setaffinity` to another CPU", fixed(cpuset_cpus="0"),
        cpuset_cpus),
    Row("cpuset_mems", "cpuset", "asks which nodes it may use", fixed(cpuset_mems="0"),
        cpuset_mems),
    Row("cpu_rt", "cpu", "a real-time loop", fixed(cpu_rt=0.1), cpu_rt),
    Row("pids", "pids", "a fork bomb", fixed(pids=64), pids),
    Row("io.read_bps", "io", "direct reads", io_config("read_bps", "3M"),
        io("read", "read_bps", MIB, 6)),
    Row("io.write_bps", "io", "direct writes", io_config("write_bps", "3M"),
        io("write", "write_bps", MIB, 6)),
    Row("io.write_bps.buffered", "io", "writes through the page cache",
        io_config("write_bps", "3M"), io_buffered),
    Row("io.read_iops", "io", "many small direct reads", io_config("read_iops", 20),
        io("read", "read_iops", 4096, 40)),
    Row("io.write_iops", "io", "many small direct writes", io_config("write_iops", 20),
        io("write", "write_iops", 4096, 40)),
    Row("io.weight", "io", "none", io_weight_config, io_weight),
    Row("hugetlb", "hugetlb", "maps one huge page too many", fixed(hugetlb={"2MB": "12M"}),
        hugetlb),
    Row("net_classid", "net_cls", "a socket; `ss` on the host shows its class",
        fixed(net_classid=0x100001), net_classid),
    Row("net_prio", "net_prio", "none", fixed(net_prio={"lo": 5}), net_prio),
    Row("devices", "devices", "opens and makes other nodes", fixed(devices=["/dev/urandom"]),
        devices),
    Row("rlimits", "rlimits", "opens too many files, raises the limit",
        fixed(rlimits={"nofile": 256, "rtprio": 50}), rlimits),
    Row("user.memory", "memory", "two kernels allocate", fixed(user={"memory": "256M"}),
        user_memory),
    Row("user.pids", "pids", "two kernels fork", fixed(user={"pids": 96}), user_pids),
    Row("user.cpus", "cpu", "busy loops of two kernels", fixed(user={"cpus": CORES}, **PATIENT),
        user_cpus),
    Row("user.kernels", "pids", "one kernel more is started", fixed(user={"kernels": 1}),
        user_kernels),
    Row("pause and resume", "freezer", "busy loops while it is paused", fixed(pids=64, cpus=1.5),
        pause),
    Row("usage: CPU time", "cpuacct", "a child that uses some", fixed(pids=64), accounting),
    Row("usage: perf_event", "perf_event", "none", fixed(pids=64), perf_event),
)  # fmt: skip
