"""Nothing that the sandbox can write is ever executed outside it (CVE-2019-5736)."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from escape.attacks import Arena, Attack, pair_of_tests
from escape.weaknesses import Wall
from integration.remains import PATIENCE
from integration.sandboxes import inside, run_cell, started

from sandbox_kernel.client import Launcher, launcher_command
from sandbox_kernel.engine.rootfs import EXECUTED_OUTSIDE
from sandbox_kernel.errors import SandboxError
from sandbox_kernel.provisioner import SandboxProvisioner


def overwrite_own_program() -> list[str]:
    """By the name of the program that runs, as runc was: here it is the host's Python."""
    import glob
    import os

    from escape.attacker import outcome

    paths = ["/proc/self/exe", *glob.glob("/proc/[0-9]*/exe"), os.path.realpath("/proc/self/exe")]
    return sorted({outcome(lambda p=path: os.close(os.open(p, os.O_WRONLY))) for path in paths})


def make_in(folder: str, name: str) -> str:
    import os

    from escape.attacker import outcome

    path = os.path.join(folder, name)
    result = outcome(lambda: open(path, "x").close())
    if result == "0":
        os.unlink(path)
    return result


def write_where_python_looks() -> list[str]:
    """Every folder of ``sys.path`` but the notebook's own."""
    import os
    import sys

    found = []
    for folder in sys.path:
        if not os.path.isdir(folder) or folder.startswith((os.getcwd(), os.environ["HOME"])):
            continue
        path = os.path.join(folder, "escape_probe.py")
        try:
            open(path, "x").close()
            os.unlink(path)
            found.append(folder)
        except OSError:
            pass
    return found


def move_git_away() -> str:
    """The protected folder by another name, and one of one's own in its place."""
    import os

    from escape.attacker import outcome

    result = outcome(os.rename, ".git", "aside")
    if result == "0":
        os.rename("aside", ".git")
    return result


def make_setuid() -> list[str]:
    """In the workspace, which is a folder of the host: somebody else could run it there."""
    import os

    from escape.attacker import outcome

    open("program", "w").close()
    try:
        return [outcome(os.chmod, "program", mode) for mode in (0o4755, 0o2755)]
    finally:
        os.unlink("program")


def link_to_the_host() -> str:
    """A symlink is only a name; a hard link would be the file."""
    import os

    from escape.attacker import outcome

    return outcome(os.link, os.path.realpath("/proc/self/exe"), "linked")


ATTACKS = [
    Attack("/proc/self/exe (CVE-2019-5736)", overwrite_own_program,
           (["EACCES"], ["EACCES", "EROFS"], ["EROFS"], ["EACCES", "ETXTBSY"], ["ETXTBSY"]),
           cannot_be_shown="the Python of these tests belongs to root, who keeps it safe as well"),
    Attack("the folders where Python looks", write_where_python_looks, [],
           cannot_be_shown="those of these tests belong to root; the plan's own test has others"),
    Attack("a hook of git", make_in, "EROFS", (Wall.GIT,), arguments=(".git/hooks", "pre-commit")),
    Attack("another .git", move_git_away, "EBUSY", (Wall.GIT,)),
    Attack("a setuid program in the workspace", make_setuid, ["EPERM"] * 2, (Wall.SECCOMP,),
           through=["0", "0"]),
    Attack("a hard link to a program", link_to_the_host, ("EXDEV", "EPERM", "EACCES"),
           cannot_be_shown="Linux itself links nothing across two mounts"),
]  # fmt: skip


test_is_held, test_gets_through_without_the_wall = pair_of_tests(ATTACKS)


def test_what_is_written_to_the_home_stays_inside(arena: Arena) -> None:
    """The home inside is a file system in memory: a login outside reads none of it."""

    def write_start_up_files(names: list[str]) -> int:
        import os

        written = 0
        for name in names:
            path = os.path.expanduser(f"~/{name}")
            if not os.path.exists(path):
                with open(path, "w") as file:
                    file.write("touch /tmp/escaped")
                written += 1
        return written

    names = [name for name in EXECUTED_OUTSIDE if name not in (".config", ".local", "bin")]
    assert inside(arena.box().client, write_start_up_files, names) > 20
    arena.host.assert_unchanged()


