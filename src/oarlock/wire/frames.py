"""Frames between members: a fixed header with a checksum, and one MessagePack array for the message.
(docs/reference/wire-formats.md)

This module does no I/O. `encode_frame` turns one message into one frame; `FrameParser` turns bytes, however they were
cut by the network, back into messages. Whatever the bytes, decoding gives a checked message or `ProtocolViolation`
(`ValueError` from `decode_body`), and a length is compared with its bound before anything of that length is kept.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from oarlock.errors import ProtocolViolation
from oarlock.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    ChangeMembers,
    ChangeMembersReply,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    InstallSnapshotReply,
    LeaseAnswer,
    LeaseAsk,
    Message,
    Propose,
    ProposeReply,
    ReadIndex,
    ReadIndexReply,
    RequestVote,
    RequestVoteReply,
    TimeoutNow,
    TransferLeadership,
)
from oarlock.raft.types import U64_MAX, Entry, EntryKind, SnapshotMeta, decode_configuration, encode_configuration
from oarlock.wire import shapes

PROTOCOL_MAJOR_MIN: Final = 1  # the oldest major version that this code speaks
PROTOCOL_MAJOR_MAX: Final = 1  # the newest
PROTOCOL_MINOR: Final = 2  # of the newest major: what was appended since, without breaking older readers

FRAME_LEAD: Final = 0xA1  # high nibble: a frame of ours; low nibble: layout 1 of the header
HEADER_BYTES: Final = 14
FRAME_BODY_BYTES_MAX: Final = 64 * 2**20  # of any frame; checked before a byte of the body is kept
HANDSHAKE_BODY_BYTES_MAX: Final = 4 * 2**10  # of a frame from somebody who has not said yet who it is
ENTRY_PAYLOAD_BYTES_MAX: Final = 32 * 2**20  # of one entry or one forwarded proposal
SNAPSHOT_CHUNK_BYTES_MAX: Final = 2**20
CONFIGURATION_BYTES_MAX: Final = 2**20  # encoded; 64 members with 4 KiB of context each stay well below
CHANGE_BYTES_MAX: Final = 8 * 2**10  # of one forwarded change of membership
LEASES_PER_MESSAGE_MAX: Final = 8192  # renewals and questions together

_HEADER = struct.Struct("<BIIIB")  # lead, crc of everything after it, length of the body, group, type
_CHECKED_FROM = 5  # the crc covers length, group, type and body
_DIGEST_BYTES = (0, 32)
_KIND_MAX = max(EntryKind)

# ---------------------------------------------------------------- shape -> message, with what the types cannot say


def _append_entries(m: Any) -> AppendEntries:
    index = m.prev_log_index
    if index + len(m.entries) > U64_MAX:
        raise ValueError(f"{len(m.entries)} entries after index {index} pass the largest index")
    previous_term = m.prev_log_term
    entries = []
    for entry in m.entries:
        index += 1
        term, payload = entry.term, entry.payload
        if term < previous_term:
            raise ValueError(f"entry {index} has term {term} after term {previous_term}: terms never go back in a log")
        if entry.kind > _KIND_MAX:
            raise ValueError(f"entry {index} is of kind {entry.kind}, which this version does not know")
        if len(payload) > ENTRY_PAYLOAD_BYTES_MAX:
            raise ValueError(f"entry {index} has {len(payload)} bytes of payload (at most {ENTRY_PAYLOAD_BYTES_MAX})")
        previous_term = term
        entries.append(Entry(term, index, entry.kind, payload))
    if previous_term > m.term:
        raise ValueError(f"a leader of term {m.term} sends a log that has term {previous_term}")
    return AppendEntries(
        term=m.term,
        prev_log_index=m.prev_log_index,
        prev_log_term=m.prev_log_term,
        entries=tuple(entries),
        commit_index=m.commit_index,
    )


def _install_snapshot(m: Any) -> InstallSnapshot:
    if len(m.data) > SNAPSHOT_CHUNK_BYTES_MAX:
        raise ValueError(f"a snapshot chunk of {len(m.data)} bytes (at most {SNAPSHOT_CHUNK_BYTES_MAX})")
    if m.offset + len(m.data) > U64_MAX:
        raise ValueError(f"a snapshot chunk of {len(m.data)} bytes at offset {m.offset} passes the largest offset")
    if len(m.digest) not in _DIGEST_BYTES:
        raise ValueError(f"a snapshot digest of {len(m.digest)} bytes (32, or none)")
    if len(m.configuration) > CONFIGURATION_BYTES_MAX:
        raise ValueError(f"a configuration of {len(m.configuration)} bytes (at most {CONFIGURATION_BYTES_MAX})")
    if m.snapshot_term > m.term:
        raise ValueError(f"a leader of term {m.term} sends a snapshot of term {m.snapshot_term}")
    meta = SnapshotMeta(
        index=m.index,
        term=m.snapshot_term,
        configuration=decode_configuration(m.configuration),
        size=m.size,
        digest=m.digest,
    )
    return InstallSnapshot(term=m.term, snapshot=meta, offset=m.offset, data=m.data, done=m.done)


def _propose(m: Any) -> Propose:
    if len(m.payload) > ENTRY_PAYLOAD_BYTES_MAX:
        raise ValueError(f"a proposal of {len(m.payload)} bytes (at most {ENTRY_PAYLOAD_BYTES_MAX})")
    return Propose(term=m.term, request=m.request, payload=m.payload)


def _few_leases(one: Sequence[int], other: Sequence[int]) -> None:
    if len(one) + len(other) > LEASES_PER_MESSAGE_MAX:
        raise ValueError(f"{len(one) + len(other)} leases in one message (at most {LEASES_PER_MESSAGE_MAX})")


def _lease_ask(m: Any) -> LeaseAsk:
    _few_leases(m.renew, m.query)
    return LeaseAsk(term=m.term, request=m.request, renew=tuple(m.renew), query=tuple(m.query))


def _lease_answer(m: Any) -> LeaseAnswer:
    _few_leases(m.renewed, m.remaining)
    return LeaseAnswer(
        term=m.term, request=m.request, renewed=tuple(m.renewed), remaining=tuple(m.remaining), reason=m.reason
    )


def _change(m: Any) -> ChangeMembers:
    if len(m.payload) > CHANGE_BYTES_MAX:
        raise ValueError(f"a change of membership of {len(m.payload)} bytes (at most {CHANGE_BYTES_MAX})")
    return ChangeMembers(term=m.term, request=m.request, payload=m.payload)


def _plain(message: type[Any], shape: type[Any]) -> Callable[[Any], Any]:
    """A builder for messages that have exactly their shape's fields."""
    names = shape.__struct_fields__

    def build(m: Any) -> Any:
        return message(**{name: getattr(m, name) for name in names})

    return build


