"""The root file system as data: what is bound, hidden, writable and bounded; no privilege needed.

:func:`seen` answers what a kernel would find at a path once a plan is executed, by the rule of
mounts: the last one at or above the path is the one that is seen.
"""

from __future__ import annotations

import dataclasses
import errno
import importlib
import itertools
import os
import pwd
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
    Seal,
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
    masked,
)
from sandbox_kernel.errors import MountError, SpecError, describe_errno
from sandbox_kernel.hostpaths import resolve, with_links
from sandbox_kernel.spec import MIB, SHARED_TARGETS, SYSTEM_TARGETS, parse_spec

#: The module: the package has a function of the same name.
build_module: Final = importlib.import_module("sandbox_kernel.engine.rootfs.build")
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
    "/proc", "/dev/pts", "/dev/shm", "/tmp", "/run", "/var/tmp",
    *(f"/dev/{n}" for n, _, _ in DEVICES),
}  # fmt: skip
CACHE_TARGETS: Final = {f"{HOME}/{name}" for name in CACHES}
#: In a repository: what git outside runs, or what leads it to another place to run things from.
GIT: Final = (
    "hooks/pre-commit", "config", "commondir", "index", "info/attributes", "modules/a/config",
    "new",
)  # fmt: skip
#: The parts of a home that may be shown and that hold a secret all the same.
WITH_SECRET: Final = {
    HOME + "/.cache": ".cache/huggingface/token",
    HOME + "/.cargo": ".cargo/credentials.toml",
    HOME + "/.config": ".config/gh",
    HOME + "/.local": ".local/share/jupyter",
}
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
        if not isinstance(operation, (Directory, Symlink, File, Seal))
        and is_within(path, operation.target)
    ]
    return covering[-1] if covering else None


def is_hidden(plan: Plan, path: str) -> bool:
    """Is nothing of the host's at ``path``, and can nothing that is made there outside appear?"""
    operation = seen(plan, path)
    if isinstance(operation, Overlay):
        names = [f"{operation.target.rstrip('/')}/{name}" for name in operation.hidden]
        return any(is_within(path, name) for name in names)
    return isinstance(operation, Mask)


def shown_file(plan: Plan, path: str) -> str | None:
    """The host's file that is at ``path``, if it is one of the host's."""
    operation = seen(plan, path)
    if not isinstance(operation, (Bind, Overlay)) or is_hidden(plan, path):
        return None
    return os.path.normpath(f"{operation.source}/{path[len(operation.target) :]}")


def can_write(plan: Plan, path: str) -> bool:
    """Would the host's own files at ``path`` change?"""
    operation = seen(plan, path)
    return isinstance(operation, Bind) and not operation.readonly


def folders_between(top: str, path: str) -> set[str]:
    """What could be renamed inside ``top`` to take ``path`` out of its place."""
    return {str(folder) for folder in Path(path).parents if Path(top) in folder.parents}


def refused(
    config: dict[str, Any] | None = None, *, cwd: str = PROJECT, **facts: Any
) -> MountError:
    with pytest.raises(MountError) as caught:
        make(config, cwd=cwd, **facts)
    return caught.value


def assert_hidden(error: MountError, source: str, hidden: str) -> None:
    assert error.message == (
        f"{source} cannot be shown inside: it lies in {hidden}, which is hidden: it holds secrets "
        "or configuration; remedy: use another folder"
    )


def assert_holds_hidden(error: MountError, source: str, hidden: str) -> None:
    assert error.message == (
        f"{source} cannot be writable inside: it holds {hidden}, which is hidden, and what hides a "
        "file goes when the file is replaced; remedy: use mode 'ro' or 'overlay', or another folder"
    )


def assert_executed(error: MountError, source: str, executed: str) -> None:
    verb = "holds" if executed.startswith(source + "/") else "lies in"
    assert error.message == (
        f"{source} cannot be writable inside: it {verb} {executed}, which programs outside read "
        "and execute; remedy: use mode 'ro' or 'overlay', or another folder"
    )


def assert_holds_the_home(error: MountError, source: str) -> None:
    assert error.message == (
        f"{source} cannot be writable inside: it is the home or holds it, and a kernel could make "
        "a ~/.bash_profile there, which the next login outside would run; remedy: put the notebook "
        "in a folder below the home, or set workspace to 'overlay' or 'ro'"
    )


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


@pytest.mark.parametrize(
    ("allowed", "there"),
    [
        (None, {name for name, _, _ in DEVICES}),
        ([], {"null"}),
        (["/dev/urandom", "/dev/tty"], {"null", "urandom", "tty"}),
    ],
)
def test_devices_that_may_not_be_used_are_not_there(
    allowed: list[str] | None, there: set[str]
) -> None:
    """The walls themselves need /dev/null: it covers what is masked."""
    plan = make({} if allowed is None else {"devices": allowed})
    assert {op.target for op in plan if isinstance(op, Device)} == {f"/dev/{n}" for n in there}


def test_the_home_is_empty_but_for_the_workspace() -> None:
    plan = make()
    assert seen(plan, f"{HOME}/other") == Tmpfs(HOME, 1024 * MIB, 100_000, mode=0o700)
    assert seen(plan, f"{HOME}/.ssh/id_ed25519") != Bind(HOME, HOME)
    shown = [op for op in plan if isinstance(op, (Bind, Overlay)) and is_within(op.source, HOME)]
    assert {op.source for op in shown} == {PROJECT, f"{PROJECT}/.git"} | CACHE_TARGETS
    assert {op.source for op in of(plan, Bind) if not op.readonly} == {PROJECT}


def test_no_file_of_the_user_for_an_isolated_kernel() -> None:
    plan = make({"identity": "isolated", "workspace": "none"})
    assert not [op for op in plan if isinstance(op, (Bind, Overlay)) and is_within(op.source, HOME)]


@pytest.mark.parametrize("mode", ["ro", "overlay"])
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


@pytest.mark.parametrize("mode", ["ro", "overlay"])
@pytest.mark.parametrize("name", SECRETS)
def test_secrets_are_hidden_where_the_workspace_is_the_home(name: str, mode: str) -> None:
    plan = make({"workspace": mode}, cwd=HOME)
    assert is_hidden(plan, f"{HOME}/{name}") and is_hidden(plan, f"{HOME}/{name}/below")
    assert shown_file(plan, f"{HOME}/{name}2") == f"{HOME}/{name}2"


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
        (HOME, "/data", "/data/.ssh", "overlay"),
        ("/home", "/data", "/data/alice/.ssh", "ro"),
        ("/home", "/data", "/data/alice/.ssh", "overlay"),
        ("/", "/host", "/host/home/alice/.ssh", "ro"),
        ("/", "/host", "/host/home/alice/.ssh", "overlay"),
    ],
)
def test_secrets_are_hidden_wherever_a_mount_shows_them(
    source: str, target: str, path: str, mode: str
) -> None:
    plan = make(mount(source, target, mode))
    assert is_hidden(plan, path) and is_hidden(plan, f"{path}/id_ed25519")
    assert shown_file(plan, f"{os.path.dirname(path)}/notes") == f"{HOME}/notes"


@pytest.mark.parametrize(("source", "secret"), WITH_SECRET.items())
@pytest.mark.parametrize("mode", ["ro", "overlay"])
def test_secrets_are_hidden_in_a_part_of_the_home(source: str, secret: str, mode: str) -> None:
    plan = make({"workspace": mode}, cwd=source)
    assert is_hidden(plan, f"{HOME}/{secret}") and is_hidden(plan, f"{HOME}/{secret}/x")
    assert shown_file(plan, f"{source}/other") == f"{source}/other"
    plan = make(mount(source, "/data", mode))
    inside = "/data" + f"{HOME}/{secret}".removeprefix(source)
    assert is_hidden(plan, inside) and is_hidden(plan, f"{inside}/x")
    assert shown_file(plan, "/data/other") == f"{source}/other"
    assert not can_write(plan, "/data/other")


@pytest.mark.parametrize("hidden", [f"{HOME}/.cache/huggingface/token", "/srv/a/keys", "/srv/k"])
def test_what_holds_something_hidden_is_not_writable(hidden: str) -> None:
    """A mask goes when the file under it is replaced outside, as an editor does."""
    hide = {} if hidden.startswith(HOME) else {"hide": [f"{hidden}/below", "/elsewhere", hidden]}
    above = os.path.dirname(hidden)
    while above not in (HOME, "/"):
        for config, cwd in (
            ({}, above),
            ({"workspace_path": above}, PROJECT),
            (mount(above, "/data", "rw"), PROJECT),
            ({"workspace": "none"} | mount(above, above, "rw"), PROJECT),
        ):
            assert_holds_hidden(refused(hide | config, cwd=cwd), above, hidden)
        for mode in ("ro", "overlay"):
            assert make(hide | mount(above, "/data", mode))
        above = os.path.dirname(above)
    beside = f"{hidden}2"
    assert can_write(make(hide, cwd=beside), f"{beside}/x")


