"""What of the user's files a kernel sees: the workspace in its modes, extra mounts, and no secret.

A kernel that writes is believed by what the host sees afterwards, never by its own word.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.containers import starts
from integration.sandboxes import inside, manager, own_launcher, run_cell, started, value

from sandbox_kernel.errors import MountError, SetupError, SpecError
from sandbox_kernel.provisioner import SandboxProvisioner

SECRET = "nobody inside may read this"


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "data.txt").write_text("data of the host")
    return folder


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home with secrets in it, and a launcher that knows it as the home."""
    folder = tmp_path / "home"
    for name in (
        ".ssh/id_ed25519", ".aws/credentials", ".netrc", ".config/gcloud/token", ".jupyter/token",
        ".ipython/profile_default/startup/00.py", ".bashrc", ".gnupg/private", ".kube/config",
        ".cargo/credentials", ".local/share/jupyter/runtime/kernel-1.json", ".config/harmless",
        "project/data.txt", "notes/own-secret/key",
    ):  # fmt: skip
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(SECRET)
    monkeypatch.setenv("HOME", str(folder))
    with own_launcher():
        yield folder


def write_everywhere(folder: str) -> dict[str, int]:
    """What making, changing, renaming and removing in ``folder`` came to, as error numbers."""
    import os

    def attempt(action: Callable[[], object]) -> int:
        try:
            action()
        except OSError as error:
            return error.errno or -1
        return 0

    def append() -> None:
        with open(f"{folder}/data.txt", "a") as file:
            file.write(", changed inside")

    return {
        "change": attempt(append),
        "rename": attempt(lambda: os.rename(f"{folder}/data.txt", f"{folder}/renamed.txt")),
        "make": attempt(lambda: open(f"{folder}/made.txt", "x").close()),
        "folder": attempt(lambda: os.mkdir(f"{folder}/folder")),
        "remove": attempt(lambda: os.unlink(f"{folder}/renamed.txt")),
    }


def contents(folder: Path) -> dict[str, str | None]:
    """Every path below ``folder`` with its text; ``None`` for a directory."""
    return {
        str(path.relative_to(folder)): None if path.is_dir() else path.read_text()
        for path in sorted(folder.rglob("*"))
    }


def secrets_seen(top: str, secret: str) -> list[str]:
    """Files below ``top`` inside in which ``secret`` can be read."""
    import os

    found = []
    for folder, _, names in os.walk(top):
        for name in names:
            path = os.path.join(folder, name)
            try:
                with open(path, encoding="utf-8", errors="replace") as file:
                    if secret in file.read(10_000):
                        found.append(path)
            except OSError:
                pass
    return found


def refusal(folder: Path, config: dict[str, Any], *, cwd: Path) -> Exception:
    """The error with which a start is refused; no connection file is left."""
    km = manager(folder, config)
    with pytest.raises((MountError, SetupError, SpecError)) as caught:
        km.start_kernel(cwd=str(cwd))
    assert not os.path.exists(km.connection_file)
    return caught.value


# -- modes of the workspace ----------------------------------------------------------------------


def test_rw_is_the_folder_itself(tmp_path: Path, workspace: Path) -> None:
    with started(tmp_path, cwd=workspace) as (_, client):
        assert value(client, "__import__('os').getcwd()") == str(workspace)
        assert run_cell(client, "open('made.txt', 'w').write('inside')").ok
        assert run_cell(client, "open('data.txt', 'a').write(', changed')").ok
        made = workspace / "made.txt"
        assert made.read_text() == "inside"
        assert (made.stat().st_uid, made.stat().st_gid) == (os.getuid(), os.getgid())
        assert made.stat().st_mode & 0o777 == 0o644
        (workspace / "later.txt").write_text("made outside meanwhile")
        assert value(client, "open('later.txt').read()") == "made outside meanwhile"
    assert (workspace / "data.txt").read_text() == "data of the host, changed"


