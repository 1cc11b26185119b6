"""What stands between the log and the machine: envelopes, client sessions, published member records. (diss. 6.3)

A command in the log begins with a byte that says what it is. Bytes below `RESERVED` are ours:

- `SESSION` (0x00): MessagePack of `OpenSession`, `InSession` or `CloseSession`;
- `PUBLISH` (0x01): MessagePack of `Publish`: what a member says of itself;
- `ESCAPED` (0x02): a machine's command follows, whatever its first byte.

Everything else is the machine's command as it is (the key-value machine's are MessagePack arrays and never begin so
low); `plain` escapes where that is needed. A byte that this version does not know stops the member: a newer version
would do something with it, and doing nothing would make two states of one log.

Sessions make a retry safe: the state remembers which sequence numbers of a session were executed, and the replies that
the client may still ask for; a command that comes again gets the first one's reply. All of it lives in the machine's
annex, hence in every snapshot, and changes by log entries only, so it is alike on every member. Everything is bounded:
past `SESSIONS_MAX` the session that was used longest ago (in the order of the log) expires; a session keeps the
replies of at most `WINDOW_MAX` commands and `REPLY_BYTES_MAX` bytes, past which it remembers that a command was
executed but not its reply.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated, Any, Final, Protocol, runtime_checkable

import msgspec
from msgspec import Meta

from oarlock.errors import Rejected
from oarlock.machines.base import Context, Machine
from oarlock.node.replica.directory import RECORD_BYTES_MAX, MemberRecord, decode_record

RESERVED: Final = 8
SESSION: Final = 0
PUBLISH: Final = 1
ESCAPED: Final = 2

SESSIONS_MAX: Final = 1024
WINDOW_MAX: Final = 128  # commands of one session that may be outstanding
REPLY_BYTES_MAX: Final = 128 * 1024  # of encoded replies kept for one session
RECORDS_MAX: Final = 256  # published member records; past it the one published longest ago goes

SESSION_KEY: Final = b"session/"
RECORD_KEY: Final = b"member/"
STAMP_KEY: Final = b"stamp"

_POSITION_BITS: Final = 20  # of a command in its entry: a batch of 1 MiB holds fewer commands than this counts

U64 = Annotated[int, Meta(ge=0)]  # MessagePack has none above 2**64 - 1


class OpenSession(msgspec.Struct, tag=1, array_like=True, gc=False):
    """Begin a session. `nonce` is the client's own: opening again with the same one gives the same session."""

    nonce: U64


class InSession(msgspec.Struct, tag=2, array_like=True, gc=False):
    """A command of the machine, to be executed once. `lowest` is the lowest sequence number whose reply the client
    still waits for; replies below it are forgotten. Sequence numbers begin at 1."""

    session: U64
    sequence: U64
    lowest: U64
    command: bytes


class CloseSession(msgspec.Struct, tag=3, array_like=True, gc=False):
    session: U64


class Publish(msgspec.Struct, array_like=True, gc=False):
    """`record` is an encoded `MemberRecord`."""

    member: U64
    record: bytes


class SessionOpened(msgspec.Struct, frozen=True, gc=False):
    """The result of `OpenSession`."""

    session: int


class SessionClosed(msgspec.Struct, frozen=True, gc=False):
    """The result of `CloseSession`, also for a session that was gone already."""


class SessionExpired(Rejected):
    """The session is not known (any more). This command was not executed; of an earlier attempt nothing is known."""

    def __init__(self, session: int) -> None:
        super().__init__(
            "session_expired",
            f"session {session:x} has expired or never was: open a new one, and find out by reading what became of "
            "commands without an answer",
        )
        self.session = session


@runtime_checkable
class ResultCodec(Protocol):
    """What a machine may offer so that its results can be kept for a repeated command exactly as they were.

    Without it results go through MessagePack and come back as plain values: a struct as a dict.
    """

    def encode_result(self, result: Any) -> bytes: ...

    def decode_result(self, data: bytes) -> object: ...


class _Reply(msgspec.Struct, array_like=True, gc=False):
    """`data` is None if the reply was too large, or of no form that can be kept."""

    sequence: int
    data: bytes | None


class _Session(msgspec.Struct, array_like=True):
    used: int  # position in the log of its last use
    nonce: int
    lowest: int
    replies: list[_Reply]  # ascending sequence


_encoder: Final = msgspec.msgpack.Encoder()
_envelope_decoder: Final = msgspec.msgpack.Decoder(OpenSession | InSession | CloseSession)
_publish_decoder: Final = msgspec.msgpack.Decoder(Publish)
_session_decoder: Final = msgspec.msgpack.Decoder(_Session)
_record_decoder: Final = msgspec.msgpack.Decoder(tuple[int, bytes])


def plain(command: bytes) -> bytes:
    """A machine's command as it goes into the log.

    >>> plain(b"set x"), plain(bytes([0, 7]))
    (b'set x', b'\\x02\\x00\\x07')
    """
    return bytes((ESCAPED,)) + command if command and command[0] < RESERVED else command


