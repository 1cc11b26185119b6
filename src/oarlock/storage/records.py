"""The byte formats of the write-ahead log: segment preamble, record, payloads, watermark. Pure functions.

docs/reference/file-formats.md describes every field and the reasons; change both together, and `FORMAT` with them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, NamedTuple
from zlib import crc32

from oarlock.raft.types import GroupId, HardState, Index, SnapshotMeta, Term, decode_configuration, encode_configuration
from oarlock.storage.disk import aligned

FORMAT: Final = 1
MAGIC: Final = b"OARLKWAL"
WATERMARK_MAGIC: Final = b"OARLKSYN"

RECORD_PAYLOAD_BYTES_MAX: Final = 64 << 20
SEGMENT_BYTES_DEFAULT: Final = 64 << 20
SEGMENT_BYTES_MIN: Final = 4 << 10
SEGMENT_BYTES_MAX: Final = 1 << 30
DIGEST_BYTES_MAX: Final = 64
GROUP_MAX: Final = 2**32 - 1
NO_LENGTH: Final = bytes(8)  # length and inverse of zeros: not a record

FIRST: Final = 1  # flag: the first record of its batch
CUT: Final = 2  # flag of an ENTRY: it replaces the entry at its index and all after it
RESET: Final = 4  # flag of a SNAPSHOT: every entry of the group was dropped


class RecordType(IntEnum):
    """What a record says."""

    GROUP = 1  # head of a segment: one group's hard state, snapshot mark and last position
    HARD_STATE = 2
    SNAPSHOT = 3
    ENTRY = 4
    SYNC = 5  # end of a batch


# The hot path compares plain integers.
GROUP: Final = int(RecordType.GROUP)
HARD_STATE: Final = int(RecordType.HARD_STATE)
SNAPSHOT: Final = int(RecordType.SNAPSHOT)
ENTRY: Final = int(RecordType.ENTRY)
SYNC: Final = int(RecordType.SYNC)

_BODY = struct.Struct("<IIIBBHIQQQ")  # length, ~length, chain, type, flags, kind, group, batch, index, term
_CRC = struct.Struct("<I")
_HEADER = struct.Struct("<IIIIBBHIQQQ")
HEADER_BYTES: Final = _HEADER.size
assert HEADER_BYTES == 48

_PREAMBLE = struct.Struct(
    "<8sIIQQQQQI"
)  # magic, format, bytes, number, cluster, member, incarnation, first batch, chain
PREAMBLE_BYTES: Final = _PREAMBLE.size + _CRC.size
assert PREAMBLE_BYTES == 64

_WATERMARK = struct.Struct("<8sQQQI")  # magic, incarnation, batch, segment, offset
WATERMARK_BYTES: Final = _WATERMARK.size + _CRC.size

_HARD = struct.Struct("<QQQ")  # term, vote, commit
_VOTE = struct.Struct("<Q")
_MARK = struct.Struct("<QQQB")  # index, term, size, digest length


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose log this is. `incarnation` is drawn at random when the log is created: a wiped disk gets another one."""

    cluster_id: int
    member_id: int
    incarnation: int

    @property
    def salt(self) -> int:
        """Where the CRC of every record begins, so that records of another log never check out in this one."""
        return crc32(struct.pack("<QQQ", self.cluster_id, self.member_id, self.incarnation))


@dataclass(frozen=True, slots=True)
class Preamble:
    """The first 64 bytes of a segment."""

    format: int
    segment_bytes: int
    number: int
    identity: Identity
    first_batch: int
    chain: int  # CRC of the last record of the segment before; 0 in segment 1


class Record:
    """One record as it lies in a segment. `payload` is a view of the segment; `end` is where the next record begins."""

    __slots__ = ("offset", "end", "crc", "chain", "type", "flags", "kind", "group", "batch", "index", "term", "payload")

    def __init__(
        self, offset: int, end: int, crc: int, chain: int, type: int, flags: int, kind: int, group: int, batch: int,
        index: int, term: int, payload: memoryview,
    ) -> None:  # fmt: skip
        self.offset = offset
        self.end = end
        self.crc = crc
        self.chain = chain
        self.type = type
        self.flags = flags
        self.kind = kind
        self.group = group
        self.batch = batch
        self.index = index
        self.term = term
        self.payload = payload


