"""Messages come back equal, however the network cuts them; whatever bytes come, nothing but a violation comes of it."""

from __future__ import annotations

import struct
import zlib

from hypothesis import given, settings
from hypothesis import strategies as st

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
from oarlock.raft.types import U64_MAX, Configuration, Entry, MemberInfo, MemberRole, SnapshotMeta
from oarlock.transport.handshake import Hello, Refusal, decode_first, encode_hello, encode_refusal
from oarlock.wire import frames as wire
from oarlock.wire.frames import FrameParser, encode_frame

u64 = st.integers(0, U64_MAX)
flag = st.booleans()
payload = st.binary(max_size=300)
groups = st.integers(0, 2**32 - 1)


@st.composite
def appends(draw: st.DrawFn) -> AppendEntries:
    terms = sorted(draw(st.lists(u64, min_size=1, max_size=8)))
    previous, *others = terms
    index = draw(st.integers(0, U64_MAX - len(others)))
    entries = tuple(Entry(term, index + 1 + i, draw(st.integers(0, 3)), draw(payload)) for i, term in enumerate(others))
    return AppendEntries(
        term=draw(st.integers(terms[-1], U64_MAX)),
        prev_log_index=index,
        prev_log_term=previous,
        entries=entries,
        commit_index=draw(u64),
    )


@st.composite
def configurations(draw: st.DrawFn) -> Configuration:
    ids = draw(st.lists(st.integers(1, U64_MAX), unique=True, max_size=6))
    members = [
        MemberInfo(
            id=i,
            role=draw(st.sampled_from(MemberRole)),
            priority=draw(u64),
            incarnation=draw(u64),
            context=draw(st.binary(max_size=40)),
        )
        for i in ids
    ]
    return Configuration.of(*members)


@st.composite
def snapshots(draw: st.DrawFn) -> InstallSnapshot:
    term, snapshot_term = draw(u64), draw(u64)
    data = draw(payload)
    meta = SnapshotMeta(
        index=draw(u64),
        term=min(term, snapshot_term),
        configuration=draw(configurations()),
        size=draw(u64),
        digest=draw(st.sampled_from([b"", bytes(32)])),
    )
    offset = draw(st.integers(0, U64_MAX - len(data)))
    return InstallSnapshot(term=term, snapshot=meta, offset=offset, data=data, done=draw(flag))


i64s = st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5).map(tuple)
messages: st.SearchStrategy[Message] = st.one_of(
    st.builds(RequestVote, term=u64, last_log_index=u64, last_log_term=u64, pre_vote=flag, transfer=flag),
    st.builds(RequestVoteReply, term=u64, granted=flag, pre_vote=flag),
    appends(),
    st.builds(AppendEntriesReply, term=u64, success=flag, index=u64, hint_index=u64, hint_term=u64),
    st.builds(Heartbeat, term=u64, commit_index=u64, round=u64, sent=u64, lease=flag),
    st.builds(HeartbeatReply, term=u64, round=u64, sent=u64),
    snapshots(),
    st.builds(InstallSnapshotReply, term=u64, snapshot_index=u64, next_offset=u64, installed=flag),
    st.builds(TimeoutNow, term=u64),
    st.builds(TransferLeadership, term=u64, target=u64),
    st.builds(ReadIndex, term=u64, request=u64, confirmed=st.booleans()),
    st.builds(ReadIndexReply, term=u64, request=u64, index=u64),
    st.builds(Propose, term=u64, request=u64, payload=payload),
    st.builds(ProposeReply, term=u64, request=u64, reason=st.text(max_size=256)),
    st.builds(LeaseAsk, term=u64, request=u64, renew=i64s, query=i64s),
    st.builds(LeaseAnswer, term=u64, request=u64, renewed=i64s, remaining=i64s, reason=st.text(max_size=256)),
    st.builds(ChangeMembers, term=u64, request=u64, payload=payload),
    st.builds(ChangeMembersReply, term=u64, request=u64, reason=st.text(max_size=256)),
)


@given(st.lists(st.tuples(groups, messages), max_size=6), st.data())
def test_messages_come_back_equal_in_order_and_of_the_same_types(
    sent: list[tuple[int, Message]], data: st.DataObject
) -> None:
    stream = b"".join(encode_frame(group, message) for group, message in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    parser, got = FrameParser("p"), []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += parser.feed(stream[start:end])
    assert got == sent
    assert parser.incomplete_bytes == 0
    for (_, theirs), (_, ours) in zip(got, sent, strict=True):
        for name in ours.__dataclass_fields__:
            assert type(getattr(theirs, name)) is type(getattr(ours, name))


@given(messages, st.data())
def test_a_damaged_frame_gives_nothing(message: Message, data: st.DataObject) -> None:
    frame = bytearray(encode_frame(1, message))
    start = data.draw(st.integers(0, len(frame) - 1))
    damage = data.draw(st.binary(min_size=1, max_size=4))
    for i, byte in enumerate(damage[: len(frame) - start]):
        frame[start + i] ^= byte
    if frame == encode_frame(1, message):
        return
    try:
        assert FrameParser("p").feed(bytes(frame)) == []
    except ProtocolViolation:
        pass


@given(st.binary(max_size=200))
def test_any_bytes_give_messages_or_a_violation(data: bytes) -> None:
    for parser in (FrameParser("p"), FrameParser("p", minor=99)):
        try:
            parser.feed(data)
        except ProtocolViolation:
            pass
    try:
        FrameParser("p", handshaking=True).first(data)
    except ProtocolViolation:
        pass


@settings(max_examples=300)
@given(st.integers(0, 255), st.binary(max_size=120))
def test_any_body_with_a_right_checksum_gives_a_message_or_a_violation(number: int, body: bytes) -> None:
    checked = struct.pack("<IIB", len(body), 0, number) + body
    frame = struct.pack("<BI", wire.FRAME_LEAD, zlib.crc32(checked)) + checked
    try:
        FrameParser("p").feed(frame)
    except ProtocolViolation:
        pass
    try:
        decode_first("p", number, body)
    except ProtocolViolation:
        pass


@given(
    st.builds(
        Hello, minor=u64, cluster_id=u64, member_id=u64, incarnation=u64, name=st.text(max_size=256), features=u64,
        expected_id=u64,
    )
)  # fmt: skip
def test_hellos_come_back_equal(hello: Hello) -> None:
    first = FrameParser("p", handshaking=True).first(bytes(encode_hello(hello)))
    assert first is not None
    assert decode_first("p", *first) == hello


@given(st.text(max_size=64), st.text(max_size=2000))
def test_refusals_come_back_printable_and_bounded(reason: str, text: str) -> None:
    first = FrameParser("p", handshaking=True).first(bytes(encode_refusal(Refusal(reason, text))))
    assert first is not None
    refusal = decode_first("p", *first)
    assert isinstance(refusal, Refusal)
    assert (refusal.reason + refusal.text).isprintable()
    assert len(refusal.text) <= 600
