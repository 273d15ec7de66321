"""What the user is to read in the notebook itself, on the standard error of the first cell."""

from __future__ import annotations

from .broadcast import Broadcast
from .messages import Composer

#: Of a request whose output no front end shows; within a string of JSON the quotes are escaped.
_SILENT = (b'"silent":true', b'"silent": true')


class Announcements:
    """Texts that wait for a cell. The proxy owns it, the judge tells it of each cell."""

    def __init__(self, broadcast: Broadcast, composer: Composer) -> None:
        self._broadcast = broadcast
        self._composer = composer
        self._texts: list[str] = []

    def add(self, text: str) -> None:
        """Shown once, with the next cell that shows anything."""
        self._texts.append(text)

    def deliver(self, header: bytes, content: bytes) -> None:
        """A cell is about to run: what waits appears in its output. Both are raw JSON."""
        if not self._texts or any(word in content for word in _SILENT):
            return
        lines = "".join(f"[sandbox] {text}\n" for text in self._texts)
        self._texts.clear()
        frames = self._composer.stream(lines, header)
        self._broadcast.send(frames, essential=True, parent=header)
