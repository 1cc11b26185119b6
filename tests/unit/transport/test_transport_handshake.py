"""Who may talk to whom, and what the others are told."""

from __future__ import annotations

from dataclasses import replace

import pytest

from oarlock.errors import ProtocolViolation
from oarlock.transport.handshake import (
    NAME_CHARS_MAX,
    Hello,
    LocalIdentity,
    PeerAddress,
    Refusal,
    check_hello,
    decode_first,
    encode_hello,
    hello_of,
)
from oarlock.wire import frames as wire
from oarlock.wire.frames import encode_raw

ME = LocalIdentity(cluster_id=0xC, member_id=1, incarnation=11, name="one")
PEER = PeerAddress(id=2, name="two", urls=(), incarnation=22)
THEIRS = Hello(cluster_id=0xC, member_id=2, incarnation=22, name="two")


def test_a_member_of_the_configuration_is_welcome_in_both_directions() -> None:
    assert check_hello(ME, THEIRS, known=PEER, dialled=2) is None
    assert check_hello(ME, replace(THEIRS, expected_id=1), known=PEER) is None


def test_an_incarnation_that_is_not_known_yet_is_taken() -> None:
    assert check_hello(ME, THEIRS, known=replace(PEER, incarnation=0)) is None


@pytest.mark.parametrize(
    ("theirs", "known", "dialled", "reason", "text"),
    [
        (
            replace(THEIRS, major_min=2, major_max=3),
            PEER,
            0,
            "version",
            "versions 1 to 1, the other side 2 to 3: upgrade",
        ),
        (replace(THEIRS, major_min=0, major_max=0), PEER, 0, "version", "other side 0 to 0"),
        (replace(THEIRS, cluster_id=0xD), PEER, 0, "cluster", "is of cluster c, the other side of cluster d"),
        (replace(THEIRS, cluster_id=0xD, member_id=1), PEER, 0, "cluster", "check the peer URLs, the initial cluster"),
        (replace(THEIRS, member_id=1), None, 0, "self", "talks to itself: one of its peer URLs points to it"),
        (THEIRS, PEER, 3, "wrong-member", "wanted member 3 and met member 2"),
        (replace(THEIRS, expected_id=3), PEER, 0, "wrong-member", "wanted member 3 and met member 1"),
        (THEIRS, None, 0, "unknown-member", "is not in the configuration that member 1 \\(one\\) has: add it first"),
        (replace(THEIRS, incarnation=23), PEER, 0, "incarnation", "the disk of member 2 \\(two\\) was replaced"),
        (replace(THEIRS, incarnation=23), PEER, 2, "incarnation", "remove the member and add it again"),
    ],
)
def test_everybody_else_is_told_why_not(
    theirs: Hello, known: PeerAddress | None, dialled: int, reason: str, text: str
) -> None:
    refusal = check_hello(ME, theirs, known=known, dialled=dialled)
    assert refusal is not None
    assert refusal.reason == reason
    with pytest.raises(ValueError, match=text):
        raise ValueError(refusal.text)


def test_what_a_stranger_writes_cannot_forge_log_lines() -> None:
    refusal = check_hello(ME, replace(THEIRS, name="x\nERROR forged\x1b[31m"), known=None)
    assert refusal is not None
    assert refusal.text.isprintable()
    told = decode_first("p", wire.REFUSAL, b"\x92\xa1x\xa9line\nline")
    assert told == Refusal("x", "line?line")


def test_a_hello_of_another_major_version_is_understood_that_far() -> None:
    """The two versions keep their places, so that the error can name them; all else may have changed."""
    body = bytes(encode_raw(wire.HELLO, 0, (2, 4, "something", {"else": 1})))[wire.HEADER_BYTES :]
    hello = decode_first("p", wire.HELLO, body)
    assert isinstance(hello, Hello)
    assert (hello.major_min, hello.major_max) == (2, 4)


def test_a_range_of_versions_that_includes_ours_is_accepted() -> None:
    assert check_hello(ME, replace(THEIRS, major_min=1, major_max=9), known=PEER) is None


@pytest.mark.parametrize(
    ("number", "fields", "text"),
    [
        (wire.PING, (1,), "the first frame must be a hello, this is a frame of type 242"),
        (9, (1,), "the first frame must be a hello, this is a frame of type 9"),
        (wire.HELLO, (), "does not decode"),
        (wire.HELLO, (1, 1, 0, 1, 2), "does not decode"),
        (wire.HELLO, (1, 1, 0, -1, 2, 3, "n", 0, 0), "does not decode"),
        (wire.HELLO, (1, 1, 0, 1, 2, 3, "n" * (NAME_CHARS_MAX + 1), 0, 0), "does not decode"),
        (wire.REFUSAL, ("x",), "does not decode"),
    ],
)
def test_a_first_frame_that_makes_no_sense_is_a_violation(number: int, fields: tuple[object, ...], text: str) -> None:
    body = bytes(encode_raw(number, 0, fields))[wire.HEADER_BYTES :]
    with pytest.raises(ProtocolViolation, match=text):
        decode_first("p", number, body)


def test_a_hello_fits_what_a_stranger_may_send() -> None:
    largest = Hello(
        cluster_id=2**64 - 1, member_id=2**64 - 1, incarnation=2**64 - 1, name="\U0001f6a3" * NAME_CHARS_MAX,
        features=2**64 - 1, expected_id=2**64 - 1,
    )  # fmt: skip
    assert len(encode_hello(largest)) < wire.HANDSHAKE_BODY_BYTES_MAX
    assert hello_of(ME, 2).expected_id == 2
