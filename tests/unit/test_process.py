"""How processes end, and what of the parent a child keeps. Each fork is in a process of its own."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

import sandbox_kernel
from sandbox_kernel.engine.process import KERNEL_RLIMITS, ExitStatus
from sandbox_kernel.spec import RLIMITS

ROOT = Path(sandbox_kernel.__file__).parents[1]
PROLOGUE = """
import json, os, resource, signal, sys
from sandbox_kernel.engine import process
from sandbox_kernel.engine.process import ExitStatus
def tell(value):
    os.write(1, json.dumps(value).encode())
"""


def run(code: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    """Run ``code`` in a fresh interpreter; ``tell(x)`` in it writes JSON to the output."""
    return subprocess.run(
        [sys.executable, "-c", PROLOGUE + textwrap.dedent(code)],
        env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        **kwargs,
    )


def told(code: str, **kwargs: Any) -> Any:
    result = run(code, **kwargs)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


# -- ExitStatus --------------------------------------------------------------------------------


def wait_status(command: str) -> int:
    """The status word of a real child."""
    pid = os.posix_spawn("/bin/sh", ["sh", "-c", command], {})
    return os.waitpid(pid, 0)[1]


@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_a_child_that_exits(code: int) -> None:
    status = ExitStatus.from_wait(wait_status(f"exit {code}"))
    assert status == ExitStatus(code=code)
    assert status.returncode == code
    assert status.describe() == f"exited with status {code}"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGSYS])
def test_a_child_that_is_killed(number: signal.Signals) -> None:
    status = ExitStatus.from_wait(wait_status(f"ulimit -c 0; kill -{int(number)} $$"))
    assert status == ExitStatus(signal=number)
    assert status.returncode == -number
    assert status.describe() == f"killed by {number.name}"


def test_a_core_dump_changes_nothing() -> None:
    assert ExitStatus.from_wait(signal.SIGSEGV | 0x80) == ExitStatus(signal=signal.SIGSEGV)


def test_a_signal_without_a_name() -> None:
    unnamed = next(n for n in range(1, 65) if n not in list(signal.Signals))
    assert ExitStatus(signal=unnamed).describe() == f"killed by signal {unnamed}"


def test_nothing_known_is_no_success() -> None:
    assert ExitStatus().returncode == 255


# -- forks -------------------------------------------------------------------------------------


def test_a_fork_ends_with_the_result() -> None:
    code = """
        pid = process.fork_into(lambda: 7)
        tell(ExitStatus.from_wait(os.waitpid(pid, 0)[1]).returncode)
    """
    assert told(code) == 7


@pytest.mark.parametrize(
    "raised", ["ValueError('why')", "SystemExit(0)", "KeyboardInterrupt()", "GeneratorExit()"]
)
def test_a_fork_never_returns_twice(raised: str) -> None:
    """Neither the handler nor the ``finally`` nor the atexit of the parent runs in the child."""
    code = f"""
        import atexit
        atexit.register(os.write, 2, b"<atexit>")
        def child():
            raise {raised}
        try:
            pid = process.fork_into(child)
        except BaseException:
            os.write(2, b"<handler>")
        finally:
            os.write(2, b"<finally>")
        tell(ExitStatus.from_wait(os.waitpid(pid, 0)[1]).returncode)
    """
    result = run(code)
    assert result.stdout == "255"  # never the 0 of SystemExit(0)
    assert raised.partition("(")[0] in result.stderr
    for word in ("<atexit>", "<finally>"):
        assert result.stderr.count(word) == 1
    assert "<handler>" not in result.stderr


def test_exit_now_runs_nothing_that_was_registered() -> None:
    result = run("import atexit; atexit.register(print, 'no'); process.exit_now(9)")
    assert (result.returncode, result.stdout) == (9, "")


# -- descriptors -------------------------------------------------------------------------------

OPEN_TEN = """
    for _ in range(10):
        os.open("/dev/null", os.O_RDONLY)
    os.dup2(3, 900, inheritable=False)
    def listed():
        names = os.listdir("/proc/self/fd")
        return sorted(int(n) for n in names if os.path.lexists(f"/proc/self/fd/{n}"))
    assert {3, 5, 6, 12, 900} < set(listed())
