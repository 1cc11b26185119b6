"""etcd's KV, Cluster, Maintenance and health services over one `Backend`.

Writes become one command each and are answered from the machine's result. Linearizable reads that arrive in one
turn share one read barrier. Nothing here creates a task or a future for a unary call.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, cast

from google.protobuf.message import DecodeError

from oarlock.api import proto
from oarlock.api.backend import Backend
from oarlock.api.etcd import codec, errors, requests
from oarlock.api.grpc import Call, Code, Method, RpcError, StreamCall
from oarlock.api.limits import Limits
from oarlock.errors import NotLeader, RaftError, Rejected
from oarlock.machines.kv import commands
from oarlock.machines.kv.commands import (
    Compact,
    CompactResult,
    Compare,
    CompareResult,
    CompareTarget,
    DeleteResult,
    Put,
    PutResult,
    Range,
    RangeResult,
    Refused,
    Txn,
    TxnResult,
)

log = logging.getLogger(__name__)

ETCD_VERSION = "3.5.0+oarlock"
"""The release whose API we speak, as a semantic version with our name as build metadata."""

CLUSTER_VERSION = "3.5.0"

RAFT_REQUEST_OVERHEAD_BYTES = 18
"""What etcd adds to a request before it compares it with --max-request-bytes (measured at the limit; it varies by 1
with the random request id)."""

_RangeRequest = proto.message("etcdserverpb.RangeRequest")
_PutRequest = proto.message("etcdserverpb.PutRequest")
_DeleteRangeRequest = proto.message("etcdserverpb.DeleteRangeRequest")
_TxnRequest = proto.message("etcdserverpb.TxnRequest")
_CompactionRequest = proto.message("etcdserverpb.CompactionRequest")
_KeyValue = proto.message("mvccpb.KeyValue")
_MemberListRequest = proto.message("etcdserverpb.MemberListRequest")
_MemberListResponse = proto.message("etcdserverpb.MemberListResponse")
_StatusRequest = proto.message("etcdserverpb.StatusRequest")
_StatusResponse = proto.message("etcdserverpb.StatusResponse")
_MoveLeaderRequest = proto.message("etcdserverpb.MoveLeaderRequest")
_AlarmRequest = proto.message("etcdserverpb.AlarmRequest")
_ALARM_GET = 0
_HealthCheckRequest = proto.message("grpc.health.v1.HealthCheckRequest")
_HealthCheckResponse = proto.message("grpc.health.v1.HealthCheckResponse")
_SERVING = 1
_SERVICE_UNKNOWN = 3


class KvReads(Protocol):
    """What the API reads from the key-value machine."""

    @property
    def revision(self) -> int: ...
    @property
    def compact_revision(self) -> int: ...
    def range(self, request: Range) -> RangeResult | Refused: ...
    def range_one(self, key: bytes) -> bytes | None:
        """The encoded KeyValue of `key` now."""


class EtcdService:
    """See the module. `methods` are all RPCs of etcd 3.5, those not served yet answer Unimplemented."""

    def __init__(self, backend: Backend, limits: Limits) -> None:
        self._backend = backend
        self._kv = cast(KvReads, backend.kv)
        self._limits = limits
        self._header = codec.HeaderEncoder(backend.cluster_id, backend.member_id).encode
        self._propose = backend.propose
        self._encode = commands.encode
        self._put_message_bytes_max = limits.request_bytes_max - RAFT_REQUEST_OVERHEAD_BYTES
        self._reads: list[tuple[Call, Callable[[Call], None]]] = []
        self._is_learner = backend.status().is_learner
        self.slow_calls = 0

    def refresh(self) -> None:
        """Called about once a second: what is too dear to ask for at every request."""
        self._is_learner = self._backend.status().is_learner

    def methods(self) -> list[Method]:
        unary = {
            ("etcdserverpb.KV", "Range"): self._range,
            ("etcdserverpb.KV", "Put"): self._put,
            ("etcdserverpb.KV", "DeleteRange"): self._delete_range,
            ("etcdserverpb.KV", "Txn"): self._txn,
            ("etcdserverpb.KV", "Compact"): self._compact,
            ("etcdserverpb.Cluster", "MemberList"): self._member_list,
            ("etcdserverpb.Maintenance", "Status"): self._status,
            ("etcdserverpb.Maintenance", "Alarm"): self._alarm,
            ("etcdserverpb.Maintenance", "MoveLeader"): self._move_leader,
            ("grpc.health.v1.Health", "Check"): self._health_check,
        }
        methods = [Method(service, name, unary=handler) for (service, name), handler in unary.items()]
        methods.append(Method("grpc.health.v1.Health", "Watch", stream=self._health_watch))
        served = {(method.service, method.name) for method in methods}
        for service, names in proto.services().items():
            for name, (client_streams, server_streams) in names.items():
                if (service, name) in served:
                    continue
                if client_streams or server_streams:
                    methods.append(Method(service, name, stream=_not_served_stream))
                else:
                    methods.append(Method(service, name, unary=_not_served))
        return methods

    # -- before every request of a kind
    def _may_replicate(self, call: Call, size: int) -> None:
        if size > self._put_message_bytes_max:
            raise RpcError(*errors.REQUEST_TOO_LARGE)
        self._may_serve(call)

    def _may_serve(self, call: Call) -> None:
        if self._is_learner:
            raise RpcError(*errors.NOT_FOR_LEARNER)
        if call.need_leader and not self._backend.status().leader:
            raise RpcError(*errors.NO_LEADER)

    # -- KV writes
    def _put(self, call: Call, message: bytes) -> None:
        simple = codec.decode_put(message)
        if simple is not None and simple[0]:
            put = Put(*simple)
        else:
            put = requests.put_command(_parse(_PutRequest, message))
        if len(message) > self._put_message_bytes_max or self._is_learner or call.route.need_leader:
            self._may_replicate(call, len(message))
        try:
            self._propose(self._encode(put), partial(self._put_done, call))
        except RaftError as error:
            call.fail(*errors.of_raft_error(error))

    def _put_done(self, call: Call, result: object) -> None:
        if type(result) is PutResult:
            call.reply(codec.put_response(self._header(result.revision, self._backend.term), result))
        else:
            _fail(call, result)

    def _delete_range(self, call: Call, message: bytes) -> None:
        command = requests.delete_command(_parse(_DeleteRangeRequest, message))
        self._may_replicate(call, len(message))
        self._submit(call, command, self._delete_done)

    def _delete_done(self, call: Call, result: object) -> None:
        if isinstance(result, DeleteResult):
            call.reply(codec.delete_response(self._header(result.revision, self._backend.term), result))
        else:
            _fail(call, result)

    def _txn(self, call: Call, message: bytes) -> None:
        request = _parse(_TxnRequest, message)
        txn = requests.txn_command(request, self._limits.txn_ops_max)
        if requests.is_read_only(txn):
            if requests.is_serializable(request):
                self._read_only_txn(txn, call)
            else:
                self._may_serve(call)
                self._read(call, partial(self._read_only_txn, txn))
            return
        self._may_replicate(call, len(message))
        self._submit(call, txn, self._txn_done)

    def _txn_done(self, call: Call, result: object) -> None:
        if isinstance(result, TxnResult):
            call.reply(codec.txn_response(self._header(result.revision, self._backend.term), result))
        else:
            _fail(call, result)

    def _compact(self, call: Call, message: bytes) -> None:
        request = _parse(_CompactionRequest, message)
        self._may_replicate(call, len(message))
        self._submit(call, Compact(request.revision), self._compact_done)

    def _compact_done(self, call: Call, result: object) -> None:
        if isinstance(result, CompactResult):
            call.reply(self._header(self._kv.revision, self._backend.term))
        else:
            _fail(call, result)

    def _submit(self, call: Call, command: commands.Command, done: Callable[[Call, object], None]) -> None:
        try:
            self._propose(self._encode(command), partial(done, call))
        except RaftError as error:
            call.fail(*errors.of_raft_error(error))

    # -- reads
    def _range(self, call: Call, message: bytes) -> None:
        key = codec.decode_get(message)
        if key is not None:
            if self._is_learner or call.route.need_leader:
                self._may_serve(call)
            self._read(call, partial(self._get, key))
            return
        request = _parse(_RangeRequest, message)
        command = requests.range_command(request)
        if request.serializable:
            self._answer_range(command, call)
        else:
            self._may_serve(call)
            self._read(call, partial(self._answer_range, command))

    def _read(self, call: Call, answer: Callable[[Call], None]) -> None:
        """Call `answer(call)` after a read barrier that begins at the end of this turn."""
        reads = self._reads
        reads.append((call, answer))
        if len(reads) == 1:
            self._backend.flush_soon(self._begin_reads)

    def _begin_reads(self) -> None:
        reads, self._reads = self._reads, []
        done = partial(self._barrier_done, reads)
        try:
            self._backend.read_barrier(done)
        except RaftError as error:
            done(error)

    def _barrier_done(self, reads: list[tuple[Call, Callable[[Call], None]]], error: RaftError | None) -> None:
        if error is not None:
            status = errors.of_raft_error(error)
            for call, _ in reads:
                call.fail(*status)
            return
        for call, answer in reads:
            if not call.open:
                continue  # the client has gone, or its time is over
            try:
                answer(call)
            except RpcError as refusal:
                call.fail(refusal.code, refusal.text)
            except Exception as fault:  # the outer edge of a call: the other reads of the batch go on
                log.exception("read failed method=%s/%s", call.method.service, call.method.name)
                call.fail(Code.INTERNAL, f"internal error: {type(fault).__name__}")

    def _get(self, key: bytes, call: Call) -> None:
        kv = self._kv
        call.reply(codec.get_response(self._header(kv.revision, self._backend.term), kv.range_one(key)))

    def _answer_range(self, command: Range, call: Call) -> None:
        result = self._kv.range(command)
        if isinstance(result, RangeResult):
            call.reply(codec.range_response(self._header(result.revision, self._backend.term), result))
        else:
            call.fail(*errors.of_kv_error(result.error))

    def _read_only_txn(self, txn: Txn, call: Call) -> None:
        revision = self._kv.revision
        result = self._evaluate(txn, revision)
        call.reply(codec.txn_response(self._header(revision, self._backend.term), result))

    def _evaluate(self, txn: Txn, revision: int) -> TxnResult:
        """A read-only transaction on the present state. Raises `RpcError` for a range that cannot be read."""
        succeeded = all(self._holds(compare) for compare in txn.compare)
        result = TxnResult(revision, succeeded, [])
        for op in txn.success if succeeded else txn.failure:
            if isinstance(op, Txn):
                result.responses.append(self._evaluate(op, revision))
                continue
            assert isinstance(op, Range), f"{op} in a read-only transaction"
            if op.revision < 0 and op.revision < (self._kv.compact_revision or -1):
                # etcd takes a negative revision as "now" in a Range of its own, but compares it in a transaction.
                raise RpcError(*errors.COMPACTED)
            answer = self._kv.range(op)
            if isinstance(answer, Refused):
                raise RpcError(*errors.of_kv_error(answer.error))
            result.responses.append(answer)
        return result

    def _holds(self, compare: Compare) -> bool:
        found = self._kv.range(Range(compare.key, compare.range_end))
        assert isinstance(found, RangeResult), f"the present revision cannot be read: {found}"
        if not found.kvs:
            return compare.target != CompareTarget.VALUE and _compares(compare, _KeyValue())
        return all(_compares(compare, _KeyValue.FromString(kv)) for kv in found.kvs)

    # -- Cluster
    def _member_list(self, call: Call, message: bytes) -> None:
        request = _parse(_MemberListRequest, message)
        if request.linearizable:
            self._may_serve(call)
            self._read(call, self._answer_member_list)
        else:
            self._answer_member_list(call)

    def _answer_member_list(self, call: Call) -> None:
        response = _MemberListResponse()
        self._fill(response.header, self._kv.revision)
        response.header.ClearField("revision")  # as etcd, whose membership is not in the store
        for view in self._backend.members():
            member = response.members.add()
            member.ID = view.id
            member.name = view.name
            member.peerURLs.extend(view.peer_urls)
            member.clientURLs.extend(view.client_urls)
            member.isLearner = view.is_learner
        call.reply(response.SerializeToString())

    # -- Maintenance
    def _status(self, call: Call, message: bytes) -> None:
        _parse(_StatusRequest, message)
        view = self._backend.status()
        response = _StatusResponse()
        self._fill(response.header, self._kv.revision)
        response.version = ETCD_VERSION
        response.dbSize = view.db_size
        response.dbSizeInUse = view.db_size_in_use
        response.leader = view.leader
        response.raftIndex = view.raft_index
        response.raftTerm = view.raft_term
        response.raftAppliedIndex = view.raft_applied_index
        response.isLearner = view.is_learner
        if not view.leader:
            response.errors.append(errors.NO_LEADER[1])
        response.errors.extend(view.errors)
        call.reply(response.SerializeToString())

    def _alarm(self, call: Call, message: bytes) -> None:
        """This version raises no alarms; clients ask for the list to judge a member's health."""
        if _parse(_AlarmRequest, message).action != _ALARM_GET:
            _not_served(call, message)
        self._may_serve(call)
        self._read(call, self._answer_alarm)

    def _answer_alarm(self, call: Call) -> None:
        call.reply(self._header(self._kv.revision, self._backend.term))

    def _move_leader(self, call: Call, message: bytes) -> None:
        request = _parse(_MoveLeaderRequest, message)
        self._may_serve(call)
        if self._backend.status().leader != self._backend.member_id:
            raise RpcError(*errors.NOT_LEADER)
        try:
            self._backend.transfer_leadership(request.targetID, partial(self._move_leader_done, call))
        except RaftError as error:
            self._move_leader_done(call, error)

    def _move_leader_done(self, call: Call, error: RaftError | None) -> None:
        match error:
            case None:
                call.reply(self._header(self._kv.revision, self._backend.term))
            case NotLeader():
                call.fail(*errors.NOT_LEADER)
            case Rejected():
                call.fail(*errors.BAD_TRANSFEREE)
            case _:
                call.fail(*errors.of_raft_error(error))

    def _fill(self, header: Any, revision: int) -> None:
        header.cluster_id = self._backend.cluster_id
        header.member_id = self._backend.member_id
        header.revision = revision
        header.raft_term = self._backend.term

    # -- grpc.health.v1
    def _health_check(self, call: Call, message: bytes) -> None:
        if _parse(_HealthCheckRequest, message).service:
            raise RpcError(Code.NOT_FOUND, "unknown service")
        call.reply(_HealthCheckResponse(status=_SERVING).SerializeToString())

    async def _health_watch(self, call: StreamCall) -> None:
        message = await call.receive()
        if message is None:
            raise RpcError(Code.INTERNAL, "grpc: malformed request: the request has no message")
        status = _SERVICE_UNKNOWN if _parse(_HealthCheckRequest, message).service else _SERVING
        await call.send(_HealthCheckResponse(status=status).SerializeToString())
        await asyncio.get_running_loop().create_future()  # until the client leaves or the server stops


