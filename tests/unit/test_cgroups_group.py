"""The cgroup of one kernel on fake file systems: what is written, in which order, and undone."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sandbox_kernel.engine.cgroups import (
    CgroupUsage,
    KernelCgroup,
    Leaf,
    Version,
    create,
    sweep,
)
from sandbox_kernel.engine.cgroups.interface import Files, same_pages
from sandbox_kernel.engine.cgroups.owner import Owner, myself, owner_of
from sandbox_kernel.engine.cgroups.v1 import V1
from sandbox_kernel.errors import CgroupError, ProtocolError
from sandbox_kernel.spec import Caps, MissingCap, UserTotal

MIB = 1024**2
CAPS = Caps(memory=256 * MIB, cpus=1.5, pids=100)
UNLIMITED = "9223372036854771712"

V1_FILES = {
    "memory": {
        "memory.limit_in_bytes": UNLIMITED, "memory.memsw.limit_in_bytes": UNLIMITED,
        "memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n",
        "memory.failcnt": "2", "memory.memsw.failcnt": "3", "memory.usage_in_bytes": "4096",
        "memory.max_usage_in_bytes": "8192", "memory.swappiness": "60",
    },
    "cpu": {"cpu.cfs_period_us": "50000", "cpu.cfs_quota_us": "-1"},
    "cpuacct": {"cpuacct.usage": "7000999"},
    "pids": {"pids.max": "max", "pids.current": "1", "pids.events": "max 4\n"},
    "freezer": {"freezer.state": "THAWED"},
}  # fmt: skip
V2_FILES = {
    "memory": {
        "memory.max": "max", "memory.swap.max": "max", "memory.current": "4096",
        "memory.peak": "8192", "memory.events": "low 0\nhigh 0\nmax 5\noom 2\noom_kill 1\n",
        "memory.events.local": "low 0\nhigh 0\nmax 9\n",
    },
    "cpu": {"cpu.max": "max 100000"},
    "pids": {"pids.max": "max", "pids.current": "1", "pids.events": "max 4\n"},
}  # fmt: skip


class Fake(Files):
    """A cgroup file system in a temporary directory: files come and go with their directory."""

    def __init__(self, kind: Callable[[Path], dict[str, str]]) -> None:
        self.kind = kind
        self.calls: list[str] = []
        self.fail_at: int | None = None
        self.refuse: dict[str, int] = {}
        """Name of a file → errno of every write to it."""
        self.ignore: set[str] = set()
        """Names of files that take a write and keep their value."""
        self.systemd = False

    def _call(self, what: str) -> None:
        self.calls.append(what)
        if self.fail_at == len(self.calls):
            raise OSError(errno.EIO, "injected")

    def mkdir(self, path: Path) -> None:
        self._call(f"mkdir {path.name}")
        path.mkdir()
        for name, text in self.kind(path).items():
            (path / name).write_text(text)

    def rmdir(self, path: Path) -> None:
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, "gone")
        shutil.rmtree(path)

    def write(self, path: Path, value: str) -> None:
        self._call(f"{path.name} {value}")
        if path.name in self.refuse:
            raise OSError(self.refuse[path.name], "refused")
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, "gone")
        if path.name == "cgroup.subtree_control":
            if (path.parent / "cgroup.procs").read_text().split():
                raise OSError(errno.EBUSY, "busy")
            value = path.read_text() + " " + value.removeprefix("+")
        if path.name == "cgroup.procs" and value.isdigit() and value != "0":
            (path.parents[1] / "cgroup.procs").write_text("")
        if path.name not in self.ignore:
            path.write_text(value)

    def delegated_by_systemd(self, path: Path) -> bool:
        return self.systemd


class Machine:
    """One fake machine with one delegated directory for each hierarchy, ``given``."""

    def __init__(self, top: Path) -> None:
        self.top = top
        self.proc = top / "proc"
        (self.proc / "self/ns").mkdir(parents=True)
        self.live(os.getpid(), 555)
        self.mounts: list[str] = []
        self.groups: list[str] = []
        self.files = Fake(lambda path: {})

    def live(self, pid: int, start: int, state: str = "S") -> None:
        (self.proc / str(pid)).mkdir(exist_ok=True)
        fields = f"{state} " + "0 " * 18 + f"{start} 0"
        (self.proc / str(pid) / "stat").write_text(f"{pid} (a) b) {fields}\n")

    def mount(self, name: str, kind: str, options: str, own: str) -> Path:
        path = self.top / name / "given"
        path.mkdir(parents=True)
        self.mounts.append(f"31 23 0:28 / {path.parent} rw - {kind} x {options}\n")
        self.groups.append(own + "\n")
        (self.proc / "self/mountinfo").write_text("".join(self.mounts))
        (self.proc / "self/cgroup").write_text("".join(self.groups))
        return path

    def create(self, caps: Caps = CAPS, *, warn: bool = False) -> KernelCgroup:
        return create(
            caps,
            "kernel-a",
            uid=os.getuid(),
            hint="/given",
            on_missing=MissingCap.WARN if warn else MissingCap.ERROR,
            proc=self.proc,
            files=self.files,
        )

    def left(self) -> list[Path]:
        return list(self.top.rglob("kernel-*"))


@pytest.fixture
def v1(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)

    def kind(path: Path) -> dict[str, str]:
        found: dict[str, str] = {"cgroup.procs": ""}
        for controller in path.relative_to(tmp_path).parts[0].split("+"):
            found |= V1_FILES[controller]
        return found

    machine.files = Fake(kind)
    for names in ("memory", "cpu,cpuacct", "pids", "freezer"):
        given = machine.mount(names.replace(",", "+"), "cgroup", f"rw,{names}", f"1:{names}:/x")
        for name, text in kind(given).items():
            (given / name).write_text(text)
    return machine


@pytest.fixture
def v2(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    given = machine.mount("unified", "cgroup2", "rw", "0::/given")

    def kind(path: Path) -> dict[str, str]:
        found = {"cgroup.procs": "", "cgroup.kill": "", "cpu.stat": "usage_usec 700\n"}
        above = path.parent / "cgroup.subtree_control"
        for controller in above.read_text().split() if path != given else V2_FILES:
            found |= V2_FILES[controller]
        return found

    machine.files = Fake(kind)
    for directory in (given.parent, given):
        (directory / "cgroup.controllers").write_text("cpu memory pids\n")
        (directory / "cgroup.subtree_control").write_text("")
    for name, text in (kind(given) | {"cgroup.type": "domain"}).items():
        (given / name).write_text(text)
    return machine


def text(group: KernelCgroup, name: str) -> str:
    found = [leaf.path / name for leaf in group.leaves if (leaf.path / name).exists()]
    assert len(found) == 1, found
    return found[0].read_text()


# -- making --------------------------------------------------------------------------------------


def test_v1_limits(v1: Machine) -> None:
    group = v1.create()
    assert text(group, "memory.limit_in_bytes") == str(256 * MIB)
    assert text(group, "memory.memsw.limit_in_bytes") == str(256 * MIB + os.sysconf("SC_PAGE_SIZE"))
    assert text(group, "cpu.cfs_period_us") == "100000"
    assert text(group, "cpu.cfs_quota_us") == "150000"
    assert text(group, "pids.max") == "100"
    assert group.warnings == ()
    assert [leaf.controllers for leaf in group.leaves] == [
        ("memory",), ("cpu", "cpuacct"), ("pids",), ("freezer",),
    ]  # fmt: skip


def test_v2_limits(v2: Machine) -> None:
    group = v2.create()
    (leaf,) = group.leaves
    assert text(group, "memory.max") == str(256 * MIB)
    assert text(group, "memory.swap.max") == "0"
    assert text(group, "cpu.max") == "150000 100000"
    assert text(group, "pids.max") == "100"
    enabled = (leaf.path.parent / "cgroup.subtree_control").read_text().split()
    assert sorted(enabled) == ["cpu", "memory", "pids"]


def test_only_the_asked_caps_are_written(v1: Machine) -> None:
    v1.create(Caps(pids=50))
    written = [call.split()[0] for call in v1.files.calls if not call.startswith("mkdir")]
    assert written == ["pids.max"]


def test_no_cap_and_nothing_delegated_is_an_empty_group(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    (machine.proc / "self/mountinfo").write_text("")
    (machine.proc / "self/cgroup").write_text("")
    group = machine.create(Caps())
    assert group.leaves == ()
    group.join()
    assert group.usage() == CgroupUsage()
    assert group.kill() == group.remove() == ()


def test_v2_moves_the_processes_of_a_scope_that_systemd_delegated(v2: Machine) -> None:
    given = v2.top / "unified/given"
    (given / "cgroup.procs").write_text("77\n")
    v2.files.systemd = True
    # As this process's own cgroup; the same directory as a hint is somebody else's to order.
    group = create(
        CAPS, "kernel-a", uid=os.getuid(), hint=None, on_missing=MissingCap.ERROR,
        proc=v2.proc, files=v2.files,
    )  # fmt: skip
    assert (given / "sandbox-kernel-host/cgroup.procs").read_text() == "77"
    assert group.leaves[0].path.parent == given
    assert v2.files.calls[:4] == [
        "cgroup.subtree_control +memory", "mkdir sandbox-kernel-host", "cgroup.procs 77",
        "cgroup.subtree_control +memory",
    ]  # fmt: skip


class FakeScope:
    """Moves this process, or refuses to."""

    def __init__(self, machine: Machine, *, refuses: bool = False) -> None:
        self.machine = machine
        self.refuses = refuses
        self.entered = 0
        self.path = machine.top / "unified/sandbox-kernel.scope"
        self.path.mkdir()
        for name, text in (machine.files.kind(self.path.parent / "given")).items():
            (self.path / name).write_text(text)
        (self.path / "cgroup.controllers").write_text("cpu memory pids\n")
        (self.path / "cgroup.subtree_control").write_text("")
        (self.path / "cgroup.type").write_text("domain\n")

    def enter(self) -> None:
        self.entered += 1
        if self.refuses:
            raise CgroupError("not entered", cause="systemd refused: x.Denied: no")
        (self.path / "cgroup.procs").write_text(f"{os.getpid()}\n")
        self.move("/sandbox-kernel.scope")

    def move(self, path: str) -> None:
        (self.machine.proc / "self/cgroup").write_text(f"0::{path}\n")


def scoped(v2: Machine, scope: FakeScope, caps: Caps = CAPS, **more: Any) -> KernelCgroup:
    return create(
        caps, "kernel-a", uid=os.getuid(), on_missing=MissingCap.ERROR,
        scope=scope, proc=v2.proc, files=v2.files, **({"hint": None} | more),
    )  # fmt: skip


def test_the_scope_is_entered_if_the_own_cgroup_is_busy(v2: Machine) -> None:
    (v2.top / "unified/given/cgroup.procs").write_text("77\n")
    scope = FakeScope(v2)
    group = scoped(v2, scope)
    assert scope.entered == 1
    assert [leaf.path.parent for leaf in group.leaves] == [scope.path]
    assert (scope.path / "supervisors/cgroup.procs").read_text() == str(os.getpid())
    assert (scope.path / "cgroup.procs").read_text() == ""
    assert (v2.top / "unified/given/cgroup.procs").read_text() == "77\n"


@pytest.mark.parametrize("caps", [Caps(), CAPS])
def test_the_scope_is_left_alone_without_need(v2: Machine, caps: Caps) -> None:
    if caps == Caps():
        (v2.top / "unified/given/cgroup.procs").write_text("77\n")
    scope = FakeScope(v2)
    scoped(v2, scope, caps, hint=None)
    assert scope.entered == 0


def test_v1_asks_for_no_scope(v1: Machine) -> None:
    (v1.top / "unified").mkdir()
    scope = FakeScope.__new__(FakeScope)
    scope.entered = 0
    with pytest.raises(CgroupError):
        scoped(v1, scope, hint="/elsewhere")
    assert scope.entered == 0


def test_what_systemd_said_is_told(v2: Machine) -> None:
    (v2.top / "unified/given/cgroup.procs").write_text("77\n")
    scope = FakeScope(v2, refuses=True)
    with pytest.raises(CgroupError) as caught:
        scoped(v2, scope)
    assert scope.entered == 1
    assert "sandbox-kernel.scope: systemd refused: x.Denied: no" in caught.value.message
    assert v2.left() == []


def test_a_scope_that_was_entered_in_words_only(v2: Machine) -> None:
    (v2.top / "unified/given/cgroup.procs").write_text("77\n")
    scope = FakeScope(v2)
    scope.move = lambda path: None  # type: ignore[method-assign]
    with pytest.raises(CgroupError, match="systemd said that this process is in it, and it is in"):
        scoped(v2, scope)


def test_a_number_of_kernels_alone_asks_for_the_scope(v2: Machine) -> None:
    (v2.top / "unified/given/cgroup.procs").write_text("77\n")
    scope, plain = FakeScope(v2), v2.files.kind
    v2.files.kind = lambda path: plain(path) | {"cgroup.subtree_control": ""}
    group = scoped(v2, scope, Caps(), user=UserTotal(kernels=1))
    assert {leaf.path.parent.parent for leaf in group.leaves} == {scope.path}


def test_on_v2_what_only_accounts_is_where_the_caps_are(v2: Machine) -> None:
    """A second leaf would be the one that the process is in at last, without its caps."""
    given = v2.top / "unified/given"
    (given / "cgroup.controllers").write_text("memory\n")
    (given / "cgroup.subtree_control").write_text("memory")
    group = scoped(v2, scope := FakeScope(v2), Caps(cpus=1.5), hint="/given")
    assert [leaf.path.parent for leaf in group.leaves] == [scope.path]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_failure_anywhere_leaves_nothing(version: str, request: pytest.FixtureRequest) -> None:
    machine: Machine = request.getfixturevalue(version)
    machine.create().remove()
    calls = list(machine.files.calls)
    failed = []
    for number in range(1, len(calls) + 1):
        for control in machine.top.rglob("cgroup.subtree_control"):
            control.write_text("")
        machine.files.calls.clear()
        machine.files.fail_at = number
        try:
            group = machine.create()
        except CgroupError:
            failed.append(calls[number - 1])
        else:
            # It was for accounting only: every cap holds.
            machine.files.fail_at = None
            assert calls[number - 1].startswith("mkdir")
            assert text(group, "pids.max") == "100"
            group.remove()
        assert machine.left() == []
    # Of all the calls the kernel's freezer alone may fail.
    assert len(failed) == len(calls) - (1 if version == "v1" else 0)


@pytest.mark.parametrize("name", ["memory.limit_in_bytes", "cpu.cfs_quota_us", "pids.max"])
def test_a_limit_that_was_not_taken_is_an_error(v1: Machine, name: str) -> None:
    v1.files.ignore.add(name)
    with pytest.raises(CgroupError, match=rf"{name} did not take '[0-9]+': it shows '"):
        v1.create()
    assert v1.left() == []


def test_quota_above_that_of_the_directory_above(v1: Machine) -> None:
    given = v1.top / "cpu+cpuacct/given"
    (given / "cpu.cfs_period_us").write_text("100000")
    (given / "cpu.cfs_quota_us").write_text("50000")
    v1.files.refuse["cpu.cfs_quota_us"] = errno.EINVAL
    with pytest.raises(CgroupError) as caught:
        v1.create()
    assert caught.value.cause == f"{given} has a quota of 0.5 cores itself"
    assert caught.value.remedy == "ask for cpus = 0.5 or less"


def test_missing_controllers_are_all_named(v1: Machine) -> None:
    shutil.rmtree(v1.top / "memory/given")
    shutil.rmtree(v1.top / "pids/given")
    (v1.top / "memory").chmod(0o755)
    groups = (v1.proc / "self/cgroup").read_text()
    (v1.proc / "self/cgroup").write_text(groups.replace("/x", "/../x"))
    with pytest.raises(CgroupError) as caught:
        v1.create()
    assert caught.value.fact == "the caps memory, pids cannot be enforced"
    for controller in ("memory", "pids"):
        path = v1.top / controller / "given"
        assert f"controller {controller} is not available under {path}" in str(caught.value)
        assert f"mkdir -p {path} && chown {os.getuid()} {path}" in str(caught.value)
    assert v1.left() == []
    group = v1.create(warn=True)
    assert [w.split(":")[0] for w in group.warnings] == [
        "the cap memory is not enforced", "the cap pids is not enforced",
    ]  # fmt: skip
    assert text(group, "cpu.cfs_quota_us") == "150000"


def test_a_wrong_hint_is_refused_though_no_cap_is_asked(v1: Machine) -> None:
    with pytest.raises(CgroupError, match="SANDBOX_KERNEL_CGROUP"):
        create(Caps(), "kernel-a", uid=1, hint="/..", on_missing=MissingCap.WARN, proc=v1.proc)


@pytest.mark.parametrize(
    "name", ["x", "kernel-", "kernel-a.1", "kernel-a/b", "kernel-" + "a" * 101]
)
def test_names_that_sweep_would_not_know(v1: Machine, name: str) -> None:
    with pytest.raises(CgroupError, match="cannot name a cgroup"):
        create(Caps(), name, uid=1, hint=None, on_missing=MissingCap.ERROR, proc=v1.proc)


# -- memory on v1 --------------------------------------------------------------------------------


def memory_order(path: Path, memsw: str | None, size: int) -> list[str]:
    path.mkdir()
    (path / "memory.oom_control").write_text("oom_kill_disable 1\n")
    (path / "memory.swappiness").write_text("60")
    if memsw is not None:
        (path / "memory.memsw.limit_in_bytes").write_text(memsw)
    leaf = Leaf(Version.V1, path, ("memory",))
    return [s.file for s in V1().settings(leaf, Caps(memory=size), Files())]


def test_memsw_goes_first_only_when_the_limit_rises(tmp_path: Path) -> None:
    limit, both, oom = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes", "memory.oom_control"
    assert memory_order(tmp_path / "a", UNLIMITED, 64 * MIB) == [limit, both, oom]
    assert memory_order(tmp_path / "b", str(32 * MIB), 64 * MIB) == [both, limit, oom]
    assert memory_order(tmp_path / "c", None, 64 * MIB) == [limit, "memory.swappiness", oom]


@pytest.mark.parametrize(("version", "name"), [("v1", "memsw.limit_in_bytes"), ("v2", "swap.max")])
def test_swap_that_nobody_accounts(
    version: str, name: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine: Machine = request.getfixturevalue(version)
    table = V1_FILES if version == "v1" else V2_FILES
    monkeypatch.delitem(table["memory"], f"memory.{name}")
    assert machine.create().remove() == ()  # no swap in use: nothing to hold
    (machine.proc / "swaps").write_text("Filename\tType\n/dev/sda2\tpartition\n")
    with pytest.raises(CgroupError, match="does not hold swap"):
        machine.create()
    assert machine.left() == []
    assert "does not hold swap" in machine.create(warn=True).warnings[0]


@pytest.mark.parametrize(
    ("size", "shown", "taken"),
    [(8192, "8192", True), (8195, "8192", True), (8192, "4096", False), (8192, "12288", False),
     (8192, "max", False), (2**63 - 1, "max", True), (2**63 - 1, UNLIMITED, True)],
)  # fmt: skip
def test_what_the_kernel_may_make_of_a_size(size: int, shown: str, taken: bool) -> None:
    assert same_pages(size)(shown + "\n") is taken


# -- reading -------------------------------------------------------------------------------------


def test_usage_and_events_v1(v1: Machine) -> None:
    group = v1.create()
    assert group.usage() == CgroupUsage(
        memory_current=4096, memory_peak=8192, memory_failcnt=5, oom_kills=0, pids_current=1,
        pids_max_events=4, cpu_usec=7000,
    )  # fmt: skip
    assert group.events().memory_limit_above == 5
    group.remove()
    assert group.usage() == CgroupUsage(memory_failcnt=None)


def test_usage_and_events_v2(v2: Machine) -> None:
    group = v2.create()
    assert group.usage() == CgroupUsage(
        memory_current=4096, memory_peak=8192, memory_failcnt=5, oom_kills=1, pids_current=1,
        pids_max_events=4, cpu_usec=700,
    )  # fmt: skip
    assert group.events().memory_limit_above == 9


def test_v2_is_killed_as_a_whole(v2: Machine) -> None:
    group = v2.create()
    assert group.kill() == ()
    assert text(group, "cgroup.kill") == "1"


def test_v1_forbids_forks_and_thaws_at_the_end(v1: Machine) -> None:
    group = v1.create()
    v1.files.calls.clear()
    assert group.kill() == ()
    assert v1.files.calls == ["pids.max 0", "freezer.state FROZEN", "freezer.state THAWED"]


def test_a_join_that_fails_says_where(v1: Machine) -> None:
    group = v1.create()
    group.join()
    assert all((leaf.path / "cgroup.procs").read_text() == "0" for leaf in group.leaves)
    v1.files.refuse["cgroup.procs"] = errno.EACCES
    with pytest.raises(CgroupError, match=r"could not join the cgroup .*: permission denied"):
        group.join()


# -- across a process border ---------------------------------------------------------------------


def test_to_dict_and_back(v1: Machine) -> None:
    group = v1.create()
    assert KernelCgroup.from_dict(group.to_dict()) == group


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"leaves": [{"version": "v3", "path": "/x", "controllers": []}]},
        {"leaves": [{"version": "v1", "path": "/sys/fs/cgroup/memory", "controllers": []}]},
        {"leaves": 3},
        {"name": "system.slice", "leaves": []},
    ],
)
def test_from_dict_takes_nothing_else(v1: Machine, change: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        KernelCgroup.from_dict(v1.create().to_dict() | change)


def test_from_dict_takes_no_path_with_dots(v1: Machine) -> None:
    data = v1.create().to_dict()
    data["leaves"][0]["path"] = "/sys/../etc/" + data["name"]
    with pytest.raises(ProtocolError):
        KernelCgroup.from_dict(data)


# -- owners --------------------------------------------------------------------------------------


def test_an_owner_lives_as_long_as_its_process(v1: Machine) -> None:
    me = myself(v1.proc)
    assert owner_of(me.leaf_name("kernel-x_1")) == me == Owner(os.getpid(), 555, "0-0")
    assert me.lives(v1.proc) is True
    assert Owner(me.pid, 554, "0-0").lives(v1.proc) is False
    assert Owner(999_999_999, 1, "0-0").lives(v1.proc) is False
    v1.live(me.pid, 555, state="Z")
    assert me.lives(v1.proc) is False
    assert Owner(me.pid, 1, "1-0").lives(v1.proc) is None


@pytest.mark.parametrize("name", ["kernel-a", "kernel-a.1.2", "kernel-a.1.2.3-4.5", "u1.1.2.3-4"])
def test_names_without_an_owner(name: str) -> None:
    assert owner_of(name) is None


def test_sweep_takes_only_what_nobody_owns(v1: Machine) -> None:
    mine = v1.create()
    given = v1.top / "memory/given"
    dead, elsewhere, strange = (
        given / name for name in ("kernel-b.999999999.1.0-0", "kernel-b.999999999.1.7-0", "other")
    )
    for path in (dead, elsewhere, strange):
        path.mkdir()
    swept = sweep(os.getuid(), "/given", proc=v1.proc, files=v1.files)
    assert swept.removed == (str(dead),)
    assert swept.problems == ()
    assert all(leaf.path.is_dir() for leaf in mine.leaves)
    assert elsewhere.is_dir() and strange.is_dir() and not dead.exists()


def test_sweep_leaves_other_users_alone(v1: Machine) -> None:
    dead = v1.top / "memory/given/kernel-b.999999999.1.0-0"
    dead.mkdir()
    assert sweep(os.getuid() + 1, "/given", proc=v1.proc, files=v1.files).removed == ()
    assert dead.is_dir()
