"""Who has the log synced: the kernel while nothing is in its way, the log's thread otherwise.

A sync that the kernel does by itself costs the event loop a write into the page cache and two system calls; a sync by
the thread costs two hand-overs of the interpreter and several wake-ups, about as long as a good disk takes. The thread
gets what may take long before it is even asked of the disk: a new segment, a large batch, a snapshot's mark, and
everything for a while after a mere write was slow, for then the page cache does not take it without waiting.
"""

from __future__ import annotations

import asyncio
import errno
import resource
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from oarlock.node.threads import IDLE_S, UNNOTED_SYNCS_MAX, Log, LogThread
from oarlock.raft.events import Persist
from oarlock.raft.types import GroupId
from oarlock.storage.disk import KernelSyncs

BATCH_BYTES_MAX: Final = 256 * 1024  # a larger batch is the thread's: to write it holds up the loop
OVERHEAD_BYTES: Final = 256  # of an entry or a hard state in the log, at most
SLOW_WRITE_S: Final = 0.005  # after a write that took so long ...
PAUSE_S: Final = 1.0  # ... the thread has the log for this time,
PAUSE_S_MAX: Final = 60.0  # which doubles with each slow write that follows soon, up to this


class Kernel(KernelSyncs, Protocol):
    """`kernel_sync.KernelSync`."""

    def fileno(self) -> int: ...
    def result(self) -> int: ...
    def close(self) -> None: ...


