"""Who a member is to people and to programs: its name, and where its peers and its clients find it.

The record stands in the configuration (`MemberInfo.context`), as the member was added. What a member says of itself
later (a *publish* command, see `sessions`) stands in the machine's annex and goes before it for the name and the client
URLs, because a member may be restarted with other ones; its peer URLs change by a change of membership only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta

RECORD_BYTES_MAX: Final = 4096
NAME_CHARS_MAX: Final = 256
URLS_MAX: Final = 16


class MemberRecord(msgspec.Struct, frozen=True):
    """JSON in the log, so that a dump of it reads well."""

    name: Annotated[str, Meta(max_length=NAME_CHARS_MAX)] = ""
    peer_urls: Annotated[tuple[str, ...], Meta(max_length=URLS_MAX)] = ()
    client_urls: Annotated[tuple[str, ...], Meta(max_length=URLS_MAX)] = ()


_decoder: Final = msgspec.json.Decoder(MemberRecord)


def encode_record(name: str, peer_urls: Sequence[str], client_urls: Sequence[str] = ()) -> bytes:
    """The context of a member. Raises `ValueError` if it is too large."""
    data = msgspec.json.encode(MemberRecord(name, tuple(peer_urls), tuple(client_urls)))
    if len(data) > RECORD_BYTES_MAX:
        raise ValueError(f"name and URLs of member {name[:40]!r} take {len(data)} bytes (at most {RECORD_BYTES_MAX})")
    decode_record(data)
    return data


def decode_record(data: bytes) -> MemberRecord:
    """The inverse of `encode_record`; empty bytes are an empty record. Raises `ValueError` for anything else."""
    if not data:
        return MemberRecord()
    if len(data) > RECORD_BYTES_MAX:
        raise ValueError(f"a member record of {len(data)} bytes (at most {RECORD_BYTES_MAX})")
    return _decoder.decode(data)
