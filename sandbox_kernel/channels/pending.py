"""The requests that a client still waits for, so that they can be finished without the kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from .connection import Channel
from .messages import Header, reply_type

_Key = tuple[Channel, tuple[bytes, ...], str]


@dataclass(slots=True, eq=False)
class Request:
    """One request. It is over when it was answered *and* ``status: idle`` was published."""

    channel: Channel
    identities: tuple[bytes, ...]
    """Routing ids of the client on the front ROUTER."""
    header: bytes
    """As the client sent it, checked: it becomes the parent header of what answers it."""
    msg_id: str
    msg_type: str
    number: int = 0
    """In order of arrival."""
    busy: bool = False
    begun: bool = False
    """The kernel was busy with it, now or before."""
    replied: bool = False
    idled: bool = False
    reply_at_risk: bool = False
    """The link of its channel was cut while it waited: the reply may have been lost."""
    idle_at_risk: bool = False
    """That of iopub was."""

    @property
    def over(self) -> bool:
        return self.replied and self.idled


class PendingTable:
    """In order of arrival, bounded: beyond ``capacity`` the oldest is forgotten."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._requests: dict[_Key, Request] = {}
        self._by_id: dict[str, Request] = {}
        self._cells: dict[int, Request] = {}
        """Those that are not over, by number."""
        self._arrived = 0

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(list(self._requests.values()))

    def add(
        self, channel: Channel, identities: tuple[bytes, ...], header: Header, raw: bytes
    ) -> bool:
        """A request was taken from a client. False if an older one had to be forgotten."""
        self._arrived += 1
        request = Request(
            channel, identities, raw, header.msg_id, header.msg_type, number=self._arrived
        )
        full = len(self._requests) >= self.capacity
        if full:
            self.remove(next(iter(self._requests.values())))
        if (again := self._requests.get(_key(request))) is not None:
            self._cells.pop(again.number, None)
        self._requests[_key(request)] = request
        self._by_id[request.msg_id] = request
        if request.msg_type == "execute_request":
            self._cells[request.number] = request
        return not full

    def answered(
        self, channel: Channel, identities: tuple[bytes, ...], parent: Header, msg_type: str
    ) -> Request | None:
        """The request that this reply answers, now marked; ``None`` if nobody waits for it."""
        request = self._requests.get((channel, identities, parent.msg_id))
        if request is None or request.replied or msg_type != reply_type(request.msg_type):
            return None
        request.replied = True
        self._remove_if_over(request)
        return request

    def status(self, msg_id: str, state: str) -> Request | None:
        """``status`` was published for the request ``msg_id``; the request, if it is known."""
        request = self._by_id.get(msg_id)
        if request is None:
            return None
        request.busy = state == "busy"
        request.begun = request.begun or request.busy
        request.idled = request.idled or state == "idle"
        self._remove_if_over(request)
        return request

    def find(self, msg_id: str) -> Request | None:
        """The request of this id that is not over."""
        return self._by_id.get(msg_id)

    def remove(self, request: Request) -> None:
        """It is finished, or forgotten."""
        self._requests.pop(_key(request), None)
        self._cells.pop(request.number, None)
        if self._by_id.get(request.msg_id) is request:
            del self._by_id[request.msg_id]

    def _remove_if_over(self, request: Request) -> None:
        if request.over:
            self.remove(request)

    @property
    def cell(self) -> int | None:
        """The number of the oldest cell without a reply."""
        return next((n for n, cell in self._cells.items() if not cell.replied), None)

    def executing(self) -> Request | None:
        """The cell that runs: the busy one, else the oldest that was not answered."""
        cells = [r for r in self if r.msg_type == "execute_request" and not r.replied]
        return next((cell for cell in cells if cell.busy), cells[0] if cells else None)


def _key(request: Request) -> _Key:
    return request.channel, request.identities, request.msg_id
