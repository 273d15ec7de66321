"""Sandboxes that wait: who gets them, what they are then, and that nothing of them stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.remains import (
    Ground,
    caps,
    descendants,
    provisioner_of,
    readable,
    standing,
    wait_for_end,
)
from integration.sandboxes import TIMEOUT, connected, manager, run_cell, said, started, value
from jupyter_client.manager import KernelManager

from sandbox_kernel import audit, rundir
from sandbox_kernel.pool import Pool, Waiting
from sandbox_kernel.provisioner import SandboxProvisioner

TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture
def pool(here: Ground) -> Iterator[Pool]:
    """That of the provisioners, without its delay; empty before and after."""
    with pytest.MonkeyPatch.context() as patch:
        fresh = Pool(delay=0.0)
        patch.setattr(SandboxProvisioner, "_pool", fresh)
        yield fresh
        for waiting in fresh.clear():
            waiting.close()


def filled(pool: Pool, count: int = 1) -> list[Waiting]:
    """Wait until as many are up as the last start asked for."""
    assert pool._timer is not None
    pool._timer.join(TIMEOUT)
    found = list(pool._waiting)
    assert len(found) == count
    deadline = time.monotonic() + TIMEOUT
    while not all(waiting.sandbox.waits for waiting in found):
        comes = next(waiting.sandbox for waiting in found if not waiting.sandbox.waits)
        assert readable(comes.fileno(), deadline)
        assert pool.count() <= count
    return found


def sandbox_of(km: KernelManager) -> Any:
    return provisioner_of(km).sandbox


# -- what a start gets -----------------------------------------------------------------------------


def test_a_start_takes_the_one_that_waits_and_another_is_built(pool: Pool, here: Ground) -> None:
    config = caps(pool=1)
    with started(here.folder, config) as (first, _):
        (waiting,) = filled(pool)
        assert sandbox_of(first) is not waiting.sandbox
        with started(here.folder, config) as (second, client):
            assert sandbox_of(second) is waiting.sandbox
            assert value(client, "6 * 7") == 42
            (next_one,) = filled(pool)
            assert next_one.sandbox is not waiting.sandbox


def test_the_first_of_a_server_is_an_ordinary_one(pool: Pool, here: Ground) -> None:
    with started(here.folder, {"pool": 1}) as (_, client):
        assert value(client, "6 * 7") == 42


def test_it_writes_into_the_audit_log_under_the_id_of_its_client(pool: Pool, here: Ground) -> None:
    """What waits and is given up writes nothing."""
    with tempfile.TemporaryDirectory() as folder:
        log, ids = Path(folder) / "log", []
        for _ in range(2):
            with started(here.folder, {"pool": 1, "audit_log": str(log)}) as (km, client):
                run_cell(client, "1")
                filled(pool)
                ids.append(provisioner_of(km).kernel_id.replace("-", ""))
        found = [audit.parse(raw) for _, raw in audit.lines(str(log))]
        expected = [(i, e) for i in ids for e in ("start", "request", "end")]
        assert [(line["kernel"], line["event"]) for line in found] == expected


def test_none_waits_where_none_was_asked_for(pool: Pool, here: Ground) -> None:
    with started(here.folder):
        assert pool._timer is None


def test_it_has_key_and_environment_of_its_client(pool: Pool, here: Ground) -> None:
    code = (
        "[__import__('os').environ.get(name) for name in ('OF_FIRST', 'OF_SECOND', 'OF_BOTH', "
        "'MPLBACKEND')]"
    )
    config = {"pool": 1, "env_pass": ["OF_FIRST", "OF_SECOND", "OF_BOTH"]}
    inline = "module://matplotlib_inline.backend_inline"
    keys = set()
    for number, seen in ((1, ["1", None, "1", inline]), (2, [None, "2", "2", inline])):
        km = manager(here.folder, config)
        own = "OF_FIRST" if number == 1 else "OF_SECOND"
        environment = {**os.environ, own: str(number), "OF_BOTH": str(number)}
        km.start_kernel(cwd=str(here.work), env=environment)
        with connected(km) as client:
            assert value(client, code) == seen
            inside = value(client, "open(__import__('ipykernel').get_connection_file()).read()")
            assert json.loads(inside)["key"].encode() == km.session.key
            keys.add(km.session.key)
        filled(pool)
        km.shutdown_kernel(now=True)
    assert len(keys) == 2


def test_its_walls_and_caps_are_those_of_any_other(pool: Pool, here: Ground) -> None:
    config = caps(pool=1)
    with started(here.folder, config) as (first, client):
        limits = value(client, "__import__('resource').getrlimit(7)")
        filled(pool)
        with started(here.folder, config) as (second, other):
            assert standing(first) == standing(second)
            assert not provisioner_of(second).observed_walls().missing()
            assert value(other, "__import__('resource').getrlimit(7)") == limits


@pytest.mark.needs("cgroups")
def test_its_cap_on_memory_bites(pool: Pool, here: Ground) -> None:
    config = {"pool": 1, "memory": "128M"}
    with started(here.folder, config):
        filled(pool)
        with started(here.folder, config) as (_, client):
            cell = run_cell(client, "x = bytearray(200 * 2**20)")
            assert cell.ename == "MemoryCapExceeded"


def test_a_restart_keeps_the_endpoints(pool: Pool, here: Ground) -> None:
    with started(here.folder, {"pool": 1}):
        filled(pool)
        with started(here.folder, {"pool": 1}) as (km, client):
            assert run_cell(client, "x = 1").ok
            before = km.get_connection_info()
            km.restart_kernel(now=True)
            client.wait_for_ready(timeout=TIMEOUT)
            assert km.get_connection_info() == before
            assert run_cell(client, "x").ename == "NameError"


def test_a_cold_one_waits_too(pool: Pool, here: Ground) -> None:
    config = {"pool": 1, "zygote": False}
    with started(here.folder, config):
        (waiting,) = filled(pool)
        with started(here.folder, config) as (km, client):
            assert sandbox_of(km) is waiting.sandbox
            assert "sandbox_kernel.kernel" in value(client, "open('/proc/self/cmdline').read()")


# -- who does not get one --------------------------------------------------------------------------


@pytest.mark.parametrize("other", [{"hostname": "another"}, {"workspace": "ro"}])
def test_not_with_another_spec(pool: Pool, here: Ground, other: dict[str, Any]) -> None:
    with started(here.folder, {"pool": 1}):
        (waiting,) = filled(pool)
        with started(here.folder, {"pool": 1} | other) as (km, _):
            assert sandbox_of(km) is not waiting.sandbox


def test_not_in_another_folder(pool: Pool, here: Ground) -> None:
    """Its workspace is mounted already. What waited makes room for one that fits."""
    another = here.folder / "another"
    another.mkdir()
    with started(here.folder, {"pool": 1}):
        (waiting,) = filled(pool)
        with started(here.folder, {"pool": 1}, cwd=another) as (km, client):
            assert sandbox_of(km) is not waiting.sandbox
            assert value(client, "__import__('os').getcwd()") == str(another)
            (next_one,) = filled(pool)
            assert next_one.recipe.cwd == str(another)


def test_each_is_used_once(pool: Pool, here: Ground) -> None:
    with started(here.folder, {"pool": 2}) as (first, _):
        there = {id(waiting.sandbox) for waiting in filled(pool, 2)}
        kernels = [manager(here.folder, {"pool": 2}) for _ in range(3)]
        for km in kernels:
            km.start_kernel(cwd=str(here.work))
        try:
            got = [sandbox_of(km) for km in kernels]
            assert {id(sandbox) for sandbox in got[:2]} == there
            pids = [said(km).supervisor_pid for km in (first, *kernels)]
            assert len(set(pids)) == 4
        finally:
            for km in kernels:
                km.shutdown_kernel(now=True)


@pytest.mark.needs("cgroups")
def test_it_makes_room_where_the_user_may_have_no_more(pool: Pool, here: Ground) -> None:
    """It counts among the user's kernels."""
    another = here.folder / "another"
    another.mkdir()
    config = caps(pool=1, user={"kernels": 2})
    with started(here.folder, config):
        (waiting,) = filled(pool)
        with started(here.folder, config, cwd=another) as (_, client):
            assert value(client, "1 + 1") == 2
            assert waiting.sandbox.exited is not None


