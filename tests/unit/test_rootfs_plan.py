"""The root file system as data: what is bound, hidden, writable and bounded; no privilege needed.

:func:`seen` answers what a kernel would find at a path once a plan is executed, by the rule of
mounts: the last one at or above the path is the one that is seen.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_kernel.engine.rootfs import facts as facts_module
from sandbox_kernel.engine.rootfs import plan_rootfs, writable_targets
from sandbox_kernel.engine.rootfs.facts import HostFacts, collect_facts, python_prefixes
from sandbox_kernel.engine.rootfs.operations import (
    Absent,
    Bind,
    Device,
    Devpts,
    Directory,
    File,
    Mask,
    Operation,
    Overlay,
    Proc,
    ReadOnly,
    Symlink,
    Sysfs,
    Tmpfs,
    describe_plan,
)
from sandbox_kernel.engine.rootfs.plan import (
    CACHES,
    DEVICES,
    ETC,
    EXECUTED_OUTSIDE,
    MASKED,
    READ_ONLY,
    SECRETS,
    is_within,
)
from sandbox_kernel.errors import MountError
from sandbox_kernel.spec import MIB, SandboxSpec, parse_spec

HOME: Final = "/home/alice"
PROJECT: Final = "/home/alice/project"
VENV: Final = "/opt/venv"
FACTS: Final = HostFacts(
    user="alice",
    group="staff",
    home=HOME,
    prefixes=(VENV,),
    system=(("/usr", None), ("/bin", "usr/bin"), ("/lib", "usr/lib")),
)
#: Writable in every sandbox, and each a file system in memory or a device.
ALWAYS: Final = {
    "/proc", "/dev", "/dev/pts", "/dev/shm", "/tmp", "/run", *(f"/dev/{n}" for n, _, _ in DEVICES),
}  # fmt: skip
CACHE_TARGETS: Final = {f"{HOME}/{name}" for name in CACHES}
Plan = tuple[Operation, ...]
_Kind = TypeVar("_Kind")


def make(
    config: dict[str, Any] | None = None,
    *,
    cwd: str = PROJECT,
    uid: int = 1000,
    gid: int = 100,
    **facts: Any,
) -> Plan:
    return plan_rootfs(
        parse_spec(config or {}), dataclasses.replace(FACTS, **facts), uid=uid, gid=gid, cwd=cwd
    )


def mount(source: str, target: str, mode: str = "ro") -> dict[str, Any]:
    return {"mounts": [{"source": source, "target": target, "mode": mode}]}


def of(plan: Plan, kind: type[_Kind]) -> list[_Kind]:
    return [operation for operation in plan if isinstance(operation, kind)]


def seen(plan: Plan, path: str) -> Operation | None:
    """The operation that decides what is at ``path``; ``None`` is the read-only root itself."""
    covering = [
        operation
        for operation in plan
        if not isinstance(operation, (Directory, Symlink, File))
        and is_within(path, operation.target)
    ]
    return covering[-1] if covering else None


def can_write(plan: Plan, path: str) -> bool:
    """Would the host's own files at ``path`` change?"""
    operation = seen(plan, path)
    return isinstance(operation, Bind) and not operation.readonly


# -- what is always there ----------------------------------------------------------------------


def test_the_system_is_bound_read_only() -> None:
    plan = make()
    assert plan[:3] == (
        Bind("/usr", "/usr"),
        Symlink("/bin", "usr/bin"),
        Symlink("/lib", "usr/lib"),
    )
    assert not can_write(plan, "/usr/bin/python3")


def test_etc_is_made_of_harmless_parts() -> None:
    plan = make()
    bound = {op.target for op in of(plan, Bind) if is_within(op.target, "/etc")}
    assert bound == {f"/etc/{name}" for name in ETC}
    for name in ("passwd", "shadow", "group", "hosts", "hostname", "sudoers", "machine-id", "ssh"):
        assert f"/etc/{name}" not in bound
    assert all(
        op.readonly and op.absent is Absent.SKIP for op in of(plan, Bind) if op.target in bound
    )


def test_no_folder_of_the_system_is_bound_but_these() -> None:
    plan = make()
    tops = {"/" + op.source.split("/")[1] for op in of(plan, Bind)} - {"/usr", "/etc"}
    assert tops == {"/opt", "/var", "/home"}
    assert {op.source for op in of(plan, Bind) if op.source.startswith("/var")} == {
        "/var/cache/fontconfig"
    }