def open_session(nonce: int) -> bytes:
    """The command whose result is `SessionOpened`."""
    return b"\x00" + _encoder.encode(OpenSession(nonce))


def in_session(session: int, sequence: int, lowest: int, command: bytes) -> bytes:
    """`command`, executed at most once under this sequence number."""
    return b"\x00" + _encoder.encode(InSession(session, sequence, lowest, command))


def close_session(session: int) -> bytes:
    return b"\x00" + _encoder.encode(CloseSession(session))


def publish(member: int, record: bytes) -> bytes:
    """The command by which a member says its name and URLs. `record` comes from `encode_record`."""
    return b"\x01" + _encoder.encode(Publish(member, record))


def known_kind(command: bytes) -> bool:
    """Whether this version can apply a command of this kind; a leader takes no other into its log."""
    return not command or command[0] >= RESERVED or command[0] <= ESCAPED


class Envelope:
    """One member's side of the module: applies entries to `machine`, and keeps the sessions beside it in its annex.

    `flush` writes what changed to the annex; it must be called before anything may look at the machine's state as a
    whole (capture, checkpoint), that is at the end of every run of entries.
    """

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._sessions: OrderedDict[int, _Session] = OrderedDict()  # used longest ago first
        self._by_nonce: dict[int, int] = {}
        self._records: dict[int, tuple[int, MemberRecord]] = {}  # member -> (published at, record)
        self._dirty: dict[int, None] = {}  # sessions changed since the last flush, in that order
        self._stamp = 0
        self._stamp_dirty = False
        self.load()

    def load(self) -> None:
        """Read everything back from the annex: at the start, and after the machine was restored."""
        sessions: list[tuple[int, int, _Session]] = []
        self._records = {}
        self._stamp = 0
        for key, value in self._machine.annex_items():
            if key.startswith(SESSION_KEY):
                session = _session_decoder.decode(value)
                sessions.append((session.used, int.from_bytes(key[len(SESSION_KEY) :], "big"), session))
            elif key.startswith(RECORD_KEY):
                at, record = _record_decoder.decode(value)
                self._records[int.from_bytes(key[len(RECORD_KEY) :], "big")] = (at, decode_record(record))
            elif key == STAMP_KEY:
                self._stamp = int.from_bytes(value, "big")
        sessions.sort(key=lambda item: item[:2])
        self._sessions = OrderedDict((number, session) for _, number, session in sessions)
        self._by_nonce = {session.nonce: number for number, session in self._sessions.items()}
        self._dirty = {}
        self._stamp_dirty = False

    @property
    def records(self) -> dict[int, MemberRecord]:
        """What members have published of themselves."""
        return {member: record for member, (_, record) in sorted(self._records.items())}

    def record_of(self, member: int) -> MemberRecord | None:
        found = self._records.get(member)
        return found[1] if found is not None else None

    @property
    def session_count(self) -> int:
        return len(self._sessions)

    @property
    def stamp_ns(self) -> int:
        """The time of the last entry: wall-clock time as leaders stamped it, never going back."""
        return self._stamp

    def apply_empty(self, index: int, term: int) -> None:
        """An entry without commands."""
        self._machine.apply(Context(index, term, self._stamp), ())

    def apply(self, index: int, term: int, stamp_ns: int, commands: Sequence[bytes]) -> list[object]:
        """Apply one entry; one result for each command. Raises what the machine raises: then the member must stop."""
        if stamp_ns > self._stamp:
            self._stamp = stamp_ns
            self._stamp_dirty = True
        context = Context(index, term, self._stamp)
        for command in commands:
            if command and command[0] < RESERVED:
                return self._apply_enveloped(context, commands)
        results = self._machine.apply(context, commands)
        assert len(results) == len(commands), f"{len(results)} results for {len(commands)} commands at {term}.{index}"
        return results

    def _apply_enveloped(self, context: Context, commands: Sequence[bytes]) -> list[object]:
        inner: list[bytes] = []
        results: list[object] = [None] * len(commands)
        places: list[tuple[int, int]] = []  # (place in results, place in inner)
        executed: dict[tuple[int, int], int] = {}  # (session, sequence) -> place in inner, of this entry
        for place, command in enumerate(commands):
            kind = command[0] if command else RESERVED
            if kind >= RESERVED or kind == ESCAPED:
                places.append((place, len(inner)))
                inner.append(command[1:] if kind == ESCAPED else command)
            elif kind == PUBLISH:
                results[place] = self._publish(context.index, command)
            elif kind == SESSION:
                found = self._session_command(context.index << _POSITION_BITS | place, command)
                if not isinstance(found, InSession):
                    results[place] = found
                    continue
                key = (found.session, found.sequence)
                if key not in executed:
                    executed[key] = len(inner)
                    inner.append(found.command)
                places.append((place, executed[key]))
            else:
                raise ValueError(
                    f"entry {context.term}.{context.index} holds a command of kind {kind:#04x}, which this version "
                    "does not know: upgrade this member"
                )
        answers = self._machine.apply(context, inner)
        assert len(answers) == len(inner), f"{len(answers)} results for {len(inner)} commands at {context.index}"
        for place, at in places:
            results[place] = answers[at]
        for (number, sequence), at in executed.items():
            self._keep(number, sequence, answers[at])
        return results

    def _publish(self, index: int, command: bytes) -> object:
        try:
            news = _publish_decoder.decode(memoryview(command)[1:])
            if len(news.record) > RECORD_BYTES_MAX:
                raise ValueError("too large")
            record = decode_record(news.record)
        except ValueError as error:
            return Rejected("malformed", f"not a member record: {error}")
        self._records.pop(news.member, None)
        self._records[news.member] = (index, record)
        self._machine.annex_put(RECORD_KEY + news.member.to_bytes(8, "big"), _encoder.encode((index, news.record)))
        if len(self._records) > RECORDS_MAX:
            oldest = min(self._records, key=lambda member: (self._records[member][0], member))
            del self._records[oldest]
            self._machine.annex_delete(RECORD_KEY + oldest.to_bytes(8, "big"))
        return None

    def _session_command(self, position: int, command: bytes) -> object:
        """The answer, or the `InSession` whose command is to be executed now."""
        try:
            envelope = _envelope_decoder.decode(memoryview(command)[1:])
        except ValueError as error:
            return Rejected("malformed", f"not a session command: {error}")
        if isinstance(envelope, InSession):
            return self._admit(position, envelope)
        if isinstance(envelope, OpenSession):
            return self._open(position, envelope.nonce)
        self._forget(envelope.session)
        return SessionClosed()

    def _open(self, position: int, nonce: int) -> SessionOpened:
        known = self._by_nonce.get(nonce)
        if known is not None:
            self._touch(known, self._sessions[known], position)
            return SessionOpened(known)
        while len(self._sessions) >= SESSIONS_MAX:
            self._forget(next(iter(self._sessions)))
        self._sessions[position] = _Session(position, nonce, 1, [])
        self._by_nonce[nonce] = position
        self._dirty[position] = None
        return SessionOpened(position)

    def _touch(self, number: int, session: _Session, position: int) -> None:
        session.used = position
        self._sessions.move_to_end(number)
        self._dirty[number] = None

    def _forget(self, number: int) -> None:
        session = self._sessions.pop(number, None)
        if session is not None:
            del self._by_nonce[session.nonce]
            self._dirty.pop(number, None)
            self._machine.annex_delete(SESSION_KEY + number.to_bytes(8, "big"))

    def _admit(self, position: int, asked: InSession) -> object:
        session = self._sessions.get(asked.session)
        if session is None:
            # sometimes: a session is not known
            return SessionExpired(asked.session)
        self._touch(asked.session, session, position)
        if asked.lowest > session.lowest:
            session.lowest = asked.lowest
            session.replies = [reply for reply in session.replies if reply.sequence >= asked.lowest]
        if asked.sequence < session.lowest:
            return Rejected(
                "sequence_forgotten",
                f"command {asked.sequence} was answered before: the client has said that it waits for {session.lowest} "
                "and later only",
            )
        for reply in session.replies:
            if reply.sequence == asked.sequence:
                # sometimes: a command of a session comes again
                return self._repeat(reply)
        if asked.sequence >= session.lowest + WINDOW_MAX:
            return Rejected(
                "session_window",
                f"command {asked.sequence} is more than WINDOW_MAX ({WINDOW_MAX}) past {session.lowest}, the lowest "
                "that the client waits for: wait for that one first",
            )
        return asked

    def _repeat(self, reply: _Reply) -> object:
        if reply.data is None:
            return Rejected("reply_not_kept", f"command {reply.sequence} was executed before; its reply was not kept")
        machine: object = self._machine
        if isinstance(machine, ResultCodec):
            return machine.decode_result(reply.data)
        return msgspec.msgpack.decode(reply.data)

    def _keep(self, number: int, sequence: int, result: object) -> None:
        session = self._sessions.get(number)
        if session is None or sequence < session.lowest:  # closed, expired or acknowledged later in the same entry
            return
        machine: object = self._machine
        data: bytes | None
        try:
            data = machine.encode_result(result) if isinstance(machine, ResultCodec) else _encoder.encode(result)
        except TypeError:  # a machine's own class; alike on every member, since results are
            data = None
        kept = sum(len(reply.data) for reply in session.replies if reply.data is not None)
        if data is not None and kept + len(data) > REPLY_BYTES_MAX:
            data = None
        replies = session.replies
        at = len(replies)
        while at and replies[at - 1].sequence > sequence:
            at -= 1
        replies.insert(at, _Reply(sequence, data))
        self._dirty[number] = None

    def flush(self) -> None:
        """Write what changed to the annex."""
        if self._stamp_dirty:
            self._machine.annex_put(STAMP_KEY, self._stamp.to_bytes(8, "big"))
            self._stamp_dirty = False
        if self._dirty:
            for number in self._dirty:
                key = SESSION_KEY + number.to_bytes(8, "big")
                self._machine.annex_put(key, _encoder.encode(self._sessions[number]))
            self._dirty = {}
