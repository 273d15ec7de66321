"""Print what pip has to install for an extra of this project, the project itself left out.

::

    python tools/requirements.py dev

The build requirements are printed too: the package is built without build isolation, so that only
the first set-up of a virtual environment needs the network. Runs on the bare interpreter.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def requirements(extra: str) -> list[str]:
    """The requirement strings, sorted; an extra that names another one of ours is resolved."""
    table = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))
    project, extras = table["project"], table["project"]["optional-dependencies"]
    own = re.compile(re.escape(project["name"]) + r"\[(?P<extra>[a-z]+)\]")
    found: set[str] = set(table["build-system"]["requires"]) | set(project["dependencies"])
    wanted = [extra]
    while wanted:
        for requirement in extras[wanted.pop()]:
            if match := own.fullmatch(requirement):
                wanted.append(match["extra"])
            else:
                found.add(requirement)
    return sorted(found)


if __name__ == "__main__":
    print("\n".join(requirements(sys.argv[1])))
