"""``%sandbox`` and ``%%sandbox``, loaded in each kernel.

The kernel has no figures and gets none: it sees no cgroup file system, and nothing reads one for
it. Both only publish a message on iopub that asks the proxy to show figures in its place. So no
path leads into the sandbox, the supervisor parses one word, and what is shown was measured outside.

``%%sandbox`` is taken off a cell before it is compiled, so that the cell is one like any other: it
may await, its last value is shown, and an error ends it.
"""

from __future__ import annotations

import re
import sys
from typing import Any, Final

#: :data:`.channels.accounting.FIGURES`; the kernel has no use for the rest of that module.
FIGURES: Final = "sandbox_figures"
_FIRST_LINE: Final = re.compile(r"%%sandbox[ \t]*(?:\n|$)")


def load_ipython_extension(shell: Any) -> None:
    """Called by IPython when the kernel comes up."""
    magics = _Magics(shell)
    shell.register_magic_function(magics.sandbox, "line", "sandbox")
    shell.input_transformers_cleanup.append(without_first_line)
    shell.events.register("post_run_cell", magics.after_cell)


def without_first_line(lines: list[str]) -> list[str]:
    """An empty line in its place, so that numbers of lines stay right."""
    if lines and _FIRST_LINE.fullmatch(lines[0]):
        return ["\n", *lines[1:]]
    return lines


class _Magics:
    def __init__(self, shell: Any) -> None:
        self._shell = shell

    def sandbox(self, line: str) -> None:
        """Show the sandbox's caps and what this kernel uses of them.

        As the first line of a cell, ``%%sandbox`` shows what that cell used, at its end.
        """
        self._publish("kernel")

    def after_cell(self, result: Any) -> None:
        info = getattr(result, "info", None)
        if _FIRST_LINE.match((getattr(info, "raw_cell", None) or "").lstrip()):
            self._publish("cell")

    def _publish(self, of: str) -> None:
        publisher = self._shell.display_pub
        session = getattr(publisher, "session", None)
        if session is None:  # no kernel: an IPython in a terminal
            print("[sandbox] this is no kernel of a sandbox")
            return
        sys.stdout.flush()
        sys.stderr.flush()
        session.send(
            publisher.pub_socket,
            FIGURES,
            {"of": of},
            parent=publisher.parent_header,
            ident=FIGURES.encode(),
        )
