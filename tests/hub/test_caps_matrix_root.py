"""docs/caps.md, the column of root: real kernels, with every controller of cgroup v1 mounted.

The rows are those of ``integration/test_caps_matrix.py``; each runs in a process of its own, see
``matrix_session.py``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hub.root_session import TABLES
from integration.matrix import Outcome, Row
from integration.matrix_expected import V1_ROOT, check
from integration.matrix_rows import ROWS
from integration.remains import Ground, ground
from integration.test_caps_matrix import write_data

pytestmark = pytest.mark.needs("root", "cgroup-v1", "disk")

TESTS = Path(__file__).resolve().parents[1]
TOOL = TESTS / "as_user" / "cgroups.py"
#: Ids that no table of this machine gives to anybody.
FIRST, COUNT = 1_700_000_000 + os.getpid() % 1000 * 100, 10


@pytest.fixture
def here() -> Iterator[Ground]:
    before = [Path(table).read_text() for table in TABLES]
    with ground() as found:
        found.folder.chmod(0o755)
        yield found
        found.assert_clean("by this cap")
    assert [Path(table).read_text() for table in TABLES] == before


@pytest.fixture
def work() -> Iterator[Path]:
    """A workspace on the disk, of the id that root's kernels have."""
    folder = Path(tempfile.mkdtemp(prefix="skt-m-", dir="/var/tmp"))
    write_data(folder / "data")
    for path in (folder, folder / "data"):
        os.chown(path, FIRST, FIRST)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def hint() -> Iterator[str]:
    """A directory in every hierarchy that is mounted, that of devices included."""
    name = f"sandbox-kernel-test-{os.getpid()}"
    subprocess.run([sys.executable, "-I", str(TOOL), "make", name, "0"], check=True, timeout=60)
    devices = Path("/sys/fs/cgroup/devices", name)
    devices.mkdir()
    yield name
    tops = Path("/sys/fs/cgroup").glob(f"*/{name}")
    left = [str(p) for top in tops for p in top.iterdir() if p.is_dir() and p.name != "tests"]
    if not left:
        devices.rmdir()
    subprocess.run([sys.executable, "-I", str(TOOL), "remove", name], check=True, timeout=60)
    assert left == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.key)
def test_a_kernel_of_root_s_that_misbehaves(
    row: Row, here: Ground, work: Path, hint: str, record_property: Any
) -> None:
    session = here.folder / "session"
    session.mkdir(mode=0o755)
    script = Path(__file__).with_name("matrix_session.py")
    arguments = [row.key, f"{FIRST}:{COUNT}", str(session), str(work), hint]
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", sys.executable, str(script), *arguments],
        env={**os.environ, "PYTHONPATH": str(TESTS), "SANDBOX_KERNEL_CGROUP": hint},
        stdout=subprocess.PIPE, text=True, check=False, timeout=170,
    )  # fmt: skip
    assert done.returncode == 0
    outcome = Outcome(**json.loads(done.stdout.splitlines()[-1]))
    check(row, V1_ROOT, outcome, record_property)
