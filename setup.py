"""What pyproject.toml cannot say: the two cffi modules and the tag of the wheel.

``sandbox_kernel.syscalls._lib`` is compiled (API mode) against CPython's limited API, so that one
wheel serves every Python from 3.11 on. ``sandbox_kernel.syscalls._seccomp_abi`` is a Python file
that cffi writes (ABI mode): libseccomp is looked for when a sandbox starts, not when a wheel is
built, and so building needs a C compiler and the headers of Python and nothing else.
"""

from __future__ import annotations

import sys

if sys.platform != "linux":
    raise SystemExit(
        f"sandbox-kernel needs Linux: its walls are namespaces, cgroups and seccomp, "
        f"and {sys.platform} has none of them"
    )

from setuptools import setup  # after the check: what it says needs no setuptools

setup(
    cffi_modules=[
        "sandbox_kernel/syscalls/_build.py:ffibuilder",
        "sandbox_kernel/syscalls/_seccomp_build.py:ffibuilder",
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
