"""Who syncs the log: the kernel while nothing is in its way, the thread otherwise, and never both, nor out of order."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest

from oarlock.errors import SyncFailed
from oarlock.node.log_writer import BATCH_BYTES_MAX, PAUSE_S, SLOW_WRITE_S, LogWriter, Pause
from oarlock.raft.events import Persist
from oarlock.raft.types import Configuration, Entry, HardState, SnapshotMeta


class FakeKernel:
    """Ends a sync when the test says so."""

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_NONBLOCK)
        self.begun = 0
        self.refuses = False
        self.closed = False
        self._code = -1

    def fileno(self) -> int:
        return self.fd

    def begin(self, fd: int) -> None:
        if self.refuses:
            raise OSError(errno.EAGAIN, "no memory")
        self.begun += 1

    def end(self, code: int = 0) -> None:
        self._code = code
        os.eventfd_write(self.fd, 1)

    def result(self) -> int:
        os.eventfd_read(self.fd)
        code, self._code = self._code, -1
        return code

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        os.close(self.fd)


class FakeLog:
    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.did: list[Any] = []
        self.by_thread: list[bool] = []
        self.room = 1 << 20
        self.segment_count = 1
        self.error: BaseException | None = None
        self.write_s = 0.0
        self.notes = 0
        self._using = threading.Lock()
        self._begun = False

    def _use(self) -> None:
        assert self._using.acquire(blocking=False), "two are at the log"
        self._using.release()

    def append(self, group: int, hard_state: Any, entries: Sequence[Entry], *, snapshot: Any = None, reset_log: bool = False) -> None:  # fmt: skip  # noqa: E501
        self._use()
        self.did += [entry.index for entry in entries] + ([("mark", snapshot.index)] if snapshot else [])

    def sync(self, *, note: bool = True) -> None:
        with self._using:
            assert self.gate.wait(20)
            if self.error is not None:
                raise self.error
            self._begun = False
            self.did.append("sync")
            self.by_thread.append(threading.current_thread() is not threading.main_thread())

    def begin_sync(self, kernel: Any) -> bool:
        self._use()
        assert not self._begun
        if self.error is not None:
            raise self.error
        time.sleep(self.write_s)
        self._begun = True
        try:
            kernel.begin(7)
        except OSError:
            return False
        self.did.append("begin")
        return True

    def end_sync(self, code: int) -> None:
        self._use()
        assert self._begun
        self._begun = False
        if code:
            raise SyncFailed("EIO")
        self.did.append("end")

    def note_synced(self) -> None:
        self._use()
        assert not self._begun
        self.notes += 1

    def prepare_next(self) -> None: ...
    def release(self, group: int, index: int) -> None: ...
    def close(self) -> None: ...


class Never(Pause):
    """The machine that runs the tests may be slow."""

    def observe(self, seconds: float, waits: int, now: float) -> None: ...


class Bench:
    def __init__(self, kernel: bool) -> None:
        self.log = FakeLog()
        self.kernel = FakeKernel() if kernel else None
        self.synced: list[int] = []
        self.errors: list[BaseException] = []
        self.writer = LogWriter(
            self.log, 0, asyncio.get_running_loop(), lambda ticket, _: self.synced.append(ticket), self.errors.append,
            self.kernel,
        )  # fmt: skip
        self.writer._pause = Never()

    def put(self, *tickets: int, size: int = 1) -> None:
        self.writer.put([Persist(n, HardState(1, 1, 0), (Entry(1, n, 0, bytes(size)),)) for n in tickets])

    @property
    def the_kernel(self) -> FakeKernel:
        assert self.kernel is not None
        return self.kernel


def run(test: Callable[[Bench], Awaitable[None]], *, kernel: bool = True) -> None:
    threads = threading.active_count()

    async def main() -> None:
        bench = Bench(kernel)
        bench.writer.start()
        await asyncio.wait_for(test(bench), 30)
        bench.log.gate.set()
        bench.writer.stop()
        await asyncio.wait_for(asyncio.shield(bench.writer.ended), 20)
        bench.writer.close()
        assert bench.kernel is None or bench.kernel.closed

    asyncio.run(main())
    assert threading.active_count() == threads


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        await asyncio.sleep(0.001)


def test_nothing_is_durable_before_the_kernel_says_so_and_what_comes_meanwhile_is_the_next_batch() -> None:
    async def test(bench: Bench) -> None:
        bench.put(1)
        assert bench.writer.sync_began > 0
        bench.put(2, 3)
        bench.put(4)
        await asyncio.sleep(0.02)
        assert bench.log.did == [1, "begin"] and not bench.synced
        bench.the_kernel.end()
        await until(lambda: bench.synced == [1])
        assert bench.log.did == [1, "begin", "end", 2, 3, 4, "begin"], "the next sync begins before anybody is told"
        bench.the_kernel.end()
        await until(lambda: bench.synced == [1, 4])
        assert bench.writer.sync_began == 0 and bench.writer.kernel_syncs == 2
        await until(lambda: bench.log.notes)
        assert not bench.log.by_thread

    run(test)


def test_without_a_kernel_the_thread_does_it_all() -> None:
    async def test(bench: Bench) -> None:
        bench.put(1)
        await until(lambda: bench.synced == [1])
        assert bench.log.by_thread == [True] and bench.writer.kernel_syncs == 0

    run(test, kernel=False)


def test_what_waits_for_the_thread_comes_first() -> None:
    """Else the log would have the later entries before the earlier ones."""

    async def test(bench: Bench) -> None:
        bench.log.gate.clear()
        bench.put(1, size=BATCH_BYTES_MAX)
        await until(lambda: bench.log.did == [1])
        bench.put(2)
        await asyncio.sleep(0.02)
        assert bench.log.did == [1] and not bench.the_kernel.begun
        bench.log.gate.set()
        await until(lambda: bench.synced == [1])
        assert bench.log.did == [1, "sync", 2, "begin"], "as soon as the thread is idle, it is the kernel's turn again"
        bench.the_kernel.end()
        await until(lambda: bench.synced == [1, 2])

    run(test)


@pytest.mark.parametrize("what", ["large", "no room", "mark", "slow write"])
def test_what_may_take_long_is_the_threads(what: str) -> None:
    async def test(bench: Bench) -> None:
        if what == "slow write":
            bench.writer._pause = Pause()
            bench.log.write_s = 2 * SLOW_WRITE_S
            bench.put(1)
            bench.the_kernel.end()
            await until(lambda: bench.synced == [1])
            begun = 1
            bench.put(2)
        else:
            begun = 0
            bench.log.room = 300 if what == "no room" else 1 << 30
            mark = SnapshotMeta(1, 1, Configuration.of_voters(1), 1, b"d" * 32) if what == "mark" else None
            size = BATCH_BYTES_MAX if what == "large" else 1
            bench.writer.put([Persist(2, HardState(1, 1, 0), (Entry(1, 2, 0, bytes(size)),), mark)])
        await until(lambda: bench.synced and bench.synced[-1] == 2)
        assert bench.log.by_thread == [True] and bench.the_kernel.begun == begun

    run(test)


def test_a_sync_that_the_kernel_does_not_take_is_ended_by_the_thread() -> None:
    async def test(bench: Bench) -> None:
        bench.the_kernel.refuses = True
        bench.put(1)
        bench.put(2)
        await until(lambda: bench.synced and bench.synced[-1] == 2)
        assert bench.log.did == [1, "sync", 2, "sync"] and all(bench.log.by_thread)

    run(test)


@pytest.mark.parametrize("when", ["write", "sync", "note", "thread"])
def test_an_error_is_told_once_and_the_log_is_left_alone(when: str) -> None:
    async def test(bench: Bench) -> None:
        if when == "write":
            bench.log.error = SyncFailed("EIO")
            bench.put(1)
        elif when == "thread":
            bench.log.gate.clear()
            bench.put(1, size=BATCH_BYTES_MAX)
            bench.put(2)
            bench.log.error = SyncFailed("EIO")
            bench.log.gate.set()
        else:
            bench.put(1)
            bench.put(2)
            if when == "note":
                bench.log.note_synced = failing  # type: ignore[method-assign]
                bench.writer._unnoted = 1000
            bench.the_kernel.end(errno.EIO if when == "sync" else 0)
        await until(lambda: bench.errors)
        did = list(bench.log.did)
        bench.put(3)
        await asyncio.sleep(0.05)
        assert len(bench.errors) == 1 and isinstance(bench.errors[0], SyncFailed)
        assert bench.log.did == did and not bench.synced

    def failing() -> None:
        raise SyncFailed("EIO")

    run(test)


def test_stopping_waits_for_what_was_put() -> None:
    async def test(bench: Bench) -> None:
        bench.put(1)
        bench.put(2)
        bench.writer.stop()
        await asyncio.sleep(0.02)
        assert not bench.writer.ended.done()
        bench.the_kernel.end()
        await until(lambda: bench.synced == [1])
        assert not bench.writer.ended.done()
        bench.the_kernel.end()
        await bench.writer.ended
        assert bench.synced == [1, 2]

    run(test)


def test_a_disk_that_is_slow_again_and_again_is_left_alone_for_longer_and_longer() -> None:
    pause = Pause()
    assert pause.over(0.0)
    pause.observe(SLOW_WRITE_S / 2, 1, 9.0)
    assert pause.over(9.0)
    pause.observe(100 * SLOW_WRITE_S, 0, 9.0)
    assert pause.over(9.0), "it was the processor that it waited for"
    pause.observe(SLOW_WRITE_S, 1, 10.0)
    assert not pause.over(10.0 + 0.9 * PAUSE_S) and pause.over(10.0 + PAUSE_S)
    pause.observe(SLOW_WRITE_S, 1, 10.5 + PAUSE_S)
    assert not pause.over(10.5 + 2.9 * PAUSE_S) and pause.over(10.5 + 3 * PAUSE_S)
    pause.observe(SLOW_WRITE_S, 1, 100.0)
    assert pause.over(100.0 + PAUSE_S), "a long time without one forgives"