def _waits() -> int:
    """How often this thread gave the processor up to wait for something."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


class Pause:
    """When the thread has to do the writing because a write on the loop was slow."""

    __slots__ = ("_length_s", "_until")

    def __init__(self) -> None:
        self._until = 0.0
        self._length_s = PAUSE_S

    def observe(self, seconds: float, waits: int, now: float) -> None:
        """A write took `seconds`, gave the processor up `waits` times because something was not ready, and ended at
        `now` (`time.monotonic()`). One that was slow without waiting was slow for want of a processor."""
        if seconds >= SLOW_WRITE_S and waits:
            soon = now < self._until + self._length_s
            self._length_s = min(2 * self._length_s, PAUSE_S_MAX) if soon else PAUSE_S
            self._until = now + self._length_s

    def over(self, now: float) -> bool:
        return now >= self._until


class LogWriter:
    """`put` what must be durable, in order; `on_synced(ticket, seconds)` says that everything up to `ticket` is, and
    `on_error(error)` is the last call. What is put while a sync is under way forms the next one: group commit.

    Everything here is called on the loop's thread. Without `kernel`, the thread does it all.
    """

    def __init__(
        self,
        log: Log,
        group: GroupId,
        loop: asyncio.AbstractEventLoop,
        on_synced: Callable[[int, float], None],
        on_error: Callable[[BaseException], None],
        kernel: Kernel | None = None,
    ) -> None:
        self._log = log
        self._group = group
        self._loop = loop
        self._on_synced = on_synced
        self._on_error = on_error
        self._kernel = kernel
        self._thread = LogThread(log, group, loop, self._thread_ended, self._fail)
        self._pause = Pause()
        self._waiting: list[Persist] = []  # for the end of the sync under way
        self._ticket = 0  # what the kernel's sync makes durable; 0: none is under way
        self._began = 0.0
        self._unnoted = 0
        self._failed = False
        self._stopping = False
        self._ended = False  # the thread is told to end
        self.kernel_syncs = 0
        self.ended = self._thread.ended

    def start(self) -> None:
        self._thread.start()
        if self._kernel is not None:
            self._loop.add_reader(self._kernel.fileno(), self._kernel_ended)

    @property
    def sync_began(self) -> float:
        """`time.monotonic()` when the sync under way began; 0.0 while there is none."""
        return self._began if self._ticket else self._thread.sync_began

    def put(self, persists: Sequence[Persist]) -> None:
        if self._failed:
            return
        # The thread would take it as its own next batch, and under load would never again be without one.
        if self._ticket or (self._kernel is not None and not self._thread.idle):
            self._waiting += persists
        else:
            self._sync(persists)

    def _sync(self, persists: Sequence[Persist]) -> None:
        if not self._begin(persists):
            for persist in persists:
                self._thread.put(persist)

    def _next(self) -> None:
        """A sync has ended: begin the next one, before anybody is told."""
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            self._sync(waiting)

    def _thread_ended(self, ticket: int, seconds: float) -> None:
        if self._thread.idle and not self._failed:
            self._next()
        self._on_synced(ticket, seconds)
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._stopping and not self._waiting and not self._ticket and not self._ended:
            self._ended = True
            self._thread.stop()

    def stop(self) -> None:
        """Sync what was put, then end; `ended` is done then."""
        self._stopping = True
        self._end_if_done()

    def close(self) -> None:
        """Give everything back, once `ended` is done."""
        self._thread.join()
        if self._kernel is not None:
            self._loop.remove_reader(self._kernel.fileno())
            self._kernel.close()

    # ------------------------------------------------------------------ the kernel's syncs

    def _begin(self, persists: Sequence[Persist]) -> bool:
        """Whether the kernel has it: else it is the thread's."""
        kernel, log, thread = self._kernel, self._log, self._thread
        if kernel is None or not self._fits(persists):
            return False
        began = time.monotonic()
        if not self._pause.over(began) or not thread.using.acquire(blocking=False):
            return False
        waits = _waits()
        taken = False
        try:
            for item in persists:
                log.append(self._group, item.hard_state, item.entries)
            taken = log.begin_sync(kernel)
        except BaseException as error:  # whatever it is, the log must not be used again
            self._fail(error)
            return True
        finally:
            if not taken:
                thread.using.release()
        now = time.monotonic()
        self._pause.observe(now - began, _waits() - waits, now)
        if taken:
            self._ticket, self._began = persists[-1].ticket, now
        else:
            # sometimes: the kernel takes no sync
            thread.put(Persist(persists[-1].ticket))  # whose sync ends the one that was begun
        return True

    def _fits(self, persists: Sequence[Persist]) -> bool:
        size = 0
        for persist in persists:
            if persist.snapshot is not None:
                return False
            size += OVERHEAD_BYTES
            for entry in persist.entries:
                size += OVERHEAD_BYTES + len(entry.payload)
        return size <= BATCH_BYTES_MAX and size <= self._log.room

    def _kernel_ended(self) -> None:
        kernel = self._kernel
        assert kernel is not None
        try:
            code = kernel.result()
        except OSError as error:  # nobody knows what is durable
            code = error.errno or errno.EIO
        if code < 0 or not self._ticket:
            return
        ticket, self._ticket = self._ticket, 0
        seconds = time.monotonic() - self._began
        try:
            self._log.end_sync(code)
            self._note()
        except BaseException as error:  # as in `_begin`
            self._fail(error)
            return
        finally:
            self._thread.using.release()
        self.kernel_syncs += 1
        self._next()
        self._on_synced(ticket, seconds)
        self._end_if_done()

    def _fail(self, error: BaseException) -> None:
        if self._failed:
            return
        self._failed = True
        self._waiting = []
        self._loop.call_soon(self._on_error, error)  # whoever put something is in the middle of a turn
        self._end_if_done()

    def _note(self) -> None:
        """The log notes how far it was synced after so many syncs, or when nothing came for a while."""
        self._unnoted += 1
        if self._unnoted == 1:
            self._loop.call_later(IDLE_S, self._note_idle, 0)
        elif self._unnoted > UNNOTED_SYNCS_MAX:
            self._log.note_synced()
            self._unnoted = 1  # the timer runs

    def _note_idle(self, before: int) -> None:
        """`before` is what was unnoted at the last look."""
        if self.ended.done() or not self._unnoted or self._failed:
            return
        if self._unnoted != before or self._ticket or not self._thread.using.acquire(blocking=False):
            self._loop.call_later(IDLE_S, self._note_idle, self._unnoted)
            return
        try:
            self._log.note_synced()
            self._unnoted = 0
        except BaseException as error:  # as in `_begin`
            self._fail(error)
        finally:
            self._thread.using.release()