@pytest.mark.parametrize(
    ("uid", "gid", "user", "group", "passwd", "groups"),
    [
        (1000, 100, "alice", "staff", "alice:x:1000:100::/home/alice:/bin/bash", "staff:x:100:"),
        (0, 0, "alice", "staff", "root:x:0:0::/home/alice:/bin/bash", "root:x:0:"),
        (1000, 1000, "root", "root", "kernel:x:1000:1000::/home/alice:/bin/bash", "kernel:x:1000:"),
    ],
)
def test_nobody_of_the_host_is_known_inside_but_the_user(
    uid: int, gid: int, user: str, group: str, passwd: str, groups: str
) -> None:
    files = {op.target: op for op in of(make(uid=uid, gid=gid, user=user, group=group), File)}
    lines = files["/etc/passwd"].content.splitlines()
    assert lines[0] == passwd
    names = [line.split(":")[0] for line in lines]
    assert sorted(names) == sorted({names[0], "root", "nobody"})
    assert len({line.split(":")[2] for line in lines}) == len(lines)
    lines = files["/etc/group"].content.splitlines()
    assert lines[0] == groups
    assert sorted(line.split(":")[0] for line in lines) == sorted(
        {lines[0].split(":")[0], "root", "nogroup"}
    )
    assert files["/etc/machine-id"].content == ""


def test_the_host_name_is_the_sandboxs() -> None:
    files = {op.target: op.content for op in of(make({"hostname": "box"}), File)}
    assert files["/etc/hostname"] == "box\n"
    assert "127.0.0.1 localhost box" in files["/etc/hosts"]


def test_the_only_devices() -> None:
    assert {(op.target, op.major, op.minor) for op in of(make(), Device)} == {
        ("/dev/null", 1, 3),
        ("/dev/zero", 1, 5),
        ("/dev/full", 1, 7),
        ("/dev/random", 1, 8),
        ("/dev/urandom", 1, 9),
        ("/dev/tty", 5, 0),
    }
    assert not [op for op in of(make(), Bind) if is_within(op.source, "/dev")]


@pytest.mark.parametrize("path", MASKED)
def test_what_tells_of_the_host_is_masked(path: str) -> None:
    plan = make()
    assert isinstance(seen(plan, path), Mask)
    assert plan.index(Mask(path)) > max(plan.index(Proc()), plan.index(Sysfs()))


@pytest.mark.parametrize("path", READ_ONLY)
def test_what_changes_the_host_is_read_only(path: str) -> None:
    plan = make()
    assert isinstance(seen(plan, path), ReadOnly)
    assert plan.index(ReadOnly(path)) > plan.index(Proc())


# -- the workspace -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("rw", Bind(PROJECT, PROJECT, readonly=False)),
        ("ro", Bind(PROJECT, PROJECT, readonly=True)),
        ("overlay", Overlay(PROJECT, PROJECT, 5 * MIB, 1234)),
        ("none", Tmpfs(PROJECT, 5 * MIB, 1234, mode=0o700)),
    ],
)
def test_the_modes_of_the_workspace(mode: str, expected: Operation) -> None:
    plan = make({"workspace": mode, "overlay_size": "5M", "inodes": 1234})
    assert seen(plan, f"{PROJECT}/data.csv") == expected
    assert can_write(plan, f"{PROJECT}/data.csv") is (mode == "rw")
    if mode == "none":
        assert not [op for op in of(plan, Bind) if is_within(op.source, HOME)]


def test_the_spec_can_name_another_workspace_than_the_working_directory() -> None:
    plan = make({"workspace_path": "/srv/data"}, cwd="/srv/other")
    assert seen(plan, "/srv/data/x") == Bind("/srv/data", "/srv/data", readonly=False)
    assert seen(plan, "/srv/other/x") is None


def test_a_source_that_must_be_there_is_not_skipped() -> None:
    plan = make(mount("/srv/in", "/data", "rw") | {"workspace": "overlay"})
    for target in (PROJECT, "/data", "/usr", VENV):
        operation = next(op for op in plan if op.target == target)
        assert isinstance(operation, (Bind, Overlay))
        assert operation.absent is Absent.FAIL