def _append_reply(m: Any) -> AppendEntriesReply:  # written out, as are the next two: one of each for every round
    return AppendEntriesReply(
        term=m.term, success=m.success, index=m.index, hint_index=m.hint_index, hint_term=m.hint_term
    )


def _heartbeat(m: Any) -> Heartbeat:
    return Heartbeat(term=m.term, commit_index=m.commit_index, round=m.round, sent=m.sent, lease=m.lease)


def _heartbeat_reply(m: Any) -> HeartbeatReply:
    return HeartbeatReply(term=m.term, round=m.round, sent=m.sent)


# ---------------------------------------------------------------- message -> fields


def _append_fields(m: AppendEntries) -> tuple[object, ...]:
    entries = m.entries
    if entries:  # the indexes themselves do not travel
        first, last = m.prev_log_index + 1, m.prev_log_index + len(entries)
        assert entries[0].index == first and entries[-1].index == last, (
            f"{entries[0]}..{entries[-1]}: not {first}..{last}"
        )
        for e in entries:
            if len(e.payload) > ENTRY_PAYLOAD_BYTES_MAX:
                raise ValueError(f"entry {e} has {len(e.payload)} bytes of payload (at most {ENTRY_PAYLOAD_BYTES_MAX})")
    return (
        m.term, m.prev_log_index, m.prev_log_term, m.commit_index, [(e.term, e.kind, e.payload) for e in entries]
    )  # fmt: skip


