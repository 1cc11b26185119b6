"""etcd's Maintenance service. (docs/explanation/alarms.md)"""

from __future__ import annotations

import asyncio
import logging
import re
from functools import partial
from typing import Any, Final

from oarlock.api import proto
from oarlock.api.etcd import errors
from oarlock.api.etcd.context import CLUSTER_VERSION, ETCD_VERSION, ServiceContext, fail
from oarlock.api.etcd.parsing import parse
from oarlock.api.etcd.reads import Job, finish
from oarlock.api.etcd.saved import HASH_BYTES, SavedBackup
from oarlock.api.grpc import Call, Code, Method, RpcError, StreamCall
from oarlock.errors import NotLeader, RaftError, Rejected, StorageError
from oarlock.machines.kv.commands import Refused
from oarlock.machines.kv.commands_alarm import AlarmActivate, AlarmDeactivate, AlarmResult, AlarmType
from oarlock.machines.kv.hashing import crc32c

log = logging.getLogger(__name__)

BLOB_BYTES: Final = 32 * 1024
READ_BYTES: Final = 1 << 20
SNAPSHOTS_AT_ONCE_MAX: Final = 2
HASHES_AT_ONCE_MAX: Final = 2

_StatusRequest = proto.message("etcdserverpb.StatusRequest")
_StatusResponse = proto.message("etcdserverpb.StatusResponse")
_MoveLeaderRequest = proto.message("etcdserverpb.MoveLeaderRequest")
_AlarmRequest = proto.message("etcdserverpb.AlarmRequest")
_AlarmResponse = proto.message("etcdserverpb.AlarmResponse")
_DefragmentRequest = proto.message("etcdserverpb.DefragmentRequest")
_HashRequest = proto.message("etcdserverpb.HashRequest")
_HashResponse = proto.message("etcdserverpb.HashResponse")
_HashKVRequest = proto.message("etcdserverpb.HashKVRequest")
_HashKVResponse = proto.message("etcdserverpb.HashKVResponse")
_SnapshotRequest = proto.message("etcdserverpb.SnapshotRequest")
_SnapshotResponse = proto.message("etcdserverpb.SnapshotResponse")
_DowngradeRequest = proto.message("etcdserverpb.DowngradeRequest")
_GET, _ACTIVATE, _DEACTIVATE = range(3)
_VALIDATE, _ENABLE, _CANCEL = range(3)


