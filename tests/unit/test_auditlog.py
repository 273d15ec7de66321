"""The file of the audit log: who may have put it there, what is in a line, and its rotation."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from sandbox_kernel import audit, auditlog
from sandbox_kernel.auditlog import AuditLog, open_log
from sandbox_kernel.channels import Account, Entry
from sandbox_kernel.errors import AuditError

ACCOUNT = Account(2.5, 1.25, 3 * 2**20, "cell", 0, 0, 7, 8, 4, 0)


def entry(msg_id: str = "1", **fields: Any) -> Entry:
    values: dict[str, Any] = {
        "msg_type": "execute_request", "msg_id": msg_id, "session": "s", "username": "ada",
        "began": 0.0, "code": {"of": "code", "sha256": "00", "bytes": 1}, "outcome": "ok",
        "ename": "", "account": ACCOUNT,
    }  # fmt: skip
    return Entry(**(values | fields))


def opened(path: Path, **options: Any) -> AuditLog:
    values: dict[str, Any] = {"kernel": "abc", "with_code": False}
    return AuditLog(str(path), **(values | options))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


# -- the file ------------------------------------------------------------------------------------


def test_the_file_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "log"
    os.close(open_log(str(path)))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("kept\n")
    os.close(open_log(str(path)))
    assert path.read_text() == "kept\n"


def _link(path: Path) -> None:
    path.symlink_to("/dev/null")


def _hard_link(path: Path) -> None:
    (path.parent / "other").touch()
    path.hardlink_to(path.parent / "other")


def _writable(path: Path) -> None:
    path.touch()
    path.chmod(0o666)


def _pipe(path: Path) -> None:
    os.mkfifo(path, 0o600)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (_link, "ELOOP"),
        (_hard_link, "other names"),
        (_writable, "mode is 0666"),
        (_pipe, "ENXIO"),
        (Path.mkdir, "EISDIR"),
    ],
)
def test_a_file_that_others_can_have_put_there_is_refused(
    make: Any, says: str, tmp_path: Path
) -> None:
    make(tmp_path / "log")
    with pytest.raises(AuditError, match=says):
        open_log(str(tmp_path / "log"))


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(AuditError, match=r"remedy: make .*/no"):
        opened(tmp_path / "no/log")


def test_the_supervisor_holds_a_pipe_and_no_file(tmp_path: Path) -> None:
    log = opened(tmp_path / "log")
    try:
        flags = fcntl.fcntl(log._pipe, fcntl.F_GETFL)
        assert stat.S_ISFIFO(os.fstat(log._pipe).st_mode) and flags & os.O_ACCMODE == os.O_WRONLY
        files = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
        assert str(tmp_path / "log") not in files
    finally:
        log.close()


# -- lines ---------------------------------------------------------------------------------------


def test_a_line_says_all_of_a_request(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = opened(path)
    log.started()
    log.write(entry(outcome="error", ename="ValueError"))
    log.ended("KernelExited", "it ended", 0)
    log.close()
    start, request, end = lines(path)
    assert start["event"] == "start" and end["reason"] == "it ended"
    assert request == {
        "v": 1, "event": "request", "time": "1970-01-01T00:00:00.000Z", "kernel": "abc",
        "uid": os.getuid(), "user": start["user"], "username": "ada", "session": "s",
        "msg_id": "1", "type": "execute_request",
        "code": {"of": "code", "sha256": "00", "bytes": 1},
        "outcome": "error", "ename": "ValueError", "sandbox": ACCOUNT.to_dict(),
        "denials": {"forks": 4, "oom_kills": 0},
    }  # fmt: skip


def test_code_is_hashed_and_written_only_if_asked_for(tmp_path: Path) -> None:
    text = "print('é')\n"
    content = json.dumps({"code": text, "user_expressions": {"a": "1+1"}}).encode()
    expected = hashlib.sha256(text.encode()).hexdigest()
    for with_code in (False, True):
        log = opened(tmp_path / "log", with_code=with_code)
        found = log.code("execute_request", content)
        log.close()
        assert found is not None
        assert (found["sha256"], found["bytes"]) == (expected, len(text.encode()))
        assert found["expressions"]["bytes"] == len('{"a": "1+1"}')
        assert found.get("text") == (text if with_code else None)
        assert ("text" in found["expressions"]) is with_code


def test_what_has_no_code_and_what_is_no_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = opened(tmp_path / "log")
    log.close()
    evaluate = {"command": "evaluate", "arguments": {"expression": "1+1"}}
    found = log.code("debug_request", json.dumps(evaluate).encode())
    assert found is not None and found["bytes"] == 3
    assert log.code("debug_request", b'{"command":"attach"}') is None
    assert log.code("execute_request", b'{"code":7}') is None
    assert log.code("execute_request", b"[]") is None
    for content in (b"no JSON", b"[" * 100_000):
        found = log.code("execute_request", content)
        assert found is not None and (found["of"], found["bytes"]) == ("content", len(content))
    monkeypatch.setattr(auditlog, "_MOST_CONTENT", 10)
    found = log.code("execute_request", b'{"code":"1234567890"}')
    assert found is not None and found["of"] == "content"


def test_a_lone_surrogate_is_hashed_and_written(tmp_path: Path) -> None:
    log = opened(tmp_path / "log", with_code=True)
    code = log.code("execute_request", b'{"code":"\\ud800"}')
    log.write(entry(code=code, username="\ud800"))
    log.close()
    assert lines(tmp_path / "log")[0]["code"]["text"] == "\ud800"


# -- rotation, and a writer that fails -------------------------------------------------------------


def test_a_full_file_is_put_aside_and_nothing_is_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two kernels share the file; each of them finds it rotated by the other."""
    path = tmp_path / "log"
    one, two = (opened(path, kernel=name, rotate_at=2000) for name in ("one", "two"))
    for number in range(12):
        for log in (one, two):
            log.write(entry(f"{log.kernel}-{number}"))
    one.close()
    two.close()
    assert (tmp_path / "log.1").exists()
    for kernel in ("one", "two"):
        assert audit.main([str(path), "--kernel", kernel, "--json"]) == 0
        shown = [json.loads(line)["msg_id"] for line in capsys.readouterr().out.splitlines()]
        assert shown == [f"{kernel}-{number}" for number in range(12)]


