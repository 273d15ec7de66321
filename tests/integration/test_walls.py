"""The walls as they look from inside a running kernel, and its namespaces from outside."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.sandboxes import (
    inside,
    kernel_pid,
    own_launcher,
    run_cell,
    said,
    started,
    value,
)
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

from sandbox_kernel.engine.namespaces import KINDS
from sandbox_kernel.engine.rootfs import collect_facts, plan_rootfs, writable_targets
from sandbox_kernel.engine.rootfs.operations import Absent, Tmpfs
from sandbox_kernel.engine.rootfs.plan import CACHES, DEVICES, MASKED, READ_ONLY
from sandbox_kernel.spec import MIB, parse_spec
from sandbox_kernel.syscalls import landlock_abi

CONFIG = {
    "tmp_size": "2M",
    "shm_size": "3M",
    "run_size": "4M",
    "home_size": "5M",
    "inodes": 1000,
    "hostname": "walled",
}
CANARY = "a file of the host that no kernel may read"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with a file in it, and a launcher that knows it as the home."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "private.txt").write_text(CANARY)
    for cache in CACHES:
        (folder / cache).mkdir(parents=True)
    with pytest.MonkeyPatch.context() as patch, own_launcher():
        patch.setenv("HOME", str(folder))
        yield folder


@pytest.fixture(scope="module")
def workspace(home: Path) -> Path:
    folder = home / "project"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def fifo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Alone in a folder that the sandbox shows read-only as /mnt/pipes."""
    path = tmp_path_factory.mktemp("pipes") / "fifo"
    os.mkfifo(path)
    return path