def test_a_layer_hides_the_outermost_names_only_and_relative_to_itself() -> None:
    """One whiteout above another could not be made, and an absolute name would hide nothing."""
    hide = {"hide": ["/srv/a/b/c", "/srv/a/b", "/srv/z", "/srv/a/b2", "/srvx", "/srv/a/b"]}
    plan = make(hide | mount("/srv", "/data", "overlay") | {"overlay_size": "2M"})
    (layer,) = [op for op in of(plan, Overlay) if op.target == "/data"]
    assert layer.hidden == ("a/b", "a/b2", "z")
    assert not layer.readonly and layer.size == 2 * MIB
    plan = make(hide | mount("/srv", "/data"))
    (layer,) = [op for op in of(plan, Overlay) if op.target == "/data"]
    assert layer.hidden == ("a/b", "a/b2", "z")
    assert layer.readonly and layer.size == MIB and layer.inodes >= 3 * len(layer.hidden)
    plan = make({"hide": ["/srv/z"]} | mount("/", "/host"))
    (layer,) = [op for op in of(plan, Overlay) if op.target == "/host"]
    assert {"srv/z", "home/alice/.ssh"} <= set(layer.hidden)
    assert not [name for name in layer.hidden if name != name.strip("/") or not name]


@pytest.mark.parametrize("mode", ["ro", "overlay"])
def test_no_layer_where_nothing_is_hidden(mode: str) -> None:
    plan = make(mount("/srv", "/data", mode) | {"workspace": mode, "hide": ["/srv2"]})
    for path in ("/data/x", f"{PROJECT}/x"):
        operation = seen(plan, path)
        assert isinstance(operation, Bind if mode == "ro" else Overlay)
        assert getattr(operation, "hidden", ()) == ()


def test_nothing_outside_the_python_environment_is_hidden_by_a_mask() -> None:
    plan = make({"workspace": "ro", "hide": ["/srv/k"]} | mount("/srv", "/data"), cwd=HOME)
    assert {op.target for op in of(plan, Mask)} == set(masked(1))


def test_the_throttling_of_every_processor_is_masked() -> None:
    plan = make(processors=3)
    assert {op.target for op in of(plan, Mask)} == {
        *MASKED, *(f"/sys/devices/system/cpu/cpu{n}/thermal_throttle" for n in (0, 1, 2))
    }  # fmt: skip


@pytest.mark.parametrize("mode", ["ro", "overlay"])
@pytest.mark.parametrize("copy", ["ro", "overlay"])
def test_the_spec_can_hide_more(mode: str, copy: str) -> None:
    hide = {"hide": [f"{PROJECT}/keys", "/srv/elsewhere"]}
    plan = make({"workspace": mode} | hide | mount(PROJECT, "/copy", copy))
    for top in (PROJECT, "/copy"):
        assert is_hidden(plan, f"{top}/keys") and is_hidden(plan, f"{top}/keys/a")
        assert shown_file(plan, f"{top}/other") == f"{PROJECT}/other"
    assert not [op for op in of(plan, Overlay) if "elsewhere" in str(op.hidden)]


@pytest.mark.parametrize("mode", ["ro", "overlay"])
def test_a_name_that_only_begins_like_a_hidden_one_is_shown(mode: str) -> None:
    plan = make({"workspace": mode, "hide": [f"{PROJECT}/key"]})
    assert shown_file(plan, f"{PROJECT}/keyboard") == f"{PROJECT}/keyboard"
    assert is_hidden(plan, f"{PROJECT}/key")


@pytest.mark.parametrize("home", ["ro", "overlay"])
@pytest.mark.parametrize("mode", ["rw", "ro", "overlay"])
def test_a_mount_below_what_is_hidden_shows_nothing_but_itself(home: str, mode: str) -> None:
    below = mount("/srv/x", f"{HOME}/.ssh/deep/below", mode)
    plan = make({"workspace": home} | below, cwd=HOME)
    assert shown_file(plan, f"{HOME}/.ssh/deep/below/file") == "/srv/x/file"
    for name in ("", "/id", "/deep", "/deep/x", "/deep/below2"):
        assert is_hidden(plan, f"{HOME}/.ssh{name}")


@pytest.mark.parametrize("name", [".ssh", ".ssh/deep", ".config/gcloud", ".aws"])
@pytest.mark.parametrize("mode", ["rw", "ro", "overlay"])
def test_a_secret_folder_is_no_workspace_and_no_mount(name: str, mode: str) -> None:
    path = f"{HOME}/{name}"
    for attempt in ({"workspace": mode, "workspace_path": path}, mount(path, "/data", mode)):
        hidden = path.removesuffix("/deep")
        assert_hidden(refused(attempt), path, hidden)


def test_a_secret_folder_may_be_named_where_nothing_is_shown() -> None:
    plan = make({"workspace": "none"}, cwd=f"{HOME}/.ssh")
    assert isinstance(seen(plan, f"{HOME}/.ssh/id"), Tmpfs)


@pytest.mark.parametrize("below", ["", "/a", "/a/b"])
@pytest.mark.parametrize("hidden", ["/srv/keys", f"{HOME}/keys", PROJECT])
@pytest.mark.parametrize("mode", ["rw", "ro", "overlay"])
def test_what_lies_in_a_hidden_folder_is_no_workspace_and_no_mount(
    mode: str, hidden: str, below: str
) -> None:
    """No mask would cover it: the folder that is shown lies below the one to hide."""
    path, hide = hidden + below, {"hide": ["/srv/other", hidden]}
    for attempt, cwd in (
        ({"workspace": mode}, path),
        ({"workspace": mode, "workspace_path": path}, "/srv/b"),
        ({"workspace": "none"} | mount(path, "/data", mode), "/srv/b"),
        ({"workspace": "none"} | mount(path, path, mode), "/srv/b"),
    ):
        assert_hidden(refused(hide | attempt, cwd=cwd), path, hidden)
        assert make(attempt, cwd=cwd)
    # an empty folder in its place shows nothing, and a name alone is none
    assert isinstance(seen(make(hide | {"workspace": "none"}, cwd=path), f"{path}/x"), Tmpfs)
    beside = f"{hidden}2{below}"
    plan = make(hide | {"workspace": mode}, cwd=beside)
    assert getattr(seen(plan, f"{beside}/x"), "source", None) == beside


@pytest.mark.parametrize("mode", ["ro", "overlay"])
def test_a_hidden_folder_is_hidden_where_what_holds_it_is_shown(mode: str) -> None:
    hide = {"hide": ["/srv/keys"]}
    plan = make(hide | mount("/srv", "/data", mode))
    assert is_hidden(plan, "/data/keys") and is_hidden(plan, "/data/keys/a")
    assert shown_file(plan, "/data/other") == "/srv/other"


@pytest.mark.parametrize("mode", ["rw", "ro", "overlay", "none"])
@pytest.mark.parametrize("secret", [n for n in SECRETS if n.startswith((".local/", ".config/"))])
def test_secrets_are_hidden_where_the_python_environment_holds_them(secret: str, mode: str) -> None:
    """A Python that was built with ``--prefix=~/.local``."""
    top = f"{HOME}/{secret.split('/')[0]}"
    plan = make({"workspace": mode}, prefixes=(VENV, top))
    assert seen(plan, f"{HOME}/{secret}/x") == Mask(f"{HOME}/{secret}")
    assert seen(plan, f"{top}/lib/python3.11/os.py") == Bind(top, top)
    # and nothing is hidden that no prefix holds
    assert not [op for op in of(plan, Mask) if is_within(op.target, f"{HOME}/.ssh")]


@pytest.mark.parametrize("mode", ["ro", "overlay", "none"])
@pytest.mark.parametrize("copy", ["ro", "overlay"])
def test_what_the_spec_hides_is_hidden_in_the_python_environment_too(copy: str, mode: str) -> None:
    keys = f"{PROJECT}/.venv/keys"
    more = {"workspace": mode, "hide": [keys, f"{VENV}/keys"]}
    plan = make(more | mount(PROJECT, "/copy", copy), prefixes=(VENV, f"{PROJECT}/.venv"))
    for path in (keys, f"{VENV}/keys"):
        assert seen(plan, f"{path}/a") == Mask(path)
    assert is_hidden(plan, "/copy/.venv/keys/a")
    assert shown_file(plan, "/copy/.venv/lib") == f"{PROJECT}/.venv/lib"
    for attempt in (more | {"workspace": "rw"}, more | mount(PROJECT, "/copy", "rw")):
        error = refused(attempt, prefixes=(VENV, f"{PROJECT}/.venv"))
        assert_holds_hidden(error, PROJECT, keys)
    assert seen(plan, f"{VENV}/keyboard") == Bind(VENV, VENV)


# -- what runs outside is not written inside ---------------------------------------------------


@pytest.mark.parametrize("identity", ["keep-id", "root", "isolated"])
@pytest.mark.parametrize("above", [HOME, "/home", "/"])
def test_what_holds_the_home_is_not_writable(above: str, identity: str) -> None:
    """A kernel could make a ``~/.bash_profile``, and no mount can cover what is not there."""
    config = {"identity": identity, "workspace": "rw"}
    assert_holds_the_home(refused(config, cwd=above), above)
    assert_holds_the_home(refused(config | mount(above, "/data", "rw")), above)
    assert_holds_the_home(refused(config | {"workspace": "none"} | mount(above, "/d", "rw")), above)
    for mode in ("ro", "overlay"):
        assert not can_write(make(mount(above, "/data", mode)), "/data/x")


