"""The kernelspec's argv, run by hand as front ends do that know nothing of provisioners.

VS Code, nteract, Spyder and Zed write a connection file, run the command and connect to the ports.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from integration import constrained
from integration.cells import begin, finish
from integration.constrained import Lack
from integration.remains import (
    PATIENCE,
    Ground,
    caps,
    close_launchers,
    descendants,
    ground,
    wait_for_end,
)
from integration.sandboxes import TIMEOUT, run_cell, started, value, write_kernelspec
from jupyter_client.blocking.client import BlockingKernelClient
from jupyter_client.connect import write_connection_file

NAME = "sandboxed-python"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ground]:
    """With the one kernelspec that the command finds."""
    with ground() as found:
        write_kernelspec(found.folder, caps(), name=NAME, argv=shipped_argv())
        monkeypatch.setenv("JUPYTER_PATH", str(found.folder))
        monkeypatch.delenv("JPY_PARENT_PID", raising=False)
        yield found
        close_launchers()
        (found.folder / "jupyter" / "kernel.json").unlink(missing_ok=True)  # the front end's
        found.assert_clean("by the command")


def shipped_argv() -> list[str]:
    """That of the kernelspec that is installed with the package, for this interpreter."""
    shipped = Path(__file__).parents[2] / "kernelspec" / NAME / "kernel.json"
    python, *words = json.loads(shipped.read_text())["argv"]
    assert python == "python"
    return [sys.executable, *words]


@dataclass
class FrontEnd:
    """What a front end holds of one kernel: its process and a client."""

    process: subprocess.Popen[str]
    client: BlockingKernelClient
    connection_file: str

    def output(self) -> str:
        """Wait for the end; what it said on standard error."""
        return self.process.communicate(timeout=PATIENCE)[1]


def connection_file(here: Ground, **fields: Any) -> str:
    """As a front end writes it: tcp on the loopback device, on free ports."""
    path = str(here.folder / "jupyter" / "kernel.json")
    write_connection_file(path, ip="127.0.0.1", key=b"secret", **fields)
    return path


def command(here: Ground, path: str) -> list[str]:
    """The argv of the kernelspec, with the connection file put in."""
    kernelspec = json.loads((here.folder / "kernels" / NAME / "kernel.json").read_text())
    return [word.format(connection_file=path) for word in kernelspec["argv"]]


def wait_for_ready(client: BlockingKernelClient, process: subprocess.Popen[str]) -> None:
    """The client takes a kernel for dead that does not answer within a second of its own start."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        try:
            client.wait_for_ready(timeout=TIMEOUT)
            return
        except RuntimeError:
            assert process.poll() is None
            assert time.monotonic() < deadline


