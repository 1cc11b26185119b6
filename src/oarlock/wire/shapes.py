"""The shapes of messages on the wire: one class for each, its fields in order. (docs/reference/wire-formats.md)

`array_like` makes it a MessagePack array; elements that a newer minor version appended are skipped, and elements that
an older one does not send take the default given here. This module stays interpreted in a compiled build: there the
options of a `msgspec.Struct` would be lost.
"""

from __future__ import annotations

from typing import Annotated, Final, TypeAlias

import msgspec
from msgspec import Meta

REASON_CHARS_MAX: Final = 256

U64: TypeAlias = Annotated[int, Meta(ge=0)]  # MessagePack has no larger integers, so the lower bound is the only one
Kind: TypeAlias = Annotated[int, Meta(ge=0, le=255)]


class Vote(msgspec.Struct, array_like=True, gc=False):
    term: U64
    last_log_index: U64
    last_log_term: U64
    pre_vote: bool
    transfer: bool


class VoteReply(msgspec.Struct, array_like=True, gc=False):
    term: U64
    granted: bool
    pre_vote: bool


class Entry(msgspec.Struct, array_like=True, gc=False):
    term: U64
    kind: Kind
    payload: bytes


class Append(msgspec.Struct, array_like=True):
    term: U64
    prev_log_index: U64
    prev_log_term: U64
    commit_index: U64
    entries: list[Entry]


class AppendReply(msgspec.Struct, array_like=True, gc=False):
    term: U64
    success: bool
    index: U64
    hint_index: U64
    hint_term: U64


class Heartbeat(msgspec.Struct, array_like=True, gc=False):
    term: U64
    commit_index: U64
    round: U64
    sent: U64
    lease: bool


class HeartbeatReply(msgspec.Struct, array_like=True, gc=False):
    term: U64
    round: U64
    sent: U64


class Snapshot(msgspec.Struct, array_like=True):
    term: U64
    index: U64
    snapshot_term: U64
    configuration: bytes
    size: U64
    digest: bytes
    offset: U64
    data: bytes
    done: bool


class SnapshotReply(msgspec.Struct, array_like=True, gc=False):
    term: U64
    snapshot_index: U64
    next_offset: U64
    installed: bool


class TimeoutNow(msgspec.Struct, array_like=True, gc=False):
    term: U64


class Transfer(msgspec.Struct, array_like=True, gc=False):
    term: U64
    target: U64


class ReadIndex(msgspec.Struct, array_like=True, gc=False):
    term: U64
    request: U64
    confirmed: bool = False


class ReadIndexReply(msgspec.Struct, array_like=True, gc=False):
    term: U64
    request: U64
    index: U64


class Propose(msgspec.Struct, array_like=True, gc=False):
    term: U64
    request: U64
    payload: bytes


class ProposeReply(msgspec.Struct, array_like=True, gc=False):
    term: U64
    request: U64
    reason: Annotated[str, Meta(max_length=REASON_CHARS_MAX)]


_I64: TypeAlias = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]


class LeaseAsk(msgspec.Struct, array_like=True):
    term: U64
    request: U64
    renew: list[_I64]
    query: list[_I64]


class LeaseAnswer(msgspec.Struct, array_like=True):
    term: U64
    request: U64
    renewed: list[_I64]
    remaining: list[_I64]
    reason: Annotated[str, Meta(max_length=REASON_CHARS_MAX)]


class Change(msgspec.Struct, array_like=True, gc=False):
    term: U64
    request: U64
    payload: bytes