def test_the_home_that_the_spec_names_is_not_writable() -> None:
    assert_holds_the_home(refused({"workspace_path": HOME}, cwd="/srv/other"), HOME)
    assert_holds_the_home(refused(mount(HOME, HOME, "rw"), cwd="/srv/other"), HOME)


def test_one_writable_mount_among_harmless_ones_is_enough() -> None:
    modes = (("/srv", "ro"), (HOME, "overlay"), (HOME, "ro"), (HOME, "rw"), ("/srv/b", "rw"))
    table = [{"source": s, "target": f"/data/{i}", "mode": m} for i, (s, m) in enumerate(modes)]
    assert_holds_the_home(refused({"mounts": table}), HOME)
    del table[3]
    assert make({"mounts": table})


@pytest.mark.parametrize("home", ["/srv/homes/a/alice", "/root"])
def test_every_folder_above_the_home_holds_it(home: str) -> None:
    above = home
    while above != "/":
        assert_holds_the_home(refused(mount(above, "/data", "rw"), home=home), above)
        above = os.path.dirname(above)


@pytest.mark.parametrize("path", ["/home/alice2", "/home/alic", "/home/bob", f"{HOME}/a", "/srv"])
def test_what_does_not_hold_the_home_may_be_writable(path: str) -> None:
    assert can_write(make(cwd=path), f"{path}/x")
    assert can_write(make(mount(path, "/data", "rw")), "/data/x")


@pytest.mark.parametrize("mode", ["ro", "overlay"])
@pytest.mark.parametrize("name", EXECUTED_OUTSIDE)
def test_what_a_login_executes_is_never_written_through(name: str, mode: str) -> None:
    for plan, top in (
        (make({"workspace": mode}, cwd=HOME), HOME),
        (make(mount(HOME, "/data", mode)), "/data"),
        (make(mount("/home", "/data", mode)), "/data/alice"),
        (make({"workspace": mode}, cwd=f"{HOME}/{name}"), HOME),
        (make(mount(f"{HOME}/{name}", f"/data/{name}", mode)), "/data"),
    ):
        assert not can_write(plan, f"{top}/{name}")
        assert not can_write(plan, f"{top}/{name}/below")
    for path in (HOME, "/home"):  # and writable it is refused as a whole
        assert_holds_the_home(refused(mount(path, "/data", "rw")), path)
        assert_holds_the_home(refused(cwd=path), path)


@pytest.mark.parametrize("below", ["", "/below", "/a/b"])
@pytest.mark.parametrize("name", EXECUTED_OUTSIDE)
def test_what_a_login_executes_is_no_writable_workspace_and_no_writable_mount(
    name: str, below: str
) -> None:
    path = f"{HOME}/{name}{below}"
    for attempt, cwd in (
        ({}, path),
        ({"workspace_path": path}, PROJECT),
        (mount(path, "/data", "rw"), PROJECT),
        (mount(path, path, "rw"), PROJECT),
    ):
        assert_executed(refused(attempt, cwd=cwd), path, f"{HOME}/{name}")
    for mode in ("ro", "overlay"):
        assert not can_write(make({"workspace": mode}, cwd=path), f"{path}/x")
        assert not can_write(make(mount(path, "/data", mode)), "/data/x")


def test_what_logins_execute() -> None:
    """The list itself, against a typing error."""
    for name in (
        ".bash_profile", ".bashrc", ".cargo", ".conda", ".config", ".cshrc", ".gdbinit", ".ipython",
        ".local", ".nvm", ".profile", ".pyenv", ".rbenv", ".rustup", ".tcshrc", ".xsessionrc",
        ".zlogout", ".zshrc", "bin",
    ):  # fmt: skip
        assert name in EXECUTED_OUTSIDE
    assert [name for name in EXECUTED_OUTSIDE if name[0] != "."] == ["bin"]
    assert all(name == os.path.basename(name) not in (".", "..") for name in EXECUTED_OUTSIDE)
    assert list(EXECUTED_OUTSIDE) == sorted(set(EXECUTED_OUTSIDE))


@pytest.mark.parametrize(
    "path",
    [
        f"{HOME}/.local2",
        f"{HOME}/.config-old",
        f"{HOME}/.loca",
        f"{PROJECT}/.config",
        "/srv/.vim",
        f"{HOME}/bin2",
        f"{HOME}/binary/bin",
        f"{PROJECT}/bin",
        "/srv/bin",
    ],
)
def test_a_name_that_only_looks_like_what_a_login_executes_is_fine(path: str) -> None:
    assert can_write(make(cwd=path), f"{path}/x")
    assert can_write(make(mount(path, "/data", "rw")), "/data/x")


@pytest.mark.parametrize("top", [PROJECT, "/srv/repository"])
def test_what_git_would_run_is_read_only(top: str) -> None:
    """All of ``.git``: git takes its config from where .git/commondir says, and so on."""
    for plan, shown in (
        (make(cwd=top), top),
        (make({"workspace_path": top}, cwd="/srv/other"), top),
        (make(mount(top, "/data", "rw")), "/data"),
        (make(mount(top, top, "rw"), cwd="/srv/other"), top),
    ):
        # there are folders without a repository, and a link there is not followed
        expected = Bind(f"{top}/.git", f"{shown}/.git", absent=Absent.SKIP)
        assert [op for op in plan if op.target == f"{shown}/.git"] == [expected]
        for path in (f"{shown}/.git", *(f"{shown}/.git/{name}" for name in GIT)):
            assert seen(plan, path) == expected
            assert not can_write(plan, path)
        assert [op for op in plan if is_within(op.target, f"{shown}/.git")] == [expected]
        for name in (".gitignore", ".github/workflows", ".git2", "git", "a.git"):
            assert can_write(plan, f"{shown}/{name}")


@pytest.mark.parametrize("below", ["", "/hooks", "/modules/a", "/worktrees/a/b"])
@pytest.mark.parametrize("top", [PROJECT, "/srv/a", "", f"{PROJECT}/.git/modules/a"])
def test_a_git_folder_is_no_writable_workspace_and_no_writable_mount(top: str, below: str) -> None:
    path = f"{top}/.git{below}"
    for attempt, cwd in (
        ({}, path),
        ({"workspace_path": path}, PROJECT),
        (mount(path, "/data", "rw"), PROJECT),
        (mount(path, path, "rw") | {"workspace": "none"}, PROJECT),
    ):
        assert refused(attempt, cwd=cwd).message == (
            f"{path} cannot be writable inside: it lies in a .git folder, from which git outside "
            "runs programs; remedy: use mode 'ro' or 'overlay'"
        )
    for mode in ("ro", "overlay"):
        assert not can_write(make({"workspace": mode}, cwd=path), f"{path}/x")
        assert not can_write(make(mount(path, "/data", mode)), "/data/x")
    # an empty folder there, or another folder shown there, is none of git's
    assert isinstance(seen(make({"workspace": "none"}, cwd=path), f"{path}/x"), Tmpfs)
    assert can_write(make(mount("/srv/in", path, "rw")), f"{path}/x")


@pytest.mark.parametrize("name", [".github", ".git2", "a.git", ".gitmodules", "git", ".git-x/.g"])
def test_a_name_that_only_looks_like_git_is_fine(name: str) -> None:
    path = f"/srv/{name}"
    assert can_write(make(cwd=path), f"{path}/x")
    assert can_write(make(mount(path, "/data", "rw")), "/data/x")


@pytest.mark.parametrize("mode", ["rw", "ro", "overlay"])
def test_the_repository_of_the_workspace_is_not_written_through_what_holds_it(mode: str) -> None:
    plan = make(mount("/srv", "/data", "rw") | {"workspace": mode}, cwd="/srv/a")
    assert not can_write(plan, "/data/a/.git/config")


@pytest.mark.parametrize("protected", [f"{PROJECT}/.git", f"{PROJECT}/a/b/.venv"])
def test_what_is_protected_cannot_be_moved_away(protected: str) -> None:
    """``mv .git x; mkdir .git``: only a mount point itself cannot be renamed."""
    plan = make(prefixes=(f"{PROJECT}/a/b/.venv",))
    targets = {op.target for op in plan if isinstance(op, (Bind, Overlay))}
    while protected != PROJECT:
        assert protected in targets
        protected = os.path.dirname(protected)


