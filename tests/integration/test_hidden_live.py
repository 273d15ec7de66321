"""What is hidden stays hidden, whatever happens to it outside while a kernel runs.

People change keys, tools replace files by a rename, folders are made that were not there when the
kernel started; and a kernel that may write to its layer tries to bring back what the layer hides.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.sandboxes import inside, manager, own_launcher, run_cell, started

from sandbox_kernel.errors import MountError

SECRET = "nobody inside may read this"

#: Below the home, relative. What is there when the kernel starts, …
EXISTING = (
    ".ssh/id_ed25519", ".netrc", ".config/gcloud/token", ".local/share/jupyter/runtime/kernel.json",
    "notes/own/key", "notes/deep/er/key", ".jupyter/token",
)  # fmt: skip
#: … and what is not, nor is the folder of some.
ABSENT = (
    ".aws/credentials", ".pypirc", ".config/gh/hosts.yml", ".cache/huggingface/token",
    ".kube/config", ".cargo/credentials", "notes/later/key", "absent/deep/er/key",
)  # fmt: skip
#: Set by the spec besides the built-in list.
HIDE = ("notes/own", "notes/deep/er/key", "notes/later", "absent/deep/er/key")
#: What is shown, so that the test sees that it looks at the right place.
SHOWN = ("project/data.txt", ".config/harmless", "notes/harmless")

#: (mode of the workspace, mode of an extra mount of the home at /data)
ROUTES = [("ro", None), ("overlay", None), ("none", "ro"), ("none", "overlay")]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A home with secrets in it, and a launcher that knows it as the home."""
    folder = tmp_path / "home"
    for name in EXISTING:
        write(folder / name, SECRET)
    for name in SHOWN:
        write(folder / name, "shown")
    monkeypatch.setenv("HOME", str(folder))
    with own_launcher():
        yield folder


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def config_of(home: Path, workspace: str, mount: str | None) -> dict[str, Any]:
    config: dict[str, Any] = {"workspace": workspace, "hide": [str(home / name) for name in HIDE]}
    if mount is not None:
        config["mounts"] = [{"source": str(home), "target": "/data", "mode": mount}]
    return config


def look(top: str, names: list[str], secret: str) -> dict[str, list[str]]:
    """Everything that gives away a hidden file: as a path that is known, and by walking about."""
    import os

    known, found = [], []
    for name in names:
        path = os.path.join(top, name)
        try:
            with open(path) as file:
                known.append(f"{name}: {file.read()}")
        except OSError:
            if os.path.lexists(path):
                known.append(name)
    shown = []
    for folder, _, files in os.walk(top):
        for entry in files:
            path = os.path.join(folder, entry)
            try:
                with open(path) as file:
                    text = file.read()
            except OSError:
                continue
            if secret in text:
                found.append(path)
            if text == "shown":
                shown.append(os.path.relpath(path, top))
    return {"known": known, "found": found, "shown": sorted(shown)}


# -- what is done to them outside ------------------------------------------------------------------


def replace_by_rename(home: Path, aside: Path) -> None:
    """As editors and ``aws configure`` do it: a new file in the place of the old one."""
    for name in (*EXISTING, *ABSENT):
        write(aside / "new", SECRET)
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        os.rename(aside / "new", home / name)


def create(home: Path, aside: Path) -> None:
    """What was not there when the kernel started."""
    for name in ABSENT:
        write(home / name, SECRET)


def recreate_folders(home: Path, aside: Path) -> None:
    """The hidden folder itself, removed and made again."""
    for name in (*EXISTING, *ABSENT):
        folder = (home / name).parent
        if folder not in (home, home / "notes", home / ".config"):
            shutil.rmtree(folder, ignore_errors=True)
        write(home / name, SECRET)


