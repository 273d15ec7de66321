"""Why a kernel ended, as the person who ran the cell reads it."""

from __future__ import annotations

import signal

import pytest

from sandbox_kernel.death import Cause, Death, explain, human_size, of_supervisor, tell
from sandbox_kernel.engine.cgroups import CgroupEvents, CgroupUsage
from sandbox_kernel.engine.process import ExitStatus
from sandbox_kernel.spec import GIB, MIB, Caps

KILLED = ExitStatus(signal=signal.SIGKILL)
NO_CAPS = Caps()
CAPS = Caps(memory=512 * MIB)


def death(
    status: ExitStatus | None,
    events: CgroupEvents | None = None,
    *,
    caps: Caps = CAPS,
    usage: CgroupUsage | None = None,
    on_order: bool = False,
) -> Death:
    return explain(
        status, caps, events or CgroupEvents(), usage or CgroupUsage(), on_order=on_order
    )


# -- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("events", "above"),
    [
        (CgroupEvents(oom_kill=1, oom=1, oom_above=0, memory_limit=3, memory_limit_above=9), False),
        (CgroupEvents(oom_kill=1, oom=0, oom_above=1, memory_limit=3, memory_limit_above=9), True),
        (CgroupEvents(oom_kill=1, memory_limit=3, memory_limit_above=9), False),
        (CgroupEvents(oom_kill=1, memory_limit=0, memory_limit_above=9), True),
    ],
)
def test_with_both_caps_the_one_that_killed_is_told(events: CgroupEvents, above: bool) -> None:
    """Both were reached before; what counts is at which somebody had to be killed."""
    end = explain(KILLED, CAPS, events, CgroupUsage(), on_order=False, user=Caps(memory=2 * GIB))
    user = "all kernels of this user together used the memory they may use (2 GiB)"
    assert end.sentence.startswith(user) is above
    assert end.sentence.startswith("the kernel reached its memory cap of 512 MiB") is not above


@pytest.mark.parametrize(
    ("events", "lines"),
    [
        (CgroupEvents(), []),
        (
            CgroupEvents(oom_kill=1, oom=1),
            ["a process was killed: the kernel reached its memory cap of 512 MiB, peak 512 MiB"],
        ),
        (
            CgroupEvents(oom_kill=2, oom_above=1),
            ["2 processes were killed: all kernels of this user together used the memory they may "
             "use (2 GiB), peak 512 MiB"],
        ),
        (CgroupEvents(pids_limit=7), ["a new process or thread was refused: the cap is 64"]),
        (CgroupEvents(memory_high=7), ["slowed down: it uses more than memory_high, 256 MiB"]),
    ],
)  # fmt: skip
def test_what_the_log_says_of_a_kernel_that_lives_on(
    events: CgroupEvents, lines: list[str]
) -> None:
    caps = Caps(memory=512 * MIB, memory_high=256 * MIB, pids=64)
    usage = CgroupUsage(memory_peak=512 * MIB)
    assert tell(events, caps, usage, user=Caps(memory=2 * GIB)) == lines


@pytest.mark.parametrize(
    ("caps", "events", "usage", "sentence"),
    [
        (
            CAPS,
            CgroupEvents(oom_kill=1, memory_limit=9),
            CgroupUsage(memory_peak=512 * MIB),
            "the kernel reached its memory cap of 512 MiB, peak 512 MiB",
        ),
        (
            CAPS,
            CgroupEvents(oom_kill=1, memory_limit=9, memory_limit_above=2),
            CgroupUsage(),
            "the kernel reached its memory cap of 512 MiB",
        ),
        (
            CAPS,
            CgroupEvents(oom_kill=1, memory_limit=0, memory_limit_above=2),
            CgroupUsage(memory_peak=300 * MIB),
            "all kernels of this user together used the memory they may use, peak 300 MiB",
        ),
        (
            NO_CAPS,
            CgroupEvents(oom_kill=1),
            CgroupUsage(memory_peak=7 * GIB),
            "the machine ran out of memory, peak 7 GiB",
        ),
    ],
)
@pytest.mark.parametrize("status", [KILLED, None])
def test_out_of_memory_says_whose_cap_and_the_peak(
    caps: Caps,
    events: CgroupEvents,
    usage: CgroupUsage,
    sentence: str,
    status: ExitStatus | None,
) -> None:
    end = death(status, events, caps=caps, usage=usage)
    assert end.cause is Cause.MEMORY
    assert end.sentence == f"{sentence}; use less data at once or ask for a larger cap"
    assert end.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    "status", [ExitStatus(code=0), ExitStatus(code=1), ExitStatus(signal=signal.SIGSEGV)]
)
def test_a_child_that_was_killed_for_memory_is_not_the_kernels_death(status: ExitStatus) -> None:
    assert death(status, CgroupEvents(oom_kill=1, memory_limit=1)).cause is not Cause.MEMORY