def test_ro_refuses_every_write(tmp_path: Path, workspace: Path) -> None:
    before = contents(workspace)
    with started(tmp_path, {"workspace": "ro"}, cwd=workspace) as (_, client):
        assert value(client, "open('data.txt').read()") == "data of the host"
        done = inside(client, write_everywhere, str(workspace))
        assert set(done.values()) == {errno.EROFS}, done
    assert contents(workspace) == before


def test_overlay_takes_writes_that_vanish(tmp_path: Path, workspace: Path) -> None:
    before = contents(workspace)
    with started(tmp_path, {"workspace": "overlay"}, cwd=workspace) as (km, client):
        assert set(inside(client, write_everywhere, str(workspace)).values()) == {0}
        assert value(client, "sorted(__import__('os').listdir())") == ["folder", "made.txt"]
        assert contents(workspace) == before
        km.restart_kernel(now=True)
        client.wait_for_ready(timeout=60)
        assert value(client, "sorted(__import__('os').listdir())") == ["data.txt"]
    assert contents(workspace) == before


def test_an_overlay_is_bounded(tmp_path: Path, workspace: Path) -> None:
    config = {"workspace": "overlay", "overlay_size": "2M"}

    def fill() -> int:
        try:
            with open("large", "wb", buffering=0) as file:
                for _ in range(8):
                    file.write(b"x" * 2**20)
        except OSError as error:
            return error.errno or -1
        return 0

    with started(tmp_path, config, cwd=workspace) as (_, client):
        assert inside(client, fill) == errno.ENOSPC


def test_none_is_an_empty_scratch_folder(tmp_path: Path, workspace: Path) -> None:
    before = contents(workspace)
    with started(tmp_path, {"workspace": "none"}, cwd=workspace) as (_, client):
        assert value(client, "[__import__('os').getcwd(), __import__('os').listdir()]") == [
            str(workspace),
            [],
        ]
        assert run_cell(client, "open('data.txt', 'w').write('scratch')").ok
    assert contents(workspace) == before