@contextlib.contextmanager
def running(here: Ground, **environment: str) -> Iterator[FrontEnd]:
    path = connection_file(here)
    with subprocess.Popen(
        command(here, path), cwd=here.work, env={**os.environ, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        client = BlockingKernelClient()
        client.load_connection_file(path)
        client.start_channels()
        try:
            wait_for_ready(client, process)
            yield FrontEnd(process, client, path)
        finally:
            client.stop_channels()
            process.kill()
            process.communicate(timeout=PATIENCE)


# -- the same sandbox -----------------------------------------------------------------------------

LOOK = """
import json as _json, os as _os, re as _re, socket as _socket
def _read(path):
    with open(path) as file: return file.read()
def _status(*names):
    lines = dict(line.split(":", 1) for line in _read("/proc/self/status").splitlines())
    return {name: lines[name].strip() for name in names}
print(_json.dumps({
    "pid": _os.getpid(),
    "pids": sorted(p for p in _os.listdir("/proc") if p.isdigit()),
    "uid_map": _read("/proc/self/uid_map").split(),
    "gid_map": _read("/proc/self/gid_map").split(),
    "setgroups": _read("/proc/self/setgroups"),
    "status": _status("Uid", "Gid", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs",
                      "Seccomp", "Seccomp_filters"),
    "mounts": [" ".join(line.split()[3:6]) + line[line.index(" - "):]
               for line in _read("/proc/self/mountinfo").splitlines()],
    "interfaces": [name for _, name in _socket.if_nameindex()],
    "hostname": _socket.gethostname(),
    "cwd": _os.getcwd(),
    "environment": dict(_os.environ),
    "cgroup": _read("/proc/self/cgroup"),
    "descriptors": sorted(_os.readlink(f"/proc/self/fd/{n}").split(":")[0]
                          for n in ("0", "1", "2")),
}))
"""


def test_it_is_the_same_sandbox(here: Ground) -> None:
    with running(here) as front_end:
        cell = run_cell(front_end.client, LOOK)
        assert cell.ok, cell.evalue
        by_hand = json.loads(cell.stdout)
    with started(here.folder, caps(), cwd=here.work) as (_, client):
        by_provisioner = json.loads(run_cell(client, LOOK).stdout)
    for name in by_hand:
        assert _comparable(by_hand[name]) == _comparable(by_provisioner[name]), name
    assert by_hand["pid"] == 2
    assert by_hand["pids"] == ["1", "2"]
    uid = str(os.getuid())
    assert by_hand["uid_map"] == [uid, uid, "1"]
    assert by_hand["status"]["NoNewPrivs"] == "1"
    assert by_hand["status"]["Seccomp"] == "2"
    assert {v for k, v in by_hand["status"].items() if k.startswith("Cap")} == {"0" * 16}
    assert by_hand["interfaces"] == ["lo", "eth0"]
    assert by_hand["cwd"] == str(here.work)


def _comparable(fact: Any) -> Any:
    """Without what differs between any two kernels, however they were started."""
    if isinstance(fact, dict):
        return {name: setting for name, setting in fact.items() if name != "JPY_SESSION_NAME"}
    return fact


# -- signals and ends -----------------------------------------------------------------------------


def test_sigint_interrupts_the_cell(here: Ground) -> None:
    with running(here) as front_end:
        cell = begin(front_end.client, "import time; time.sleep(600)")
        front_end.process.send_signal(signal.SIGINT)
        assert finish(front_end.client, cell).ename == "KeyboardInterrupt"
        assert value(front_end.client, "1 + 1") == 2


def test_sigterm_ends_it(here: Ground) -> None:
    with running(here) as front_end:
        inside = descendants(front_end.process.pid)
        assert len(inside) >= 4  # launcher, supervisor, init, kernel
        front_end.process.send_signal(signal.SIGTERM)
        assert front_end.output() == "sandbox-kernel: the kernel was ended as asked\n"
        assert front_end.process.returncode == 1
        assert wait_for_end(inside) == []


def test_a_shutdown_request_ends_it_in_good_order(here: Ground) -> None:
    with running(here) as front_end:
        inside = descendants(front_end.process.pid)
        front_end.client.shutdown(reply=True, timeout=TIMEOUT)
        assert front_end.output() == ""
        assert front_end.process.returncode == 0
        assert wait_for_end(inside) == []


def test_its_status_is_the_kernel_s(here: Ground) -> None:
    with running(here) as front_end:
        cell = run_cell(front_end.client, "import os; os._exit(3)")
        assert cell.ename == "KernelExited"
        assert f"sandbox-kernel: {cell.evalue}\n" == front_end.output()
        assert front_end.process.returncode == 3


def test_it_ends_with_its_front_end(here: Ground) -> None:
    """The one that says that its kernels end with it."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as parent:
        with running(here, JPY_PARENT_PID=str(parent.pid)) as front_end:
            inside = descendants(front_end.process.pid)
            assert run_cell(front_end.client, "1").ok
            parent.kill()
            assert wait_for_end([*inside, front_end.process.pid]) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_kill_of_the_command_leaves_nothing(number: signal.Signals, here: Ground) -> None:
    """Also where it was stopped before, as by Ctrl-Z."""
    with running(here) as front_end:
        begin(front_end.client, "import time; time.sleep(600)")
        inside = descendants(front_end.process.pid)
        assert len(inside) >= 4
        front_end.process.send_signal(number)
        front_end.process.kill()
        assert wait_for_end([*inside, front_end.process.pid]) == []
        assert Path(front_end.connection_file).exists()  # it is the front end's own


# -- what cannot be started -----------------------------------------------------------------------


def refused(here: Ground, *more: str, lack: Lack | None = None, **fields: Any) -> str:
    """Run it to its end, which must come with status 1; what it said."""
    words = [*command(here, connection_file(here, **fields)), *more]
    done = constrained.run(lack or Lack(str(here.folder)), words, cwd=here.work, timeout=TIMEOUT)
    assert (done.returncode, done.stdout) == (1, "")
    here_is = [line for line in here.left() if "kernel.json" not in line]
    assert here_is == []
    said: str = done.stderr
    return said


def test_a_wall_that_cannot_be_built(here: Ground) -> None:
    lack = Lack(str(here.folder), sysctl=(("user/max_user_namespaces", "0"),))
    assert refused(here, lack=lack) == (
        "sandbox-kernel: a new user namespace was refused: no space left on device (ENOSPC): "
        "/proc/sys/user/max_user_namespaces is 0, so this kind of namespace is forbidden here; "
        "remedy: as root: sysctl -w user.max_user_namespaces=15000\n"
    )


def test_a_port_that_is_taken(here: Ground) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert refused(here, shell_port=port) == (
            f"sandbox-kernel: the shell endpoint tcp://127.0.0.1:{port} could not be bound: "
            "another process uses the address, address already in use (EADDRINUSE)\n"
        )


def test_an_unknown_kernelspec(here: Ground) -> None:
    assert refused(here, "--name", "nobody-s") == (
        "sandbox-kernel: there is no kernelspec named 'nobody-s': the caps and mounts of the "
        "sandbox are read from it; remedy: install sandbox-kernel in an environment that the front "
        "end sees\n"
    )


def test_a_kernelspec_that_is_no_sandbox(here: Ground) -> None:
    write_kernelspec(here.folder, {}, name="plain", metadata={})
    assert refused(here, "--name", "plain") == (
        "sandbox-kernel: the kernelspec 'plain' is not a sandbox "
        f"({here.folder}/kernels/plain): its provisioner is None\n"
    )


def test_a_wrong_spec(here: Ground) -> None:
    write_kernelspec(here.folder, {"memroy": "1G"}, name=NAME, argv=shipped_argv())
    assert refused(here).startswith(
        "sandbox-kernel: memroy = '1G' is not possible: allowed is one of the keys identity, "
    )
