"""What a kernel that comes up and its supervisor say to each other, on pipes.

A kernel says when its channels are bound. One of the pool comes up before anybody wants it: it says
that it waits, and is sent a :class:`Binding` with what is its client's.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True)
class Channels:
    """Descriptors between a kernel that comes up and its supervisor."""

    bound: int
    """Gets :data:`WAITS` when the kernel waits for its binding, if it is to, and :data:`BOUND` when
    its channels are bound and it is its client's."""
    binding: int = -1
    """Where its :class:`Binding` comes from; -1: it is nobody's but the one client's."""

    def descriptors(self) -> tuple[int, ...]:
        return (self.bound,) if self.binding < 0 else (self.bound, self.binding)


#: What a kernel writes to :attr:`Channels.bound`.
WAITS: Final = b"w"
BOUND: Final = b"b"


@dataclass(frozen=True)
class Binding:
    """What makes a kernel that waits that of one client."""

    key: str = field(repr=False)
    signature_scheme: str
    environment: dict[str, str] = field(repr=False)
    """The whole one."""

    def encode(self) -> bytes:
        return json.dumps(vars(self)).encode()

    @classmethod
    def decode(cls, raw: bytes) -> Binding:
        """In the kernel, before anything of a client's runs."""
        return cls(**json.loads(raw))
