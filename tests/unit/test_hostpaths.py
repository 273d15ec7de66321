"""Host paths before anything is made: without symlinks, and refused where they cannot be."""

from __future__ import annotations

import dataclasses
import errno
import os
from pathlib import Path
from typing import Any, Final

import pytest

from sandbox_kernel import hostpaths
from sandbox_kernel.engine.idmap import IdMapping, IdPlan
from sandbox_kernel.engine.rootfs import HostFacts
from sandbox_kernel.errors import AuditError, MountError, SetupError, SpecError
from sandbox_kernel.hostpaths import (
    check_audit_log,
    check_writable,
    real_path,
    resolve,
    with_links,
    working_directory,
)
from sandbox_kernel.protocol import LaunchRequest
from sandbox_kernel.spec import parse_spec

FACTS: Final = HostFacts("alice", "staff", "/srv/none", ())


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """real/folder, and links to it and to nothing."""
    real = Path(os.path.realpath(tmp_path))
    (real / "real/folder").mkdir(parents=True)
    (real / "link").symlink_to("real/folder")
    (real / "gone").symlink_to("real/absent")
    (real / "file").touch()
    return real


def request(cwd: Path | str, **config: Any) -> LaunchRequest:
    return LaunchRequest("x", parse_spec(config), {}, str(cwd), {})


# -- the working directory ---------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["rw", "ro", "overlay", "none"])
def test_the_working_directory_is_where_the_link_leads(mode: str, top: Path) -> None:
    assert working_directory(request(top / "link", workspace=mode)) == f"{top}/real/folder"


@pytest.mark.parametrize("mode", ["rw", "ro", "overlay"])
def test_the_workspace_that_the_spec_names_goes_first(mode: str, top: Path) -> None:
    made = request("/absent", workspace=mode, workspace_path=str(top / "link"))
    assert working_directory(made) == f"{top}/real/folder"


@pytest.mark.parametrize("mode", ["rw", "ro", "overlay"])
@pytest.mark.parametrize(
    ("name", "real", "what"),
    [
        ("absent", "absent", "does not exist"),
        ("gone", "real/absent", "does not exist"),
        ("file", "file", "is not a directory"),
        ("file/x", "file/x", "does not exist"),
    ],
)
def test_a_workspace_that_is_none(name: str, real: str, what: str, mode: str, top: Path) -> None:
    with pytest.raises(SetupError) as caught:
        working_directory(request(top / name, workspace=mode))
    assert caught.value.message == (
        f"the workspace {top}/{real} {what}; remedy: make it, or set workspace_path to a folder "
        "that exists"
    )


@pytest.mark.parametrize("name", ["absent", "gone", "file"])
def test_without_a_workspace_it_need_not_be_there(name: str, top: Path) -> None:
    assert working_directory(request(top / name, workspace="none")).startswith(f"{top}/")


@pytest.mark.parametrize("mode", ["rw", "none"])
@pytest.mark.parametrize("path", ["/", "/tmp", "/usr/lib", "/proc/self"])
def test_a_link_leads_no_workspace_into_the_system(path: str, mode: str, top: Path) -> None:
    (top / "way").symlink_to(path)
    for cwd in (top / "way", path):
        with pytest.raises(SpecError):
            working_directory(request(cwd, workspace=mode))


# -- is it writable for the kernel's id --------------------------------------------------------


def ids(uid: int, gid: int) -> IdPlan:
    """A kernel that is 1000 inside and ``uid``, ``gid`` on the host."""
    maps = ((IdMapping(1000, uid, 1),), (IdMapping(1000, gid, 1),))
    return IdPlan(*maps, 1000, 1000, helper=True, privileged=False)


SUB: Final = 165_536


