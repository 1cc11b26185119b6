"""The values of the protocol: terms, indexes, entries, hard state, configurations, snapshot metadata.

`Term`, `Index`, `NodeId` and `GroupId` are plain aliases of `int`: a NewType would be called once for every value that
the hot path makes. For the same reason the values of which there is one for each entry or message have `Final` fields
and an `__init__` of their own: that of a frozen dataclass takes four times as long, compiled twenty times.
`storage` and `transport` import this module and `messages`, and nothing else of `raft`.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, replace
from enum import IntEnum
from functools import lru_cache
from typing import Final, TypeAlias

Term: TypeAlias = int
Index: TypeAlias = int  # 1-based; 0 is "before the first entry"
NodeId: TypeAlias = int  # 1 .. 2**64 - 1; 0 is "nobody"
GroupId: TypeAlias = int  # 0 .. 2**32 - 1
LogPosition: TypeAlias = tuple[Term, Index]  # ordered as Raft 5.4.1 orders logs

NOBODY: NodeId = 0
U64_MAX = 2**64 - 1
CONFIGURATION_FORMAT = 1
CONFIGURATIONS_KEPT_MAX = 16  # of each of encoded and decoded ones, each at most some hundred KiB
MEMBERS_MAX = 64  # members of one configuration, learners and outgoing ones included


class EntryKind(IntEnum):
    """What an entry's payload is."""

    NORMAL = 0  # a batch of commands, opaque to `raft`
    NOOP = 1  # the empty entry with which a leader opens its term (Raft 8)
    CONFIG = 2  # an encoded `Configuration`
    STRIPPED = 3  # a NORMAL entry as a witness keeps it: without its payload


@dataclass(init=False, slots=True, unsafe_hash=True)
class Entry:
    """One entry of the log. Its identity is `(term, index)`, printed `2.7`."""

    term: Final[Term]
    index: Final[Index]
    kind: Final[int]
    payload: Final[bytes]

    def __init__(self, term: Term, index: Index, kind: int, payload: bytes) -> None:
        self.term = term
        self.index = index
        self.kind = kind
        self.payload = payload

    def __str__(self) -> str:
        return f"{self.term}.{self.index}"


@dataclass(init=False, slots=True, unsafe_hash=True)
class HardState:
    """What must be durable before a message that depends on it leaves (Raft Fig. 2). `commit` may lag behind the
    truth."""

    term: Final[Term]
    vote: Final[NodeId]
    commit: Final[Index]

    def __init__(self, term: Term = 0, vote: NodeId = NOBODY, commit: Index = 0) -> None:
        self.term = term
        self.vote = vote
        self.commit = commit


class MemberRole(IntEnum):
    """A member's part in a configuration."""

    VOTER = 0
    LEARNER = 1  # receives the log, has no vote (diss. 4.2.1)
    WITNESS = 2  # votes and keeps log metadata; has no state machine and never leads


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberInfo:
    """One member of a configuration.

    `priority` 0 never campaigns by itself; among others a higher one campaigns earlier. `incarnation` identifies the
    member's disk (0: not known yet): a member whose disk was wiped comes back with another one and is not heard.
    `context` is the application's (names and addresses), at most 4 KiB. `promote_when_ready`: a learner that becomes a
    voter by itself once it has caught up.
    """

    id: NodeId
    role: MemberRole = MemberRole.VOTER
    priority: int = 1
    incarnation: int = 0
    context: bytes = b""
    promote_when_ready: bool = False


@dataclass(frozen=True, slots=True)
class Configuration:
    """Who takes part. (diss. 4)

    `members` is sorted by id and holds everybody with the role of the *incoming* configuration, and also members that
    are only in the outgoing one (they are in `outgoing` and in no other set). `outgoing` is empty unless the
    configuration is joint: then an election or a commit needs a majority of `voters` *and* of `outgoing`. `removed`
    are ids that may never come back.
    """

    members: tuple[MemberInfo, ...] = ()
    voters: frozenset[NodeId] = frozenset()  # witnesses included
    outgoing: frozenset[NodeId] = frozenset()
    removed: frozenset[NodeId] = frozenset()
    auto_leave: bool = True

    @property
    def joint(self) -> bool:
        return bool(self.outgoing)

    @property
    def learners(self) -> frozenset[NodeId]:
        return frozenset(m.id for m in self.members if m.id not in self.voters and m.id not in self.outgoing)

    @property
    def witnesses(self) -> frozenset[NodeId]:
        return frozenset(m.id for m in self.members if m.role is MemberRole.WITNESS)

    @property
    def ids(self) -> tuple[NodeId, ...]:
        """Everybody, in ascending order."""
        return tuple(m.id for m in self.members)

    def member(self, node: NodeId) -> MemberInfo | None:
        for info in self.members:
            if info.id == node:
                return info
        return None

    def is_voter(self, node: NodeId) -> bool:
        return node in self.voters or node in self.outgoing

    @staticmethod
    def of(*members: MemberInfo) -> Configuration:
        """A simple (not joint) configuration of `members`."""
        ordered = tuple(sorted(members, key=lambda m: m.id))
        voters = frozenset(m.id for m in ordered if m.role is not MemberRole.LEARNER)
        return Configuration(members=ordered, voters=voters)

    @staticmethod
    def of_voters(*ids: NodeId) -> Configuration:
        return Configuration.of(*(MemberInfo(id=i) for i in ids))

    def with_member(self, info: MemberInfo) -> Configuration:
        """The same voting sets with one member's data replaced (priority, incarnation, context)."""
        return replace(self, members=tuple(info if m.id == info.id else m for m in self.members))


