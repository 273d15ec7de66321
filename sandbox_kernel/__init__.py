"""Jupyter kernels inside rootless Linux containers.

Importing this package starts nothing. The entry point ``sandbox-provisioner`` is
:class:`sandbox_kernel.provisioner.SandboxProvisioner`.
"""

from __future__ import annotations

__version__ = "0.1.0"
