"""What an attack is, the sandboxes it is tried in, and the host that must not change.

An attack is data: a line of the security list, a function that runs inside, what must come of it,
and which walls stand in its way. It is tried twice. In the *arena*, an ordinary sandbox, it must be
held. In a *control*, the same sandbox without those walls, it must get through: else the attack
proves nothing. Where a control is not possible the attack says why.

Sandboxes are shared by all attacks that want the same one, and started when first asked for.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from escape import attacker
from escape.weaknesses import Bait, Wall
from integration.remains import caps
from integration.sandboxes import inside, run_cell, started
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

from sandbox_kernel.provisioner import SandboxProvisioner
from sandbox_kernel.syscalls import libseccomp

#: In the files that nothing inside may read.
SECRET = "a secret of the host 5b0c6f1e"


@dataclass(frozen=True)
class Attack:
    """One line of the list, tried from inside."""

    name: str
    """The line, or the part of it that this is about."""
    code: Callable[..., Any]
    """Runs inside with ``arguments`` (JSON), and returns what came of it (JSON)."""
    held: Any
    """What comes of it where the walls stand: a value, or a tuple of those that may be."""
    walls: tuple[Wall, ...] = ()
    """Those in its way; all of them are taken away in the control."""
    through: Any = "0"
    """What comes of it then. Not always success: an errno of Linux' own shows as well that it was
    the wall which had refused."""
    arguments: tuple[Any, ...] = ()
    shape: str = "plain"
    """Of :data:`SHAPES`."""
    baits: tuple[Bait, ...] = ()
    cannot_be_shown: str = ""
    """Why there is no control."""

    def __post_init__(self) -> None:
        assert bool(self.walls) != bool(self.cannot_be_shown), self.name


def _is(seen: Any, wanted: Any) -> bool:
    """Lists are what JSON makes of tuples, so a tuple in a table can only mean: one of these."""
    return seen in wanted if isinstance(wanted, tuple) else bool(seen == wanted)


def every(attacks: Iterable[Attack]) -> pytest.MarkDecorator:
    """Parametrise a test with all of them."""
    return _parametrised(list(attacks))


def shown(attacks: Iterable[Attack]) -> pytest.MarkDecorator:
    """Parametrise a test with those that have a control."""
    return _parametrised([each for each in attacks if not each.cannot_be_shown])


def pair_of_tests(attacks: Sequence[Attack]) -> tuple[Callable[..., None], Callable[..., None]]:
    """The two tests of a table: that each attack is held, and that its control gets through."""

    @every(attacks)
    def is_held(attack: Attack, arena: Arena) -> None:
        arena.attack(attack)

    @shown(attacks)
    def gets_through(attack: Attack, arena: Arena) -> None:
        arena.control(attack)

    return is_held, gets_through


def _parametrised(attacks: list[Attack]) -> pytest.MarkDecorator:
    names = [each.name.replace("/", "|") for each in attacks]
    assert len(set(names)) == len(names), "two attacks have one name"
    return pytest.mark.parametrize("attack", attacks, ids=names)


def number(name: str) -> int:
    """Of a system call, on this machine."""
    library = libseccomp.open_library()
    found = library.number(library.native_arch(), name)
    if found is None or found < 0:
        from sandbox_kernel.engine.seccomp_profile import NUMBERS

        return NUMBERS[name]
    return found


# -- the record ------------------------------------------------------------------------------------


@dataclass
class Record:
    """What this run tried, for the summary at its end."""

    tried: set[str] = field(default_factory=set)
    held: set[str] = field(default_factory=set)
    through: set[str] = field(default_factory=set)
    not_shown: dict[str, str] = field(default_factory=dict)


RECORD = Record()


# -- the host --------------------------------------------------------------------------------------


class Host:
    """What an attack could do to the machine and its user, looked at after each of them."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home"
        self.work = self.home / "work"
        self.open_to_kernels = (self.work, self.home / "shared")
        self.weak = folder / "weak"
        """Of the weak launcher: its order, its canary, what its baits are."""
        self._make_files(folder)
        self.victim = subprocess.Popen(["sleep", "3600"])
        """A process of the same user."""
        self.before = self.state()

    def _make_files(self, folder: Path) -> None:
        self.work.mkdir(parents=True)
        (self.work / ".git" / "hooks").mkdir(parents=True)
        for name in (
            ".ssh/id_ed25519", ".aws/credentials", ".gnupg/private-keys-v1.d/key", ".netrc",
            ".config/gcloud/credentials.db", ".local/share/jupyter/runtime/kernel.json",
            ".jupyter/token", "private.txt",
        ):  # fmt: skip
            path = self.home / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(SECRET)
        (self.weak / "secrets").mkdir(parents=True)
        (self.weak / "secrets" / "file").write_text(SECRET)
        (self.weak / "secret").write_text(SECRET)
        (self.weak / "canary").write_text(LAUNCHER_CANARY)
        (self.weak / "order").write_text("[]")

    def state(self) -> dict[str, Any]:
        """Everything that must be the same afterwards."""
        sysctl = ("kernel/core_pattern", "kernel/hostname", "vm/overcommit_memory",
                  "user/max_user_namespaces", "net/ipv4/ip_forward")  # fmt: skip
        null = os.stat("/dev/null")
        return {
            "files": {str(p): self._content(p) for p in self._files()},
            "hooks": [str(p) for p in (self.work / ".git").rglob("*")],
            "secrets": self._content(self.weak / "secret"),
            "mounts": Path("/proc/self/mountinfo").read_text(),
            "sysctl": [Path("/proc/sys", name).read_text() for name in sysctl],
            "null": (os.major(null.st_rdev), os.minor(null.st_rdev)),
            "interfaces": sorted(socket.if_nameindex()),
        }  # fmt: skip

    def _files(self) -> Iterator[Path]:
        """Of the home, but for what kernels may write."""
        for folder, names, files in os.walk(self.home):
            names[:] = sorted(n for n in names if Path(folder, n) not in self.open_to_kernels)
            yield from (Path(folder, name) for name in (*names, *sorted(files)))

    @staticmethod
    def _content(path: Path) -> str:
        return path.read_text() if path.is_file() else "a folder"

    def assert_unchanged(self) -> None:
        assert self.state() == self.before
        assert self.victim.poll() is None, "a process of the host was ended"

    def close(self) -> None:
        self.victim.kill()
        self.victim.wait()


