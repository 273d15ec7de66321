"""What a cell used, measured outside of a real kernel, and where it is told and written down."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.cells import begin
from integration.remains import Ground, descendants, provisioner_of, readable
from integration.sandboxes import TIMEOUT, connected, inside, run_cell, started, value
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

from sandbox_kernel import audit
from sandbox_kernel.errors import AuditError

MIB = 1024**2
CAPS: dict[str, Any] = {"memory": "512M", "pids": 128, "cpus": 1.5}
BURN = "import time as _t\n_end = _t.process_time() + {0}\nwhile _t.process_time() < _end: pass\n"
EAT = "_kept = bytearray({0} * 2**20); _kept[::4096] = b'x' * ({0} * 256)\n"

Account = dict[str, Any]


def reply_to(client: BlockingKernelClient, msg_id: str) -> dict[str, Any]:
    """The whole reply, with its metadata."""
    while True:
        reply: dict[str, Any] = client.get_shell_msg(timeout=TIMEOUT)
        if reply["parent_header"]["msg_id"] == msg_id:
            return reply


def account(client: BlockingKernelClient, code: str) -> Account:
    found: Account = reply_to(client, client.execute(code))["metadata"]["sandbox"]
    return found


def use(client: BlockingKernelClient) -> dict[str, Any]:
    """The content of a ``usage_reply``."""
    message = client.session.msg("usage_request", {})
    client.control_channel.send(message)
    while True:
        reply = client.get_control_msg(timeout=TIMEOUT)
        if reply["parent_header"]["msg_id"] == message["header"]["msg_id"]:
            assert reply["msg_type"] == "usage_reply"
            content: dict[str, Any] = reply["content"]
            return content


@pytest.fixture(scope="module")
def capped(
    launchers: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[KernelManager, Any]]:
    with started(tmp_path_factory.mktemp("kernel"), CAPS) as kernel:
        yield kernel


@pytest.fixture
def client(capped: tuple[KernelManager, Any]) -> Any:
    return capped[1]


# -- in the reply ----------------------------------------------------------------------------------


@pytest.mark.needs("cgroups")
def test_a_reply_says_what_its_cell_used(client: BlockingKernelClient) -> None:
    burnt = account(client, BURN.format(0.3))
    assert 0.3 <= burnt["cpu_s"] < 3 * burnt["wall_s"]
    slept = account(client, "_t.sleep(0.3)")
    assert slept["wall_s"] >= 0.3 and slept["cpu_s"] < 0.3
    talked = account(client, "print('x' * 100_000)")
    assert talked["net"]["sent_bytes"] > 100_000 > slept["net"]["sent_bytes"]


@pytest.mark.needs("cgroups")
def test_processes_that_have_ended_are_counted_too(client: BlockingKernelClient) -> None:
    child = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', {0!r}], check=True)"
    assert account(client, child.format(BURN.format(0.3)))["cpu_s"] >= 0.3


@pytest.mark.needs("cgroups")
def test_the_peak_is_that_of_the_cell_where_linux_can_begin_it_anew(
    capped: tuple[KernelManager, Any],
) -> None:
    km, client = capped
    large = account(client, EAT.format(150) + "del _kept")
    small = account(client, "1")
    assert large["peak_bytes"] >= 150 * MIB
    assert large["peak_of"] == small["peak_of"]
    if small["peak_of"] == "cell":
        assert small["peak_bytes"] <= large["peak_bytes"] - 100 * MIB
    else:
        assert small["peak_bytes"] == large["peak_bytes"]
    usage = asyncio.run(provisioner_of(km).usage())
    assert (usage.memory_peak or 0) >= 150 * MIB, "that of the kernel's life is not lost"


@pytest.mark.needs("cgroups")
def test_cells_that_wait_are_charged_one_by_one(client: BlockingKernelClient) -> None:
    """The kernel goes on before its reply is read: some of a cell may be the one's before it."""
    ids = [client.execute(BURN.format(seconds)) for seconds in (0.6, 0.01, 0.4)]
    replies = [reply_to(client, msg_id)["metadata"]["sandbox"] for msg_id in ids]
    first, second, third = (reply["cpu_s"] for reply in replies)
    assert first >= 0.6 and second < 0.2 and third >= 0.25
    assert 1.01 <= first + second + third < 2
    assert replies[1]["wall_s"] < replies[0]["wall_s"]


