"""A client of the Watch service for tests: one stream, read in a thread, its answers in a queue."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Iterable
from typing import Any

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc

from oarlock.api import proto
from oarlock.check.watch import WatchAnswer, WatchedEvent

_Request = proto.message("etcdserverpb.WatchRequest")
_Response = proto.message("etcdserverpb.WatchResponse")


class WatchClient:
    """One Watch stream. `answers` is everything that came, in order; `error` how the stream ended."""

    def __init__(self, channel: Any, metadata: Iterable[tuple[str, str]] = ()) -> None:
        self._requests: queue.Queue[Any] = queue.Queue()
        self.answers: list[Any] = []
        self.error: tuple[str, str] | None = None
        self.ended = threading.Event()
        self._changed = threading.Condition()
        self._call = channel.stream_stream(
            "/etcdserverpb.Watch/Watch",
            request_serializer=_Request.SerializeToString,
            response_deserializer=_Response.FromString,
        )(iter(self._requests.get, None), metadata=tuple(metadata))
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        try:
            for answer in self._call:
                with self._changed:
                    self.answers.append(answer)
                    self._changed.notify_all()
        except grpc.RpcError as error:
            self.error = (error.code().name, error.details())
        with self._changed:
            self.ended.set()
            self._changed.notify_all()

    def create(self, key: bytes, **fields: Any) -> None:
        request = _Request()
        request.create_request.key = key
        for name, value in fields.items():
            if name == "filters":
                request.create_request.filters.extend(value)
            else:
                setattr(request.create_request, name, value)
        self._requests.put(request)

    def cancel(self, watch_id: int) -> None:
        request = _Request()
        request.cancel_request.watch_id = watch_id
        self._requests.put(request)

    def progress(self) -> None:
        request = _Request()
        request.progress_request.SetInParent()
        self._requests.put(request)

    def send_nothing(self) -> None:
        """A request without content."""
        self._requests.put(_Request())

    def half_close(self) -> None:
        self._requests.put(None)

    def close(self) -> None:
        self._call.cancel()
        self._requests.put(None)

    def wait(self, condition: Any, what: str, timeout_s: float = 120.0) -> None:
        """Until `condition(answers)`."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while not condition(self.answers):
                left = deadline - time.monotonic()
                assert left > 0, f"{what} did not come: {self.answers[-3:]} {self.error}"
                assert not self.ended.is_set(), f"the stream ended before {what}: {self.error}"
                self._changed.wait(left)

    def wait_created(self, count: int) -> None:
        self.wait(lambda answers: sum(a.created for a in answers) >= count, f"{count} watches")

    def events(self, watch_id: int = 0) -> list[Any]:
        return [event for answer in list(self.answers) if answer.watch_id == watch_id for event in answer.events]

    def wait_events(self, count: int, watch_id: int = 0, timeout_s: float = 120.0) -> list[Any]:
        self.wait(
            lambda answers: sum(len(a.events) for a in answers if a.watch_id == watch_id) >= count,
            f"event {count} of watch {watch_id}",
            timeout_s,
        )
        return self.events(watch_id)


def as_answer(response: Any) -> WatchAnswer:
    """A response of the wire as `oarlock.check.watch` judges it."""
    return WatchAnswer(
        revision=response.header.revision,
        events=[as_event(event) for event in response.events],
        progress=not (response.events or response.created or response.canceled),
        fragment=response.fragment,
        compact_revision=response.compact_revision,
        cancelled=response.canceled,
    )


def as_event(event: Any) -> WatchedEvent:
    return WatchedEvent(
        event.kv.mod_revision,
        event.kv.key,
        None if event.type else event.kv.SerializeToString(),
        not event.type and event.kv.create_revision == event.kv.mod_revision,
        event.prev_kv.SerializeToString() if event.HasField("prev_kv") else None,
    )
