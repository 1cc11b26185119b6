"""One connection between two members: handshake, two outgoing queues, pings. (docs/reference/wire-formats.md)

Two queues, because a heartbeat that waits behind a snapshot costs an election. Control messages (everything but
`AppendEntries`, `InstallSnapshot` and `Propose`) go to the socket in the turn in which they were sent. Bulk goes while
the socket holds less than `bulk_mark_bytes` unsent, and in its own order. So a control message waits for the mark and
one bulk frame at most, and may overtake bulk sent before it; within each class nothing overtakes.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import Callable
from typing import Protocol, cast

from oarlock.errors import ProtocolViolation
from oarlock.raft.messages import Message
from oarlock.transport.handshake import (
    Hello,
    PeerRefused,
    Refusal,
    decode_first,
    decode_refusal,
    decode_stamp,
    encode_hello,
    encode_ping,
    encode_pong,
    encode_refusal,
)
from oarlock.transport.limits import TransportLimits
from oarlock.transport.roster import ASK, Ask, Roster, decode_ask, encode_roster
from oarlock.wire.frames import PING, PONG, REFUSAL, FrameParser


class Counters:
    """What one peer's connections have carried, over all of them."""

    __slots__ = ("dropped", "received_bytes", "received_messages", "rtt_ns", "sent_bytes", "sent_messages", "unknown")

    def __init__(self) -> None:
        self.sent_bytes = 0
        self.sent_messages = 0
        self.received_bytes = 0
        self.received_messages = 0
        self.dropped = 0
        self.unknown = 0
        self.rtt_ns = 0


class Owner(Protocol):
    """What a connection needs of its transport."""

    def greeting(self, connection: Connection, theirs: Hello) -> tuple[Hello | None, Refusal | None]:
        """Judge a hello: our answer to it if one is due, or the reason why there is none."""

    def asked(self, connection: Connection, ask: Ask) -> Roster | Refusal:
        """Who the members are; or why that is not told."""

    def opened(self, connection: Connection) -> None:
        """The handshake is done and `connection.peer_id` is set."""

    def received(self, connection: Connection, messages: list[tuple[int, Message]]) -> None:
        """Messages have come."""

    def violated(self, connection: Connection, error: ProtocolViolation) -> None:
        """The other side sent what no correct member sends; the connection is being closed."""

    def refused(self, connection: Connection, refusal: Refusal, by_us: bool) -> None:
        """The connection is being closed because one side refused the other."""

    def lost(self, connection: Connection, error: Exception | None) -> None:
        """The connection is gone."""


class State(enum.Enum):
    HANDSHAKE = "handshake"
    OPEN = "open"
    CLOSED = "closed"  # closing, or gone


