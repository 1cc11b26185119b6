"""etcd's Lease service. Keep-alives are answered by the leader, wherever they arrive; those of one turn go to it
together. (docs/explanation/leases.md)"""

from __future__ import annotations

import asyncio
import secrets
from functools import partial
from heapq import merge
from itertools import islice
from typing import Any, Final

from oarlock.api import proto
from oarlock.api.etcd import errors
from oarlock.api.etcd.codec import varint
from oarlock.api.etcd.context import ServiceContext, fail
from oarlock.api.etcd.parsing import parse
from oarlock.api.etcd.reads import Job
from oarlock.api.etcd.tokens import Identity
from oarlock.api.etcd.watch import WatchPump
from oarlock.api.grpc import Call, Method, RpcError, StreamCall
from oarlock.errors import RaftError
from oarlock.machines.kv.commands import KvError, Refused
from oarlock.machines.kv.commands_lease import LeaseDone, LeaseGrant, LeaseGranted, LeaseRevoke
from oarlock.machines.kv.leases import LeaseBook
from oarlock.machines.kv.reading import STEP_UNITS

KEEP_ALIVES_AT_ONCE_MAX: Final = 1000
"""Keep-alives of one stream that are asked of the leader together; what else has come waits for their answer."""

ID_TRIES_MAX: Final = 5

_LeaseGrantRequest = proto.message("etcdserverpb.LeaseGrantRequest")
_LeaseGrantResponse = proto.message("etcdserverpb.LeaseGrantResponse")
_LeaseRevokeRequest = proto.message("etcdserverpb.LeaseRevokeRequest")
_LeaseKeepAliveRequest = proto.message("etcdserverpb.LeaseKeepAliveRequest")
_LeaseTimeToLiveRequest = proto.message("etcdserverpb.LeaseTimeToLiveRequest")
_LeaseTimeToLiveResponse = proto.message("etcdserverpb.LeaseTimeToLiveResponse")
_LeaseLeasesRequest = proto.message("etcdserverpb.LeaseLeasesRequest")


