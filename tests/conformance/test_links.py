"""A sandboxed kernel puts links where the server looks for files: none of them is followed.

Each attack is tried on two servers. With jupyter_server's own contents manager it does harm, so
it is one; with ``NoLinksFileManager`` it does none and the user is told why.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import stat
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from ._server import JupyterServer
from ._wire import TIMEOUT, WebsocketWire
from .conftest import kernel_environment

SECRET: Final = "what is the user's alone"
OURS: Final = "sandbox_kernel.contents.NoLinksFileManager"
STOCK: Final = "jupyter_server.services.contents.largefilemanager.AsyncLargeFileManager"


@dataclass
class Ground:
    """A server, a kernel of its that the attacker has, and a folder that no kernel can see."""

    server: JupyterServer
    wire: WebsocketWire
    root: Path
    private: Path
    trash: Path

    def inside(self, code: str) -> str:
        return self.wire.execute(f"import os\nP = {str(self.private)!r}\n{code}").ok().text()

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> tuple[int, str]:
        """Status and text of the answer, whatever it is. ``path`` is below the server's address."""
        request = urllib.request.Request(
            f"http://{self.server.address}/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Authorization": f"token {self.server.token}"},
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def contents(self, method: str, path: str, /, **body: Any) -> tuple[int, str]:
        return self.ask(method, f"api/contents/{path}", body or None)

    def put(self, path: str, text: str = "saved", **more: Any) -> tuple[int, str]:
        body = {"type": "file", "format": "text", "content": text} | more
        return self.contents("PUT", path, **body)


@contextlib.contextmanager
def ground(
    manager: str, kernel_name: str, folders: Callable[[str], Path], *options: str
) -> Iterator[Ground]:
    root, private, data = (folders(name) for name in ("root", "private", "data"))
    options = (f"--ServerApp.contents_manager_class={manager}", *options)
    environment = kernel_environment() | {"XDG_DATA_HOME": str(data)}
    server = JupyterServer(root, environment, *options)
    try:
        with server.kernel(kernel_name) as (_, wire):
            yield Ground(server, wire, root, private, data / "Trash")
    finally:
        assert server.stop() == []


