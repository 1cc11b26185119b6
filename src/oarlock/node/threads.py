"""The two threads beside the event loop: one that only syncs the log, one for everything else that may wait for a disk.

Both talk to the loop by `call_soon_threadsafe` alone, and end when told to. An error in the log is reported once; the
log is not touched again (a failed sync is never retried).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Final, Protocol

from oarlock.raft.events import Persist
from oarlock.raft.types import Entry, GroupId, HardState, Index, SnapshotMeta
from oarlock.storage.disk import KernelSyncs

IDLE_S: Final = 0.02  # the log notes how far it was synced when nothing came for so long ...
UNNOTED_SYNCS_MAX: Final = 256  # ... or after so many syncs


class Log(Protocol):
    """The part of `WriteAheadLog` that a node uses."""

    def append(
        self,
        group: GroupId,
        hard_state: HardState | None,
        entries: Sequence[Entry],
        *,
        snapshot: SnapshotMeta | None = None,
        reset_log: bool = False,
    ) -> None: ...

    def sync(self, *, note: bool = True) -> None: ...

    def begin_sync(self, kernel: KernelSyncs) -> bool: ...

    def end_sync(self, code: int) -> None: ...

    def note_synced(self) -> None: ...

    def prepare_next(self) -> None: ...

    def release(self, group: GroupId, index: Index) -> None: ...

    @property
    def segment_count(self) -> int: ...

    @property
    def room(self) -> int:
        """Bytes that still fit into the present segment; `sync` is slow when it has to begin another."""

    def close(self) -> None: ...


def post(loop: asyncio.AbstractEventLoop, function: Callable[..., object], *arguments: object) -> None:
    """Call on the loop; nobody is left to tell if the loop is closed already."""
    try:
        loop.call_soon_threadsafe(function, *arguments)
    except RuntimeError:
        if not loop.is_closed():
            raise


class LogThread:
    """Appends and syncs. What is handed over while a sync runs forms the next one: group commit.

    `on_synced(ticket, seconds)` says that everything up to `ticket` is durable; `on_error(error)` is the last call.
    `using` is held by whoever is at the log.
    """

    def __init__(
        self,
        log: Log,
        group: GroupId,
        loop: asyncio.AbstractEventLoop,
        on_synced: Callable[[int, float], None],
        on_error: Callable[[BaseException], None],
    ) -> None:
        self._log = log
        self._group = group
        self._loop = loop
        self._on_synced = on_synced
        self._on_error = on_error
        self._queue: SimpleQueue[Persist | None] = SimpleQueue()
        self._put_last = self._synced_last = 0  # tickets; the loop's thread alone looks at them
        self.using = threading.Lock()
        self.sync_began = 0.0
        """`time.monotonic()` when the sync under way began; 0.0 while there is none. Read by the loop's thread."""
        self.ended: asyncio.Future[None] = loop.create_future()
        self._thread = threading.Thread(target=self._run, name="oarlock log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, persist: Persist) -> None:
        self._put_last = persist.ticket
        self._queue.put(persist)

    @property
    def idle(self) -> bool:
        """Whether everything that was put is durable and reported."""
        return self._put_last == self._synced_last

    def stop(self) -> None:
        """Sync what was put, then end; `ended` is done then."""
        self._queue.put(None)

    def join(self) -> None:
        """Wait for the end of the thread itself, which is a matter of microseconds once `ended` is done."""
        if self._thread.ident is not None:
            self._thread.join()

    def _done(self, ticket: int, seconds: float) -> None:
        self._synced_last = ticket
        self._on_synced(ticket, seconds)

    def _run(self) -> None:
        queue = self._queue
        log, group = self._log, self._group
        more = True
        try:
            unnoted = 0
            while more:
                if unnoted >= UNNOTED_SYNCS_MAX:
                    with self.using:
                        log.note_synced()
                    unnoted = 0
                try:
                    item = queue.get(timeout=IDLE_S if unnoted else None)
                except Empty:
                    with self.using:
                        log.note_synced()
                    unnoted = 0
                    continue
                last: Persist | None = None
                with self.using:
                    while True:
                        if item is None:
                            more = False
                            break
                        log.append(
                            group, item.hard_state, item.entries, snapshot=item.snapshot, reset_log=item.reset_log
                        )
                        last = item
                        try:
                            item = queue.get_nowait()
                        except Empty:
                            break
                    if last is None:
                        continue
                    began = time.monotonic()
                    self.sync_began = began
                    log.sync(note=False)
                    self.sync_began = 0.0
                unnoted += 1
                post(self._loop, self._done, last.ticket, time.monotonic() - began)
        except BaseException as error:  # whatever it is, the log must not be used again
            post(self._loop, self._on_error, error)
        finally:
            post(self._loop, _finish, self.ended)


class Worker:
    """Runs jobs one after another. `submit(job, done)` calls `done(result, error)` on the loop once `job()` ended."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: SimpleQueue[tuple[Callable[[], Any], Callable[[Any, BaseException | None], None]] | None] = (
            SimpleQueue()
        )
        self.ended: asyncio.Future[None] = loop.create_future()
        self._thread = threading.Thread(target=self._run, name="oarlock worker", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        self._queue.put((job, done))

    def stop(self) -> None:
        """End after the jobs that were submitted; `ended` is done then."""
        self._queue.put(None)

    def join(self) -> None:
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            job, done = item
            try:
                result = job()
            except BaseException as error:  # handed to `done`, which decides
                post(self._loop, done, None, error)
            else:
                post(self._loop, done, result, None)
            del item, job, done
        post(self._loop, _finish, self.ended)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
