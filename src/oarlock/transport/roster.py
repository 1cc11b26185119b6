"""Asking a cluster who its members are, over the peer port, by somebody who is no member yet.

The first frame is an `Ask` in place of a hello: who asks, under which peer URLs. The answer is a `Roster`, or a
refusal, and the connection is closed. This is how a new member learns the id of the cluster and its own. With TLS the
asker's certificate must carry the name that it says, as in a hello, and the answerer's must carry the answerer's.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Sequence
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from oarlock.errors import ConfigurationError, ProtocolViolation
from oarlock.transport.handshake import NAME_CHARS_MAX, PeerRefused, decode_refusal
from oarlock.transport.limits import TransportLimits
from oarlock.transport.sockets import parse_url, resolve
from oarlock.transport.tls import PeerTls
from oarlock.wire.frames import (
    PROTOCOL_MAJOR_MAX,
    PROTOCOL_MAJOR_MIN,
    PROTOCOL_MINOR,
    REFUSAL,
    FrameParser,
    encode_raw,
)
from oarlock.wire.shapes import U64

ASK: Final = 244
ROSTER: Final = 245
ROSTER_BYTES_MAX: Final = 512 << 10  # 64 members with their URLs stay well below
URLS_MAX: Final = 16
MEMBERS_MAX: Final = 64
READ_BYTES: Final = 64 << 10

Name = Annotated[str, Meta(max_length=NAME_CHARS_MAX)]
Urls = Annotated[list[Annotated[str, Meta(max_length=1024)]], Meta(max_length=URLS_MAX)]


class Ask(msgspec.Struct, array_like=True, gc=False):
    """The first three fields are those of a hello."""

    major_min: U64
    major_max: U64
    minor: U64
    name: Name
    peer_urls: Urls


class RosterMember(msgspec.Struct, array_like=True, gc=False, frozen=True):
    id: U64
    name: Name
    peer_urls: Urls


class Roster(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """The members as `member` knows them: by the configuration at `index` of its log. `leader` 0: none is known."""

    cluster_id: U64
    member: U64
    name: Name
    index: U64
    leader: U64
    members: Annotated[list[RosterMember], Meta(max_length=MEMBERS_MAX)]


_ask: Final = msgspec.msgpack.Decoder(Ask)
_roster: Final = msgspec.msgpack.Decoder(Roster)


def describe(error: BaseException) -> str:
    """An error in one line, never empty."""
    return str(error) or type(error).__name__


def encode_ask(name: str, peer_urls: Sequence[str]) -> bytearray:
    return encode_raw(
        ASK, 0, (PROTOCOL_MAJOR_MIN, PROTOCOL_MAJOR_MAX, PROTOCOL_MINOR, name, list(peer_urls))
    )  # fmt: skip


def encode_roster(roster: Roster) -> bytearray:
    return encode_raw(ROSTER, 0, msgspec.structs.astuple(roster))


def decode_ask(peer: str, body: bytes) -> Ask:
    return _decode(_ask, peer, body)  # type: ignore[no-any-return]


def _decode(decoder: msgspec.msgpack.Decoder[Any], peer: str, body: bytes) -> Any:
    try:
        return decoder.decode(body)
    except (ValueError, RecursionError) as error:
        raise ProtocolViolation(peer, f"a question or an answer about members does not decode: {error}") from error


class NoRoster(ConnectionError):
    """Nobody could be asked; the text has one reason for each URL."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("; ".join(reasons) or "there is nobody to ask")


async def ask_roster(
    url: str, name: str, peer_urls: Sequence[str], tls: PeerTls | None, limits: TransportLimits
) -> Roster:
    """Ask whoever listens at `url`. Raises `OSError` (`PeerRefused` is one), `ProtocolViolation`, or
    `ConfigurationError` for a URL that makes no sense."""
    loop = asyncio.get_running_loop()
    host, port, secure = parse_url(url)
    if secure != (tls is not None):
        raise ConfigurationError(
            f"peer URL {url} is {'https and no peer certificate is' if secure else 'plain although one is'} given"
        )
    async with asyncio.timeout(limits.connect_timeout_s + limits.handshake_timeout_s):
        found = await resolve(loop, host, port)
        failure: OSError = ConnectionError(f"{host} has no address")
        for family, address in dict.fromkeys(found):
            sock = socket.socket(family, socket.SOCK_STREAM)
            try:
                sock.setblocking(False)
                await loop.sock_connect(sock, address)
                return await _ask_on(sock, url, host, name, peer_urls, tls)
            except OSError as error:
                failure = error
            finally:
                sock.close()
        raise failure


async def _ask_on(
    sock: socket.socket, url: str, host: str, name: str, peer_urls: Sequence[str], tls: PeerTls | None
) -> Roster:
    reader, writer = await asyncio.open_connection(
        sock=sock, ssl=tls.client_context() if tls is not None else None, server_hostname=host if tls else None
    )
    try:
        writer.write(encode_ask(name, peer_urls))
        await writer.drain()
        parser = FrameParser(url)
        size = 0
        while True:
            data = await reader.read(READ_BYTES)
            if not data:
                raise ConnectionResetError("it closed the connection without an answer: it may be of an older version")
            size += len(data)
            if size > ROSTER_BYTES_MAX:
                raise ProtocolViolation(url, f"an answer of more than {ROSTER_BYTES_MAX} bytes")
            frame = parser.first(data)
            if frame is not None:
                break
        number, body = frame
        if number == REFUSAL:
            raise PeerRefused(decode_refusal(url, body), by_us=False)
        if number != ROSTER:
            raise ProtocolViolation(url, f"a frame of type {number} in place of the members")
        roster: Roster = _decode(_roster, url, body)
        if tls is not None and (why := tls.why_not(writer.get_extra_info("peercert"), roster.name)) is not None:
            raise ssl.SSLCertVerificationError(f"the member at {url} says that it is {roster.name!r}: {why}")
        return roster
    finally:
        writer.close()


async def ask_anyone(
    urls: Sequence[str], name: str, peer_urls: Sequence[str], tls: PeerTls | None, limits: TransportLimits
) -> list[Roster]:
    """Every answer that could be had from `urls`, newest configuration first. Raises `NoRoster` if there is none."""
    answers = await asyncio.gather(
        *(ask_roster(url, name, peer_urls, tls, limits) for url in urls), return_exceptions=True
    )
    rosters, reasons = [], []
    for url, answer in zip(urls, answers, strict=True):
        if isinstance(answer, Roster):
            rosters.append(answer)
        elif isinstance(answer, OSError | ProtocolViolation | ConfigurationError):
            reasons.append(f"{url}: {describe(answer)}")
        else:
            raise answer
    if not rosters:
        raise NoRoster(reasons)
    return sorted(rosters, key=lambda roster: -roster.index)
