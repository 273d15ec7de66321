"""What a cell says about the caps that it runs into, while its kernel lives on."""

from __future__ import annotations

from integration.remains import Ground
from integration.sandboxes import run_cell, started, value

GROW = "kept = []\nfor _ in range({}): kept.append(bytes(2 * 2**20).replace(b'\\0', b'x'))\n"


def test_a_cell_is_warned_once_before_its_kernel_dies(here: Ground) -> None:
    with started(here.folder, {"memory": "512M"}) as (_, client):
        cell = run_cell(client, GROW.format(218))
        assert cell.ok
        (line,) = cell.stderr.splitlines()
        assert line.startswith("[sandbox] memory: 4") and " MiB of 512 MiB in use; " in line
        assert run_cell(client, "1").stderr == ""


def test_page_cache_is_no_reason_to_warn(here: Ground) -> None:
    with started(here.folder, {"memory": "256M", "memory_swap": 0}) as (_, client):
        code = "with open('big', 'wb') as f:\n    for _ in range(400): f.write(bytes(2**20))"
        cell = run_cell(client, code)
        assert (cell.status, cell.stderr) == ("ok", "")


def test_a_cell_is_interrupted_and_its_kernel_lives(here: Ground) -> None:
    with started(here.folder, {"memory": "512M", "on_memory_pressure": "interrupt"}) as (_, client):
        for _ in range(2):
            cell = run_cell(client, GROW.format(10_000))
            assert cell.ename == "KeyboardInterrupt", cell.evalue
            assert cell.stderr.rstrip().endswith("; the cell is interrupted")
            assert value(client, "len(kept) > 50") is True
            assert run_cell(client, "del kept").ok


def test_a_fork_that_was_refused_is_said_beside_the_cell(here: Ground) -> None:
    with started(here.folder, {"pids": 48}) as (_, client):
        code = (
            "import os, signal\n"
            "pids = []\n"
            "try:\n"
            "    while True:\n"
            "        pid = os.fork()\n"
            "        if not pid: signal.pause()\n"
            "        pids.append(pid)\n"
            "except OSError: pass\n"
            "for pid in pids: os.kill(pid, 9), os.waitpid(pid, 0)\n"
        )
        cell = run_cell(client, code)
        assert cell.stderr == (
            "[sandbox] a new process or thread was refused once: the cap is 48 (pids)\n"
        )
        assert run_cell(client, "1").stderr == ""


def test_a_cell_that_was_held_back_says_for_how_long(here: Ground) -> None:
    with started(here.folder, {"cpus": 0.2}) as (_, client):
        spin = "import time\nend = time.monotonic() + {}\nwhile time.monotonic() < end: pass"
        cell = run_cell(client, spin.format(2))
        assert cell.stderr.startswith("[sandbox] the cell was held back by the cap of 0.2 CPUs")
        assert run_cell(client, spin.format(0.3)).stderr == ""
        assert run_cell(client, "time.sleep(2)").stderr == ""
