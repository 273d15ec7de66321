"""Start a sandboxed kernel as a server would, in a process of its own, and say what came of it.

Run as a script: ``start_once.py FOLDER CONFIG``, with the kernelspec's config as JSON. Prints a
JSON object: ``started``, or the ``type`` and ``message`` of the error.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from integration.remains import close_launchers
from integration.sandboxes import manager

from sandbox_kernel.errors import SandboxError

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    km = manager(folder, json.loads(sys.argv[2]))
    try:
        km.start_kernel(cwd=str(folder / "work"))
        km.shutdown_kernel(now=True)
        print(json.dumps({"started": True}))
    except SandboxError as error:
        print(json.dumps({"type": type(error).__name__, "message": str(error)}))
    finally:
        close_launchers()