@pytest.mark.parametrize(
    ("config", "prefixes", "folders"),
    [
        ({}, (), {}),
        (
            {},
            (f"{PROJECT}/.venv", f"{PROJECT}/a/b/venv", f"{PROJECT}/a/c/d"),
            {f"{PROJECT}/{n}": f"{PROJECT}/{n}" for n in ("a", "a/b", "a/c")},
        ),
        (
            {"workspace": "none"} | mount("/opt", "/data/x", "rw"),
            ("/opt/a/b/venv", "/opt/c", "/srv/z/venv"),
            {"/opt/a": "/data/x/a", "/opt/a/b": "/data/x/a/b"},
        ),
        (
            {"workspace": "ro"} | mount("/opt", "/opt", "rw"),
            ("/opt/a/venv",),
            {"/opt/a": "/opt/a"},
        ),
        # what is shown otherwise could be moved out of its place as well
        (
            mount(f"{PROJECT}/a/b/in", f"{PROJECT}/a/b/in"),
            (),
            {f"{PROJECT}/{n}": f"{PROJECT}/{n}" for n in ("a", "a/b")},
        ),
        # what a mount of the spec stands at or above is its own
        (
            mount("/srv/mid", f"{PROJECT}/a"),
            (f"{PROJECT}/a/b/venv", f"{PROJECT}/a2/venv"),
            {f"{PROJECT}/a2": f"{PROJECT}/a2"},
        ),
        (mount("/srv/mid", f"{PROJECT}/.git"), (), {}),
        # and so does what else the plan puts there
        (
            mount(f"{PROJECT}/c/d", f"{PROJECT}/c/d"),
            (f"{PROJECT}/a", f"{PROJECT}/a/b/venv"),
            {f"{PROJECT}/c": f"{PROJECT}/c"},
        ),
        ({"workspace": "ro"}, (f"{PROJECT}/a/venv",), {}),
        ({"workspace": "overlay"} | mount("/opt", "/data", "overlay"), ("/opt/a/venv",), {}),
    ],
)
def test_the_folders_above_what_is_protected_are_mounted_onto_themselves(
    config: dict[str, Any], prefixes: tuple[str, ...], folders: dict[str, str]
) -> None:
    plan = make(config, prefixes=prefixes)
    asked = {op for op in of(plan, Bind) if op.target in (PROJECT, "/opt", "/data/x")}
    found = {op for op in of(plan, Bind) if not op.readonly} - asked
    # there are folders without a repository; what is in them may be written as before
    assert found == {
        Bind(source, target, readonly=False, absent=Absent.SKIP)
        for source, target in folders.items()
    }
    for folder in folders.values():
        assert can_write(plan, f"{folder}/x")
    for prefix in prefixes:
        assert seen(plan, f"{prefix}/x") == Bind(prefix, prefix)


@pytest.mark.parametrize("mode", ["ro", "overlay"])
@pytest.mark.parametrize("below", ["", "/hooks", "/modules/a/hooks"])
def test_git_that_is_shown_elsewhere_as_well_stays_read_only(below: str, mode: str) -> None:
    """What lies above it must not be renamed; what is protected is no folder to write to."""
    plan = make(mount(f"{PROJECT}/.git{below}", "/git", mode))
    for name in GIT:
        assert not can_write(plan, f"{PROJECT}/.git/{name}")
    assert not can_write(plan, f"{PROJECT}/.git{below}")
    assert can_write(plan, f"{PROJECT}/x")


@pytest.mark.parametrize("mode", ["ro", "overlay"])
@pytest.mark.parametrize("below", ["", "/lib", "/lib/python3.11/site-packages"])
def test_an_environment_that_is_shown_twice_stays_read_only(below: str, mode: str) -> None:
    venv = f"{PROJECT}/.venv"
    table = [
        {"source": PROJECT, "target": "/copy", "mode": "rw"},
        {"source": f"{venv}{below}", "target": "/lib-of-it", "mode": mode},
    ]
    plan = make({"mounts": table}, prefixes=(venv,))
    for top in (venv, "/copy/.venv"):
        for name in ("bin/python", "lib/x.py", "lib/python3.11/site-packages/x.pth"):
            assert not can_write(plan, f"{top}/{name}")
    assert can_write(plan, "/copy/x")


def test_each_folder_above_several_protected_ones_is_mounted_once() -> None:
    plan = make(prefixes=(f"{PROJECT}/a/b", f"{PROJECT}/a/c"))
    targets = [op.target for op in plan if is_within(op.target, PROJECT)]
    assert len(targets) == len(set(targets))


@pytest.mark.parametrize("mode", ["ro", "overlay"])
@pytest.mark.parametrize("source", ["/srv/mid", None])
@pytest.mark.parametrize("below", [".git", "a", "a/b"])
def test_a_mount_of_the_spec_is_never_covered_by_a_writable_folder(
    below: str, source: str | None, mode: str
) -> None:
    """``mounts = [{source = ".git", mode = "ro"}]`` is how to protect a whole repository."""
    target = f"{PROJECT}/{below}"
    plan = make(mount(source or target, target, mode), prefixes=(f"{PROJECT}/a/b/.venv",))
    operation = seen(plan, f"{target}/x")
    assert getattr(operation, "source", None) == (source or target)
    assert not can_write(plan, f"{target}/x")


def test_nothing_of_the_workspace_shows_through_a_mount_of_the_spec() -> None:
    plan = make(mount("/srv/mid", f"{PROJECT}/a"), prefixes=(f"{PROJECT}/a/b/c/.venv",))
    assert not can_write(plan, f"{PROJECT}/a/b/c/x")


@pytest.mark.parametrize("mode", ["ro", "overlay", "none"])
@pytest.mark.parametrize("below", ["", "/b"])
def test_the_workspace_is_never_covered_by_a_writable_folder(below: str, mode: str) -> None:
    """It lies in a folder that a mount shows writable at its own place."""
    cwd = f"/srv/a{below}"
    table = mount("/srv", "/srv", "rw")
    plan = make(table | {"workspace": mode}, cwd=cwd, prefixes=(f"{cwd}/c/venv",))
    assert not can_write(plan, f"{cwd}/x")
    assert not can_write(plan, f"{cwd}/c/x")
    assert can_write(plan, "/srv/x")


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"workspace": "none"}, Tmpfs),
        ({"workspace": "overlay"}, Overlay),
        ({"workspace": "none"} | mount("/srv/x", "/srv/a/.git", "overlay"), Overlay),
    ],
)
def test_git_is_no_reason_to_cover_what_stands_there(
    config: dict[str, Any], kind: type[Operation]
) -> None:
    table = [{"source": "/srv/a", "target": "/srv/a", "mode": "rw"}, *config.get("mounts", [])]
    plan = make(config | {"mounts": table}, cwd="/srv/a/.git")
    assert isinstance(seen(plan, "/srv/a/.git/x"), kind)


@pytest.mark.parametrize("mode", ["rw", "ro", "overlay"])
@pytest.mark.parametrize("target", ["/data/a", "/data/a/b", "/data/a/b/venv"])
def test_the_environment_is_no_reason_to_cover_what_a_mount_shows(target: str, mode: str) -> None:
    table = [
        {"source": "/opt", "target": "/data", "mode": "rw"},
        {"source": "/srv/x", "target": target, "mode": mode},
    ]
    plan = make({"mounts": table}, prefixes=("/opt/a/b/venv", "/opt/a2/venv"))
    operation = seen(plan, "/data/a/b/venv/bin")
    assert isinstance(operation, (Bind, Overlay)) and operation.source == "/srv/x"
    assert [op for op in of(plan, Bind) if op.source == "/opt/a/b/venv"] == [
        Bind("/opt/a/b/venv", "/opt/a/b/venv")
    ]
    assert not can_write(plan, "/data/a2/venv/bin")


def test_each_writable_mount_has_its_own_protection() -> None:
    table = [{"source": f"/srv/{n}", "target": f"/data/{n}", "mode": "rw"} for n in "ab"]
    plan = make({"mounts": table})
    for top, name in itertools.product((PROJECT, "/data/a", "/data/b"), GIT):
        assert not can_write(plan, f"{top}/.git/{name}")
        assert can_write(plan, f"{top}/x")


@pytest.mark.parametrize("mode", ["ro", "overlay"])
@pytest.mark.parametrize("top", [PROJECT, HOME])
def test_read_only_and_overlay_need_no_second_protection(top: str, mode: str) -> None:
    plan = make({"workspace": mode} | mount("/opt", "/data", mode), cwd=top)
    user = [op for op in plan if isinstance(op, (Bind, Overlay)) and not is_within(op.target, HOME)]
    assert [op.source for op in user if is_within(op.source, "/opt")] == ["/opt", VENV]
    below = [op for op in of(plan, Bind) if is_within(op.target, top) and op.target != top]
    assert below == []
    assert not can_write(plan, f"{top}/.bashrc") and not can_write(plan, f"{top}/.git/config")


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
    # once, and as what must be there
    assert [op for op in of(plan, Bind) if op.source == VENV] == [Bind(VENV, VENV)]


@pytest.mark.parametrize(
    ("source", "venv", "path"),
    [
        ("/opt", VENV, "/data/venv"),
        ("/opt", "/opt/a/b/venv", "/data/a/b/venv"),
        (PROJECT, f"{PROJECT}/.venv", "/data/.venv"),
    ],
)
def test_a_venv_that_a_mount_shows_elsewhere_is_read_only_there(
    source: str, venv: str, path: str
) -> None:
    plan = make(mount(source, "/data", "rw"), prefixes=("/opt/first", venv, f"{PROJECT}/z"))
    assert seen(plan, f"{path}/bin/python") == Bind(venv, path, absent=Absent.SKIP)
    assert seen(plan, f"{venv}/bin/python") == Bind(venv, venv)
    assert not can_write(plan, f"{path}/bin/python") and can_write(plan, "/data/other")


