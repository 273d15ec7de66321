"""Each wall of a sandbox, and how to take it away; and baits, which are worth an attack.

For ``weak_launcher.py``, a process that only tests start. Production code has no such switch: what
is replaced here is a function of a module, in the supervisor of one sandbox, before it begins.
"""

from __future__ import annotations

import enum
import importlib
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any, Final

from sandbox_kernel import hostpaths, supervisor
from sandbox_kernel.engine import (
    capabilities,
    init,
    landlock,
    namespaces,
    network,
    process,
    rootfs,
    seccomp,
)
from sandbox_kernel.engine.rootfs import operations as op
from sandbox_kernel.syscalls import CloneFlag, Prctl, prctl


class Wall(enum.Enum):
    """What can be taken away, one by one."""

    SECCOMP = "the seccomp filter"
    CAPABILITIES = "the dropping of all capabilities"
    USER_NAMESPACES = "max_user_namespaces = 0"
    LANDLOCK = "Landlock"
    MASKS = "the masks over /proc and /sys"
    READ_ONLY = "the read-only parts of /proc"
    SEAL = "the seal on /dev"
    DEVICES = "a /dev with six nodes"
    PTY_LIMIT = "the number of pseudo terminals"
    INODES = "the number of inodes of a tmpfs"
    CLOSE = "the closing of descriptors"
    LOOK_AT_CWD = "the look at the working directory"
    DUMPABLE = "a pid 1 that cannot be looked into"
    NETWORK = "the net namespace"
    GATEWAY = "a gateway on which nothing listens"
    CGROUP_NAMESPACE = "the cgroup namespace"
    CGROUP_FILES = "a root without cgroup files"
    RLIMITS = "the rlimits"
    COUNTS = "the bounds of inotify in the user namespace"
    NO_SYMLINKS = "sources that are opened without symlinks"
    OWN_LINKS = "the refusal of links that kernels can make"
    HIDDEN = "the layer that hides secrets"
    GIT = "the read-only .git"
    PREFIXES = "the read-only Python environment"
    ENVIRONMENT = "the allow-list of variables"
    """In the client: the arena takes it away itself."""
    BARE_LAUNCHER = "a launcher that holds nothing"
    """Taken away by the weak launcher itself, which holds a canary."""


class Bait(enum.Enum):
    """What makes an attack worth while, in the sandbox that holds it as well."""

    DESCRIPTOR = "the supervisor has a file and a folder of the host open"
    CWD = "the working directory is named through a descriptor of the host"
    EXCHANGE = "'data' in the workspace becomes 'link' between the check and the opening"


#: The module: the package has a function of the same name.
build: Final = importlib.import_module("sandbox_kernel.engine.rootfs.build")
#: The first is the secret file, the second the secret folder; numbers that nothing else has.
DESCRIPTORS: Final = (200, 201)
#: Where something listens once :attr:`Wall.GATEWAY` is gone.
GATEWAY_PORT: Final = 4444

_ALLOW_ALL: Final = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)


def apply(names: list[str], folder: str) -> None:
    """In the supervisor: do what ``names`` say. ``folder`` holds ``secret`` and ``secrets/``."""
    for name in names:
        if name in Wall.__members__:
            _REMOVE[Wall[name]]()
    for name in names:
        if name not in Wall.__members__:
            _BAITS[Bait[name]](folder)


# -- walls -----------------------------------------------------------------------------------------


def _no_seccomp() -> None:
    """A filter that allows everything: with none, the supervisor would refuse to go on."""
    load = seccomp.load
    _set(seccomp, "load", lambda program: load(_ALLOW_ALL))


def _keep_capabilities() -> None:
    _set(capabilities, "drop_all", lambda keep=(): prctl(Prctl.SET_NO_NEW_PRIVS, 1))
    _set(init.Observed, "holes", lambda self: [])


def _believe_in_cwd() -> None:
    """Also where the interpreter itself would stumble over a folder that has no name inside."""
    _set(init, "enter", os.chdir)
    _set(os, "getcwd", lambda: "/")


def _stay_dumpable() -> None:
    def dumpable(option: Prctl, *arguments: int) -> int:
        return prctl(option, *((1,) if option is Prctl.SET_DUMPABLE else arguments))

    _set(init, "prctl", dumpable)


def _share_network() -> None:
    """The host's own; the kernel's channels are on its loopback device then."""
    _set(namespaces, "unshare_gateway", lambda: None)
    _set(namespaces, "CONTAINER", namespaces.CONTAINER & ~CloneFlag.NEWNET)
    _set(network, "make_veth", lambda link, netns: None)
    _set(network, "configure_inside", lambda link: None)
    pid = os.getpid()  # on an address of its own: several such sandboxes may run
    address = f"127.{1 + (pid >> 14) % 250}.{(pid >> 7) % 128}.{1 + pid % 128}"
    _set(supervisor, "Link", lambda: network.Link(address=address))
    _without(op.Sysfs)  # a new one wants a net namespace of its own


def _listen_on_the_gateway() -> None:
    unshare = namespaces.unshare_gateway

    def unshare_and_listen() -> None:
        unshare()
        listener = socket.socket()
        listener.bind(("0.0.0.0", GATEWAY_PORT))
        listener.listen()
        listener.detach()

    _set(namespaces, "unshare_gateway", unshare_and_listen)


def _share_cgroup_namespace() -> None:
    _set(namespaces, "unshare_cgroup", lambda: None)


def _show_cgroups() -> None:
    """The host's, writable as far as the user may."""
    top = "/sys/fs/cgroup"

    def change(plan: tuple[op.Operation, ...]) -> Iterator[op.Operation]:
        for operation in plan:
            yield operation
            if isinstance(operation, op.Sysfs):
                yield op.Bind(top, top, readonly=False)

    _replan(change)