#: In the heap of the weak launcher; in pieces, so that this process does not hold the whole.
LAUNCHER_CANARY = "-".join(("canary", "of", "a", "launcher", "91d7"))


# -- the sandboxes ---------------------------------------------------------------------------------


def shapes(host: Host) -> dict[str, tuple[dict[str, Any], Path]]:
    """(config of the kernelspec, the notebook's folder) by name."""
    small = {"tmp_size": "64M", "shm_size": "64M", "run_size": "8M", "home_size": "8M"}
    return {
        "plain": (caps(**small, inodes=1000), host.work),
        "home": (caps(**small, workspace="overlay"), host.home),
        "work": (caps(memory="1G"), host.work),
    }


@dataclass(frozen=True)
class _Kind:
    shape: str
    baits: frozenset[Bait]
    without: frozenset[Wall]


@dataclass
class Box:
    """One running sandbox."""

    km: KernelManager
    client: BlockingKernelClient
    stack: contextlib.ExitStack

    def lives(self) -> bool:
        return bool(self.km.is_alive())


class Arena:
    """Every sandbox of this run, by what it is like."""

    def __init__(self, host: Host, folder: Path) -> None:
        self.host = host
        self._folder = folder
        self._boxes: dict[_Kind, Box] = {}
        self._bystander: Box | None = None

    def attack(self, attack: Attack) -> None:
        """It must be held, and nothing else must have happened."""
        RECORD.tried.add(attack.name)
        if attack.cannot_be_shown:
            RECORD.not_shown[attack.name] = attack.cannot_be_shown
        seen = self._try(attack, ())
        assert _is(seen, attack.held), f"{attack.name}: {seen!r} and not {attack.held!r}"
        self.host.assert_unchanged()
        self.assert_others_live()
        RECORD.held.add(attack.name)

    def control(self, attack: Attack) -> None:
        """Without the walls it must get through."""
        seen = self._try(attack, attack.walls)
        assert not _is(seen, attack.held), f"{attack.name}: {seen!r} without any wall"
        assert _is(seen, attack.through), f"{attack.name}: {seen!r} and not {attack.through!r}"
        RECORD.through.add(attack.name)

    def _try(self, attack: Attack, without: Iterable[Wall]) -> Any:
        box = self.box(attack.shape, attack.baits, without)
        return inside(box.client, attack.code, *attack.arguments)

    def box(
        self, shape: str = "plain", baits: Iterable[Bait] = (), without: Iterable[Wall] = ()
    ) -> Box:
        """One that lives; started now unless there is one."""
        kind = _Kind(shape, frozenset(baits), frozenset(without))
        box = self._boxes.get(kind)
        if box is None or not box.lives():
            if box is not None:
                box.stack.close()
            box = self._boxes[kind] = self._start(kind)
        return box

    def _start(self, kind: _Kind) -> Box:
        config, cwd = shapes(self.host)[kind.shape]
        stack = contextlib.ExitStack()
        with contextlib.ExitStack() as weak:
            if kind.baits or kind.without:
                weak.enter_context(self.weakened(*kind.baits, *kind.without))
            km, client = stack.enter_context(started(self._folder, config, cwd=cwd))
        install(client)
        return Box(km, client, stack)

    @contextlib.contextmanager
    def weakened(self, *names: Bait | Wall) -> Iterator[None]:
        """What is started in this block lacks those walls."""
        script = str(Path(__file__).with_name("weak_launcher.py"))
        command = (sys.executable, "-Xfrozen_modules=off", script, str(self.host.weak))
        (self.host.weak / "order").write_text(json.dumps([name.name for name in names]))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SandboxProvisioner, "_launcher_command", command)
            if Wall.ENVIRONMENT in names:
                patch.setattr(
                    "sandbox_kernel.request.filter_environment",
                    lambda source, spec, *, set_by_kernelspec=(): dict(source),
                )
            yield

    def assert_others_live(self) -> None:
        """A kernel beside the one that attacks, of the same user and launcher, goes on."""
        if self._bystander is None:
            self._bystander = self._start(_Kind("plain", frozenset(), frozenset()))
        assert run_cell(self._bystander.client, "6 * 7", timeout=30).result == "42"

    def close(self) -> None:
        boxes = [*self._boxes.values(), *([self._bystander] if self._bystander else [])]
        for box in boxes:
            box.stack.close()


def install(client: BlockingKernelClient) -> None:
    """Make ``from escape.attacker import …`` work in a sandbox."""
    text = inspect.getsource(attacker)
    cell = run_cell(
        client,
        "import sys as _s, types as _t\n_s.modules['escape'] = _t.ModuleType('escape')\n"
        "_m = _s.modules['escape.attacker'] = _t.ModuleType('escape.attacker')\n"
        f"exec({text!r}, _m.__dict__)",
    )
    assert cell.ok, cell.evalue
