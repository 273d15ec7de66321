"""Why a kernel ended, as the person who ran the cell reads it."""

from __future__ import annotations

import signal

import pytest

from sandbox_kernel.death import (
    Cause,
    Death,
    TimeCap,
    TimeUp,
    explain,
    human_size,
    human_time,
    of_supervisor,
    tell,
)
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


# -- processes and threads, time ---------------------------------------------------------------

PIDS = Caps(pids=64)


@pytest.mark.parametrize("number", [signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS])
@pytest.mark.parametrize(
    ("caps", "user", "refused", "words"),
    [
        (PIDS, NO_CAPS, 1, "a process or thread was refused for its cap of 64, and"),
        (PIDS, NO_CAPS, 3, "3 processes or threads were refused for its cap of 64, and"),
        (NO_CAPS, Caps(pids=200), 1, "refused for the cap of 200 for all kernels of this user, "),
        (PIDS, Caps(pids=200), 1, "its cap of 64 or the cap of 200 for all kernels of this user, "),
    ],
)
def test_a_crash_in_a_cell_to_which_a_thread_was_refused(
    number: int, caps: Caps, user: Caps, refused: int, words: str
) -> None:
    end = explain(
        ExitStatus(signal=number), caps, CgroupEvents(), CgroupUsage(),
        on_order=False, user=user, refused=refused,
    )  # fmt: skip
    assert (end.cause, end.returncode) == (Cause.PIDS, -number)
    assert words in end.sentence
    assert end.sentence.endswith("; start fewer at once or ask for a larger cap")


@pytest.mark.parametrize("status", [KILLED, ExitStatus(code=1), ExitStatus(signal=signal.SIGSYS)])
def test_who_did_not_crash_did_not_die_of_a_thread_that_was_refused(status: ExitStatus) -> None:
    end = explain(status, PIDS, CgroupEvents(), CgroupUsage(), on_order=False, refused=9)
    assert end.cause is not Cause.PIDS


def test_without_a_refusal_a_crash_is_a_crash() -> None:
    end = explain(ExitStatus(signal=6), PIDS, CgroupEvents(), CgroupUsage(), on_order=False)
    assert end.cause is Cause.CRASHED


@pytest.mark.parametrize(
    ("up", "sentence"),
    [
        (
            TimeUp(TimeCap.CELL, 90, 10),
            "the cell ran longer than its cell_timeout of 1.5 minutes and did not end within 10 "
            "seconds of an interrupt; split its work or ask for a longer time",
        ),
        (
            TimeUp(TimeCap.CELL, 3600),
            "the cell ran longer than its cell_timeout of 1 hour and its kernel did not outlive "
            "the interrupt; split its work or ask for a longer time",
        ),
        (
            TimeUp(TimeCap.LIFETIME, 86400, 10),
            "the kernel has reached its lifetime of 1 day; start it anew to go on",
        ),
        (
            TimeUp(TimeCap.IDLE, 7200),
            "the kernel was not used for its idle_timeout of 2 hours; start it anew to go on",
        ),
    ],
)
def test_a_time_cap_is_told_with_its_key_and_its_length(up: TimeUp, sentence: str) -> None:
    end = explain(KILLED, CAPS, CgroupEvents(oom_kill=1), CgroupUsage(), on_order=False, time_up=up)
    assert end == Death(Cause.TIME, sentence, -9)


def test_who_asks_for_the_end_of_a_kernel_whose_time_is_up_gets_what_he_asked_for() -> None:
    up = TimeUp(TimeCap.IDLE, 60)
    end = explain(KILLED, CAPS, CgroupEvents(), CgroupUsage(), on_order=True, time_up=up)
    assert end.cause is Cause.KILLED


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1, "1 second"), (0.5, "0.5 seconds"), (59, "59 seconds"), (60, "1 minute"),
        (61, "61 seconds"), (90, "1.5 minutes"), (3600, "1 hour"), (5400, "1.5 hours"),
        (86400, "1 day"), (86401, "86401 seconds"), (0.1, "0.1 seconds"),
    ],
)  # fmt: skip
def test_times_for_people(seconds: float, text: str) -> None:
    assert human_time(seconds) == text
