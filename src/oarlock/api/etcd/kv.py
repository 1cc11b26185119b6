"""etcd's KV service."""

from __future__ import annotations

from functools import partial

from oarlock.api import proto
from oarlock.api.etcd import codec, errors, requests
from oarlock.api.etcd.context import ServiceContext, fail
from oarlock.api.etcd.parsing import parse
from oarlock.api.etcd.reads import Job, encode, read
from oarlock.api.grpc import Call, Method, RpcError
from oarlock.errors import RaftError
from oarlock.machines.kv.alarms import puts
from oarlock.machines.kv.commands import (
    Compact,
    CompactResult,
    DeleteResult,
    Put,
    PutResult,
    Range,
    Refused,
    Txn,
    TxnResult,
)

_RangeRequest = proto.message("etcdserverpb.RangeRequest")
_PutRequest = proto.message("etcdserverpb.PutRequest")
_DeleteRangeRequest = proto.message("etcdserverpb.DeleteRangeRequest")
_TxnRequest = proto.message("etcdserverpb.TxnRequest")
_CompactionRequest = proto.message("etcdserverpb.CompactionRequest")


class KvService:
    """Range, Put, DeleteRange, Txn, Compact."""

    def __init__(self, context: ServiceContext) -> None:
        self._context = context
        self._backend = context.backend
        self._kv = context.kv
        self._header = context.header
        self._propose = context.propose
        self._encode = context.encode
        self._auth = context.access.auth
        self._message_bytes_max = context.message_bytes_max

    def methods(self) -> list[Method]:
        service = "etcdserverpb.KV"
        return [
            Method(service, "Range", unary=self._range),
            Method(service, "Put", unary=self._put),
            Method(service, "DeleteRange", unary=self._delete_range),
            Method(service, "Txn", unary=self._txn),
            Method(service, "Compact", unary=self._compact),
        ]

    # -- writes
    def _put(self, call: Call, message: bytes) -> None:
        simple = codec.decode_put(message)
        if simple is not None and simple[0]:
            put = Put(*simple)
        else:
            put = requests.put_command(parse(_PutRequest, message))
        if len(message) > self._message_bytes_max or self._context.restricted or call.route.need_leader:
            self._context.may_replicate(call, len(message))
        if self._context.guarded and not self._context.has_space(call, len(message)):
            return
        if self._auth.enabled:
            self._context.submit(call, put, self._put_done)
            return
        try:
            self._propose(self._encode(put), partial(self._put_done, call))
        except RaftError as error:
            call.fail(*errors.of_raft_error(error))

    def _put_done(self, call: Call, result: object) -> None:
        if type(result) is PutResult:
            call.reply(codec.put_response(self._header(result.revision, self._backend.term), result))
        else:
            fail(call, result)

    def _delete_range(self, call: Call, message: bytes) -> None:
        command = requests.delete_command(parse(_DeleteRangeRequest, message))
        self._context.may_replicate(call, len(message))
        self._context.submit(call, command, self._delete_done)

    def _delete_done(self, call: Call, result: object) -> None:
        if isinstance(result, DeleteResult):
            call.reply(codec.delete_response(self._header(result.revision, self._backend.term), result))
        else:
            fail(call, result)

    def _txn(self, call: Call, message: bytes) -> None:
        request = parse(_TxnRequest, message)
        limits = self._context.limits
        txn = requests.txn_command(request, limits.txn_ops_max, limits.txn_depth_max)
        if requests.is_read_only(txn):
            if requests.is_serializable(request):
                if self._context.quarantined:
                    raise RpcError(*errors.CORRUPT)
                self._read_only_txn(txn, call)
            else:
                self._context.may_serve(call)
                self._context.read(call, partial(self._read_only_txn, txn))
            return
        self._context.may_replicate(call, len(message))
        if self._context.guarded and puts(txn) and not self._context.has_space(call, len(message)):
            return
        self._context.submit(call, txn, self._txn_done)

    def _txn_done(self, call: Call, result: object) -> None:
        if isinstance(result, TxnResult):
            call.reply(codec.txn_response(self._header(result.revision, self._backend.term), result))
        else:
            fail(call, result)

    def _compact(self, call: Call, message: bytes) -> None:
        request = parse(_CompactionRequest, message)
        self._context.may_replicate(call, len(message))
        self._context.submit(call, Compact(request.revision), self._compact_done)

    def _compact_done(self, call: Call, result: object) -> None:
        if isinstance(result, CompactResult):
            call.reply(self._header(self._kv.revision, self._backend.term))
        else:
            fail(call, result)

    # -- reads
    def _range(self, call: Call, message: bytes) -> None:
        key = codec.decode_get(message)
        if key is not None:
            if self._context.restricted or call.route.need_leader:
                self._context.may_serve(call)
            self._context.read(call, partial(self._get, key))
            return
        request = parse(_RangeRequest, message)
        command = requests.range_command(request)
        if request.serializable:
            if self._context.quarantined:
                raise RpcError(*errors.CORRUPT)
            self._answer_range(command, call)
        else:
            self._context.may_serve(call)
            self._context.read(call, partial(self._answer_range, command))

    def _get(self, key: bytes, call: Call) -> None:
        kv = self._kv
        call.reply(codec.get_response(self._header(kv.revision, self._backend.term), kv.range_one(key)))

    def _answer_range(self, command: Range, call: Call) -> None:
        self._context.reads.run(call, self._job(command, call))

    def _read_only_txn(self, txn: Txn, call: Call) -> None:
        self._context.reads.run(call, self._job(txn, call))

    def _job(self, request: Range | Txn, call: Call) -> Job:
        result, spent = yield from read(self._kv, request)
        if isinstance(result, Refused):
            call.fail(*errors.of_kv_error(result.error))
            return spent
        data = yield from encode(self._header(result.revision, self._backend.term), result)
        if self._context.quarantined:  # since the read began
            raise RpcError(*errors.CORRUPT)
        call.reply(data)
        return spent