def test_the_oldest_goes(tmp_path: Path) -> None:
    log = auditlog._Log(str(tmp_path / "log"), rotate_at=1)
    for number in range(15):
        log.append(f"{number}\n".encode())
    os.close(log._fd)
    kept = [path.read_text() for _, path in sorted(_kept(tmp_path))]
    assert kept == [f"{14 - n}\n" for n in range(auditlog.KEPT + 1)]


def _kept(folder: Path) -> list[tuple[int, Path]]:
    return [(int(path.suffix[1:] or 0), path) for path in folder.iterdir()]


def test_a_file_that_was_taken_away_is_made_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = auditlog._Log(str(path), rotate_at=100)
    log.append(b"1\n")
    path.rename(tmp_path / "elsewhere")
    log.append(b"2\n")
    os.close(log._fd)
    assert (path.read_text(), (tmp_path / "elsewhere").read_text()) == ("2\n", "1\n")


def test_who_finds_the_file_put_aside_by_another_writes_into_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "log"
    one, two = (auditlog._Log(str(path), rotate_at=4) for _ in range(2))
    for line in (b"1\n", b"2\n", b"3\n"):
        one.append(line)
    two.append(b"4\n")
    for log in (one, two):
        os.close(log._fd)
    assert (path.read_text(), Path(f"{path}.1").read_text()) == ("3\n4\n", "1\n2\n")


def test_a_writer_that_has_ended_is_an_error_at_the_next_line(tmp_path: Path) -> None:
    log = opened(tmp_path / "log")
    os.kill(log._writer, signal.SIGKILL)
    os.waitid(os.P_PID, log._writer, os.WEXITED | os.WNOWAIT)
    with pytest.raises(AuditError, match="so the kernel was ended"):
        log.write(entry())
    with pytest.raises(AuditError, match="has failed"):
        log.close()
    log.close()


def test_a_file_that_became_anothers_is_an_error_at_the_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log"
    log = opened(path)
    path.unlink()
    path.symlink_to("/dev/null")
    log.write(entry())
    with pytest.raises(AuditError, match="has failed"):
        log.close()
    assert "the audit log cannot be opened" in capfd.readouterr().err


# -- the reader ------------------------------------------------------------------------------------


def test_the_reader_shows_a_line_for_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log"
    log = opened(path, kernel="0123456789")
    log.started()
    code = {"of": "code", "sha256": "ab" * 32, "bytes": 4, "text": "1\x1b[2J"}
    log.write(entry(outcome="error", ename="E\x1b[1A\x9b", code=code))
    log.ended("KernelExited", "it ended", 0)
    log.close()
    assert audit.main([str(path)]) == 0
    start, request, end = capsys.readouterr().out.splitlines()
    assert start.endswith("01234567 the kernel started")
    assert end.endswith("the kernel ended: it ended")
    assert request.endswith(
        r"01234567 execute_request error E\x1b[1A\x9b; 2.500 s; 1.250 s of cpu; peak 3.0 MiB; "
        r"4 forks refused; sha256 abababababab, 4 bytes; '1\x1b[2J'"
    )


def test_the_reader_chooses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, script = tmp_path / "log", tmp_path / "script.py"
    script.write_text("1+1")
    log = opened(path, kernel="0123")
    log.write(entry("a", session="x", began=100.0))
    log.write(entry("b", outcome="aborted", began=200.0))
    log.write(entry("c", code=log.code("execute_request", b'{"code":"1+1"}'), began=300.0))
    log.close()

    def shown(*options: str) -> str:
        assert audit.main([str(path), "--json", *options]) == 0
        return "".join(json.loads(line)["msg_id"] for line in capsys.readouterr().out.splitlines())

    assert shown() == "abc"
    assert shown("--session", "x") == "a"
    assert shown("--outcome", "aborted") == "b"
    assert shown("--code", str(script)) == "c"
    assert shown("--kernel", "01-2") == "abc"
    assert shown("--kernel", "9") == ""
    assert shown("--since", "1970-01-01T00:03:20Z") == "bc"


def test_a_line_that_is_none_is_named_and_the_rest_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log"
    log = opened(path)
    log.started()
    log.close()
    good = path.read_text()
    path.write_text('{"v":1,"event":"requ\n{"v":2,"event":"start"}\n' + good)
    assert audit.main([str(path)]) == 1
    shown = capsys.readouterr()
    assert "the kernel started" in shown.out
    assert f"{path}:1: this is no line of JSON" in shown.err
    assert f"{path}:2: this is no line of an audit log of version 1" in shown.err


def test_a_log_that_is_not_there_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert audit.main([str(tmp_path / "log")]) == 1
    assert "the audit log cannot be read" in capsys.readouterr().err
