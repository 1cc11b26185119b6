"""What Lock and Election share: keys under a prefix that queue up by their create revision.

A caller puts a key named after its lease, and has its turn when no key of the prefix is older. Waiting asks nobody and
polls nothing: the hub of watches says when the key just before ours, or our own, is gone. etcd's client library does
the same in several requests (client/v3/concurrency); here it is one transaction and this member's own state, which
cannot show an older key gone before it is.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from typing import Any, Final

from oarlock.api.etcd import errors
from oarlock.api.etcd.context import ServiceContext
from oarlock.api.etcd.reads import Job, read
from oarlock.api.etcd.watch import WatchPump
from oarlock.api.grpc import Call, Code, RpcError
from oarlock.errors import RaftError
from oarlock.machines.kv.commands import (
    Command,
    Compare,
    CompareResult,
    CompareTarget,
    DeleteRange,
    KvError,
    Put,
    Range,
    RangeResult,
    Refused,
    SortOrder,
    SortTarget,
    Txn,
    TxnResult,
)
from oarlock.machines.kv.commands_lease import LeaseGrant, LeaseGranted
from oarlock.machines.kv.encoding import KeyValue, decode_key_value
from oarlock.machines.kv.events import NO_PUT
from oarlock.machines.kv.watch import Delivery

log = logging.getLogger(__name__)

SESSION_TTL_S: Final = 60
"""The lease that is granted to a caller who names none. Nobody renews it, as with etcd."""

GRANT_TRIES_MAX: Final = 5
_READ_BYTES: Final = 1 << 20


class Expired(Exception):
    """Our own key is gone, most likely with its lease."""


class HubReader:
    """A reader of the hub for coroutines of this process."""

    def __init__(self, pump: WatchPump) -> None:
        self._waiter: asyncio.Future[None] | None = None
        self.stream = pump.open(self._wake)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def read(self) -> list[Delivery]:
        """What there is, as soon as there is anything."""
        while not self.stream.waiting:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self.stream.take(_READ_BYTES)

    def close(self) -> None:
        self.stream.close()


class Turns:
    """The queues. One for each port."""

    def __init__(self, context: ServiceContext, pump: WatchPump) -> None:
        self.context = context
        self.pump = pump
        self._tasks: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        """The port is closed."""
        for task in list(self._tasks):
            task.cancel()

    def run(self, call: Call, work: Callable[[], Awaitable[bytes]]) -> None:
        """Answer a unary call with what `work` returns; it is cancelled when the caller has gone."""
        if len(self._tasks) >= self.context.limits.waiters_max:
            raise RpcError(*errors.TOO_MANY_REQUESTS)
        task = asyncio.get_running_loop().create_task(self._run(call, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

        def give_up() -> None:
            task.cancel()

        call.on_gone = give_up

    async def _run(self, call: Call, work: Callable[[], Awaitable[bytes]]) -> None:
        try:
            answer = await work()
            if self.context.quarantined:  # whose turn it is, this member does not know
                raise RpcError(*errors.CORRUPT)
        except asyncio.CancelledError:
            call.on_gone = None
            call.fail(*errors.SERVER_STOPPED)  # unless the call was over before, which is why we are here
            raise
        except Exception as error:  # the outer edge of a call: it ends here, the connection goes on
            call.on_gone = None
            call.fail_for(error)
        else:
            call.on_gone = None
            call.reply(answer)

    # -- proposals and reads
    async def propose(self, call: Call, command: Command) -> Any:
        """The machine's result. Raises `RpcError` for a refusal or an error of the group."""
        context = self.context
        future: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        data = context.encode(command)
        if context.access.auth.enabled:
            data = context.access.wrap(call, data)

        def done(result: object) -> None:
            if not future.done():
                future.set_result(result)

        try:
            context.propose(data, done)
        except RaftError as error:
            raise RpcError(*errors.of_raft_error(error)) from error
        result = await future
        if isinstance(result, Refused):
            raise RpcError(*unknown(errors.of_kv_error(result.error)))
        if isinstance(result, RaftError):
            raise RpcError(*errors.of_raft_error(result))
        return result

    async def caught_up(self) -> None:
        """Return when reading this member's state is linearizable. Raises `RpcError`."""
        future: asyncio.Future[RaftError | None] = asyncio.get_running_loop().create_future()

        def done(error: RaftError | None) -> None:
            if not future.done():
                future.set_result(error)

        try:
            self.context.backend.read_barrier(done)
        except RaftError as refused:
            done(refused)
        error = await future
        if error is not None:
            raise RpcError(*errors.of_raft_error(error))

    async def lease(self, call: Call, asked: int) -> int:
        """The lease that the caller named, or a new one."""
        if asked:
            return asked
        ttl = max(SESSION_TTL_S, self.context.backend.lease_ttl_min)
        for tries_left in reversed(range(GRANT_TRIES_MAX)):
            try:
                granted = await self.propose(call, LeaseGrant(secrets.randbelow(2**63 - 1) + 1, ttl))
            except RpcError as refusal:
                if not tries_left or refusal.text != errors.of_kv_error(KvError.LEASE_EXISTS)[1]:
                    raise
            else:
                assert isinstance(granted, LeaseGranted), granted
                return granted.id
        raise AssertionError("unreachable: the last refusal is raised")

    # -- queueing
    async def enter(self, call: Call, key: bytes, value: bytes, lease: int) -> tuple[KeyValue | None, int, int]:
        """Put `key` unless it exists. Returns what it has if it did, its create revision, and the store's revision."""
        txn = Txn([created_at(key, 0)], [Put(key, value, lease)], [Range(key)])
        result = await self.propose(call, txn)
        assert isinstance(result, TxnResult), result
        if result.succeeded:
            return None, result.revision, result.revision
        found = result.responses[0]
        assert isinstance(found, RangeResult), found
        present = decode_key_value(found.kvs[0])
        return present, present.create_revision, result.revision

    async def wait_turn(self, call: Call, prefix: bytes, key: bytes, create_revision: int) -> bool:
        """Return when `key` is the oldest of its prefix: whether it had to wait. Raises `Expired` as soon as it is
        gone."""
        waited = False
        while True:
            before = await self._just_before(call, prefix, key, create_revision)
            if before is None:
                return waited
            waited = True
            reader = HubReader(self.pump)
            try:
                # What woke us does not matter, for we look again; also when a compaction has ended these watches.
                for watch_id, watched in enumerate((before, key)):
                    reader.stream.watch(watch_id, watched, filters=NO_PUT)
                reader.stream.take(_READ_BYTES)  # that they were created
                if self.context.kv.range_one(before) is not None and self._is_there(key, create_revision):
                    await reader.read()
            finally:
                reader.close()

    def _is_there(self, key: bytes, create_revision: int) -> bool:
        own = self.context.kv.range_one(key)
        return own is not None and decode_key_value(own).create_revision == create_revision

    async def _just_before(self, call: Call, prefix: bytes, key: bytes, create_revision: int) -> bytes | None:
        """The youngest key of the prefix that is older than ours. Raises `Expired` if ours is gone."""
        if not self._is_there(key, create_revision):
            raise Expired
        request = Range(
            prefix,
            prefix_end(prefix),
            limit=1,
            sort_order=SortOrder.DESCEND,
            sort_target=SortTarget.CREATE,
            keys_only=True,
            max_create_revision=create_revision - 1,
        )
        found = await self.read(call, request)
        if not self._is_there(key, create_revision):
            raise Expired
        return decode_key_value(found.kvs[0]).key if found.kvs else None

    async def oldest(self, call: Call, prefix: bytes) -> tuple[bytes | None, int]:
        """The encoded key-value whose turn it is, and the revision at which it is so."""
        found = await self.read(call, oldest_of(prefix))
        return found.kvs[0] if found.kvs else None, found.revision

    async def read(self, call: Call, request: Range) -> RangeResult:
        """A range of the present. At once, if it is small."""
        future: asyncio.Future[RangeResult] = asyncio.get_running_loop().create_future()

        def job() -> Job:
            spent = 1
            try:
                found, spent = yield from read(self.context.kv, request)
                assert isinstance(found, RangeResult), f"the present revision cannot be read: {found}"
            except Exception as error:  # it belongs to the coroutine
                if not future.done():
                    future.set_exception(error)
            else:
                if not future.done():
                    future.set_result(found)
            return spent

        self.context.reads.run(call, job())
        return await future

    def leave(self, call: Call, key: bytes, create_revision: int) -> None:
        """Take our key out of the queue; if that fails, its lease will. For a caller who has given up."""
        context = self.context
        data = context.encode(Txn([created_at(key, create_revision)], [DeleteRange(key)], []))
        try:
            if context.access.auth.enabled:
                data = context.access.wrap(call, data)
            context.propose(data, _forget)
        except (RaftError, RpcError) as error:
            log.info('left in its queue key_bytes=%d reason="%s"', len(key), error)


def unknown(status: tuple[Code, str]) -> tuple[Code, str]:
    """A refusal as Lock and Election give it: etcd's pass through its client library, which keeps the text only."""
    return Code.UNKNOWN, status[1]


def _forget(result: object) -> None:
    """For a proposal of which nobody waits for the result."""


def created_at(key: bytes, revision: int) -> Compare:
    return Compare(CompareTarget.CREATE, CompareResult.EQUAL, key, revision)


def oldest_of(prefix: bytes) -> Range:
    """The request for the key whose turn it is."""
    return Range(prefix, prefix_end(prefix), limit=1, sort_order=SortOrder.ASCEND, sort_target=SortTarget.CREATE)


def prefix_end(prefix: bytes) -> bytes:
    """The range end of all keys that begin with `prefix`, which ends with a slash."""
    return prefix[:-1] + bytes((prefix[-1] + 1,))


def key_in(prefix: bytes, lease: int) -> bytes:
    """The key of a lease's holder: as etcd names it."""
    return prefix + b"%x" % lease
