"""What can go wrong with a call to a server. Retry code reads `outcome`, never the text."""

from __future__ import annotations

from oarlock.api.grpc.status import Code
from oarlock.errors import Outcome


class EtcdError(Exception):
    """A call ended with a gRPC status. `code` and `text` are the server's, or ours for a connection that failed.

    `outcome` says whether the request may have been executed.
    """

    def __init__(self, code: Code, text: str, outcome: Outcome = Outcome.UNKNOWN) -> None:
        super().__init__(f"{text} ({code.name})")
        self.code = code
        self.text = text
        self.outcome = outcome


class Unavailable(EtcdError):
    """No server could be reached, or the group has no leader. A read may be asked again; a write, if `outcome` is
    NOT_EXECUTED."""


class DeadlineExceeded(EtcdError):
    """No answer in time."""


class Unauthenticated(EtcdError):
    """The token is not known (any more)."""


class PermissionDenied(EtcdError):
    """The user may not do this."""


class NotFound(EtcdError):
    """There is no such lease or member."""


class Compacted(EtcdError):
    """The revision asked for has been compacted. `compact_revision` is the oldest one that is left, 0 if not said."""

    def __init__(self, text: str, compact_revision: int = 0) -> None:
        super().__init__(Code.OUT_OF_RANGE, text, Outcome.NOT_EXECUTED)
        self.compact_revision = compact_revision


class FutureRevision(EtcdError):
    """The revision asked for does not exist yet."""


class LeaseExpired(Exception):
    """A lease ended, or could not be kept alive in time: what depended on it belongs to others by now."""


class TransactionConflict(Exception):
    """A transaction was tried `attempts` times, and what it had read was changed by others each time."""

    def __init__(self, attempts: int) -> None:
        super().__init__(f"what the transaction had read was changed by others {attempts} times in a row")
        self.attempts = attempts


_CLASSES = {
    Code.UNAVAILABLE: Unavailable,
    Code.DEADLINE_EXCEEDED: DeadlineExceeded,
    Code.UNAUTHENTICATED: Unauthenticated,
    Code.PERMISSION_DENIED: PermissionDenied,
    Code.NOT_FOUND: NotFound,
}
_REFUSED = frozenset(
    {Code.INVALID_ARGUMENT, Code.NOT_FOUND, Code.PERMISSION_DENIED, Code.UNAUTHENTICATED, Code.RESOURCE_EXHAUSTED}
    | {Code.FAILED_PRECONDITION, Code.OUT_OF_RANGE, Code.UNIMPLEMENTED}
)
"""Codes with which a server says that it did nothing."""


def error_of(code: Code, text: str, *, sent: bool = True) -> EtcdError:
    """The exception for a status."""
    if "has been compacted" in text:
        return Compacted(text)
    outcome = Outcome.UNKNOWN if sent and code not in _REFUSED else Outcome.NOT_EXECUTED
    if "future revision" in text:
        return FutureRevision(code, text, outcome)
    return _CLASSES.get(code, EtcdError)(code, text, outcome)


def closed() -> Unavailable:
    """The client was closed; nothing is tried again, so its code is not UNAVAILABLE."""
    return Unavailable(Code.CANCELLED, "the client is closed", Outcome.NOT_EXECUTED)
