"""Callers of every kind for tests of rights, over the server's own API."""

from __future__ import annotations

from typing import Any

from tests.support.h2_client import Answer, H2Client
from tests.support.single_backend import MEMBER_ID

from oarlock.api import proto
from oarlock.api.etcd.tokens import AuthOptions

CHEAP = AuthOptions(bcrypt_cost=4)
"""As the defaults, but without the work that makes passwords hard to guess."""

USERS = ("reader", "writer", "nobody", "root")
READ, WRITE, READWRITE = 0, 1, 2


def m(name: str, /, **fields: Any) -> Any:
    full = name if "." in name else f"etcdserverpb.{name}"
    return proto.message(full)(**fields)


def path_of(rpc: str) -> str:
    """`KV/Put` and the like, with the package."""
    service, _, name = rpc.partition("/")
    for full in proto.services():
        if full.rpartition(".")[2] == service:
            return f"/{full}/{name}"
    raise KeyError(rpc)


async def ask(client: H2Client, rpc: str, request: Any, token: str | None = None, header: bytes = b"token") -> Answer:
    extra = [(header, token.encode())] if token is not None else []
    return await client.unary(path_of(rpc), request.SerializeToString(), extra)


async def ok(client: H2Client, rpc: str, request: Any, token: str | None = None) -> Answer:
    answer = await ask(client, rpc, request, token)
    assert answer.code == 0, f"{rpc}: {answer.code} {answer.text}"
    return answer


async def login(client: H2Client, user: str) -> str:
    request = m("AuthenticateRequest", name=user, password=f"{user}'s password")
    answer = await ok(client, "Auth/Authenticate", request)
    return str(proto.message("etcdserverpb.AuthenticateResponse").FromString(answer.messages[0]).token)


async def people(client: H2Client) -> dict[str, str]:
    """`reader` and `writer` on [a, c), `nobody` without a role, `root`; authentication on. Gives their tokens."""
    for name in USERS:
        await ok(client, "Auth/UserAdd", m("AuthUserAddRequest", name=name, password=f"{name}'s password"))
    for role, kind in (("r", READ), ("w", READWRITE)):
        await ok(client, "Auth/RoleAdd", m("AuthRoleAddRequest", name=role))
        grant = m("AuthRoleGrantPermissionRequest", name=role)
        grant.perm.permType, grant.perm.key, grant.perm.range_end = kind, b"a", b"c"
        await ok(client, "Auth/RoleGrantPermission", grant)
    for user, role in (("reader", "r"), ("writer", "w"), ("root", "root")):
        await ok(client, "Auth/UserGrantRole", m("AuthUserGrantRoleRequest", user=user, role=role))
    await ok(client, "Auth/AuthEnable", m("AuthEnableRequest"))
    return {name: await login(client, name) for name in USERS}


def txn(*operations: Any) -> Any:
    request = m("TxnRequest")
    field = {"RangeRequest": "request_range", "PutRequest": "request_put", "DeleteRangeRequest": "request_delete_range",
             "TxnRequest": "request_txn"}  # fmt: skip
    for op in operations:
        getattr(request.success.add(), field[op.DESCRIPTOR.name]).CopyFrom(op)
    return request


def grant(role: str, key: bytes, end: bytes, kind: int = 0) -> Any:
    request = m("AuthRoleGrantPermissionRequest", name=role)
    request.perm.permType, request.perm.key, request.perm.range_end = kind, key, end
    return request


ANY, LOGGED_IN, READER, WRITER, ROOT = range(5)
"""What a call needs: nothing; any login; to read, or to write, in [a, c); root."""

ALLOWED = {
    ANY: {"", *USERS},
    LOGGED_IN: set(USERS),
    READER: {"reader", "writer", "root"},
    WRITER: {"writer", "root"},
    ROOT: {"root"},
}