@pytest.mark.parametrize("name", [".config", ".local/bin", ".ipython", "bin", ".ssh", ""])
def test_a_workspace_that_is_executed_or_secret_is_refused(name: str, arena: Arena) -> None:
    folder = arena.host.home / name
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with pytest.raises(SandboxError, match=r"cannot be (writable|shown) inside"):
            with started(arena._folder, cwd=folder):
                pass
    finally:
        if made:
            os.removedirs(folder)


# -- what a kernel leaves for those who clean up after it ------------------------------------------


def lay_traps(target: str) -> int:
    """In each place that it can write: links to the host, and pipes that nobody writes to."""
    import os
    import shutil

    run = os.environ["JUPYTER_RUNTIME_DIR"]
    for path in (os.path.join(run, "kernel.json"), "own.ipynb", ".ipynb_checkpoints/a"):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        if os.path.lexists(path):
            os.unlink(path)
        os.mkfifo(path)
    shutil.rmtree(os.environ["IPYTHONDIR"], ignore_errors=True)
    os.symlink(target, os.environ["IPYTHONDIR"])
    os.symlink(target, "link")
    os.symlink(target, "/tmp/link")
    return 1


def test_nothing_outside_follows_what_a_kernel_leaves(arena: Arena) -> None:
    """The supervisor does no file work for it: it ends at once, and nothing else is removed."""
    folder = arena.host.work / "traps"
    folder.mkdir()
    with started(arena._folder, cwd=folder) as (km, client):
        assert inside(client, lay_traps, str(arena.host.home)) == 1
        folder.rename(arena.host.work / "moved")
        (arena.host.work / "traps").symlink_to(arena.host.home)
        began = time.monotonic()
        km.shutdown_kernel(now=True)
        assert time.monotonic() - began < PATIENCE
    arena.host.assert_unchanged()
    (arena.host.work / "traps").unlink()
    shutil.rmtree(arena.host.work / "moved")


# -- modules that lie in the notebook's folder --------------------------------------------------

#: What a launcher, a supervisor or a pid 1 imports, early or late.
MODULES = ("json", "zmq", "traceback", "sitecustomize", "usercustomize", "pyroute2", "encodings")


PROGRAM = launcher_command(sys.executable)[-1]


@contextlib.contextmanager
def launcher(program: str) -> Iterator[None]:
    """What starts in this block is started by a launcher of its own, which ends with the block."""
    command = (sys.executable, "-Xfrozen_modules=off", "-c", program)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SandboxProvisioner, "_launcher_command", command)
        try:
            yield
        finally:
            if running := Launcher._running.pop(command, None):
                running.close()
                running.process.wait(timeout=PATIENCE)


@pytest.fixture
def trap(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which the server runs is a workspace full of modules that a kernel wrote.

    Each says in a file outside that it was executed; inside there is no such path.
    """
    folder = arena.host.work / "trap"
    folder.mkdir()
    mark = arena.host.weak / "executed"
    with started(arena._folder, cwd=folder) as (_, client):
        code = f"open({str(mark)!r}, 'a').write(__name__)"
        for name in MODULES:
            assert run_cell(client, f"open('{name}.py', 'w').write({code!r})").ok
    monkeypatch.chdir(folder)
    yield mark
    mark.unlink(missing_ok=True)
    shutil.rmtree(folder)


def test_no_process_outside_imports_from_the_workspace(trap: Path, arena: Arena) -> None:
    """Launcher, mapper, supervisor, stage and pid 1, from the first import to the last."""
    with launcher(f"{PROGRAM}  # a launcher of its own"):
        with started(arena._folder, cwd=arena.host.work) as (_, client):
            assert run_cell(client, "1").ok
    assert not trap.exists()


def test_a_launcher_that_looked_there_would_execute_it(trap: Path, arena: Arena) -> None:
    """The control: the same command with the folder on its path."""
    without = PROGRAM.replace("del sys.path[0]; ", f"sys.path[0] = {str(Path.cwd())!r}; ")
    assert without != PROGRAM
    with launcher(without), pytest.raises((SandboxError, RuntimeError)):
        with started(arena._folder, cwd=arena.host.work):
            pass
    assert trap.exists()