def _parse(message_class: Any, data: bytes) -> Any:
    try:
        return message_class.FromString(data)
    except DecodeError as error:
        raise RpcError(Code.INTERNAL, f"grpc: error unmarshalling request: {error}") from error


def _fail(call: Call, result: object) -> None:
    """End a call whose proposal did not give its own kind of result."""
    if isinstance(result, Refused):
        call.fail(*errors.of_kv_error(result.error))
    elif isinstance(result, RaftError):
        call.fail(*errors.of_raft_error(result))
    else:
        log.error(
            "unexpected result method=%s/%s type=%s", call.method.service, call.method.name, type(result).__name__
        )
        call.fail(Code.INTERNAL, f"internal error: unexpected {type(result).__name__}")


def _compares(compare: Compare, kv: Any) -> bool:
    match compare.target:
        case CompareTarget.VALUE:
            actual: Any = kv.value
        case CompareTarget.VERSION:
            actual = kv.version
        case CompareTarget.CREATE:
            actual = kv.create_revision
        case CompareTarget.MOD:
            actual = kv.mod_revision
        case _:
            actual = kv.lease
    operand: Any = compare.operand
    match compare.result:
        case CompareResult.EQUAL:
            return bool(actual == operand)
        case CompareResult.GREATER:
            return bool(actual > operand)
        case CompareResult.LESS:
            return bool(actual < operand)
        case _:
            return bool(actual != operand)


def _not_served(call: Call, message: bytes) -> None:
    raise RpcError(
        Code.UNIMPLEMENTED, f"{call.method.service}/{call.method.name} is not served by this version of Oarlock"
    )


async def _not_served_stream(call: StreamCall) -> None:
    _not_served(call, b"")
