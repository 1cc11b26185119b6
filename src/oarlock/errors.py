"""Every error that a caller of Oarlock can meet, arranged by one question: may my command have been executed?

Retry code reads `outcome`, never the text. This module imports nothing of ours, so that every layer can raise from it.
"""

from __future__ import annotations

from enum import Enum


class Outcome(Enum):
    """What is known of the command whose call failed."""

    NOT_EXECUTED = "not executed"  # safe to send again
    UNKNOWN = "unknown"  # it may have run, or may still run; only a client session makes a retry safe (diss. 6.3)
    EXECUTED = "executed"  # the state machine saw it and refused, alike on every member


class RaftError(Exception):
    """Base of all errors of a group. `outcome` says whether the command may have been executed."""

    outcome: Outcome = Outcome.UNKNOWN


class NotLeader(RaftError):
    """This member does not lead, and the call is for the leader only. `leader_id` is 0 when no leader is known."""

    outcome = Outcome.NOT_EXECUTED

    def __init__(self, leader_id: int = 0) -> None:
        hint = f"ask member {leader_id:x}" if leader_id else "no leader is known; ask again after an election timeout"
        super().__init__(f"this member is not the leader: {hint}")
        self.leader_id = leader_id


class NoLeader(RaftError):
    """The group has had no leader for as long as the call was willing to wait; nothing was proposed."""

    outcome = Outcome.NOT_EXECUTED


class ProposalDropped(RaftError):
    """The proposal was refused before it reached a log (a transfer is under way, or the member is stopping)."""

    outcome = Outcome.NOT_EXECUTED


class Overloaded(RaftError):
    """A named bound is full. `bound` is its name, `limit` its value."""

    outcome = Outcome.NOT_EXECUTED

    def __init__(self, bound: str, limit: int) -> None:
        super().__init__(f"{bound} is full (limit {limit}): send less at once, or wait and send again")
        self.bound = bound
        self.limit = limit


class LeadershipLost(RaftError):
    """Leadership moved while the proposal was under way."""

    outcome = Outcome.UNKNOWN


class DeadlineExceeded(RaftError):
    """The caller's time ran out while the proposal was under way."""

    outcome = Outcome.UNKNOWN


class Stopped(RaftError):
    """The member stopped while the call was under way."""

    outcome = Outcome.UNKNOWN


class Rejected(RaftError):
    """The machine, or the rules of membership, refused: alike on every member. `reason` is a short machine-readable
    word."""

    outcome = Outcome.EXECUTED

    def __init__(self, reason: str, message: str | None = None) -> None:
        super().__init__(message or reason)
        self.reason = reason


class ProtocolViolation(RaftError):
    """A peer sent what no correct peer sends. The connection is dropped, the group goes on."""

    outcome = Outcome.NOT_EXECUTED

    def __init__(self, peer: str, what: str) -> None:
        super().__init__(f"peer {peer} violated the protocol: {what}")
        self.peer = peer


class StorageError(RaftError):
    """The disk failed or holds what it must not hold. The member stops; the data stays as it is.

    `path` is the file, `offset` the byte offset in it where known.
    """

    outcome = Outcome.UNKNOWN

    def __init__(self, message: str, *, path: str = "", offset: int | None = None) -> None:
        super().__init__(message)
        self.path = path
        self.offset = offset


class Corrupt(StorageError):
    """Bytes that were durable have changed (rot), or do not fit together. Never repaired by cutting."""


class DiskFull(StorageError):
    """ENOSPC or EDQUOT. Nothing of the write in progress counts."""


class SyncFailed(StorageError):
    """fsync or fdatasync failed. Never tried again: the kernel may have dropped the pages (ATC'20)."""


class DirectoryInUse(StorageError):
    """Another process holds the data directory."""


class WrongDirectory(StorageError):
    """The data directory belongs to another cluster or member, or to a newer version of Oarlock."""


class ConfigurationError(ValueError):
    """An option, a file or a combination of options is wrong. The text names the option, its origin and what to do."""
