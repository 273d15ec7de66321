"""Sandboxes that wait for the next starts of this process: filled in the background, used once.

A start takes one whose :class:`Recipe` is its own: same spec, same folder, same interpreter. Of a
client it gets key, environment and endpoints; its walls and caps stand since it was built. The pool
holds the lifelines, so its sandboxes end with this process. It never has more than the last spec
asked for, whatever the recipe; what waits for an older recipe goes first.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import os
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import rundir
from .client import Sandbox
from .errors import SandboxError
from .protocol import LaunchRequest

#: Seconds after a start: its first requests come before the next sandbox is built.
_DELAY: Final = 0.5
#: The name of what is in a connection file's place in the request: it says in which folder.
_NO_FILE: Final = "none"


@dataclass(frozen=True)
class Recipe:
    """What two starts have in common if one may take the sandbox that was built for the other."""

    command: tuple[str, ...]
    """Of the launcher."""
    spec: str
    """Its ``repr``: specs have tables, and no hash."""
    cwd: str
    folder: str
    """Where the connection files are."""
    arguments: tuple[str, ...]
    interpreter: tuple[tuple[str, str], ...]
    """Variables that an interpreter reads when it starts: a cold kernel has started already."""
    places: tuple[tuple[str, int, int], ...]
    """The folders that are mounted, and which they were: another may stand there since. With them
    what is protected in a workspace only if it is there."""

    @classmethod
    def of(cls, request: LaunchRequest, command: tuple[str, ...]) -> Recipe:
        folder = os.path.dirname(request.connection_file or "")
        return cls(
            command, repr(request.spec), request.cwd, folder, request.arguments,
            _of_interpreter(request.environment), tuple(_places(request)),
        )  # fmt: skip


def _of_interpreter(environment: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(item for item in environment.items() if item[0].startswith("PYTHON")))


def _places(request: LaunchRequest) -> Iterator[tuple[str, int, int]]:
    workspace = request.spec.workspace_path or request.cwd
    sources = [mount.source for mount in request.spec.mounts]
    for path in (request.cwd, workspace, os.path.join(workspace, ".git"), *sources):
        with contextlib.suppress(OSError):
            found = os.stat(path)
            yield os.path.realpath(path), found.st_dev, found.st_ino


@dataclass(frozen=True)
class Waiting:
    """One sandbox that nobody has yet."""

    recipe: Recipe
    sandbox: Sandbox
    directory: Path
    """Of its endpoints, ``k-1`` to ``k-5``."""

    def is_usable(self) -> bool:
        """It lives, as far as it has said. It may be coming up still."""
        with contextlib.suppress(SandboxError):
            while self.sandbox.take() is not None:
                pass
        return self.sandbox.exited is None

    def close(self) -> None:
        """It ends; its supervisor removes what it made."""
        self.sandbox.close()
        rundir.remove(self.directory)


class Pool:
    """Of one process. Thread-safe: it is filled by a timer."""

    def __init__(self, delay: float = _DELAY) -> None:
        self._delay = delay
        self._lock = threading.Lock()
        self._waiting: collections.deque[Waiting] = collections.deque()
        self._timer: threading.Timer | None = None
        self._pid = os.getpid()

    def take(self, recipe: Recipe) -> Waiting | None:
        """The one that has waited longest, if there is one; it is the caller's then."""
        with self._lock:
            self._after_fork()
            for waiting in [w for w in self._waiting if w.recipe == recipe]:
                self._waiting.remove(waiting)
                if waiting.is_usable():
                    return waiting
                waiting.close()
        return None

    def fill_later(
        self, request: LaunchRequest, command: tuple[str, ...], tell: Callable[[str], None]
    ) -> None:
        """Have as many as the spec says wait for the next start that is like ``request``.

        ``tell`` hears, in another thread, why one could not be begun.
        """
        with self._lock:
            self._after_fork()
            if self._timer is not None:
                self._timer.cancel()
            self._timer = threading.Timer(self._delay, self._fill, (request, command, tell))
            self._timer.daemon = True
            self._timer.start()

    def clear(self) -> list[Waiting]:
        """Nothing waits any more, and nothing is built. The caller closes what it is given."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            found = list(self._waiting)
            self._waiting.clear()
        return found

    def count(self) -> int:
        """How many wait and are up."""
        with self._lock:
            return sum(w.is_usable() and w.sandbox.waits for w in self._waiting)

    def _fill(
        self, request: LaunchRequest, command: tuple[str, ...], tell: Callable[[str], None]
    ) -> None:
        recipe = Recipe.of(request, command)
        with self._lock:
            self._drop(recipe, request.spec.pool)
            missing = request.spec.pool - len(self._waiting)
            try:
                for _ in range(missing):
                    self._waiting.append(_begin(recipe, request))
            except (SandboxError, OSError) as error:
                tell(f"no sandbox waits for the next start: {error}")

    def _drop(self, recipe: Recipe, most: int) -> None:
        """Those that have ended, that are for another recipe, or too many."""
        kept: list[Waiting] = []
        for waiting in self._waiting:
            if waiting.recipe == recipe and len(kept) < most and waiting.is_usable():
                kept.append(waiting)
            else:
                waiting.close()
        self._waiting = collections.deque(kept)

    def _after_fork(self) -> None:
        """What the parent has is the parent's."""
        if self._pid != os.getpid():
            self._pid, self._timer = os.getpid(), None
            self._waiting.clear()


def _begin(recipe: Recipe, request: LaunchRequest) -> Waiting:
    name = secrets.token_hex(16)
    directory = rundir.make(name)
    request = dataclasses.replace(
        request,
        sandbox_id=name,
        waits=True,
        environment=dict(recipe.interpreter),
        connection={
            "transport": "ipc",
            "ip": str(directory / "k"),
            "key": secrets.token_hex(16),
            **{f"{channel}_port": n for n, channel in enumerate(rundir.CHANNELS, 1)},
        },
        connection_file=os.path.join(recipe.folder, _NO_FILE),
    )
    try:
        return Waiting(recipe, Sandbox.launch(request, recipe.command, os.environ), directory)
    except BaseException:
        rundir.remove(directory)
        raise