class LeaseService:
    """LeaseGrant, LeaseRevoke, LeaseKeepAlive, LeaseTimeToLive, LeaseLeases."""

    def __init__(self, context: ServiceContext, pump: WatchPump) -> None:
        self._context = context
        self._pump = pump
        self._backend = context.backend
        self._kv = context.kv
        self._header = context.header

    @property
    def _book(self) -> LeaseBook:
        return self._kv.leases

    def methods(self) -> list[Method]:
        service = "etcdserverpb.Lease"
        return [
            Method(service, "LeaseGrant", unary=self._grant),
            Method(service, "LeaseRevoke", unary=self._revoke),
            Method(service, "LeaseKeepAlive", stream=self._keep_alive),
            Method(service, "LeaseTimeToLive", unary=self._time_to_live),
            Method(service, "LeaseLeases", unary=self._leases),
        ]

    # -- grant and revoke
    def _grant(self, call: Call, message: bytes) -> None:
        request = parse(_LeaseGrantRequest, message)
        self._context.may_replicate(call, len(message))
        if self._context.guarded and not self._context.has_space(call, len(message)):
            return
        self._try_grant(call, request.ID, max(request.TTL, self._backend.lease_ttl_min), ID_TRIES_MAX)

    def _try_grant(self, call: Call, asked: int, ttl: int, tries: int) -> None:
        lease = asked or secrets.randbelow(2**63 - 1) + 1
        self._context.submit(call, LeaseGrant(lease, ttl), partial(self._granted, asked=asked, ttl=ttl, tries=tries))

    def _granted(self, call: Call, result: object, *, asked: int, ttl: int, tries: int) -> None:
        if isinstance(result, LeaseGranted):
            response = _LeaseGrantResponse(ID=result.id, TTL=result.ttl)
            self._context.fill(response.header, result.revision)
            call.reply(response.SerializeToString())
        elif isinstance(result, Refused) and result.error == KvError.LEASE_EXISTS and not asked and tries > 1:
            self._try_grant(call, asked, ttl, tries - 1)  # the id that we drew is taken
        else:
            fail(call, result)

    def _revoke(self, call: Call, message: bytes) -> None:
        request = parse(_LeaseRevokeRequest, message)
        self._context.may_replicate(call, len(message))
        self._context.submit(call, LeaseRevoke(request.ID), self._revoked)

    def _revoked(self, call: Call, result: object) -> None:
        if isinstance(result, LeaseDone):
            call.reply(self._header(result.revision, self._backend.term))
        else:
            fail(call, result)

    # -- keep-alive
    async def _keep_alive(self, call: StreamCall) -> None:
        self._context.may_serve(call)
        self._pump.watch_leader(call)
        try:
            await self._keep_all_alive(call)
        finally:
            self._pump.forget_leader(call)

    async def _keep_all_alive(self, call: StreamCall) -> None:
        while (message := await call.receive()) is not None:
            ids = [_lease_of(message)]
            while len(ids) < KEEP_ALIVES_AT_ONCE_MAX and (more := call.receive_nowait()) is not None:
                ids.append(_lease_of(more))
            if self._context.access.auth.enabled:
                await self._must_be_allowed(call, ids)
            # As etcd: the revision of before the renewal.
            head = self._header(self._kv.revision, self._backend.term)
            for lease, ttl in zip(ids, await self._renew(ids), strict=True):
                answer = head + b"\x10" + varint(lease) if lease else head
                await call.send(answer + b"\x18" + varint(ttl) if ttl else answer)

    async def _must_be_allowed(self, call: StreamCall, ids: list[int]) -> None:
        """Raises `RpcError` unless the caller may write all keys that these leases hold."""
        access = self._context.access

        def question(identity: Identity | None) -> RpcError | None:
            answers = (access.may_use_lease(identity, lease) for lease in ids)
            return next((refused for refused in answers if refused is not None), None)

        refused = await access.ask(call, question)
        if refused is not None:
            raise refused

    async def _renew(self, ids: list[int]) -> list[int]:
        """The TTL of each lease, 0 for one that is unknown or over. Raises `RpcError`."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            self._backend.ask_leases(ids, (), lambda result: None if future.done() else future.set_result(result))
        except RaftError as error:
            raise RpcError(*errors.of_raft_error(error)) from error
        result = await future
        if isinstance(result, RaftError):
            raise RpcError(*errors.of_raft_error(result))
        renewed: list[int] = result[0]
        return renewed

    # -- reading
    def _time_to_live(self, call: Call, message: bytes) -> None:
        request = parse(_LeaseTimeToLiveRequest, message)
        self._context.may_serve(call)
        self._context.read(call, partial(self._ask_time_to_live, request.ID, request.keys))

    def _ask_time_to_live(self, lease: int, keys: bool, call: Call) -> None:
        """This member knows the lease as it is now; only the leader knows how long it has."""
        if lease not in self._book:
            self._answer_time_to_live(call, lease, keys, -1)
            return
        done = partial(self._time_to_live_known, call, lease, keys)
        try:
            self._backend.ask_leases((), (lease,), done)
        except RaftError as error:
            call.fail(*errors.of_raft_error(error))

    def _time_to_live_known(self, call: Call, lease: int, keys: bool, result: Any) -> None:
        if isinstance(result, RaftError):
            call.fail(*errors.of_raft_error(result))
        else:
            self._answer_time_to_live(call, lease, keys, result[1][0])

    def _answer_time_to_live(self, call: Call, lease: int, keys: bool, remaining: int) -> None:
        response = _LeaseTimeToLiveResponse(ID=lease, TTL=-1)
        self._context.fill(response.header, self._kv.revision)
        found = self._book.get(lease)
        if found is not None and remaining >= 0:
            response.TTL = remaining
            response.grantedTTL = found[0]
            if keys:
                # Asked again, for keys may have been attached while the leader was asked. (CVE-2023-32082)
                access = self._context.access
                if access.auth.enabled:
                    identity = None if call.identity is None else Identity(*call.identity)
                    refused = access.may_use_lease(identity, lease, write=False)
                    if refused is not None:
                        call.fail(refused.code, refused.text)
                        return
                response.keys.extend(self._book.keys(lease))
        call.reply(response.SerializeToString())

    def _leases(self, call: Call, message: bytes) -> None:
        parse(_LeaseLeasesRequest, message)
        self._context.may_serve(call)
        self._context.read(call, self._answer_leases)

    def _answer_leases(self, call: Call) -> None:
        self._context.reads.run(call, self._leases_job(call))

    def _leases_job(self, call: Call) -> Job:
        """All leases there are now, the one with the lowest ceiling first: sorted in pieces, which are then merged."""
        book = self._book
        parts = [self._header(self._kv.revision, self._backend.term)]
        pieces: list[list[tuple[int, int]]] = []
        ids = book.unordered()
        for first in range(0, len(ids), STEP_UNITS):
            piece = ids[first : first + STEP_UNITS]
            pieces.append(sorted((found[1], lease) for lease in piece if (found := book.get(lease)) is not None))
            if len(ids) > STEP_UNITS:
                yield len(piece), 0
        ordered = merge(*pieces)
        while piece_of_answer := [_listed(lease) for _, lease in islice(ordered, STEP_UNITS)]:
            parts += piece_of_answer
            if len(ids) > STEP_UNITS:
                yield len(piece_of_answer), 0
        call.reply(b"".join(parts))
        return 1 + min(len(ids), STEP_UNITS)


def _lease_of(message: bytes) -> int:
    lease: int = parse(_LeaseKeepAliveRequest, message).ID
    return lease


def _listed(lease: int) -> bytes:
    """One of the leases in a LeaseLeasesResponse."""
    body = b"\x08" + varint(lease)
    return b"\x12" + varint(len(body)) + body
