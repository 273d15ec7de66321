"""Which directory a controller is delegated in, and what is said when there is none.

The machine is a few files in a temporary directory; who may write where is told by the fake.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from sandbox_kernel.engine.cgroups import (
    Missing,
    Place,
    Search,
    Source,
    Tried,
    Version,
    hierarchies,
)
from sandbox_kernel.engine.cgroups.interface import Files
from sandbox_kernel.errors import CgroupError

UID = 4321


class Access(Files):
    """Everything is writable but what is listed."""

    def __init__(self) -> None:
        self.closed: set[Path] = set()
        self.systemd: set[Path] = set()

    def writable(self, path: Path) -> bool:
        return path not in self.closed

    def delegated_by_systemd(self, path: Path) -> bool:
        return path in self.systemd


@dataclass
class Machine:
    """``proc`` and mounted hierarchies below a temporary directory."""

    top: Path
    files: Access = field(default_factory=Access)
    mounts: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)

    def mount(
        self, name: str, kind: str, options: str, *, root: str = "/", flags: str = "rw"
    ) -> Path:
        point = self.top / name
        point.mkdir(parents=True, exist_ok=True)
        escaped = str(point).replace(" ", "\\040")
        self.mounts.append(f"31 23 0:28 {root} {escaped} {flags} shared:1 - {kind} x {options}")
        return point

    def v1(self, controllers: str, own: str = "/", **extra: str) -> Path:
        self.groups.append(f"{len(self.groups) + 1}:{controllers}:{own}")
        return self.mount(controllers.replace(",", "+"), "cgroup", f"rw,{controllers}", **extra)

    def v2(self, own: str = "/") -> Path:
        self.groups.append(f"0::{own}")
        point = self.mount("unified", "cgroup2", "rw,nsdelegate")
        (point / "cgroup.controllers").write_text("cpu memory pids\n")
        (point / "cgroup.subtree_control").write_text("cpu memory pids\n")
        (point / "cgroup.procs").write_text("1\n")
        return point

    def find(self, controller: str, hint: str | None = None) -> Place | Missing:
        return self.search(hint).find(controller)

    def search(self, hint: str | None = None, **more: Any) -> Search:
        proc = self.top / "proc"
        (proc / "self").mkdir(parents=True, exist_ok=True)
        (proc / "self/mountinfo").write_text("".join(m + "\n" for m in self.mounts))
        (proc / "self/cgroup").write_text("".join(g + "\n" for g in self.groups))
        return Search(UID, hint, proc, self.files, **more)

    def message(self, controller: str, hint: str | None = None) -> str:
        found = self.find(controller, hint)
        assert isinstance(found, Missing), found
        return found.error().message


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def v2_group(path: Path, controllers: str, subtree: str = "", procs: str = "") -> Path:
    path.mkdir(parents=True)
    for name, text in {
        "controllers": controllers,
        "subtree_control": subtree,
        "procs": procs,
        "type": "domain",
    }.items():
        (path / f"cgroup.{name}").write_text(text + "\n")
    return path


# -- v1 -------------------------------------------------------------------------------------------


def test_hint_then_own_then_conventional(machine: Machine) -> None:
    mount = machine.v1("memory", own="/mine")
    hinted, own = mount / "a/b", mount / "mine"
    conventional = mount / f"sandbox-kernel/u{UID}"
    for directory in (hinted, own, conventional):
        directory.mkdir(parents=True)

    def found() -> tuple[Path, Source]:
        place = machine.find("memory", "/a/b")
        assert isinstance(place, Place)
        return place.directory, place.source

    assert found() == (hinted, Source.HINT)
    machine.files.closed.add(hinted)
    assert found() == (own, Source.OWN)
    machine.files.closed.add(own)
    assert found() == (conventional, Source.CONVENTIONAL)


def test_io_is_what_v1_calls_blkio(machine: Machine) -> None:
    mount = machine.v1("blkio")
    (mount / "a").mkdir()
    place = machine.find("io", "a")
    assert isinstance(place, Place)
    assert (place.controller, place.directory) == ("io", mount / "a")


@pytest.mark.parametrize("controller", ["net_cls", "net_prio"])
def test_what_v2_never_had_is_said_to_be_of_v1(machine: Machine, controller: str) -> None:
    machine.v2()
    message = machine.message(controller)
    assert message == f"controller {controller} is not available: cgroup v2 has no such controller"
    machine.v1("memory")
    assert "no cgroup file system that is mounted has it" in machine.message(controller)


def test_a_hint_needs_no_leading_slash(machine: Machine) -> None:
    mount = machine.v1("memory")
    (mount / "a").mkdir()
    place = machine.find("memory", "a/")
    assert isinstance(place, Place) and place.directory == mount / "a"


@pytest.mark.parametrize("hint", ["/../x", "a/../../x", "./a", "..", "a\0"])
def test_a_hint_that_leads_out_is_refused(machine: Machine, hint: str) -> None:
    machine.v1("memory")
    with pytest.raises(CgroupError, match=r"SANDBOX_KERNEL_CGROUP = .* is not possible"):
        machine.find("memory", hint)


def test_missing_directory(machine: Machine) -> None:
    mount = machine.v1("memory")
    machine.files.closed.add(mount)
    path = mount / f"sandbox-kernel/u{UID}"
    owner = mount.stat().st_uid
    assert machine.message("memory") == (
        f"controller memory is not available under {path}: no such directory "
        f"(tried too: {mount}: not writable for uid {UID}, it belongs to uid {owner}); "
        f"remedy: as root: mkdir -p {path} && chown {UID} {path}"
    )


def test_directory_of_somebody_else(machine: Machine) -> None:
    mount = machine.v1("memory")
    path = mount / "given"
    path.mkdir()
    machine.files.closed |= {mount, path}
    text = machine.message("memory", "/given")
    assert f"under {path}: not writable for uid {UID}" in text
    assert text.endswith(f"remedy: as root: chown {UID} {path}")
    assert "mkdir" not in text


def test_read_only_mount_is_not_a_matter_of_chown(machine: Machine) -> None:
    mount = machine.v1("memory", flags="ro,nosuid")
    machine.files.closed.add(mount)
    text = machine.message("memory")
    assert f"{mount} is mounted read-only" in text
    assert "chown" not in text and "mkdir" not in text


def test_not_mounted_here(machine: Machine) -> None:
    machine.groups.append("3:memory:/")
    assert machine.message("memory") == (
        "controller memory is not available: its hierarchy is not mounted in this mount namespace"
    )


def test_switched_off_at_boot(machine: Machine) -> None:
    machine.v1("pids")
    (machine.top / "proc").mkdir()
    (machine.top / "proc/cgroups").write_text("#subsys_name\thierarchy\nmemory\t0\t1\t0\n")
    assert "remedy: boot without cgroup_disable=memory" in machine.message("memory")


def test_in_no_hierarchy_at_all(machine: Machine) -> None:
    machine.v1("pids")
    assert machine.message("memory") == (
        "controller memory is not available: no cgroup file system that is mounted has it"
    )


def test_mounted_together(machine: Machine) -> None:
    mount = machine.v1("cpu,cpuacct")
    for controller in ("cpu", "cpuacct"):
        place = machine.find(controller)
        assert isinstance(place, Place) and place.directory == mount


def test_hybrid_takes_v1_for_what_is_bound_there(machine: Machine) -> None:
    unified = machine.v2()
    memory = machine.v1("memory")
    place = machine.find("memory")
    assert isinstance(place, Place)
    assert (place.version, place.directory) == (Version.V1, memory)
    pids = machine.find("pids")
    assert isinstance(pids, Place)
    assert (pids.version, pids.directory) == (Version.V2, unified)


@pytest.mark.parametrize(
    ("root", "own", "inside"),
    [("/", "/a/b", "a/b"), ("/a", "/a/b", "b"), ("/a", "/a", ""), ("/c", "/a", None),
     ("/..", "/a", None), ("/", "/../a", None), ("/", "/a (deleted)", None)],
)  # fmt: skip
def test_own_directory_below_a_partial_mount(
    machine: Machine, root: str, own: str, inside: str | None
) -> None:
    mount = machine.v1("memory", own=own, root=root)
    machine.find("memory")
    (found,) = hierarchies(machine.top / "proc")
    assert found.own == (None if inside is None else mount / inside)


def test_odd_mount_points_and_hidden_mounts(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "with space")
    mount = machine.v1("memory")
    machine.find("memory")
    assert [h.mount for h in hierarchies(machine.top / "proc")] == [mount]
    machine.mount("memory", "tmpfs", "rw")
    machine.find("memory")
    assert hierarchies(machine.top / "proc") == ()


# -- v2 -------------------------------------------------------------------------------------------


def test_v2_hint_that_is_ready(machine: Machine) -> None:
    unified = machine.v2(own="/hub/server")
    v2_group(unified / "hub", "cpu memory pids", "cpu memory pids")
    v2_group(unified / "hub/server", "cpu memory pids", procs="7")
    kernels = v2_group(unified / "hub/kernels", "cpu memory pids", "memory")
    for controller in ("memory", "cpu"):
        place = machine.find(controller, "/hub/kernels")
        assert place == Place(controller, Version.V2, kernels, Source.HINT)


def test_v2_moving_takes_the_common_ancestor(machine: Machine) -> None:
    unified = machine.v2(own="/hub/server")
    v2_group(unified / "hub", "memory", "memory")
    v2_group(unified / "hub/server", "memory", procs="7")
    v2_group(unified / "hub/kernels", "memory", "memory")
    machine.files.closed |= {unified / "hub/cgroup.procs", unified / "hub/server"}
    text = machine.message("memory", "/hub/kernels")
    assert f"takes write access to {unified / 'hub/cgroup.procs'}" in text
    assert "remedy: start the server in a scope of its own: systemd-run" in text


def test_v2_controller_that_is_withheld_above(machine: Machine) -> None:
    unified = machine.v2(own="/x")
    v2_group(unified / "x", "memory", procs="7")
    machine.files.closed.add(unified / "x")
    v2_group(unified / "a", "cpu memory", "memory")
    path = v2_group(unified / "a/b", "memory", "memory")
    text = machine.message("cpu", "/a/b")
    assert f"under {path}: cpu is not in {path}/cgroup.controllers" in text
    assert text.endswith(f"remedy: as root: echo +cpu > {unified / 'a'}/cgroup.subtree_control")


def test_v2_controller_that_systemd_withholds(machine: Machine) -> None:
    own = "/user.slice/user-4321.slice/user@4321.service/app.slice/jupyter.service"
    unified = machine.v2(own=own)
    path = unified
    for name in own.strip("/").split("/"):
        path = v2_group(path / name, "memory", "memory", "7")
    text = machine.message("cpu")
    assert "Delegate=cpu cpuset io memory pids" in text
    assert "echo" not in text


def test_v2_own_cgroup_that_is_not_delegated(machine: Machine) -> None:
    unified = machine.v2(own="/s")
    path = v2_group(unified / "s", "memory", procs="7\n8")
    text = machine.message("memory")
    assert f"under {path}: memory is not in" in text
    assert "while 2 processes are there" in text
    assert "systemd-run --user --scope -p Delegate=yes" in text
    machine.files.systemd.add(path)
    assert machine.find("memory") == Place("memory", Version.V2, path, Source.OWN)
    # Named by a hint, the processes there are not this package's to move.
    given = v2_group(unified / "given", "memory", procs="9")
    machine.files.systemd.add(given)
    machine.files.closed.add(path)
    text = machine.message("memory", "/given")
    assert text.endswith(f"remedy: move the processes of {given} to a child of it")


def test_v2_own_cgroup_after_the_processes_were_moved(machine: Machine) -> None:
    unified = machine.v2(own="/s/sandbox-kernel-host")
    path = v2_group(unified / "s", "memory", "memory")
    v2_group(path / "sandbox-kernel-host", "memory", procs="7")
    assert machine.find("memory") == Place("memory", Version.V2, path, Source.OWN)


def test_v2_subtree_control_of_somebody_else(machine: Machine) -> None:
    unified = machine.v2(own="/s")
    path = v2_group(unified / "s", "memory")
    machine.files.closed.add(path / "cgroup.subtree_control")
    text = machine.message("memory")
    assert "and that is not writable" in text
    # The missing conventional directory is not what is wrong.
    assert text.endswith(f"remedy: as root: chown {UID} {path / 'cgroup.subtree_control'}")


def test_v2_missing_directory_is_chowned_with_its_files(machine: Machine) -> None:
    unified = machine.v2(own="/s")
    v2_group(unified / "s", "memory")
    machine.files.closed.add(unified / "s")
    path = unified / f"sandbox-kernel/u{UID}"
    text = machine.message("memory")
    assert f"mkdir -p {path} && chown {UID} {path} {path}/cgroup.procs" in text
    assert f"{path}/cgroup.subtree_control" in text


# -- the scope of the user's systemd --------------------------------------------------------------

SCOPE = f"user.slice/user-{UID}.slice/user@{UID}.service/app.slice/sandbox-kernel.scope"


def with_scope(machine: Machine, own: str) -> Path:
    """The hierarchy, with the scope, a session and a conventional directory; all are usable."""
    unified = machine.v2(own=own)
    v2_group(unified / "session", "memory pids", "memory pids")
    path = unified
    for name in SCOPE.split("/"):
        path = v2_group(path / name, "memory pids", "memory pids")
    v2_group(path / "supervisors", "memory pids", procs="7")
    v2_group(unified / "sandbox-kernel", "memory pids", "memory pids")
    v2_group(unified / f"sandbox-kernel/u{UID}", "memory pids io", "memory pids io")
    (unified / "cgroup.controllers").write_text("cpu memory pids io")
    return unified


def test_hint_then_own_then_scope_then_conventional(machine: Machine) -> None:
    unified = with_scope(machine, f"/{SCOPE}/supervisors")
    session = unified / "session"

    def found() -> tuple[Path, Source]:
        place = machine.search("/hinted", left=session).find("memory")
        assert isinstance(place, Place)
        return place.directory, place.source

    hinted = v2_group(unified / "hinted", "memory", "memory")
    assert found() == (hinted, Source.HINT)
    machine.files.closed.add(hinted)
    assert found() == (session, Source.OWN)
    machine.files.closed.add(session)
    assert found() == (unified / SCOPE, Source.SCOPE)
    machine.files.closed.add(unified / SCOPE)
    assert found() == (unified / f"sandbox-kernel/u{UID}", Source.CONVENTIONAL)


def test_a_scope_that_this_process_is_not_in_may_end_at_any_time(machine: Machine) -> None:
    unified = with_scope(machine, "/session")
    machine.files.closed.add(unified / "session")
    place = machine.find("memory")
    assert isinstance(place, Place) and place.source is Source.CONVENTIONAL
    (hierarchy,) = machine.search().mounted
    assert (Source.SCOPE, unified / SCOPE) in machine.search().candidates(hierarchy)  # for sweep()


def test_the_scope_is_wanted_where_hint_and_own_do_not_do(machine: Machine) -> None:
    unified = with_scope(machine, "/session")

    def helps(controller: str, **more: Any) -> bool:
        search = machine.search(**more)
        return search.scope_helps(search.find(controller))

    assert not helps("memory")  # the own one does
    machine.files.closed.add(unified / "session")
    assert helps("memory")
    assert helps("io")
    assert not helps("net_cls")  # v2 has none
    assert not helps("memory", no_scope=Tried(None, Source.SCOPE, "refused"))


def test_v1_has_no_use_for_the_scope(machine: Machine) -> None:
    machine.v1("memory")
    search = machine.search()
    assert not search.scope_helps(search.find("memory"))


def test_a_refused_scope_is_in_the_message_and_not_the_remedy(machine: Machine) -> None:
    unified = machine.v2(own="/s")
    v2_group(unified / "s", "memory", procs="7\n8")
    refused = Tried(None, Source.SCOPE, "systemd refused: x.Denied: no")
    missing = machine.search(no_scope=refused).find("memory")
    assert isinstance(missing, Missing)
    text = missing.error().message
    assert "sandbox-kernel.scope: systemd refused: x.Denied: no" in text
    assert f"{unified / 's'}: memory is not in" in text
    assert "systemd-run" not in text


def test_a_controller_that_systemd_does_not_hand_to_the_scope(machine: Machine) -> None:
    unified = with_scope(machine, f"/{SCOPE}/supervisors")
    missing = machine.search(left=unified / "session").find("cpu")
    assert isinstance(missing, Missing)
    text = missing.error().message
    assert f"cpu is not in {unified / SCOPE}/cgroup.controllers" in text
    assert "as root: systemctl edit user@.service" in text


def test_on_v2_all_controllers_are_in_one_directory(machine: Machine) -> None:
    """A process cannot be in two: the limits of one of them would not hold."""
    unified = with_scope(machine, "/session")
    found = machine.search().find_all(["memory", "io", "pids"])
    conventional = unified / f"sandbox-kernel/u{UID}"
    assert {c: p.directory for c, p in found.items() if isinstance(p, Place)} == {
        "memory": conventional, "io": conventional, "pids": conventional,
    }  # fmt: skip
    v2_group(unified / "hinted", "cpu", "cpu")
    found = machine.search("/hinted").find_all(["cpu", "memory", "io", "pids"])
    cpu = found.pop("cpu")
    assert isinstance(cpu, Missing)
    assert "it is in one cgroup only" in cpu.error().message
    assert {p.directory for p in found.values() if isinstance(p, Place)} == {conventional}
