"""etcd's Watch service over the machine's hub of watches. (docs/explanation/watches.md)

What the hub puts into a stream's outbox is encoded and sent at the end of the turn in which it happened, as far as the
reader keeps up; the rest stays in the outbox, whose bound is the hub's. A response holds whole revisions, unless the
watch asked for fragments. The answer to every request takes its place in the same outbox, so that nothing overtakes.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from oarlock.api import proto
from oarlock.api.etcd import errors
from oarlock.api.etcd.codec import varint
from oarlock.api.etcd.context import ServiceContext
from oarlock.api.etcd.parsing import parse
from oarlock.api.etcd.tokens import Identity
from oarlock.api.grpc import Code, Method, RpcError, StreamCall
from oarlock.machines.kv.events import NO_DELETE, NO_PUT, EventBatch
from oarlock.machines.kv.watch import Delivery, Kind, WatchStream

log = logging.getLogger(__name__)

SEND_BYTES: Final = 256 * 1024
"""Deliveries taken from an outbox at a time."""

REQUESTS_AHEAD_MAX: Final = 1024
"""Deliveries in an outbox at which no further request of that stream is read."""

_WatchRequest = proto.message("etcdserverpb.WatchRequest")
_FILTERS: Final = {0: NO_PUT, 1: NO_DELETE}
_CREATED, _CANCELED, _FRAGMENT = b"\x18\x01", b"\x20\x01", b"\x38\x01"

EMPTY_RANGE: Final = "mvcc: watcher range is empty"
DUPLICATE_ID: Final = "mvcc: duplicate watch ID provided on the WatchStream"
COMPACTED: Final = "mvcc: required revision has been compacted"


class WatchPump:
    """Drives the machine's hub on the event loop: streams that have something to read are flushed at the end of the
    turn, and those that are behind get slices of the log, one in each turn of the loop, so that the rest goes on."""

    def __init__(self, context: ServiceContext) -> None:
        self._context = context
        self._loop = asyncio.get_running_loop()
        self.hub = context.kv.watches
        self.hub.stream_bytes_max = context.limits.watch_outbox_bytes_max
        self.hub.total_bytes_max = context.limits.watch_outbox_total_bytes_max
        self.hub.on_behind = self._behind
        self._ready: list[Callable[[], None]] = []
        self._advancing = False
        context.on_quarantine = self._quarantined
        self._calls: dict[StreamCall, bool] = {}  # open streams, and whether they want a leader
        self._leaderless_since: float | None = None

    def open(self, flush: Callable[[], None]) -> WatchStream:
        """A new reader of the hub; `flush` is called at the end of a turn in which it was given something."""
        return self.hub.stream(partial(self._note, flush))

    def close(self) -> None:
        """The port is closed: the machine goes on without us."""
        self.hub.on_behind = None

    def _note(self, flush: Callable[[], None]) -> None:
        self._ready.append(flush)
        if len(self._ready) == 1:
            self._context.backend.flush_soon(self._flush)

    def _flush(self) -> None:
        ready, self._ready = self._ready, []
        for flush in ready:
            flush()

    def _behind(self) -> None:
        if not self._advancing:
            self._advancing = True
            self._loop.call_soon(self._advance)

    def _advance(self) -> None:
        if self.hub.advance():
            self._loop.call_soon(self._advance)
        else:
            self._advancing = False

    # -- streams that want a leader
    def watch_leader(self, call: StreamCall) -> None:
        """End `call` when there is no leader for long, if it asked for that, and when this member is put into
        quarantine. `forget_leader` ends this."""
        self._calls[call] = call.need_leader

    def forget_leader(self, call: StreamCall) -> None:
        self._calls.pop(call, None)

    def refresh(self) -> None:
        """Called about once a second."""
        if self._context.quarantined:
            self._quarantined()
        if self._context.backend.status().leader:
            self._leaderless_since = None
            return
        now = self._loop.time()
        if self._leaderless_since is None:
            self._leaderless_since = now
        elif now - self._leaderless_since >= self._context.limits.leaderless_s:
            self._end([call for call, need_leader in self._calls.items() if need_leader], errors.NO_LEADER)

    def _quarantined(self) -> None:
        """End all streams: what they would be told may be wrong."""
        self._end(list(self._calls), errors.CORRUPT)

    def _end(self, calls: list[StreamCall], status: tuple[Code, str]) -> None:
        for call in calls:
            del self._calls[call]
            task = call.task
            call.fail(*status)
            if task is not None:
                task.cancel()


class WatchService:
    """Watch."""

    def __init__(self, context: ServiceContext, pump: WatchPump) -> None:
        self._context = context
        self._pump = pump

    def methods(self) -> list[Method]:
        return [Method("etcdserverpb.Watch", "Watch", stream=self._watch)]

    async def _watch(self, call: StreamCall) -> None:
        self._context.may_serve(call)
        watching = _Watching(self._context, self._pump, call)
        self._pump.watch_leader(call)
        try:
            while (message := await call.receive()) is not None:
                await watching.request(parse(_WatchRequest, message))
            # The client has nothing more to ask and goes on listening, as with etcd.
            await asyncio.get_running_loop().create_future()
        finally:
            self._pump.forget_leader(call)
            watching.close()


class _Watching:
    """One Watch stream."""

    def __init__(self, context: ServiceContext, pump: WatchPump, call: StreamCall) -> None:
        self._context = context
        self._hub = pump.hub
        self._call = call
        self._stream = pump.open(self._flush)
        self._draining: asyncio.Task[None] | None = None
        self._next_id = 0
        self._fragments: set[int] = set()
        self._ranges: dict[int, tuple[bytes, bytes]] = {}  # of the watches, as their right was asked for
        self._rights = 0  # the auth revision at which all of them were found permitted
        self._revoked: dict[int, str] = {}  # watches that have lost their right, and why; until that is told
        self._progress: dict[int, bool] = {}  # watches that want to know how far they are: whether nothing else came
        self._timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        self._stream.close()
        if self._timer is not None:
            self._timer.cancel()
        if self._draining is not None:
            self._draining.cancel()

    # -- requests
    async def request(self, request: Any) -> None:
        while self._stream.waiting >= REQUESTS_AHEAD_MAX:  # answers have to be read before there are more
            self._flush()
            if self._draining is None:
                break  # everything is sent, or the call is over
            await asyncio.wait({self._draining})
        match request.WhichOneof("request_union"):
            case "create_request":
                await self._create(request.create_request)
            case "cancel_request":
                watch_id = request.cancel_request.watch_id
                if self._stream.cancel(watch_id):
                    self._forget(watch_id)
            case "progress_request":
                self._stream.request_progress()
            case _:
                pass  # as etcd, which takes a request without content for one of a later version

    async def _create(self, create: Any) -> None:
        # Every default is filled in before anybody is asked whether this may be watched. (GHSA-xg4h-6gfc-h4m8)
        key = create.key or b"\0"
        range_end = create.range_end
        if range_end and range_end != b"\0" and key >= range_end:
            self._refuse(EMPTY_RANGE)
            return
        access = self._context.access

        def question(identity: Identity | None) -> RpcError | None:
            return access.may_read(identity, key, range_end)

        if access.auth.enabled and (refused := await access.ask(self._call, question)) is not None:
            self._refuse(f"rpc error: code = {_go_name(refused.code)} desc = {refused.text}")
            return
        watch_id = create.watch_id
        watchers = self._stream.watchers
        if watch_id == 0:
            while self._next_id in watchers:
                self._next_id += 1
            watch_id = self._next_id
            self._next_id += 1
        elif watch_id in watchers:
            self._refuse(DUPLICATE_ID)
            return
        limits = self._context.limits
        if len(watchers) >= limits.watches_per_stream_max:
            self._refuse(f"etcdserver: too many watches on one stream (at most {limits.watches_per_stream_max})")
            return
        if self._hub.watcher_count >= limits.watches_total_max:
            self._refuse(f"etcdserver: too many watches on this member (at most {limits.watches_total_max})")
            return
        if create.start_revision < 0:
            self._refuse(COMPACTED)
            return
        if create.fragment:
            self._fragments.add(watch_id)
        filters = 0
        for number in create.filters:
            filters |= _FILTERS.get(number, 0)
        self._ranges[watch_id] = (key, range_end)
        self._stream.watch(watch_id, key, range_end, create.start_revision, filters=filters, prev_kv=create.prev_kv)
        if create.progress_notify and watch_id in watchers:
            self._progress[watch_id] = True
            if self._timer is None:
                self._arm()

    def _refuse(self, reason: str) -> None:
        self._stream.push(Delivery(Kind.REFUSED, -1, self._hub.revision, reason=reason))

    def _forget(self, watch_id: int) -> None:
        self._progress.pop(watch_id, None)
        self._ranges.pop(watch_id, None)

    def _ask_again(self) -> None:
        """Users or roles have changed: end the watches that would not be permitted now. Of what waits for them in the
        outbox nothing is told, for some of it may have happened since."""
        access = self._context.access
        self._rights = access.auth.revision
        for watch_id, (key, range_end) in list(self._ranges.items()):
            refused = access.may_go_on(self._call, key, range_end)
            if refused is not None and self._stream.cancel(watch_id):
                self._forget(watch_id)
                self._revoked[watch_id] = f"rpc error: code = {_go_name(refused.code)} desc = {refused.text}"

    # -- progress
    def _arm(self) -> None:
        interval = self._context.limits.watch_progress_interval_s
        self._timer = asyncio.get_running_loop().call_later(interval * (1 + random.random() / 10), self._tell_progress)

    def _tell_progress(self) -> None:
        """Tell watches of which nothing was heard since the last time. A reader that lags behind hears enough."""
        self._timer = None
        idle = not self._stream.waiting
        for watch_id, quiet in self._progress.items():
            if quiet and idle:
                self._stream.progress(watch_id)
            self._progress[watch_id] = True
        if self._progress:
            self._arm()

    # -- sending
    def _flush(self) -> None:
        try:
            self._send()
        except Exception as fault:  # the outer edge of this stream: it ends, the other readers and the turn go on
            log.exception("watch failed")
            task = self._call.task
            self._call.fail(Code.INTERNAL, f"internal error: {type(fault).__name__}")
            if task is not None:
                task.cancel()

    def _send(self) -> None:
        """Send what waits, as far as the reader keeps up."""
        stream, call = self._stream, self._call
        if self._draining is not None or self._context.quarantined:
            return  # in quarantine the stream is about to end
        auth = self._context.access.auth
        if auth.enabled and auth.revision != self._rights:
            self._ask_again()
        while stream.waiting and call.open:
            messages: list[bytes] = []
            for delivery in stream.take(SEND_BYTES):
                self._encode(delivery, messages)
            if messages and not call.send_some(messages):
                self._draining = asyncio.get_running_loop().create_task(self._drain())
                return

    async def _drain(self) -> None:
        await self._call.drained()
        self._draining = None
        self._flush()

    def _encode(self, delivery: Delivery, messages: list[bytes]) -> None:
        context = self._context
        kind, watch_id = delivery.kind, delivery.watch_id
        revoked = ""
        if self._revoked and watch_id in self._revoked:
            if kind in (Kind.EVENTS, Kind.PROGRESS):
                return
            if kind == Kind.CANCELLED:
                revoked = self._revoked.pop(watch_id)
        # As etcd, whose notice of a compaction has no revision.
        revision = 0 if kind == Kind.COMPACTED else delivery.revision
        head = context.header(revision, context.backend.term)
        if watch_id:
            head += b"\x10" + varint(watch_id)
        if kind == Kind.EVENTS:
            batch = delivery.batch
            assert batch is not None
            if self._progress.get(watch_id):
                self._progress[watch_id] = False
            size_max = context.limits.grpc_message_bytes_max  # as etcd's fragments
            if len(head) + batch.size >= size_max and len(batch.events) > 1 and watch_id in self._fragments:
                messages += _fragments(head, batch, size_max)
            else:
                messages.append(head + batch.data)
        elif kind == Kind.CREATED:
            messages.append(head + _CREATED)
        elif kind == Kind.PROGRESS:
            messages.append(head)
        elif kind == Kind.CANCELLED:
            self._fragments.discard(watch_id)
            reason = revoked.encode()
            messages.append(head + _CANCELED + (b"\x32" + varint(len(reason)) + reason if reason else b""))
        elif kind == Kind.COMPACTED:
            self._fragments.discard(watch_id)
            self._forget(watch_id)
            messages.append(head + _CANCELED + b"\x28" + varint(delivery.compact_revision))
        else:
            reason = delivery.reason.encode()
            messages.append(head + _CREATED + _CANCELED + b"\x32" + varint(len(reason)) + reason)


def _fragments(head: bytes, batch: EventBatch, size_max: int) -> list[bytes]:
    """A response in pieces below `size_max`, or of one event; all but the last say that more follows. (As etcd.)"""
    messages: list[bytes] = []
    head_size = len(head) + len(_FRAGMENT)
    parts: list[bytes] = []
    size = head_size
    for wire in batch.wires():
        if parts and size + len(wire) >= size_max:
            messages.append(head + _FRAGMENT + b"".join(parts))
            parts, size = [], head_size
        parts.append(wire)
        size += len(wire)
    messages.append(head + b"".join(parts))
    return messages


def _go_name(code: Code) -> str:
    """A status code as grpc-go prints it.

    >>> _go_name(Code.PERMISSION_DENIED)
    'PermissionDenied'
    """
    return code.name.title().replace("_", "")
