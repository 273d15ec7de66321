"""The kernel's own standard output and error: what bypasses the channels.

Crash reports of native code, faulthandler, prints before the kernel captured its descriptors. The
bytes are hostile: they are cut into lines, stripped of control characters and bounded in length
and in number before anybody's terminal or log sees them. To look at them costs CPU outside of the
kernel's cap, so only so many are read in a second; whoever writes more waits, as for a terminal.
"""

from __future__ import annotations

import os
import re
import time
from typing import Final

_LINE_MAXIMUM: Final = 500
_LINES_A_SECOND: Final = 50
#: Much more than any crash report, and little to read.
_BYTES_A_SECOND: Final = 1024 * 1024
_TAIL: Final = 5
_CONTROL: Final = re.compile(
    r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]"
)


class Console:
    """A pipe: the sandbox writes, the supervisor reads."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.read_end, False)
        self.at_end = False
        self._partial = b""
        self._last: list[str] = []
        self._second = 0
        self._in_second = 0
        self._dropped = 0
        self._window = 0.0
        self._in_window = 0

    def close_write_end(self) -> None:
        """Called once the init has its own copy: the end of the pipe is then the end of all."""
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1

    def close(self) -> None:
        self.close_write_end()
        if self.read_end >= 0:
            os.close(self.read_end)
            self.read_end = -1

    def read(self) -> list[str]:
        """The lines that have come, cleaned; at most one pipe's worth, never waits."""
        try:
            raw = os.read(self.read_end, 65536)
        except BlockingIOError:
            return []
        now = time.monotonic()
        if now - self._window >= 1.0:
            self._window, self._in_window = now, 0
        self._in_window += len(raw)
        if not raw:
            self.at_end = True
            lines, self._partial = [self._partial], b""
        else:
            *lines, self._partial = (self._partial + raw).split(b"\n")
            if len(self._partial) > _LINE_MAXIMUM:
                lines.append(self._partial)
                self._partial = b""
        return [text for line in lines if (text := self._admit(clean(line)))]

    def pause(self) -> float:
        """Seconds for which it is not to be read; 0 where it is."""
        if self._in_window < _BYTES_A_SECOND:
            return 0.0
        return max(self._window + 1.0 - time.monotonic(), 0.0)

    def tail(self) -> str:
        """The last lines, for the message of a start that failed."""
        return " | ".join(self._last)

    def with_tail(self, why: str) -> str:
        """``why`` a kernel did not come up, and what it said last."""
        tail = self.tail()
        return why + (f"; it last said: {tail}" if tail else "")

    def _admit(self, text: str) -> str:
        if not text:
            return ""
        self._last = [*self._last, text][-_TAIL:]
        now = int(time.monotonic())
        if now != self._second:
            dropped, self._dropped = self._dropped, 0
            self._second, self._in_second = now, 0
            if dropped:
                return f"({dropped} lines left out) {text}"
        self._in_second += 1
        if self._in_second > _LINES_A_SECOND:
            self._dropped += 1
            return ""
        return text


def clean(line: bytes) -> str:
    """Printable text of at most 500 characters: no escape sequence reaches a terminal."""
    text = line[: 4 * _LINE_MAXIMUM].decode("utf-8", errors="replace")
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text).strip()[:_LINE_MAXIMUM]
