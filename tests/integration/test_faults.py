"""A failure or a SIGKILL at every step of set-up, and of every process of a running sandbox.

Whatever fails and wherever: the start says so, nothing is left, and the next kernel starts.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.cells import begin, finish
from integration.remains import (
    Ground,
    caps,
    close_launchers,
    descendants,
    end_of,
    ground,
    kernel_pid,
    wait_for_end,
)
from integration.sandboxes import manager, run_cell, started, value
from integration.steering import Steering, steering
from jupyter_client.manager import KernelManager

from sandbox_kernel import rundir
from sandbox_kernel.client import Sandbox
from sandbox_kernel.engine import messages
from sandbox_kernel.engine.steps import Step
from sandbox_kernel.errors import KernelStartError, NamespaceError, SandboxError, SetupError

STAGE = (Step.NAMESPACES, Step.INIT)
INIT = (
    Step.SOURCES, Step.ROOTFS, Step.PIVOT, Step.CGROUP_NAMESPACE, Step.LINK, Step.PRIVILEGES,
    Step.LANDLOCK, Step.SECCOMP, Step.KERNEL,
)  # fmt: skip
"""Every other step is the supervisor's."""


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
    """The ground, with nothing of a sandbox on it before or after."""
    module_ground.assert_clean("by an earlier test")
    yield module_ground
    module_ground.assert_clean("by this test")


def failing_start(here: Ground, caplog: pytest.LogCaptureFixture) -> SandboxError:
    """Start a kernel, which must fail; what it said. Nothing may be left."""
    km = manager(here.folder, caps())
    with pytest.raises(SandboxError) as caught:
        km.start_kernel(cwd=str(here.work))
    here.assert_clean(f"after: {caught.value}")
    assert km.connection_file and not Path(km.connection_file).exists()
    assert not km.has_kernel
    assert f"the sandbox did not start: {caught.value}" in caplog.text
    return caught.value


def assert_starts(here: Ground) -> None:
    """The next kernel is as good as any."""
    km = manager(here.folder, caps())
    km.start_kernel(cwd=str(here.work))
    assert km.is_alive()
    km.shutdown_kernel(now=True)
    here.assert_clean("by the ordinary start after it")


# -- while it is being built ----------------------------------------------------------------------


