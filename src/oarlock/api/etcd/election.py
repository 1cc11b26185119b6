"""etcd's v3election service: who has the oldest key under a name leads, and its value is what it proclaims.
(docs/explanation/watches.md)"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from oarlock.api import proto
from oarlock.api.etcd import errors
from oarlock.api.etcd.codec import varint
from oarlock.api.etcd.context import ServiceContext, fail
from oarlock.api.etcd.parsing import parse
from oarlock.api.etcd.reads import Job, read
from oarlock.api.etcd.tokens import Identity
from oarlock.api.etcd.turns import Expired, HubReader, Turns, created_at, key_in, oldest_of, prefix_end, unknown
from oarlock.api.grpc import Call, Code, Method, RpcError, StreamCall
from oarlock.machines.kv.commands import DeleteRange, Put, RangeResult, Txn, TxnResult
from oarlock.machines.kv.encoding import key_of, mod_revision_of
from oarlock.machines.kv.events import NO_DELETE
from oarlock.machines.kv.watch import Kind

_CampaignRequest = proto.message("v3electionpb.CampaignRequest")
_CampaignResponse = proto.message("v3electionpb.CampaignResponse")
_ProclaimRequest = proto.message("v3electionpb.ProclaimRequest")
_LeaderRequest = proto.message("v3electionpb.LeaderRequest")
_ResignRequest = proto.message("v3electionpb.ResignRequest")

NOT_LEADER = (Code.UNKNOWN, "election: not leader")
NO_LEADER = (Code.UNKNOWN, "election: no leader")
NO_LEADER_KEY = (Code.UNKNOWN, '"leader" field must be provided')


class ElectionService:
    """Campaign, Proclaim, Leader, Observe, Resign."""

    def __init__(self, context: ServiceContext, turns: Turns) -> None:
        self._context = context
        self._turns = turns

    def methods(self) -> list[Method]:
        service = "v3electionpb.Election"
        return [
            Method(service, "Campaign", unary=self._campaign),
            Method(service, "Proclaim", unary=self._proclaim),
            Method(service, "Leader", unary=self._leader),
            Method(service, "Observe", stream=self._observe),
            Method(service, "Resign", unary=self._resign),
        ]

    # -- leading
    def _campaign(self, call: Call, message: bytes) -> None:
        request = parse(_CampaignRequest, message)
        self._context.may_replicate(call, len(message))
        self._turns.run(call, lambda: self._won(call, request))

    async def _won(self, call: Call, request: Any) -> bytes:
        turns = self._turns
        lease = await turns.lease(call, request.lease)
        prefix = request.name + b"/"
        key = key_in(prefix, lease)
        present, create_revision, revision = await turns.enter(call, key, request.value, lease)
        try:
            if present is not None and present.value != request.value:
                await self._put(call, key, create_revision, request.value, lease)
            await turns.wait_turn(call, prefix, key, create_revision)
        except Expired:
            # Differs from etcd, which says here that we won with a key that is gone.
            raise RpcError(*NOT_LEADER) from None
        except (asyncio.CancelledError, RpcError):
            turns.leave(call, key, create_revision)
            raise
        response = _CampaignResponse()
        self._context.fill(response.header, revision)
        response.leader.name = request.name
        response.leader.key = key
        response.leader.rev = create_revision
        response.leader.lease = lease
        encoded: bytes = response.SerializeToString()
        return encoded

    async def _put(self, call: Call, key: bytes, create_revision: int, value: bytes, lease: int) -> int:
        """Proclaim `value`; the revision. Raises `RpcError` if the key is not ours any more."""
        txn = Txn([created_at(key, create_revision)], [Put(key, value, lease)], [])
        result = await self._turns.propose(call, txn)
        assert isinstance(result, TxnResult), result
        if not result.succeeded:
            raise RpcError(*NOT_LEADER)
        return result.revision

    def _proclaim(self, call: Call, message: bytes) -> None:
        request = parse(_ProclaimRequest, message)
        self._context.may_replicate(call, len(message))
        if not request.HasField("leader"):
            raise RpcError(*NO_LEADER_KEY)
        self._turns.run(call, lambda: self._proclaimed(call, request))

    async def _proclaimed(self, call: Call, request: Any) -> bytes:
        leader = request.leader
        if not leader.key:
            raise RpcError(*unknown(errors.EMPTY_KEY))
        lease = await self._turns.lease(call, leader.lease)
        revision = await self._put(call, leader.key, leader.rev, request.value, lease)
        return self._context.header(revision, self._context.backend.term)

    def _resign(self, call: Call, message: bytes) -> None:
        request = parse(_ResignRequest, message)
        self._context.may_replicate(call, len(message))
        if not request.HasField("leader"):
            raise RpcError(*NO_LEADER_KEY)
        leader = request.leader
        if not leader.key:
            raise RpcError(*unknown(errors.EMPTY_KEY))
        txn = Txn([created_at(leader.key, leader.rev)], [DeleteRange(leader.key)], [])
        self._context.submit(call, txn, self._resigned)

    def _resigned(self, call: Call, result: object) -> None:
        """As etcd, also for one who led no longer."""
        if isinstance(result, TxnResult):
            call.reply(self._context.header(result.revision, self._context.backend.term))
        else:
            fail(call, result)

    # -- looking on
    def _leader(self, call: Call, message: bytes) -> None:
        request = parse(_LeaderRequest, message)
        self._context.may_serve(call)
        self._context.read(call, partial(self._answer_leader, request.name + b"/"))

    def _answer_leader(self, prefix: bytes, call: Call) -> None:
        self._context.reads.run(call, self._leader_job(prefix, call))

    def _leader_job(self, prefix: bytes, call: Call) -> Job:
        found, spent = yield from read(self._context.kv, oldest_of(prefix))
        assert isinstance(found, RangeResult), f"the present revision cannot be read: {found}"
        if not found.kvs:
            raise RpcError(*NO_LEADER)
        call.reply(self._response(found.revision, found.kvs[0]))
        return spent

    def _response(self, revision: int, record: bytes) -> bytes:
        return self._context.header(revision, self._context.backend.term) + b"\x12" + varint(len(record)) + record

    async def _observe(self, call: StreamCall) -> None:
        self._context.may_serve(call)
        message = await call.receive()
        if message is None:
            raise RpcError(Code.INTERNAL, "grpc: malformed request: the request has no message")
        prefix = parse(_LeaderRequest, message).name + b"/"
        end = prefix_end(prefix)

        def question(identity: Identity | None) -> RpcError | None:
            return self._context.access.may_read(identity, prefix, end)

        refused = await self._context.access.ask(call, question)
        if refused is not None:
            raise refused
        self._turns.pump.watch_leader(call)
        try:
            await self._turns.caught_up()
            while True:
                await self._follow(call, prefix, end)
        finally:
            self._turns.pump.forget_leader(call)

    async def _tell(self, call: StreamCall, prefix: bytes, end: bytes, response: bytes) -> None:
        """Send, if the caller may still see it, and this member still knows it."""
        if self._context.quarantined:
            raise RpcError(*errors.CORRUPT)
        refused = self._context.access.may_go_on(call, prefix, end)
        if refused is not None:
            raise refused
        await call.send(response)

    async def _follow(self, call: StreamCall, prefix: bytes, end: bytes) -> None:
        """Send what the present leader, or else the next one, proclaims, until its key is gone."""
        record, revision = await self._turns.oldest(call, prefix)
        reader = HubReader(self._turns.pump)
        try:
            if record is None:
                reader.stream.watch(0, prefix, end, revision + 1, filters=NO_DELETE)
                while record is None:
                    for delivery in await reader.read():
                        if delivery.kind == Kind.COMPACTED:
                            return
                        if record is None and delivery.batch is not None:
                            record = delivery.batch.events[0].record
                revision = mod_revision_of(record)
                reader.stream.cancel(0)
            await self._tell(call, prefix, end, self._response(revision, record))
            reader.stream.watch(1, key_of(record), None, revision + 1)
            while True:
                for delivery in await reader.read():
                    if delivery.watch_id != 1:
                        continue
                    if delivery.kind == Kind.COMPACTED:
                        return  # we were too slow: go on with whoever leads now
                    if delivery.batch is None:
                        continue
                    for event in delivery.batch.events:
                        if event.record is None:
                            return
                        await self._tell(call, prefix, end, self._response(delivery.revision, event.record))
        finally:
            reader.close()
