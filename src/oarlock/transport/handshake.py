"""The first frame in both directions: who is there, of which cluster, with which disk, speaking which versions.

The side that dialled says its `Hello` first, and whom it expects; the other answers with its own, or with a `Refusal`
that says why, and closes. Nothing here does I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from oarlock.errors import ProtocolViolation
from oarlock.wire.frames import (
    HELLO,
    PING,
    PONG,
    PROTOCOL_MAJOR_MAX,
    PROTOCOL_MAJOR_MIN,
    PROTOCOL_MINOR,
    REFUSAL,
    encode_raw,
)
from oarlock.wire.shapes import U64

NAME_CHARS_MAX: Final = 256
REFUSAL_TEXT_CHARS_MAX: Final = 600
FEATURES: Final = 0  # bits that this version offers; a feature is used when both sides offer it


@dataclass(frozen=True, slots=True)
class LocalIdentity:
    """Who this member is. `incarnation` is drawn when its data directory is made, so another disk has another one."""

    cluster_id: int
    member_id: int
    incarnation: int
    name: str


@dataclass(frozen=True, slots=True)
class PeerAddress:
    """A member as the configuration knows it. `urls` are `http://host:port` or `https://host:port`.

    `name` "" and `incarnation` 0 mean: not known yet.
    """

    id: int
    name: str
    urls: tuple[str, ...]
    incarnation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """What a side says of itself. `expected_id` is the member that a dialling side wants to reach, 0 in an answer.

    The places of the two major versions never change; everything else may, in another major version.
    """

    major_min: int = PROTOCOL_MAJOR_MIN
    major_max: int = PROTOCOL_MAJOR_MAX
    minor: int = PROTOCOL_MINOR
    cluster_id: int
    member_id: int
    incarnation: int
    name: str
    features: int = FEATURES
    expected_id: int = 0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a side does not talk. `reason` is one of the words below, for programs; `text` is for people."""

    reason: str  # version, cluster, self, wrong-member, unknown-member, incarnation, name, certificate, protocol
    text: str


class PeerRefused(ConnectionError):
    """A handshake ended with a refusal, ours or theirs. The text says whose, and why."""

    def __init__(self, refusal: Refusal, *, by_us: bool) -> None:
        super().__init__(f"{'refused' if by_us else 'it refused us'}: {refusal.text}")
        self.refusal = refusal
        self.by_us = by_us


class _Versions(msgspec.Struct, array_like=True, gc=False):
    major_min: U64
    major_max: U64


class _Hello(msgspec.Struct, array_like=True, gc=False):
    major_min: U64
    major_max: U64
    minor: U64
    cluster_id: U64
    member_id: U64
    incarnation: U64
    name: Annotated[str, Meta(max_length=NAME_CHARS_MAX)]
    features: U64
    expected_id: U64


class _Refusal(msgspec.Struct, array_like=True, gc=False):
    reason: Annotated[str, Meta(max_length=64)]
    text: Annotated[str, Meta(max_length=REFUSAL_TEXT_CHARS_MAX)]


class _Stamp(msgspec.Struct, array_like=True, gc=False):
    sent: U64


_versions: Final = msgspec.msgpack.Decoder(_Versions)
_hello: Final = msgspec.msgpack.Decoder(_Hello)
_refusal: Final = msgspec.msgpack.Decoder(_Refusal)
_stamp: Final = msgspec.msgpack.Decoder(_Stamp)


def hello_of(identity: LocalIdentity, expected_id: int = 0) -> Hello:
    """What the member `identity` says first."""
    return Hello(
        cluster_id=identity.cluster_id,
        member_id=identity.member_id,
        incarnation=identity.incarnation,
        name=identity.name,
        expected_id=expected_id,
    )


def encode_hello(hello: Hello) -> bytearray:
    return encode_raw(
        HELLO,
        0,
        (
            hello.major_min, hello.major_max, hello.minor, hello.cluster_id, hello.member_id, hello.incarnation,
            hello.name, hello.features, hello.expected_id,
        ),
    )  # fmt: skip


def encode_refusal(refusal: Refusal) -> bytearray:
    return encode_raw(REFUSAL, 0, (refusal.reason, refusal.text[:REFUSAL_TEXT_CHARS_MAX]))


