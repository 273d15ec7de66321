"""The proxy of one kernel, as the supervisor's poll loop uses it.

::

    front_ends = bind_front_ends(info)               # host net namespace, no zmq context yet
    back_ends = BackEnds(kernel, MessageLimits())
    proxy = Proxy(front_ends, back_ends, limits=MessageLimits(), log=log, gauge=gauge)
    proxy.connect_back_ends()                        # when the kernel says that it has bound
    proxy.register(poller)
    while ...:
        proxy.dispatch(dict(poller.poll(proxy.timeout_ms())))
    proxy.fail_pending("KernelCrashed", "...", [])   # if the kernel is dead
    proxy.close()

Until it is registered nothing is read from the clients: their requests wait in libzmq. The back
ends of shell, control and stdin share one routing id, or a kernel's ``input_request`` finds no way
to the client whose cell asked. The heartbeat is forwarded like the rest: an answer from here would
hide a kernel that hangs. Only for one that is paused there is one, see :mod:`.heartbeat`.

Curve ends here: with keys in the client's connection info the front sockets are Curve servers, and
the private link to the kernel is plain.
"""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import zmq

from ..errors import ChannelError, describe_errno
from ..output import OutputCaps
from . import wire
from .accounting import Accounting, Journal, Meter
from .announcements import Announcements
from .answers import GIVEN_UP, Answers
from .backends import BackEnds
from .broadcast import Broadcast
from .connection import Channel
from .cutting import Cutting
from .gauge import Gauge
from .heartbeat import Heartbeat
from .judge import Judge
from .lane import Lane
from .limits import MessageLimits
from .listeners import FrontEnds
from .messages import Composer, Failure, Signer
from .monitoring import LinkMonitor
from .pending import PendingTable
from .report import Report
from .upstream import Cells, Upstream

_LANES: Final = (Channel.SHELL, Channel.CONTROL, Channel.STDIN, Channel.HB)

Socket = zmq.Socket[bytes]


