"""What the proxy answers in the kernel's stead, when the kernel cannot any more."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping
from typing import Final

import zmq

from . import wire
from .accounting import Accounting
from .broadcast import Broadcast
from .connection import Channel
from .messages import Composer, Failure, Header
from .pending import PendingTable, Request

#: Where an answer to a request of the proxy's own goes: no client has this routing id.
FENCE: Final = (b"sandbox-fence",)
#: The kernel lives, but what it said did not fit.
LOST: Final = Failure(
    "MessageLost",
    "the link to the kernel was cut by a message larger than the sandbox lets through; what the "
    "kernel answered is lost",
    ("MessageLost: the kernel's answer was larger than the sandbox lets through",),
)

#: It did fit, but clients read nothing.
UNREAD: Final = Failure(
    "MessageLost",
    "what the kernel answered was dropped: more than the sandbox keeps waits for clients that do "
    "not read",
    ("MessageLost: more than the sandbox keeps waits for clients that do not read",),
)
#: The kernel lives, but it is not listened to any more.
GIVEN_UP: Final = Failure(
    "LinkGivenUp",
    "the link to the kernel was cut again and again by what is no message of a kernel, and stays "
    "cut; restart the kernel",
    ("LinkGivenUp: the kernel does not speak Jupyter's protocol; restart it",),
)


class Answers:
    """Sends to the clients only; removes from the table what it finished."""

    def __init__(
        self,
        composer: Composer,
        broadcast: Broadcast,
        fronts: Mapping[Channel, zmq.Socket[bytes]],
        pending: PendingTable,
        accounting: Accounting,
    ) -> None:
        self._accounting = accounting
        self._composer = composer
        self._broadcast = broadcast
        self._fronts = fronts
        self._pending = pending
        self._owed: deque[Request] = deque()
        self._most_owed = pending.capacity

    def idle(self, request: Request) -> None:
        """Publish the idle that the kernel's own may not be seen of."""
        frames = self._composer.status("idle", request.header)
        if self._broadcast.send(frames, essential=True, parent=request.header):
            request.idled = True
            self._settle(request)
        else:
            self.owe(request)

    def owe(self, request: Request) -> None:
        """Its idle found no room, and was dropped. The request is pending until it has one."""
        if len(self._owed) < self._most_owed:
            self._owed.append(request)

    def pay(self) -> None:
        """Called in each turn: publish what is owed, as far as there is room."""
        while self._owed and self._broadcast.has_room:
            request = self._owed.popleft()
            if not request.idled:
                self.idle(request)

    def error_reply(self, request: Request, failure: Failure) -> None:
        """Answer one request, to the client that it came from and no other."""
        metadata = self._accounting.failed(request, failure.ename)
        frames = self._composer.error_reply(
            request.msg_type, failure, request.header, request.identities, metadata
        )
        wire.send(self._fronts[request.channel], frames)
        request.replied = True
        self._settle(request)

    def usage(self, identities: tuple[bytes, ...], header: bytes) -> bool:
        """Answer a ``usage_request`` as a kernel does; false if the kernel has to."""
        if (content := self._accounting.usage()) is None:
            return False
        reply = self._composer.message("usage_reply", content, header, identities)
        for state in ("busy", "idle"):
            status = self._composer.status(state, header)
            self._broadcast.send(status, essential=True, parent=header)
            if state == "busy":
                wire.send(self._fronts[Channel.CONTROL], reply)
        return True

    def fail_all(self, failure: Failure) -> int:
        """Finish every request: the running cell shows the error, all get reply and idle.

        In the order of their arrival, like a kernel. Returns how many there were.
        """
        requests = list(self._pending)
        executing = self._pending.executing()
        for request in requests:
            if request is executing:
                error = self._composer.error(failure, request.header)
                self._broadcast.send(error, essential=True, parent=request.header)
            if not request.replied:
                self.error_reply(request, failure)
            if not request.idled:
                self.idle(request)
        return len(requests)

    def after_a_cut(self, channel: Channel) -> None:
        """The link of ``channel`` was cut and is there again; the kernel lives.

        An idle that may be lost is made good when the reply is there. That a reply is lost only a
        fence can tell: an idle comes on another link, and may overtake the reply.
        """
        for request in self._pending:
            if request.identities == FENCE:  # replaced by another if its own link was cut
                continue
            if channel is Channel.IOPUB:
                request.idle_at_risk = True
                if request.replied:
                    self.idle(request)
            elif channel is request.channel:
                request.reply_at_risk = True

    def tell(self, text: str) -> bool:
        """A line in the output of the cell that runs; false if none does."""
        cells = (r for r in self._pending if r.msg_type == "execute_request" and not r.idled)
        cell = next(cells, None)
        if cell is None:
            return False
        frames = self._composer.stream(f"[sandbox] {text}\n", cell.header)
        self._broadcast.send(frames, essential=True, parent=cell.header)
        return True

    def fence(self, channel: Channel) -> list[bytes]:
        """A request of our own for the kernel, which answers in order: what of ``channel`` waited
        before it and has no answer when it comes back gets none any more.
        """
        for request in self._pending:
            if request.channel is channel and request.identities == FENCE:
                self._pending.remove(request)
        frames = self._composer.message("kernel_info_request", {}, identities=FENCE)
        header = frames[len(FENCE) + 2]
        fields = json.loads(header)
        names = Header(fields["msg_id"], fields["msg_type"], fields["session"])
        self._pending.add(channel, FENCE, names, header)
        return frames

    def fence_came_back(self, fence: Request) -> None:
        """What asked before it and has no reply gets none from the kernel any more."""
        self._pending.remove(fence)
        for request in self._pending:
            if request.channel is not fence.channel or request.number > fence.number:
                continue
            if request.reply_at_risk and not request.replied:
                self.error_reply(request, LOST)
                if request.idle_at_risk and not request.idled:
                    self.idle(request)

    def _settle(self, request: Request) -> None:
        if request.over:
            self._pending.remove(request)
