"""Who a kernel is, inside and outside, in the three identities."""

from __future__ import annotations

import errno
import os
import pwd
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.sandboxes import inside, kernel_pid, manager, run_cell, started, value

from sandbox_kernel.engine import idmap
from sandbox_kernel.errors import IdMapError, SetupError
from sandbox_kernel.provisioner import SandboxProvisioner
from sandbox_kernel.spec import Identity

#: A launcher on a machine where no newuidmap is to be found.
WITHOUT_HELPERS = (
    "import sys; del sys.path[0]; from sandbox_kernel.engine import idmap\n"
    "idmap.shutil.which = lambda *arguments, **more: None\n"
    "from sandbox_kernel.launcher import main; sys.exit(main())"
)


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    private = folder / "private"
    private.write_text("of the user alone")
    private.chmod(0o600)
    return folder


def user_name() -> str:
    return pwd.getpwuid(os.getuid()).pw_name


def planned(identity: Identity, id_range: int = 0) -> idmap.IdPlan:
    return idmap.plan(identity, id_range, uid=os.getuid(), gid=os.getgid(), user=user_name())


def identity() -> dict[str, Any]:
    """Who the kernel is by its own account."""
    import os
    import pwd

    with open("/proc/self/status") as file:
        status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    maps = {}
    for name in ("uid_map", "gid_map"):
        with open(f"/proc/self/{name}") as file:
            maps[name] = [line.split() for line in file]
    return {
        "ids": [os.getuid(), os.geteuid(), os.getgid(), os.getegid()],
        "groups": status["Groups"].split(),
        "capabilities": sorted({status[n] for n in ("CapPrm", "CapEff", "CapBnd", "CapAmb")}),
        "name": pwd.getpwuid(os.getuid()).pw_name,
        **maps,
    }


def lines(mappings: tuple[idmap.IdMapping, ...]) -> list[list[str]]:
    return [m.line().split() for m in mappings]


def host_ids(pid: int) -> list[list[int]]:
    """The four user ids and the four group ids of a process as the host sees them."""
    text = Path(f"/proc/{pid}/status").read_text()
    return [
        [int(n) for n in line.split()[1:]]
        for line in text.splitlines()
        if line.startswith(("Uid:", "Gid:"))
    ]


def test_keep_id_is_the_user_inside_and_outside(tmp_path: Path, workspace: Path) -> None:
    with started(tmp_path, {"identity": "keep-id"}, cwd=workspace) as (km, client):
        seen = inside(client, identity)
        assert seen["ids"] == [os.getuid()] * 2 + [os.getgid()] * 2
        assert seen["name"] == user_name()
        assert seen["uid_map"] == [[str(os.getuid())] * 2 + ["1"]]
        assert host_ids(kernel_pid(km)) == [[os.getuid()] * 4, [os.getgid()] * 4]
        assert value(client, "open('private').read()") == "of the user alone"


def test_root_inside_is_the_user_outside(tmp_path: Path, workspace: Path) -> None:
    """And its 0 opens nothing: no capability, no other id, no file of the system."""
    with started(tmp_path, {"identity": "root"}, cwd=workspace) as (km, client):
        seen = inside(client, identity)
        assert seen["ids"] == [0, 0, 0, 0]
        assert seen["name"] == "root"
        assert seen["uid_map"] == [["0", str(os.getuid()), "1"]]
        assert seen["gid_map"] == [["0", str(os.getgid()), "1"]]
        assert seen["capabilities"] == ["0" * 16]
        assert host_ids(kernel_pid(km)) == [[os.getuid()] * 4, [os.getgid()] * 4]

        def attempts() -> list[int]:
            import os

            numbers = []
            open("made", "w").close()
            for action in (
                lambda: os.chown("made", 1, 1),
                lambda: os.setuid(1),
                lambda: os.setgroups([]),
                lambda: os.open("/etc/passwd", os.O_WRONLY),
                lambda: os.mknod("node", 0o20600, os.makedev(1, 3)),
                lambda: os.chroot("."),
            ):
                try:
                    action()
                    numbers.append(0)
                except OSError as error:
                    numbers.append(error.errno or 0)
            return numbers

        assert inside(client, attempts) == [
            errno.EINVAL, errno.EINVAL, errno.EPERM, errno.EROFS, errno.EPERM, errno.EPERM,
        ]  # fmt: skip
        assert value(client, "__import__('os').stat('made').st_uid") == 0
    made = (workspace / "made").stat()
    assert (made.st_uid, made.st_gid) == (os.getuid(), os.getgid())


# -- identities that need newuidmap ---------------------------------------------------------------


@pytest.fixture
def open_workspace(workspace: Path) -> Iterator[Path]:
    """A workspace in which everybody may write; what others made in it is removed."""
    workspace.chmod(0o777)
    yield workspace
    for path in workspace.iterdir():
        path.unlink()


