"""Where the time of a start goes: when each step of set-up begins, and what the kernel does.

    python tests/bench/start_timeline.py [--rounds 10 | --long]

The launcher is one that writes each step down, with the clock that all namespaces share. Medians
over the rounds, in milliseconds since ``start_kernel``.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from _measure import parser, rounds
from _peers import Sandboxed, ask, own_folder

#: Methods of the kernel's application, in their order: each is written down when it is called.
TOLD = 100  # a descriptor that every process on the way leaves open
METHODS = (
    "initialize", "init_sockets", "init_heartbeat", "init_io", "init_kernel", "init_shell", "start",
)  # fmt: skip


def launcher(path: str, arguments: list[str]) -> int:
    from ipykernel.ipkernel import IPythonKernel
    from ipykernel.kernelapp import IPKernelApp

    from sandbox_kernel import launcher
    from sandbox_kernel.engine import process, steps

    os.dup2(os.open(path, os.O_WRONLY), TOLD)
    close_all_but = process.close_all_but
    process.close_all_but = lambda keep: close_all_but([*keep, TOLD])  # type: ignore[assignment]

    def mark(name: str) -> None:
        os.write(TOLD, json.dumps([time.time_ns(), os.getpid(), name]).encode() + b"\n")

    def marked(cls: Any, name: str) -> None:
        method: Callable[..., Any] = getattr(cls, name)

        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            mark(f"kernel: {name}")
            return method(self, *args, **kwargs)

        setattr(cls, name, call)

    for name in METHODS:
        marked(IPKernelApp, name)
    marked(IPythonKernel, "kernel_info_request")
    steps.observe(lambda step: mark(f"{step.name}"))
    return launcher.main(arguments)


def main() -> None:
    options = parser(__doc__).parse_args()
    found: dict[str, list[float]] = {}
    with own_folder() as folder:
        path = str(folder / "told")
        os.mkfifo(path)
        pipe = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        command = (sys.executable, "-Xfrozen_modules=off", __file__, "--launcher", path)
        from sandbox_kernel.provisioner import SandboxProvisioner

        SandboxProvisioner._launcher_command = command
        peer = Sandboxed(folder, "zygote")
        for turn in range(rounds(options, 10, 50) + 1):
            km = peer.manager()
            begin = time.time_ns()
            peer.start(km)
            there = time.time_ns()
            ask(km)
            answered = time.time_ns()
            km.shutdown_kernel(now=True)
            marks = {"start_kernel returns": there, "reply": answered}
            for line in os.read(pipe, 65536).splitlines():
                when, _, what = json.loads(line)
                marks.setdefault(what, when)
            if turn:
                for what, when in marks.items():
                    found.setdefault(what, []).append((when - begin) / 1e6)
    last = 0.0
    for what, times in sorted(found.items(), key=lambda item: statistics.median(item[1])):
        at = statistics.median(times)
        print(f"{at:8.1f}  +{at - last:6.1f}  {what}")
        last = at


if __name__ == "__main__":
    if sys.argv[1:2] == ["--launcher"]:
        sys.exit(launcher(sys.argv[2], sys.argv[3:]))
    main()
