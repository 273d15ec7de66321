"""A failure or a SIGKILL at every step of set-up, and of every process of a running sandbox.

Whatever fails and wherever: the start says so, nothing is left, and the next kernel starts.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from integration.remains import Ground, caps, close_launchers, descendants, ground, wait_for_end
from integration.sandboxes import (
    TIMEOUT,
    connected,
    manager,
    run_cell,
    started,
    value,
)
from integration.steering import Steering, steering
from jupyter_client.manager import KernelManager

from sandbox_kernel.client import Launcher
from sandbox_kernel.engine.steps import Step
from sandbox_kernel.errors import SandboxError

#: What of a message tells a person who was killed, or where to look.
STAGE = (Step.JOIN_CGROUP, Step.NAMESPACES, Step.INIT)
INIT = (
    Step.SOURCES, Step.ROOTFS, Step.PIVOT, Step.LINK, Step.PRIVILEGES, Step.LANDLOCK, Step.SECCOMP,
    Step.KERNEL,
)  # fmt: skip
SUPERVISOR = tuple(step for step in Step if step not in (*STAGE, *INIT))


@pytest.fixture(scope="module")
def module_ground() -> Iterator[Ground]:
    with ground() as found:
        yield found


@pytest.fixture(scope="module")
def steer(module_ground: Ground) -> Iterator[Steering]:
    """One launcher for all the tests that do not kill it."""
    with steering(module_ground.folder) as steers:
        yield steers


@pytest.fixture
def here(module_ground: Ground) -> Iterator[Ground]:
    """The ground, with no sandbox on it before or after."""
    module_ground.assert_clean("by an earlier test")
    yield module_ground
    module_ground.assert_clean()


@pytest.fixture
def plain(module_ground: Ground) -> Iterator[None]:
    """With the launcher that everybody has."""
    yield
    close_launchers()


def new_manager(here: Ground) -> KernelManager:
    return manager(here.folder, caps())


def failing_start(here: Ground) -> SandboxError:
    """Start a kernel, which must fail; what it said. Nothing may be left."""
    km = new_manager(here)
    with pytest.raises(SandboxError) as caught:
        km.start_kernel(cwd=str(here.work))
    here.assert_clean(f"after: {caught.value}")
    assert km.connection_file and not Path(km.connection_file).exists()
    assert not km.has_kernel
    return caught.value


def starts(here: Ground) -> None:
    """The next kernel is as good as any."""
    km = new_manager(here)
    km.start_kernel(cwd=str(here.work))
    assert km.is_alive()
    km.shutdown_kernel(now=True)
    here.assert_clean("by the ordinary start after it")


@pytest.mark.parametrize("step", Step)
def test_a_failure_is_told_in_its_own_words(step: Step, steer: Steering, here: Ground) -> None:
    steer.at(step, "raise")
    error = failing_start(here)
    assert f"a failure injected at: {step.value}" in error.message
    steer.go_on()
    starts(here)


@pytest.mark.parametrize("step", Step)
def test_a_defect_ends_the_start(step: Step, steer: Steering, here: Ground) -> None:
    steer.at(step, "crash")
    print(failing_start(here).message)
    steer.go_on()
    starts(here)


@pytest.mark.parametrize("step", Step)
def test_a_process_that_is_killed_ends_the_start(
    step: Step, steer: Steering, here: Ground
) -> None:
    steer.at(step, "kill")
    print(failing_start(here).message)
    assert len(steer.reached) == 1
    steer.go_on()
    starts(here)


@pytest.mark.parametrize("step", Step)
def test_a_start_survives_its_launcher(step: Step, steer: Steering, here: Ground) -> None:
    steer.at(step, "kill-launcher")
    km = new_manager(here)
    km.start_kernel(cwd=str(here.work))
    assert len(steer.reached) == 1
    assert not Launcher._running[steer.command].lives()
    with connected(km) as client:
        assert value(client, "6 * 7") == 42
    km.shutdown_kernel()
    here.assert_clean()
    steer.go_on()
    starts(here)
    assert Launcher._running[steer.command].lives()