def test_each_of_several_environments_is_read_only_where_a_mount_shows_them() -> None:
    prefixes = ("/opt/a", "/opt/b/c", "/srv/elsewhere")
    plan = make(mount("/opt", "/data", "rw"), prefixes=prefixes)
    assert not can_write(plan, "/data/a/x") and not can_write(plan, "/data/b/c/x")
    assert can_write(plan, "/data/b/x")
    assert not [op for op in plan if "/data" in op.target and "elsewhere" in op.target]


def test_the_whole_host_is_not_writable_elsewhere() -> None:
    assert_holds_the_home(refused(mount("/", "/data", "rw")), "/")
    for mode in ("ro", "overlay"):
        assert not can_write(make(mount("/", "/data", mode)), f"/data{VENV}/bin/python")


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


# -- what stands where others' files lie -------------------------------------------------------


@pytest.mark.parametrize("mode", ["rw", "ro", "overlay"])
@pytest.mark.parametrize("path", ["/", "/home", "/tmp", "/var", "/var/tmp"])
def test_a_shared_folder_is_no_workspace_and_no_target(path: str, mode: str) -> None:
    assert path in SHARED_TARGETS
    for attempt, key in (
        ({"workspace": mode, "workspace_path": path}, "workspace_path"),
        (mount("/srv", path, mode), "mounts[0].target"),
    ):
        with pytest.raises(SpecError) as caught:
            make(attempt)
        assert caught.value.message.startswith(f"{key} = {path!r} is not possible: allowed is ")


@pytest.mark.parametrize("path", ["/home/bob", "/tmp/a", "/var/lib/a", "/temp", "/variable"])
def test_a_folder_below_a_shared_one_is_fine(path: str) -> None:
    for config in ({"workspace_path": path}, mount(path, path, "rw")):
        plan = make(config)
        assert seen(plan, f"{path}/x") == Bind(path, path, readonly=False)
    assert seen(plan, "/tmp/other") == next(op for op in of(plan, Tmpfs) if op.target == "/tmp")


@pytest.mark.parametrize("below", ["", "/a", "/a/b"])
@pytest.mark.parametrize("top", SYSTEM_TARGETS)
def test_nothing_stands_in_for_the_system(top: str, below: str) -> None:
    for attempt in ({"workspace_path": top + below}, mount("/srv", top + below)):
        with pytest.raises(SpecError, match="is not possible: allowed is "):
            make(attempt)


@pytest.mark.parametrize("path", sorted({"/libx32", *facts_module._SYSTEM}))
def test_every_directory_of_the_system_is_a_wall(path: str) -> None:
    assert path in SYSTEM_TARGETS


def test_every_link_of_the_sandbox_is_below_a_wall() -> None:
    """A target below a link cannot be made; /var/run is one, /var/tmp is none."""
    made = {link.target for link in of(make(), Symlink)}
    assert "/var/run" in made and "/var/tmp" not in made
    assert [p for p in made if not any(is_within(p, top) for top in SYSTEM_TARGETS)] == []


def test_the_second_temporary_folder_is_like_the_first() -> None:
    """Its own, and as bounded: it outlives no kernel and shows no file of the host."""
    plan = make({"tmp_size": "3M", "inodes": 1111})
    assert seen(plan, "/var/tmp/x") == Tmpfs("/var/tmp", 3 * MIB, 1111, mode=0o1777)
    first = seen(plan, "/tmp/x")
    assert isinstance(first, Tmpfs)
    assert seen(plan, "/var/tmp/x") == dataclasses.replace(first, target="/var/tmp")


@pytest.mark.parametrize("mode", ["rw", "ro"])
def test_a_folder_below_the_second_temporary_one(mode: str) -> None:
    path = "/var/tmp/a"
    for plan in (make({"workspace": mode}, cwd=path), make(mount("/srv", path, mode))):
        assert isinstance(seen(plan, f"{path}/x"), Bind)
        assert can_write(plan, f"{path}/x") is (mode == "rw")
        assert isinstance(seen(plan, "/var/tmp/other"), Tmpfs)


# -- symlinks: the system's are followed, the user's never -------------------------------------


def followed(plan: Plan) -> set[str]:
    return {op.source for op in of(plan, Bind) if op.follow}


SYSTEM_LINKS: Final = {*(f"/etc/{name}" for name in ETC), "/var/cache/fontconfig"}


@pytest.mark.parametrize("mode", ["rw", "ro", "overlay"])
def test_only_paths_of_the_system_follow_symlinks(mode: str) -> None:
    plan = make({"workspace": mode} | mount("/opt", "/data", mode), prefixes=(VENV, "/srv/py"))
    assert followed(plan) == SYSTEM_LINKS
    for source in (PROJECT, "/opt", VENV, "/srv/py", "/usr"):
        for op in plan:
            if isinstance(op, Bind) and op.source == source:
                assert not op.follow
    assert not Bind("/a", "/a").follow