@pytest.fixture(scope="module", params=[STOCK, OURS], ids=["stock", "ours"])
def manager(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def both(
    manager: str, jupyter_environment: Path, kernel_name: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Ground]:  # fmt: skip
    """The two servers, one after the other."""
    with ground(manager, kernel_name, tmp_path_factory.mktemp) as found:
        yield found


@pytest.fixture(scope="module")
def ours(
    jupyter_environment: Path, kernel_name: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ground]:
    with ground(OURS, kernel_name, tmp_path_factory.mktemp) as found:
        yield found


@pytest.fixture(autouse=True)
def tidy(request: pytest.FixtureRequest) -> None:
    """Each test finds ``private/secret.txt``, the same in a folder, and an empty workspace."""
    here: Ground = request.getfixturevalue("both" if "both" in request.fixturenames else "ours")
    here.inside("import shutil\nfor n in os.listdir():\n  os.system(f'rm -rf -- {n!r}')")
    shutil.rmtree(here.private)
    here.private.mkdir()
    (here.private / "secret.txt").write_text(SECRET)
    (here.private / "kept.ipynb").write_text(SECRET)


# -- what a link leads to -------------------------------------------------------------------------


@dataclass(frozen=True)
class Attack:
    """``links`` is what the kernel does, ``use`` what the user does then."""

    links: str
    use: Callable[[Ground], tuple[int, str]]
    harm: Callable[[Ground, str], bool]
    """Whether, by the answer or by what lies there now, the private folder was reached."""


NOTEBOOK: Final = {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
FILE: Final = "os.symlink(f'{P}/secret.txt', 'notes.txt')"
FOLDER: Final = "os.symlink(P, 'folder')"
OLD: Final = "open('notes.txt', 'w').write('notes'); "
SAVED: Final = "os.mkdir('.ipynb_checkpoints'); "


def changed(here: Ground, _: str) -> bool:
    found = {path.name: path.read_text() for path in here.private.iterdir() if path.is_file()}
    folders = [path for path in here.private.iterdir() if path.is_dir()]
    for folder in folders:
        shutil.rmtree(folder)
    return bool(folders) or found != {"secret.txt": SECRET, "kept.ipynb": SECRET}


def told(_: Ground, answer: str) -> bool:
    return SECRET in answer


def copied(here: Ground, _: str) -> bool:
    """Into the workspace, where the kernel reads it."""
    found = here.inside(
        "for top, _, names in os.walk('.'):\n  for n in names:\n"
        "    p = f'{top}/{n}'\n    if not os.path.islink(p): print(open(p).read())"
    )
    return SECRET in found


# fmt: off
ATTACKS: Final = {
    "open": Attack(FILE, lambda h: h.contents("GET", "notes.txt"), told),
    "open in a folder": Attack(FOLDER, lambda h: h.contents("GET", "folder/secret.txt"), told),
    "list": Attack(FOLDER, lambda h: h.contents("GET", "folder"), lambda _, text: "kept" in text),
    "save": Attack(FILE, lambda h: h.put("notes.txt"), changed),
    "save a notebook": Attack(
        "os.symlink(f'{P}/kept.ipynb', 'x.ipynb')",
        lambda h: h.contents("PUT", "x.ipynb", type="notebook", content=NOTEBOOK), changed),
    "save in a folder": Attack(FOLDER, lambda h: h.put("folder/planted"), changed),
    "upload": Attack(FILE, lambda h: h.put("notes.txt", chunk=2), changed),
    "make a folder": Attack(
        FOLDER, lambda h: h.contents("PUT", "folder/planted", type="directory"), changed),
    "new": Attack(FOLDER, lambda h: h.contents("POST", "folder", type="notebook"), changed),
    "rename from": Attack(
        FOLDER, lambda h: h.contents("PATCH", "folder/secret.txt", path="mine.txt"), copied),
    "rename to": Attack(
        OLD + FOLDER, lambda h: h.contents("PATCH", "notes.txt", path="folder/planted"), changed),
    "copy": Attack(FILE, lambda h: h.contents("POST", "", copy_from="notes.txt"), copied),
    "delete": Attack(FOLDER, lambda h: h.contents("DELETE", "folder/secret.txt"), changed),
    "checkpoint": Attack(
        OLD + "os.symlink(P, '.ipynb_checkpoints')",
        lambda h: h.ask("POST", "api/contents/notes.txt/checkpoints"), changed),
    "restore": Attack(
        OLD + SAVED + "os.symlink(f'{P}/secret.txt', '.ipynb_checkpoints/notes-checkpoint.txt')",
        lambda h: h.ask("POST", "api/contents/notes.txt/checkpoints/checkpoint"), copied),
}
# fmt: on


@pytest.mark.parametrize("name", ATTACKS)
def test_a_link_is_not_followed(name: str, manager: str, both: Ground) -> None:
    attack = ATTACKS[name]
    both.inside(attack.links)
    status, answer = attack.use(both)
    harm = attack.harm(both, answer)
    if manager == STOCK:
        assert harm, f"this is no attack: {status} {answer}"
        return
    assert not harm
    assert not changed(both, "")
    assert status == 403
    assert "is refused: it is a symbolic link or lies behind one" in answer


def test_a_folder_is_copied_with_its_links_as_links(manager: str, both: Ground) -> None:
    both.inside(f"os.mkdir('a'); os.mkdir('a/b'); open('a/b/f', 'w').write('1'); os.chdir('a')\n"
                f"{FILE}\n{FOLDER}\nos.chdir('..')")  # fmt: skip
    assert both.contents("POST", "", copy_from="a")[0] == 201
    assert copied(both, "") is (manager == STOCK)
    (copy,) = set(both.root.iterdir()) - {both.root / "a", both.root / ".ipynb_checkpoints"}
    assert (copy / "b" / "f").read_text() == "1"
    assert (copy / "notes.txt").is_symlink() is (manager == OURS)


@pytest.mark.parametrize("path", ["folder/x.ipynb", "folder"])
def test_a_kernel_is_not_started_behind_a_link(
    path: str, manager: str, both: Ground, kernel_name: str
) -> None:
    """The folder would be its workspace."""
    both.inside(FOLDER)
    body = {"path": path, "type": "notebook", "name": "", "kernel": {"name": kernel_name}}
    status, answer = both.ask("POST", "api/sessions", body)
    if manager == STOCK:
        assert status == 201
        both.server.look_around()
        assert both.ask("DELETE", f"api/sessions/{json.loads(answer)['id']}")[0] == 204
        return
    assert status == 500, "jupyter_server makes that of whatever hinders a kernel's start"
    assert f"HTTP 403: Forbidden ({path} is refused" in answer


def test_a_link_is_not_downloaded(ours: Ground) -> None:
    """The usual handler leaves it to tornado, whose older versions follow links out of the root."""
    ours.inside(f"{FILE}\n{FOLDER}")
    for path in ("notes.txt", "folder/secret.txt"):
        status, answer = ours.ask("GET", f"files/{path}")
        assert status == 403
        assert f"{path} is refused: it is a symbolic link" in answer
        assert SECRET not in answer


# -- what the user still can do -------------------------------------------------------------------


def test_a_link_is_shown_and_can_be_deleted(ours: Ground) -> None:
    ours.inside(f"{FILE}\n{FOLDER}\n{OLD.replace('notes', 'own')}os.symlink('loop', 'loop')\n"
                "os.symlink('nothing', 'broken'); os.mkfifo('pipe')")  # fmt: skip
    status, answer = ours.contents("GET", "")
    assert status == 200
    shown = {e["name"]: (e["type"], e["writable"]) for e in json.loads(answer)["content"]}
    link = ("file", False)
    assert shown.pop("loop", link) == link
    assert shown == {
        "notes.txt": link, "folder": link, "broken": link, "own.txt": ("file", True),
    }  # fmt: skip
    for name in ("notes.txt", "folder", "broken", "loop"):
        assert ours.contents("DELETE", name)[0] == 204
        assert not os.path.lexists(ours.root / name)
    assert not changed(ours, "")
    assert ours.contents("GET", "pipe")[0] == 400


def test_ordinary_work(ours: Ground) -> None:
    """From a new notebook to the trash."""
    assert ours.contents("PUT", "d", type="directory")[0] == 201
    made = json.loads(ours.contents("POST", "d", type="notebook")[1])["path"]
    assert made == "d/Untitled.ipynb"
    assert ours.contents("PUT", made, type="notebook", content=NOTEBOOK)[0] == 200
    assert json.loads(ours.contents("GET", made)[1])["content"] == NOTEBOOK
    assert ours.contents("PATCH", made, path="d/x.ipynb")[0] == 200
    assert sorted(os.listdir(ours.root / "d" / ".ipynb_checkpoints")) == ["x-checkpoint.ipynb"]
    assert json.loads(ours.contents("POST", "d", copy_from="d/x.ipynb")[1])["name"] == (
        "x-Copy1.ipynb"
    )
    assert ours.put("d/t.txt", "first")[0] == 201
    (ours.root / "d" / "t.txt").chmod(0o640)
    assert ours.ask("POST", "api/contents/d/t.txt/checkpoints")[0] == 201
    assert ours.put("d/t.txt", "second")[0] == 200
    assert stat.S_IMODE((ours.root / "d" / "t.txt").stat().st_mode) == 0o640
    assert ours.ask("GET", "files/d/t.txt") == (200, "second")
    assert ours.ask("POST", "api/contents/d/t.txt/checkpoints/checkpoint")[0] == 204
    assert (ours.root / "d" / "t.txt").read_text() == "first"
    assert ours.contents("PATCH", "d/t.txt", path="d/x.ipynb")[0] == 409
    for chunk, part in ((1, b"one"), (2, b"two"), (-1, b"three")):
        text = base64.b64encode(part).decode()
        assert ours.put("d/up", text, format="base64", chunk=chunk)[0] in (200, 201)
    assert (ours.root / "d" / "up").read_bytes() == b"onetwothree"
    assert not [n for n in os.listdir(ours.root / "d") if n.startswith(".~")]
    assert ours.contents("DELETE", "d")[0] == 204
    assert not (ours.root / "d").exists()
    (note,) = (
        p for p in (ours.trash / "info").iterdir() if f"Path={ours.root}/d\n" in p.read_text()
    )
    assert (ours.trash / "files" / note.stem / "t.txt").read_text() == "first"


def test_a_kernel_makes_no_hard_link_to_what_it_may_only_read(ours: Ground) -> None:
    """Which is why those are not refused: .git is read-only inside, and a mount of its own."""
    (ours.root / ".git").mkdir()
    (ours.root / ".git" / "config").write_text("")
    with ours.server.kernel("sandboxed-python") as (_, wire):
        said = wire.execute(
            "import os\nopen('own', 'w').close(); os.link('own', 'second')\n"
            "try: os.link('.git/config', 'x.ipynb')\nexcept OSError as e: print(e.errno)"
        )
        assert int(said.ok().text()) == 18, "EXDEV"
    assert ours.put("second", "saved")[0] == 200


# -- at any moment --------------------------------------------------------------------------------

ROUNDS: Final = 150

_EXCHANGE: Final = """
import ctypes, random, time
renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
print('exchanging', flush=True)
count = 0
try:
    while True:
        if not (os.path.islink(a) or os.path.islink(b)):  # the server has put a file in its place
            os.unlink(b)
            os.symlink(f'{P}/secret.txt', b)
        for folder in (a, b):  # what the server moves away is there again
            if os.path.isdir(folder) and not os.path.islink(folder):
                open(folder + b'/secret.txt', 'a').close()
        assert renameat2(-100, a, -100, b, 2) == 0
        count += 1
        # one request looks a path up ten times: the link is to be met by some, and not by each
        time.sleep(random.random() * (0.0005 if os.path.islink(a) else 0.005))
except KeyboardInterrupt:
    print(count)
"""


@contextlib.contextmanager
def exchanging(here: Ground, first: str, second: str) -> Iterator[None]:
    """The kernel swaps the two again and again, meanwhile."""
    running = here.wire.start(f"a, b = {first.encode()!r}, {second.encode()!r}\n{_EXCHANGE}")
    here.wire.wait_for_text(running, "exchanging")
    (kernel,) = here.server.kernel_ids()
    try:
        yield
    finally:
        here.server.rest("POST", f"kernels/{kernel}/interrupt")
        text = here.wire.finish(running).ok().text()
    assert int(text.split()[-1]) > 0


RACES: Final = {
    "folder": ("work", "link", "os.mkdir('work'); os.symlink(P, 'link')", "work/secret.txt"),
    "file": ("secret.txt", "link", "os.symlink(f'{P}/secret.txt', 'link')", "secret.txt"),
}


@pytest.mark.parametrize("name", RACES)
def test_what_is_exchanged_again_and_again_is_never_read_or_written(
    name: str, manager: str, both: Ground
) -> None:
    first, second, links, path = RACES[name]
    both.inside(f"{links}\nopen({path!r}, 'w').write('harmless')")
    read: list[tuple[int, str]] = []
    written: list[int] = []
    with exchanging(both, first, second):
        for _ in range(ROUNDS):
            read.append(both.contents("GET", path))
            written.append(both.put(path, "harmless")[0])
    leaked = any(SECRET in text for _, text in read)
    if manager == STOCK:
        assert leaked or changed(both, ""), "this is no attack"
        return
    assert not leaked
    assert not changed(both, "")
    statuses = {status for status, _ in read}
    assert {200, 403} <= statuses | set(written), "both were met"
    assert 200 in statuses


@pytest.mark.parametrize("act", ["rename", "delete"])
def test_what_is_exchanged_again_and_again_is_never_moved(
    act: str, manager: str, both: Ground
) -> None:
    both.inside("os.mkdir('work'); os.symlink(P, 'link')")
    reached = 0
    with exchanging(both, "work", "link"):
        for number in range(20 * ROUNDS):
            if act == "rename":
                status, _ = both.contents("PATCH", "work/secret.txt", path=f"{number}.txt")
            else:
                status, _ = both.contents("DELETE", "work/secret.txt")
            reached += status in (200, 204)
            if changed(both, ""):
                assert manager == STOCK
                return
            if number >= ROUNDS and reached:
                break
    assert manager == OURS, "this is no attack"
    assert reached, "the folder itself was never met"
