"""Who can write a folder decides nothing about what another sandbox mounts.

A kernel that runs, or ran, can rename whatever lies in its workspace, at any time: for a symlink,
or for another folder. Each is tried once at the worst moment, and many times at any.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.containers import Exchange, starts
from integration.sandboxes import inside, manager, run_cell, started
from integration.test_workspace import exchanging

from sandbox_kernel.errors import MountError

SECRET = "a file that no sandbox was given"
ROUNDS = 50


@pytest.fixture
def home() -> Iterator[Path]:
    """A home with a workspace in a folder that another kernel can write, and a private folder."""
    with tempfile.TemporaryDirectory(prefix="skr-") as folder:
        top = Path(folder)
        for name in ("private", "shared/work/.git", "shared/decoy"):
            (top / name).mkdir(parents=True)
        (top / "private" / "file").write_text(SECRET)
        (top / "shared" / "work" / "file").write_text("the workspace")
        (top / "shared" / "decoy" / "file").write_text("the decoy")
        (top / "shared" / "link").symlink_to(top / "private")
        yield top


@pytest.fixture
def work(home: Path) -> Path:
    return home / "shared" / "work"


# -- at the worst moment --------------------------------------------------------------------------


def test_a_workspace_that_became_a_link_before_it_was_opened(home: Path, work: Path) -> None:
    exchange = Exchange(str(work), str(home / "shared" / "link"), step="SOURCES")
    (seen,) = starts(1, {}, cwd=work, read=f"{work}/file", home=home, exchange=exchange)
    assert not seen.texts
    assert seen.refusal == f"{work} cannot be mounted: too many levels of symbolic links (ELOOP)"


def test_a_folder_above_the_workspace_that_became_a_link(home: Path, work: Path) -> None:
    (home / "private" / "work").mkdir()
    (home / "private" / "work" / "file").write_text(SECRET)
    (home / "way").symlink_to(home / "private")
    exchange = Exchange(str(home / "shared"), str(home / "way"), step="SOURCES")
    (seen,) = starts(1, {}, cwd=work, read=f"{work}/file", home=home, exchange=exchange)
    assert not seen.texts
    assert "(ELOOP)" in seen.refusal


@pytest.mark.parametrize("other", ["link", "decoy"])
def test_what_is_exchanged_after_it_was_opened(other: str, home: Path, work: Path) -> None:
    """The descriptor decides, whatever has that name now."""
    exchange = Exchange(str(work), str(home / "shared" / other), step="ROOTFS")
    (seen,) = starts(1, {}, cwd=work, read=f"{work}/file", home=home, exchange=exchange)
    assert list(seen.texts) == ["the workspace"]


def test_the_git_folder_that_is_protected_is_that_of_the_workspace(home: Path, work: Path) -> None:
    """Exchanged for a folder without one, between the two look-ups: the protection would be gone
    when it is exchanged back."""
    exchange = Exchange(str(work), str(home / "shared" / "decoy"), opened=str(work))
    (seen,) = starts(1, {}, cwd=work, read="/proc/self/mounts", home=home, exchange=exchange)
    (mounts,) = seen.texts
    (line,) = [line for line in mounts.splitlines() if line.split()[1] == f"{work}/.git"]
    assert "ro" in line.split()[3].split(",")


# -- at any moment --------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["rw", "ro", "overlay"])
def test_a_workspace_that_becomes_a_link_again_and_again(mode: str, home: Path, work: Path) -> None:
    with exchanging(work, home / "shared" / "link") as count:
        seen = starts(ROUNDS, {"workspace": mode}, cwd=work, read=f"{work}/file", home=home)
        assert count() > 1000
    assert {text for start in seen for text in start.texts} == {"the workspace"}


def test_a_workspace_whose_parts_are_exchanged_again_and_again(home: Path, work: Path) -> None:
    """Folder for folder: what is protected in it is always its own, or the start is refused."""
    with exchanging(work, home / "shared" / "decoy") as count:
        seen = starts(ROUNDS, {}, cwd=work, read=f"{work}/file", home=home)
        assert count() > 1000
    assert {text for start in seen for text in start.texts} <= {"the workspace", "the decoy"}
    assert any(start.texts for start in seen)


# -- what an earlier kernel left ------------------------------------------------------------------


@pytest.mark.parametrize("field", ["mount", "workspace_path"])
def test_a_link_that_a_kernel_can_have_made_is_not_followed(
    field: str, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first kernel moves a folder of its workspace and puts a link there; the second mounts."""
    monkeypatch.setenv("HOME", str(home))
    work = home / "shared" / "work"
    (work / "data").mkdir()

    def leave_a_link(folder: str, to: str) -> None:
        import os

        os.rename(folder, folder + ".old")
        os.symlink(to, folder)

    mounts = [{"source": str(work / "data"), "target": "/data"}]
    if field == "workspace_path":
        mounts = [{"source": str(work), "target": "/work", "mode": "rw"}]
    config = {"mounts": mounts}
    if field == "workspace_path":
        config["workspace_path"] = str(work / "data")
    with started(tmp_path, {}, cwd=work) as (_, client):
        inside(client, leave_a_link, str(work / "data"), str(home / "private"))
    with pytest.raises(MountError) as caught:
        manager(tmp_path, config).start_kernel(cwd=str(work))
    assert str(caught.value) == (
        f"{work}/data cannot be mounted: {work}/data is a symbolic link, in a folder that a kernel "
        "can write; remedy: name the folder that it leads to"
    )


def test_a_link_of_the_users_own_is_followed(home: Path, tmp_path: Path) -> None:
    """Where no kernel of this spec can write."""
    config = {"mounts": [{"source": str(home / "shared" / "link"), "target": "/data"}]}
    with started(tmp_path, config) as (_, client):
        assert run_cell(client, "open('/data/file').read()").result == repr(SECRET)
