"""What people do in a notebook goes on behind all walls at once."""

from __future__ import annotations

import textwrap

import pytest
from escape.attacks import Arena
from integration.sandboxes import inside
from integration.test_seccomp_filter import WORK
from probes import TIMEOUT_FACTOR

#: What the scripts of that table find there before they begin.
BEFORE = "import mmap, os, signal, socket, stat, sys, tempfile\n"
MORE = {
    "threads that compute": """
        import threading
        import numpy
        a = numpy.ones((400, 400))
        threads = [threading.Thread(target=lambda: a @ a) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        """,
    "signals and timers": """
        import time
        seen = []
        signal.signal(signal.SIGALRM, lambda *_: seen.append(1))
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        time.sleep(0.05)
        assert seen
        """,
    "a few inotify watches": """
        import ctypes
        libc = ctypes.CDLL(None)
        fds = [libc.inotify_init() for _ in range(4)]
        assert all(libc.inotify_add_watch(fd, b".", 0x100) > 0 for fd in fds)
        """,
}


def work(code: str) -> str:
    """In an interpreter of its own, in a folder that is removed; ``done`` or what it said."""
    import os
    import subprocess
    import sys
    import tempfile

    with tempfile.TemporaryDirectory(dir=os.getcwd()) as folder:
        environment = {**os.environ, "OMP_NUM_THREADS": "2", "TMPDIR": folder}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True,
            text=True,
        )  # fmt: skip
    return "done" if done.returncode == 0 and done.stdout == "done\n" else done.stdout + done.stderr


@pytest.mark.parametrize("name", [*WORK, *MORE])
def test_work_goes_on(name: str, arena: Arena) -> None:
    code = BEFORE + textwrap.dedent({**WORK, **MORE}[name]) + "print('done')\n"
    assert inside(arena.box("work").client, work, code, timeout=90 * TIMEOUT_FACTOR) == "done"


def test_the_debugger_listens(arena: Arena) -> None:
    """As a front end asks for it: the kernel starts debugpy in itself."""
    client = arena.box("work").client
    request = client.session.msg(
        "debug_request", {"type": "request", "seq": 1, "command": "debugInfo", "arguments": {}}
    )
    client.control_channel.send(request)
    reply = client.get_control_msg(timeout=60 * TIMEOUT_FACTOR)
    assert reply["content"]["success"], reply
