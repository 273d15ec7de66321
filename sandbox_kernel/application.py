"""The ipykernel of a sandbox: it says when it has bound, and waits for its client if it is to.

A module of its own, because the launcher imports it for all kernels: to make a class of traitlets
takes milliseconds.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping

from ipykernel.kernelapp import IPKernelApp
from tornado.ioloop import IOLoop

from . import shell
from .binding import BOUND, WAITS, Binding, Channels


class SandboxedKernelApp(IPKernelApp):
    """:attr:`channels` is set before it is initialised."""

    channels: Channels

    def initialize(self, argv: list[str] | None = None) -> None:
        self.environment_before = dict(os.environ)
        super().initialize(argv)  # type: ignore[no-untyped-call]

    def parse_command_line(self, argv: list[str] | None = None) -> None:
        """Only if there is something: to make the parser of all options takes milliseconds."""
        if argv:
            super().parse_command_line(argv)

    def _ip_default(self) -> str:
        """The sandbox's own loopback; jupyter_client would look all interfaces through."""
        return "127.0.0.1"

    def init_sockets(self) -> None:
        """Without the warning of plain tcp: these ports are in a net namespace of their own."""
        level = self.log.level
        self.log.setLevel(logging.ERROR)
        super().init_sockets()  # type: ignore[no-untyped-call]
        self.log.setLevel(level)

    def init_kernel(self) -> None:
        """With the shell that the launcher has made, if it has."""
        adopted = shell.adopt(self)
        super().init_kernel()  # type: ignore[no-untyped-call]
        if adopted:
            shell.belongs_to(self.kernel)

    def init_heartbeat(self) -> None:
        super().init_heartbeat()  # type: ignore[no-untyped-call]
        if self.channels.binding < 0:
            self.say_bound()

    def start(self) -> None:
        """A kernel of the pool waits in its event loop, where nothing but its binding comes in."""
        if self.channels.binding >= 0:
            loop = IOLoop.current()
            loop.add_handler(self.channels.binding, self.bind, loop.READ)
            loop.add_callback(os.write, self.channels.bound, WAITS)
        super().start()  # type: ignore[no-untyped-call]

    def bind(self, fd: int, events: int) -> None:
        """Take what is the client's, from the supervisor."""
        IOLoop.current().remove_handler(fd)
        binding = Binding.decode(_read_all(fd))
        _exchange_environment(self.environment_before, binding.environment)
        self.session.signature_scheme = binding.signature_scheme
        self.session.key = binding.key.encode()
        _rewrite_key(self.abs_connection_file, binding)
        self.say_bound()

    def say_bound(self) -> None:
        os.write(self.channels.bound, BOUND)
        os.close(self.channels.bound)


def _rewrite_key(path: str, binding: Binding) -> None:
    """For whoever connects to the kernel from inside, as with ``%connect_info``."""
    with open(path, "r+") as file:
        info = json.load(file)
        info |= {"key": binding.key, "signature_scheme": binding.signature_scheme}
        file.seek(0)
        file.truncate()
        json.dump(info, file)


def _read_all(fd: int) -> bytes:
    """To the end; closed then."""
    with os.fdopen(fd, "rb") as file:
        return file.read()


def _exchange_environment(before: Mapping[str, str], environment: Mapping[str, str]) -> None:
    """``environment`` in place of ``before``; what the kernel itself set meanwhile stays."""
    for name in before.keys() - environment.keys():
        os.environ.pop(name, None)
    os.environ.update(environment)
    time.tzset()