class Watermark(NamedTuple):
    """Up to where the log was synced when this was written; never ahead of the truth."""

    batch: int
    segment: int
    offset: int


def segment_name(number: int) -> str:
    """The file name of a segment; numbers count from 1 without gaps."""
    return f"{number:016x}.wal"


def segment_number(name: str) -> int | None:
    """The number in a segment's file name; None if the name is not one that `segment_name` makes."""
    stem = name.removesuffix(".wal")
    if len(stem) != 16 or len(name) != 20:
        return None
    try:
        number = int(stem, 16)
    except ValueError:
        return None
    return number if segment_name(number) == name else None


def pack_preamble(preamble: Preamble) -> tuple[bytes, int]:
    """The bytes, and the CRC with which the chain of this segment begins."""
    identity = preamble.identity
    body = _PREAMBLE.pack(
        MAGIC, preamble.format, preamble.segment_bytes, preamble.number, identity.cluster_id, identity.member_id,
        identity.incarnation, preamble.first_batch, preamble.chain,
    )  # fmt: skip
    crc = crc32(body)
    return body + _CRC.pack(crc), crc


def unpack_preamble(data: bytes) -> tuple[Preamble, int] | str:
    """The preamble and its CRC, or what is wrong. A newer format is no error here: the first 16 bytes and the place of
    the CRC are the same in every format, so that `format` can always be trusted."""
    if len(data) < PREAMBLE_BYTES:
        return f"the file is only {len(data)} bytes long"
    magic, version, size, number, cluster, member, incarnation, first_batch, chain = _PREAMBLE.unpack_from(data)
    (crc,) = _CRC.unpack_from(data, _PREAMBLE.size)
    if magic != MAGIC:
        return "it does not begin with the magic bytes of a log segment"
    if crc32(data[: _PREAMBLE.size]) != crc:
        return "the checksum of the segment's preamble is wrong"
    return Preamble(version, size, number, Identity(cluster, member, incarnation), first_batch, chain), crc


def pack_record(
    salt: int, chain: int, batch: int, record_type: int, flags: int, kind: int, group: GroupId, index: Index, term:
    Term, payload: bytes,
) -> tuple[bytes, int]:  # fmt: skip
    """The 48 header bytes for `payload`, and the record's CRC, which is the next record's `chain`."""
    length = len(payload)
    body = _BODY.pack(length, length ^ 0xFFFFFFFF, chain, record_type, flags, kind, group, batch, index, term)
    crc = crc32(payload, crc32(body, salt))
    return _CRC.pack(crc) + body, crc


def unpack_record(view: memoryview, offset: int, salt: int) -> Record | str:
    """The record at `offset`, or what is wrong with it. Allocates nothing before the length has been checked."""
    if offset + HEADER_BYTES > len(view):
        return "a record would pass the end of the segment"
    crc, length, inverted, chain, record_type, flags, kind, group, batch, index, term = _HEADER.unpack_from(
        view, offset
    )
    if length ^ inverted != 0xFFFFFFFF:
        return "the record's length and its inverse do not agree"
    start = offset + HEADER_BYTES
    end = start + length
    if length > RECORD_PAYLOAD_BYTES_MAX or end > len(view):
        return f"the record's length {length} passes the end of the segment"
    if crc32(view[offset + 4 : end], salt) != crc:
        return "the record's checksum is wrong"
    return Record(offset, end, crc, chain, record_type, flags, kind, group, batch, index, term, view[start:end])


