"""A server extension that starts the launcher with the server: the first kernel is fast then, too.

::

    jupyter lab --ServerApp.jpserver_extensions='{"sandbox_kernel.ahead": True}'

It starts the launcher that a kernelspec with the interpreter ``python`` and the server's own
``c.SandboxProvisioner.preload`` uses. Nothing waits for it.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from traitlets.config.loader import DeferredConfig

from .client import Launcher, launcher_command
from .errors import SandboxError
from .provisioner import SandboxProvisioner
from .spec import parse_spec


def _jupyter_server_extension_points() -> list[dict[str, str]]:
    return [{"module": "sandbox_kernel.ahead"}]


def _load_jupyter_server_extension(app: Any) -> None:
    """Called by jupyter_server. A server starts without it, too: what is wrong is logged."""
    try:
        preload = app.config.SandboxProvisioner.get("preload", [])
        if isinstance(preload, DeferredConfig):  # from the command line
            preload = preload.get_value(SandboxProvisioner.class_traits()["preload"])
        modules = parse_spec({"preload": preload}).preload
        Launcher.get(launcher_command(sys.executable, modules), os.environ)
    except SandboxError as error:
        app.log.error("the launcher of sandboxes was not started ahead: %s", error)