@pytest.mark.needs("cgroups")
def test_what_a_kernel_says_of_itself_is_replaced(client: BlockingKernelClient) -> None:
    lie = (
        "_k = get_ipython().kernel\n_honest = _k.finish_metadata\n"
        "_k.finish_metadata = lambda *a: {'sandbox': {'cpu_s': 0}, 'mine': 1}\n"
    )
    reply = reply_to(client, client.execute(lie + BURN.format(0.2)))
    account(client, "_k.finish_metadata = _honest")
    assert reply["metadata"]["mine"] == 1, "the lie did not get that far"
    assert reply["metadata"]["sandbox"]["cpu_s"] >= 0.2


@pytest.mark.needs("cgroups")
def test_the_last_cell_of_a_kernel_that_dies_is_charged(tmp_path: Path, launchers: None) -> None:
    with started(tmp_path, CAPS) as (_, client):
        msg_id = client.execute(EAT.format(200) + "import os; os._exit(3)")
        reply = reply_to(client, msg_id)
        assert reply["content"]["status"] == "error"
        assert reply["metadata"]["sandbox"]["peak_bytes"] >= 200 * MIB


# -- in the notebook -------------------------------------------------------------------------------


@pytest.mark.needs("cgroups")
def test_the_magic_shows_caps_and_use(client: BlockingKernelClient) -> None:
    shown = run_cell(client, "%sandbox").stdout
    assert re.search(r"^memory +[0-9.]+ MiB of 512.0 MiB, peak [0-9.]+ MiB$", shown, re.M), shown
    assert re.search(r"^cpu +[0-9.]+ s since the start, cap 1.5 cores$", shown, re.M), shown
    assert re.search(r"^tasks +[0-9]+ of 128$", shown, re.M), shown


@pytest.mark.needs("cgroups")
def test_the_cell_magic_shows_what_the_cell_used(client: BlockingKernelClient) -> None:
    cell = run_cell(client, "%%sandbox\nimport asyncio\nawait asyncio.sleep(0.2)\nprint('x')\n7")
    match = re.fullmatch(
        r"x\n\[sandbox\] this cell: ([0-9.]+) s; [0-9.]+ s of cpu; .*\n", cell.stdout
    )
    assert match is not None, cell.stdout
    assert float(match[1]) >= 0.2
    assert cell.ok and cell.result == "7", "it is a cell as any other"


def test_the_magics_are_there_whatever_starts_the_kernel_and_need_no_cgroup(
    tmp_path: Path, launchers: None
) -> None:
    with started(tmp_path, {"zygote": False}) as (_, client):
        assert re.search(r"^link +[0-9.]+ \w+ out, ", run_cell(client, "%sandbox").stdout, re.M)
        assert "[sandbox] this cell: " in run_cell(client, "%%sandbox\n1").stdout


@pytest.mark.needs("cgroups")
def test_the_cell_magic_tells_of_a_cell_that_fails_too(client: BlockingKernelClient) -> None:
    cell = run_cell(client, "%%sandbox\n1\n1/0")
    assert (cell.status, cell.ename) == ("error", "ZeroDivisionError")
    assert cell.stdout.startswith("[sandbox] this cell: ")
    assert not run_cell(client, "1").stdout, "and of no other"


def publish_many() -> str:
    """Run inside: what is asked for as figures, but is not."""
    from IPython.core.getipython import get_ipython

    pub = get_ipython().display_pub  # type: ignore[union-attr, unused-ignore]
    for content in ({}, {"of": 7}, {"of": "x" * 100_000}, {"of": "kernel"}):
        pub.session.send(pub.pub_socket, "sandbox_figures", content, parent={})  # type: ignore[union-attr, unused-ignore]
    return "sent"


@pytest.mark.needs("cgroups")
def test_figures_that_nobody_can_show_are_dropped(client: BlockingKernelClient) -> None:
    assert inside(client, publish_many) == "sent"
    assert value(client, "1 + 1") == 2


# -- usage requests --------------------------------------------------------------------------------


@pytest.mark.needs("cgroups")
def test_a_usage_reply_has_the_fields_of_ipykernel_with_the_caps_as_the_host(
    client: BlockingKernelClient,
) -> None:
    account(client, EAT.format(100))
    content = use(client)
    assert content["hostname"] == value(client, "__import__('socket').gethostname()")
    assert content["pid"] == value(client, "__import__('os').getpid()")
    assert 100 * MIB <= content["kernel_memory"] <= 512 * MIB
    assert content["cpu_count"] == min(2, len(os.sched_getaffinity(0)))
    memory = content["host_virtual_memory"]
    assert memory["total"] == 512 * MIB
    assert memory["used"] + memory["available"] == memory["total"]
    theirs = inside(client, psutils_fields)
    if theirs is not None:
        assert set(memory) == set(theirs)
    use(client)
    account(client, "del _kept\n" + BURN.format(0.3))
    busy = use(client)
    assert busy["kernel_cpu"] > 0 and 0 < busy["host_cpu_percent"] <= 100


