"""docs/caps.md: each cap in this environment is enforced or refused, as it has to be here.

What came of it goes to JUnit, where ``tools/caps-table`` finds it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import probes
import pytest
from integration.matrix import Row, Scene, attempt
from integration.matrix_expected import COLUMNS, EXPECTED, check
from integration.matrix_rows import ROWS
from integration.remains import ground

from sandbox_kernel.caps import CAP_KEYS

pytestmark = pytest.mark.needs("cgroups", "disk", "caps-column")


@pytest.fixture
def scene(launchers: None) -> Iterator[Scene]:
    with ground() as here:
        work = Path(tempfile.mkdtemp(prefix="skt-m-", dir="/var/tmp"))
        try:
            scene = Scene(here.folder, work, os.environ["SANDBOX_KERNEL_CGROUP"])
            write_data(scene.data)
            yield scene
        finally:
            shutil.rmtree(work)
        here.assert_clean("by this cap")


def write_data(path: Path) -> None:
    """Eight MiB, on the disk and not only in the page cache."""
    with path.open("wb") as file:
        file.write(bytes(8 * 2**20))
        os.fsync(file)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.key)
def test_a_kernel_that_misbehaves(row: Row, scene: Scene, record_property: Any) -> None:
    check(row, probes.caps_column(), attempt(row, scene), record_property)


def test_every_cap_has_a_row_and_every_row_an_answer_in_every_environment() -> None:
    keys = [row.key for row in ROWS]
    assert set(CAP_KEYS) <= {key.split(".")[0] for key in keys}
    assert sorted(keys) == sorted(EXPECTED)
    assert all(set(answers) == set(COLUMNS) for answers in EXPECTED.values())
