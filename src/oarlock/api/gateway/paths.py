"""The one table of the gateway: which path asks for which RPC. The routes and the OpenAPI description come from it.

What it does not say (messages, streams) is the schema's. A method without a path, or a path without a method, is a
`LookupError` when the table is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Final

from oarlock.api import proto

PREFIX: Final = "/v3/"
OLDER_PREFIX: Final = "/v3beta/"
"""As etcd 3.5, which rewrites it to `PREFIX`. (`/v3alpha/` it does not have any more.)"""

_KV: Final = "etcdserverpb.KV"
_LEASE: Final = "etcdserverpb.Lease"
_CLUSTER: Final = "etcdserverpb.Cluster"
_MAINTENANCE: Final = "etcdserverpb.Maintenance"
_AUTH: Final = "etcdserverpb.Auth"
_ELECTION: Final = "v3electionpb.Election"

PATHS: Final[Mapping[tuple[str, str], tuple[str, ...]]] = MappingProxyType(
    {
        (_KV, "Range"): ("/v3/kv/range",),
        (_KV, "Put"): ("/v3/kv/put",),
        (_KV, "DeleteRange"): ("/v3/kv/deleterange",),
        (_KV, "Txn"): ("/v3/kv/txn",),
        (_KV, "Compact"): ("/v3/kv/compaction",),
        ("etcdserverpb.Watch", "Watch"): ("/v3/watch",),
        (_LEASE, "LeaseGrant"): ("/v3/lease/grant",),
        (_LEASE, "LeaseRevoke"): ("/v3/lease/revoke", "/v3/kv/lease/revoke"),
        (_LEASE, "LeaseKeepAlive"): ("/v3/lease/keepalive",),
        (_LEASE, "LeaseTimeToLive"): ("/v3/lease/timetolive", "/v3/kv/lease/timetolive"),
        (_LEASE, "LeaseLeases"): ("/v3/lease/leases", "/v3/kv/lease/leases"),
        (_CLUSTER, "MemberAdd"): ("/v3/cluster/member/add",),
        (_CLUSTER, "MemberRemove"): ("/v3/cluster/member/remove",),
        (_CLUSTER, "MemberUpdate"): ("/v3/cluster/member/update",),
        (_CLUSTER, "MemberList"): ("/v3/cluster/member/list",),
        (_CLUSTER, "MemberPromote"): ("/v3/cluster/member/promote",),
        (_MAINTENANCE, "Alarm"): ("/v3/maintenance/alarm",),
        (_MAINTENANCE, "Status"): ("/v3/maintenance/status",),
        (_MAINTENANCE, "Defragment"): ("/v3/maintenance/defragment",),
        (_MAINTENANCE, "Hash"): ("/v3/maintenance/hash",),
        (_MAINTENANCE, "HashKV"): ("/v3/maintenance/hashkv",),
        (_MAINTENANCE, "Snapshot"): ("/v3/maintenance/snapshot",),
        (_MAINTENANCE, "MoveLeader"): ("/v3/maintenance/transfer-leadership",),
        (_MAINTENANCE, "Downgrade"): ("/v3/maintenance/downgrade",),
        (_AUTH, "AuthEnable"): ("/v3/auth/enable",),
        (_AUTH, "AuthDisable"): ("/v3/auth/disable",),
        (_AUTH, "AuthStatus"): ("/v3/auth/status",),
        (_AUTH, "Authenticate"): ("/v3/auth/authenticate",),
        (_AUTH, "UserAdd"): ("/v3/auth/user/add",),
        (_AUTH, "UserGet"): ("/v3/auth/user/get",),
        (_AUTH, "UserList"): ("/v3/auth/user/list",),
        (_AUTH, "UserDelete"): ("/v3/auth/user/delete",),
        (_AUTH, "UserChangePassword"): ("/v3/auth/user/changepw",),
        (_AUTH, "UserGrantRole"): ("/v3/auth/user/grant",),
        (_AUTH, "UserRevokeRole"): ("/v3/auth/user/revoke",),
        (_AUTH, "RoleAdd"): ("/v3/auth/role/add",),
        (_AUTH, "RoleGet"): ("/v3/auth/role/get",),
        (_AUTH, "RoleList"): ("/v3/auth/role/list",),
        (_AUTH, "RoleDelete"): ("/v3/auth/role/delete",),
        (_AUTH, "RoleGrantPermission"): ("/v3/auth/role/grant",),
        (_AUTH, "RoleRevokePermission"): ("/v3/auth/role/revoke",),
        ("v3lockpb.Lock", "Lock"): ("/v3/lock/lock",),
        ("v3lockpb.Lock", "Unlock"): ("/v3/lock/unlock",),
        (_ELECTION, "Campaign"): ("/v3/election/campaign",),
        (_ELECTION, "Proclaim"): ("/v3/election/proclaim",),
        (_ELECTION, "Leader"): ("/v3/election/leader",),
        (_ELECTION, "Observe"): ("/v3/election/observe",),
        (_ELECTION, "Resign"): ("/v3/election/resign",),
    }
)

GRPC_ONLY: Final = frozenset({"grpc.health.v1.Health"})
"""Services that have no JSON form, with etcd neither."""


@dataclass(frozen=True, slots=True)
class Binding:
    """One RPC as the gateway has it."""

    service: str
    name: str
    paths: tuple[str, ...]
    request: str  # full names of messages
    response: str
    client_streams: bool
    server_streams: bool

    @property
    def streams(self) -> bool:
        return self.client_streams or self.server_streams


@cache
def bindings() -> tuple[Binding, ...]:
    """All RPCs, in the order of the table. Raises `LookupError` where table and schema do not agree."""
    schema = proto.rpcs()
    found = []
    for (service, name), paths in PATHS.items():
        rpc = schema.get((service, name))
        if rpc is None:
            raise LookupError(f"{paths[0]} is for {service}/{name}, which does not exist")
        found.append(Binding(service, name, paths, *rpc))
    for service, name in schema:
        if service not in GRPC_ONLY and (service, name) not in PATHS:
            raise LookupError(f"{service}/{name} has no path")
    return tuple(found)


def stream_paths() -> frozenset[str]:
    """The paths whose answer, and maybe request, may go on for any time."""
    paths = [path for binding in bindings() if binding.streams for path in binding.paths]
    return frozenset([*paths, *(OLDER_PREFIX + path.removeprefix(PREFIX) for path in paths)])