def exchange_parents(home: Path, aside: Path) -> None:
    """The folders above, by ones that look the same."""
    for number, name in enumerate((".config", ".local", "notes", ".cache", "absent", ".ssh")):
        if (home / name).exists():
            os.rename(home / name, aside / f"old-{number}")
    for name in (*EXISTING, *ABSENT):
        write(home / name, SECRET)
    for name in SHOWN:
        write(home / name, "shown")


def through_links(home: Path, aside: Path) -> None:
    """Folders above become links to where the same lies."""
    for name in (".config", "notes", ".ssh"):
        os.rename(home / name, aside / name.strip("."))
        (home / name).symlink_to(aside / name.strip("."))
    write(home / ".ssh" / "new", SECRET)


CHANGES = [replace_by_rename, create, recreate_folders, exchange_parents]


@pytest.mark.parametrize(("workspace", "mount"), ROUTES)
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: str(change.__name__))
@pytest.mark.parametrize("looked", [False, True])
def test_a_change_outside_shows_nothing(
    looked: bool,
    change: Callable[[Path, Path], None],
    workspace: str,
    mount: str | None,
    tmp_path: Path,
    home: Path,
) -> None:
    """Whether a kernel had looked there, so that Linux remembers what was not there, or not."""
    top = "/data" if mount else str(home)
    names = [*EXISTING, *ABSENT]
    (tmp_path / "aside").mkdir()
    config = config_of(home, workspace, mount)
    with started(tmp_path, config, cwd=home) as (km, client):
        if looked:
            seen = inside(client, look, top, names, SECRET)
            assert seen == {"known": [], "found": [], "shown": sorted(SHOWN)}
        change(home, tmp_path / "aside")
        assert SECRET in (home / ABSENT[0]).read_text()
        seen = inside(client, look, top, names, SECRET)
        assert (seen["known"], seen["found"]) == ([], [])
        assert SHOWN[0] in seen["shown"]
        write(home / "project" / "later.txt", "shown")
        assert "project/later.txt" in inside(client, look, top, names, SECRET)["shown"]
        km.restart_kernel(now=True)
        client.wait_for_ready(timeout=60)
        seen = inside(client, look, top, names, SECRET)
        assert seen == {"known": [], "found": [], "shown": sorted([*SHOWN, "project/later.txt"])}


@pytest.mark.parametrize(("workspace", "mount"), ROUTES)
def test_links_that_are_made_outside_lead_nowhere(
    workspace: str, mount: str | None, tmp_path: Path, home: Path
) -> None:
    top = "/data" if mount else str(home)
    (tmp_path / "aside").mkdir()
    with started(tmp_path, config_of(home, workspace, mount), cwd=home) as (_, client):
        through_links(home, tmp_path / "aside")
        names = [*EXISTING, *ABSENT, ".ssh/new"]
        seen = inside(client, look, top, names, SECRET)
        assert (seen["known"], seen["found"]) == ([], [])
        assert "project/data.txt" in seen["shown"]


# -- a kernel that would bring them back -----------------------------------------------------------


def bring_back(top: str, names: list[str]) -> list[str]:
    """Everything that a writable layer allows with the hidden names and the folders above them."""
    import contextlib
    import os
    import shutil

    done = []

    def attempt(what: str, action: Any) -> None:
        with contextlib.suppress(OSError, shutil.Error):
            action()
            done.append(what)

    for name in names:
        path = os.path.join(top, name)
        folder = os.path.dirname(path)
        attempt("unlink", lambda path=path: os.unlink(path))
        attempt("rmdir", lambda path=path: os.rmdir(path))
        attempt("rename", lambda path=path: os.rename(path, f"{top}/renamed"))
        attempt("link", lambda path=path: os.link(path, f"{top}/linked"))
        attempt("folders", lambda folder=folder: os.makedirs(folder, exist_ok=True))
        attempt("made", lambda path=path: os.mkdir(path))
        attempt("away", lambda path=path: os.rmdir(path))
        attempt("over", lambda path=path: os.rename(f"{top}/project/data.txt", path))
        attempt("back", lambda path=path: os.rename(path, f"{top}/project/data.txt"))
        for attribute in ("opaque", "redirect", "origin", "metacopy", "whiteout", "impure"):
            for place in (folder, top):
                attempt(
                    f"xattr {attribute}",
                    lambda place=place, attribute=attribute: os.setxattr(
                        place, f"user.overlay.{attribute}", b"n"
                    ),
                )
        attempt("opaque", lambda folder=folder: os.removexattr(folder, "user.overlay.opaque"))
    for folder in sorted({name.split("/")[0] for name in names if "/" in name}):
        path = os.path.join(top, folder)
        attempt("moved", lambda path=path: os.rename(path, path + "-moved"))
        attempt("copied", lambda path=path: shutil.copytree(path, path + "-copy"))
        attempt("removed", lambda path=path: shutil.rmtree(path))
        attempt("made again", lambda path=path: os.mkdir(path))
        attempt("moved back", lambda path=path: os.rename(path + "-moved", path))
    for name in (".wh..ssh", ".wh..wh..opq"):
        attempt("whiteout", lambda name=name: open(os.path.join(top, name), "w").close())
    return done