def _snapshot_fields(m: InstallSnapshot) -> tuple[object, ...]:
    if len(m.data) > SNAPSHOT_CHUNK_BYTES_MAX:
        raise ValueError(f"a snapshot chunk of {len(m.data)} bytes (at most {SNAPSHOT_CHUNK_BYTES_MAX})")
    meta = m.snapshot
    configuration = encode_configuration(meta.configuration)
    return (m.term, meta.index, meta.term, configuration, meta.size, meta.digest, m.offset, m.data, m.done)


def _propose_fields(m: Propose) -> tuple[object, ...]:
    if len(m.payload) > ENTRY_PAYLOAD_BYTES_MAX:
        raise ValueError(f"a proposal of {len(m.payload)} bytes (at most {ENTRY_PAYLOAD_BYTES_MAX})")
    return (m.term, m.request, m.payload)


def _lease_ask_fields(m: LeaseAsk) -> tuple[object, ...]:
    _few_leases(m.renew, m.query)
    return (m.term, m.request, m.renew, m.query)


def _lease_answer_fields(m: LeaseAnswer) -> tuple[object, ...]:
    _few_leases(m.renewed, m.remaining)
    return (m.term, m.request, m.renewed, m.remaining, m.reason)


def _change_fields(m: ChangeMembers) -> tuple[object, ...]:
    if len(m.payload) > CHANGE_BYTES_MAX:
        raise ValueError(f"a change of membership of {len(m.payload)} bytes (at most {CHANGE_BYTES_MAX})")
    return (m.term, m.request, m.payload)


_Fields: TypeAlias = Callable[[Any], tuple[object, ...]]

# A type's number never changes and is never used again for another. 0 and 255 are never used; 240 and above are frames
# of the transport itself (`handshake`).
_TYPES: Final[tuple[tuple[int, type[Any], type[Any], Callable[[Any], Any] | None, _Fields], ...]] = (
    (1, RequestVote, shapes.Vote, None,
     lambda m: (m.term, m.last_log_index, m.last_log_term, m.pre_vote, m.transfer)),
    (2, RequestVoteReply, shapes.VoteReply, None, lambda m: (m.term, m.granted, m.pre_vote)),
    (3, AppendEntries, shapes.Append, _append_entries, _append_fields),
    (4, AppendEntriesReply, shapes.AppendReply, _append_reply,
     lambda m: (m.term, m.success, m.index, m.hint_index, m.hint_term)),
    (5, Heartbeat, shapes.Heartbeat, _heartbeat, lambda m: (m.term, m.commit_index, m.round, m.sent, m.lease)),
    (6, HeartbeatReply, shapes.HeartbeatReply, _heartbeat_reply, lambda m: (m.term, m.round, m.sent)),
    (7, InstallSnapshot, shapes.Snapshot, _install_snapshot, _snapshot_fields),
    (8, InstallSnapshotReply, shapes.SnapshotReply, None,
     lambda m: (m.term, m.snapshot_index, m.next_offset, m.installed)),
    (9, TimeoutNow, shapes.TimeoutNow, None, lambda m: (m.term,)),
    (10, TransferLeadership, shapes.Transfer, None, lambda m: (m.term, m.target)),
    (11, ReadIndex, shapes.ReadIndex, None,
     lambda m: (m.term, m.request, True) if m.confirmed else (m.term, m.request)),
    (12, ReadIndexReply, shapes.ReadIndexReply, None, lambda m: (m.term, m.request, m.index)),
    (13, Propose, shapes.Propose, _propose, _propose_fields),
    (14, ProposeReply, shapes.ProposeReply, None, lambda m: (m.term, m.request, m.reason)),
    (15, LeaseAsk, shapes.LeaseAsk, _lease_ask, _lease_ask_fields),
    (16, LeaseAnswer, shapes.LeaseAnswer, _lease_answer, _lease_answer_fields),
    (17, ChangeMembers, shapes.Change, _change, _change_fields),
    (18, ChangeMembersReply, shapes.ProposeReply, None, lambda m: (m.term, m.request, m.reason)),
)  # fmt: skip

