"""Watching: every change from one revision on, across connections and members, none lost and none twice."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from google.protobuf.message import DecodeError

from oarlock.api import proto
from oarlock.api.grpc.status import Code
from oarlock.client.channel import RENEWALS_MAX, Channel, Metadata, Stream
from oarlock.client.errors import Compacted, EtcdError, error_of
from oarlock.client.model import Event, KeyValue, key_value

if TYPE_CHECKING:
    from oarlock.client.client import Client

RETRY_S: Final = 0.05
RETRY_S_MAX: Final = 1.0
EVENT_KINDS: Final = ("put", "delete")
_AGAIN: Final = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.INTERNAL, Code.UNKNOWN})
_TRANSIENT: Final = ("no leader", "leader changed", "server stopped", "timed out", "Unavailable", "too many watches")
"""In reasons of refusals: another member, or the same one later, may take the watch."""

_WatchRequest = proto.message("etcdserverpb.WatchRequest")
_WatchResponse = proto.message("etcdserverpb.WatchResponse")


class Watch:
    """An asynchronous iterator of `Event`s. Ends with `aclose`, with the `async with` around it, or when it is dropped.

    `revision` says up to which revision everything has been given: a watch begun at `revision + 1` goes on from there.
    """

    def __init__(
        self, client: Client, key: bytes, range_end: bytes, start_revision: int, *, previous: bool, puts: bool,
        deletes: bool, resync: bool,
    ) -> None:  # fmt: skip
        if not (puts or deletes):
            raise ValueError("a watch without puts and deletes sees nothing")
        self._client = client
        self._key = key
        self._range_end = range_end
        self._next = start_revision
        self._previous = previous
        self._filters = [number for number, wanted in enumerate((puts, deletes)) if not wanted]
        self._known: dict[bytes, KeyValue] | None = {} if resync else None
        self._events: deque[tuple[Event, int]] = deque()  # and up to where everything has been given with it, or 0
        self._fragments: list[Event] = []  # of a revision that has not come whole
        self._channel: Channel | None = None
        self._stream: Stream | None = None
        self._metadata: Metadata = ()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._created = False
        self._refusals = 0
        self._closed = False
        self.revision = max(0, start_revision - 1)

    def __aiter__(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        """Returns once the server has begun to watch: what is written from now on is seen."""
        if self._closed:
            raise RuntimeError("the watch is closed: make another")
        try:
            while not self._created and not self._closed:
                await self._step()
        except BaseException:
            await self.aclose()  # nobody else will
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the watch; who waits for an event gets none. May be called again."""
        self._closed = True
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.cancel()

    async def __anext__(self) -> Event:
        while not self._events:
            if self._closed:
                raise StopAsyncIteration
            await self._step()
        event, complete = self._events.popleft()
        self.revision = max(self.revision, complete)
        return event

    def __del__(self) -> None:
        stream = self._stream
        if stream is not None and not stream.ended and self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(stream.cancel)
            except RuntimeError:
                pass  # the loop has ended, and the connection with it

    async def _step(self) -> None:
        """Take one answer of the server, on a new stream if need be."""
        pause = RETRY_S
        renewals = RENEWALS_MAX
        while not self._closed:
            try:
                if self._stream is None:
                    await self._open()
                stream = self._stream
                if stream is None:
                    return  # it was closed meanwhile
                data = await stream.receive()
                if data is None:
                    raise error_of(Code.UNAVAILABLE, "the server ended the watch")
                await self._take(_WatchResponse.FromString(data))
                return
            except EtcdError as error:
                self._drop(error)
                if self._is_closed():
                    return
                if isinstance(error, Compacted):
                    raise
                if self._client.renew(error, self._metadata):
                    if not renewals:
                        raise
                    renewals -= 1
                    continue
                if error.code not in _AGAIN:
                    raise
                await asyncio.sleep(pause)
                pause = min(2 * pause, RETRY_S_MAX)
            except DecodeError as error:
                self._drop(None)
                raise error_of(Code.DATA_LOSS, f"the server sent what is no answer to a watch: {error}") from error

    def _is_closed(self) -> bool:
        return self._closed

    def _drop(self, error: EtcdError | None) -> None:
        stream, self._stream = self._stream, None
        self._fragments = []
        if stream is not None:
            stream.cancel()
        channel, self._channel = self._channel, None
        if channel is not None and error is not None and error.code is Code.UNAVAILABLE:
            self._client.leave(channel)

    async def _open(self) -> None:
        if self._known is not None and not self._next:
            await self._read_range(first=True)
        self._loop = asyncio.get_running_loop()
        self._channel, stream, self._metadata = await self._client.stream("/etcdserverpb.Watch/Watch")
        request = _WatchRequest()
        create = request.create_request
        create.key, create.range_end, create.start_revision = self._key, self._range_end, self._next
        create.prev_kv, create.progress_notify, create.fragment = self._previous, True, True
        create.filters.extend(self._filters)
        try:
            await stream.send(request.SerializeToString())
        except BaseException:
            stream.cancel()  # half a request may have gone
            raise
        if self._is_closed():
            stream.cancel()
        else:
            self._stream = stream

    async def _take(self, response: Any) -> None:
        if response.canceled:
            if response.compact_revision:
                if self._known is None:
                    raise Compacted(
                        f"what came after revision {self._next - 1} has been compacted up to "
                        f"{response.compact_revision}",
                        response.compact_revision,
                    )
                self._drop(None)
                await self._read_range(first=False)
                return
            raise error_of(self._refused(response), response.cancel_reason or "the server cancelled the watch")
        if response.created:
            self._refusals = 0
            # "from now on" is from here, also if the connection breaks before the first event
            self._next = max(self._next, response.header.revision + 1) if not self._next else self._next
            self.revision = max(self.revision, self._next - 1)
            self._created = True
            return
        for message in response.events:
            event = Event(
                EVENT_KINDS[message.type], key_value(message.kv),
                key_value(message.prev_kv) if message.HasField("prev_kv") else None,
            )  # fmt: skip
            if event.kv.mod_revision < self._next:
                continue  # of a stream that was taken up again
            self._fragments.append(event)
        if response.fragment:
            return  # only whole revisions are given: after a failure the server begins this one again
        if response.events:
            whole, self._fragments = self._fragments, []
            for at, event in enumerate(whole):
                self._remember(event)
                last = at + 1 == len(whole) or whole[at + 1].kv.mod_revision != event.kv.mod_revision
                self._events.append((event, event.kv.mod_revision if last else 0))
            self._next = max(self._next, response.events[-1].kv.mod_revision + 1)
        else:
            self._next = max(self._next, response.header.revision + 1)  # progress: everything up to here has come
            if not self._events:
                self.revision = max(self.revision, response.header.revision)

    def _refused(self, response: Any) -> Code:
        """What a cancellation by the server means: whether it helps to ask again, or another member."""
        reason = response.cancel_reason
        if "permission denied" in reason.lower() or "PermissionDenied" in reason:
            return Code.PERMISSION_DENIED
        if "invalid auth token" in reason:
            return Code.UNAUTHENTICATED
        if any(text in reason for text in _TRANSIENT) or (not response.created and not self._refusals):
            self._refusals += 1
            return Code.UNAVAILABLE  # it went well before, so it may again
        return Code.INVALID_ARGUMENT

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
            found_events: list[Event] = []
            for key, kv in now.items():
                earlier = known.get(key)
                if earlier is None or earlier.mod_revision != kv.mod_revision:
                    found_events.append(Event("put", kv, earlier))
            for key, before in known.items():
                if key not in now:
                    found_events.append(Event("delete", KeyValue(key, b"", 0, revision, 0, 0), before))
            found_events = [event for event in found_events if EVENT_KINDS.index(event.kind) not in self._filters]
            found_events.sort(key=lambda event: event.kv.mod_revision)
            # Only with the last one everything up to `revision` has been given.
            self._events.extend((event, 0) for event in found_events[:-1])
            self._events.extend((event, revision) for event in found_events[-1:])
        if not self._events:
            self.revision = max(self.revision, revision)
        self._known = now
        self._next = revision + 1