def psutils_fields() -> list[str] | None:
    """Run inside."""
    try:
        import psutil  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return None
    return list(psutil.virtual_memory()._fields)


@pytest.mark.needs("cgroups")
def test_it_is_answered_while_the_kernel_is_stopped_and_with_caps_of_that_moment(
    tmp_path: Path, launchers: None
) -> None:
    with started(tmp_path, CAPS) as (km, client):
        provisioner = provisioner_of(km)
        asyncio.run(provisioner.update(memory="256M", cpus=0.5))
        asyncio.run(provisioner.pause())
        content = use(client)
        asyncio.run(provisioner.resume())
        assert content["host_virtual_memory"]["total"] == 256 * MIB
        assert content["cpu_count"] == 1


@pytest.mark.needs("cgroups")
def test_whoever_asks_sees_busy_and_idle_as_of_a_kernel(client: BlockingKernelClient) -> None:
    message = client.session.msg("usage_request", {})
    client.control_channel.send(message)
    states: list[str] = []
    while states[-1:] != ["idle"]:
        published = client.get_iopub_msg(timeout=TIMEOUT)
        if published["parent_header"].get("msg_id") == message["header"]["msg_id"]:
            states.append(published["content"]["execution_state"])
    client.get_control_msg(timeout=TIMEOUT)
    assert states == ["busy", "idle"]


@pytest.mark.needs("cgroups")
def test_the_caps_are_in_the_environment(client: BlockingKernelClient) -> None:
    limits = value(client, "[__import__('os').environ[n] for n in ('MEM_LIMIT', 'CPU_LIMIT')]")
    assert limits == [str(512 * MIB), "1.5"]


# -- the audit log -------------------------------------------------------------------------------


def entries(path: Path, event: str = "request") -> list[dict[str, Any]]:
    found = [audit.parse(raw) for _, raw in audit.lines(str(path))]
    return [line for line in found if line["event"] == event]


@contextlib.contextmanager
def audited(folder: Path, **more: Any) -> Iterator[tuple[KernelManager, Any, Path]]:
    (folder / "log").mkdir(exist_ok=True)
    path = folder / "log" / "audit.jsonl"
    with started(folder, {"audit_log": str(path), **more}) as (km, client):
        yield km, client, path


def test_each_request_that_runs_code_is_written_down(tmp_path: Path, launchers: None) -> None:
    code = "print('hello')"
    with audited(tmp_path) as (km, client, path):
        assert run_cell(client, code).ok
        assert not run_cell(client, "1/0").ok
        kernel_id = provisioner_of(km).kernel_id
        ids = [client.execute("raise SystemError"), client.execute("'behind it'")]
        for msg_id in ids:
            reply_to(client, msg_id)
        client.is_complete("1+")
        client.get_shell_msg(timeout=TIMEOUT)
    lines = entries(path)
    assert [line["outcome"] for line in lines] == ["ok", "error", "error", "aborted"]
    assert [line["ename"] for line in lines] == [None, "ZeroDivisionError", "SystemError", None]
    assert [line["msg_id"] for line in lines[2:]] == ids
    first = lines[0]
    assert first["code"]["sha256"] == hashlib.sha256(code.encode()).hexdigest()
    assert first["code"]["bytes"] == len(code) and "text" not in first["code"]
    assert first["kernel"] == kernel_id.replace("-", "")
    assert (first["uid"], first["session"]) == (os.getuid(), client.session.session)
    assert first["sandbox"]["wall_s"] > 0
    assert len(entries(path, "start")) == len(entries(path, "end")) == 1
    assert entries(path, "end")[0]["cause"] == "KernelKilled"


def test_the_code_is_written_only_if_asked_for(tmp_path: Path, launchers: None) -> None:
    with audited(tmp_path, audit_code=True) as (_, client, path):
        run_cell(client, "x = 1")
    assert entries(path)[0]["code"]["text"] == "x = 1"