def encode_ping(sent: int) -> bytearray:
    """`sent` is the sender's own clock in ns; the answer carries it back."""
    return encode_raw(PING, 0, (sent,))


def encode_pong(sent: int) -> bytearray:
    return encode_raw(PONG, 0, (sent,))


def decode_first(peer: str, number: int, body: bytes) -> Hello | Refusal:
    """The first frame of a connection. Raises `ProtocolViolation` if it is neither a hello nor a refusal.

    A hello of a major version that we do not speak comes back with its versions only: `check_hello` refuses it.
    """
    if number == REFUSAL:
        return decode_refusal(peer, body)
    if number != HELLO:
        raise ProtocolViolation(peer, f"the first frame must be a hello, this is a frame of type {number}")
    versions = _decode(_versions, peer, body)
    if versions.major_max < PROTOCOL_MAJOR_MIN or versions.major_min > PROTOCOL_MAJOR_MAX:
        return Hello(
            major_min=versions.major_min, major_max=versions.major_max, minor=0,
            cluster_id=0, member_id=0, incarnation=0, name="",
        )  # fmt: skip
    h = _decode(_hello, peer, body)
    return Hello(
        major_min=h.major_min, major_max=h.major_max, minor=h.minor, cluster_id=h.cluster_id, member_id=h.member_id,
        incarnation=h.incarnation, name=h.name, features=h.features, expected_id=h.expected_id,
    )  # fmt: skip


def decode_refusal(peer: str, body: bytes) -> Refusal:
    r = _decode(_refusal, peer, body)
    return Refusal(_printable(r.reason), _printable(r.text))


def decode_stamp(peer: str, body: bytes) -> int:
    """The time in a ping or a pong."""
    sent: int = _decode(_stamp, peer, body).sent
    return sent


def _decode(decoder: msgspec.msgpack.Decoder[Any], peer: str, body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except (ValueError, RecursionError) as error:
        raise ProtocolViolation(peer, f"a frame of the handshake does not decode: {error}") from error


def _printable(text: str) -> str:
    """What a stranger wrote, fit for a log line."""
    return "".join(c if c.isprintable() else "?" for c in text)


def check_hello(local: LocalIdentity, theirs: Hello, *, known: PeerAddress | None, dialled: int = 0) -> Refusal | None:
    """Why `local` must not talk to whoever said `theirs`; None if it may.

    `known` is the member of that id in the configuration, None if there is none. `dialled` is the id that `local`
    wanted to reach, 0 if the other side called. Certificates are checked elsewhere (`tls`).
    """
    me = f"member {local.member_id:x} ({local.name})"
    if theirs.major_max < PROTOCOL_MAJOR_MIN or theirs.major_min > PROTOCOL_MAJOR_MAX:
        return Refusal(
            "version",
            f"{me} speaks protocol versions {PROTOCOL_MAJOR_MIN} to {PROTOCOL_MAJOR_MAX}, the other side "
            f"{theirs.major_min} to {theirs.major_max}: upgrade the older one, one version at a time",
        )
    if theirs.cluster_id != local.cluster_id:
        return Refusal(
            "cluster",
            f"{me} is of cluster {local.cluster_id:x}, the other side of cluster {theirs.cluster_id:x}: "
            "check the peer URLs, the initial cluster and its token",
        )
    they = f"member {theirs.member_id:x} ({_printable(theirs.name)})"
    if theirs.member_id == local.member_id:
        return Refusal("self", f"{they} talks to itself: one of its peer URLs points to it, or two members have its id")
    if dialled and theirs.member_id != dialled:
        return Refusal("wrong-member", f"{me} wanted member {dialled:x} and met {they}: check the URLs of both")
    if theirs.expected_id and theirs.expected_id != local.member_id:
        return Refusal(
            "wrong-member", f"{they} wanted member {theirs.expected_id:x} and met {me}: check the URLs of both"
        )
    if known is None:
        return Refusal(
            "unknown-member",
            f"{they} is not in the configuration that {me} has: add it first; if it was removed, it must come back "
            "with a new id and an empty data directory",
        )
    if known.incarnation and theirs.incarnation != known.incarnation:
        return Refusal(
            "incarnation",
            f"the disk of {they} was replaced (incarnation {theirs.incarnation:x}, known is {known.incarnation:x}): "
            "remove the member and add it again",
        )
    return None
