"""Where the sockets of a kernel lie: short, ours alone, and gone when their server is dead."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox_kernel import rundir
from sandbox_kernel.errors import ChannelError
from sandbox_kernel.rundir import SOCKET_PATH_MAXIMUM, make, remove, sweep

KERNEL = "0b4f8c1e-77aa-4e0c-9d57-1f2b8f3f5a11"
NOBODY = 65_534


@pytest.fixture
def base() -> Iterator[Path]:
    """A short path, unlike ``tmp_path``, as XDG_RUNTIME_DIR is one."""
    folder = Path(tempfile.mkdtemp(prefix="skr-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def second(base: Path) -> Path:
    folder = base / "second"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
def foreign(base: Path) -> Path:
    """A folder of another user in which we can make files."""
    if os.geteuid() != 0:
        return Path("/dev/shm")
    folder = base / "foreign"
    folder.mkdir(mode=0o777)
    os.chown(folder, NOBODY, NOBODY)
    return folder


def start_time(pid: int | str = "self") -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def dead_pid() -> int:
    with subprocess.Popen(["/bin/true"]) as child:
        child.wait()
        return child.pid


def directory(parent: Path, name: str) -> Path:
    path = parent / name
    path.mkdir(parents=True)
    (path / "k-1").touch()
    return path


# -- making one --------------------------------------------------------------------------------


def test_the_name_says_kernel_and_server(base: Path) -> None:
    path = make(KERNEL, environment={"XDG_RUNTIME_DIR": str(base)})
    assert path == base / "sandbox-kernel" / f"0b4f8c1e77aa.{os.getpid()}.{start_time()}"
    for folder in (path, path.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert folder.stat().st_uid == os.getuid()


def test_the_mode_is_closed_whatever_the_umask_is(base: Path) -> None:
    old = os.umask(0)
    try:
        path = make(KERNEL, environment={"XDG_RUNTIME_DIR": str(base)})
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_directory_that_stands_open_is_closed(base: Path) -> None:
    (base / "sandbox-kernel").mkdir(mode=0o755)
    path = make(KERNEL, environment={"XDG_RUNTIME_DIR": str(base)})
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("kernel_id", ["", "../../etc", "a/b", "ä", "x" * 300, ".", "\0"])
def test_no_kernel_id_leads_elsewhere(kernel_id: str, base: Path) -> None:
    path = make(kernel_id, environment={"XDG_RUNTIME_DIR": str(base)})
    assert path.parent == base / "sandbox-kernel"
    assert rundir._NAME.fullmatch(path.name)


def test_a_base_that_is_just_short_enough_holds_a_socket(base: Path) -> None:
    longest = SOCKET_PATH_MAXIMUM - rundir._LONGEST_NAME
    deep = base / ("d" * (longest - len(str(base)) - 1))
    deep.mkdir()
    path = make(KERNEL, environment={"XDG_RUNTIME_DIR": str(deep)})
    assert path.parent.parent == deep
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path / "k-5"))
    remove(path)

    longer = base / ("d" * (longest - len(str(base))))
    longer.mkdir()
    other = base / "other"
    other.mkdir()
    environment = {"XDG_RUNTIME_DIR": str(longer), "JUPYTER_RUNTIME_DIR": str(other)}
    assert make(KERNEL, environment=environment).parent.parent == other
    assert not list(longer.iterdir())


def test_the_length_is_counted_in_bytes(base: Path, second: Path) -> None:
    longest = SOCKET_PATH_MAXIMUM - rundir._LONGEST_NAME
    wide = base / ("ü" * (longest - len(str(base)) - 1))
    wide.mkdir()
    environment = {"XDG_RUNTIME_DIR": str(wide), "JUPYTER_RUNTIME_DIR": str(second)}
    assert make(KERNEL, environment=environment).parent.parent == second


# -- which base --------------------------------------------------------------------------------


def test_the_order_of_the_bases(base: Path) -> None:
    for name in ("xdg", "jupyter", "home"):
        (base / name).mkdir()
    environment = {
        "XDG_RUNTIME_DIR": str(base / "xdg"),
        "JUPYTER_RUNTIME_DIR": str(base / "jupyter"),
        "HOME": str(base / "home"),
    }
    chosen = []
    for variable in list(environment):
        chosen.append(make(KERNEL, environment=environment).parent.parent)
        del environment[variable]
    assert chosen == [base / "xdg", base / "jupyter", base / "home/.local/share/jupyter/runtime"]


def test_without_any_base_it_is_tmp_with_the_uid_in_the_name() -> None:
    path = make(KERNEL, environment={})
    try:
        assert path.parent == Path(f"/tmp/sandbox-kernel-{os.getuid()}")
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    finally:
        remove(path)
    assert not path.exists()


@pytest.mark.parametrize("value", ["", "relative", ".", "/nonexistent/run"])
def test_a_base_that_is_none_falls_through(value: str, second: Path) -> None:
    environment = {"XDG_RUNTIME_DIR": value, "JUPYTER_RUNTIME_DIR": str(second)}
    assert make(KERNEL, environment=environment).parent.parent == second


def test_a_base_of_another_user_falls_through(foreign: Path, second: Path) -> None:
    environment = {"XDG_RUNTIME_DIR": str(foreign), "JUPYTER_RUNTIME_DIR": str(second)}
    assert make(KERNEL, environment=environment).parent.parent == second
    assert not (foreign / "sandbox-kernel").exists()


@pytest.mark.parametrize("planted", ["symlink", "file", "dangling"])
def test_what_was_planted_in_its_place_falls_through(
    planted: str, base: Path, second: Path
) -> None:
    elsewhere = base / "elsewhere"
    elsewhere.mkdir(mode=0o755)
    first = base / "first"
    first.mkdir()
    place = first / "sandbox-kernel"
    match planted:
        case "symlink":
            place.symlink_to(elsewhere)
        case "dangling":
            place.symlink_to(base / "absent")
        case "file":
            place.touch()
    environment = {"XDG_RUNTIME_DIR": str(first), "JUPYTER_RUNTIME_DIR": str(second)}
    assert make(KERNEL, environment=environment).parent.parent == second
    assert not list(elsewhere.iterdir())
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o755  # nothing was changed through the link


def test_a_directory_that_another_user_planted_is_refused(
    base: Path, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = base / "sandbox-kernel"
    planted.mkdir(mode=0o700)
    real_lstat = os.lstat

    def lstat(path: str | Path, **kwargs: Any) -> os.stat_result:
        """Only root could give it away, so the owner is told by the fake."""
        found = list(real_lstat(path, **kwargs))
        if str(path) == str(planted):
            found[stat.ST_UID] = NOBODY
        return os.stat_result(found)

    monkeypatch.setattr(rundir.os, "lstat", lstat)
    environment = {"XDG_RUNTIME_DIR": str(base), "JUPYTER_RUNTIME_DIR": str(second)}
    assert make(KERNEL, environment=environment).parent.parent == second


def test_a_foreign_directory_is_refused_by_owner(foreign: Path) -> None:
    with pytest.raises(ChannelError) as caught:
        rundir._check(foreign)
    found = foreign.lstat()
    assert caught.value.message == (
        f"{foreign} is not a directory of uid {os.getuid()}: its owner is uid {found.st_uid} and "
        f"its mode {found.st_mode:o}"
    )


def test_no_base_at_all_says_what_was_tried(
    base: Path, foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = f"{base}/{'d' * 60}"
    (base / "sandbox-kernel").touch()
    monkeypatch.setattr(rundir, "_bases", lambda environment: [long, str(base)])
    with pytest.raises(ChannelError) as caught:
        make(KERNEL, environment={})
    assert caught.value.fact == "no run-time directory is usable"
    assert f"{long} is too long for a unix socket; " in str(caught.value.cause)
    assert f"{base}/sandbox-kernel" in str(caught.value.cause)


# -- removing ----------------------------------------------------------------------------------


def test_removing_takes_the_sockets_and_the_last_one_the_parent(base: Path) -> None:
    environment = {"XDG_RUNTIME_DIR": str(base)}
    first, other = make("first", environment=environment), make("other", environment=environment)
    for number in range(1, 6):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(first / f"k-{number}"))
    remove(first)
    assert not first.exists() and other.exists()
    remove(other)
    assert not other.parent.exists() and base.exists()
    remove(other)  # again


def test_removing_takes_nothing_else(base: Path) -> None:
    path = make(KERNEL, environment={"XDG_RUNTIME_DIR": str(base)})
    (path / "notes").touch()
    remove(path)
    assert (path / "notes").exists()


# -- what dead servers left --------------------------------------------------------------------


def test_the_directory_of_a_dead_server_is_swept(base: Path) -> None:
    parent = base / "sandbox-kernel"
    old = directory(parent, f"0123456789ab.{dead_pid()}.12345")
    living = directory(parent, f"kernel.{os.getpid()}.{start_time()}")
    sweep(parent)
    assert not old.exists()
    assert (living / "k-1").exists()


def test_a_pid_that_was_given_to_another_process_is_a_dead_server(base: Path) -> None:
    parent = base / "sandbox-kernel"
    old = directory(parent, f"kernel.{os.getpid()}.{int(start_time()) - 1}")
    living = directory(parent, f"kernel.{os.getpid()}.{start_time()}")
    sweep(parent)
    assert not old.exists() and living.exists()


def test_a_zombie_is_dead(base: Path) -> None:
    parent = base / "sandbox-kernel"
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE) as child:
        path = directory(parent, f"kernel.{child.pid}.{start_time(child.pid)}")
        keep = directory(parent, f"kernel.{os.getpid()}.{start_time()}")
        sweep(parent)
        assert path.exists()  # it lives
        assert child.stdin is not None
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        sweep(parent)
        assert not path.exists() and keep.exists()


def test_a_server_whose_name_is_odd_lives(base: Path) -> None:
    """Field 2 of /proc/PID/stat may hold blanks and brackets."""
    program = base / "a) R 1 (b"
    program.symlink_to("/bin/cat")
    parent = base / "sandbox-kernel"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([str(program)], **pipes) as child:  # type: ignore[call-overload]
        child.stdin.write(b"x\n")
        child.stdin.flush()
        assert child.stdout.readline() == b"x\n"  # the kernel sets the name late in execve
        name = Path(f"/proc/{child.pid}/comm").read_text().strip()
        assert name == program.name
        path = directory(parent, f"kernel.{child.pid}.{start_time(child.pid)}")
        sweep(parent)
        assert path.exists()


@pytest.mark.parametrize(
    "name",
    ["notes", "kernel.1", "kernel.1.2.3", "kernel.x.1", ".1.1", "k" * 13 + ".1.1", "a_b.1.1"],
)
def test_what_is_not_ours_by_name_stays(name: str, base: Path) -> None:
    path = directory(base / "sandbox-kernel", name)
    sweep(base / "sandbox-kernel")
    assert (path / "k-1").exists()


def test_a_link_with_such_a_name_is_not_followed(base: Path) -> None:
    elsewhere = directory(base, "elsewhere")
    parent = base / "sandbox-kernel"
    parent.mkdir()
    (parent / f"kernel.{dead_pid()}.1").symlink_to(elsewhere)
    sweep(parent)
    assert (elsewhere / "k-1").exists()


def test_sweeping_where_nothing_is(base: Path) -> None:
    sweep(base / "absent")


def test_making_one_sweeps_beside_a_living_one(base: Path) -> None:
    parent = base / "sandbox-kernel"
    old = directory(parent, f"kernel.{dead_pid()}.1")
    directory(parent, f"living.{os.getpid()}.{start_time()}")
    path = make(KERNEL, environment={"XDG_RUNTIME_DIR": str(base)})
    assert path.exists() and not old.exists()


def test_making_one_where_only_a_dead_servers_is_left(base: Path) -> None:
    old = directory(base / "sandbox-kernel", f"kernel.{dead_pid()}.1")
    path = make(KERNEL, environment={"XDG_RUNTIME_DIR": str(base)})
    assert path.exists() and not old.exists()


def test_two_kernels_never_share_one(base: Path) -> None:
    environment = {"XDG_RUNTIME_DIR": str(base)}
    ids = ("grading-notebook-1", "grading-notebook-2")
    assert len({make(kernel_id, environment=environment) for kernel_id in ids}) == 2


# -- beside others that come and go ------------------------------------------------------------


class Vanishing:
    """Another process that ends its last kernel just then, and takes the parent with it."""

    def __init__(self, times: int) -> None:
        self.times = times
        self.calls = 0

    def sweep(self, parent: Path) -> None:
        """In the place of the real one: between the parent's making and the directory's."""
        self.calls += 1
        if self.calls <= self.times:
            parent.rmdir()


@pytest.mark.parametrize("times", [1, 2, 20])
def test_a_parent_that_vanishes_is_made_again(
    times: int, base: Path, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Vanishing(times)
    monkeypatch.setattr(rundir, "sweep", other.sweep)
    environment = {"XDG_RUNTIME_DIR": str(base), "JUPYTER_RUNTIME_DIR": str(second)}
    path = make(KERNEL, environment=environment)
    assert path.is_dir() and path.parent.parent == base
    assert other.calls == times + 1


def test_a_parent_that_never_stays_is_given_up(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Vanishing(10_000)
    monkeypatch.setattr(rundir, "sweep", other.sweep)
    with pytest.raises(ChannelError) as caught:
        make(KERNEL, environment={"XDG_RUNTIME_DIR": str(base)})
    assert caught.value.fact == "the run-time directory could not be made"
    assert caught.value.cause == "no such file or directory (ENOENT)"
    assert str(caught.value.path).startswith(f"{base}/sandbox-kernel/0b4f8c1e77aa.")
    assert other.calls == rundir._ATTEMPTS


def test_a_directory_that_cannot_be_made_is_not_tried_again(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def occupy(parent: Path) -> None:
        calls.append(parent)
        (parent / f"0b4f8c1e77aa.{os.getpid()}.{start_time()}").touch()

    monkeypatch.setattr(rundir, "sweep", occupy)
    with pytest.raises(ChannelError) as caught:
        make(KERNEL, environment={"XDG_RUNTIME_DIR": str(base)})
    assert caught.value.cause == "file exists (EEXIST)"
    assert len(calls) == 1


def test_a_directory_that_vanishes_is_made_again(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = rundir._check, 0

    def check(path: Path) -> None:
        nonlocal calls
        if path.name != "sandbox-kernel":
            calls += 1
            if calls == 1:
                path.rmdir()
        real(path)

    monkeypatch.setattr(rundir, "_check", check)
    path = make(KERNEL, environment={"XDG_RUNTIME_DIR": str(base)})
    assert path.is_dir() and calls == 2


def test_a_parent_that_vanishes_while_it_is_checked_leads_nowhere_else(
    base: Path, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server's other kernels, and its next sweep, look in the first place."""
    real, calls = rundir._check, 0

    def check(path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            path.rmdir()
        real(path)

    monkeypatch.setattr(rundir, "_check", check)
    environment = {"XDG_RUNTIME_DIR": str(base), "JUPYTER_RUNTIME_DIR": str(second)}
    assert make(KERNEL, environment=environment).parent.parent == base


def test_what_it_takes_to_remove_an_emptied_directory(tmp_path: Path) -> None:
    parent = tmp_path / "sandbox-kernel"
    ours = parent / "kernel.12.34"
    sockets = [str(ours / "k-1"), str(ours / "k-2"), str(tmp_path / "elsewhere" / "k-1")]
    assert rundir.emptied_from(sockets) == (parent, tmp_path)
    assert rundir.emptied_from([]) == ()
