"""What a killed supervisor made: removed if it is still that very file, and nothing else ever."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_kernel.leftovers import FileId, Leftovers, parse


class Pipe:
    """The pipe between supervisor and launcher."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)

    def read(self) -> bytes:
        try:
            return os.read(self.read_end, 65_536)
        except BlockingIOError:
            return b""


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    os.close(made.read_end)
    os.close(made.write_end)


def known(path: Path) -> FileId:
    found = FileId.of(str(path))
    assert found is not None
    return found


# -- which file it is --------------------------------------------------------------------------


def test_a_file_that_did_not_change_is_removed(tmp_path: Path) -> None:
    path, beside = tmp_path / "kernel.json", tmp_path / "kernel2.json"
    path.write_text("{}")
    beside.write_text("{}")
    found = known(path)
    found.remove()
    assert not path.exists() and beside.exists()
    found.remove()  # again


def test_a_socket_that_is_still_bound_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("k-1")
        known(tmp_path / "k-1").remove()
        assert not os.path.lexists("k-1")


def test_a_successor_of_the_same_name_stays(tmp_path: Path) -> None:
    """The restarted kernel binds the same path while the launcher still cleans up."""
    path = tmp_path / "k-1"
    path.touch()
    found = known(path)
    successor = tmp_path / "new"
    successor.write_text("mine")
    successor.replace(path)
    assert known(path).inode != found.inode
    found.remove()
    assert path.read_text() == "mine"


def test_an_inode_that_was_given_to_a_successor_stays(tmp_path: Path) -> None:
    """File systems reuse numbers at once; the time of the last change tells them apart."""
    path = tmp_path / "k-1"
    path.touch()
    now = known(path)
    before = FileId(now.path, now.device, now.inode, now.changed_ns - 1)
    before.remove()
    assert path.exists()
    FileId(now.path, now.device, now.inode, now.changed_ns + 1).remove()
    assert path.exists()


def test_a_file_that_was_changed_since_stays(tmp_path: Path) -> None:
    path = tmp_path / "kernel.json"
    path.touch()
    found = known(path)
    before, deadline = path.stat().st_ctime_ns, time.monotonic() + 5
    while path.stat().st_ctime_ns == before and time.monotonic() < deadline:
        os.utime(path, ns=(1, 1))  # any change moves it to now; a file system's clock is coarse
    assert path.stat().st_ctime_ns != before
    assert known(path).inode == found.inode
    found.remove()
    assert path.exists()


def test_a_file_of_another_device_stays(tmp_path: Path) -> None:
    path = tmp_path / "k-1"
    path.touch()
    now = known(path)
    FileId(now.path, now.device + 1, now.inode, now.changed_ns).remove()
    assert path.exists()