"""  # fmt: skip


@pytest.mark.parametrize(
    ("keep", "left"),
    [
        ([0, 1, 2], [0, 1, 2]),
        ([1], [1]),
        ([1, 2, 5, 6, 9], [1, 2, 5, 6, 9]),
        ([9, 1, 5, 1, 5], [1, 5, 9]),
        ([1, 900], [1, 900]),
        ([1, 899], [1]),  # what is not open may be named
    ],
)
def test_nothing_but_what_is_kept_stays_open(keep: list[int], left: list[int]) -> None:
    code = textwrap.dedent(OPEN_TEN) + f"process.close_all_but({keep})\ntell(listed())"
    assert told(code) == left


def test_nothing_kept_nothing_open() -> None:
    code = textwrap.dedent(OPEN_TEN) + textwrap.dedent(
        """
        process.close_all_but([])
        os._exit(33 if listed() == [] else 1)
        """
    )
    assert run(code).returncode == 33


# -- signals -----------------------------------------------------------------------------------


def test_signals_are_as_an_interpreter_starts() -> None:
    code = """
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, lambda number, frame: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGUSR2})
        read_end, write_end = os.pipe2(os.O_NONBLOCK)
        signal.set_wakeup_fd(write_end)
        process.default_signals()
        names = ("SIGCHLD", "SIGTERM", "SIGUSR1", "SIGHUP", "SIGPIPE", "SIGRTMAX")
        tell({
            "handlers": {n: int(signal.getsignal(signal.Signals[n])) for n in names},
            "interrupt": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
            "blocked": [int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
            "wakeup": signal.set_wakeup_fd(-1),
        })
    """
    state = told(code)
    assert state["handlers"] == {
        "SIGCHLD": 0, "SIGTERM": 0, "SIGUSR1": 0, "SIGHUP": 0, "SIGPIPE": 1, "SIGRTMAX": 0,
    }  # fmt: skip
    assert state["interrupt"] is True
    assert state["blocked"] == []
    assert state["wakeup"] == -1


def test_a_child_dies_with_its_parent() -> None:
    """The child holds the only other end of the output: its end of file is the child's death."""
    code = """
        read_end, write_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            process.die_with_parent()
            os.write(1, b"ready")
            signal.pause()
            os._exit(0)
        signal.pause()
    """
    with subprocess.Popen(
        [sys.executable, "-c", PROLOGUE + textwrap.dedent(code)],
        env={"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        assert parent.stdout.read(5) == b"ready"
        parent.kill()
        assert parent.stdout.read() == b""


# -- limits ------------------------------------------------------------------------------------

READ_LIMITS = "tell([list(resource.getrlimit(kind)) for kind, _ in process.KERNEL_RLIMITS])"


def test_rlimits_are_what_the_table_says_or_what_was_less() -> None:
    before = told(READ_LIMITS)
    after = told("process.apply_rlimits()\n" + READ_LIMITS)
    infinity = resource.RLIM_INFINITY
    for (kind, value), (soft, hard), (new_soft, new_hard) in zip(
        KERNEL_RLIMITS, before, after, strict=True
    ):
        assert new_hard == (value if hard == infinity else min(value, hard)), kind
        assert new_soft == (new_hard if soft == infinity else min(soft, new_hard)), kind


def test_a_limit_is_never_raised() -> None:
    low = """
        for kind, value in process.KERNEL_RLIMITS:
            hard = min(value, 100)
            resource.setrlimit(kind, (min(hard, 40), hard))
        process.apply_rlimits()
    """
    limits = told(textwrap.dedent(low) + READ_LIMITS)
    expected = [[min(40, value), min(100, value)] for _, value in KERNEL_RLIMITS]
    assert limits == expected


def test_what_was_asked_for_lowers_further_and_never_raises() -> None:
    code = """
        asked = [("nofile", 99), ("fsize", 12345), ("rtprio", 50), ("core", 2**30)]
        process.apply_rlimits(asked)
        process.apply_rlimits([(name, value * 2) for name, value in asked])
        names = ("NOFILE", "FSIZE", "RTPRIO", "CORE")
        tell([resource.getrlimit(getattr(resource, "RLIMIT_" + name))[1] for name in names])
    """
    assert told(textwrap.dedent(code)) == [99, 12345, 0, 1]


def test_every_limit_of_a_spec_has_a_number() -> None:
    assert [name for name in RLIMITS if not hasattr(resource, f"RLIMIT_{name.upper()}")] == []


def test_what_holds_a_key_leaves_no_core() -> None:
    code = """
        process.no_core_dump()
        import ctypes
        get_dumpable = 3
        dumpable = ctypes.CDLL(None).prctl(get_dumpable, 0, 0, 0, 0)
        tell([list(resource.getrlimit(resource.RLIMIT_CORE)), dumpable])
    """
    assert told(code) == [[1, 1], 0]