def test_the_home_is_empty_but_for_the_workspace() -> None:
    plan = make()
    assert seen(plan, f"{HOME}/other") == Tmpfs(HOME, 1024 * MIB, 100_000, mode=0o700)
    assert seen(plan, f"{HOME}/.ssh/id_ed25519") != Bind(HOME, HOME)
    shown = [op for op in plan if isinstance(op, (Bind, Overlay)) and is_within(op.source, HOME)]
    assert {op.source for op in shown} == {PROJECT, f"{PROJECT}/.git/hooks"} | CACHE_TARGETS


def test_no_file_of_the_user_for_an_isolated_kernel() -> None:
    plan = make({"identity": "isolated", "workspace": "none"})
    assert not [op for op in plan if isinstance(op, (Bind, Overlay)) and is_within(op.source, HOME)]


@pytest.mark.parametrize("mode", ["rw", "ro", "overlay"])
def test_the_home_as_the_workspace_is_not_covered_by_an_empty_one(mode: str) -> None:
    plan = make({"workspace": mode}, cwd=HOME)
    operation = seen(plan, f"{HOME}/notes.txt")
    assert isinstance(operation, (Bind, Overlay)) and operation.source == HOME
    assert not [op for op in of(plan, Tmpfs) if op.target == HOME]


def test_no_workspace_in_the_home() -> None:
    plan = make({"workspace": "none"}, cwd=HOME)
    assert isinstance(seen(plan, f"{HOME}/notes.txt"), Tmpfs)
    for cache in CACHE_TARGETS:
        assert isinstance(seen(plan, f"{cache}/x"), Overlay)


# -- extra mounts ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("ro", Bind("/srv/in", "/data", readonly=True)),
        ("rw", Bind("/srv/in", "/data", readonly=False)),
        ("overlay", Overlay("/srv/in", "/data", 7 * MIB, 2000)),
    ],
)
def test_the_modes_of_an_extra_mount(mode: str, expected: Operation) -> None:
    plan = make(mount("/srv/in", "/data", mode) | {"overlay_size": "7M", "inodes": 2000})
    assert seen(plan, "/data/x") == expected


def test_a_mount_below_another_is_not_covered_by_it() -> None:
    config = {
        "mounts": [
            {"source": "/srv/deep", "target": f"{PROJECT}/a/b/c"},
            {"source": "/srv/mid", "target": f"{PROJECT}/a", "mode": "rw"},
        ]
    }
    plan = make(config)
    assert seen(plan, f"{PROJECT}/a/b/c/x") == Bind("/srv/deep", f"{PROJECT}/a/b/c")
    assert seen(plan, f"{PROJECT}/a/x") == Bind("/srv/mid", f"{PROJECT}/a", readonly=False)


# -- secrets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["rw", "ro", "overlay"])
@pytest.mark.parametrize("name", SECRETS)
def test_secrets_are_hidden_where_the_workspace_is_the_home(name: str, mode: str) -> None:
    plan = make({"workspace": mode}, cwd=HOME)
    assert seen(plan, f"{HOME}/{name}") == Mask(f"{HOME}/{name}")
    assert seen(plan, f"{HOME}/{name}/below") == Mask(f"{HOME}/{name}")


def test_the_secrets_that_people_have() -> None:
    """The list itself, against a typing error."""
    for name in (".ssh", ".aws", ".gnupg", ".netrc", ".config/gcloud", ".kube", ".docker"):
        assert name in SECRETS
    assert ".local/share/jupyter" in SECRETS and ".jupyter" in SECRETS
    assert all(not n.startswith("/") and not n.endswith("/") and ".." not in n for n in SECRETS)


@pytest.mark.parametrize(
    ("source", "target", "path", "mode"),
    [
        (HOME, "/data", "/data/.ssh", "ro"),
        (HOME, "/data", "/data/.ssh", "rw"),
        (HOME, "/data", "/data/.ssh", "overlay"),
        ("/home", "/data", "/data/alice/.ssh", "rw"),
        ("/", "/host", "/host/home/alice/.ssh", "ro"),
    ],
)
def test_secrets_are_hidden_wherever_a_mount_shows_them(
    source: str, target: str, path: str, mode: str
) -> None:
    plan = make(mount(source, target, mode))
    assert seen(plan, f"{path}/id_ed25519") == Mask(path)


