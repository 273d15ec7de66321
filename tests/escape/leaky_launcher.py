"""A launcher whose sandboxes get a descriptor of the host: :data:`LEAKED` is a file of it.

Run as a script: ``leaky_launcher.py FILE --socket FD``. Production code has no such switch.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import Final

from sandbox_kernel import launcher
from sandbox_kernel.engine import process, steps

LEAKED: Final = 200


def leak(step: steps.Step) -> None:
    """In the supervisor, before it begins; what it forks keeps the descriptor as well."""
    if step is not steps.Step.REQUEST:
        return
    fd = os.open(sys.argv[1], os.O_RDONLY)
    os.dup2(fd, LEAKED)
    os.close(fd)
    close_all_but = process.close_all_but

    def close_less(keep: Iterable[int]) -> None:
        close_all_but([*keep, LEAKED])

    process.close_all_but = close_less


if __name__ == "__main__":
    steps.observe(leak)
    sys.exit(launcher.main(sys.argv[2:]))