def read_batch(view: memoryview, offset: int, salt: int, chain: int, batch: int) -> list[Record] | tuple[int, str]:
    """The records of batch number `batch`, its SYNC record last; or the offset of the first bad record and the reason.

    A batch counts only whole: it is valid if every record up to its SYNC record is, each chained to the one before.
    """
    records: list[Record] = []
    first = FIRST
    while True:
        record = unpack_record(view, offset, salt)
        if isinstance(record, str):
            return offset, record
        if record.chain != chain:
            return offset, "the record does not follow the one before it (hash chain)"
        if record.batch != batch:
            return offset, f"the record belongs to batch {record.batch}, not to batch {batch}"
        if record.flags & FIRST != first:
            return offset, "the record's place in its batch is wrong"
        records.append(record)
        if record.type == SYNC:
            if record.index != len(records):
                return offset, f"the batch ends after {len(records)} records, its end says {record.index}"
            return records
        first = 0
        chain = record.crc
        offset = record.end


def later_batch(view: memoryview, offset: int, salt: int, batch: int) -> Record | None:
    """A valid first record of a batch after number `batch`, at a sector boundary past `offset`.

    Batch n is written only after batch n-1 was synced: such a record proves that everything before it was durable.
    """
    at = aligned(offset + 1)
    while at + HEADER_BYTES <= len(view):
        if bytes(view[at + 4 : at + 12]) != NO_LENGTH:
            record = unpack_record(view, at, salt)
            if not isinstance(record, str) and record.flags & FIRST and record.batch > batch:
                return record
        at = aligned(at + 1)
    return None


def pack_watermark(identity: Identity, mark: Watermark) -> bytes:
    body = _WATERMARK.pack(WATERMARK_MAGIC, identity.incarnation, mark.batch, mark.segment, mark.offset)
    return body + _CRC.pack(crc32(body, identity.salt))


def unpack_watermark(identity: Identity, data: bytes) -> Watermark | None:
    """None for a slot that is empty, torn, or of another log."""
    if len(data) < WATERMARK_BYTES:
        return None
    _, incarnation, batch, segment, offset = _WATERMARK.unpack_from(data)
    (crc,) = _CRC.unpack_from(data, _WATERMARK.size)
    if crc32(data[: _WATERMARK.size], identity.salt) != crc or incarnation != identity.incarnation:
        return None
    return Watermark(batch, segment, offset)


def pack_mark(mark: SnapshotMeta) -> bytes:
    assert len(mark.digest) <= DIGEST_BYTES_MAX, f"a digest of {len(mark.digest)} bytes"
    head = _MARK.pack(mark.index, mark.term, mark.size, len(mark.digest))
    return head + mark.digest + encode_configuration(mark.configuration)


def unpack_mark(data: bytes) -> SnapshotMeta:
    """Raises `ValueError` for anything that `pack_mark` did not write."""
    try:
        index, term, size, digest_bytes = _MARK.unpack_from(data)
    except struct.error as error:
        raise ValueError(f"not a snapshot mark: {error}") from error
    if digest_bytes > DIGEST_BYTES_MAX:
        raise ValueError(f"a digest of {digest_bytes} bytes")
    digest_end = _MARK.size + digest_bytes
    configuration = decode_configuration(data[digest_end:])
    return SnapshotMeta(index, term, configuration, size, data[_MARK.size : digest_end])


def pack_vote(hard_state: HardState) -> bytes:
    return _VOTE.pack(hard_state.vote)


def unpack_vote(record: Record) -> HardState:
    """Raises `ValueError` if the payload is not a vote."""
    if len(record.payload) != _VOTE.size:
        raise ValueError(f"a vote of {len(record.payload)} bytes")
    (vote,) = _VOTE.unpack(record.payload)
    return HardState(record.term, vote, record.index)


def pack_group(hard_state: HardState, mark: SnapshotMeta) -> bytes:
    return _HARD.pack(hard_state.term, hard_state.vote, hard_state.commit) + pack_mark(mark)


def unpack_group(data: bytes) -> tuple[HardState, SnapshotMeta]:
    """Raises `ValueError` for anything that `pack_group` did not write."""
    try:
        term, vote, commit = _HARD.unpack_from(data)
    except struct.error as error:
        raise ValueError(f"not a group's state: {error}") from error
    return HardState(term, vote, commit), unpack_mark(data[_HARD.size :])
