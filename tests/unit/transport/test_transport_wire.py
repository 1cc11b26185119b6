"""Frames: what they look like, what they refuse, and that old ones are still read."""

from __future__ import annotations

import struct
import tracemalloc
import typing
import zlib
from pathlib import Path

import msgspec
import pytest

from oarlock.errors import ProtocolViolation
from oarlock.raft import messages
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
from oarlock.raft.types import U64_MAX, Configuration, Entry, SnapshotMeta
from oarlock.wire import frames as wire
from oarlock.wire.frames import FrameParser, encode_frame, encode_raw

GOLDEN = Path(__file__).parent / "golden" / "frames-v1.txt"

SNAPSHOT = SnapshotMeta(
    index=9, term=3, configuration=Configuration.of_voters(1, 2, 3), size=70, digest=bytes(range(32))
)
# One of each, and the ends of the ranges. The golden file has exactly these: never change one, add at the end.
CORPUS: tuple[tuple[int, Message], ...] = (
    (0, RequestVote(term=7, last_log_index=300, last_log_term=6, pre_vote=True)),
    (1, RequestVote(term=U64_MAX, last_log_index=U64_MAX, last_log_term=U64_MAX, transfer=True)),
    (0, RequestVoteReply(term=7, granted=True)),
    (0, AppendEntries(term=7, prev_log_index=0, prev_log_term=0, entries=(), commit_index=0)),
    (
        2**32 - 1,
        AppendEntries(
            term=7,
            prev_log_index=41,
            prev_log_term=5,
            entries=(Entry(5, 42, 0, b"first"), Entry(6, 43, 1, b""), Entry(7, 44, 2, bytes(range(256)))),
            commit_index=40,
        ),
    ),
    (0, AppendEntriesReply(term=7, success=False, index=41, hint_index=30, hint_term=4)),
    (0, Heartbeat(term=7, commit_index=44, round=2**40, sent=123456789, lease=True)),
    (0, HeartbeatReply(term=7, round=2**40, sent=123456789)),
    (3, InstallSnapshot(term=7, snapshot=SNAPSHOT, offset=64, data=b"\x00\xff" * 3, done=True)),
    (0, InstallSnapshotReply(term=7, snapshot_index=9, next_offset=70, installed=True)),
    (0, TimeoutNow(term=7)),
    (0, TransferLeadership(term=7, target=2)),
    (0, ReadIndex(term=7, request=12)),
    (0, ReadIndexReply(term=7, request=12, index=44)),
    (0, Propose(term=7, request=13, payload=b"a group of commands")),
    (0, ProposeReply(term=7, request=13, reason="not_leader")),
    (0, LeaseAsk(term=7, request=14, renew=(1, -(2**63)), query=(2**63 - 1,))),
    (0, LeaseAnswer(term=7, request=14, renewed=(60, 0), remaining=(-1,))),
    (0, LeaseAnswer(term=7, request=14, reason="not_leader")),
    (0, ChangeMembers(term=7, request=14, payload=b"a change")),
    (0, ChangeMembersReply(term=7, request=14, reason="unhealthy")),
    (0, ReadIndex(term=7, request=12, confirmed=True)),
)


def parse(data: bytes) -> list[tuple[int, Message]]:
    return FrameParser("p").feed(data)


def raw(number: int, *fields: object) -> bytes:
    return bytes(encode_raw(number, 0, fields))


def with_header(body: bytes, *, length: int | None = None, number: int = 9, lead: int = wire.FRAME_LEAD) -> bytes:
    """A frame whose checksum is right, whatever its header says."""
    checked = struct.pack("<IIB", len(body) if length is None else length, 0, number) + body
    return struct.pack("<BI", lead, zlib.crc32(checked)) + checked


def test_every_message_of_the_union_has_a_number_and_an_example() -> None:
    union = set(typing.get_args(messages.Message))
    assert set(wire.TYPE_OF) == union == {type(m) for _, m in CORPUS}
    assert len(set(wire.TYPE_OF.values())) == len(union)
    assert not set(wire.TYPE_OF.values()) & {0, 255, wire.HELLO, wire.REFUSAL, wire.PING, wire.PONG}


def test_version_1_frames_are_still_read() -> None:
    lines = GOLDEN.read_text().splitlines()
    frames = [bytes.fromhex(line.split()[1]) for line in lines if not line.startswith("#")]
    assert [parse(frame) for frame in frames] == [[pair] for pair in CORPUS]
    assert parse(b"".join(frames)) == list(CORPUS)