@pytest.mark.parametrize(("workspace", "mount"), [("overlay", None), ("none", "overlay")])
def test_a_kernel_cannot_bring_them_back(
    workspace: str, mount: str | None, tmp_path: Path, home: Path
) -> None:
    top = "/data" if mount else str(home)
    names = [*EXISTING, *ABSENT]
    above = ["notes/deep", ".config", ".local", ".local/share", "notes", ".cache", "absent"]
    for name in ABSENT:
        write(home / name, SECRET)
    with started(tmp_path, config_of(home, workspace, mount), cwd=home) as (_, client):
        done: set[str] = set()
        for _ in range(2):
            done |= set(inside(client, bring_back, top, [*names, *above, ".ssh", ".aws"]))
            seen = inside(client, look, top, names, SECRET)
            assert seen["found"] == []
            assert not [line for line in seen["known"] if SECRET in line]
            for name in names:
                write(home / name, SECRET)
            seen = inside(client, look, top, names, SECRET)
            assert seen["found"] == []
            assert not [line for line in seen["known"] if SECRET in line]
        assert {"made", "away", "removed", "made again", "copied", "moved", "moved back"} <= done
    for name in names:
        assert (home / name).read_text() == SECRET, "the kernel changed the layer, not the home"


@pytest.mark.parametrize(("workspace", "mount"), [("ro", None), ("none", "ro")])
def test_a_read_only_layer_takes_nothing(
    workspace: str, mount: str | None, tmp_path: Path, home: Path
) -> None:
    top = "/data" if mount else str(home)

    def attempts(top: str) -> list[int]:
        import os

        numbers = []
        actions: tuple[Callable[[], object], ...] = (
            lambda: os.mknod(f"{top}/made"),
            lambda: os.truncate(f"{top}/project/data.txt", 0),
            lambda: os.mkdir(f"{top}/.ssh"),
            lambda: os.unlink(f"{top}/project/data.txt"),
            lambda: os.rename(f"{top}/project", f"{top}/moved"),
            lambda: os.symlink("/", f"{top}/link"),
            lambda: os.chmod(f"{top}/project", 0o777),
            lambda: os.setxattr(top, "user.overlay.opaque", b"n"),
        )
        for action in actions:
            try:
                action()
                numbers.append(0)
            except OSError as error:
                numbers.append(error.errno or -1)
        return numbers

    with started(tmp_path, config_of(home, workspace, mount), cwd=home) as (_, client):
        found = inside(client, attempts, top)
        assert found[:7] == [errno.EROFS] * 7
        assert found[7] != 0
    assert (home / "project" / "data.txt").read_text() == "shown"


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a/b/key", "later", "later/deep"])
@pytest.mark.parametrize("mount", [False, True])
def test_a_writable_folder_that_holds_something_hidden(
    mount: bool, name: str, tmp_path: Path
) -> None:
    """Whether it is there or not: nobody could say that it stays hidden."""
    for folder in ("project", "work"):
        (tmp_path / folder).mkdir()
    project = tmp_path / "project"
    write(project / "a" / "b" / "key", SECRET)
    config: dict[str, Any] = {"hide": [str(project / name)]}
    cwd = project
    if mount:
        config["mounts"] = [{"source": str(project), "target": "/data", "mode": "rw"}]
        cwd = tmp_path / "work"
    km = manager(tmp_path, config)
    with pytest.raises(MountError) as caught:
        km.start_kernel(cwd=str(cwd))
    assert str(caught.value) == (
        f"{project} cannot be writable inside: it holds {project}/{name}, which is hidden, and "
        "what hides a file goes when the file is replaced; remedy: use mode 'ro' or 'overlay', or "
        "another folder"
    )
    assert not os.path.exists(km.connection_file)