def test_a_request_that_is_never_answered_is_written_down(tmp_path: Path, launchers: None) -> None:
    with audited(tmp_path) as (_, client, path):
        msg_id = begin(client, "import time; time.sleep(600)")
    (line,) = entries(path)
    assert (line["msg_id"], line["outcome"]) == (msg_id, "unanswered")


@pytest.mark.needs("cgroups")
def test_a_death_and_what_was_refused_are_written_down(tmp_path: Path, launchers: None) -> None:
    fork = (
        "import os\nfor _ in range(200):\n"
        "    try:\n        pid = os.fork()\n"
        "    except OSError:\n        break\n"
        "    if not pid:\n        import time; time.sleep(60)\n"
    )
    with audited(tmp_path, memory="256M", pids=64) as (_, client, path):
        run_cell(client, fork)
        reply_to(client, client.execute(EAT.format(400)))
    refused, died = entries(path)
    assert refused["denials"]["forks"] >= 1
    assert (died["outcome"], died["ename"]) == ("error", "MemoryCapExceeded")
    assert died["denials"]["oom_kills"] >= 1
    assert entries(path, "end")[0]["cause"] == "MemoryCapExceeded"


def test_a_log_within_the_kernels_reach_is_refused(tmp_path: Path, launchers: None) -> None:
    (tmp_path / "work").mkdir()
    config = {"audit_log": str(tmp_path / "work" / "log")}
    with pytest.raises(AuditError, match="within the kernel's reach"):
        with started(tmp_path, config):
            pass
    with pytest.raises(AuditError, match="remedy: make"):
        with started(tmp_path, {"audit_log": str(tmp_path / "none" / "log")}):
            pass


def look_for(path: str) -> list[str]:
    """Run inside: the log by its name, and among what is open."""
    import contextlib
    import os

    found = [path] if os.path.exists(path) else []
    for folder in os.listdir("/proc"):
        if folder.isdigit():
            with contextlib.suppress(OSError):
                found += [
                    target
                    for fd in os.listdir(f"/proc/{folder}/fd")
                    if "audit" in (target := os.readlink(f"/proc/{folder}/fd/{fd}"))
                ]
    return found


def test_the_kernel_does_not_see_the_log(tmp_path: Path, launchers: None) -> None:
    with audited(tmp_path) as (_, client, path):
        assert inside(client, look_for, str(path)) == []


def writer_of(km: KernelManager) -> int:
    """The child of the supervisor that is not the sandbox's pid 1."""
    sandbox = provisioner_of(km).sandbox
    assert sandbox is not None and sandbox.started is not None
    pid = sandbox.started.supervisor_pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    (writer,) = {int(child) for child in children} - {sandbox.started.init_pid}
    return writer


def test_without_its_writer_the_kernel_ends_and_cells_say_why(
    tmp_path: Path, launchers: None
) -> None:
    with audited(tmp_path) as (km, client, _):
        os.kill(writer_of(km), signal.SIGKILL)
        first, second = client.execute("1"), client.execute("import time; time.sleep(600)")
        assert reply_to(client, first)["content"]["status"] == "ok", "it did run"
        content = reply_to(client, second)["content"]
        assert content["ename"] == "AuditLogFailed"
        assert "the audit log could not be written, so the kernel was ended" in content["evalue"]
        deadline = time.monotonic() + TIMEOUT
        while (exited := provisioner_of(km).exit) is None:
            assert time.monotonic() < deadline
            sandbox = provisioner_of(km).sandbox
            assert sandbox is not None and readable(sandbox.fileno(), deadline)
            km.is_alive()
        assert "audit log" in exited.reason


def test_the_writer_ends_with_the_kernel(here: Ground) -> None:
    (here.folder / "log").mkdir()
    path = here.folder / "log" / "audit.jsonl"
    with started(here.folder, {"audit_log": str(path)}) as (km, _):
        writer = writer_of(km)
        assert writer in descendants()
    assert writer not in descendants()
    path.unlink()
    (here.folder / "log").rmdir()


def test_a_kernel_that_is_restarted_writes_on(tmp_path: Path, launchers: None) -> None:
    with audited(tmp_path) as (km, client, path):
        run_cell(client, "1")
        km.restart_kernel(now=True)
        with connected(km) as again:
            run_cell(again, "2")
        kernel_id = provisioner_of(km).kernel_id.replace("-", "")
    assert [line["kernel"] for line in entries(path)] == [kernel_id, kernel_id]
    assert len(entries(path, "start")) == len(entries(path, "end")) == 2