# -- when it ends ----------------------------------------------------------------------------------


def supervisor_of(waiting: Waiting) -> int:
    """From the pidfd that the client has of it."""
    text = Path(f"/proc/self/fdinfo/{waiting.sandbox._supervisor_pidfd}").read_text()
    return int(text.split("Pid:")[1].split()[0])


def test_one_that_was_killed_is_not_used(pool: Pool, here: Ground) -> None:
    with started(here.folder, {"pool": 1}):
        (waiting,) = filled(pool)
        supervisor = supervisor_of(waiting)
        os.kill(supervisor, signal.SIGKILL)
        assert wait_for_end([supervisor]) == []
        with started(here.folder, {"pool": 1}) as (km, client):
            assert sandbox_of(km) is not waiting.sandbox
            assert value(client, "1 + 1") == 2


def test_one_that_dies_when_it_was_taken_is_replaced(
    pool: Pool, here: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the connection file, which names its endpoints already, and the start."""
    take = Pool.take

    def dies(self: Pool, recipe: Any) -> Waiting | None:
        if (waiting := take(self, recipe)) is not None:
            supervisor = supervisor_of(waiting)
            os.kill(supervisor, signal.SIGKILL)
            assert wait_for_end([supervisor]) == []
        return waiting

    with started(here.folder, {"pool": 1}):
        (waiting,) = filled(pool)
        monkeypatch.setattr(Pool, "take", dies)
        with started(here.folder, {"pool": 1}) as (km, client):
            assert sandbox_of(km) is not waiting.sandbox
            assert value(client, "1 + 1") == 2


def test_one_that_was_taken_for_a_start_that_fails(pool: Pool, here: Ground) -> None:
    with started(here.folder, {"pool": 1}):
        filled(pool)
        km = manager(here.folder, {"pool": 1}, connection_file=str(here.folder / "no" / "k.json"))
        km._connection_file_written = False
        with pytest.raises(Exception, match="connection file"):
            km.start_kernel(cwd=str(here.work))


@pytest.mark.parametrize("whom", ["kernel", "init"])
def test_it_ends_with_its_kernel(pool: Pool, here: Ground, whom: str) -> None:
    with started(here.folder, {"pool": 1}):
        (waiting,) = filled(pool)
        supervisor = supervisor_of(waiting)
        children = f"/proc/{supervisor}/task/{supervisor}/children"
        victim = init = int(Path(children).read_text().split()[0])
        if whom == "kernel":
            victim = int(Path(f"/proc/{init}/task/{init}/children").read_text().split()[0])
        os.kill(victim, signal.SIGKILL)
        assert wait_for_end([supervisor]) == []
        assert pool.count() == 0


@pytest.mark.needs("cgroups")
def test_it_ends_when_memory_is_short(pool: Pool, here: Ground) -> None:
    """Linux stalls who reads a file that does not fit into his cap, again and again."""
    thrash = """
import mmap, os, signal
signal.alarm(60)
with open("large", "wb") as file: file.truncate(160 * 2**20)
fd = os.open("large", os.O_RDONLY)
area = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
while not os.path.exists("enough"):
    for at in range(0, len(area), 4096): area[at]
"""
    with started(here.folder, {"pool": 1, "memory": "64M"}) as (_, client):
        (waiting,) = filled(pool)
        supervisor = supervisor_of(waiting)
        client.execute(thrash)
        left = wait_for_end([supervisor])
        (here.work / "enough").touch()
        assert left == []


SERVER = """
import sys
from pathlib import Path
from integration.remains import provisioner_of
from integration.sandboxes import manager, said
from integration.test_pool import filled
managers = [manager(Path(sys.argv[1]), {"pool": 1}) for _ in range(2)]
for km in managers:
    km.start_kernel(cwd=sys.argv[2])
    filled(provisioner_of(km)._pool)
print(said(managers[1]).supervisor_pid, managers[1].connection_file, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("with_its_supervisor", [False, True])
def test_none_outlives_its_server(here: Ground, with_its_supervisor: bool) -> None:
    """Killed while one waits and two run, of which one has waited. Its supervisor had been locked
    down when it got its connection file: if it is killed as well the launcher removes that."""
    command = [sys.executable, "-c", SERVER, str(here.folder), str(here.work)]
    with subprocess.Popen(
        command, cwd=TESTS, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    ) as server:  # fmt: skip
        assert server.stdout is not None
        supervisor, file = server.stdout.readline().split()
        assert Path(file).exists()
        below = list(descendants(server.pid))
        assert len(below) > 6
        if with_its_supervisor:
            os.kill(int(supervisor), signal.SIGSTOP)
        server.kill()
        if with_its_supervisor:
            server.wait()
            os.kill(int(supervisor), signal.SIGKILL)
    assert wait_for_end(below) == []
    assert not Path(file).exists()
    rundir.remove(rundir.make("next"))  # removes the folders of dead servers, as any next kernel