@pytest.mark.parametrize(
    ("mode", "owner", "group", "fine"),
    [
        (0o700, SUB, 7, True),
        (0o300, SUB, 7, True),
        (0o500, SUB, 7, False),
        (0o600, SUB, 7, False),
        (0o077, SUB, 7, False),
        (0o077, SUB, SUB, False),
        (0o770, 5, SUB, True),
        (0o030, 5, SUB, True),
        (0o750, 5, SUB, False),
        (0o707, 5, SUB, False),
        (0o707, 5, 7, True),
        (0o003, 5, 7, True),
        (0o775, 5, 7, False),
        (0o702, 5, 7, False),
        (0o1777, 5, 7, True),
    ],
)
def test_a_subordinate_id_needs_the_right_to_write(
    mode: int, owner: int, group: int, fine: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = os.stat_result((0o040000 | mode, 1, 1, 2, owner, group, 0, 0, 0, 0))
    monkeypatch.setattr(hostpaths.os, "stat", lambda path: found)
    if fine:
        check_writable(parse_spec({}), ids(SUB, SUB), "/srv/a")
    else:
        with pytest.raises(SetupError) as caught:
            check_writable(parse_spec({}), ids(SUB, SUB), "/srv/a")
        assert caught.value.message == (
            "the workspace /srv/a is not writable for the kernel: it is host id "
            f"{SUB}:{SUB} there and the folder's mode is {mode:04o}, owner {owner}:{group}; "
            f"remedy: set workspace to 'overlay' or 'ro', or chown {SUB}:{SUB} the folder"
        )
    for other in ("ro", "overlay", "none"):
        check_writable(parse_spec({"workspace": other}), ids(SUB, SUB), "/srv/a")
    # the user's own id has what the user has
    check_writable(parse_spec({}), ids(os.getuid(), SUB), "/srv/a")


# -- the spec ----------------------------------------------------------------------------------


def test_every_path_of_the_spec_is_resolved(top: Path) -> None:
    config = {
        "workspace_path": f"{top}/link",
        "mounts": [
            {"source": f"{top}/link", "target": f"{top}/link", "mode": "rw"},
            {"source": f"{top}/gone/x", "target": "/data"},
        ],
        "hide": [f"{top}/link/k", "/srv/k"],
        "memory": "1G",
    }
    before = parse_spec(config)
    spec = resolve(before, "/resolved", FACTS)
    assert spec.workspace_path == "/resolved"
    assert [(m.source, m.target, m.mode.value) for m in spec.mounts] == [
        (f"{top}/real/folder", f"{top}/link", "rw"),
        (f"{top}/real/absent/x", "/data", "ro"),
    ]
    assert spec.hide == (f"{top}/link/k", f"{top}/real/folder/k", "/srv/k")
    same = {"workspace_path": None, "mounts": (), "hide": ()}
    assert dataclasses.replace(spec, **same) == dataclasses.replace(before, **same)


def test_a_working_directory_is_no_workspace_of_the_spec() -> None:
    assert resolve(parse_spec({}), "/srv/a", FACTS) == parse_spec({})


@pytest.mark.parametrize("other", [False, True])
def test_the_end_of_a_link_to_a_secret_is_hidden(other: bool, top: Path) -> None:
    """With the link's own name: whoever shows the home shows neither."""
    home = top / "home"
    home.mkdir()
    (home / ".ssh").symlink_to("../real/folder")
    (home / ".aws").mkdir()
    facts = dataclasses.replace(
        FACTS, **({"other_homes": (str(home),)} if other else {"home": str(home)})
    )
    spec = resolve(parse_spec({"hide": [f"{top}/real/folder"]}), "/srv", facts)
    assert spec.hide == (f"{top}/real/folder", f"{home}/.ssh")


def test_start_up_files_behind_links(top: Path) -> None:
    home, other = top / "home", top / "other"
    for folder in (home, other):
        folder.mkdir()
    (home / ".bashrc").symlink_to("../link/rc")
    (home / ".profile").touch()
    (home / ".ssh").symlink_to("../real")
    (other / ".zshrc").symlink_to("../link/rc")
    (other / "bin").symlink_to("../gone")
    facts = dataclasses.replace(FACTS, home=str(home), other_homes=(str(other),))
    found = with_links(facts)
    assert found.executed == (f"{top}/real/folder/rc", f"{top}/real/absent")
    assert dataclasses.replace(found, executed=()) == facts


# -- one path ----------------------------------------------------------------------------------


def test_a_path_is_resolved_whether_it_exists_or_not(top: Path) -> None:
    for name, real in (
        ("link", "real/folder"),
        ("link/../x", "real/x"),
        ("gone/a/b", "real/absent/a/b"),
        ("real//folder/", "real/folder"),
        ("absent", "absent"),
    ):
        assert real_path(f"{top}/{name}") == f"{top}/{real}"


def test_a_path_that_is_exchanged_while_it_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    def exchanged(path: str) -> str:
        raise OSError(errno.EINVAL, "readlink of what is none any more", path)

    monkeypatch.setattr(hostpaths.os.path, "realpath", exchanged)
    with pytest.raises(SetupError) as caught:
        real_path("/srv/a")
    assert caught.value.message == "/srv/a cannot be resolved: invalid argument (EINVAL)"


# -- links in the way of a mount -----------------------------------------------------------------


def mounted(tmp_path: Path, source: Path, **config: Any) -> str:
    """Where ``source`` really lies, for a kernel in ``work``."""
    mounts = [{"source": str(source), "target": "/data"}, *config.pop("more", [])]
    spec = parse_spec({"mounts": mounts, **config})
    return resolve(spec, str(tmp_path / "work"), FACTS).mounts[0].source


def test_a_link_that_a_kernel_could_have_made_is_refused(tmp_path: Path) -> None:
    """In the workspace or in a writable mount, last or on the way."""
    for folder in ("work", "other", "secret/deep"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("work", "other"):
        (tmp_path / folder / "link").symlink_to(tmp_path / "secret")
        more = [{"source": str(tmp_path / "other"), "mode": "rw"}] if folder == "other" else []
        for source in (tmp_path / folder / "link", tmp_path / folder / "link" / "deep"):
            with pytest.raises(MountError, match="is a symbolic link, in a folder that a kernel"):
                mounted(tmp_path, source, more=more)


def test_a_link_elsewhere_is_followed(tmp_path: Path) -> None:
    for folder in ("work", "real/deep"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "one").symlink_to("real")
    (tmp_path / "two").symlink_to(tmp_path / "one" / "deep" / ".." / "deep")
    assert mounted(tmp_path, tmp_path / "two") == str(tmp_path / "real" / "deep")
    (tmp_path / "work" / "link").symlink_to(tmp_path / "real")
    seen = mounted(tmp_path, tmp_path / "work" / "link", workspace="ro")
    assert seen == str(tmp_path / "real")
    (tmp_path / "round").symlink_to("round")
    with pytest.raises(MountError, match="ELOOP"):
        mounted(tmp_path, tmp_path / "round")


# -- the audit log -------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["work", "work/deeper", "link", "mounted", "python"])
def test_an_audit_log_that_a_kernel_could_see_is_refused(place: str, top: Path) -> None:
    for name in ("work/deeper", "mounted", "python", "elsewhere"):
        (top / name).mkdir(parents=True)
    (top / "link").unlink()
    (top / "link").symlink_to("work")
    facts = dataclasses.replace(FACTS, prefixes=(f"{top}/python",))
    config = {"mounts": [{"source": f"{top}/mounted"}]}
    spec = parse_spec(config | {"audit_log": f"{top}/{place}/log"})
    with pytest.raises(AuditError, match="within the kernel's reach"):
        check_audit_log(spec, f"{top}/work", facts)
    for path in ("elsewhere/log", "work.log"):
        spec = parse_spec(config | {"audit_log": f"{top}/{path}"})
        check_audit_log(spec, f"{top}/work", facts)
    spec = parse_spec({"workspace": "none", "audit_log": f"{top}/work/log"})
    check_audit_log(spec, f"{top}/work", FACTS)