class Proxy:
    """Takes the sockets out of ``front_ends`` and removes its ipc files when it is closed.

    ``back_ends`` are the proxy's from now on as well. The kernel has the clients' key, since
    messages pass unchanged. ``log`` gets a line now and then, never one with bytes from a message.
    ``gauge`` is the proxy's from now on. ``meter`` measures the kernel, ``journal`` writes down
    what ran: both are the caller's to close.
    ``output`` caps what the kernel may say on iopub.

    Raises:
        ChannelError: a socket could not be set up; ``front_ends`` is then closed.
    """

    def __init__(
        self,
        front_ends: FrontEnds,
        back_ends: BackEnds,
        *,
        limits: MessageLimits,
        log: Callable[[str], None],
        gauge: Gauge,
        meter: Meter | None = None,
        journal: Journal | None = None,
        output: OutputCaps | None = None,
    ) -> None:
        self._accounting = Accounting(limits, meter, journal)
        self._front_ends = front_ends
        self._back_ends = back_ends
        self._limits = limits
        self._report = Report(log, limits.log_seconds)
        self._gauge = gauge
        self._output = output or OutputCaps()
        self._crowded = False
        self._failure: Failure | None = None
        self._poller: zmq.Poller | None = None
        self._interest: dict[Socket, int] = {}
        self._is_ordinary = False
        self._fences_due: set[Channel] = set()
        self._monitors = back_ends.monitors
        self._context = back_ends.context
        try:
            fronts = {channel: self._front(channel) for channel in Channel}
        except zmq.ZMQError as error:
            self._abandon()
            raise ChannelError(
                "the proxy's sockets could not be set up", cause=describe_errno(error.errno or 0)
            ) from error
        self._assemble(fronts, back_ends.sockets)

    # -- building ---------------------------------------------------------------------------

    def _front(self, channel: Channel) -> Socket:
        info = self._front_ends.info
        kind = zmq.XPUB if channel is Channel.IOPUB else zmq.ROUTER
        front: Socket = self._context.socket(kind)
        front.linger = int(self._limits.linger_seconds * 1000)
        front.maxmsgsize = self._limits.max_client_frame_bytes
        front.rcvhwm = front.sndhwm = self._limits.front_hwm
        if kind == zmq.XPUB:
            front.sndhwm = self._limits.iopub_hwm
            front.setsockopt(zmq.XPUB_NODROP, 1)
            front.setsockopt(zmq.XPUB_VERBOSER, 1)
        else:
            front.setsockopt(zmq.ROUTER_HANDOVER, 1)
        if channel in (Channel.SHELL, Channel.CONTROL):
            front.sndhwm = self._limits.reply_hwm
        if channel is Channel.STDIN:
            front.sndhwm = self._limits.max_questions
        if info.curve_secretkey is not None and info.curve_publickey is not None:
            front.curve_secretkey = info.curve_secretkey
            front.curve_publickey = info.curve_publickey
            front.curve_server = True
        sock = self._front_ends.sockets[channel]
        if info.transport == "ipc":
            endpoint = info.endpoint(channel)
        else:
            # libzmq parses this and does not use it; a name or address would be looked up here, in
            # a net namespace where it does not exist
            front.ipv6 = sock.family.name == "AF_INET6"
            endpoint = f"tcp://*:{info.port(channel)}"
        front.setsockopt(zmq.USE_FD, sock.fileno())
        front.bind(endpoint)
        sock.detach()  # libzmq closes it
        return front

    def _assemble(self, fronts: Mapping[Channel, Socket], backs: Mapping[Channel, Socket]) -> None:
        limits, report = self._limits, self._report
        signer = Signer(self._front_ends.info.key, self._front_ends.info.signature_scheme)
        composer = Composer(signer)
        self._pending = PendingTable(limits.max_pending)
        self._broadcast = Broadcast(fronts[Channel.IOPUB], limits, composer, report)
        self._answers = Answers(composer, self._broadcast, fronts, self._pending, self._accounting)
        self._announcements = Announcements(self._broadcast, composer)
        self._heartbeat = Heartbeat(fronts[Channel.HB])
        self._judge = judge = Judge(
            signer, limits, self._pending, self._answers, self._announcements,
            self._heartbeat, report, self._accounting,
        )  # fmt: skip
        self._upstream = Upstream(
            backs[Channel.IOPUB], self._broadcast, signer, limits,
            self._pending, report, self._accounting, composer,
            Cutting(self._output, self._broadcast, composer, report), self._answers,
        )  # fmt: skip
        self._lanes = [
            Lane(
                channel, fronts[channel], backs[channel], limits, report,
                judge_request=judge.request, judge_reply=judge.reply,
            )
            for channel in _LANES
        ]  # fmt: skip

    def _abandon(self) -> None:
        self._gauge.close()
        self._context.destroy(linger=0)
        self._front_ends.close()

    # -- the supervisor's calls -------------------------------------------------------------

    @property
    def dropped(self) -> Mapping[str, int]:
        """How often what was dropped, by reason."""
        return self._report.counts

    def connect_back_ends(self) -> None:
        """See :meth:`.backends.BackEnds.connect`."""
        self._back_ends.connect()

    def register(self, poller: zmq.Poller) -> None:
        """Have ``poller`` wait for all that :meth:`dispatch` handles, from now until close."""
        self._poller = poller
        self._gauge.start()
        poller.register(self._gauge.fileno(), wire.POLLIN)
        self._update_interest()

    def dispatch(self, events: Mapping[Socket | int, int]) -> None:
        """Handle what the poller found, at most a burst of messages a socket; never blocks.

        Keys that are not the proxy's are ignored. Call it when :meth:`timeout_ms` has passed too.

        Raises:
            SandboxError: the journal could not write down what ran. Nothing more may run.
        """
        if self._poller is None:
            return
        if self._gauge.is_due() or self._crowded:
            self._look_at_memory()
        for channel, monitor in self._monitors.items():
            if events.get(monitor.socket):
                self._look_at_link(channel, monitor)
        self._broadcast.flush()
        self._answers.pay()
        if events.get(self._broadcast.socket):
            self._broadcast.take_subscriptions()
        if events.get(self._upstream.socket):
            self._upstream.pump()
        for lane in self._lanes:
            if events.get(lane.back, 0) & wire.POLLIN:
                lane.pump_replies()
            if events.get(lane.front) or events.get(lane.back, 0) & wire.POLLOUT:
                lane.pump_requests()
        if self._fences_due:  # after the pumps, which make room
            self._ask_for_fences()
        if self._failure is not None:
            self._answers.fail_all(self._failure)
        self._update_interest()
        broken, self._accounting.broken = self._accounting.broken, None
        if broken is not None:
            raise broken

    def timeout_ms(self) -> int | None:
        """How long the poller may wait; ``None``: for ever.

        Only while a client is slow, or a link brings junk, is there something to be tried again
        without an event.
        """
        timeouts = [self._broadcast.timeout_ms(), self._upstream.junk.timeout_ms()]
        timeouts += [lane.junk.timeout_ms() for lane in self._lanes]
        return min((t for t in timeouts if t is not None), default=None)

    def watch_cells(self, cells: Cells) -> None:
        """``cells`` is told of the begin and the end of each from now on."""
        self._upstream.cells = cells

    def announce(self, text: str) -> None:
        """Tell the user in the notebook: a line on the standard error of the next cell."""
        self._announcements.add(text)

    def tell(self, text: str) -> None:
        """The same beside the cell that runs, where one does."""
        if not self._answers.tell(text):
            self._announcements.add(text)

    def before_cell(self, call: Callable[[], None]) -> None:
        """Have this called before a cell reaches a kernel that runs none. It takes no time."""
        self._judge.before_cell = call

    @property
    def cell(self) -> int | None:
        """The number of the cell that runs: the oldest that a client asked for and has no reply."""
        return self._pending.cell

    @property
    def uses(self) -> int:
        """How often clients have asked the kernel for something; what they ask by themselves, such
        as who it is, does not count."""
        return self._judge.uses

    def pause(self) -> None:
        """The kernel is about to be stopped on order: heartbeats are answered here from now on.

        All else waits for it: in libzmq's bounded queues, then in those of the clients.
        """
        self._heartbeat.pause()

    def resume(self) -> None:
        """The kernel runs again. Twice is once."""
        self._heartbeat.resume()

    def fail_pending(self, ename: str, evalue: str, traceback: Sequence[str]) -> None:
        """The kernel is dead: answer what is and will be asked, with an error.

        Every request that a client waits for gets its reply (status error) and its idle; the
        running cell shows the error. Covers requests that were not read before. What the kernel
        still said passes first. Then everything is flushed, for at most ``linger_seconds``.
        """
        self._failure = Failure(ename, evalue, tuple(traceback))
        for lane in self._lanes:
            lane.stop_forwarding()
        deadline = time.monotonic() + self._limits.linger_seconds
        while self._pump_all() and time.monotonic() < deadline:
            pass
        self._answers.fail_all(self._failure)
        self._flush(deadline)

    def finish_accounts(self) -> None:
        """The kernel is gone: what is still open gets no reply. Twice is once."""
        self._accounting.close()

    def close(self) -> None:
        """Flush for ``linger_seconds`` at most, end libzmq, remove ipc files. Twice is once."""
        if self._context.closed:
            return
        deadline = time.monotonic() + self._limits.linger_seconds
        self._flush(deadline)
        for socket in list(self._interest):
            self._set_interest(socket, 0)
        if self._poller is not None:
            self._poller.unregister(self._gauge.fileno())
        self._poller = None
        self._gauge.close()
        for monitor in self._monitors.values():
            monitor.close()
        left = max(deadline - time.monotonic(), 0.1)
        for lane in self._lanes:
            lane.front.close(linger=int(left * 1000))
            lane.back.close(linger=0)
        self._broadcast.socket.close(linger=int(left * 1000))
        self._upstream.socket.close(linger=0)
        self._context.term()
        self._front_ends.close()

    # -- details ----------------------------------------------------------------------------

    def _pump_all(self) -> int:
        """One round without a poller; how many messages there were."""
        self._broadcast.take_subscriptions()
        count = self._upstream.pump()
        for lane in self._lanes:
            count += lane.pump_replies()
            count += lane.pump_requests()
        return count

    def _pump_back(self, channel: Channel) -> None:
        if channel is Channel.IOPUB:
            self._upstream.pump()
        for lane in self._lanes:
            if lane.channel is channel:
                lane.pump_replies()

    def _flush(self, deadline: float) -> None:
        self._broadcast.flush()
        while self._broadcast.held and (left := deadline - time.monotonic()) > 0:
            select.select([self._broadcast.socket], [], [], min(left, 0.01))
            self._broadcast.flush()
            self._answers.pay()

    def _look_at_memory(self) -> None:
        """See :class:`~.limits.MessageLimits`: hand out no more, or let go of what has no end."""
        queued = self._broadcast.queued  # it would keep itself from getting shorter
        used = self._gauge.used(self._limits.crowded_bytes + queued)
        self._crowded = used > self._limits.crowded_bytes + queued
        self._broadcast.crowded = self._judge.crowded = self._crowded
        if used <= self._limits.full_bytes:
            return
        for channel in Channel:  # whole messages leave the way, or are dropped
            self._pump_back(channel)
        if self._gauge.used(self._limits.full_bytes) > self._limits.full_bytes:
            self._report(
                "cut the links to the kernel: what it sends takes more than "
                f"{self._limits.full_bytes} bytes, as of a message without an end"
            )
            for monitor in self._monitors.values():
                monitor.cut()

    def _look_at_link(self, channel: Channel, monitor: LinkMonitor) -> None:
        self._pump_back(channel)
        if monitor.was_restored():
            self._report(
                f"the link to the kernel's {channel.value} channel was cut and made again: the "
                f"kernel sent a frame larger than {self._limits.max_frame_bytes} bytes, or "
                "something that is not ZMTP; messages were lost"
            )
            lost = f"output was lost: a message of more than {self._limits.max_frame_bytes} bytes"
            if channel is Channel.IOPUB and not self._answers.tell(lost):
                self._announcements.add(lost)
            self._answers.after_a_cut(channel)
            if channel in (Channel.SHELL, Channel.CONTROL):
                self._fences_due.add(channel)
        if monitor.given_up and self._failure is None:
            self._report(f"gave up the link to the kernel's {channel.value} channel: cut too often")
            self._failure = GIVEN_UP
            for lane in self._lanes:
                lane.stop_forwarding()

    def _ask_for_fences(self) -> None:
        """After a cut, when there is room; see :meth:`.answers.Answers.fence`."""
        for lane in self._lanes:
            due = lane.channel in self._fences_due
            if due and lane.ask(self._answers.fence(lane.channel)):
                self._fences_due.remove(lane.channel)

    def _update_interest(self) -> None:
        ordinary = all(lane.is_ordinary for lane in self._lanes) and not self._upstream.junk.paused
        if ordinary and self._is_ordinary:
            return
        self._is_ordinary = ordinary
        for lane in self._lanes:
            for socket, flags in lane.interest().items():
                self._set_interest(socket, flags)
        self._set_interest(self._broadcast.socket, wire.POLLIN)
        self._set_interest(self._upstream.socket, 0 if self._upstream.junk.paused else wire.POLLIN)
        for monitor in self._monitors.values():
            self._set_interest(monitor.socket, wire.POLLIN)

    def _set_interest(self, socket: Socket, flags: int) -> None:
        if self._poller is None or self._interest.get(socket, 0) == flags:
            return
        self._interest[socket] = flags
        if flags:
            self._poller.register(socket, flags)
        else:
            with contextlib.suppress(KeyError):
                self._poller.unregister(socket)