# -- /dev ------------------------------------------------------------------------------------------


def use_devices() -> dict[str, Any]:
    """What making and changing in /dev came to, and what its devices do."""
    import errno
    import os
    import pty
    from multiprocessing import Lock, shared_memory

    def attempt(action: Any) -> str:
        try:
            action()
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return "done"

    def through(path: str, data: bytes) -> int:
        fd = os.open(path, os.O_WRONLY)
        try:
            return os.write(fd, data)
        finally:
            os.close(fd)

    def read(path: str) -> bytes:
        with open(path, "rb", buffering=0) as file:
            return file.read(8)

    def talk_over_a_pty() -> str:
        ours, theirs = pty.openpty()
        os.write(ours, b"hello\n")
        said = os.read(theirs, 100).decode()
        os.close(ours)
        os.close(theirs)
        return said

    def share() -> bytes:
        memory = shared_memory.SharedMemory(create=True, size=16)
        assert memory.buf is not None
        memory.buf[:2] = b"ok"
        again = shared_memory.SharedMemory(memory.name)
        assert again.buf is not None
        text = bytes(again.buf[:2])
        again.close()
        memory.close()
        memory.unlink()
        with Lock():
            return text

    with open("/dev/shm/file", "w") as file:
        file.write("x")
    return {
        "refused": [
            attempt(lambda: os.mknod("/dev/made")),
            attempt(lambda: os.mkdir("/dev/folder")),
            attempt(lambda: os.symlink("/tmp", "/dev/link")),
            attempt(lambda: os.unlink("/dev/stdin")),
            attempt(lambda: os.rename("/dev/fd", "/dev/other")),
            attempt(lambda: os.chmod("/dev", 0o777)),
        ],
        "null": [through("/dev/null", b"gone"), read("/dev/null").decode()],
        "zero": read("/dev/zero").hex(),
        "full": attempt(lambda: through("/dev/full", b"x")),
        "random": [len(read("/dev/random")), len(read("/dev/urandom"))],
        "pty": talk_over_a_pty(),
        "ptmx": os.readlink("/dev/ptmx"),
        "shm": share().decode(),
        "file": open("/dev/shm/file").read(),
        "names": sorted(os.listdir("/dev")),
    }


def test_nothing_can_be_made_in_dev_and_its_devices_work(tmp_path: Path) -> None:
    with started(tmp_path) as (_, client):
        seen = inside(client, use_devices)
        assert set(seen.pop("refused")) == {"EROFS"}
        names = {"null", "zero", "full", "random", "urandom", "tty", "pts", "ptmx", "shm", "fd"}
        assert set(seen.pop("names")) == names | {"stdin", "stdout", "stderr"}
        assert seen == {
            "null": [4, ""],
            "zero": "00" * 8,
            "full": "ENOSPC",
            "random": [8, 8],
            "pty": "hello\n",
            "ptmx": "pts/ptmx",
            "shm": "ok",
            "file": "x",
        }
        script = "!script -qc 'tty; echo through a terminal' /dev/null"
        assert "through a terminal" in run_cell(client, script).stdout
