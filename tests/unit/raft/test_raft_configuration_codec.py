"""Encoded configurations: the round trip, and nothing but `ValueError` for damaged ones."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oarlock.raft.types import (
    MEMBERS_MAX,
    U64_MAX,
    Configuration,
    MemberInfo,
    MemberRole,
    decode_configuration,
    encode_configuration,
)

SAMPLES = [
    Configuration(),
    Configuration.of_voters(1, 2, 3),
    Configuration(
        members=(
            MemberInfo(id=1, priority=0, incarnation=U64_MAX, context=b"\x00\xffname"),
            MemberInfo(id=7, role=MemberRole.LEARNER, promote_when_ready=True),
            MemberInfo(id=U64_MAX, role=MemberRole.WITNESS),
        ),
        voters=frozenset({1, U64_MAX}),
        outgoing=frozenset({1, 7}),
        removed=frozenset({5, 6}),
        auto_leave=False,
    ),
]

infos = st.builds(
    MemberInfo,
    id=st.integers(1, U64_MAX),
    role=st.sampled_from(MemberRole),
    priority=st.integers(0, 100),
    incarnation=st.integers(0, U64_MAX),
    context=st.binary(max_size=8),
    promote_when_ready=st.booleans(),
)


@st.composite
def configurations(draw: st.DrawFn) -> Configuration:
    members = draw(st.lists(infos, max_size=8, unique_by=lambda m: m.id))
    members.sort(key=lambda m: m.id)
    ids = [m.id for m in members]
    some = st.frozensets(st.sampled_from(ids)) if ids else st.just(frozenset[int]())
    return Configuration(
        members=tuple(members),
        voters=draw(some),
        outgoing=draw(some),
        removed=draw(st.frozensets(st.integers(1, 50), max_size=4)),
        auto_leave=draw(st.booleans()),
    )


@given(configurations())
def test_round_trip(configuration: Configuration) -> None:
    assert decode_configuration(encode_configuration(configuration)) == configuration


@pytest.mark.parametrize("sample", SAMPLES, ids=["empty", "three", "joint"])
def test_every_truncation_is_refused(sample: Configuration) -> None:
    data = encode_configuration(sample)
    for length in range(len(data)):
        with pytest.raises(ValueError):
            decode_configuration(data[:length])


@pytest.mark.parametrize("sample", SAMPLES, ids=["empty", "three", "joint"])
def test_every_flipped_bit_is_refused_or_means_something_else(sample: Configuration) -> None:
    """A flip inside a number gives another well-formed configuration; what guards against that is the record's
    checksum."""
    data = encode_configuration(sample)
    for position in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[position] ^= 1 << bit
            try:
                other = decode_configuration(bytes(flipped))
            except ValueError:
                continue
            assert other != sample
            assert encode_configuration(other) == bytes(flipped), "it decoded what it never writes"


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(ValueError):
        decode_configuration(data)


@pytest.mark.parametrize(
    "text",
    [
        b"null", b"[]", b"{}", b'"x"', b"1", b"[" * 100_000, b'{"format":1}',
        b'{"format":2,"members":[],"voters":[],"outgoing":[],"removed":[],"auto_leave":true}',
        b'{"format":1,"members":[],"voters":[1],"outgoing":[],"removed":[],"auto_leave":true}',
        b'{"format":1,"members":[[1]],"voters":[],"outgoing":[],"removed":[],"auto_leave":true}',
        b'{"format":1,"members":[],"voters":5,"outgoing":[],"removed":[],"auto_leave":true}',
        b'{"format":1,"members":[],"voters":[-1],"outgoing":[],"removed":[],"auto_leave":true}',
        b'{"format":1,"members":[],"voters":[true],"outgoing":[],"removed":[],"auto_leave":true}',
        b'{"format":1,"members":[],"voters":[1e3],"outgoing":[],"removed":[],"auto_leave":true}',
        b'{"format":1,"members":[],"voters":[' + b"9" * 5000 + b'],"outgoing":[],"removed":[],"auto_leave":true}',
    ],
)  # fmt: skip
def test_wrong_documents_are_refused(text: bytes) -> None:
    with pytest.raises(ValueError):
        decode_configuration(text)


def test_more_than_the_most_members_are_refused() -> None:
    fits = Configuration.of_voters(*range(1, MEMBERS_MAX + 1))
    assert decode_configuration(encode_configuration(fits)) == fits
    with pytest.raises(ValueError, match="at most 64"):
        decode_configuration(encode_configuration(Configuration.of_voters(*range(1, MEMBERS_MAX + 2))))