@pytest.mark.parametrize("oom_kill", [0, None])
def test_a_limit_that_was_reached_without_a_kill_is_no_cause(oom_kill: int | None) -> None:
    end = death(KILLED, CgroupEvents(oom_kill=oom_kill, memory_limit=50))
    assert end.cause is Cause.CRASHED
    assert "memory" not in end.sentence


# -- all the rest ------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0, 1, 255])
def test_a_kernel_that_exits(code: int) -> None:
    end = death(ExitStatus(code=code))
    assert (end.cause, end.returncode) == (Cause.EXITED, code)
    assert end.sentence.startswith(f"the kernel exited by itself with status {code}")


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL, signal.SIGBUS])
def test_a_kernel_that_crashes(number: signal.Signals) -> None:
    end = death(ExitStatus(signal=number))
    assert (end.cause, end.returncode) == (Cause.CRASHED, -number)
    assert end.sentence.startswith(f"the kernel was killed by {number.name}: native code")


def test_a_forbidden_system_call() -> None:
    end = death(ExitStatus(signal=signal.SIGSYS))
    assert (end.cause, end.returncode) == (Cause.SYSCALL, -signal.SIGSYS)
    assert "system call" in end.sentence and "filter" in end.sentence


def test_the_sandbox_is_lost() -> None:
    end = death(None)
    assert (end.cause, end.returncode) == (Cause.LOST, -signal.SIGKILL)
    assert "pid 1 was killed from outside" in end.sentence


_NO_MEMORY = "more memory than it may use"


@pytest.mark.parametrize(
    ("number", "why"), [(5, _NO_MEMORY), (6, _NO_MEMORY), (11, _NO_MEMORY), (9, ""), (31, "")]
)
def test_the_supervisor_is_lost(number: int, why: str) -> None:
    end = of_supervisor(ExitStatus(signal=number))
    assert (end.cause, end.returncode) == (Cause.LOST, -number)
    name = signal.Signals(number).name
    assert end.sentence.startswith(f"the supervisor of the sandbox was killed by {name}")
    assert why in end.sentence and ("memory" in end.sentence) == bool(why)
    assert end.sentence.endswith("the kernel ended with it")


@pytest.mark.parametrize(
    ("status", "code"),
    [(None, -9), (KILLED, -9), (ExitStatus(code=0), 0), (ExitStatus(signal=11), -11)],
)
def test_an_end_that_was_asked_for_is_never_blamed_on_the_notebook(
    status: ExitStatus | None, code: int
) -> None:
    end = death(status, CgroupEvents(oom_kill=3, memory_limit=3), on_order=True)
    assert end == Death(Cause.KILLED, "the kernel was ended as asked", code)


def test_the_traceback_of_a_frontend() -> None:
    end = death(ExitStatus(signal=signal.SIGSYS))
    assert end.traceback() == [f"ForbiddenSyscall: {end.sentence}"]


def test_every_cause_has_a_name_that_reads_like_an_exception() -> None:
    names = [cause.value for cause in Cause]
    assert len(set(names)) == len(names)
    assert all(name.isidentifier() and name[0].isupper() for name in names)


@pytest.mark.parametrize(
    "events", [CgroupEvents(), CgroupEvents(oom_kill=1), CgroupEvents(1, 1, 1)]
)
@pytest.mark.parametrize("status", [None, KILLED, ExitStatus(code=3), ExitStatus(signal=31)])
@pytest.mark.parametrize("on_order", [True, False])
def test_every_death_is_one_lower_case_sentence(
    events: CgroupEvents, status: ExitStatus | None, on_order: bool
) -> None:
    end = death(status, events, on_order=on_order)
    assert end.sentence[0].islower() and not end.sentence.endswith(".")
    assert "\n" not in end.sentence and "None" not in end.sentence
    assert end.returncode == (status.returncode if status else -9)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (10 * MIB, "10 MiB"),
        (512 * MIB, "512 MiB"),
        (GIB, "1 GiB"),
        (GIB + GIB // 2, "1.5 GiB"),
        (100 * GIB, "100 GiB"),
        (5000 * GIB, "5000 GiB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert human_size(size) == text