@pytest.fixture
def detached(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The first phase without privileges: the path of each source that would be cloned."""
    found: list[str] = []

    def detach(fd: int, path: str) -> int:
        found.append(os.readlink(f"/proc/self/fd/{fd}"))
        return os.dup(fd)

    monkeypatch.setattr(build_module, "make_private", lambda: None)
    monkeypatch.setattr(build_module, "_detach", detach)
    return found


def links(top: Path) -> tuple[str, list[str]]:
    """A real folder, and three ways to it over a link: itself, on the way, and two of them."""
    top = Path(os.path.realpath(top))
    (top / "real/folder").mkdir(parents=True)
    (top / "link").symlink_to(top / "real/folder")
    (top / "way").symlink_to("real")
    (top / "twice").symlink_to("link")
    return str(top / "real/folder"), [str(top / n) for n in ("link", "way/folder", "twice")]


def test_a_link_to_a_source_of_the_system_is_followed(tmp_path: Path, detached: list[str]) -> None:
    real, ways = links(tmp_path)
    plan = tuple(Bind(path, "/x", follow=True) for path in ways)
    build_module.open_sources(plan).close()
    assert detached == [real] * len(ways)


@pytest.mark.parametrize("kind", ["bind", "overlay"])
def test_a_link_to_a_source_of_the_user_is_refused(
    kind: str, tmp_path: Path, detached: list[str]
) -> None:
    real, ways = links(tmp_path)
    make_one: dict[str, Any] = {
        "bind": lambda path, absent: Bind(path, "/x", absent=absent),
        "overlay": lambda path, absent: Overlay(path, "/x", MIB, 10, absent),
    }
    build_module.open_sources((make_one[kind](real, Absent.FAIL),)).close()
    assert detached == [real]
    detached.clear()
    for path in ways:
        with pytest.raises(MountError) as caught:
            build_module.open_sources((make_one[kind](path, Absent.FAIL),))
        assert caught.value.message == f"{path} cannot be mounted: {describe_errno(errno.ELOOP)}"
        assert detached == []
        # and where it need not be there, it is as if it were not
        sources = build_module.open_sources((make_one[kind](path, Absent.SKIP),))
        assert sources.by_index == {}
        sources.close()
        assert detached == []
        detached.clear()


@pytest.mark.parametrize("path", ["/proc/self/cwd", "/proc/self/root", "/proc/self/exe"])
def test_no_magic_link_is_followed(path: str, detached: list[str]) -> None:
    with pytest.raises(MountError, match=r"ELOOP"):
        build_module.open_sources((Bind(path, "/x", follow=True),))
    assert detached == []


# -- the Python environment --------------------------------------------------------------------


def test_aliases_of_the_environment_are_links() -> None:
    plan = make(
        aliases=(
            ("/opt/current", "/opt/venv"),
            ("/opt/venv/lib64", "/opt/venv/lib"),  # within a prefix: it is there already
            ("/usr/lib64/python", "/usr/lib/python"),  # within /usr: likewise
            ("/opt/current/lib64", "/opt/venv/lib"),  # below a link: it is seen through that
            ("/opt/current2", "/opt/venv"),  # only begins like one
        )
    )
    links = {op.target: op.to for op in of(plan, Symlink)}
    always = {op.target: op.to for op in of(make(), Symlink)}
    assert links == always | {"/opt/current": "/opt/venv", "/opt/current2": "/opt/venv"}


@pytest.mark.parametrize("order", [1, -1])
def test_an_alias_below_another_is_none_of_its_own(order: int) -> None:
    aliases = (("/h/a/venv", f"{HOME}/venv"), ("/h/a", HOME))[::order]
    plan = make(prefixes=(f"{HOME}/venv",), aliases=aliases)
    assert [op for op in of(plan, Symlink) if is_within(op.target, "/h")] == [Symlink("/h/a", HOME)]
    assert seen(plan, f"{HOME}/venv/bin") == Bind(f"{HOME}/venv", f"{HOME}/venv")


@pytest.mark.parametrize("order", [1, -1])
def test_an_environment_behind_a_link_in_a_home_behind_a_link(order: int) -> None:
    """/h/a -> HOME and HOME/v -> /opt/venv: sys.prefix is /h/a/v, and must lead somewhere."""
    plan = make(aliases=(("/h/a/v", VENV), ("/h/a", HOME))[::order])
    made = [op for op in of(plan, Symlink) if is_within(op.target, "/h") or op.to == VENV]
    assert made == [Symlink("/h/a", HOME), Symlink(f"{HOME}/v", VENV)]
    # the longest name decides what the link lies behind
    plan = make(aliases=(("/h/a/v/w", VENV), ("/h/a", HOME), ("/h/a/v", "/srv/v"))[::order])
    assert Symlink("/srv/v/w", VENV) in plan
    assert len([op for op in of(plan, Symlink) if op.to == VENV]) == 1


ALIASES: Final = (("/h/a", HOME), ("/h/a/v", "/srv/v"), ("/current", "/opt/x"))


@pytest.mark.parametrize(
    ("named", "real"),
    [
        ("/h/a/data", f"{HOME}/data"),
        ("/h/a/b/c", f"{HOME}/b/c"),
        ("/h/a/project/sub", f"{PROJECT}/sub"),
        ("/h/a/v", "/srv/v"),
        ("/h/a/v/data", "/srv/v/data"),
        ("/h/a/v2", f"{HOME}/v2"),
        ("/current", "/opt/x"),
        ("/current/y", "/opt/x/y"),
        # these only begin like one, or lie above it
        ("/h/ab", "/h/ab"),
        ("/h/a2/x", "/h/a2/x"),
        ("/h/b/h/a", "/h/b/h/a"),
        (f"{HOME}/data", f"{HOME}/data"),
    ],
)
@pytest.mark.parametrize("mode", ["rw", "ro", "overlay"])
def test_a_target_named_through_a_link_is_where_the_link_leads(
    named: str, real: str, mode: str
) -> None:
    plan = make(mount("/srv/in", named, mode), aliases=ALIASES)
    operation = seen(plan, f"{real}/x")
    assert isinstance(operation, (Bind, Overlay))
    assert (operation.source, operation.target) == ("/srv/in", real)
    assert can_write(plan, f"{real}/x") is (mode == "rw")
    if named != real:
        assert not [op for op in plan if is_within(op.target, named) and op.target not in named]
        assert not [op for op in plan if op.target == named and not isinstance(op, Symlink)]


def test_what_is_named_through_a_link_is_protected_where_it_is() -> None:
    plan = make(mount("/srv/in", "/h/a/data", "rw"), aliases=ALIASES)
    git = Bind("/srv/in/.git", f"{HOME}/data/.git", absent=Absent.SKIP)
    for name in GIT:
        assert seen(plan, f"{HOME}/data/.git/{name}") == git
    assert [op.target for op in plan if is_within(op.target, "/h")] == ["/h/a"]


@pytest.mark.parametrize("mode", ["ro", "overlay"])
def test_what_is_named_through_a_link_is_hidden_where_it_is(mode: str) -> None:
    plan = make(mount("/srv/in", "/h/a/data", mode) | {"hide": ["/srv/in/k"]}, aliases=ALIASES)
    assert is_hidden(plan, f"{HOME}/data/k/x")
    assert shown_file(plan, f"{HOME}/data/k2") == "/srv/in/k2"
    assert [op.target for op in plan if is_within(op.target, "/h")] == ["/h/a"]


@pytest.mark.parametrize("mode", ["rw", "ro", "overlay"])
@pytest.mark.parametrize(
    ("alias", "real", "below"),
    [
        ("/py", "/usr/lib/py", ""),
        ("/py", "/usr/lib/py", "/x"),
        ("/h/a", "/etc", "/passwd"),
        ("/py", "/libx32/py", ""),
        *(("/h", top, "") for top in SHARED_TARGETS if top != "/"),
    ],
)
def test_a_link_does_not_lead_a_mount_into_the_system(
    alias: str, real: str, below: str, mode: str
) -> None:
    error = refused(mount("/srv/in", alias + below, mode), aliases=((alias, real),))
    assert error.message == (f"{alias}{below} cannot be a mount target: it is {real}{below} inside")
    assert make(mount("/srv/in", f"{alias}2{below}", mode), aliases=((alias, real),))


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
    assert not [alias for alias, _ in facts.aliases if is_within(alias, "/somewhere")]
    assert ("/usr", None) in facts.system
    for path, link in facts.system:
        assert os.path.islink(path) is (link is not None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        facts.home = "/"  # type: ignore[misc]


@pytest.mark.parametrize("home", ["/", "//", "///", "/.", "//..", "relative", ".", ""])
def test_a_home_that_can_be_none(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``HOME=/`` would put an empty file system over the whole root."""
    monkeypatch.setenv("HOME", home)
    entry = pwd.getpwuid(os.getuid())
    instead = entry.pw_dir if home == "" else f"/home/{entry.pw_name}"
    assert collect_facts().home == os.path.realpath(instead)


@pytest.mark.parametrize("through_a_link", [False, True])
@pytest.mark.parametrize(
    "home",
    [
        "/bin", "/boot", "/boot/a", "/dev", "/dev/shm/a", "/etc", "/etc/a", "/home", "/lib",
        "/lib64/a", "/proc", "/proc/self/cwd", "/run", "/run/user/a", "/sbin/a", "/sys/a", "/tmp",
        "/usr", "/usr/local/a", "/var", "/var/run/a", "/var/tmp",
    ],
)  # fmt: skip
def test_a_home_in_the_system_is_none(
    home: str, through_a_link: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty file system of the sandbox's own would stand there instead."""
    if home == "/proc/self/cwd":
        monkeypatch.chdir("/usr/lib")
    if through_a_link:
        (tmp_path / "link").symlink_to(home)
        home = str(tmp_path / "link")
    monkeypatch.setenv("HOME", home)
    facts = collect_facts()
    assert facts.home == f"/home/{pwd.getpwuid(os.getuid()).pw_name}"
    # and its name is no link to it
    assert not [pair for pair in facts.aliases if home in pair or facts.home in pair]


@pytest.mark.parametrize(
    "home",
    [
        "/root", "/root/a", "/home/a", "/home/a/b", "/tmp/a", "/var/tmp/a", "/var/lib/a", "/opt/a",
        "/srv", "/usr2", "/etcetera/a", "/running", "/library/a",
    ],
)  # fmt: skip
def test_a_home_beside_the_system_is_one(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert os.path.realpath(home) == home, "this host has a link there"
    monkeypatch.setenv("HOME", home)
    assert collect_facts().home == home


def entry_with_home(path: str) -> pwd.struct_passwd:
    return pwd.struct_passwd(("alice", "x", os.getuid(), os.getgid(), "", path, "/bin/sh"))


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ("real", ["real"]),
        ("link", ["real"]),
        ("gone", ["gone"]),
        ("home", []),
        ("home/", []),
        ("link-home", []),
        ("/", []),
        ("/root", ["/root"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("named", ["home", "link-home"])
def test_the_home_of_the_password_database_is_one_as_well(
    named: str, entry: str, expected: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logins and ssh look there, whatever ``HOME`` says."""
    top = Path(os.path.realpath(tmp_path))
    for name in ("real", "home"):
        (top / name).mkdir()
    (top / "link").symlink_to("real")
    (top / "link-home").symlink_to("home")
    monkeypatch.setenv("HOME", str(top / named))
    monkeypatch.setattr(facts_module.pwd, "getpwuid", lambda _: entry_with_home(f"{top / entry}"))
    facts = collect_facts()
    assert facts.home == str(top / "home")
    assert facts.other_homes == tuple(str(top / name) for name in expected)
    assert facts.homes == (facts.home, *facts.other_homes)
    assert facts.executed == ()


def test_without_a_home_in_the_environment_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(facts_module.pwd, "getpwuid", lambda _: entry_with_home("/srv/alice"))
    assert collect_facts().homes == ("/srv/alice",)


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


def home_behind_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """(the real folder, the link that ``HOME`` names)."""
    real, link = Path(os.path.realpath(tmp_path)) / "real", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    monkeypatch.setenv("HOME", str(link))
    return str(real), str(link)


def test_a_home_behind_a_symlink(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At many sites /home/alice is a link; getcwd() and the supervisor know the real folder."""
    real, link = home_behind_a_link(tmp_path, monkeypatch)
    facts = collect_facts()
    assert facts.home == real
    assert facts.aliases[-1] == (link, real)
    for mode in ("ro", "overlay"):
        plan = plan_rootfs(parse_spec({"workspace": mode}), facts, uid=1, gid=1, cwd=real)
        assert is_hidden(plan, f"{real}/.ssh/id")
        assert shown_file(plan, f"{real}/notes") == f"{real}/notes"
        assert Symlink(link, real) in plan
    with pytest.raises(MountError) as caught:
        plan_rootfs(parse_spec({}), facts, uid=1, gid=1, cwd=real)
    assert_holds_the_home(caught.value, real)


def test_a_link_on_the_way_to_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, link = home_behind_a_link(tmp_path, monkeypatch)
    os.mkdir(f"{real}/alice")
    monkeypatch.setenv("HOME", f"{link}/alice/")
    facts = collect_facts()
    assert facts.home == f"{real}/alice"
    assert facts.aliases[-1] == (f"{link}/alice", f"{real}/alice")


def test_an_environment_in_the_home_behind_a_symlink_is_not_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What must never be shown is compared with the real home, however it is spelled."""
    real, link = home_behind_a_link(tmp_path, monkeypatch)
    os.makedirs(f"{real}/venv/bin")
    monkeypatch.setattr(facts_module.sys, "path", [link, real, f"{link}/venv"])
    facts = collect_facts()
    assert f"{real}/venv" in facts.prefixes
    assert not [path for path in facts.prefixes if is_within(real, path)]


def test_a_home_that_is_a_link_to_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "link").symlink_to("/")
    monkeypatch.setenv("HOME", str(tmp_path / "link"))
    assert collect_facts().home == f"/home/{pwd.getpwuid(os.getuid()).pw_name}"


# -- links to what is secret or runs outside ---------------------------------------------------


@pytest.fixture
def linked_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose .aws and .config are links, one out of it and one to its own dotfiles."""
    top = Path(os.path.realpath(tmp_path))
    for name in ("home/.ssh", "home/dotfiles/config/gh", "home/work", "keys/deep"):
        (top / name).mkdir(parents=True)
    (top / "home/.aws").symlink_to(top / "keys")
    (top / "home/.config").symlink_to("dotfiles/config")
    monkeypatch.setenv("HOME", str(top / "home"))
    return top / "home"


def test_a_secret_behind_a_link_is_hidden_where_it_lies(linked_home: Path) -> None:
    """And nothing besides: a secret without a link is hidden by its name already."""
    home, keys = str(linked_home), str(linked_home.parent / "keys")
    config = {f"{home}/{name}" for name in SECRETS if name.startswith(".config/")}
    facts = dataclasses.replace(FACTS, home=home)
    spec = resolve(parse_spec({"hide": [f"{home}/.aws/a", "/srv/b"]}), f"{home}/work", facts)
    assert set(spec.hide) == {
        f"{home}/.aws/a", f"{keys}/a", "/srv/b", f"{home}/.aws", keys, *config,
        *(path.replace("/.config/", "/dotfiles/config/") for path in config),
    }  # fmt: skip
    assert len(spec.hide) == len(set(spec.hide))


def planned(home: Path, config: dict[str, Any], cwd: Path) -> Plan:
    """As the supervisor makes it."""
    facts = with_links(collect_facts())
    spec = resolve(parse_spec(config), str(cwd), facts)
    assert facts.home == str(home)
    return plan_rootfs(spec, facts, uid=1, gid=1, cwd=str(cwd))


@pytest.mark.parametrize("mode", ["rw", "ro", "overlay"])
def test_a_secret_behind_a_link_is_no_workspace_and_no_mount(mode: str, linked_home: Path) -> None:
    for name, real in ((".aws", "../keys"), (".aws/deep", "../keys/deep")):
        path = os.path.normpath(linked_home / real)
        hidden = os.path.normpath(linked_home / "../keys")
        for config, cwd in (
            (mount(str(linked_home / name), "/data", mode), linked_home / "work"),
            (mount(path, "/data", mode), linked_home / "work"),
            ({"workspace": mode}, Path(path)),
        ):
            with pytest.raises(MountError) as caught:
                planned(linked_home, config, cwd)
            assert_hidden(caught.value, path, hidden)


@pytest.mark.parametrize("mode", ["ro", "overlay"])
def test_a_secret_behind_a_link_is_hidden_where_what_holds_it_is_shown(
    mode: str, linked_home: Path
) -> None:
    plan = planned(linked_home, mount(str(linked_home.parent), "/data", mode), linked_home / "work")
    for name in (".ssh", ".aws", "dotfiles/config/gh", "../keys"):
        inside = os.path.normpath(f"/data/home/{name}")
        assert is_hidden(plan, inside) and is_hidden(plan, f"{inside}/x")
    shown = shown_file(plan, "/data/home/dotfiles/config/nvim")
    assert shown == f"{linked_home}/dotfiles/config/nvim"


def test_a_secret_behind_a_link_in_another_home_is_hidden(linked_home: Path) -> None:
    home, keys = str(linked_home), str(linked_home.parent / "keys")
    facts = dataclasses.replace(FACTS, home="/srv/none", other_homes=(home,))
    spec = resolve(parse_spec({}), "/srv/work", facts)
    assert {f"{home}/.aws", keys, f"{home}/dotfiles/config/gh"} <= set(spec.hide)
    assert f"{home}/.ssh" not in spec.hide
    plan = plan_rootfs(
        resolve(parse_spec(mount(str(linked_home.parent), "/data")), "/srv/work", facts),
        facts, uid=1, gid=1, cwd="/srv/work",
    )  # fmt: skip
    for name in ("home/.ssh", "keys", "home/dotfiles/config/gh"):
        assert is_hidden(plan, f"/data/{name}") and is_hidden(plan, f"/data/{name}/x")
    assert shown_file(plan, "/data/home/work") == f"{home}/work"


def test_where_start_up_files_really_lie(linked_home: Path) -> None:
    """Through any number of links, in each home, whether it exists or not; and nothing besides."""
    home, other = str(linked_home), linked_home.parent / "other"
    other.mkdir()
    (other / ".zshrc").symlink_to("once")
    (other / "once").symlink_to("../twice")
    (other / ".bashrc").write_text("")
    (other / ".ssh").symlink_to("keys")
    (linked_home / ".bash_aliases").symlink_to("work/gone")
    facts = with_links(dataclasses.replace(FACTS, home=home, other_homes=(str(other),)))
    expected = (f"{home}/work/gone", f"{home}/dotfiles/config", str(linked_home.parent / "twice"))
    assert facts.executed == expected
    assert dataclasses.replace(facts, executed=()) == dataclasses.replace(
        FACTS, home=home, other_homes=(str(other),)
    )


@pytest.mark.parametrize(
    "name",
    [
        "dotfiles",
        "dotfiles/config",
        "dotfiles/config/fish",
    ],
)  # fmt: skip
def test_what_a_login_executes_behind_a_link_is_not_written(name: str, linked_home: Path) -> None:
    """~/.config -> ~/dotfiles/config, as every dotfile manager makes it."""
    path = linked_home / name
    path.mkdir(exist_ok=True)
    for config, cwd in (({}, path), (mount(str(path), "/data", "rw"), linked_home / "work")):
        with pytest.raises(MountError) as caught:
            planned(linked_home, config, cwd)
        assert_executed(caught.value, str(path), f"{linked_home}/dotfiles/config")
    assert planned(linked_home, mount(str(path), "/data", "overlay"), linked_home / "work")


@pytest.mark.parametrize("below", ["", "/a", "/a/b"])
def test_the_end_of_a_link_is_no_writable_workspace_and_no_writable_mount(below: str) -> None:
    path, executed = f"/srv/dot/config{below}", ("/srv/first", "/srv/dot/config")
    for attempt, cwd in (({}, path), (mount(path, "/data", "rw"), PROJECT)):
        assert_executed(refused(attempt, cwd=cwd, executed=executed), path, executed[1])
        assert make(attempt, cwd=cwd)
    for mode in ("ro", "overlay"):
        assert not can_write(make({"workspace": mode}, cwd=path, executed=executed), f"{path}/x")
        assert not can_write(make(mount(path, "/data", mode), executed=executed), "/data/x")
    beside = f"/srv/dot/config2{below}"
    assert can_write(make(cwd=beside, executed=executed), f"{beside}/x")


# -- another home ------------------------------------------------------------------------------

OTHER: Final = "/srv/homes/alice"


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize("mode", ["ro", "overlay"])
def test_the_secrets_of_each_home_are_hidden(mode: str, name: str) -> None:
    plan = make(mount("/srv", "/data", mode), cwd=PROJECT, other_homes=(OTHER,))
    inside = f"/data/homes/alice/{name}"
    assert is_hidden(plan, inside) and is_hidden(plan, f"{inside}/x")
    plan = make({"workspace": mode}, cwd=OTHER, other_homes=(OTHER,))
    assert is_hidden(plan, f"{OTHER}/{name}")
    plan = make(mount(HOME, "/data", mode), other_homes=(OTHER,))
    assert is_hidden(plan, f"/data/{name}")
    cache = f"{OTHER}/.cache"
    error = refused(mount(cache, "/d", "rw"), other_homes=(OTHER,))
    assert_holds_hidden(error, cache, f"{cache}/huggingface/token")
    for path in (f"{OTHER}/{name}", f"{HOME}/{name}"):
        assert_hidden(refused(mount(path, "/d", mode), other_homes=(OTHER,)), path, path)


@pytest.mark.parametrize("name", EXECUTED_OUTSIDE)
def test_what_a_login_executes_in_each_home_is_not_writable(name: str) -> None:
    for home in (OTHER, HOME):
        path = f"{home}/{name}"
        for attempt, cwd in (({}, path), (mount(f"{path}/a", "/data", "rw"), PROJECT)):
            source = path if cwd == path else f"{path}/a"
            assert_executed(refused(attempt, cwd=cwd, other_homes=(OTHER,)), source, path)


@pytest.mark.parametrize("above", [OTHER, "/srv/homes", "/srv"])
def test_what_holds_another_home_is_not_writable(above: str) -> None:
    for attempt, cwd in (({}, above), (mount(above, "/data", "rw"), PROJECT)):
        assert_holds_the_home(refused(attempt, cwd=cwd, other_homes=(OTHER,)), above)
        assert can_write(make(attempt, cwd=cwd), f"{'/data' if cwd == PROJECT else above}/x")
    below = f"{OTHER}/work"
    assert can_write(make(cwd=below, other_homes=(OTHER,)), f"{below}/x")


@pytest.mark.parametrize(
    ("config", "aliases"),
    [
        ({}, ((VENV + "-link", VENV),)),
        ({}, (("/h/alice", HOME),)),
        ({}, (("/h/a/v", VENV), ("/h/a", HOME))),
        (mount("/srv", "/h/a/data"), (("/h/a", HOME),)),
        (mount("/srv", "/h/a/v/data"), (("/h/a/v", VENV), ("/h/a", HOME))),
        (mount("/srv", f"{HOME}/v/data"), (("/h/a/v", VENV), ("/h/a", HOME))),
        ({"workspace_path": "/var/tmp/a"}, ()),
    ],
)  # fmt: skip
def test_nothing_is_put_below_a_link(
    config: dict[str, Any], aliases: tuple[tuple[str, str], ...]
) -> None:
    """Targets are resolved without symlinks, so that no plan could be executed otherwise."""
    plan = make(config, aliases=aliases)
    for link in of(plan, Symlink):
        below = [o for o in plan if is_within(o.target, link.target) and o.target != link.target]
        assert below == [], link


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
        "/var/tmp": (3, 1111),
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
        ({"workspace": "ro", "workspace_path": HOME}, set()),  # a layer, and nobody writes to it
        ({"workspace": "ro", "hide": [f"{PROJECT}/k"]}, {HOME, *CACHE_TARGETS}),
        ({"workspace": "overlay", "workspace_path": HOME}, {HOME}),
        ({"workspace": "ro"} | mount("/srv", "/data"), {HOME, *CACHE_TARGETS}),
        (
            {"workspace": "ro"} | mount("/srv", "/data", "rw"),
            {HOME, "/data", *CACHE_TARGETS},
        ),
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
        Overlay("/a", "/layer", 1, 1, readonly=True),
        Tmpfs("/tmpfs", 1, 1),
        Tmpfs("/sealed", 1, 1),
        Tmpfs("/sealed/below", 1, 1),
        Proc(),
        Sysfs(),
        Devpts(),
        Device("/dev/null", 1, 3),
        Mask("/mask"),
        ReadOnly("/readonly"),
        Seal("/sealed"),
        File("/file", ""),
        Directory("/directory"),
        Symlink("/symlink", "/rw"),
    )
    assert writable_targets(plan) == (
        "/rw", "/overlay", "/tmpfs", "/sealed/below", "/proc", "/dev/pts", "/dev/null",
    )  # fmt: skip


@pytest.mark.parametrize("mode", ["rw", "ro", "overlay", "none"])
def test_the_devices_are_sealed_when_they_are_complete(mode: str) -> None:
    """Nothing is made in /dev but by the plan; what is mounted there stays as it is."""
    plan = make({"workspace": mode} | mount("/srv", "/data", "rw"))
    assert of(plan, Seal) == [Seal("/dev")] == [plan[-1]]
    (own,) = [op for op in of(plan, Tmpfs) if op.target == "/dev"]
    assert plan.index(own) < len(plan) - 1
    assert {"/dev/shm", "/dev/pts", "/dev/null"} <= set(writable_targets(plan))
    assert "/dev" not in writable_targets(plan)


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
    assert "seal     /dev" in lines


def test_what_a_layer_hides_can_be_read() -> None:
    config = {"workspace": "overlay", "hide": [f"{PROJECT}/k", f"{PROJECT}/a/b", "/srv/k"]}
    lines = describe_plan(make(config | mount("/srv", "/data"))).splitlines()
    assert f"overlay  {PROJECT} (1073741824 bytes) <- {PROJECT} less a/b, k" in lines
    assert "overlay  /data (ro) <- /srv less k" in lines


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
    {
        "source": PATHS,
        "target": PATHS.filter(lambda path: path not in SHARED_TARGETS),
        "mode": st.sampled_from(["ro", "rw", "overlay"]),
    }
)
CONFIGS = st.fixed_dictionaries(
    {
        "identity": st.sampled_from(["keep-id", "root", "isolated"]),
        "workspace": st.sampled_from(["rw", "ro", "overlay", "none"]),
        "mounts": st.lists(MOUNTS, max_size=4),
        "hide": st.lists(PATHS, max_size=3),
    }
)


def is_a_hole(source: str, mode: str, prefixes: list[str], hide: list[str]) -> bool:
    """The rule itself, said once more: what may not be shown, and what not be written."""
    if any(is_within(source, path) for path in (*(f"{HOME}/{n}" for n in SECRETS), *hide)):
        return True
    hidden = (*(f"{HOME}/{n}" for n in SECRETS), *hide)
    executed = (*(f"{HOME}/{name}" for name in EXECUTED_OUTSIDE), *prefixes, "/usr")
    return mode == "rw" and (
        is_within(HOME, source)
        or any(is_within(path, source) for path in hidden)
        or any(is_within(source, folder) for folder in executed)
        or ".git" in Path(source).parts
    )


@settings(derandomize=True, database=None, deadline=None, max_examples=400)
@given(
    config=CONFIGS,
    cwd=PATHS,
    prefixes=st.lists(st.sampled_from([VENV, f"{PROJECT}/.venv", "/srv/a/lib"]), unique=True),
)
def test_whatever_the_spec_says(config: dict[str, Any], cwd: str, prefixes: list[str]) -> None:
    shown = [(m["source"], m["target"], m["mode"]) for m in config["mounts"]]
    if config["workspace"] != "none":
        shown.append((cwd, cwd, config["workspace"]))
    if any(is_a_hole(source, mode, prefixes, config["hide"]) for source, _, mode in shown):
        refused(config, cwd=cwd, prefixes=tuple(prefixes))
        return
    plan = make(config, cwd=cwd, prefixes=tuple(prefixes))
    assert_bounded(plan)
    assert followed(plan) == SYSTEM_LINKS
    # a parent always precedes what is below it; masks come last and cover whatever is there, and
    # the seal covers nothing
    assert of(plan, Seal) == [plan[-1]]
    for index, operation in enumerate(plan):
        for later in plan[index + 1 :]:
            if not isinstance(later, (Mask, Seal)) and later.target != operation.target:
                assert not is_within(operation.target, later.target), (operation, later)
    # every target is absolute and normal
    for operation in plan:
        assert operation.target == os.path.normpath(operation.target) != "/"
    # nothing but what the spec names is written through to the host, and in it each folder above
    # what is protected is a mount of its own
    named = {(source, target) for source, target, mode in shown if mode == "rw"}
    sources, targets = ([m[key] for m in config["mounts"]] for key in ("source", "target"))
    hidden = (*(f"{HOME}/{name}" for name in SECRETS), *config["hide"])
    others = (*targets, cwd, HOME, *prefixes)
    protected = (*prefixes, *(f"{shown_}/.git" for shown_, _, _ in shown))
    folders = {
        (folder, inside)
        for source, target in named
        for path in (*prefixes, *sources, *(f"{shown_}/.git" for shown_, _, _ in shown))
        for folder in folders_between(source, path)
        if (inside := target + folder.removeprefix(source))
        and not any(is_within(folder, path) for path in protected)
        and not any(Path(target) in Path(t).parents and is_within(inside, t) for t in others)
    }
    assert {(b.source, b.target) for b in of(plan, Bind) if not b.readonly} == named | folders
    for target in targets:
        there = seen(plan, target)
        if isinstance(there, Bind) and not there.readonly:
            assert (there.source, there.target) in named, there
    for bind in of(plan, Bind):
        if not bind.readonly:
            assert not any(is_within(bind.source, prefix) for prefix in (*prefixes, "/usr"))
            assert not is_within(HOME, bind.source)
    # no secret of the home and nothing that runs outside is reachable through what shows it
    for source, target, _ in shown:
        for path in hidden:
            assert not is_within(source, path)
            if is_within(path, source):
                for below in ("", "/below"):
                    inside = target + path.removeprefix(source) + below
                    # another folder may stand there instead, and shows nothing hidden either
                    there = shown_file(plan, inside)
                    assert not any(there and is_within(there, p) for p in hidden), (inside, there)
                    top = seen(plan, target)
                    if seen(plan, inside) == top and getattr(top, "source", None) == source:
                        assert is_hidden(plan, inside), inside
        git = (f"{source}/.git/{name}" for name in GIT)
        for path in (
            f"{source}/.git",
            *git,
            *(f"{HOME}/{name}" for name in EXECUTED_OUTSIDE),
            *prefixes,
        ):
            if is_within(path, source):
                inside = target + path.removeprefix(source)
                there = seen(plan, inside)
                # another folder of the host may stand there instead, and be writable
                if isinstance(there, Bind) and not there.readonly:
                    assert there.source + inside.removeprefix(there.target) != path, there
