"""etcd's error codes and texts, and which of them each of our errors becomes. Clients match on the text, so it is
exact."""

from __future__ import annotations

from oarlock.api.grpc.status import Code, RpcError
from oarlock.errors import (
    DeadlineExceeded,
    LeadershipLost,
    NoLeader,
    NotLeader,
    Overloaded,
    ProposalDropped,
    RaftError,
    Rejected,
    Stopped,
    StorageError,
)
from oarlock.machines.kv.commands import KvError

EMPTY_KEY = (Code.INVALID_ARGUMENT, "etcdserver: key is not provided")
KEY_NOT_FOUND = (Code.INVALID_ARGUMENT, "etcdserver: key not found")
VALUE_PROVIDED = (Code.INVALID_ARGUMENT, "etcdserver: value is provided")
LEASE_PROVIDED = (Code.INVALID_ARGUMENT, "etcdserver: lease is provided")
TOO_MANY_OPS = (Code.INVALID_ARGUMENT, "etcdserver: too many operations in txn request")
DUPLICATE_KEY = (Code.INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request")
INVALID_SORT_OPTION = (Code.INVALID_ARGUMENT, "etcdserver: invalid sort option")
INVALID_COMPARE = (Code.INVALID_ARGUMENT, "etcdserver: invalid compare target or result")
REQUEST_TOO_LARGE = (Code.INVALID_ARGUMENT, "etcdserver: request is too large")
COMPACTED = (Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")
FUTURE_REVISION = (Code.OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision")
LEASE_NOT_FOUND = (Code.NOT_FOUND, "etcdserver: requested lease not found")
LEASE_EXISTS = (Code.FAILED_PRECONDITION, "etcdserver: lease already exists")
LEASE_TTL_TOO_LARGE = (Code.OUT_OF_RANGE, "etcdserver: too large lease TTL")
NO_SPACE = (Code.RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
CORRUPT = (Code.DATA_LOSS, "etcdserver: corrupt cluster")
NO_DOWNGRADE = (Code.FAILED_PRECONDITION, "etcdserver: no inflight downgrade job")
DOWNGRADE_VERSION_FORMAT = (Code.INVALID_ARGUMENT, "etcdserver: wrong downgrade target version format")
DOWNGRADE_VERSION_INVALID = (Code.INVALID_ARGUMENT, "etcdserver: invalid downgrade target version")
TOO_MANY_REQUESTS = (Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests")
NOT_LEADER = (Code.FAILED_PRECONDITION, "etcdserver: not leader")
BAD_TRANSFEREE = (Code.FAILED_PRECONDITION, "etcdserver: bad leader transferee")
NOT_FOR_LEARNER = (Code.FAILED_PRECONDITION, "etcdserver: rpc not supported for learner")
NO_LEADER = (Code.UNAVAILABLE, "etcdserver: no leader")
LEADER_CHANGED = (Code.UNAVAILABLE, "etcdserver: leader changed")
SERVER_STOPPED = (Code.UNAVAILABLE, "etcdserver: server stopped")
PERMISSION_NOT_GIVEN = (Code.INVALID_ARGUMENT, "etcdserver: permission not given")
PERMISSION_DENIED = (Code.PERMISSION_DENIED, "etcdserver: permission denied")
INVALID_TOKEN = (Code.UNAUTHENTICATED, "etcdserver: invalid auth token")
AUTH_FAILED = (Code.INVALID_ARGUMENT, "etcdserver: authentication failed, invalid user ID or password")
AUTH_NOT_ENABLED = (Code.FAILED_PRECONDITION, "etcdserver: authentication is not enabled")
AUTH_OLD_REVISION = (Code.INVALID_ARGUMENT, "etcdserver: revision of auth store is old")
NO_PASSWORD_USER = (Code.UNKNOWN, "auth: authentication failed, password was given for no password user")
VERIFY_ONLY = (Code.UNKNOWN, "auth: token signing attempted with verify-only key")
RANGE_TOO_LARGE = (
    Code.RESOURCE_EXHAUSTED,
    "oarlock: the answer would be over 64 MiB: ask with a limit, and again from the key after the last",
)
TIMED_OUT = (Code.UNAVAILABLE, "etcdserver: request timed out")

MEMBER_BAD_URLS = (Code.INVALID_ARGUMENT, "etcdserver: given member URLs are invalid")
MEMBER_NOT_FOUND = (Code.NOT_FOUND, "etcdserver: member not found")

_OF_MEMBERSHIP = {
    "id_exists": (Code.FAILED_PRECONDITION, "etcdserver: member ID already exist"),
    "id_removed": MEMBER_NOT_FOUND,  # as etcd, which says nothing else of an id that was removed
    "urls_exist": (Code.FAILED_PRECONDITION, "etcdserver: Peer URLs already exists"),
    "not_found": MEMBER_NOT_FOUND,
    "not_learner": (Code.FAILED_PRECONDITION, "etcdserver: can only promote a learner member"),
    "not_in_sync": (
        Code.FAILED_PRECONDITION,
        "etcdserver: can only promote a learner member which is in sync with leader",
    ),
    "too_many_learners": (Code.FAILED_PRECONDITION, "etcdserver: too many learner members in cluster"),
    "not_enough_started": (
        Code.UNKNOWN,  # as etcd 3.5 on the wire, whatever its tables say
        "etcdserver: re-configuration failed due to not enough started members",
    ),
    "unhealthy": (Code.UNAVAILABLE, "etcdserver: unhealthy cluster"),
    "no_user": (Code.INVALID_ARGUMENT, "etcdserver: user name is empty"),
    "unknown_user": (Code.FAILED_PRECONDITION, "etcdserver: user name not found"),
    "not_permitted": (Code.PERMISSION_DENIED, "etcdserver: permission denied"),
}
"""By the reason of a refused change of membership."""

_OF_KV_ERROR = {
    KvError.COMPACTED: COMPACTED,
    KvError.FUTURE_REVISION: FUTURE_REVISION,
    KvError.KEY_NOT_FOUND: KEY_NOT_FOUND,
    KvError.LEASE_NOT_FOUND: LEASE_NOT_FOUND,
    KvError.NO_SPACE: NO_SPACE,
    KvError.CORRUPT: CORRUPT,
    KvError.UNKNOWN_ALARM: (Code.INVALID_ARGUMENT, "etcdserver: unknown alarm"),
    KvError.LEASE_EXISTS: LEASE_EXISTS,
    KvError.LEASE_TTL_TOO_LARGE: LEASE_TTL_TOO_LARGE,
    KvError.LEASE_OF_OTHER_TERM: (Code.UNAVAILABLE, "etcdserver: leader changed"),
    KvError.ROOT_USER_MISSING: (Code.FAILED_PRECONDITION, "etcdserver: root user does not exist"),
    KvError.ROOT_ROLE_MISSING: (Code.FAILED_PRECONDITION, "etcdserver: root user does not have root role"),
    KvError.USER_EXISTS: (Code.FAILED_PRECONDITION, "etcdserver: user name already exists"),
    KvError.USER_EMPTY: (Code.INVALID_ARGUMENT, "etcdserver: user name is empty"),
    KvError.USER_NOT_FOUND: (Code.FAILED_PRECONDITION, "etcdserver: user name not found"),
    KvError.ROLE_EXISTS: (Code.FAILED_PRECONDITION, "etcdserver: role name already exists"),
    KvError.ROLE_NOT_FOUND: (Code.FAILED_PRECONDITION, "etcdserver: role name not found"),
    KvError.ROLE_EMPTY: (Code.INVALID_ARGUMENT, "etcdserver: role name is empty"),
    KvError.PERMISSION_NOT_GIVEN: PERMISSION_NOT_GIVEN,
    KvError.AUTH_FAILED: AUTH_FAILED,
    KvError.PERMISSION_DENIED: PERMISSION_DENIED,
    KvError.ROLE_NOT_GRANTED: (Code.FAILED_PRECONDITION, "etcdserver: role is not granted to the user"),
    KvError.PERMISSION_NOT_GRANTED: (
        Code.FAILED_PRECONDITION,
        "etcdserver: permission is not granted to the role",
    ),
    KvError.AUTH_NOT_ENABLED: AUTH_NOT_ENABLED,
    KvError.INVALID_AUTH_MANAGEMENT: (Code.INVALID_ARGUMENT, "etcdserver: invalid auth management"),
    KvError.AUTH_OLD_REVISION: AUTH_OLD_REVISION,
    KvError.AUTH_FULL: (
        Code.RESOURCE_EXHAUSTED,
        "oarlock: a bound on users, roles, permissions or the length of a name is reached",
    ),
    KvError.LEASES_FULL: (Code.RESOURCE_EXHAUSTED, "oarlock: there are too many leases"),
    KvError.RANGE_TOO_LARGE: RANGE_TOO_LARGE,
    KvError.MALFORMED: (Code.INTERNAL, "etcdserver: the command is not one of this version"),
}


def refusal(status: tuple[Code, str]) -> RpcError:
    """The exception that ends a call with `status`."""
    return RpcError(*status)


def of_kv_error(error: KvError) -> tuple[Code, str]:
    """What a refusal of the machine becomes."""
    return _OF_KV_ERROR[error]


def of_raft_error(error: RaftError) -> tuple[Code, str]:
    """What an error of the group becomes. Unavailable is what etcd's clients retry, for calls that may be repeated."""
    match error:
        case NoLeader():
            return NO_LEADER
        case Overloaded():
            return TOO_MANY_REQUESTS
        case DeadlineExceeded():
            return TIMED_OUT
        case LeadershipLost() | NotLeader() | ProposalDropped():
            return LEADER_CHANGED
        case Stopped() | StorageError():
            return SERVER_STOPPED
        case Rejected():
            if error.reason in _OF_MEMBERSHIP:
                return _OF_MEMBERSHIP[error.reason]
            return (Code.FAILED_PRECONDITION, f"etcdserver: {error}")
        case _:
            return (Code.UNKNOWN, f"etcdserver: {error}")