@pytest.fixture(scope="module")
def running(
    workspace: Path, fifo: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    folder = tmp_path_factory.mktemp("walls")
    config = CONFIG | {"mounts": [{"source": str(fifo.parent), "target": "/mnt/pipes"}]}
    with started(folder, config, cwd=workspace) as (km, client):
        yield km, client


@pytest.fixture(scope="module")
def client(running: tuple[KernelManager, BlockingKernelClient]) -> BlockingKernelClient:
    return running[1]


@pytest.fixture(scope="module")
def plan(workspace: Path) -> tuple[Any, ...]:
    """The mount plan of the running sandbox."""
    return plan_rootfs(
        parse_spec(CONFIG), collect_facts(), uid=os.getuid(), gid=os.getgid(), cwd=str(workspace)
    )


# -- processes and privileges --------------------------------------------------------------------


def test_pid_2_under_an_init_and_nobody_else(client: BlockingKernelClient) -> None:
    assert value(client, "[__import__('os').getpid(), __import__('os').getppid()]") == [2, 1]

    def pids() -> list[str]:
        import os

        return sorted(name for name in os.listdir("/proc") if name.isdigit())

    assert inside(client, pids) == ["1", "2"]


def test_no_process_of_the_host_can_be_named(client: BlockingKernelClient) -> None:
    """Every pid that lives outside is unknown inside, as a file of /proc and to a signal."""

    def known(numbers: list[int]) -> list[int]:
        import os

        found = []
        for number in numbers:
            try:
                os.kill(number, 0)
            except ProcessLookupError:
                if os.path.exists(f"/proc/{number}"):
                    found.append(number)
            else:
                found.append(number)
        return found

    outside = [os.getpid(), os.getppid(), *(int(n) for n in os.listdir("/proc") if n.isdigit())]
    assert inside(client, known, [n for n in outside if n > 100]) == []


def test_what_the_process_may_do(client: BlockingKernelClient) -> None:
    def status() -> dict[str, str]:
        with open("/proc/self/status") as file:
            return dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)

    seen = inside(client, status)
    sets = {name: seen[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")}
    assert set(sets.values()) == {"0" * 16}, sets
    assert (seen["NoNewPrivs"], seen["Seccomp"]) == ("1", "2")
    assert seen["Uid"].split() == [str(os.getuid())] * 4
    assert seen["Gid"].split() == [str(os.getgid())] * 4


def test_every_thread_and_child_has_the_same_walls(client: BlockingKernelClient) -> None:
    def all_of_them() -> list[list[str]]:
        import glob
        import subprocess

        names = ("CapBnd", "CapEff", "NoNewPrivs", "Seccomp")
        child = subprocess.run(["cat", "/proc/self/status"], capture_output=True, check=True)
        texts = [child.stdout.decode()]
        for path in glob.glob("/proc/2/task/*/status"):
            with open(path) as file:
                texts.append(file.read())
        assert len(texts) > 3
        return [
            [line.split()[1] for line in text.splitlines() if line.split(":")[0] in names]
            for text in texts
        ]

    walls = inside(client, all_of_them)
    assert {tuple(sorted(w)) for w in walls} == {("0" * 16, "0" * 16, "1", "2")}


def test_the_id_map_is_the_users_own_id_and_nothing_else(client: BlockingKernelClient) -> None:
    maps = value(client, "[open(f'/proc/self/{n}_map').read().split() for n in ('uid', 'gid')]")
    assert maps == [[str(n), str(n), "1"] for n in (os.getuid(), os.getgid())]
    assert value(client, "open('/proc/self/setgroups').read()") == "deny\n"


def test_the_id_map_cannot_be_written_again(client: BlockingKernelClient) -> None:
    def attempts() -> list[int]:
        import os

        numbers = []
        for name, text in (("uid_map", b"0 0 1"), ("gid_map", b"0 0 1"), ("setgroups", b"allow")):
            try:
                fd = os.open(f"/proc/self/{name}", os.O_WRONLY)
                try:
                    numbers.append(-os.write(fd, text))
                finally:
                    os.close(fd)
            except OSError as error:
                numbers.append(error.errno or 0)
        return numbers

    assert inside(client, attempts) == [errno.EPERM, errno.EPERM, errno.EACCES]


def test_pid_1_shows_nothing_of_itself(client: BlockingKernelClient) -> None:
    def attempts() -> dict[str, str]:
        import os

        result = {}
        for name in ("environ", "mem", "maps", "auxv", "stack", "syscall", "io"):
            try:
                with open(f"/proc/1/{name}", "rb") as file:
                    result[name] = f"read {len(file.read(16))} bytes"
            except OSError as error:
                result[name] = type(error).__name__
        for name in ("exe", "cwd", "root", "fd/0", "fd/1", "fd/3", "ns/mnt"):
            try:
                result[name] = os.readlink(f"/proc/1/{name}")
            except OSError as error:
                result[name] = type(error).__name__
        return result

    assert set(inside(client, attempts).values()) == {"PermissionError"}


# -- namespaces ----------------------------------------------------------------------------------


def namespaces() -> dict[str, int]:
    import os

    kinds = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time")
    return {kind: os.stat(f"/proc/self/ns/{kind}").st_ino for kind in kinds}


def test_every_namespace_is_the_kernels_own(
    running: tuple[KernelManager, BlockingKernelClient], tmp_path: Path
) -> None:
    """Of all eight kinds; and what the kernel says of itself is what the host sees of it."""
    km, client = running
    host = namespaces()
    assert tuple(host) == KINDS
    first = inside(client, namespaces)
    pid = kernel_pid(km)
    assert first == {kind: os.stat(f"/proc/{pid}/ns/{kind}").st_ino for kind in KINDS}
    with started(tmp_path) as (_, other):
        second = inside(other, namespaces)
    for kind in KINDS:
        assert len({host[kind], first[kind], second[kind]}) == 3, kind


def test_no_user_namespace_below_this_one(client: BlockingKernelClient) -> None:
    assert value(client, "open('/proc/sys/user/max_user_namespaces').read()") == "0\n"

    def refusals() -> list[int]:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        numbers = []
        for flag in (0x10000000, 0x20000, 0x20000000, 0x40000000, 0x4000000, 0x8000000, 0x2000000):
            numbers.append(0 if libc.unshare(flag) == 0 else ctypes.get_errno())
        return numbers

    assert inside(client, refusals) == [errno.EPERM] * 7


def test_the_host_name_is_the_sandboxes_own(client: BlockingKernelClient) -> None:
    assert value(client, "__import__('socket').gethostname()") == "walled"
    assert socket.gethostname() != "walled"


def test_the_clocks_begin_with_the_sandbox(client: BlockingKernelClient) -> None:
    """Neither the uptime nor the monotonic clock tells when the host was booted."""

    def clocks() -> list[float]:
        import time

        with open("/proc/uptime") as file:
            uptime = float(file.read().split()[0])
        return [uptime, time.monotonic(), time.clock_gettime(time.CLOCK_BOOTTIME)]

    host = float(Path("/proc/uptime").read_text().split()[0])
    for seconds in inside(client, clocks):
        assert 0 <= seconds < min(300, host)


def test_only_lo_and_the_link(client: BlockingKernelClient) -> None:
    assert value(client, "__import__('socket').if_nameindex()") == [[1, "lo"], [2, "eth0"]]
    assert value(client, "sorted(__import__('os').listdir('/sys/class/net'))") == ["eth0", "lo"]


# -- files ---------------------------------------------------------------------------------------


def unreadable(paths: list[str]) -> dict[str, str]:
    """What could be read of each path, for those where anything could."""
    import os

    result = {}
    for path in paths:
        try:
            if os.path.isdir(path):
                if names := os.listdir(path):
                    result[path] = repr(names)
            else:
                with open(path, "rb") as file:
                    result[path] = repr(file.read(100))
        except OSError:
            pass
    return result


def test_files_of_the_host_are_not_there(client: BlockingKernelClient, home: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="skt-walls-"))
    try:
        (folder / "file").write_text(CANARY)
        paths = [
            str(home / "private.txt"), str(folder), str(folder / "file"), "/etc/shadow",
            "/etc/subuid", "/etc/hostname.bak", "/etc/fstab", "/root", "/var/log", "/var/lib",
            "/boot", "/media", "/srv", "/lost+found", "/dev/vda", "/dev/sda", "/dev/kmsg",
            "/dev/mem", "/dev/fuse", "/dev/net", "/dev/kvm", "/dev/console", "/dev/tty0",
            f"/proc/{os.getpid()}", f"/proc/1/root{home}", "/run/dbus", "/run/docker.sock",
            "/sys/fs/cgroup",
        ]  # fmt: skip
        assert inside(client, unreadable, paths) == {}
    finally:
        shutil.rmtree(folder)


def test_the_home_holds_the_workspace_and_caches(
    client: BlockingKernelClient, home: Path, workspace: Path
) -> None:
    names = value(client, f"__import__('os').listdir({str(home)!r})")
    assert set(names) == {workspace.name, ".cache"}
    assert value(client, "__import__('os').getcwd()") == str(workspace)


def test_the_users_of_the_host_are_not_told(client: BlockingKernelClient) -> None:
    def users() -> list[int]:
        import pwd

        return sorted(entry.pw_uid for entry in pwd.getpwall())

    assert inside(client, users) == sorted({0, os.getuid(), 65534})


def mounts() -> list[list[str]]:
    """(target, flags, kind) of each mount, as /proc/self/mountinfo has it."""
    with open("/proc/self/mountinfo") as file:
        found = []
        for line in file:
            left, right = line.split(" - ", 1)
            found.append([left.split()[4], left.split()[5], right.split()[0]])
    return found


def test_no_mount_knows_setuid_or_devices(client: BlockingKernelClient) -> None:
    seen = inside(client, mounts)
    assert {"/", "/proc", "/dev", "/tmp"} <= {target for target, _, _ in seen}
    nodes = {f"/dev/{name}" for name, _, _ in DEVICES} | {"/dev/pts"} | set(MASKED)
    for target, flags, _ in seen:
        assert "nosuid" in flags.split(","), target
        assert "nodev" in flags.split(",") or target in nodes, target


def test_no_mount_leads_back_to_the_host(client: BlockingKernelClient) -> None:
    """None propagates, and the old root is nowhere among them."""

    def propagation() -> list[str]:
        with open("/proc/self/mountinfo") as file:
            lines = [line.split(" - ")[0].split() for line in file]
        return [" ".join(fields) for fields in lines if len(fields) > 6]

    assert inside(client, propagation) == []
    assert [kind for target, _, kind in inside(client, mounts) if target == "/"] == ["tmpfs"]


def writable() -> list[str]:
    """Mount points on which something can be made, or which can be opened for writing."""
    import os

    with open("/proc/self/mountinfo") as file:
        targets = {line.split(" - ")[0].split()[4] for line in file}
    found = []
    for target in sorted(targets):
        if os.path.isdir(target):
            path = os.path.join(target, "probe-of-the-test")
            try:
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
            except OSError:
                continue
            os.unlink(path)
        else:
            if target.startswith("/proc/") and os.stat(target).st_rdev == os.makedev(1, 3):
                continue  # a mask: what is written to /dev/null goes nowhere
            try:
                os.close(os.open(target, os.O_WRONLY | os.O_NOCTTY))
            except OSError:
                continue
        found.append(target)
    return found


def test_nothing_is_writable_but_what_the_plan_says(
    client: BlockingKernelClient, plan: tuple[Any, ...], home: Path, workspace: Path
) -> None:
    """/proc and /dev/pts are not files of anybody, and /dev/tty is no terminal's."""
    found = set(inside(client, writable))
    absent = {
        operation.target
        for operation in plan
        if getattr(operation, "absent", None) is Absent.SKIP
        and not os.path.lexists(operation.source)
    }
    assert found == set(writable_targets(plan)) - absent - {"/proc", "/dev/pts", "/dev/tty"}
    devices = {f"/dev/{name}" for name, _, _ in DEVICES if name != "tty"}
    memory = {"/dev/shm", "/tmp", "/var/tmp", "/run", str(home)}
    caches = {f"{home}/{cache}" for cache in CACHES}
    assert found == devices | memory | caches | {str(workspace)}


def test_the_root_itself_is_read_only(client: BlockingKernelClient) -> None:
    """Every directory of it, by its mount: EACCES would be Landlock's word, the second wall's."""

    def attempts() -> dict[str, int]:
        import os

        top = os.stat("/").st_dev
        numbers = {}
        for folder, names, files in os.walk("/"):
            names[:] = [n for n in names if os.lstat(os.path.join(folder, n)).st_dev == top]
            try:
                os.mkdir(os.path.join(folder, "probe-of-the-test"))
                numbers[folder] = 0
            except OSError as error:
                numbers[folder] = error.errno or -1
            for path in (os.path.join(folder, name) for name in files):
                if os.lstat(path).st_dev == top and not os.path.islink(path):
                    try:
                        os.close(os.open(path, os.O_WRONLY))
                        numbers[path] = 0
                    except OSError as error:
                        numbers[path] = error.errno or -1
        return numbers

    numbers = inside(client, attempts)
    assert {"/", "/etc", "/var", "/etc/passwd", "/etc/hosts", "/etc/resolv.conf"} <= set(numbers)
    assert {path for path, number in numbers.items() if number != errno.EROFS} == set()


def test_the_file_systems_in_memory_are_bounded(
    client: BlockingKernelClient, plan: tuple[Any, ...]
) -> None:
    """In bytes and in inodes, with the numbers of the spec."""

    def bounds(targets: list[str]) -> dict[str, list[int]]:
        import os

        found = {target: os.statvfs(target) for target in targets}
        return {t: [v.f_blocks * v.f_frsize, v.f_files] for t, v in found.items()}

    file_systems = [op for op in plan if isinstance(op, Tmpfs)]
    seen = inside(client, bounds, [op.target for op in file_systems])
    assert seen == {op.target: [op.size, op.inodes] for op in file_systems}
    assert seen["/tmp"] == [2 * MIB, 1000]
    assert seen["/dev/shm"] == [3 * MIB, 1000]
    assert seen["/run"] == [4 * MIB, 1000]


def test_inodes_and_bytes_run_out(client: BlockingKernelClient) -> None:
    def fill() -> list[int]:
        import os
        import shutil

        folder = "/run/inodes"
        os.mkdir(folder)
        numbers = []
        try:
            for number in range(5000):
                os.close(os.open(f"{folder}/{number}", os.O_CREAT | os.O_WRONLY))
            numbers.append(0)
        except OSError as error:
            numbers.append(error.errno or 0)
        finally:
            shutil.rmtree(folder)
        try:
            with open("/tmp/bytes", "wb", buffering=0) as file:
                for _ in range(8):
                    file.write(b"x" * 2**20)
            numbers.append(0)
        except OSError as error:
            numbers.append(error.errno or 0)
        finally:
            os.unlink("/tmp/bytes")
        return numbers

    assert inside(client, fill) == [errno.ENOSPC] * 2


def test_dev_holds_these_and_no_others(client: BlockingKernelClient) -> None:
    def nodes() -> dict[str, list[int]]:
        import os
        import stat

        found = {}
        for entry in os.scandir("/dev"):
            kind = entry.stat(follow_symlinks=False)
            numbers = os.major(kind.st_rdev), os.minor(kind.st_rdev)
            found[entry.name] = list(numbers) if stat.S_ISCHR(kind.st_mode) else []
        return found

    wanted = {name: [major, minor] for name, major, minor in DEVICES}
    wanted |= {n: [] for n in ("fd", "ptmx", "pts", "shm", "stdin", "stdout", "stderr")}
    assert inside(client, nodes) == wanted


def test_no_device_node_can_be_made(client: BlockingKernelClient, workspace: Path) -> None:
    def attempts(folder: str) -> list[str]:
        import os
        import stat

        found = []
        for place in (folder, "/tmp", "/dev", "/dev/shm"):
            for kind in (stat.S_IFCHR, stat.S_IFBLK):
                try:
                    os.mknod(f"{place}/node", kind | 0o600, os.makedev(1, 1))
                    found.append(place)
                except OSError:
                    pass
        return found

    assert inside(client, attempts, str(workspace)) == []


def test_no_setuid_program_can_be_made(client: BlockingKernelClient, workspace: Path) -> None:
    """It would be the host's: the workspace is a folder of the host."""

    def attempts(folder: str) -> list[int]:
        import os

        path = os.path.join(folder, "program")
        open(path, "w").close()
        numbers = []
        for mode in (0o4755, 0o2755, 0o6755):
            try:
                os.chmod(path, mode)
                numbers.append(0)
            except OSError as error:
                numbers.append(error.errno or 0)
        try:
            os.close(os.open(path + "2", os.O_CREAT | os.O_WRONLY, 0o4755))
        except OSError as error:
            numbers.append(error.errno or 0)
        os.chmod(path, 0o755)
        return numbers

    assert inside(client, attempts, str(workspace)) == [errno.EPERM] * 4
    modes = {path.name: path.stat().st_mode & 0o7777 for path in workspace.iterdir()}
    assert modes == {"program": 0o755}
    (workspace / "program").unlink()


def test_what_proc_and_sys_tell_is_masked(client: BlockingKernelClient) -> None:
    """Empty inside, whatever they hold outside; and some of them do hold something there."""
    assert inside(client, unreadable, list(MASKED)) == {
        path: "b''" for path in MASKED if Path(path).exists() and not Path(path).is_dir()
    }
    assert unreadable(["/proc/interrupts", "/proc/kallsyms"]) != {}


def test_parts_of_proc_are_read_only(client: BlockingKernelClient) -> None:
    def attempts(paths: list[str]) -> dict[str, list[int]]:
        import os

        result = {}
        for path in paths:
            read_only = int(os.statvfs(path).f_flag & os.ST_RDONLY)
            try:
                os.close(os.open(path, os.O_WRONLY))
                result[path] = [read_only, 0]
            except OSError as error:
                result[path] = [read_only, error.errno or 0]
        return result

    files = [
        "/proc/sys/kernel/hostname", "/proc/sys/vm/overcommit_memory",
        "/proc/sys/user/max_user_namespaces", "/proc/sys/net/ipv4/ip_forward",
        "/proc/sysrq-trigger",
    ]  # fmt: skip
    files = [path for path in files if os.path.exists(path)]
    refused = inside(client, attempts, files)
    assert refused == {path: [1, errno.EACCES] for path in files}
    flags = {target: flags.split(",") for target, flags, _ in inside(client, mounts)}
    for path in READ_ONLY:
        if os.path.exists(path):
            assert "ro" in flags[path], path
    assert "ro" in flags["/sys"]


# -- descriptors, keys, limits -------------------------------------------------------------------


def test_no_descriptor_of_the_host(client: BlockingKernelClient) -> None:
    """Of the files that a kernel has open, all lie on the sandbox's own file systems."""

    def descriptors() -> list[list[str]]:
        import os

        found = []
        for name in os.listdir("/proc/self/fd"):
            try:
                link = os.readlink(f"/proc/self/fd/{name}")
                with open(f"/proc/self/fdinfo/{name}") as file:
                    info = dict(line.split(":\t", 1) for line in file if ":\t" in line)
            except OSError:
                continue
            found.append([name, link, info["mnt_id"].strip()])
        return found

    def mount_ids() -> dict[str, str]:
        with open("/proc/self/mountinfo") as file:
            return {line.split()[0]: line.split()[4] for line in file}

    seen = inside(client, descriptors)
    ids = inside(client, mount_ids)
    own = re.compile(r"(socket|pipe|anon_inode):")
    standard = {name: link for name, link, _ in seen if int(name) < 3}
    assert standard["0"] == "/dev/null"
    assert {standard["1"].split(":")[0], standard["2"].split(":")[0]} == {"pipe"}
    for name, link, mount_id in seen:
        if own.match(link):
            continue
        assert link.startswith("/"), link
        assert ids.get(mount_id) in ("/dev/null", "/run", "/proc"), (name, link)


def test_the_console_leads_nowhere(client: BlockingKernelClient) -> None:
    """There is no terminal, neither as a descriptor nor as the one of the session."""

    def terminal() -> list[Any]:
        import os

        try:
            os.close(os.open("/dev/tty", os.O_RDWR))
            opened = 0
        except OSError as error:
            opened = error.errno or 0
        return [opened, [fd for fd in range(3) if os.isatty(fd)], os.getsid(0)]

    assert inside(client, terminal) == [errno.ENXIO, [], 2]


def test_no_key_of_the_login(client: BlockingKernelClient) -> None:
    def keys() -> list[int]:
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        numbers = []
        for call in ((250, 0, -3, 0), (248, b"user", b"k", b"v", 1, -3), (249, b"user", b"k", 0)):
            numbers.append(0 if libc.syscall(*call) >= 0 else ctypes.get_errno())
        return numbers

    assert inside(client, keys) == [errno.EPERM] * 3
    assert value(client, "open('/proc/keys').read()") == ""


def test_limits_of_what_no_cgroup_bounds(client: BlockingKernelClient) -> None:
    def limits() -> dict[str, list[int]]:
        import resource

        names = ("CORE", "MSGQUEUE", "SIGPENDING", "RTPRIO", "MEMLOCK", "NOFILE")
        return {n: list(resource.getrlimit(getattr(resource, f"RLIMIT_{n}"))) for n in names}

    seen = inside(client, limits)
    assert set(seen["CORE"]) == {1}, "0 lets a pipe in core_pattern take a dump"
    assert seen["RTPRIO"] == [0, 0]
    for name, most in {"MSGQUEUE": 819_200, "SIGPENDING": 4096, "MEMLOCK": 64 * MIB}.items():
        assert 0 <= seen[name][1] <= most, name
    assert seen["NOFILE"][1] <= 65_536


@pytest.mark.needs("landlock")
def test_landlock_is_a_second_wall(
    running: tuple[KernelManager, BlockingKernelClient], fifo: Path
) -> None:
    """A FIFO on a read-only mount: Linux lets it be written to, and only Landlock refuses."""
    km, client = running
    assert said(km).landlock_abi > 0

    def attempt(path: str) -> int:
        import os

        try:
            os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
        except OSError as error:
            return error.errno or 0
        return 0

    assert attempt(str(fifo)) == 0, "outside it can be opened"
    assert inside(client, attempt, "/mnt/pipes/fifo") == errno.EACCES


def test_landlock_is_what_this_linux_has(
    running: tuple[KernelManager, BlockingKernelClient],
) -> None:
    """The ABI in force is the one that Linux answers, and 0 where there is no Landlock."""
    assert said(running[0]).landlock_abi == landlock_abi()


def test_a_cell_that_breaks_something_breaks_only_itself(client: BlockingKernelClient) -> None:
    """The sandbox that all these tests looked at is still alive and well."""
    assert run_cell(client, "1 + 1").result == "2"
    assert json.loads(run_cell(client, "print(__import__('os').getpid())").stdout) == 2
