"""Watching: every change from one revision on, across connections and members, none lost and none twice."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from oarlock.api import proto
from oarlock.api.grpc.status import Code
from oarlock.client.channel import Channel, Stream
from oarlock.client.errors import Compacted, EtcdError, Unauthenticated, error_of
from oarlock.client.model import Event, KeyValue, key_value

if TYPE_CHECKING:
    from oarlock.client.client import Client

RETRY_S: Final = 0.05
RETRY_S_MAX: Final = 1.0
EVENT_KINDS: Final = ("put", "delete")

_WatchRequest = proto.message("etcdserverpb.WatchRequest")
_WatchResponse = proto.message("etcdserverpb.WatchResponse")


class Watch:
    """An asynchronous iterator of `Event`s. Ends with `aclose`, or with the `async with` around it.

    `revision` says up to which revision everything has been given: a watch begun at `revision + 1` goes on from there.
    """

    def __init__(
        self, client: Client, key: bytes, range_end: bytes, start_revision: int, *, previous: bool, puts: bool,
        deletes: bool, resync: bool,
    ) -> None:  # fmt: skip
        if not (puts or deletes):
            raise ValueError("a watch without puts and deletes sees nothing")
        self._client = client
        self._key = key or b"\0"
        self._range_end = range_end
        self._next = start_revision
        self._previous = previous
        self._filters = [number for number, wanted in enumerate((puts, deletes)) if not wanted]
        self._known: dict[bytes, KeyValue] | None = {} if resync else None
        self._events: deque[Event] = deque()
        self._channel: Channel | None = None
        self._stream: Stream | None = None
        self._created = asyncio.Event()
        self._closed = False
        self.revision = max(0, start_revision - 1)

    def __aiter__(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        """Returns once the server has begun to watch: what is written from now on is seen."""
        while not self._created.is_set():
            await self._step()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the watch. May be called again."""
        self._closed = True
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel()

    async def __anext__(self) -> Event:
        while not self._events:
            if self._closed:
                raise StopAsyncIteration
            await self._step()
        event = self._events.popleft()
        if not self._events or self._events[0].kv.mod_revision != event.kv.mod_revision:
            self.revision = max(self.revision, event.kv.mod_revision)
        return event

    async def _step(self) -> None:
        """Take one answer of the server, on a new stream if need be."""
        pause = RETRY_S
        renewed = False
        while not self._closed:
            try:
                if self._stream is None:
                    await self._open()
                stream = self._stream
                assert stream is not None
                data = await stream.receive()
                if data is None:
                    raise error_of(Code.UNAVAILABLE, "the server ended the watch")
                await self._take(_WatchResponse.FromString(data))
                return
            except Compacted:
                self._drop()
                raise
            except Unauthenticated:
                self._drop()
                if renewed:
                    raise
                renewed = True
                self._client._token = ""
            except EtcdError as error:
                self._drop()
                if error.code not in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.INTERNAL, Code.UNKNOWN):
                    raise
                await asyncio.sleep(pause)
                pause = min(2 * pause, RETRY_S_MAX)

    def _drop(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel()
        if self._channel is not None:
            if stream is not None and stream.error is not None and stream.error.code is Code.UNAVAILABLE:
                self._client.leave(self._channel)
            self._channel = None

    async def _open(self) -> None:
        if self._known is not None and not self._next:
            await self._read_range(first=True)
        self._channel, self._stream = await self._client.stream("/etcdserverpb.Watch/Watch")
        request = _WatchRequest()
        create = request.create_request
        create.key, create.range_end, create.start_revision = self._key, self._range_end, self._next
        create.prev_kv, create.progress_notify = self._previous, True
        create.filters.extend(self._filters)
        await self._stream.send(request.SerializeToString())

    async def _take(self, response: Any) -> None:
        if response.canceled:
            if response.compact_revision:
                if self._known is None:
                    raise Compacted(
                        f"what came after revision {self._next - 1} has been compacted up to "
                        f"{response.compact_revision}",
                        response.compact_revision,
                    )
                self._drop()
                await self._read_range(first=False)
                return
            reason = response.cancel_reason or "the server cancelled the watch"
            code = Code.PERMISSION_DENIED if "permission denied" in reason else Code.UNAVAILABLE
            if "invalid auth token" in reason:
                code = Code.UNAUTHENTICATED
            raise error_of(code, reason)
        if response.created:
            # "from now on" is from here, also if the connection breaks before the first event
            self._next = max(self._next, response.header.revision + 1) if not self._next else self._next
            self.revision = max(self.revision, self._next - 1)
            self._created.set()
            return
        for message in response.events:
            event = Event(
                EVENT_KINDS[message.type], key_value(message.kv),
                key_value(message.prev_kv) if message.HasField("prev_kv") else None,
            )  # fmt: skip
            if event.kv.mod_revision < self._next:
                continue  # of a stream that was taken up again
            self._remember(event)
            self._events.append(event)
        if response.events:
            self._next = max(self._next, response.events[-1].kv.mod_revision + 1)
        else:
            self._next = max(self._next, response.header.revision + 1)  # progress: everything up to here has come
            if not self._events:
                self.revision = max(self.revision, response.header.revision)

    def _remember(self, event: Event) -> None:
        if self._known is None:
            return
        if event.kind == "put":
            self._known[event.kv.key] = event.kv
        else:
            self._known.pop(event.kv.key, None)

    async def _read_range(self, *, first: bool) -> None:
        """Read the range anew; what differs from what is known becomes events."""
        now: dict[bytes, KeyValue] = {}
        at, revision = self._key, 0
        while True:
            found = await self._client.range(at, range_end=self._range_end, limit=1000, revision=revision)
            revision = revision or found.revision
            now.update((item.key, item) for item in found.items)
            if not found.more:
                break
            at = found.items[-1].key + b"\0"
        known = self._known if self._known is not None else {}
        if not first:
            for key, kv in now.items():
                before = known.get(key)
                if before is None or before.mod_revision != kv.mod_revision:
                    self._events.append(Event("put", kv, before))
            for key, before in known.items():
                if key not in now:
                    gone = KeyValue(key, b"", 0, revision, 0, 0)
                    self._events.append(Event("delete", gone, before))
        self._known = now
        self._next = revision + 1