class Connection(asyncio.Protocol):
    """An `asyncio.Protocol`. `dialled` is the id of the member that we wanted to reach, 0 if it came to us.

    `handshaken` ends with None when the connection is open and with the error when it never will be; `closed` ends when
    it is gone. Neither raises.
    """

    def __init__(
        self,
        owner: Owner,
        limits: TransportLimits,
        clock: Callable[[], int],
        loop: asyncio.AbstractEventLoop,
        *,
        address: str,
        dialled: int = 0,
        hello: Hello | None = None,
        secure: bool = False,
    ) -> None:
        self.address = address
        self.dialled = dialled
        self.secure = secure
        self.state = State.HANDSHAKE
        self.peer_id = 0
        self.name = ""
        self.incarnation = 0
        self.opened_at = 0
        self.last_frame_at = clock()  # the end of the last whole frame
        self.last_error = ""
        self.counters = Counters()  # replaced by the peer's own when the connection opens
        self.handshaken: asyncio.Future[Exception | None] = loop.create_future()
        self.closed: asyncio.Future[None] = loop.create_future()
        self.transport: asyncio.Transport | None = None
        self.owns_socket = False  # from then on the event loop closes it
        self.dirty = False  # has something to flush; kept by the transport
        self._owner = owner
        self._limits = limits
        self._clock = clock
        self._loop = loop
        self._hello = hello
        self._parser = FrameParser(address, handshaking=True)
        self._paused = False
        self._control: list[bytearray] = []
        self._control_bytes = 0
        self._bulk: deque[bytearray] = deque()
        self._bulk_bytes = 0

    # ------------------------------------------------------------ from asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        # `high` is the mark less one, so that a socket which holds the mark pauses us, and the end of the pause wakes
        # us.
        self.transport.set_write_buffer_limits(
            high=self._limits.bulk_mark_bytes - 1, low=self._limits.bulk_mark_bytes // 4
        )
        if self.state is State.CLOSED:  # given up while TLS was being agreed
            self.transport.abort()
        elif self._hello is not None:
            self.transport.write(encode_hello(self._hello))

    def data_received(self, data: bytes) -> None:
        if self.state is State.OPEN:
            self._take(data)
        elif self.state is State.HANDSHAKE:
            try:
                first = self._parser.first(data)
                if first is not None and first[0] == ASK and not self.dialled:
                    self._tell(decode_ask(self.address, first[1]))
                    return
                opened = first is not None and self._greet(decode_first(self.address, *first))
            except ProtocolViolation as error:
                self._violated(error)
                return
            if opened and self._parser.incomplete_bytes:
                self._take(b"")  # what followed the hello in the same read

    def eof_received(self) -> bool:
        return False  # a half-closed connection is of no use: close our half too

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self.state is State.OPEN:
            self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self.state = State.CLOSED
        self._drop_queues()
        if not self.handshaken.done():
            self.handshaken.set_result(
                exc or ConnectionResetError("the other side closed the connection in the handshake")
            )
        if exc is not None and not self.last_error:
            self.last_error = describe(exc)
        if not self.closed.done():
            self.closed.set_result(None)
        self._owner.lost(self, exc)

    # ------------------------------------------------------------ incoming

    def _take(self, data: bytes) -> None:
        parser, counters = self._parser, self.counters
        counters.received_bytes += len(data)
        frames = parser.frames
        try:
            messages = parser.feed(data)
            if parser.controls:
                self._take_controls()
        except ProtocolViolation as error:
            self._violated(error)
            return
        if parser.frames != frames:
            self.last_frame_at = self._clock()
        if parser.unknown:
            counters.unknown += parser.unknown
            parser.unknown = 0
        if messages and self.state is State.OPEN:
            counters.received_messages += len(messages)
            self._owner.received(self, messages)

    def _take_controls(self) -> None:
        assert self.transport is not None
        for number, body in self._parser.take_controls():
            if number == PING:
                sent = decode_stamp(self.address, body)
                # Somebody who asks and does not read the answers gets none, so that they cannot pile up.
                if self.state is State.OPEN and self.transport.get_write_buffer_size() < self._limits.control_bytes_max:
                    self.transport.write(encode_pong(sent))
            elif number == PONG:
                rtt = self._clock() - decode_stamp(self.address, body)
                if rtt < 0:
                    raise ProtocolViolation(self.address, "it answers a ping that was never sent")
                smooth = self.counters.rtt_ns
                self.counters.rtt_ns = (7 * smooth + rtt) // 8 if smooth else rtt
            elif number == REFUSAL:  # it looked at our answer and went
                self._refused(decode_refusal(self.address, body), by_us=False)
                return
            else:
                raise ProtocolViolation(self.address, "a second hello")

    def _greet(self, first: Hello | Refusal) -> bool:
        """Take the first frame; whether the connection is open now."""
        assert self.transport is not None
        if isinstance(first, Refusal):
            self._refused(first, by_us=False)
            return False
        answer, refusal = self._owner.greeting(self, first)
        if refusal is not None:
            self._refused(refusal, by_us=True)
            return False
        self.peer_id, self.name, self.incarnation = first.member_id, first.name, first.incarnation
        self._parser.peer = f"{first.member_id:x} ({self.address})"
        self._parser.minor = first.minor
        if answer is not None:
            self.transport.write(encode_hello(answer))
        self.state = State.OPEN
        self.opened_at = self.last_frame_at = self._clock()
        if not self.handshaken.done():
            self.handshaken.set_result(None)
        self._owner.opened(self)
        if self.dialled:
            self.ping()
        return True

    def _tell(self, ask: Ask) -> None:
        """Somebody who is no member asks who the members are: answer, and close."""
        assert self.transport is not None
        answer = self._owner.asked(self, ask)
        if isinstance(answer, Refusal):
            self._refused(answer, by_us=True)
            return
        self.transport.write(encode_roster(answer))
        if not self.handshaken.done():
            self.handshaken.set_result(None)
        self.close("it asked for the members")

    def _refused(self, refusal: Refusal, *, by_us: bool) -> None:
        assert self.transport is not None
        error = PeerRefused(refusal, by_us=by_us)
        self.last_error = str(error)
        if not self.handshaken.done():
            self.handshaken.set_result(error)
        self._owner.refused(self, refusal, by_us)
        if by_us:
            self.transport.write(encode_refusal(refusal))
        self.close()

    def _violated(self, error: ProtocolViolation) -> None:
        self.last_error = str(error)
        if not self.handshaken.done():
            self.handshaken.set_result(error)
        self._owner.violated(self, error)
        assert self.transport is not None
        self.transport.write(encode_refusal(Refusal("protocol", str(error))))
        self.close()

    # ------------------------------------------------------------ outgoing

    def queue_control(self, frame: bytearray) -> bool:
        """Keep `frame` for the next flush; False (and counted) if `control_bytes_max` is reached."""
        if self._control_bytes + len(frame) > self._limits.control_bytes_max:
            self.counters.dropped += 1
            return False
        self._control.append(frame)
        self._control_bytes += len(frame)
        return True

    def queue_bulk(self, frame: bytearray) -> bool:
        """Keep `frame` for the next flush; False (and counted) if `bulk_bytes_max` is reached.

        The new frame is the one to go: what stands before it in the queue still follows from what the peer has, and the
        entries after a gap would be refused anyhow. A frame larger than the bound passes when nothing else waits.
        """
        if self._bulk and self._bulk_bytes + len(frame) > self._limits.bulk_bytes_max:
            self.counters.dropped += 1
            return False
        self._bulk.append(frame)
        self._bulk_bytes += len(frame)
        return True

    def flush(self) -> None:
        """Hand over what may go now: usually one write. The rest follows when the socket has room."""
        transport = self.transport
        if self.state is not State.OPEN or transport is None or transport.is_closing():
            self._drop_queues()
            return
        limits, counters = self._limits, self.counters
        held = transport.get_write_buffer_size()
        chunks: list[bytearray] = []
        if self._control and held < limits.bulk_mark_bytes + limits.control_bytes_max:
            chunks, self._control = self._control, []
            self._control_bytes = 0
        bulk, total = self._bulk, 0
        while True:
            budget = limits.bulk_mark_bytes - held
            while bulk and budget > 0 and not self._paused:
                frame = bulk.popleft()
                budget -= len(frame)
                self._bulk_bytes -= len(frame)
                chunks.append(frame)
            if not chunks:
                return
            size = sum(map(len, chunks))
            counters.sent_bytes += size
            counters.sent_messages += len(chunks)
            if len(chunks) == 1:
                transport.write(chunks[0])
            else:
                transport.writelines(chunks)
            total += size
            if not bulk or self._paused:
                return
            if total >= limits.flush_bytes_max:  # the kernel takes all we give: let others have their turn
                self._loop.call_soon(self.flush)
                return
            chunks = []
            held = transport.get_write_buffer_size()

    def ping(self) -> None:
        """Ask for an answer, for the round-trip time and to see whether anybody is there."""
        transport = self.transport
        if self.state is not State.OPEN or transport is None or transport.is_closing():
            return
        if transport.get_write_buffer_size() < self._limits.control_bytes_max:
            transport.write(encode_ping(self._clock()))

    @property
    def waiting_bytes(self) -> int:
        """Bytes that were sent and that the kernel has not taken."""
        held = self.transport.get_write_buffer_size() if self.transport is not None and self.state is State.OPEN else 0
        return self._control_bytes + self._bulk_bytes + held

    def _drop_queues(self) -> None:
        self.counters.dropped += len(self._control) + len(self._bulk)
        self._control = []
        self._bulk.clear()
        self._control_bytes = self._bulk_bytes = 0

    # ------------------------------------------------------------ the end

    def close(self, error: str = "") -> None:
        """Close in order: what was handed to the socket still goes out, for `close_timeout_s` at most."""
        if error and not self.last_error:
            self.last_error = error
        if self.state is State.CLOSED and (self.transport is None or self.transport.is_closing()):
            return
        self.state = State.CLOSED
        self._drop_queues()
        if self.transport is not None:
            self.transport.close()
            timer = self._loop.call_later(self._limits.close_timeout_s, self.transport.abort)
            self.closed.add_done_callback(lambda _: timer.cancel())

    def abort(self, error: str) -> None:
        """Close at once."""
        if not self.last_error:
            self.last_error = error
        self.state = State.CLOSED
        self._drop_queues()
        if self.transport is not None:
            self.transport.abort()


def describe(error: BaseException) -> str:
    """An error in one line, never empty."""
    return str(error) or type(error).__name__
