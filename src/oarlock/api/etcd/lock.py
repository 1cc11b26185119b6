"""etcd's v3lock service: a lock is the key of whoever came first. (docs/explanation/watches.md)

The key that Lock returns exists as long as its lease and nobody unlocks it; its create revision is the fencing token:
a resource that remembers the highest one it has seen refuses a holder whose time is over.
"""

from __future__ import annotations

import asyncio

from oarlock.api import proto
from oarlock.api.etcd import errors
from oarlock.api.etcd.codec import varint
from oarlock.api.etcd.context import ServiceContext, fail
from oarlock.api.etcd.parsing import parse
from oarlock.api.etcd.turns import Expired, Turns, key_in, unknown
from oarlock.api.grpc import Call, Code, Method, RpcError
from oarlock.machines.kv.commands import DeleteRange, DeleteResult

_LockRequest = proto.message("v3lockpb.LockRequest")
_UnlockRequest = proto.message("v3lockpb.UnlockRequest")

EXPIRED = (Code.UNKNOWN, "mutex: session is expired")


class LockService:
    """Lock, Unlock."""

    def __init__(self, context: ServiceContext, turns: Turns) -> None:
        self._context = context
        self._turns = turns

    def methods(self) -> list[Method]:
        service = "v3lockpb.Lock"
        return [Method(service, "Lock", unary=self._lock), Method(service, "Unlock", unary=self._unlock)]

    def _lock(self, call: Call, message: bytes) -> None:
        request = parse(_LockRequest, message)
        self._context.may_replicate(call, len(message))
        self._turns.run(call, lambda: self._locked(call, request.name, request.lease))

    async def _locked(self, call: Call, name: bytes, asked: int) -> bytes:
        turns, kv = self._turns, self._context.kv
        lease = await turns.lease(call, asked)
        prefix = name + b"/"
        key = key_in(prefix, lease)
        _, create_revision, revision = await turns.enter(call, key, b"", lease)
        try:
            if await turns.wait_turn(call, prefix, key, create_revision):
                await turns.caught_up()  # as etcd: that our key is still there is asked of the whole group
                await turns.wait_turn(call, prefix, key, create_revision)
                revision = kv.revision
        except Expired:
            raise RpcError(*EXPIRED) from None
        except (asyncio.CancelledError, RpcError):
            turns.leave(call, key, create_revision)
            raise
        return self._context.header(revision, self._context.backend.term) + b"\x12" + varint(len(key)) + key

    def _unlock(self, call: Call, message: bytes) -> None:
        request = parse(_UnlockRequest, message)
        self._context.may_replicate(call, len(message))
        if not request.key:
            raise RpcError(*unknown(errors.EMPTY_KEY))
        self._context.submit(call, DeleteRange(request.key), self._unlocked)

    def _unlocked(self, call: Call, result: object) -> None:
        if isinstance(result, DeleteResult):
            call.reply(self._context.header(result.revision, self._context.backend.term))
        else:
            fail(call, result)