def _show_devices() -> None:
    more = [("console", 5, 1), ("kmsg", 1, 11), ("tty0", 4, 0), ("fuse", 10, 229), ("mem", 1, 1)]
    there = [op.Device(f"/dev/{n}", *at) for n, *at in more if os.path.exists(f"/dev/{n}")]

    def change(plan: tuple[op.Operation, ...]) -> Iterator[op.Operation]:
        for operation in plan:
            yield operation
            if isinstance(operation, op.Tmpfs) and operation.target == "/dev":
                yield from there

    _replan(change)


def _no_pty_limit() -> None:
    mount = build.mount

    def unlimited(source: str, target: str, kind: str, flags: Any, options: str = "") -> None:
        mount(source, target, kind, flags, options.replace(",max=256", ""))

    _set(build, "mount", unlimited)


def _many_inodes() -> None:
    _each(op.Tmpfs, lambda each: replace(each, inodes=1_000_000))


def _follow_symlinks() -> None:
    clone = build._clone
    _set(build, "_clone", lambda path, absent, *, follow: clone(path, absent, follow=True))


def _hide_nothing() -> None:
    _each(op.Overlay, lambda each: replace(each, hidden=()))


def _writable_git() -> None:
    def change(plan: tuple[op.Operation, ...]) -> Iterator[op.Operation]:
        return (o for o in plan if not (isinstance(o, op.Bind) and o.target.endswith("/.git")))

    _replan(change)


def _writable_prefixes() -> None:
    """As far as the user may; the workspace's own are what matters."""
    _each(op.Bind, lambda each: replace(each, readonly=False))


_REMOVE: Final[dict[Wall, Callable[[], None]]] = {
    Wall.SECCOMP: _no_seccomp,
    Wall.CAPABILITIES: _keep_capabilities,
    Wall.USER_NAMESPACES: lambda: _set(namespaces, "bound_user_namespaces", lambda: None),
    Wall.COUNTS: lambda: _set(namespaces, "bound_shared_counts", lambda: None),
    Wall.LANDLOCK: lambda: _set(landlock, "restrict", lambda writable: 0),
    Wall.MASKS: lambda: _without(op.Mask),
    Wall.READ_ONLY: lambda: _without(op.ReadOnly),
    Wall.SEAL: lambda: _without(op.Seal),
    Wall.DEVICES: _show_devices,
    Wall.PTY_LIMIT: _no_pty_limit,
    Wall.INODES: _many_inodes,
    Wall.CLOSE: lambda: _set(process, "close_all_but", lambda keep: None),
    Wall.LOOK_AT_CWD: _believe_in_cwd,
    Wall.DUMPABLE: _stay_dumpable,
    Wall.NETWORK: _share_network,
    Wall.GATEWAY: _listen_on_the_gateway,
    Wall.CGROUP_NAMESPACE: _share_cgroup_namespace,
    Wall.CGROUP_FILES: _show_cgroups,
    Wall.RLIMITS: lambda: _set(process, "apply_rlimits", lambda wanted=(): None),
    Wall.NO_SYMLINKS: _follow_symlinks,
    Wall.OWN_LINKS: lambda: _set(hostpaths, "_follow", lambda path, _: os.path.realpath(path)),
    Wall.HIDDEN: _hide_nothing,
    Wall.GIT: _writable_git,
    Wall.PREFIXES: _writable_prefixes,
    Wall.ENVIRONMENT: lambda: None,
    Wall.BARE_LAUNCHER: lambda: None,
}


# -- baits -----------------------------------------------------------------------------------------


def _open_descriptors(folder: str) -> None:
    for name, number in zip(("secret", "secrets"), DESCRIPTORS, strict=True):
        fd = os.open(f"{folder}/{name}", os.O_RDONLY)
        os.dup2(fd, number)
        os.close(fd)


def _cwd_through_descriptor(folder: str) -> None:
    enter = init.enter
    _set(init, "enter", lambda cwd: enter(f"/proc/self/fd/{DESCRIPTORS[1]}"))


def _exchange(folder: str) -> None:
    """The source is aside afterwards, and the link has its name."""
    open_sources = rootfs.open_sources

    def exchange_and_open(plan: tuple[op.Operation, ...]) -> Any:
        (data,) = (o.source for o in plan if isinstance(o, op.Bind) and o.target == "/data")
        work = os.path.dirname(data)
        os.rename(data, f"{work}/aside")
        os.rename(f"{work}/link", data)
        return open_sources(plan)

    _set(rootfs, "open_sources", exchange_and_open)


_BAITS: Final[dict[Bait, Callable[[str], None]]] = {
    Bait.DESCRIPTOR: _open_descriptors,
    Bait.CWD: _cwd_through_descriptor,
    Bait.EXCHANGE: _exchange,
}


# -- how -------------------------------------------------------------------------------------------


def _set(owner: Any, name: str, value: object) -> None:
    getattr(owner, name)  # a wall that was renamed is a failure here, not a control that lies
    setattr(owner, name, value)


def _replan(change: Callable[[tuple[op.Operation, ...]], Iterable[op.Operation]]) -> None:
    plan = rootfs.plan_rootfs
    _set(rootfs, "plan_rootfs", lambda *a, **k: tuple(change(plan(*a, **k))))


def _without(kind: type[Any]) -> None:
    _replan(lambda plan: (o for o in plan if not isinstance(o, kind)))


def _each(kind: type[Any], change: Callable[[Any], op.Operation]) -> None:
    _replan(lambda plan: (change(o) if isinstance(o, kind) else o for o in plan))