@lru_cache(maxsize=CONFIGURATIONS_KEPT_MAX)
def encode_configuration(configuration: Configuration) -> bytes:
    """The payload of a CONFIG entry: JSON, deterministic, with a format number. At most `MEMBERS_MAX` members."""
    document = {
        "format": CONFIGURATION_FORMAT,
        "members": [
            [
                m.id,
                int(m.role),
                m.priority,
                m.incarnation,
                base64.b64encode(m.context).decode("ascii"),
                m.promote_when_ready,
            ]
            for m in configuration.members
        ],
        "voters": sorted(configuration.voters),
        "outgoing": sorted(configuration.outgoing),
        "removed": sorted(configuration.removed),
        "auto_leave": configuration.auto_leave,
    }
    return json.dumps(document, separators=(",", ":"), sort_keys=True).encode("ascii")


def decode_configuration(data: bytes) -> Configuration:
    """The inverse of `encode_configuration`. Raises `ValueError` for anything that it did not write."""
    return _decoded(bytes(data))


@lru_cache(maxsize=CONFIGURATIONS_KEPT_MAX)
def _decoded(data: bytes) -> Configuration:
    """The same few configurations are read again by every recovery, snapshot and observer; a value may be shared."""
    try:
        document = json.loads(data)
        if document["format"] != CONFIGURATION_FORMAT:
            raise ValueError(
                f"configuration format {document['format']} is not known (this version writes {CONFIGURATION_FORMAT})"
            )
        members = tuple(
            MemberInfo(
                id=_u64(i),
                role=MemberRole(role),
                priority=_u64(priority),
                incarnation=_u64(incarnation),
                context=base64.b64decode(context, validate=True),
                promote_when_ready=bool(promote),
            )
            for i, role, priority, incarnation, context, promote in document["members"]
        )
        configuration = Configuration(
            members=members,
            voters=frozenset(_u64(i) for i in document["voters"]),
            outgoing=frozenset(_u64(i) for i in document["outgoing"]),
            removed=frozenset(_u64(i) for i in document["removed"]),
            auto_leave=bool(document["auto_leave"]),
        )
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"not a configuration: {error!r}") from error
    ids = configuration.ids
    if len(ids) > MEMBERS_MAX or list(ids) != sorted(set(ids)):
        raise ValueError("a configuration's members must be sorted, unique and at most 64")
    if not (configuration.voters | configuration.outgoing) <= set(ids):
        raise ValueError("a configuration's voters must be among its members")
    if encode_configuration(configuration) != bytes(data):
        raise ValueError("a configuration must be written in its one form")
    return configuration


def _u64(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= U64_MAX:
        raise ValueError(f"{value!r} is not an unsigned 64-bit integer")
    return value


_NOBODY_TAKES_PART: Final = Configuration()


@dataclass(init=False, slots=True, unsafe_hash=True)
class SnapshotMeta:
    """What a snapshot replaces: the log up to and including `index`. (Raft 7)

    `term` is the term of the entry at `index`. `size` is the length of the snapshot's bytes and `digest` their SHA-256;
    both are zero/empty for a mark that stands for a machine's own durable state (no file).
    """

    index: Final[Index]
    term: Final[Term]
    configuration: Final[Configuration]
    size: Final[int]
    digest: Final[bytes]

    def __init__(
        self,
        index: Index = 0,
        term: Term = 0,
        configuration: Configuration = _NOBODY_TAKES_PART,
        size: int = 0,
        digest: bytes = b"",
    ) -> None:
        self.index = index
        self.term = term
        self.configuration = configuration
        self.size = size
        self.digest = digest

    @property
    def has_file(self) -> bool:
        return bool(self.digest)
