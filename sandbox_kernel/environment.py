"""Which environment variables reach a kernel: an allow-list, never a deny-list.

A server's environment holds what no kernel may see: the Hub's API token, cloud keys, database
passwords. Only the names below, those that the kernelspec sets itself and those that the spec
names in ``env_pass`` get through; what describes the sandbox is set here. Nothing from the
client's environment becomes a cap.
"""

from __future__ import annotations

import math
import os
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Final

from .caps import Caps, parse_numbers
from .spec import SandboxSpec

#: Names that carry no secret and change how a program looks, counts or speaks.
ALLOWED: Final = frozenset(
    {
        "COLORTERM", "JPY_SESSION_NAME", "LANG", "LANGUAGE", "NO_COLOR", "TERM", "TZ",
        "GOTO_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "OMP_NUM_THREADS",
        "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "OPENBLAS_NUM_THREADS",
        "VECLIB_MAXIMUM_THREADS", "MPLBACKEND",
    }
)  # fmt: skip
_ALLOWED_PATTERN: Final = re.compile(r"LC_[A-Z]+")

#: How many threads a library starts, where it would start one for each CPU of the host: a quota
#: (``cpus``) is seen by none of them. ``PYTHON_CPU_COUNT`` is read by a Python that starts, so it
#: holds for what the kernel runs, and not for the kernel itself.
THREADS: Final = (
    "BLIS_NUM_THREADS", "LOKY_MAX_CPU_COUNT", "MKL_NUM_THREADS", "NUMEXPR_MAX_THREADS",
    "NUMEXPR_NUM_THREADS", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "POLARS_MAX_THREADS",
    "PYTHON_CPU_COUNT", "RAYON_NUM_THREADS",
)  # fmt: skip

#: Set by the sandbox itself; neither the kernelspec nor ``env_pass`` can change them.
RESERVED: Final = frozenset(
    {
        "HOME", "IPYTHONDIR", "JPY_INTERRUPT_EVENT", "JPY_PARENT_PID", "JUPYTER_RUNTIME_DIR",
        "LOGNAME", "SHELL", "TMPDIR", "USER", "XDG_RUNTIME_DIR",
    }
)  # fmt: skip

#: What the launcher itself needs. Nothing that steers the dynamic linker or the interpreter.
_LAUNCHER: Final = ("LANG", "LANGUAGE", "TZ", "HOME", "SANDBOX_KERNEL_CGROUP")


def filter_environment(
    source: Mapping[str, str], spec: SandboxSpec, *, set_by_kernelspec: Iterable[str] = ()
) -> dict[str, str]:
    """What of ``source`` reaches the kernel. Called by the client, before anything is sent.

    With a cap on ``cpus`` the server's own numbers of threads stay outside: they were meant for the
    server, and :func:`complete_environment` sets the kernel's.
    """
    named = {*set_by_kernelspec, *spec.env_pass} - RESERVED
    allowed = ALLOWED.difference(THREADS) if spec.caps.cpus is not None else ALLOWED
    return {
        name: value
        for name, value in source.items()
        if name in named or name in allowed or _ALLOWED_PATTERN.fullmatch(name)
    }


def complete_environment(
    filtered: Mapping[str, str], spec: SandboxSpec, *, user: str, home: str, uid: int
) -> dict[str, str]:
    """The kernel's whole environment. Called by the supervisor, in the kernel's own interpreter."""
    run = f"/run/user/{uid}"
    path = f"{os.path.dirname(sys.executable)}:/usr/local/bin:/usr/bin:/bin"
    environment = {"LANG": "C.UTF-8", "TERM": "xterm-color", "PATH": path}
    if spec.caps.cpus is not None:
        environment |= dict.fromkeys(THREADS, str(threads_for(spec.caps)))
    environment |= filtered
    environment |= {
        "HOME": home,
        "USER": user,
        "LOGNAME": user,
        "SHELL": "/bin/bash",
        "XDG_RUNTIME_DIR": run,
        "JUPYTER_RUNTIME_DIR": f"{run}/jupyter",
        "IPYTHONDIR": f"{run}/ipython",
    }
    if spec.caps.memory is not None:
        environment["MEM_LIMIT"] = str(spec.caps.memory)
    if spec.caps.cpus is not None:
        environment["CPU_LIMIT"] = f"{spec.caps.cpus:g}"
    return environment


def threads_for(caps: Caps) -> int:
    """How many threads are of use to a kernel with a cap on ``cpus``: that, rounded up.

    No more than there are CPUs that it may run on.
    """
    usable = os.sched_getaffinity(0)
    if caps.cpuset_cpus is not None:
        usable &= parse_numbers(caps.cpuset_cpus) or frozenset()
    return max(1, min(math.ceil(caps.cpus or 1), len(usable)))


def launcher_environment(source: Mapping[str, str]) -> dict[str, str]:
    """The launcher's own environment: bare, since every kernel is forked with a copy."""
    kept = {name: source[name] for name in _LAUNCHER if name in source}
    kept |= {n: v for n, v in source.items() if _ALLOWED_PATTERN.fullmatch(n)}
    return {"LANG": "C.UTF-8", **kept, "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}


def user_buses(source: Mapping[str, str]) -> tuple[str, ...]:
    """The D-Bus addresses on which this user's systemd may be, the surest first.

    Called by the client: they go with the request, so that neither variable is in the launcher's
    environment, a copy of which every kernel can read in ``/proc``.
    """
    found = []
    run = source.get("XDG_RUNTIME_DIR", "")
    if run.startswith("/"):
        escaped = re.sub(r"[%,;=\\]", lambda match: f"%{ord(match[0]):02x}", run)
        # Its own socket needs no bus; it is what systemctl --user talks to.
        found += [f"unix:path={escaped}/systemd/private", f"unix:path={escaped}/bus"]
    if bus := source.get("DBUS_SESSION_BUS_ADDRESS"):
        found.append(bus)
    return tuple(dict.fromkeys(found))