def test_a_link_is_itself_and_not_what_it_leads_to(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("theirs")
    link.symlink_to(target)
    assert known(link).inode == link.lstat().st_ino != target.stat().st_ino
    known(link).remove()
    assert not os.path.lexists(link)
    assert target.read_text() == "theirs"


def test_a_link_that_was_put_in_the_place_of_a_file_stays(tmp_path: Path) -> None:
    path, theirs = tmp_path / "k-1", tmp_path / "theirs"
    path.touch()
    found = known(path)
    path.rename(theirs)
    path.symlink_to(theirs)
    found.remove()
    assert os.path.islink(path) and theirs.exists()


def test_a_dangling_link_is_a_file_as_well(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to("nowhere")
    known(link).remove()
    assert not os.path.lexists(link)


def test_a_folder_stays(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    known(folder).remove()
    assert folder.is_dir()


def test_what_is_not_there_is_no_file(tmp_path: Path) -> None:
    assert FileId.of(str(tmp_path / "absent")) is None
    (tmp_path / "file").touch()
    assert FileId.of(str(tmp_path / "file/below")) is None


# -- over the pipe -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["k-1", "a b", "ü", "line\nbreak", "\udcff", "\u2028", '"', "\\"])
def test_what_was_recorded_arrives(name: str, tmp_path: Path, pipe: Pipe) -> None:
    path, other = tmp_path / name, tmp_path / "other"
    path.touch()
    other.touch()
    record = Leftovers(pipe.write_end).record
    for each in (path, other):
        record(str(each))
    assert parse(pipe.read()) == [known(path), known(other)]


def test_what_is_not_there_is_not_recorded(tmp_path: Path, pipe: Pipe) -> None:
    """A file that somebody makes there later is theirs."""
    path = tmp_path / "kernel.json"
    Leftovers(pipe.write_end).record(str(path))
    path.touch()
    assert pipe.read() == b""
    for file in parse(pipe.read()):
        file.remove()
    assert path.exists()


def test_it_is_recorded_at_once(tmp_path: Path, pipe: Pipe) -> None:
    """No buffer: a SIGKILL may come next."""
    path = tmp_path / "k-1"
    path.touch()
    Leftovers(pipe.write_end).record(str(path))
    raw = pipe.read()
    assert raw.endswith(b"\n") and json.loads(raw)[0] == str(path)


def test_a_launcher_that_is_gone_stops_no_kernel(tmp_path: Path) -> None:
    path = tmp_path / "k-1"
    path.touch()
    read_end, write_end = os.pipe2(os.O_CLOEXEC)
    os.close(read_end)
    try:
        Leftovers(write_end).record(str(path))
    finally:
        os.close(write_end)
    assert path.exists()


GOOD = b'["/run/k-1", 1, 2, 3]'


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{",
        b"5",
        b"null",
        b"[]",
        b'["/x", 1, 2]',
        b'["/x", 1, 2, 3, 4]',
        b'["relative", 1, 2, 3]',
        b'["", 1, 2, 3]',
        b"[5, 1, 2, 3]",
        b'[["/x"], 1, 2, 3]',
        b'["/x", null, 2, 3]',
        b'["/x", "a", 2, 3]',
        b'["/x", 1, 2, NaN]',
        b'["/x", 1, 2, ' + b"9" * 5000 + b"]",
        b"\xff\xfe",
        GOOD[:-4],  # the pipe's end came before the line's
    ],
)
def test_a_line_that_is_none_costs_no_other(line: bytes) -> None:
    raw = b"\n".join([GOOD, line, GOOD])
    assert parse(raw) == [FileId("/run/k-1", 1, 2, 3)] * 2


@pytest.mark.parametrize(
    "line", [b'["/x", 1, 2, 1e999]', b'["/x", Infinity, 2, 3]', b"[" * 50_000], ids=lambda b: b[:9]
)
def test_a_line_that_a_hostile_supervisor_wrote_costs_no_other(line: bytes) -> None:
    """It holds the pipe for all its life, and parses the bytes of a hostile kernel."""
    assert parse(b"\n".join([GOOD, line, GOOD])) == [FileId("/run/k-1", 1, 2, 3)] * 2


@pytest.mark.parametrize("path", ["/a\0b", "/\ud800", "/" + "x" * 5000])
def test_a_path_that_can_be_none_raises_nothing(path: str) -> None:
    assert FileId.of(path) is None
    FileId(path, 1, 2, 3).remove()


@settings(derandomize=True, database=None, deadline=None)
@given(raw=st.binary(max_size=200))
def test_whatever_comes(raw: bytes) -> None:
    for file in parse(raw):
        assert file.path.startswith("/")


def test_what_is_recorded_after_the_end_of_recording_is_lost(tmp_path: Path) -> None:
    """Who takes the supervisor over later has no way to name a file to the launcher."""
    reader, writer = os.pipe()
    leftovers = Leftovers(writer)
    leftovers.record(str(tmp_path))
    leftovers.close()
    leftovers.close()
    leftovers.record("/etc/passwd")
    with os.fdopen(reader, "rb") as pipe:
        assert [file.path for file in parse(pipe.read())] == [str(tmp_path)]
