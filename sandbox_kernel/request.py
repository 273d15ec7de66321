"""From a spec and a client's situation to a :class:`~sandbox_kernel.protocol.LaunchRequest`.

One way for both routes, the provisioner's and the foreground command's: they cannot differ in a
wall.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

from jupyter_core.paths import jupyter_config_dir, jupyter_data_dir, jupyter_runtime_dir

from .environment import filter_environment
from .protocol import LaunchRequest
from .spec import SandboxSpec


def build_request(
    spec: SandboxSpec,
    *,
    kernel_id: str,
    connection: Mapping[str, Any],
    cwd: str,
    environment: Mapping[str, str],
    set_by_kernelspec: Iterable[str] = (),
    connection_file: str | None = None,
    arguments: Iterable[str] = (),
) -> LaunchRequest:
    """The request for one kernel.

    ``environment`` is the client's whole environment and leaves most of itself here.
    ``arguments`` are further command-line arguments of the ipykernel inside.
    """
    return LaunchRequest(
        sandbox_id=re.sub(r"[^0-9A-Za-z]", "", kernel_id)[:32] or "kernel",
        spec=dataclasses.replace(spec, hide=(*spec.hide, *jupyter_folders())),
        connection={
            key: value.decode() if isinstance(value, bytes) else value
            for key, value in connection.items()
        },
        cwd=os.path.abspath(cwd),
        environment=filter_environment(environment, spec, set_by_kernelspec=set_by_kernelspec),
        connection_file=os.path.abspath(connection_file) if connection_file else None,
        arguments=tuple(arguments),
    )


def jupyter_folders() -> tuple[str, ...]:
    """Jupyter's own folders of this user: tokens, connection files, code that servers load."""
    folders = (jupyter_config_dir(), jupyter_data_dir(), jupyter_runtime_dir())
    return tuple(dict.fromkeys(os.path.abspath(folder) for folder in folders))