@pytest.mark.parametrize("config", [{}, {"workspace": "ro"}, {"workspace": "overlay"}])
def test_the_spec_can_hide_more(config: dict[str, Any]) -> None:
    hide = {"hide": [f"{PROJECT}/keys", "/srv/elsewhere"]}
    plan = make(config | hide | mount(PROJECT, "/copy"))
    assert seen(plan, f"{PROJECT}/keys/a") == Mask(f"{PROJECT}/keys")
    assert seen(plan, "/copy/keys/a") == Mask("/copy/keys")
    assert not [op for op in of(plan, Mask) if "elsewhere" in op.target]


def test_a_name_that_only_begins_like_a_hidden_one_is_shown() -> None:
    plan = make({"hide": [f"{PROJECT}/key"]})
    assert isinstance(seen(plan, f"{PROJECT}/keyboard"), Bind)


def test_masks_come_after_everything_that_could_cover_them() -> None:
    plan = make(mount("/srv/x", f"{HOME}/.ssh/deep/below"), cwd=HOME)
    assert seen(plan, f"{HOME}/.ssh/deep/below/file") == Mask(f"{HOME}/.ssh")


@pytest.mark.parametrize("name", [".ssh", ".ssh/deep", ".config/gcloud", ".aws"])
@pytest.mark.parametrize("mode", ["rw", "ro", "overlay"])
def test_a_secret_folder_is_no_workspace_and_no_mount(name: str, mode: str) -> None:
    path = f"{HOME}/{name}"
    for attempt in ({"workspace": mode, "workspace_path": path}, mount(path, "/data", mode)):
        with pytest.raises(MountError) as caught:
            make(attempt)
        assert caught.value.message.startswith(f"{path} cannot be shown inside: it lies in ~/")
        assert "secrets" in caught.value.message


def test_a_secret_folder_may_be_named_where_nothing_is_shown() -> None:
    plan = make({"workspace": "none"}, cwd=f"{HOME}/.ssh")
    assert isinstance(seen(plan, f"{HOME}/.ssh/id"), Tmpfs)


@pytest.mark.parametrize("secret", [".local/share/keyrings", ".local/share/jupyter"])
def test_secrets_are_hidden_where_the_python_environment_holds_them(secret: str) -> None:
    """A Python that was built with ``--prefix=~/.local``."""
    plan = make(prefixes=(f"{HOME}/.local",))
    assert isinstance(seen(plan, f"{HOME}/{secret}/x"), Mask)


# -- what runs outside is not written inside ---------------------------------------------------


@pytest.mark.parametrize("name", EXECUTED_OUTSIDE)
def test_what_a_login_executes_is_read_only(name: str) -> None:
    for plan, top in (
        (make(cwd=HOME), HOME),
        (make(mount(HOME, "/data", "rw")), "/data"),
        (make(mount("/home", "/data", "rw")), "/data/alice"),
    ):
        assert not can_write(plan, f"{top}/{name}")
        assert not can_write(plan, f"{top}/{name}/below")
        assert can_write(plan, f"{top}/notes.txt")


@pytest.mark.parametrize("top", [PROJECT, "/srv/repository"])
def test_git_hooks_are_read_only(top: str) -> None:
    plan = make(cwd=top)
    assert not can_write(plan, f"{top}/.git/hooks/pre-commit")
    assert can_write(plan, f"{top}/.git/index")


def test_read_only_and_overlay_need_no_second_protection() -> None:
    for mode in ("ro", "overlay"):
        plan = make({"workspace": mode}, cwd=HOME)
        assert not [op for op in of(plan, Bind) if op.target == f"{HOME}/.bashrc"]
        assert not can_write(plan, f"{HOME}/.bashrc")


@pytest.mark.parametrize("name", [".config", ".config/autostart", ".ipython/profile_default"])
def test_what_a_login_executes_is_no_writable_workspace(name: str) -> None:
    with pytest.raises(MountError):
        make(cwd=f"{HOME}/{name}")


@pytest.mark.parametrize("venv", [f"{PROJECT}/.venv", f"{PROJECT}/a/b/.venv"])
@pytest.mark.parametrize("mode", ["rw", "ro", "overlay"])
def test_a_venv_inside_the_workspace_stays_read_only(venv: str, mode: str) -> None:
    plan = make({"workspace": mode}, prefixes=(venv,))
    assert seen(plan, f"{venv}/lib/x.py") == Bind(venv, venv, readonly=True)
    assert not can_write(plan, f"{venv}/bin/python")