HELLO: Final = 240
REFUSAL: Final = 241
PING: Final = 242
PONG: Final = 243

TYPE_OF: Final[dict[type[Any], int]] = {message: number for number, message, *_ in _TYPES}
BULK_TYPES: Final = frozenset(
    {AppendEntries, InstallSnapshot, Propose}
)  # may be large; all others are control messages

_ENCODE: Final[dict[type[Any], tuple[int, _Fields]]] = {
    message: (number, fields) for number, message, _, _, fields in _TYPES
}
_DECODE: Final[dict[int, tuple[Callable[[Any], Any], Callable[[Any], Any]]]] = {
    number: (msgspec.msgpack.Decoder(shape).decode, build or _plain(message, shape))
    for number, message, shape, build, _ in _TYPES
}
_ENCODER: Final = msgspec.msgpack.Encoder()
_BLANK: Final = bytes(HEADER_BYTES)


def encode_raw(number: int, group: int, fields: tuple[object, ...]) -> bytearray:
    """A frame of type `number` whose body is the array of `fields`. Never changed once made: sockets may keep it.

    Raises `ValueError` when the body would pass `FRAME_BODY_BYTES_MAX`.
    """
    frame = bytearray(_BLANK)
    _ENCODER.encode_into(fields, frame, HEADER_BYTES)
    length = len(frame) - HEADER_BYTES
    if length > FRAME_BODY_BYTES_MAX:
        raise ValueError(f"a frame of type {number} with {length} bytes (at most {FRAME_BODY_BYTES_MAX})")
    _HEADER.pack_into(frame, 0, FRAME_LEAD, 0, length, group, number)
    with memoryview(frame) as view:
        crc = zlib.crc32(view[_CHECKED_FROM:])
    frame[1:5] = crc.to_bytes(4, "little")
    return frame


def encode_frame(group: int, message: Message) -> bytearray:
    """One message of `group` (0 .. 2**32 - 1) as one frame.

    Raises `ValueError` for a payload, chunk or frame above its bound: whoever made the message let something in that
    cannot be replicated.
    """
    number, fields = _ENCODE[type(message)]
    return encode_raw(number, group, fields(message))


def decode_body(number: int, body: bytes | memoryview) -> Message:
    """The message of type `number` in `body`. Raises `ValueError` for what `encode_frame` could not have written."""
    known = _DECODE.get(number)
    if known is None:
        raise ValueError(f"message type {number} is not known")
    decode, build = known
    try:
        message: Message = build(decode(body))
    except (ValueError, RecursionError, OverflowError) as error:  # `msgspec.MsgspecError` is a `ValueError`
        raise ValueError(f"message type {number}: {error}") from error
    return message


