"""An etcd client for tests: plain grpcio, and messages written down here from etcd's public names and numbers.

It shares nothing with the server under test, its schema least of all: a wrong field number there must not be hidden by
the same wrong number here.
"""

from __future__ import annotations

import os
import re
from typing import Any, Final

# The test process starts members with fork and exec while calls are under way; grpc need not survive in the child.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_SCHEMA: Final = """
package mvccpb
KeyValue: 1 bytes key, 2 int64 create_revision, 3 int64 mod_revision, 4 int64 version, 5 bytes value, 6 int64 lease
package etcdserverpb
ResponseHeader: 1 uint64 cluster_id, 2 uint64 member_id, 3 int64 revision, 4 uint64 raft_term
RangeRequest: 1 bytes key, 2 bytes range_end, 3 int64 limit, 4 int64 revision, 5 int32 sort_order, 6 int32 sort_target,
  7 bool serializable, 8 bool keys_only, 9 bool count_only, 10 int64 min_mod_revision, 11 int64 max_mod_revision,
  12 int64 min_create_revision, 13 int64 max_create_revision
RangeResponse: 1 ResponseHeader header, 2 *mvccpb.KeyValue kvs, 3 bool more, 4 int64 count
PutRequest: 1 bytes key, 2 bytes value, 3 int64 lease, 4 bool prev_kv, 5 bool ignore_value, 6 bool ignore_lease
PutResponse: 1 ResponseHeader header, 2 mvccpb.KeyValue prev_kv
DeleteRangeRequest: 1 bytes key, 2 bytes range_end, 3 bool prev_kv
DeleteRangeResponse: 1 ResponseHeader header, 2 int64 deleted, 3 *mvccpb.KeyValue prev_kvs
Compare: 1 int32 result, 2 int32 target, 3 bytes key, 4 int64 version ?, 5 int64 create_revision ?,
  6 int64 mod_revision ?, 7 bytes value ?, 8 int64 lease ?, 64 bytes range_end
RequestOp: 1 RangeRequest request_range ?, 2 PutRequest request_put ?, 3 DeleteRangeRequest request_delete_range ?,
  4 TxnRequest request_txn ?
ResponseOp: 1 RangeResponse response_range ?, 2 PutResponse response_put ?,
  3 DeleteRangeResponse response_delete_range ?, 4 TxnResponse response_txn ?
TxnRequest: 1 *Compare compare, 2 *RequestOp success, 3 *RequestOp failure
TxnResponse: 1 ResponseHeader header, 2 bool succeeded, 3 *ResponseOp responses
CompactionRequest: 1 int64 revision, 2 bool physical
CompactionResponse: 1 ResponseHeader header
Member: 1 uint64 ID, 2 string name, 3 *string peerURLs, 4 *string clientURLs, 5 bool isLearner
MemberListRequest: 1 bool linearizable
MemberListResponse: 1 ResponseHeader header, 2 *Member members
StatusRequest:
StatusResponse: 1 ResponseHeader header, 2 string version, 3 int64 dbSize, 4 uint64 leader, 5 uint64 raftIndex,
  6 uint64 raftTerm, 7 uint64 raftAppliedIndex, 8 *string errors, 9 int64 dbSizeInUse, 10 bool isLearner