def test_a_venv_inside_a_mount_at_its_own_place_stays_read_only() -> None:
    plan = make(mount("/opt", "/opt", "rw"))
    assert not can_write(plan, f"{VENV}/bin/python")
    assert can_write(plan, "/opt/other")


@pytest.mark.parametrize(
    ("source", "path"), [("/opt", "/data/venv/bin/python"), ("/", "/data/opt/venv/bin/python")]
)
def test_a_venv_that_a_mount_shows_elsewhere_is_read_only_there(source: str, path: str) -> None:
    try:
        plan = make(mount(source, "/data", "rw"))
    except MountError:
        return
    assert not can_write(plan, path)


@pytest.mark.parametrize("inside", [VENV, f"{VENV}/share", "/usr/local/share/x"])
def test_the_python_environment_is_no_writable_workspace_and_no_writable_mount(inside: str) -> None:
    for attempt, cwd in ((mount(inside, "/data", "rw"), PROJECT), ({}, inside)):
        with pytest.raises(MountError) as caught:
            make(attempt, cwd=cwd)
        error = caught.value
        assert error.fact == f"{inside} cannot be writable inside"
        prefix = "/usr" if inside.startswith("/usr") else VENV
        assert prefix in str(error.cause) and "Python environment" in str(error.cause)
        assert error.remedy == "use mode 'ro' or 'overlay', or another folder"
    for mode in ("ro", "overlay"):
        make(mount(inside, "/data", mode))
        make({"workspace": mode}, cwd=inside)


@pytest.mark.parametrize("path", ["/opt/venv2", "/opt", "/usr2"])
def test_a_name_that_only_begins_like_the_environment_is_fine(path: str) -> None:
    make(mount(path, path, "rw"))


# -- the Python environment --------------------------------------------------------------------


def test_aliases_of_the_environment_are_links() -> None:
    plan = make(
        aliases=(
            ("/opt/current", "/opt/venv"),
            ("/opt/venv/lib64", "/opt/venv/lib"),  # within a prefix: it is there already
            ("/usr/lib64/python", "/usr/lib/python"),  # within /usr: likewise
        )
    )
    links = {op.target: op.to for op in of(plan, Symlink)}
    assert links["/opt/current"] == "/opt/venv"
    assert "/opt/venv/lib64" not in links and "/usr/lib64/python" not in links


def test_this_interpreters_environment() -> None:
    prefixes, aliases = python_prefixes("/home/nobody-in-particular")
    for path in prefixes:
        assert os.path.isdir(path) and os.path.realpath(path) == path != "/"
        assert not is_within(path, "/usr")
    for a, b in itertools.permutations(prefixes, 2):
        assert not is_within(a, b)
    for wanted in (sys.prefix, sys.base_prefix, os.path.dirname(os.path.realpath(sys.executable))):
        real = os.path.realpath(wanted)
        assert any(is_within(real, folder) for folder in (*prefixes, "/usr")), real
    for alias, real in aliases:
        assert alias != real == os.path.realpath(alias)


def test_a_venv_behind_a_symlink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = tmp_path / "real"
    (real / "bin").mkdir(parents=True)
    alias = tmp_path / "alias"
    alias.symlink_to(real)
    monkeypatch.setattr(facts_module.sys, "prefix", str(alias))
    monkeypatch.setattr(facts_module.sys, "path", ["", str(alias / "bin"), str(tmp_path / "gone")])
    prefixes, aliases = python_prefixes("/home/nobody-in-particular")
    resolved = os.path.realpath(real)
    assert resolved in prefixes
    assert f"{resolved}/bin" not in prefixes
    assert (str(alias), resolved) in aliases