@pytest.mark.needs("subordinate-ids")
def test_isolated_is_nobody_outside(tmp_path: Path, open_workspace: Path) -> None:
    plan = planned(Identity.ISOLATED)
    with started(tmp_path, {"identity": "isolated"}, cwd=open_workspace) as (km, client):
        seen = inside(client, identity)
        assert seen["ids"] == [idmap.ISOLATED_ID] * 4
        assert seen["groups"] == []
        assert (seen["uid_map"], seen["gid_map"]) == (lines(plan.uid_map), lines(plan.gid_map))
        assert plan.outside_uid() not in (0, os.getuid())
        assert host_ids(kernel_pid(km)) == [[plan.outside_uid()] * 4, [plan.outside_gid()] * 4]
        assert run_cell(client, "open('private').read()").ename == "PermissionError"
        assert run_cell(client, "__import__('os').chmod('private', 0o644)").ename == (
            "PermissionError"
        )
        assert run_cell(client, "open('made', 'w').write('inside')").ok
    made = (open_workspace / "made").stat()
    assert (made.st_uid, made.st_gid) == (plan.outside_uid(), plan.outside_gid())


@pytest.mark.needs("subordinate-ids")
def test_isolated_needs_a_workspace_that_it_can_write_to(tmp_path: Path, workspace: Path) -> None:
    km = manager(tmp_path, {"identity": "isolated"})
    workspace.chmod(0o755)
    with pytest.raises(SetupError) as caught:
        km.start_kernel(cwd=str(workspace))
    plan = planned(Identity.ISOLATED)
    ids = f"{plan.outside_uid()}:{plan.outside_gid()}"
    assert str(caught.value) == (
        f"the workspace {workspace} is not writable for the kernel: it is host id {ids} there and "
        f"the folder's mode is 0755, owner {os.getuid()}:{os.getgid()}; remedy: set workspace to "
        f"'overlay' or 'ro', or chown {ids} the folder"
    )


@pytest.mark.needs("subordinate-ids")
@pytest.mark.parametrize("mode", ["ro", "overlay", "none"])
def test_isolated_in_a_workspace_that_it_need_not_write_to(
    tmp_path: Path, workspace: Path, mode: str
) -> None:
    (workspace / "public").write_text("for everybody")
    config = {"identity": "isolated", "workspace": mode}
    with started(tmp_path, config, cwd=workspace) as (_, client):
        assert run_cell(client, "open('private').read()").ename == (
            "FileNotFoundError" if mode == "none" else "PermissionError"
        )
        if mode != "none":
            assert value(client, "open('public').read()") == "for everybody"
        assert run_cell(client, "open('made', 'w').write('x')").ok is (mode != "ro")
    assert sorted(path.name for path in workspace.iterdir()) == ["private", "public"]


@pytest.mark.needs("subordinate-ids")
@pytest.mark.parametrize("name", ["keep-id", "root", "isolated"])
def test_a_range_is_mapped_as_planned(tmp_path: Path, open_workspace: Path, name: str) -> None:
    plan = planned(Identity(name), 5)
    config = {"identity": name, "id_range": 5}
    with started(tmp_path, config, cwd=open_workspace) as (km, client):
        seen = inside(client, identity)
        assert (seen["uid_map"], seen["gid_map"]) == (lines(plan.uid_map), lines(plan.gid_map))
        assert sum(int(line[2]) for line in seen["uid_map"]) == 6
        assert seen["ids"] == [plan.uid] * 2 + [plan.gid] * 2
        assert seen["groups"] == [], "supplementary groups are given up where they can be"
        assert seen["capabilities"] == ["0" * 16]
        assert host_ids(kernel_pid(km))[0] == [plan.outside_uid()] * 4
        other = next(m.inside for m in plan.uid_map if m.inside != plan.uid)
        refused = run_cell(client, f"__import__('os').setuid({other})")
        assert refused.ename == "PermissionError", "the id is mapped, but not the kernel's to take"


@pytest.mark.needs("subordinate-ids")
def test_a_range_that_the_user_has_not_got(tmp_path: Path, workspace: Path) -> None:
    km = manager(tmp_path, {"id_range": 2**30})
    with pytest.raises(IdMapError) as caught:
        km.start_kernel(cwd=str(workspace))
    assert str(caught.value).startswith(f"/etc/subuid gives user {user_name()!r} ")
    assert f" of {2**30} ids: identity 'keep-id' with id_range needs" in str(caught.value)
    assert "remedy: as root: usermod --add-subuids" in str(caught.value)


@pytest.mark.needs("subordinate-ids")
@pytest.mark.parametrize("config", [{"identity": "isolated"}, {"id_range": 1}])
def test_newuidmap_is_missing(
    tmp_path: Path, workspace: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher is told that nothing of that name is installed."""
    workspace.chmod(0o777)
    command = (sys.executable, "-c", WITHOUT_HELPERS)
    monkeypatch.setattr(SandboxProvisioner, "_launcher_command", command)
    km = manager(tmp_path, config)
    with pytest.raises(IdMapError) as caught:
        km.start_kernel(cwd=str(workspace))
    assert str(caught.value) == (
        "newuidmap is not installed: mapping subordinate ids needs it; remedy: as root: apt-get "
        "install uidmap, or dnf install shadow-utils"
    )
    assert not os.path.exists(km.connection_file)


def test_nobody_needs_newuidmap_for_one_id(
    tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = (sys.executable, "-c", WITHOUT_HELPERS)
    monkeypatch.setattr(SandboxProvisioner, "_launcher_command", command)
    with started(tmp_path, cwd=workspace) as (_, client):
        assert value(client, "__import__('os').getuid()") == os.getuid()