def test_a_workspace_path_of_its_own(tmp_path: Path, workspace: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text(SECRET)
    config = {"workspace_path": str(workspace)}
    with started(tmp_path, config, cwd=elsewhere) as (_, client):
        assert value(client, "__import__('os').getcwd()") == str(workspace)
        assert value(client, f"__import__('os').path.exists({str(elsewhere)!r})") is False


def test_folders_beside_the_workspace_are_not_there(tmp_path: Path, workspace: Path) -> None:
    (tmp_path / "beside").mkdir()
    (tmp_path / "file").write_text(SECRET)
    with started(tmp_path, cwd=workspace) as (_, client):
        assert value(client, "__import__('os').listdir('..')") == [workspace.name]


def test_a_symlink_as_workspace_is_the_folder_it_names(tmp_path: Path, workspace: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(workspace)
    with started(tmp_path, cwd=link) as (_, client):
        assert value(client, "__import__('os').getcwd()") == str(workspace)
        assert run_cell(client, "open('made.txt', 'w').write('inside')").ok
    assert (workspace / "made.txt").read_text() == "inside"
    with started(tmp_path, {"workspace_path": str(link)}, cwd=tmp_path) as (_, client):
        assert value(client, "__import__('os').getcwd()") == str(workspace)


def test_links_in_the_workspace_do_not_lead_out(tmp_path: Path, workspace: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text(SECRET)
    (workspace / "absolute").symlink_to(outside)
    (workspace / "relative").symlink_to("../outside")
    with started(tmp_path, cwd=workspace) as (_, client):
        for name in ("absolute/file", "relative/file", "../outside/file"):
            assert run_cell(client, f"open({name!r}).read()").ename == "FileNotFoundError"


# -- extra mounts --------------------------------------------------------------------------------


def test_extra_mounts_of_folders_and_files(tmp_path: Path, workspace: Path) -> None:
    for name in ("ro", "rw", "overlay"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.txt").write_text("data of the host")
    for name in ("file-ro", "file-rw"):
        (tmp_path / name).write_text("a file")
    mounts = [
        {"source": str(tmp_path / "ro"), "target": "/data/ro"},
        {"source": str(tmp_path / "rw"), "target": "/data/rw", "mode": "rw"},
        {"source": str(tmp_path / "overlay"), "target": "/data/overlay", "mode": "overlay"},
        {"source": str(tmp_path / "file-ro"), "target": "/data/a.txt", "mode": "ro"},
        {"source": str(tmp_path / "file-rw"), "target": "/data/b.txt", "mode": "rw"},
    ]
    before = {name: contents(tmp_path / name) for name in ("ro", "overlay")}
    with started(tmp_path, {"mounts": mounts}, cwd=workspace) as (_, client):
        assert set(inside(client, write_everywhere, "/data/ro").values()) == {errno.EROFS}
        assert set(inside(client, write_everywhere, "/data/rw").values()) == {0}
        assert set(inside(client, write_everywhere, "/data/overlay").values()) == {0}
        assert value(client, "open('/data/a.txt').read()") == "a file"
        assert "Errno 30" in run_cell(client, "open('/data/a.txt', 'w')").evalue
        assert run_cell(client, "open('/data/b.txt', 'w').write('changed')").ok
        assert value(client, "sorted(__import__('os').listdir('/data'))") == [
            "a.txt", "b.txt", "overlay", "ro", "rw",
        ]  # fmt: skip
    assert {name: contents(tmp_path / name) for name in ("ro", "overlay")} == before
    assert contents(tmp_path / "rw") == {"folder": None, "made.txt": ""}
    assert (tmp_path / "file-rw").read_text() == "changed"
    assert (tmp_path / "file-ro").read_text() == "a file"


def test_a_read_only_mount_within_the_workspace(tmp_path: Path, workspace: Path) -> None:
    """It stays read-only although its parent is writable, and cannot be moved away."""
    (workspace / "model").mkdir()
    (workspace / "model" / "data.txt").write_text("weights")
    mounts = [{"source": str(workspace / "model")}]

    def away(folder: str) -> list[int]:
        import os
        import shutil

        numbers = []
        for action in (lambda: os.rename(folder, folder + "2"), lambda: os.rmdir(folder)):
            try:
                action()
                numbers.append(0)
            except OSError as error:
                numbers.append(error.errno or -1)
        shutil.rmtree(folder, ignore_errors=True)
        return numbers

    with started(tmp_path, {"mounts": mounts}, cwd=workspace) as (_, client):
        assert inside(client, away, str(workspace / "model")) == [errno.EBUSY, errno.EBUSY]
        assert "Errno 30" in run_cell(client, "open('model/data.txt', 'w')").evalue
        assert run_cell(client, "open('made.txt', 'w')").ok
    assert (workspace / "model" / "data.txt").read_text() == "weights"


def test_a_python_folder_within_the_workspace_stays_read_only(
    tmp_path: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a virtual environment beside the notebook: programs outside run what lies there."""
    packages = workspace / "venv" / "lib"
    packages.mkdir(parents=True)
    (packages / "data.txt").write_text("a module")
    code = (
        f"import sys; sys.path[0] = {str(packages)!r}; "
        "from sandbox_kernel.launcher import main; sys.exit(main())"
    )
    monkeypatch.setattr(SandboxProvisioner, "_launcher_command", (sys.executable, "-c", code))
    before = contents(packages)
    with started(tmp_path, cwd=workspace) as (_, client):
        assert set(inside(client, write_everywhere, str(packages)).values()) == {errno.EROFS}
        for path in (packages, packages.parent):
            moved = run_cell(client, f"__import__('os').rename({str(path)!r}, '{path}-moved')")
            assert "Errno 16" in moved.evalue
        assert run_cell(client, "open('made.txt', 'w')").ok
    assert contents(packages) == before


def test_a_source_that_is_not_there_is_named(tmp_path: Path, workspace: Path) -> None:
    missing = str(tmp_path / "missing")
    error = refusal(tmp_path, {"mounts": [{"source": missing}]}, cwd=workspace)
    assert isinstance(error, MountError)
    assert str(error).startswith(f"{missing} cannot be mounted: no such file or directory (ENOENT)")


# -- hidden folders ------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["ro", "overlay"])
def test_no_secret_is_seen_where_the_workspace_is_the_home(
    tmp_path: Path, home: Path, mode: str
) -> None:
    before = contents(home)
    config = {"workspace": mode, "hide": ["~/notes/own-secret", "~/not-there"]}
    with started(tmp_path, config, cwd=home) as (_, client):
        assert value(client, "__import__('os').getcwd()") == str(home)
        seen = inside(client, secrets_seen, str(home), SECRET)
        relative = {os.path.relpath(path, home) for path in seen}
        assert relative == {
            ".ipython/profile_default/startup/00.py", ".bashrc", ".config/harmless",
            "project/data.txt",
        }  # fmt: skip
        hidden = (".ssh", ".aws", ".config/gcloud", ".jupyter", ".gnupg", ".kube", ".netrc")
        for path in hidden:
            assert value(client, f"__import__('os').path.lexists({path!r})") is False, path
        for path in (".ssh/authorized_keys", ".jupyter/jupyter_server_config.py"):
            assert "Errno" in run_cell(client, f"open({path!r}, 'w').write('x')").evalue
        writes = run_cell(client, "open('.bashrc', 'a').write('x')")
        assert writes.ok is (mode == "overlay")
    assert contents(home) == before


@pytest.mark.parametrize("below", ["token", "private/key", "a/b/not-there"])
def test_something_hidden_in_a_writable_workspace(
    tmp_path: Path, workspace: Path, below: str
) -> None:
    """A mount over it would go when it is replaced, so nothing starts."""
    error = refusal(tmp_path, {"hide": [str(workspace / below)]}, cwd=workspace)
    assert isinstance(error, MountError)
    assert str(error) == (
        f"{workspace} cannot be writable inside: it holds {workspace / below}, which is hidden, "
        "and what hides a file goes when the file is replaced; remedy: use mode 'ro' or "
        "'overlay', or another folder"
    )


def test_a_folder_below_the_home_shows_nothing_of_the_home(tmp_path: Path, home: Path) -> None:
    with started(tmp_path, cwd=home / "project") as (_, client):
        seen = inside(client, secrets_seen, str(home), SECRET)
        assert seen == [str(home / "project" / "data.txt")]
        assert run_cell(client, "open('made.txt', 'w').write('inside')").ok
    assert (home / "project" / "made.txt").read_text() == "inside"


def test_a_home_behind_a_symlink_hides_the_same(
    tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = tmp_path / "link"
    link.symlink_to(home)
    monkeypatch.setenv("HOME", str(link))
    with own_launcher(), started(tmp_path, {"workspace": "ro"}, cwd=link) as (_, client):
        seen = inside(client, secrets_seen, str(home), SECRET)
        assert str(home / ".bashrc") in seen
        assert not [path for path in seen if ".ssh" in path or ".aws" in path or ".netrc" in path]
        assert value(client, f"__import__('os').path.lexists({str(link / '.ssh')!r})") is False


# -- refusals ------------------------------------------------------------------------------------


def test_a_workspace_that_does_not_exist(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    error = refusal(tmp_path, {"workspace_path": str(missing)}, cwd=tmp_path)
    assert str(error) == (
        f"the workspace {missing} does not exist; remedy: make it, or set workspace_path to a "
        "folder that exists"
    )


def test_a_workspace_that_is_a_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    error = refusal(tmp_path, {"workspace_path": str(file)}, cwd=tmp_path)
    assert str(error).startswith(f"the workspace {file} is not a directory")


@pytest.mark.parametrize("cwd", ["/", "/etc", "/usr/share", "/dev/shm", "/tmp", "/home"])
def test_a_notebook_in_a_folder_of_the_system(tmp_path: Path, cwd: str) -> None:
    error = refusal(tmp_path, {}, cwd=Path(cwd))
    assert isinstance(error, SpecError)
    assert error.key == "workspace_path"
    assert error.value == cwd


def test_a_symlink_to_a_folder_of_the_system(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("/etc")
    error = refusal(tmp_path, {}, cwd=link)
    assert isinstance(error, SpecError)
    assert error.value == "/etc"


@pytest.mark.parametrize("name", [".ssh", ".config/gcloud", ".jupyter"])
def test_a_workspace_within_a_secret_folder(tmp_path: Path, home: Path, name: str) -> None:
    for config in ({}, {"workspace": "ro"}):
        error = refusal(tmp_path, config, cwd=home / name)
        assert isinstance(error, MountError)
        assert str(error) == (
            f"{home / name} cannot be shown inside: it lies in {home / name}, which is hidden: it "
            "holds secrets or configuration; remedy: use another folder"
        )


def test_a_mount_that_leads_to_a_secret_through_a_symlink(tmp_path: Path, home: Path) -> None:
    """As a workspace, as an extra mount, and through a folder on the way."""
    (home / "project" / "data").symlink_to(home / ".ssh")
    (home / "project" / "up").symlink_to(home)
    project = home / "project"
    data = {"mounts": [{"source": str(project / "data"), "target": "/data"}]}
    up = {"mounts": [{"source": str(project / "up" / ".ssh"), "target": "/data"}]}
    for config, cwd in (
        (data | {"workspace": "ro"}, project),
        (up | {"workspace": "overlay"}, project),
        ({"workspace_path": str(project / "data")}, project),
        ({}, project / "data"),
    ):
        error = refusal(tmp_path, config, cwd=cwd)
        assert str(error).startswith(f"{home}/.ssh cannot be shown inside"), config
    for config in (data, up):
        error = refusal(tmp_path, config, cwd=project)
        assert "is a symbolic link, in a folder that a kernel can write" in str(error), config


def test_a_cache_that_leads_to_a_secret_is_not_shown(tmp_path: Path, home: Path) -> None:
    (home / ".cache").mkdir()
    (home / ".cache" / "matplotlib").symlink_to(home / ".ssh")
    with started(tmp_path, cwd=home / "project") as (_, client):
        assert inside(client, secrets_seen, str(home / ".cache"), SECRET) == []


def test_the_home_cannot_be_writable(tmp_path: Path, home: Path) -> None:
    for config in ({}, {"mounts": [{"source": str(home), "target": "/h", "mode": "rw"}]}):
        cwd = home if not config else home / "project"
        error = refusal(tmp_path, config, cwd=cwd)
        assert isinstance(error, MountError)
        assert str(error).startswith(f"{home} cannot be writable inside: it is the home")


def test_the_python_environment_cannot_be_writable(tmp_path: Path, workspace: Path) -> None:
    packages = os.path.realpath(Path(sys.prefix) / "lib")
    for config, cwd in (
        ({}, Path(packages)),
        ({"mounts": [{"source": packages, "target": "/data", "mode": "rw"}]}, workspace),
    ):
        error = refusal(tmp_path, config, cwd=cwd)
        assert isinstance(error, MountError)
        assert str(error).startswith(f"{packages} cannot be writable inside: it lies in the Python")


def test_a_hidden_folder_that_is_a_symlink(tmp_path: Path, home: Path) -> None:
    """Neither the link nor what it points to is there, under whichever name."""
    (home / "dotfiles").mkdir()
    (home / ".ssh").rename(home / "dotfiles" / "ssh")
    (home / ".ssh").symlink_to("dotfiles/ssh")
    with started(tmp_path, {"workspace": "ro"}, cwd=home) as (_, client):
        for path in (".ssh", "dotfiles/ssh"):
            assert value(client, f"__import__('os').path.lexists({path!r})") is False, path
        seen = inside(client, secrets_seen, str(home), SECRET)
        assert not [path for path in seen if "ssh" in path]
        assert value(client, "__import__('os').path.isdir('dotfiles')") is True


def test_a_hidden_folder_that_points_out_of_the_sandbox(tmp_path: Path, home: Path) -> None:
    """There is nothing to hide: what it points to is not there inside."""
    elsewhere = tmp_path / "elsewhere"
    (home / ".ssh").rename(elsewhere)
    (home / ".ssh").symlink_to(elsewhere)
    with started(tmp_path, {"workspace": "ro"}, cwd=home) as (_, client):
        assert run_cell(client, "__import__('os').listdir('.ssh')").ename == "FileNotFoundError"
        assert not [p for p in inside(client, secrets_seen, "/tmp", SECRET) if "id_" in p]


# -- races ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def exchanging(first: Path, second: Path) -> Iterator[Callable[[], int]]:
    """Another thread swaps the two paths atomically, again and again; how often, when asked."""
    libc = ctypes.CDLL(None, use_errno=True)
    here, exchange = -100, 2
    paths = (str(first).encode(), str(second).encode())
    stop = threading.Event()
    count = 0

    def run() -> None:
        nonlocal count
        while not stop.wait(0.00002):  # without a pause every lookup on the machine would crawl
            assert libc.renameat2(here, paths[0], here, paths[1], exchange) == 0
            count += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield lambda: count
    finally:
        stop.set()
        thread.join()


def test_a_source_that_becomes_a_symlink_never_leaks(tmp_path: Path, home: Path) -> None:
    """CVE-2021-30465: a kernel that runs already can swap what the next one is to mount."""
    project = home / "project"
    (project / "data").mkdir()
    (project / "data" / "id_ed25519").write_text("harmless")
    (project / "link").symlink_to(home / ".ssh")
    config = {"mounts": [{"source": str(project / "data"), "target": "/data"}]}
    with exchanging(project / "data", project / "link") as count:
        seen = starts(50, config, cwd=project, read="/data/id_ed25519", home=home)
        assert count() > 1000
    assert {text for start in seen for text in start.texts} == {"harmless"}
    reasons = ("is a symbolic link", "(ELOOP)", "cannot be resolved")
    for start in seen:
        assert start.texts or any(reason in start.refusal for reason in reasons), start


def test_a_folder_on_the_way_to_a_source_that_becomes_a_symlink(tmp_path: Path, home: Path) -> None:
    project = home / "project"
    (project / "way" / ".ssh").mkdir(parents=True)
    (project / "way" / ".ssh" / "id_ed25519").write_text("harmless")
    (project / "link").symlink_to(home)
    config = {"mounts": [{"source": str(project / "way" / ".ssh"), "target": "/data"}]}
    with exchanging(project / "way", project / "link") as count:
        seen = starts(50, config, cwd=project, read="/data/id_ed25519", home=home)
        assert count() > 1000
    assert {text for start in seen for text in start.texts} == {"harmless"}


def test_a_target_that_becomes_a_symlink_never_leaks(tmp_path: Path, home: Path) -> None:
    """The mount lands where it should or nowhere, and nothing is made where the link leads."""
    project, source = home / "project", tmp_path / "source"
    source.mkdir()
    (source / "id_ed25519").write_text("harmless")
    (project / "data").mkdir()
    (project / "link").symlink_to(home / ".ssh")
    before = contents(home / ".ssh")
    mounts = [
        {"source": str(source), "target": str(project / "data")},
        {"source": str(source / "id_ed25519"), "target": str(project / "data" / "sub" / "file")},
    ]
    for index, file in ((0, "id_ed25519"), (1, "sub/file")):
        with exchanging(project / "data", project / "link") as count:
            seen = starts(
                25, {"mounts": mounts[index : index + 1]}, cwd=project,
                read=f"{project}/data/{file}", home=home,
            )  # fmt: skip
            assert count() > 1000
        assert {text for start in seen for text in start.texts} == {"harmless"}
        for start in seen:
            assert not start.refusal or "(ELOOP)" in start.refusal, start
    assert contents(home / ".ssh") == before