class FrameParser:
    """Bytes in, checked messages out; no I/O. One for each connection.

    `peer` names the other side in errors. `minor` is the minor version that the other side said it speaks: frames of an
    unknown type are skipped and counted in `unknown` when it is above ours, and a violation otherwise. While a parser
    is `handshaking`, only `first` is called, and no frame may be larger than `HANDSHAKE_BODY_BYTES_MAX`.

    After `ProtocolViolation` the parser is of no use any more: the connection has lost its framing.
    """

    __slots__ = ("_body_max", "_buffer", "_need", "controls", "frames", "minor", "peer", "unknown")

    def __init__(self, peer: str = "?", *, handshaking: bool = False, minor: int = PROTOCOL_MINOR) -> None:
        self.peer = peer
        self.minor = minor
        self.unknown = 0  # frames skipped
        self.frames = 0  # frames read, of every type
        self.controls: list[tuple[int, bytes]] = []  # the transport's own frames since they were last taken
        self._buffer = bytearray()  # an incomplete frame
        self._need = HEADER_BYTES  # bytes in `_buffer` below which nothing can be said
        self._body_max = HANDSHAKE_BODY_BYTES_MAX if handshaking else FRAME_BODY_BYTES_MAX

    @property
    def incomplete_bytes(self) -> int:
        """Bytes of a frame whose end has not come."""
        return len(self._buffer)

    def first(self, data: bytes) -> tuple[int, bytes] | None:
        """Take bytes until the first frame is whole: its type and body, or None. What follows it waits for `feed`."""
        self._buffer += data
        if len(self._buffer) < self._need:
            return None
        with memoryview(self._buffer) as view:
            found = self._frame(view, 0)
            if found is None:
                return None
            end, _, number = found
            body = bytes(view[HEADER_BYTES:end])
        del self._buffer[:end]
        self.frames += 1
        self._need = HEADER_BYTES
        self._body_max = FRAME_BODY_BYTES_MAX
        return number, body

    def feed(self, data: bytes) -> list[tuple[int, Message]]:
        """Take the next bytes; the `(group, message)` pairs that they complete. Raises `ProtocolViolation`.

        A payload is copied once, from the read buffer into its `bytes`; a frame that came in several reads is gathered
        in one buffer first.
        """
        source: bytes | bytearray = data
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < self._need:
                return []
            source = self._buffer
            self._buffer = bytearray()
        messages: list[tuple[int, Message]] = []
        position, size = 0, len(source)
        with memoryview(source) as view:
            self._need = HEADER_BYTES
            while size - position >= HEADER_BYTES:
                found = self._frame(view, position)
                if found is None:
                    break
                end, group, number = found
                self.frames += 1
                if number in _DECODE:
                    try:
                        with view[position + HEADER_BYTES : end] as body:
                            messages.append((group, decode_body(number, body)))
                    except ValueError as error:
                        raise ProtocolViolation(self.peer, str(error)) from error
                elif number in (HELLO, REFUSAL, PING, PONG):
                    if end - position - HEADER_BYTES > HANDSHAKE_BODY_BYTES_MAX:
                        raise ProtocolViolation(self.peer, f"a control frame of {end - position} bytes")
                    self.controls.append((number, bytes(view[position + HEADER_BYTES : end])))
                elif self.minor > PROTOCOL_MINOR and number not in (0, 255):
                    self.unknown += 1
                else:
                    raise ProtocolViolation(self.peer, f"message type {number} is not known")
                position = end
            if position < size:
                self._buffer += view[position:]
        return messages

    def take_controls(self) -> list[tuple[int, bytes]]:
        """The transport's own frames (type, body) that came since the last call."""
        taken, self.controls = self.controls, []
        return taken

    def _frame(self, view: memoryview, position: int) -> tuple[int, int, int] | None:
        """Check the frame at `position`: its end, group and type; None, with `_need` set, when it is not whole."""
        lead, crc, length, group, number = _HEADER.unpack_from(view, position)
        if lead != FRAME_LEAD:
            raise ProtocolViolation(self.peer, _not_a_frame(bytes(view[position : position + 4])))
        if length > self._body_max:
            raise ProtocolViolation(self.peer, f"a frame of {length} bytes (at most {self._body_max} here)")
        end = position + HEADER_BYTES + length
        if end > len(view):
            self._need = HEADER_BYTES + length
            return None
        if zlib.crc32(view[position + _CHECKED_FROM : end]) != crc:
            raise ProtocolViolation(self.peer, f"the checksum of a frame of type {number}, {length} bytes, is wrong")
        return end, group, number


def _not_a_frame(start: bytes) -> str:
    """What somebody seems to speak who does not speak this protocol."""
    if start[:2] == b"\x16\x03":
        return "it speaks TLS and this connection is plain: use an http:// URL there, or give this member a certificate"
    if start in (b"GET ", b"POST", b"HEAD", b"PUT ", b"PRI "):
        return "it speaks HTTP: this is a port for members, clients have another one"
    if start[0] >> 4 == FRAME_LEAD >> 4:
        return f"frame layout {start[0] & 15} is not known (this version reads {FRAME_LEAD & 15})"
    return f"these bytes begin no frame: {start.hex(' ')}"