@pytest.mark.parametrize("step", Step)
def test_a_failure_is_told_in_its_own_words(
    step: Step, steer: Steering, here: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    steer.at(step, "raise")
    error = failing_start(here, caplog)
    assert f"a failure injected at: {step.value}" in error.message
    steer.go_on()
    assert_starts(here)


def test_a_container_that_cannot_be_moved_leaves_the_audit_log_its_writer(
    steer: Steering, here: Ground
) -> None:
    """It is a child of the supervisor's too, and no part of the container that is given up."""
    log = here.folder / "audit"
    steer.at(Step.JOIN_CGROUP, "raise")
    km = manager(here.folder, caps(audit_log=str(log)))
    with pytest.raises(SandboxError, match=f"a failure injected at: {Step.JOIN_CGROUP.value}"):
        km.start_kernel(cwd=str(here.work))
    log.unlink()
    steer.go_on()
    assert_starts(here)


@pytest.mark.parametrize("step", Step)
def test_a_defect_ends_the_start_and_can_be_found(
    step: Step, steer: Steering, here: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    """Somewhere a person who runs a server looks: the message, its log or its standard error."""
    caplog.set_level("INFO")
    steer.at(step, "crash")
    error = failing_start(here, caplog)
    defect = f"RuntimeError: a defect injected at: {step.value}"
    if step in STAGE:
        assert error.message == (
            "the stage ended before it had forked the init: exited with status 255"
        )
        assert defect in steer.log.read_text()
    elif step is Step.KERNEL:
        assert isinstance(error, KernelStartError)
        assert defect in error.message
    elif step in INIT:
        assert error.message == (
            "the sandbox's pid 1 ended while it was building the walls: it was killed, or met a "
            "defect that the server's log shows"
        )
        assert defect in caplog.text
    else:
        assert error.message == (
            f"the supervisor of the sandbox met a defect: {defect}; remedy: please report it, "
            "with the traceback in the server's log"
        )
        assert defect in steer.log.read_text()
    steer.go_on()
    assert_starts(here)


@pytest.mark.parametrize("step", Step)
def test_a_process_that_is_killed_ends_the_start(
    step: Step, steer: Steering, here: Ground, caplog: pytest.LogCaptureFixture
) -> None:
    steer.at(step, "kill")
    error = failing_start(here, caplog)
    assert len(steer.reached) == 1
    if step in STAGE:
        assert isinstance(error, NamespaceError)
        assert error.message.endswith("before it had forked the init: killed by SIGKILL")
    elif step is Step.KERNEL:
        assert isinstance(error, KernelStartError)
        assert "its pid 1 was killed from outside" in error.message
    elif step in INIT:
        assert isinstance(error, SetupError)
        assert error.message.startswith("the sandbox's pid 1 ended while it was building the walls")
    else:
        assert isinstance(error, KernelStartError)
        assert error.message.startswith("the supervisor ended while it was building the sandbox")
    steer.go_on()
    assert_starts(here)


@pytest.mark.parametrize("step", Step)
def test_a_start_survives_its_launcher(step: Step, steer: Steering, here: Ground) -> None:
    """The kernel comes up and works; the next one gets a launcher that lives."""
    steer.at(step, "kill-launcher")
    with started(here.folder, caps()) as (_, client):
        assert len(steer.reached) == 1
        assert not steer.launcher.lives()
        assert value(client, "6 * 7") == 42
    here.assert_clean("by the kernel without a launcher")
    steer.go_on()
    assert_starts(here)
    assert steer.launcher.lives()


def test_the_last_word_of_a_process_that_read_no_more() -> None:
    """An init that fails while a message to it is under way; a supervisor that gets a signal."""
    ours, theirs = messages.pair()
    with ours:
        with theirs:
            messages.send(ours, {"type": "network"})
            messages.send(theirs, {"type": "failed"})
        assert messages.receive(ours) == ({"type": "failed"}, [])
        assert messages.receive(ours) is None


def test_a_run_time_directory_whose_sockets_another_removes_too(
    here: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Client and launcher both clean up after a supervisor that was killed, at the same time."""
    folder = here.work / "sandbox-kernel" / "kernel.1.2"
    folder.mkdir(parents=True)
    (folder / "k-2").touch()
    monkeypatch.setattr("os.listdir", lambda path: ["k-1", "k-2"])
    rundir.remove(folder)
    monkeypatch.undo()
    assert not folder.exists()


# -- while it runs --------------------------------------------------------------------------------


@pytest.fixture
def plain(here: Ground) -> Iterator[Ground]:
    """Kernels of the launcher that everybody has; it is gone at the end as well."""
    yield here
    close_launchers()
    here.assert_clean("by the launcher")


def sandbox_of(km: KernelManager) -> Sandbox:
    assert km.provisioner is not None
    found: Sandbox = km.provisioner.sandbox  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize(
    ("victim", "ename", "sentence"),
    [
        ("supervisor", "", "the supervisor of the sandbox was killed"),
        ("init", "SandboxLost", "its pid 1 was killed from outside"),
        ("kernel", "KernelCrashed", "the kernel was killed by SIGKILL"),
    ],
)
def test_a_running_sandbox_dies_as_a_whole(
    victim: str, ename: str, sentence: str, plain: Ground
) -> None:
    with started(plain.folder, caps()) as (km, client):
        run_cell(client, "import subprocess; child = subprocess.Popen(['sleep', '1000'])")
        cell = begin(client, "child.wait()")
        running = sandbox_of(km).started
        assert running is not None
        pids = {
            "supervisor": running.supervisor_pid,
            "init": running.init_pid,
            "kernel": kernel_pid(km),
        }
        inside = descendants()
        assert set(pids.values()) < set(inside)
        os.kill(pids[victim], signal.SIGKILL)
        if ename:
            ended = finish(client, cell)
            assert (ended.status, ended.ename) == ("error", ename)
            assert sentence in ended.evalue
        assert wait_for_end(inside) == []
        assert sentence in end_of(km).reason
    plain.assert_clean(f"after a kill of the {victim}")
    assert_starts(plain)


def test_a_supervisor_that_does_not_obey_is_killed(
    plain: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped, it reads no order. Its sandbox ends with it all the same."""
    monkeypatch.setattr("sandbox_kernel.provisioner._KILL_TIMEOUT", 0.2)
    with started(plain.folder, caps()) as (km, _):
        inside = descendants()
        running = sandbox_of(km).started
        assert running is not None
        os.kill(running.supervisor_pid, signal.SIGSTOP)
        km.shutdown_kernel(now=True)
        assert wait_for_end(inside) == []
        assert not km.has_kernel
    plain.assert_clean("by the stopped supervisor")
    assert_starts(plain)