@pytest.mark.parametrize("below", ["", "a", "a/b"])
def test_no_environment_shows_the_whole_home(
    below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``python -m venv ~``, or an editable install of what lies there, or above it."""
    top = os.path.realpath(tmp_path)
    home = os.path.normpath(f"{top}/{below}")
    os.makedirs(f"{home}/project")
    monkeypatch.setattr(facts_module.sys, "prefix", top)
    monkeypatch.setattr(facts_module.sys, "path", [top, home, "/", "/tmp", f"{home}/project"])
    prefixes, _ = python_prefixes(home)
    assert not [path for path in prefixes if is_within(home, path)]
    assert f"{home}/project" in prefixes


def test_facts_of_this_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/somewhere//else/")
    facts = collect_facts()
    assert facts.home == "/somewhere/else"
    assert ("/usr", None) in facts.system
    for path, link in facts.system:
        assert os.path.islink(path) is (link is not None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        facts.home = "/"  # type: ignore[misc]


@pytest.mark.parametrize(
    "home",
    [
        "/",
        "relative",
        "",
        pytest.param(
            "//",
            marks=pytest.mark.xfail(strict=True, reason="normpath('//') is '//', and that is /"),
        ),
    ],
)
def test_a_home_that_can_be_none(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``HOME=/`` would put an empty file system over the whole root."""
    monkeypatch.setenv("HOME", home)
    facts = collect_facts()
    assert facts.home not in ("/", "//") and facts.home.startswith("/")


def test_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr(facts_module.pwd, "getpwuid", unknown)
    with pytest.raises(MountError) as caught:
        collect_facts()
    assert caught.value.message == (
        f"uid {os.getuid()} has no name (/etc/passwd): the password database has no entry for it"
    )


def test_a_group_without_a_name_is_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(gid: int) -> None:
        raise KeyError(gid)

    monkeypatch.setattr(facts_module.grp, "getgrgid", unknown)
    assert collect_facts().group == str(os.getgid())


def test_a_home_behind_a_symlink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At many sites /home/alice is a link; getcwd() and the supervisor know the real folder."""
    real, link = tmp_path / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    monkeypatch.setenv("HOME", str(link))
    plan = plan_rootfs(SandboxSpec(), collect_facts(), uid=1, gid=1, cwd=os.path.realpath(real))
    assert isinstance(seen(plan, f"{os.path.realpath(real)}/.ssh/id"), Mask)


# -- bounds and writability --------------------------------------------------------------------


def test_every_file_system_in_memory_has_the_size_that_the_spec_says() -> None:
    config = {
        "home_size": "2M", "tmp_size": "3M", "shm_size": "4M", "run_size": "5M",
        "overlay_size": "6M", "inodes": 1111, "workspace": "overlay",
    }  # fmt: skip
    plan = make(config | mount("/srv/in", "/data", "overlay"))
    sizes = {
        op.target: (op.size // MIB, op.inodes)
        for op in plan
        if isinstance(op, (Tmpfs, Overlay))
        and op.target != "/dev"
        and op.target not in CACHE_TARGETS
    }
    assert sizes == {
        HOME: (2, 1111),
        "/tmp": (3, 1111),
        "/dev/shm": (4, 1111),
        "/run": (5, 1111),
        PROJECT: (6, 1111),
        "/data": (6, 1111),
    }


def assert_bounded(plan: Plan) -> None:
    for op in plan:
        if isinstance(op, (Tmpfs, Overlay)):
            assert op.size > 0, op
            assert op.inodes > 0, op


@pytest.mark.parametrize(
    ("config", "more"),
    [
        ({}, {PROJECT, HOME, *CACHE_TARGETS}),
        ({"workspace": "ro"}, {HOME, *CACHE_TARGETS}),
        ({"workspace": "overlay"}, {PROJECT, HOME, *CACHE_TARGETS}),
        ({"workspace": "none"}, {PROJECT, HOME, *CACHE_TARGETS}),
        ({"identity": "isolated"}, {PROJECT, HOME}),
        ({"workspace": "ro", "workspace_path": HOME}, set()),
        ({"workspace_path": HOME}, {HOME}),
        ({"workspace": "ro"} | mount("/srv", "/data"), {HOME, *CACHE_TARGETS}),
        ({"workspace": "ro"} | mount("/srv", "/data", "rw"), {HOME, "/data", *CACHE_TARGETS}),
        ({"workspace": "ro"} | mount("/srv", "/data", "overlay"), {HOME, "/data", *CACHE_TARGETS}),
    ],
)
def test_nothing_is_writable_but_what_the_spec_says(config: dict[str, Any], more: set[str]) -> None:
    targets = writable_targets(make(config))
    assert set(targets) == ALWAYS | more
    assert len(targets) == len(set(targets))


def test_each_kind_of_operation_is_writable_or_not() -> None:
    plan: Plan = (
        Bind("/a", "/ro"),
        Bind("/a", "/rw", readonly=False),
        Overlay("/a", "/overlay", 1, 1),
        Tmpfs("/tmpfs", 1, 1),
        Proc(),
        Sysfs(),
        Devpts(),
        Device("/dev/null", 1, 3),
        Mask("/mask"),
        ReadOnly("/readonly"),
        File("/file", ""),
        Directory("/directory"),
        Symlink("/symlink", "/rw"),
    )
    assert writable_targets(plan) == (
        "/rw", "/overlay", "/tmpfs", "/proc", "/dev/pts", "/dev/null",
    )  # fmt: skip


def test_a_plan_can_be_read() -> None:
    lines = describe_plan(
        make({"workspace": "overlay"} | mount("/srv", "/data", "rw"))
    ).splitlines()
    assert len(lines) == len(make({"workspace": "overlay"} | mount("/srv", "/data", "rw")))
    assert "bind     /usr ro <- /usr" in lines
    assert "bind     /data rw <- /srv" in lines
    assert f"overlay  {PROJECT} (1073741824 bytes) <- {PROJECT}" in lines
    assert "tmpfs    /tmp 1777 (1073741824 bytes, 100000 inodes)" in lines
    assert "device   /dev/null (1:3)" in lines
    assert "symlink  /bin -> usr/bin" in lines
    assert "mask     /proc/kcore" in lines


def test_no_content_of_a_file_is_in_the_description() -> None:
    assert File("/etc/x", "content", 0o600).describe() == "file     /etc/x (7 bytes)"


@pytest.mark.parametrize(
    ("path", "folder", "expected"),
    [
        ("/a", "/a", True),
        ("/a/b", "/a", True),
        ("/a", "/a/b", False),
        ("/ab", "/a", False),
        ("/a", "/", True),
        ("/", "/", True),
        ("/", "/a", False),
    ],
)
def test_within(path: str, folder: str, expected: bool) -> None:
    assert is_within(path, folder) is expected


# -- for all plans -----------------------------------------------------------------------------

NAMES = st.sampled_from(["alice", "project", ".ssh", ".config", ".venv", "a", ".git", "lib"])
TOPS = st.sampled_from(["/home", HOME, PROJECT, "/srv", "/opt", "/data"])
PATHS = st.builds(lambda top, below: "/".join([top, *below]), TOPS, st.lists(NAMES, max_size=3))
MOUNTS = st.fixed_dictionaries(
    {"source": PATHS, "target": PATHS, "mode": st.sampled_from(["ro", "rw", "overlay"])}
)
CONFIGS = st.fixed_dictionaries(
    {
        "identity": st.sampled_from(["keep-id", "root", "isolated"]),
        "workspace": st.sampled_from(["rw", "ro", "overlay", "none"]),
        "mounts": st.lists(MOUNTS, max_size=4),
        "hide": st.lists(PATHS, max_size=3),
    }
)


@settings(derandomize=True, database=None, deadline=None, max_examples=400)
@given(
    config=CONFIGS,
    cwd=PATHS,
    prefixes=st.lists(st.sampled_from([VENV, f"{PROJECT}/.venv", "/srv/a/lib"]), unique=True),
)
def test_whatever_the_spec_says(config: dict[str, Any], cwd: str, prefixes: list[str]) -> None:
    try:
        plan = make(config, cwd=cwd, prefixes=tuple(prefixes))
    except MountError:
        return
    assert_bounded(plan)
    # a parent always precedes what is below it; masks come last and cover whatever is there
    for index, operation in enumerate(plan):
        for later in plan[index + 1 :]:
            if not isinstance(later, Mask) and later.target != operation.target:
                assert not is_within(operation.target, later.target), (operation, later)
    # every target is absolute and normal
    for operation in plan:
        assert operation.target == os.path.normpath(operation.target) != "/"
    # nothing but what the spec names is written through to the host
    named = {(m["source"], m["target"]) for m in config["mounts"] if m["mode"] == "rw"}
    if config["workspace"] == "rw":
        named.add((cwd, cwd))
    for bind in of(plan, Bind):
        if not bind.readonly:
            assert (bind.source, bind.target) in named
            assert not any(is_within(bind.source, prefix) for prefix in (*prefixes, "/usr"))
    # no secret of the home is reachable through what shows it
    shown = [(m["source"], m["target"]) for m in config["mounts"]]
    if config["workspace"] != "none":
        shown.append((cwd, cwd))
    for source, target in shown:
        for name in (".ssh", ".aws", ".netrc"):
            path = f"{HOME}/{name}"
            if is_within(path, source):
                inside = target + path.removeprefix(source)
                assert isinstance(seen(plan, inside), (Mask, type(None))), inside
            assert not is_within(source, path)