class MaintenanceService:
    """Status, Alarm, Defragment, Hash, HashKV, Snapshot, MoveLeader, Downgrade."""

    def __init__(self, context: ServiceContext) -> None:
        self._context = context
        self._backend = context.backend
        self._kv = context.kv
        self._snapshots = 0
        self._hashes = 0

    def methods(self) -> list[Method]:
        service = "etcdserverpb.Maintenance"
        return [
            Method(service, "Status", unary=self._status),
            Method(service, "Alarm", unary=self._alarm),
            Method(service, "Defragment", unary=self._defragment),
            Method(service, "Hash", unary=self._hash),
            Method(service, "HashKV", unary=self._hash_kv),
            Method(service, "Snapshot", stream=self._snapshot),
            Method(service, "MoveLeader", unary=self._move_leader),
            Method(service, "Downgrade", unary=self._downgrade),
        ]

    def _status(self, call: Call, message: bytes) -> None:
        parse(_StatusRequest, message)
        view = self._backend.status()
        response = _StatusResponse()
        self._context.fill(response.header, self._kv.revision)
        response.version = ETCD_VERSION
        response.dbSize = view.db_size
        response.dbSizeInUse = view.db_size_in_use
        response.dbSizeQuota = self._context.limits.quota_bytes
        response.leader = view.leader
        response.raftIndex = view.raft_index
        response.raftTerm = view.raft_term
        response.raftAppliedIndex = view.raft_applied_index
        response.isLearner = view.is_learner
        told = [] if view.leader else [errors.NO_LEADER[1]]
        told += [_alarm_text(member, alarm) for member, alarm in self._kv.alarms.active()]
        told += [text for text in view.errors if text not in told]
        response.errors.extend(told)
        call.reply(response.SerializeToString())

    # -- alarms
    def _alarm(self, call: Call, message: bytes) -> None:
        request = parse(_AlarmRequest, message)
        self._context.may_answer(call)
        if request.action == _GET:
            self._context.read(call, partial(self._show_alarms, request.alarm))
        elif request.action not in (_ACTIVATE, _DEACTIVATE) or request.alarm not in tuple(AlarmType):
            raise RpcError(Code.INVALID_ARGUMENT, "etcdserver: unknown alarm or action")  # etcd 3.5.1 stops there
        elif request.alarm == AlarmType.NONE:
            self._context.read(call, partial(self._answer_alarm, alarms=[]))
        else:
            kind = AlarmActivate if request.action == _ACTIVATE else AlarmDeactivate
            command = kind(request.memberID, request.alarm)
            self._context.submit(call, command, partial(self._alarm_done, command=command))

    def _alarm_done(self, call: Call, result: object, *, command: AlarmActivate | AlarmDeactivate) -> None:
        if isinstance(result, AlarmResult):
            self._context.refresh()
            shown = result.changed or isinstance(command, AlarmActivate)
            self._answer_alarm(call, [(command.member, command.alarm)] if shown else [])
        else:
            fail(call, result)

    def _show_alarms(self, alarm: int, call: Call) -> None:
        self._answer_alarm(call, self._kv.alarms.active(alarm))

    def _answer_alarm(self, call: Call, alarms: list[tuple[int, int]]) -> None:
        response = _AlarmResponse()
        self._context.fill(response.header, self._kv.revision)
        for member, alarm in alarms:
            response.alarms.add(memberID=member, alarm=alarm)
        call.reply(response.SerializeToString())

    # -- the store
    def _defragment(self, call: Call, message: bytes) -> None:
        """There is nothing to do: free pages are used again, and no file grows from being fragmented."""
        parse(_DefragmentRequest, message)
        call.reply(b"")  # etcd's answer has no header either

    def _hash(self, call: Call, message: bytes) -> None:
        """Of everything that was applied: two members at one revision that give the same number have the same state."""
        parse(_HashRequest, message)
        response = _HashResponse(hash=crc32c(self._kv.hash()))
        self._context.fill(response.header, self._kv.revision)
        call.reply(response.SerializeToString())

    def _hash_kv(self, call: Call, message: bytes) -> None:
        request = parse(_HashKVRequest, message)
        if self._hashes >= HASHES_AT_ONCE_MAX:
            raise RpcError(*errors.TOO_MANY_REQUESTS)
        self._hashes += 1
        self._context.reads.run(call, self._hash_kv_job(call, request.revision))

    def _hash_kv_job(self, call: Call, revision: int) -> Job:
        """Gather in turns with other reads, then compute beside the loop."""
        computed = None
        try:
            source, spent = yield from finish(lambda: self._kv.read_hash(revision))
            if isinstance(source, Refused):
                raise RpcError(*errors.of_kv_error(source.error))
            response = _HashKVResponse(compact_revision=source.compact_revision, hash_revision=source.revision)
            self._context.fill(response.header, self._kv.revision)
            computed = asyncio.get_running_loop().run_in_executor(None, source.digest)
            computed.add_done_callback(partial(self._hash_kv_done, call, response))
            return spent
        finally:
            if computed is None:  # refused, or the client has gone
                self._hashes -= 1

    def _hash_kv_done(self, call: Call, response: Any, computed: asyncio.Future[int]) -> None:
        self._hashes -= 1
        if computed.cancelled() or computed.exception() is not None:
            log.error("hash failed", exc_info=None if computed.cancelled() else computed.exception())
            call.fail(Code.INTERNAL, "internal error: the hash failed")
            return
        response.hash = computed.result()
        call.reply(response.SerializeToString())

    async def _snapshot(self, call: StreamCall) -> None:
        message = await call.receive()
        if message is None:
            raise RpcError(Code.INTERNAL, "grpc: malformed request: the request has no message")
        parse(_SnapshotRequest, message)
        if self._context.quarantined:
            raise RpcError(*errors.CORRUPT)
        if self._snapshots >= SNAPSHOTS_AT_ONCE_MAX:
            raise RpcError(*errors.TOO_MANY_REQUESTS)
        self._snapshots += 1
        try:
            await self._send_snapshot(call)
        finally:
            self._snapshots -= 1

    async def _send_snapshot(self, call: StreamCall) -> None:
        loop = asyncio.get_running_loop()
        captured: asyncio.Future[Any] = loop.create_future()
        self._backend.capture(lambda result: _settle(captured, result))
        result = await captured
        if isinstance(result, RaftError):
            raise RpcError(*errors.of_raft_error(result))
        capture, term = result
        backend = self._backend
        try:
            saved = await loop.run_in_executor(
                None, SavedBackup.write, capture, backend.cluster_id, backend.member_id, term, ETCD_VERSION
            )
        except (OSError, StorageError) as error:
            log.warning('snapshot not sent error="%s"', error)
            raise RpcError(Code.INTERNAL, f"etcdserver: the snapshot could not be made: {error}") from error
        try:
            remaining = saved.size
            while remaining > HASH_BYTES:
                data = await loop.run_in_executor(None, saved.read, min(READ_BYTES, remaining - HASH_BYTES))
                for at in range(0, len(data), BLOB_BYTES):
                    blob = data[at : at + BLOB_BYTES]
                    remaining -= len(blob)
                    response = _SnapshotResponse(
                        remaining_bytes=remaining - HASH_BYTES, blob=blob, version=CLUSTER_VERSION
                    )
                    await call.send(response.SerializeToString())
            await call.send(_SnapshotResponse(blob=saved.read(HASH_BYTES), version=CLUSTER_VERSION).SerializeToString())
        finally:
            saved.close()

    # -- leadership and versions
    def _move_leader(self, call: Call, message: bytes) -> None:
        request = parse(_MoveLeaderRequest, message)
        self._context.may_answer(call)
        if self._backend.status().leader != self._backend.member_id:
            raise RpcError(*errors.NOT_LEADER)
        # After a read barrier, which also asks again whether the caller may: a leader that was just elected does not
        # know at first what the one before has told people, and one that is deposed never will.
        self._context.read(call, partial(self._hand_over, request.targetID))

    def _hand_over(self, target: int, call: Call) -> None:
        try:
            self._backend.transfer_leadership(target, partial(self._move_leader_done, call))
        except RaftError as error:
            self._move_leader_done(call, error)

    def _move_leader_done(self, call: Call, error: RaftError | None) -> None:
        match error:
            case None:
                self._context.reply_header(call)
            case NotLeader():
                call.fail(*errors.NOT_LEADER)
            case Rejected():
                call.fail(*errors.BAD_TRANSFEREE)
            case _:
                call.fail(*errors.of_raft_error(error))

    def _downgrade(self, call: Call, message: bytes) -> None:
        """Nothing older can read this state: no target is valid, and no downgrade is ever under way."""
        request = parse(_DowngradeRequest, message)
        self._context.may_answer(call)
        if request.action == _CANCEL:
            raise RpcError(*errors.NO_DOWNGRADE)
        if request.action not in (_VALIDATE, _ENABLE):
            raise RpcError(Code.INVALID_ARGUMENT, "etcdserver: unknown method")
        if re.fullmatch(r"\d+\.\d+(\.\d+)?([-+].*)?", request.version) is None:
            raise RpcError(*errors.DOWNGRADE_VERSION_FORMAT)
        raise RpcError(*errors.DOWNGRADE_VERSION_INVALID)


def _alarm_text(member: int, alarm: int) -> str:
    """As etcd writes it, to the space at the end."""
    return f"memberID:{member} alarm:{AlarmType(alarm).name} "


def _settle(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():
        future.set_result(result)
    elif not isinstance(result, RaftError):
        result[0].close()  # a capture that nobody waits for any more
