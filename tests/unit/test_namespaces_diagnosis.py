"""Why a namespace was refused: only what is seen in /proc/sys is named, and only then a remedy."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from sandbox_kernel.engine import namespaces
from sandbox_kernel.engine.namespaces import CONTAINER, diagnose
from sandbox_kernel.errors import NamespaceError
from sandbox_kernel.syscalls import CloneFlag, SyscallError

APPARMOR = "kernel/apparmor_restrict_unprivileged_userns"
CLONE = "kernel/unprivileged_userns_clone"
EVERY_ERRNO = sorted(errno.errorcode)


@pytest.fixture(autouse=True)
def no_container(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The marks of a container are those of the imaginary host: none, until a test adds one."""
    marks: set[str] = set()
    monkeypatch.setattr(namespaces.os.path, "exists", marks.__contains__)
    return marks


def sysctl(folder: Path, **values: str) -> Path:
    for name, value in values.items():
        path = folder / name.replace("__", "/")
        path.parent.mkdir(exist_ok=True)
        path.write_text(value + "\n")
    return folder


@pytest.mark.parametrize("number", EVERY_ERRNO)
@pytest.mark.parametrize("flags", [CloneFlag.NEWUSER, CloneFlag.NEWNET, CONTAINER])
def test_nothing_seen_no_remedy(number: int, flags: CloneFlag, tmp_path: Path) -> None:
    cause, remedy = diagnose(flags, number, tmp_path)
    assert remedy is None
    assert f"({errno.errorcode[number]})" in cause
    assert "AppArmor" not in cause and "inside a container" not in cause


@pytest.mark.parametrize("number", EVERY_ERRNO)
@pytest.mark.parametrize("flags", [CloneFlag.NEWUSER, CONTAINER])
def test_nothing_wrong_no_remedy(number: int, flags: CloneFlag, tmp_path: Path) -> None:
    limits = dict.fromkeys((f"user/max_{kind}_namespaces" for kind in ("user", "net", "pid")), "9")
    tree = sysctl(tmp_path, **limits, **{CLONE: "1", APPARMOR: "0"})
    assert diagnose(flags, number, tree)[1] is None


@pytest.mark.parametrize(
    ("flag", "kind"),
    [
        (CloneFlag.NEWUSER, "user"),
        (CloneFlag.NEWNET, "net"),
        (CloneFlag.NEWNS, "mnt"),
        (CloneFlag.NEWPID, "pid"),
        (CloneFlag.NEWIPC, "ipc"),
        (CloneFlag.NEWUTS, "uts"),
        (CloneFlag.NEWCGROUP, "cgroup"),
        (CloneFlag.NEWTIME, "time"),
    ],
)
def test_a_kind_of_namespace_that_is_forbidden(flag: CloneFlag, kind: str, tmp_path: Path) -> None:
    tree = sysctl(tmp_path, **{f"user/max_{kind}_namespaces": "0"})
    cause, remedy = diagnose(flag, errno.ENOSPC, tree)
    file = tree / f"user/max_{kind}_namespaces"
    assert cause == (
        f"no space left on device (ENOSPC): {file} is 0, so this kind of namespace is forbidden "
        "here"
    )
    assert remedy == f"as root: sysctl -w user.max_{kind}_namespaces=15000"
    other = CloneFlag.NEWUTS if flag is not CloneFlag.NEWUTS else CloneFlag.NEWIPC
    assert diagnose(other, errno.ENOSPC, tree)[1] is None


def test_the_container_is_refused_for_the_one_kind_that_is_forbidden(tmp_path: Path) -> None:
    tree = sysctl(tmp_path, **{"user/max_net_namespaces": "0", "user/max_uts_namespaces": "5"})
    cause, remedy = diagnose(CONTAINER, errno.ENOSPC, tree)
    assert "max_net_namespaces is 0" in cause
    assert remedy == "as root: sysctl -w user.max_net_namespaces=15000"


def test_a_limit_of_a_kind_that_was_not_asked_for_is_not_the_cause(tmp_path: Path) -> None:
    tree = sysctl(tmp_path, **{"user/max_user_namespaces": "0"})
    cause, remedy = diagnose(CONTAINER, errno.ENOSPC, tree)
    assert cause == f"no space left on device (ENOSPC): a limit below {tree}/user is used up"
    assert remedy is None


def test_a_limit_that_is_used_up(tmp_path: Path) -> None:
    tree = sysctl(tmp_path, **{"user/max_user_namespaces": "3"})
    cause, remedy = diagnose(CloneFlag.NEWUSER, errno.ENOSPC, tree)
    assert cause.endswith(f"a limit below {tree}/user is used up")
    assert remedy is None


