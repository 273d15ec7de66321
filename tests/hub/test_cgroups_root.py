"""Controllers that only root can have: prepared as an administrator would, tried as root.

net_cls, net_prio and perf_event are held by no hierarchy of an ordinary machine. ``mounted.py``
mounts them in a mount namespace of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.needs("root", "cgroup-v1")

TESTS = Path(__file__).resolve().parents[1]
TRY = Path(__file__).with_name("mounted.py")
TOOL = TESTS / "as_user" / "cgroups.py"

Try = Callable[[str], Any]


@pytest.fixture
def in_root_group() -> Iterator[Try]:
    """Runs one case of ``mounted.py`` below directories of its own and returns what it saw."""
    hint = f"sandbox-kernel-test-{os.getpid()}"
    subprocess.run([sys.executable, "-I", str(TOOL), "make", hint, "0"], check=True, timeout=60)
    for path in _not_handed_over(hint):
        path.mkdir()

    def run(case: str) -> Any:
        command = ["unshare", "--mount", "--propagation", "private", sys.executable, str(TRY)]
        environment = {**os.environ, "SANDBOX_KERNEL_CGROUP": hint}
        done = subprocess.run(
            [*command, case, hint], capture_output=True, text=True, timeout=120, env=environment
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    try:
        yield run
    finally:
        left = [p for p in Path("/sys/fs/cgroup").glob(f"*/{hint}/kernel-*") if p.is_dir()]
        for path in _not_handed_over(hint):
            path.rmdir()
        subprocess.run([sys.executable, "-I", str(TOOL), "remove", hint], check=True, timeout=60)
    assert not left


def _not_handed_over(hint: str) -> list[Path]:
    """An ordinary user could do nothing with these."""
    return [Path("/sys/fs/cgroup/devices", hint)]


def test_sockets_carry_the_class_of_net_classid(in_root_group: Try) -> None:
    found = in_root_group("net_classid")
    assert found["file"] == str(0x100001)
    assert "class_id:0x100001" in found["ss"]


def test_net_prio_maps_an_interface(in_root_group: Try) -> None:
    assert in_root_group("net_prio")["lo"] == "5"


def test_perf_event_is_joined_for_accounting(in_root_group: Try) -> None:
    (path,) = in_root_group("perf_event")
    assert path.startswith(f"/sandbox-kernel-test-{os.getpid()}/kernel-root.")


def test_devices_that_are_not_allowed_cannot_be_opened(in_root_group: Try) -> None:
    assert in_root_group("devices") == {
        "null": "ok",
        "zero": "ok",
        "full": "Operation not permitted",
        "urandom": "Operation not permitted",
    }


def test_huge_pages_past_the_cap_are_refused(in_root_group: Try) -> None:
    found = in_root_group("hugetlb")
    assert found["pool"] == 8
    assert (found["six"], found["without"]) == ("ok", "ok")
    assert found["seven"] == "Cannot allocate memory"


def test_a_real_time_loop_gets_its_share(in_root_group: Try) -> None:
    assert 0.05 < in_root_group("cpu_rt") < 0.15


def test_a_weight_needs_a_scheduler_that_obeys_it(in_root_group: Try) -> None:
    found = in_root_group("io_weight")
    loop = found["loop"]
    assert f"that of {loop} is none" in found["refused"]
    assert f"as root: echo bfq > /sys/block/{loop}/queue/scheduler" in found["refused"]
    assert "300" in found["taken"].split()
