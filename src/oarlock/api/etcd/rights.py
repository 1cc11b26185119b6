"""Which right every RPC needs while authentication is on: one table, and what is not in it nobody may call.

A row is a function of the auth state, the caller (an empty name for nobody), the auth revision the caller was found at,
the request's bytes and the keys on leases. It raises `RpcError` for a request that is refused whoever sends it, and
returns why this caller is refused, or None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol, TypeAlias

from oarlock.api import proto
from oarlock.api.etcd import codec, requests
from oarlock.api.etcd.parsing import parse
from oarlock.api.limits import Limits
from oarlock.machines.kv.auth import AuthState
from oarlock.machines.kv.commands import KvError, Op, Put, Range
from oarlock.machines.kv.permissions import interval
from oarlock.machines.kv.visit import READ, WRITE


class Leases(Protocol):
    """What rights ask of leases."""

    def keys_of_lease(self, lease: int) -> Iterable[bytes]: ...
    def lease_ids(self) -> Iterable[int]: ...


Row: TypeAlias = Callable[[AuthState, str, int, bytes, Leases], KvError | None]


def open_to_all(auth: AuthState, user: str, revision: int, message: bytes, leases: Leases) -> KvError | None:
    """Needs no login: to log in, above all."""
    return None


def inside(auth: AuthState, user: str, revision: int, message: bytes, leases: Leases) -> KvError | None:
    """A stream whose handler asks `Access` for every message, because refusals have a place in its answers."""
    return None


def logged_in(auth: AuthState, user: str, revision: int, message: bytes, leases: Leases) -> KvError | None:
    return auth.refuse_nobody(user)


def root(auth: AuthState, user: str, revision: int, message: bytes, leases: Leases) -> KvError | None:
    return auth.refuse_root(user)


def _operations(decode: Callable[[bytes], Op]) -> Row:
    def row(auth: AuthState, user: str, revision: int, message: bytes, leases: Leases) -> KvError | None:
        return auth.refuse_operations(user, revision, decode(message), leases.keys_of_lease)

    return row


def _message(name: str) -> Callable[[bytes], Any]:
    message_class = proto.message(name)
    return lambda data: parse(message_class, data)


def _prefix(key: bytes) -> bytes:
    """The range end of all keys that begin with `key`."""
    for at in range(len(key) - 1, -1, -1):
        if key[at] < 0xFF:
            return key[:at] + bytes((key[at] + 1,))
    return b"\0"


def _ranges(decode: Callable[[bytes], Any], needed: Callable[[Any], list[tuple[int, bytes, bytes]]]) -> Row:
    def row(auth: AuthState, user: str, revision: int, message: bytes, leases: Leases) -> KvError | None:
        if (refused := auth.refuse_nobody(user)) is not None:
            return refused
        for right, key, range_end in needed(decode(message)):
            if (refused := auth.refuse_range(user, revision, right, interval(key, range_end))) is not None:
                return refused
        return None

    return row


def _queue(name: bytes) -> list[tuple[int, bytes, bytes]]:
    """Locks and elections read all keys under their name; what they write is checked as it is proposed."""
    prefix = name + b"/"
    return [(READ, prefix, _prefix(prefix))]


_lease_revoke, _lease_time_to_live = (
    _message("etcdserverpb.LeaseRevokeRequest"),
    _message("etcdserverpb.LeaseTimeToLiveRequest"),
)
_alarm = _message("etcdserverpb.AlarmRequest")
_user_get, _role_get = _message("etcdserverpb.AuthUserGetRequest"), _message("etcdserverpb.AuthRoleGetRequest")
_ALARM_GET = 0
_PutRequest, _RangeRequest = proto.message("etcdserverpb.PutRequest"), proto.message("etcdserverpb.RangeRequest")


def _revoke_lease(auth: AuthState, user: str, revision: int, message: bytes, leases: Leases) -> KvError | None:
    return auth.refuse_lease(user, revision, leases.keys_of_lease(_lease_revoke(message).ID))


def _see_lease(auth: AuthState, user: str, revision: int, message: bytes, leases: Leases) -> KvError | None:
    request = _lease_time_to_live(message)
    keys = leases.keys_of_lease(request.ID) if request.keys else ()
    return auth.refuse_lease(user, revision, keys, READ)


def _see_leases(auth: AuthState, user: str, revision: int, message: bytes, leases: Leases) -> KvError | None:
    if auth.is_root(user):
        return None
    keys = (key for lease in leases.lease_ids() for key in leases.keys_of_lease(lease))
    return auth.refuse_lease(user, revision, keys, READ)


def _alarms(auth: AuthState, user: str, revision: int, message: bytes, leases: Leases) -> KvError | None:
    return auth.refuse_nobody(user) if _alarm(message).action == _ALARM_GET else auth.refuse_root(user)


def _own_user(auth: AuthState, user: str, revision: int, message: bytes, leases: Leases) -> KvError | None:
    if user and _user_get(message).name == user:
        return None
    return auth.refuse_root(user)


def _own_role(auth: AuthState, user: str, revision: int, message: bytes, leases: Leases) -> KvError | None:
    refused = auth.refuse_root(user)
    if refused is None:
        return None
    found = auth.user(user)
    return None if found is not None and _role_get(message).role in found.roles else refused


def _put_command(data: bytes) -> Op:
    simple = codec.decode_put(data)
    return Put(*simple) if simple is not None and simple[0] else requests.put_command(parse(_PutRequest, data))


def _range_command(data: bytes) -> Op:
    key = codec.decode_get(data)
    return Range(key) if key is not None else requests.range_command(parse(_RangeRequest, data))


def table(limits: Limits) -> dict[tuple[str, str], Row]:
    """The row of every RPC that is served, by service and method."""
    txn = _message("etcdserverpb.TxnRequest")
    delete = _message("etcdserverpb.DeleteRangeRequest")
    rows: dict[str, dict[str, Row]] = {
        "etcdserverpb.KV": {
            "Range": _operations(_range_command),
            "Put": _operations(_put_command),
            "DeleteRange": _operations(lambda data: requests.delete_command(delete(data))),
            "Txn": _operations(lambda data: requests.txn_command(txn(data), limits.txn_ops_max, limits.txn_depth_max)),
            "Compact": root,
        },
        "etcdserverpb.Watch": {"Watch": inside},
        "etcdserverpb.Lease": {
            "LeaseGrant": logged_in,
            "LeaseRevoke": _revoke_lease,
            "LeaseKeepAlive": inside,
            "LeaseTimeToLive": _see_lease,
            "LeaseLeases": _see_leases,
        },
        "etcdserverpb.Cluster": {
            "MemberAdd": root,
            "MemberRemove": root,
            "MemberUpdate": root,
            "MemberPromote": root,
            "MemberList": logged_in,
        },
        "etcdserverpb.Maintenance": {
            "Alarm": _alarms,
            "Status": logged_in,
            "Defragment": root,
            "Hash": root,
            "HashKV": root,
            "Snapshot": root,
            "MoveLeader": root,
            "Downgrade": root,
        },
        "etcdserverpb.Auth": {
            "AuthEnable": root,
            "AuthDisable": root,
            "AuthStatus": open_to_all,
            "Authenticate": open_to_all,
            "UserAdd": root,
            "UserGet": _own_user,
            "UserList": root,
            "UserDelete": root,
            "UserChangePassword": root,
            "UserGrantRole": root,
            "UserRevokeRole": root,
            "RoleAdd": root,
            "RoleGet": _own_role,
            "RoleList": root,
            "RoleDelete": root,
            "RoleGrantPermission": root,
            "RoleRevokePermission": root,
        },
        "v3lockpb.Lock": {
            "Lock": _ranges(_message("v3lockpb.LockRequest"), lambda r: _queue(r.name)),
            "Unlock": _ranges(_message("v3lockpb.UnlockRequest"), lambda r: [(WRITE, r.key, b"")]),
        },
        "v3electionpb.Election": {
            "Campaign": _ranges(_message("v3electionpb.CampaignRequest"), lambda r: _queue(r.name)),
            "Proclaim": _ranges(
                _message("v3electionpb.ProclaimRequest"),
                lambda r: [(READ, r.leader.key, b""), (WRITE, r.leader.key, b"")],
            ),
            "Leader": _ranges(_message("v3electionpb.LeaderRequest"), lambda r: _queue(r.name)),
            "Observe": inside,
            "Resign": _ranges(
                _message("v3electionpb.ResignRequest"),
                lambda r: [(READ, r.leader.key, b""), (WRITE, r.leader.key, b"")],
            ),
        },
        "grpc.health.v1.Health": {"Check": open_to_all, "Watch": open_to_all},
    }
    return {(service, name): row for service, methods in rows.items() for name, row in methods.items()}


INSIDE: Final = (
    ("etcdserverpb.Watch", "Watch"),
    ("etcdserverpb.Lease", "LeaseKeepAlive"),
    ("v3electionpb.Election", "Observe"),
)
"""The rows that leave it to the handler; each has a test of its own that it asks."""
