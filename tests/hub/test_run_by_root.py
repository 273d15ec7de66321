"""A sandbox that root starts: no process of it is root on the host once it is set up.

The kernels run in a process of their own, in a private mount namespace in which root has a range of
subordinate ids, or none: the host's tables are not touched.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub.root_session import TABLES
from integration.remains import Ground, cgroup_directories, close_launchers, ground
from integration.sandboxes import TIMEOUT

pytestmark = pytest.mark.needs("root")

#: Ids that no table of this machine gives to anybody.
FIRST, COUNT = 1_700_000_000 + os.getpid() % 1000 * 100, 10
CGROUPS_TOOL = Path(__file__).parent.parent / "as_user" / "cgroups.py"


@pytest.fixture
def here() -> Iterator[Ground]:
    for table in TABLES:
        assert os.path.isfile(table), "there has to be a file over which one can be bound"
    before = [Path(table).read_text() for table in TABLES]
    with ground() as found:
        found.folder.chmod(0o755)
        yield found
        close_launchers()
        found.assert_clean("by this test")
    assert [Path(table).read_text() for table in TABLES] == before


@pytest.fixture
def cgroup(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A directory for the kernels' caps in each hierarchy, so that none is made elsewhere."""
    name = f"sandbox-kernel-test-{os.getpid()}"
    words = [sys.executable, "-I", str(CGROUPS_TOOL)]
    subprocess.run([*words, "make", name, "0"], check=True)
    monkeypatch.setenv("SANDBOX_KERNEL_CGROUP", name)
    yield name
    left = list(cgroup_directories())
    subprocess.run([*words, "remove", name], check=True)
    assert left == []


def session(
    here: Ground, config: dict[str, Any], *, ranges: str = f"{FIRST}:{COUNT}", restarts: str = "0"
) -> dict[str, Any]:
    """What came of one, see ``root_session.py``. Whatever it started has ended."""
    script = Path(__file__).with_name("root_session.py")
    (here.folder / "session").mkdir(mode=0o755, exist_ok=True)
    arguments = [ranges, str(here.work), json.dumps(config), restarts]
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", sys.executable, str(script), *arguments,
         str(here.folder / "session")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        stdout=subprocess.PIPE, text=True, check=False, timeout=3 * TIMEOUT,
    )  # fmt: skip
    assert done.returncode == 0
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


@pytest.mark.parametrize(("identity", "own"), [("keep-id", 0), ("root", 0), ("isolated", 1000)])
@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_nobody_of_it_is_root(
    transport: str, identity: str, own: int, here: Ground, cgroup: str
) -> None:
    """Over three restarts, and nothing is left: what only root can remove, the launcher does."""
    os.chown(here.work, FIRST, FIRST)
    config = {"identity": identity, "transport": transport, "memory": "512M", "pids": 128}
    result = session(here, config, restarts="3")
    assert len(result["seen"]) == 4, result
    for seen in result["seen"]:
        assert seen["two"] == 2
        assert seen["uids"] == [FIRST]
        for name in ("supervisor", "init", "kernel"):
            process = seen[name]
            assert process["uids"] == [FIRST] * 4, name
            assert process["gids"] == [FIRST] * 4, name
            assert process["groups"] == [], name
        for name in ("supervisor", "init", "kernel"):
            assert set(seen[name]["capabilities"].values()) == {0}, name
        assert seen["inside"]["ids"] == [own, own]
        assert seen["inside"]["maps"] == [[str(own), str(FIRST), "1"]] * 2
    made = (here.work / "made").stat()
    assert (made.st_uid, made.st_gid) == (FIRST, FIRST)
    here.assert_clean("by root's kernels")


def test_a_range_besides_its_own_id(here: Ground) -> None:
    os.chown(here.work, FIRST, FIRST)
    (seen,) = session(here, {"id_range": 3})["seen"]
    assert seen["inside"]["maps"] == [["0", str(FIRST), "4"]] * 2
    assert seen["uids"] == [FIRST]


@pytest.mark.parametrize("ranges", ["", "0:1", "0:2"])
def test_without_a_range_nothing_starts(ranges: str, here: Ground) -> None:
    """Nor with one that holds nothing but root itself."""
    if ranges == "0:2":
        os.chown(here.work, 1, 1)
        (seen,) = session(here, {}, ranges=ranges)["seen"]
        assert seen["uids"] == [1]
        return
    assert session(here, {}, ranges=ranges)["error"] == (
        "IdMapError: /etc/subuid gives user 'root' 0 of 1 ids: run by root, a kernel never gets "
        "host id 0 and needs a subordinate id; remedy: as root: usermod --add-subuids "
        "524288-589823 root (or another range that is free)"
    )


def test_a_workspace_that_its_id_cannot_write_to(here: Ground) -> None:
    here.work.chmod(0o755)
    assert session(here, {})["error"] == (
        f"SetupError: the workspace {here.work} is not writable for the kernel: it is host id "
        f"{FIRST}:{FIRST} there and the folder's mode is 0755, owner 0:0; remedy: set workspace to "
        f"'overlay' or 'ro', or chown {FIRST}:{FIRST} the folder"
    )


def test_the_supervisor_that_is_killed_leaves_nothing_of_root_s(here: Ground, cgroup: str) -> None:
    """Its sockets and its cgroup are root's, and it was not root any more."""
    os.chown(here.work, FIRST, FIRST)
    result = session(here, {"memory": "512M", "pids": 128}, restarts="kill")
    told = "the supervisor of the sandbox was killed by SIGKILL; the kernel ended with it"
    assert result == {"outlived": [], "told": told}
    here.assert_clean("by a supervisor that was killed")