def test_debians_switch(tmp_path: Path) -> None:
    tree = sysctl(tmp_path, **{CLONE: "0"})
    cause, remedy = diagnose(CloneFlag.NEWUSER, errno.EPERM, tree)
    assert cause == (
        f"operation not permitted (EPERM): {tree / CLONE} is 0, so only root may make user "
        "namespaces"
    )
    assert remedy == "as root: sysctl -w kernel.unprivileged_userns_clone=1"
    assert diagnose(CloneFlag.NEWNET, errno.EPERM, tree)[1] is None
    assert diagnose(CloneFlag.NEWUSER, errno.EACCES, tree)[1] is None


@pytest.mark.parametrize("number", [errno.EPERM, errno.EACCES])
@pytest.mark.parametrize("flags", [CloneFlag.NEWUSER, CONTAINER])
def test_ubuntus_switch(number: int, flags: CloneFlag, tmp_path: Path) -> None:
    """There the user namespace is made, and the next step is refused."""
    tree = sysctl(tmp_path, **{APPARMOR: "1"})
    cause, remedy = diagnose(flags, number, tree)
    assert cause.endswith(f"{tree / APPARMOR} is 1, so AppArmor restricts user namespaces")
    assert remedy is not None
    assert remedy.startswith("as root: sysctl -w kernel.apparmor_restrict_unprivileged_userns=0")
    assert diagnose(flags, errno.EINVAL, tree)[1] is None


@pytest.mark.parametrize("mark", ["/.dockerenv", "/run/.containerenv"])
def test_inside_a_container(mark: str, tmp_path: Path, no_container: set[str]) -> None:
    no_container.add(mark)
    cause, remedy = diagnose(CloneFlag.NEWUSER, errno.EPERM, tmp_path)
    assert "inside a container, whose seccomp profile may forbid it" in cause
    assert remedy is None  # it cannot be told from inside
    assert "inside a container" not in diagnose(CloneFlag.NEWUSER, errno.ENOSPC, tmp_path)[0]


def test_what_is_seen_comes_before_what_may_be(tmp_path: Path, no_container: set[str]) -> None:
    no_container.add("/.dockerenv")
    tree = sysctl(tmp_path, **{CLONE: "0"})
    assert "inside a container" not in diagnose(CloneFlag.NEWUSER, errno.EPERM, tree)[0]


def test_a_kernel_without_time_namespaces(tmp_path: Path) -> None:
    cause, remedy = diagnose(CONTAINER, errno.EINVAL, tmp_path)
    assert "older than Linux 5.6" in cause and "(EINVAL)" in cause
    assert remedy is None
    assert "5.6" not in diagnose(CloneFlag.NEWUSER, errno.EINVAL, tmp_path)[0]


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (namespaces.unshare_user, "a new user namespace was refused: "),
        (namespaces.unshare_gateway, "a new net namespace was refused: "),
        (
            namespaces.unshare_container,
            "a new mount, pid, net, ipc, uts and time namespace was refused: ",
        ),
    ],
)
def test_a_refusal_becomes_an_error_with_its_cause(
    call: object, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(flags: CloneFlag) -> None:
        raise SyscallError(errno.EMFILE, "unshare")

    monkeypatch.setattr(namespaces, "unshare", refuse)
    assert callable(call)
    with pytest.raises(NamespaceError) as caught:
        call()
    assert caught.value.message == what + "too many open files (EMFILE)"


def test_a_second_wall_that_cannot_be_built_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namespaces, "_SYSCTL", tmp_path)
    with pytest.raises(NamespaceError) as caught:
        namespaces.bound_user_namespaces()
    assert caught.value.message == (
        f"{tmp_path}/user/max_user_namespaces could not be set to 0: no such file or directory "
        "(ENOENT)"
    )
    sysctl(tmp_path, **{"user/max_user_namespaces": "15000"})
    namespaces.bound_user_namespaces()
    assert (tmp_path / "user/max_user_namespaces").read_text() == "0"


def test_one_sandbox_gets_an_eighth_of_the_users_inotify(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the file says inside does not count: a new namespace starts with a number of its own."""
    names = ("user/max_inotify_instances", "user/max_inotify_watches")
    monkeypatch.setattr(namespaces, "_SYSCTL", tmp_path)
    monkeypatch.setattr(namespaces, "_outer_limits", dict(zip(names, ("128", "8192"), strict=True)))
    sysctl(tmp_path, **dict.fromkeys(names, "2147483647"))
    namespaces.bound_shared_counts()
    assert [(tmp_path / name).read_text() for name in names] == ["16", "1024"]


def test_a_linux_without_inotify_has_nothing_to_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namespaces, "_SYSCTL", tmp_path)
    monkeypatch.setattr(namespaces, "_outer_limits", {})
    namespaces.bound_shared_counts()
