"""``python -m sandbox_kernel.launch -f FILE``: the same sandbox, in the foreground.

VS Code, nteract, Spyder, Zed and others run a kernelspec's argv themselves and know nothing of
provisioners. This builds what the provisioner would build, from the same kernelspec, on the
endpoints of the connection file. There is no way from here to a kernel without walls.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import select
import signal
import sys
import time
import uuid
from pathlib import Path
from typing import Any

from jupyter_client.kernelspec import KernelSpec, KernelSpecManager, NoSuchKernel

from .client import Launcher, Sandbox, launcher_command
from .errors import ChannelError, SandboxError, SetupError, describe_errno
from .protocol import Notice
from .request import build_request
from .spec import SandboxSpec, kernelspec_config, parse_spec

_RELAYED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)
PROVISIONER = "sandbox-provisioner"
#: What goes on to the ipykernel inside.
_FOR_IPYKERNEL = re.compile(r"--debug|--[A-Z]\w*(?:\.\w+)+=.*", re.DOTALL)


def main(arguments: list[str] | None = None) -> int:
    """The command. Its exit status is the kernel's, 1 where the sandbox could not be built."""
    parser = argparse.ArgumentParser(
        prog="python -m sandbox_kernel.launch", description=__doc__, allow_abbrev=False
    )
    parser.add_argument("-f", "--connection-file", required=True, help="of the front end")
    parser.add_argument("--name", required=True, help="the kernelspec: its config has the caps")
    options, extra = parser.parse_known_args(arguments)
    for argument in extra:
        # a misspelt --name would remove every cap, and ipykernel ignores the provisioner's traits
        ours = argument.startswith("--SandboxProvisioner.")
        if ours or not _FOR_IPYKERNEL.fullmatch(argument):
            parser.error(
                f"{argument!r} is neither an option nor a trait such as --Class.name=value"
            )
    try:
        return run(options.connection_file, options.name, extra)
    except SandboxError as error:
        print(f"sandbox-kernel: {error}", file=sys.stderr)
        return 1


def run(connection_file: str, name: str, arguments: list[str]) -> int:
    """Build the sandbox and hold it until the kernel ends; the kernel's exit status."""
    kernelspec = load_kernelspec(name)
    spec = spec_of(kernelspec)
    request = build_request(
        spec,
        kernel_id=uuid.uuid4().hex,
        connection=read_connection_file(connection_file),
        cwd=os.getcwd(),
        environment={**os.environ, **kernelspec.env},
        set_by_kernelspec=kernelspec.env,
        arguments=arguments,
    )
    signals = _SignalPipe()
    parent = _parent_pidfd()
    sandbox = Sandbox.launch(request, launcher_command(sys.executable, spec.preload), os.environ)
    try:
        return _hold(sandbox, signals, parent, time.monotonic() + spec.start_timeout + 5)
    finally:
        sandbox.close()
        for launcher in Launcher.close_all():
            launcher.process.wait()


def load_kernelspec(name: str) -> KernelSpec:
    """The kernelspec ``name``, which must be one of this provisioner's.

    Raises:
        SetupError: there is none, or it is another provisioner's: its caps would be unknown.
    """
    try:
        kernelspec = KernelSpecManager().get_kernel_spec(name)
    except NoSuchKernel as error:
        raise SetupError(
            f"there is no kernelspec named {name!r}",
            cause="the caps and mounts of the sandbox are read from it",
            remedy="install sandbox-kernel in an environment that the front end sees",
        ) from error
    provisioner = kernelspec.metadata.get("kernel_provisioner", {})
    if provisioner.get("provisioner_name") != PROVISIONER:
        raise SetupError(
            f"the kernelspec {name!r} is not a sandbox",
            cause=f"its provisioner is {provisioner.get('provisioner_name')!r}",
            path=kernelspec.resource_dir,
        )
    return kernelspec


def spec_of(kernelspec: KernelSpec) -> SandboxSpec:
    """The spec that the kernelspec's config describes, as the provisioner reads it."""
    return parse_spec(kernelspec_config(kernelspec.metadata))


def read_connection_file(path: str) -> dict[str, Any]:
    """What the front end wrote.

    Raises:
        ChannelError: it is not there, not readable or not JSON.
    """
    try:
        info = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ChannelError(
            "the connection file cannot be read",
            cause=describe_errno(error.errno or 0),
            path=path,
        ) from error
    except ValueError as error:
        raise ChannelError(
            "the connection file is not JSON", cause=str(error), path=path
        ) from error
    if not isinstance(info, dict):
        raise ChannelError("the connection file is not an object", path=path)
    return info


class _SignalPipe:
    """Signals of the front end as bytes on a pipe, to be relayed to the kernel inside."""

    def __init__(self) -> None:
        self.read_end, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in _RELAYED:
            signal.signal(number, lambda number, frame: None)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    def take(self) -> list[int]:
        with contextlib.suppress(BlockingIOError):
            return [n for n in os.read(self.read_end, 64) if n in _RELAYED]
        return []


def _parent_pidfd() -> int | None:
    """Of the front end, if it says that its kernels end with it, as an ipykernel would read it."""
    text = os.environ.get("JPY_PARENT_PID", "")
    if not text.isdigit() or int(text) <= 1:
        return None
    try:
        return os.pidfd_open(int(text))
    except OSError:
        return None


def _hold(sandbox: Sandbox, signals: _SignalPipe, parent: int | None, deadline: float) -> int:
    """Until the kernel has ended. A sandbox that does not start by ``deadline`` is killed."""
    poller = select.poll()
    poller.register(sandbox.fileno(), select.POLLIN)
    poller.register(signals.read_end, select.POLLIN)
    if parent is not None:
        poller.register(parent, select.POLLIN)
    while sandbox.exited is None:
        starting = sandbox.started is None
        left = max(deadline - time.monotonic(), 0) * 1000 + 1 if starting else None
        ready = {fd for fd, _ in poller.poll(left)}
        if starting and time.monotonic() > deadline:
            sandbox.kill_supervisor()
        if signals.read_end in ready:
            for number in signals.take():
                sandbox.signal(number)
        if parent in ready:
            sandbox.kill()
            poller.unregister(parent)
        if sandbox.fileno() in ready:
            _tell(sandbox)
    return sandbox.exited.returncode & 0xFF if sandbox.exited.returncode >= 0 else 1


def _tell(sandbox: Sandbox) -> None:
    """Take what the supervisor says; its notices are for the front end's log."""
    started_before = sandbox.started is not None
    message = sandbox.take()
    if isinstance(message, Notice):
        print(message.text, file=sys.stderr)
    if sandbox.started is not None and not started_before:
        for warning in sandbox.started.warnings:
            print(f"sandbox-kernel: {warning}", file=sys.stderr)
    if sandbox.exited is not None and sandbox.exited.returncode:
        print(f"sandbox-kernel: {sandbox.exited.reason}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