MoveLeaderRequest: 1 uint64 targetID
MoveLeaderResponse: 1 ResponseHeader header
LeaseGrantRequest: 1 int64 TTL, 2 int64 ID
LeaseGrantResponse: 1 ResponseHeader header, 2 int64 ID, 3 int64 TTL, 4 string error
LeaseRevokeRequest: 1 int64 ID
LeaseRevokeResponse: 1 ResponseHeader header
LeaseKeepAliveRequest: 1 int64 ID
LeaseKeepAliveResponse: 1 ResponseHeader header, 2 int64 ID, 3 int64 TTL
LeaseTimeToLiveRequest: 1 int64 ID, 2 bool keys
LeaseTimeToLiveResponse: 1 ResponseHeader header, 2 int64 ID, 3 int64 TTL, 4 int64 grantedTTL, 5 *bytes keys
LeaseLeasesRequest:
LeaseStatus: 1 int64 ID
LeaseLeasesResponse: 1 ResponseHeader header, 2 *LeaseStatus leases
AlarmRequest: 1 int32 action, 2 uint64 memberID, 3 int32 alarm
AlarmMember: 1 uint64 memberID, 2 int32 alarm
AlarmResponse: 1 ResponseHeader header, 2 *AlarmMember alarms
DefragmentRequest:
DefragmentResponse: 1 ResponseHeader header
HashRequest:
HashResponse: 1 ResponseHeader header, 2 uint32 hash
HashKVRequest: 1 int64 revision
HashKVResponse: 1 ResponseHeader header, 2 uint32 hash, 3 int64 compact_revision, 4 int64 hash_revision
SnapshotRequest:
SnapshotResponse: 1 ResponseHeader header, 2 uint64 remaining_bytes, 3 bytes blob, 4 string version
DowngradeRequest: 1 int32 action, 2 string version
DowngradeResponse: 1 ResponseHeader header, 2 string version
"""

_SCALARS: Final = {
    name: getattr(descriptor_pb2.FieldDescriptorProto, f"TYPE_{name.upper()}")
    for name in ("bytes", "string", "bool", "int32", "int64", "uint32", "uint64")
}

_METHODS: Final = {
    "Range": ("KV", "RangeRequest", "RangeResponse"),
    "Put": ("KV", "PutRequest", "PutResponse"),
    "DeleteRange": ("KV", "DeleteRangeRequest", "DeleteRangeResponse"),
    "Txn": ("KV", "TxnRequest", "TxnResponse"),
    "Compact": ("KV", "CompactionRequest", "CompactionResponse"),
    "MemberList": ("Cluster", "MemberListRequest", "MemberListResponse"),
    "Status": ("Maintenance", "StatusRequest", "StatusResponse"),
    "MoveLeader": ("Maintenance", "MoveLeaderRequest", "MoveLeaderResponse"),
    "LeaseGrant": ("Lease", "LeaseGrantRequest", "LeaseGrantResponse"),
    "LeaseRevoke": ("Lease", "LeaseRevokeRequest", "LeaseRevokeResponse"),
    "LeaseTimeToLive": ("Lease", "LeaseTimeToLiveRequest", "LeaseTimeToLiveResponse"),
    "LeaseLeases": ("Lease", "LeaseLeasesRequest", "LeaseLeasesResponse"),
    "Alarm": ("Maintenance", "AlarmRequest", "AlarmResponse"),
    "Defragment": ("Maintenance", "DefragmentRequest", "DefragmentResponse"),
    "Hash": ("Maintenance", "HashRequest", "HashResponse"),
    "HashKV": ("Maintenance", "HashKVRequest", "HashKVResponse"),
    "Downgrade": ("Maintenance", "DowngradeRequest", "DowngradeResponse"),
}

EQUAL, GREATER, LESS, NOT_EQUAL = range(4)
VERSION, CREATE, MOD, VALUE = range(4)


def _load() -> dict[str, Any]:
    """The message classes by name, from a pool of their own."""
    pool = descriptor_pool.DescriptorPool()
    files: dict[str, descriptor_pb2.FileDescriptorProto] = {}
    package = ""
    for line in re.sub(r",\n\s+", ", ", _SCHEMA.strip()).splitlines():
        if line.startswith("package "):
            package = line.split()[1]
            imports = [f"{name}.proto" for name in files]
            files[package] = descriptor_pb2.FileDescriptorProto(
                name=f"{package}.proto", package=package, syntax="proto3", dependency=imports
            )
            continue
        name, _, fields = line.partition(":")
        message = files[package].message_type.add(name=name)
        if "?" in fields:
            message.oneof_decl.add(name="choice")
        for text in filter(None, map(str.strip, fields.split(","))):
            number, kind, field_name, *choice = text.split()
            repeated = kind.startswith("*")
            kind = kind.removeprefix("*")
            field = message.field.add(name=field_name, number=int(number), label=3 if repeated else 1)
            if kind in _SCALARS:
                field.type = _SCALARS[kind]
            else:
                field.type = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE
                field.type_name = f".{kind}" if "." in kind else f".{package}.{kind}"
            if choice:
                field.oneof_index = 0
    classes: dict[str, Any] = {}
    for file in files.values():
        pool.Add(file) if hasattr(pool, "Add") else pool.AddSerializedFile(file.SerializeToString())
        for message in file.message_type:
            full_name = f"{file.package}.{message.name}"
            classes[message.name] = message_factory.GetMessageClass(pool.FindMessageTypeByName(full_name))
    return classes


M: Final = _load()
"""Message classes by their short names, such as `M["PutRequest"]`."""

ALL_KEYS: Final = b"\0"
"""As key and range_end: the whole store."""


def op(request: Any) -> Any:
    """The request as an operation of a transaction."""
    field = {
        "RangeRequest": "request_range",
        "PutRequest": "request_put",
        "DeleteRangeRequest": "request_delete_range",
        "TxnRequest": "request_txn",
    }[request.DESCRIPTOR.name]
    return M["RequestOp"](**{field: request})


class EtcdClient:
    """A connection to one member. Methods raise `grpc.RpcError`; `timeout` is in seconds."""

    def __init__(self, endpoint: str, *, timeout: float = 60.0, options: tuple[tuple[str, Any], ...] = ()) -> None:
        self.endpoint = endpoint
        self.timeout = timeout
        self.channel = grpc.insecure_channel(
            endpoint,
            options=[
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.min_reconnect_backoff_ms", 2000),  # how long an attempt to connect may take
                ("grpc.max_reconnect_backoff_ms", 200),
                ("grpc.max_receive_message_length", -1),
                ("grpc.enable_retries", 0),
                *options,
            ],
        )
        self._calls: dict[str, Any] = {
            method: self.channel.unary_unary(
                f"/etcdserverpb.{service}/{method}",
                request_serializer=M[request].SerializeToString,
                response_deserializer=M[response].FromString,
            )
            for method, (service, request, response) in _METHODS.items()
        }
        self._keep_alive = self.channel.stream_stream(
            "/etcdserverpb.Lease/LeaseKeepAlive",
            request_serializer=M["LeaseKeepAliveRequest"].SerializeToString,
            response_deserializer=M["LeaseKeepAliveResponse"].FromString,
        )
        self._snapshot = self.channel.unary_stream(
            "/etcdserverpb.Maintenance/Snapshot",
            request_serializer=M["SnapshotRequest"].SerializeToString,
            response_deserializer=M["SnapshotResponse"].FromString,
        )

    def __enter__(self) -> EtcdClient:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self.channel.close()

    def call(self, method: str, *, timeout: float | None = None, **fields: Any) -> Any:
        """Send the request of `method` with `fields`."""
        return self.send(method, M[_METHODS[method][1]](**fields), timeout=timeout)

    def send(self, method: str, request: Any, *, timeout: float | None = None) -> Any:
        return self._calls[method](request, timeout=self.timeout if timeout is None else timeout)

    def put(self, key: bytes, value: bytes, **fields: Any) -> Any:
        return self.call("Put", key=key, value=value, **fields)

    def get(self, key: bytes, **fields: Any) -> Any:
        return self.call("Range", key=key, **fields)

    def delete(self, key: bytes, **fields: Any) -> Any:
        return self.call("DeleteRange", key=key, **fields)

    def compare_and_swap(self, key: bytes, expected: bytes | None, value: bytes) -> Any:
        """Write `value` if the key has the value `expected`, or does not exist when that is `None`."""
        if expected is None:
            compare = M["Compare"](result=EQUAL, target=CREATE, key=key, create_revision=0)
        else:
            compare = M["Compare"](result=EQUAL, target=VALUE, key=key, value=expected)
        put = op(M["PutRequest"](key=key, value=value))
        return self.call("Txn", compare=[compare], success=[put])

    def status(self, *, timeout: float | None = None) -> Any:
        return self.call("Status", timeout=timeout)

    def lease_grant(self, ttl: int, lease: int = 0) -> int:
        return int(self.call("LeaseGrant", TTL=ttl, ID=lease).ID)

    def keep_alive(self, *leases: int) -> list[Any]:
        """The answers to one keep-alive for each lease, on one stream."""
        requests = iter([M["LeaseKeepAliveRequest"](ID=lease) for lease in leases])
        return list(self._keep_alive(requests, timeout=self.timeout))

    def snapshot(self) -> Any:
        """An iterator over the stream of a snapshot."""
        return self._snapshot(M["SnapshotRequest"](), timeout=120)

    def everything(self, *, serializable: bool = True) -> Any:
        """The whole store as this member has it."""
        return self.call("Range", key=ALL_KEYS, range_end=ALL_KEYS, serializable=serializable, timeout=120)


def never_sent(error: grpc.RpcError) -> bool:
    """Whether the call certainly did not reach a server: no connection could be made."""
    details = (error.details() or "") if isinstance(error, grpc.Call) else ""
    return "failed to connect to all addresses" in details or "Connection refused" in details
