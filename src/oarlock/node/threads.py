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

IDLE_S: Final = 0.02  # the log notes how far it was synced when nothing came for so long ...
UNNOTED_SYNCS_MAX: Final = 256  # ... or after so many syncs

INLINE_BYTES_MAX: Final = 64 * 1024  # a larger batch is synced by the thread, however quick the disk is
INLINE_OVERHEAD_BYTES: Final = 256  # of an entry or a hard state in the log, at most
INLINE_AVERAGE_S: Final = 0.0005  # syncs are quick while they take less, on average ...
INLINE_SLOW_S: Final = 0.005  # ... and none took so long ...
INLINE_PAUSE_S: Final = 1.0  # ... within this time
INLINE_PAUSE_S_MAX: Final = 60.0  # which doubles with each slow one that follows, up to this


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


class QuickDisk:
    """Whether the disk has been so quick that to wait for it costs less than to have another thread wait for it.

    Two threads hand a sync to each other for about as much time as a good disk needs for it. But whoever syncs on the
    loop's thread does nothing else until the disk is done, so one sync that is not quick ends it at once.
    """

    __slots__ = ("_average_s", "_not_before", "_pause_s")

    def __init__(self) -> None:
        self._average_s = INLINE_AVERAGE_S  # nothing is known of it yet, so the first syncs are the thread's
        self._not_before = 0.0
        self._pause_s = INLINE_PAUSE_S

    def observe(self, seconds: float, now: float) -> None:
        """One sync took `seconds`, and ended at `now` (`time.monotonic()`)."""
        self._average_s += (seconds - self._average_s) / 8
        if seconds >= INLINE_SLOW_S:
            if now < self._not_before + self._pause_s:
                self._pause_s = min(2 * self._pause_s, INLINE_PAUSE_S_MAX)
            else:
                self._pause_s = INLINE_PAUSE_S
            self._not_before = now + self._pause_s

    def is_quick(self, now: float) -> bool:
        return self._average_s < INLINE_AVERAGE_S and now >= self._not_before


class LogThread:
    """Appends and syncs. What is handed over while a sync runs forms the next one: group commit.

    `on_synced(ticket, seconds)` says that everything up to `ticket` is durable; `on_error(error)` is the last call.
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
        self._using = threading.Lock()  # held by whoever is at the log
        self._put_last = self._synced_last = 0  # tickets; the loop's thread alone looks at them
        self._unnoted_inline = 0
        self._failed = False
        self.sync_began = 0.0
        """`time.monotonic()` when the sync under way began; 0.0 while there is none. Read by the loop's thread."""
        self.ended: asyncio.Future[None] = loop.create_future()
        self._thread = threading.Thread(target=self._run, name="oarlock log", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def put(self, persist: Persist) -> None:
        self._put_last = persist.ticket
        self._queue.put(persist)

    def sync_now(self, persists: Sequence[Persist]) -> bool:
        """Sync on the caller's thread, the loop's. False, and nothing was done, if the log is in use or something
        waits for the thread, which must come first. Whatever goes wrong is told to `on_error`, the last call."""
        if self._failed or self._put_last != self._synced_last or not self._using.acquire(blocking=False):
            return False
        log, group = self._log, self._group
        try:
            began = time.monotonic()
            for item in persists:
                log.append(group, item.hard_state, item.entries, snapshot=item.snapshot, reset_log=item.reset_log)
            log.sync(note=False)
            seconds = time.monotonic() - began
            self._unnoted_inline += 1
            if self._unnoted_inline == 1:
                self._loop.call_later(IDLE_S, self._note_inline, 0)
            elif self._unnoted_inline > UNNOTED_SYNCS_MAX:
                log.note_synced()
                self._unnoted_inline = 1  # the timer runs
        except BaseException as error:  # as in `_run`
            self._failed = True
            self._on_error(error)
            return True
        finally:
            self._using.release()
        self._on_synced(persists[-1].ticket, seconds)
        return True

    def _note_inline(self, before: int) -> None:
        """Nothing came for a while: note how far the log is synced. `before` is what was unnoted at the last look."""
        if self.ended.done() or not self._unnoted_inline or self._failed:
            return
        if self._unnoted_inline != before or not self._using.acquire(blocking=False):
            self._loop.call_later(IDLE_S, self._note_inline, self._unnoted_inline)
            return
        try:
            self._log.note_synced()
            self._unnoted_inline = 0
        except BaseException as error:  # as in `_run`
            self._failed = True
            self._on_error(error)
        finally:
            self._using.release()

    def _done(self, ticket: int, seconds: float) -> None:
        self._synced_last = ticket
        self._on_synced(ticket, seconds)

    def stop(self) -> None:
        """Sync what was put, then end; `ended` is done then."""
        self._queue.put(None)

    def join(self) -> None:
        """Wait for the end of the thread itself, which is a matter of microseconds once `ended` is done."""
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        queue = self._queue
        log, group = self._log, self._group
        more = True
        try:
            unnoted = 0
            while more:
                if unnoted >= UNNOTED_SYNCS_MAX:
                    with self._using:
                        log.note_synced()
                    unnoted = 0
                try:
                    item = queue.get(timeout=IDLE_S if unnoted else None)
                except Empty:
                    with self._using:
                        log.note_synced()
                    unnoted = 0
                    continue
                last: Persist | None = None
                with self._using:
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