def test_version_1_frames_are_still_written() -> None:
    lines = [f"{type(m).__name__} {encode_frame(group, m).hex()}" for group, m in CORPUS]
    assert lines == [line for line in GOLDEN.read_text().splitlines() if not line.startswith("#")]


def test_a_stream_cut_at_every_byte_gives_the_same_messages() -> None:
    stream = b"".join(encode_frame(group, m) for group, m in CORPUS)
    for cut in range(len(stream) + 1):
        parser = FrameParser("p")
        assert parser.feed(stream[:cut]) + parser.feed(stream[cut:]) == list(CORPUS), cut
        assert parser.incomplete_bytes == 0


def test_a_stream_in_single_bytes_gives_the_same_messages() -> None:
    parser, got = FrameParser("p"), []
    for byte in b"".join(encode_frame(group, m) for group, m in CORPUS):
        got += parser.feed(bytes([byte]))
    assert got == list(CORPUS)
    assert parser.frames == len(CORPUS)


def test_every_truncation_gives_nothing() -> None:
    for group, message in CORPUS:
        frame = bytes(encode_frame(group, message))
        for size in range(len(frame)):
            assert parse(frame[:size]) == []


def test_no_flipped_bit_passes() -> None:
    """A checksum that leaves the length out would let a shorter body through; this one covers it."""
    for group, message in CORPUS:
        frame = bytearray(encode_frame(group, message))
        for bit in range(len(frame) * 8):
            frame[bit // 8] ^= 1 << bit % 8
            try:
                got = parse(bytes(frame))
            except ProtocolViolation:
                got = []
            assert got == [], f"bit {bit} of {message}"  # an incomplete frame is nothing either
            frame[bit // 8] ^= 1 << bit % 8


def test_every_truncated_body_with_a_right_checksum_is_refused() -> None:
    for group, message in CORPUS:
        body = bytes(encode_frame(group, message))[wire.HEADER_BYTES :]
        for size in range(len(body)):
            with pytest.raises(ValueError):
                wire.decode_body(wire.TYPE_OF[type(message)], body[:size])


def test_flipped_bits_in_a_body_give_a_message_or_a_violation() -> None:
    """What an authenticated peer could send: no other exception, whatever the body."""
    for _, message in CORPUS:
        number = wire.TYPE_OF[type(message)]
        body = bytearray(encode_frame(0, message)[wire.HEADER_BYTES :])
        for bit in range(len(body) * 8):
            body[bit // 8] ^= 1 << bit % 8
            try:
                wire.decode_body(number, bytes(body))
            except ValueError:
                pass
            body[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("length", [wire.FRAME_BODY_BYTES_MAX + 1, 2**31 - 1, 2**32 - 1])
def test_an_oversized_length_is_refused_before_anything_is_kept(length: int) -> None:
    parser = FrameParser("p")
    with pytest.raises(ProtocolViolation, match=f"a frame of {length} bytes \\(at most {wire.FRAME_BODY_BYTES_MAX}"):
        parser.feed(with_header(b"", length=length))


def test_the_largest_frame_is_awaited() -> None:
    parser = FrameParser("p")
    assert parser.feed(with_header(b"", length=wire.FRAME_BODY_BYTES_MAX)) == []
    assert parser.incomplete_bytes == wire.HEADER_BYTES


def test_a_stranger_may_send_small_frames_only() -> None:
    parser = FrameParser("p", handshaking=True)
    with pytest.raises(ProtocolViolation, match="at most 4096 here"):
        parser.first(with_header(b"", length=wire.HANDSHAKE_BODY_BYTES_MAX + 1, number=wire.HELLO))


def test_claimed_sizes_inside_a_body_allocate_nothing() -> None:
    bombs = [
        b"\x95\x01\x01\x01\x01\xdd\xff\xff\xff\xff",  # 2**32 - 1 entries
        b"\x95\x01\x01\x01\x01\x91\x93\x01\x00\xc6\xff\xff\xff\xff",  # a payload of 2**32 - 1 bytes
        b"\xdd\xff\xff\xff\xff",  # as many fields
        b"\x96\x01\x01\x01\x01\x90" + b"\x91" * 100_000,  # a field of a later version, nested
        b"\x96\x01\x01\x01\x01\x90\xdf\xff\xff\xff\xff",  # and one that is a map
    ]
    tracemalloc.start()
    try:
        for bomb in bombs:
            with pytest.raises(ProtocolViolation):
                parse(with_header(bomb, number=3))
        assert tracemalloc.get_traced_memory()[1] < 4 * 2**20
    finally:
        tracemalloc.stop()


def entry(term: object = 7, kind: object = 0, payload: object = b"") -> tuple[object, ...]:
    return (term, kind, payload)


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        (raw(3, 7, 4, 5, 0, [entry(6), entry(5)]), "entry 6 has term 5 after term 6"),
        (raw(3, 7, 4, 5, 0, [entry(4)]), "entry 5 has term 4 after term 5"),
        (raw(3, 7, 4, 5, 0, [entry(8)]), "a leader of term 7 sends a log that has term 8"),
        (raw(3, 7, 4, 8, 0, []), "a leader of term 7 sends a log that has term 8"),
        (raw(3, 7, U64_MAX, 5, 0, [entry()]), "pass the largest index"),
        (raw(3, 7, 4, 5, 0, [entry(kind=4)]), "kind 4, which this version does not know"),
        (raw(3, 7, 4, 5, 0, [entry(kind=-1)]), ">= 0"),
        (raw(3, -1, 4, 5, 0, []), ">= 0"),
        (raw(3, 7.0, 4, 5, 0, []), "float"),
        (raw(3, True, 4, 5, 0, []), "bool"),
        (raw(3, "7", 4, 5, 0, []), "str"),
        (raw(3, 7, 4, 5, 0, [entry(payload="text")]), "str"),
        (raw(3, 7, 4, 5, 0), "length"),
        (raw(3, 7, 4, 5, 0, None), "None"),
        (raw(7, 7, 9, 8, b"{}", 70, b"", 0, b"", False), "a leader of term 7 sends a snapshot of term 8"),
        (raw(7, 7, 9, 3, b"{}", 70, b"", 0, b"", False), "not a configuration"),
        (raw(7, 7, 9, 3, b"[" * 100_000, 70, b"", 0, b"", False), "not a configuration"),
        (raw(7, 7, 9, 3, b"\xff", 70, b"", 0, b"", False), "decode"),
        (raw(7, 7, 9, 3, b"{}", 70, b"short", 0, b"", False), "digest of 5 bytes"),
        (raw(7, 7, 9, 3, b"{}", 70, b"", U64_MAX, b"x", False), "passes the largest offset"),
        (raw(7, 7, 9, 3, b" " * (2**20 + 1), 70, b"", 0, b"", False), "configuration of 1048577 bytes"),
        (raw(7, 7, 9, 3, b"{}", 70, b"", 0, bytes(2**20 + 1), False), "chunk of 1048577 bytes \\(at most 1048576\\)"),
        (raw(14, 7, 1, "x" * 257), "256"),
        (raw(99, 7), "message type 99 is not known"),
        (raw(0, 7), "message type 0 is not known"),
        (raw(255, 7), "message type 255 is not known"),
        (with_header(b"", number=9), "truncated"),
        (with_header(b"\x91\x07\x00", number=9), "trailing"),
        (with_header(b"\x91\x07", lead=0xA2), "frame layout 2 is not known"),
        (b"\x16\x03\x01\x02\x00" + bytes(20), "it speaks TLS"),
        (b"GET / HTTP/1.1\r\n", "it speaks HTTP"),
        (b"PRI * HTTP/2.0\r\n", "it speaks HTTP"),
        (bytes(14), "these bytes begin no frame: 00 00 00 00"),
        (raw(wire.PING, bytes(5000)), "a control frame of"),
    ],
)
def test_what_no_member_sends_is_named(frame: bytes, text: str) -> None:
    with pytest.raises(ProtocolViolation, match=text) as caught:
        parse(frame)
    assert caught.value.peer == "p"


def test_payload_and_chunk_bounds_hold_on_both_sides() -> None:
    size = wire.ENTRY_PAYLOAD_BYTES_MAX
    at_most = AppendEntries(
        term=1, prev_log_index=0, prev_log_term=0, entries=(Entry(1, 1, 0, bytes(size)),), commit_index=0
    )
    assert parse(bytes(encode_frame(0, at_most))) == [(0, at_most)]
    too_much = bytes(size + 1)
    with pytest.raises(ProtocolViolation, match=f"{size + 1} bytes of payload"):
        parse(raw(3, 1, 0, 0, 0, [entry(1, 0, too_much)]))
    with pytest.raises(ProtocolViolation, match=f"a proposal of {size + 1} bytes"):
        parse(raw(13, 1, 0, too_much))
    over = AppendEntries(term=1, prev_log_index=0, prev_log_term=0, entries=(Entry(1, 1, 0, too_much),), commit_index=0)
    chunk = InstallSnapshot(term=7, snapshot=SNAPSHOT, offset=0, data=bytes(2**20 + 1), done=True)
    for message in (over, Propose(term=1, request=0, payload=too_much), chunk):
        with pytest.raises(ValueError, match="at most"):
            encode_frame(0, message)


def test_a_frame_above_its_bound_is_not_written() -> None:
    half = bytes(wire.FRAME_BODY_BYTES_MAX // 2)
    entries = tuple(Entry(1, i, 0, half[: wire.ENTRY_PAYLOAD_BYTES_MAX]) for i in (1, 2))
    message = AppendEntries(term=1, prev_log_index=0, prev_log_term=0, entries=entries, commit_index=0)
    with pytest.raises(ValueError, match="a frame of type 3"):
        encode_frame(0, message)


def test_entries_that_do_not_follow_are_not_written() -> None:
    for entries in ((Entry(1, 2, 0, b""),), (Entry(1, 1, 0, b""), Entry(1, 3, 0, b""))):
        message = AppendEntries(term=1, prev_log_index=0, prev_log_term=0, entries=entries, commit_index=0)
        with pytest.raises(AssertionError):
            encode_frame(0, message)


def test_fields_that_a_later_minor_version_appends_are_skipped() -> None:
    for group, message in CORPUS:
        body = bytes(encode_frame(group, message))[wire.HEADER_BYTES :]
        fields = msgspec.msgpack.decode(body)
        if isinstance(message, ReadIndex) and not message.confirmed:
            fields.append(False)  # which is left out
        fields += [{"new": [1, 2]}, "newer"]
        number = wire.TYPE_OF[type(message)]
        assert parse(bytes(encode_raw(number, group, tuple(fields)))) == [(group, message)]


def test_types_that_a_later_minor_version_added_are_skipped_and_counted() -> None:
    known = bytes(encode_frame(0, TimeoutNow(term=3)))
    parser = FrameParser("p", minor=wire.PROTOCOL_MINOR + 1)
    assert parser.feed(known + raw(99, "unheard of") + known) == [(0, TimeoutNow(term=3))] * 2
    assert parser.unknown == 1
    with pytest.raises(ProtocolViolation, match="type 255 is not known"):
        parser.feed(raw(255))


def test_controls_come_apart_from_messages() -> None:
    parser = FrameParser("p")
    ping, now = raw(wire.PING, 5), bytes(encode_frame(0, TimeoutNow(term=3)))
    assert parser.feed(ping + now + ping) == [(0, TimeoutNow(term=3))]
    assert parser.take_controls() == [(wire.PING, b"\x91\x05")] * 2
    assert parser.take_controls() == []


def test_what_follows_the_first_frame_is_kept_for_later() -> None:
    parser = FrameParser("p", handshaking=True)
    hello, rest = raw(wire.HELLO, 1), b"".join(encode_frame(g, m) for g, m in CORPUS)
    assert parser.first(hello[:5]) is None
    assert parser.first(hello[5:] + rest) == (wire.HELLO, b"\x91\x01")
    assert parser.feed(b"") == list(CORPUS)


def test_a_message_about_too_many_leases_is_refused() -> None:
    most = tuple(range(wire.LEASES_PER_MESSAGE_MAX))
    assert parse(bytes(encode_frame(0, LeaseAsk(term=1, request=1, renew=most[1:], query=(5,)))))
    with pytest.raises(ValueError, match="8193 leases"):
        encode_frame(0, LeaseAsk(term=1, request=1, renew=most, query=(5,)))
    with pytest.raises(ProtocolViolation, match="8193 leases"):
        parse(raw(15, 1, 1, [*most, 1], []))
    with pytest.raises(ProtocolViolation, match="type 16"):
        parse(raw(16, 1, 1, [2**63], [], ""))
