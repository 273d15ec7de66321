"""A launcher whose sandboxes lack the walls that a test names, one sandbox at a time.

Run as a script: ``weak_launcher.py FOLDER --socket FD``. Each supervisor, before it does anything,
reads the names in ``FOLDER/order``, see :mod:`escape.weaknesses`. It also holds ``FOLDER/canary``
from before it imports anything of an ipykernel, as a launcher that had a secret would.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

FOLDER = Path(sys.argv[1])
CANARY = (FOLDER / "canary").read_text()

# What a launcher has on its path is shown inside: this folder is not to be.
sys.path[0] = str(Path(__file__).parents[1])
from escape import weaknesses  # noqa: E402

from sandbox_kernel import launcher  # noqa: E402
from sandbox_kernel.engine import steps  # noqa: E402

del sys.path[0]


def weaken(step: steps.Step) -> None:
    """In the supervisor, at its first step; what it forks inherits it."""
    if step is steps.Step.REQUEST:
        weaknesses.apply(json.loads((FOLDER / "order").read_text()), str(FOLDER))


if __name__ == "__main__":
    steps.observe(weaken)
    sys.exit(launcher.main(sys.argv[2:]))