MATRIX: list[tuple[str, Any, int]] = [
    ("KV/Range", m("RangeRequest", key=b"a"), READER),
    ("KV/Range", m("RangeRequest", key=b"a", serializable=True), READER),
    ("KV/Range", m("RangeRequest", key=b"a", range_end=b"c"), READER),
    ("KV/Range", m("RangeRequest", key=b"a", range_end=b"c\0"), ROOT),
    ("KV/Range", m("RangeRequest", key=b"a", range_end=b"\0"), ROOT),
    ("KV/Range", m("RangeRequest", key=b"a", range_end=b"\0", serializable=True, count_only=True), ROOT),
    ("KV/Range", m("RangeRequest", key=b"z"), ROOT),
    ("KV/Put", m("PutRequest", key=b"a"), WRITER),
    ("KV/Put", m("PutRequest", key=b"a", prev_kv=True), WRITER),
    ("KV/Put", m("PutRequest", key=b"z"), ROOT),
    ("KV/DeleteRange", m("DeleteRangeRequest", key=b"a"), WRITER),
    ("KV/DeleteRange", m("DeleteRangeRequest", key=b"a", range_end=b"\0"), ROOT),
    ("KV/Txn", txn(m("RangeRequest", key=b"a")), READER),
    ("KV/Txn", txn(m("RangeRequest", key=b"a", serializable=True)), READER),
    ("KV/Txn", txn(m("PutRequest", key=b"a")), WRITER),
    ("KV/Txn", txn(txn(m("PutRequest", key=b"a"))), WRITER),
    ("KV/Txn", txn(txn(m("RangeRequest", key=b"z"))), ROOT),
    ("KV/Txn", txn(txn(txn(m("PutRequest", key=b"z")))), ROOT),
    ("KV/Txn", m("TxnRequest", compare=[m("Compare", key=b"z")]), ROOT),
    ("KV/Compact", m("CompactionRequest", revision=1), ROOT),
    ("Cluster/MemberList", m("MemberListRequest"), LOGGED_IN),
    ("Cluster/MemberList", m("MemberListRequest", linearizable=True), LOGGED_IN),
    ("Cluster/MemberAdd", m("MemberAddRequest", peerURLs=["http://127.0.0.1:9"]), ROOT),
    ("Cluster/MemberRemove", m("MemberRemoveRequest"), ROOT),
    ("Cluster/MemberUpdate", m("MemberUpdateRequest", ID=1, peerURLs=["http://127.0.0.1:9"]), ROOT),
    ("Cluster/MemberPromote", m("MemberPromoteRequest"), ROOT),
    ("Maintenance/Status", m("StatusRequest"), LOGGED_IN),
    ("Maintenance/Alarm", m("AlarmRequest"), LOGGED_IN),
    ("Maintenance/Alarm", m("AlarmRequest", action=1), ROOT),
    ("Maintenance/Alarm", m("AlarmRequest", action=2), ROOT),
    ("Maintenance/MoveLeader", m("MoveLeaderRequest", targetID=MEMBER_ID), ROOT),
    ("Maintenance/Defragment", m("DefragmentRequest"), ROOT),
    ("Maintenance/Hash", m("HashRequest"), ROOT),
    ("Maintenance/HashKV", m("HashKVRequest"), ROOT),
    ("Maintenance/Snapshot", m("SnapshotRequest"), ROOT),
    ("Maintenance/Downgrade", m("DowngradeRequest", version="3.4.0"), ROOT),
    ("Lease/LeaseGrant", m("LeaseGrantRequest", TTL=60, ID=77), LOGGED_IN),
    ("Lease/LeaseTimeToLive", m("LeaseTimeToLiveRequest", ID=9), LOGGED_IN),
    ("Lease/LeaseRevoke", m("LeaseRevokeRequest", ID=9), LOGGED_IN),
    ("Lease/LeaseLeases", m("LeaseLeasesRequest"), LOGGED_IN),
    ("Lock/Lock", m("v3lockpb.LockRequest", name=b"z"), ROOT),
    ("Lock/Unlock", m("v3lockpb.UnlockRequest", key=b"z"), ROOT),
    ("Election/Campaign", m("v3electionpb.CampaignRequest", name=b"z"), ROOT),
    ("Election/Proclaim", m("v3electionpb.ProclaimRequest", leader=m("v3electionpb.LeaderKey", key=b"z")), ROOT),
    ("Election/Resign", m("v3electionpb.ResignRequest", leader=m("v3electionpb.LeaderKey", key=b"z")), ROOT),
    ("Election/Leader", m("v3electionpb.LeaderRequest", name=b"z"), ROOT),
    ("Auth/AuthStatus", m("AuthStatusRequest"), ANY),
    ("Auth/AuthEnable", m("AuthEnableRequest"), ROOT),
    ("Auth/UserAdd", m("AuthUserAddRequest", name="new", password="p"), ROOT),
    ("Auth/UserGet", m("AuthUserGetRequest", name="root"), ROOT),
    ("Auth/UserList", m("AuthUserListRequest"), ROOT),
    ("Auth/UserDelete", m("AuthUserDeleteRequest", name="root"), ROOT),
    ("Auth/UserChangePassword", m("AuthUserChangePasswordRequest", name="x", password="p"), ROOT),
    ("Auth/UserGrantRole", m("AuthUserGrantRoleRequest", user="x", role="r"), ROOT),
    ("Auth/UserRevokeRole", m("AuthUserRevokeRoleRequest", name="x", role="r"), ROOT),
    ("Auth/RoleAdd", m("AuthRoleAddRequest", name="r"), ROOT),
    ("Auth/RoleGet", m("AuthRoleGetRequest", role="w"), WRITER),
    ("Auth/RoleList", m("AuthRoleListRequest"), ROOT),
    ("Auth/RoleDelete", m("AuthRoleDeleteRequest", role="x"), ROOT),
    ("Auth/RoleGrantPermission", grant("x", b"a", b""), ROOT),
    ("Auth/RoleRevokePermission", m("AuthRoleRevokePermissionRequest", role="x", key=b"a"), ROOT),
    ("Auth/AuthDisable", m("AuthDisableRequest"), ROOT),  # the last one
    ("Health/Check", m("grpc.health.v1.HealthCheckRequest"), ANY),
]
"""Every unary RPC and the snapshot stream, several times where it depends on the request. None of them changes rights
when it is refused."""
