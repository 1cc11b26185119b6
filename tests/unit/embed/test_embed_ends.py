"""How a node ends, and what then becomes of those who wait: closed, cancelled, interrupted, never started."""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from oarlock import (
    ConfigurationError,
    Node,
    NoLeader,
    Outcome,
    RaftError,
    StateMachine,
    Unencodable,
    command,
    query,
    sync,
)
from oarlock.embed.collections import ReplicatedDict, ReplicatedQueue
from oarlock.embed.locks import Barrier, Lock, Semaphore
from oarlock.embed.tools import RateLimiter

pytestmark = pytest.mark.timeout(120)
FREE = Callable[[int], list[str]]


class Parts(StateMachine):
    def __init__(self) -> None:
        self.value = 0
        self.queue: ReplicatedQueue[bytes] = ReplicatedQueue()
        self.lock = Lock()
        self.semaphore = Semaphore(1)
        self.barrier = Barrier(2)
        self.rate = RateLimiter(10, 1)
        self.dict: ReplicatedDict[str, int] = ReplicatedDict()

    @command
    def add(self, n: int = 1) -> int:
        self.value += n
        return self.value

    @query
    def get(self) -> int:
        return self.value


class Blocking(sync.StateMachine):
    def __init__(self) -> None:
        self.value = 0
        self.queue: sync.ReplicatedQueue[bytes] = sync.ReplicatedQueue()

    @sync.command
    def add(self, n: int = 1) -> int:
        self.value += n
        return self.value

    @sync.query
    def get(self) -> int:
        return self.value


def lonely(tmp_path: Path, free_addresses: FREE) -> dict[str, Any]:
    """A member of three whose others are not there: it never has a leader."""
    addresses = free_addresses(3)
    return {"peers": dict(zip(("n1", "n2", "n3"), addresses, strict=True)), "data_dir": tmp_path / "n1"}


def tasks() -> set[asyncio.Task[Any]]:
    return asyncio.all_tasks() - {asyncio.current_task()}  # type: ignore[arg-type]


async def test_who_waits_for_a_part_is_told_when_the_node_closes(tmp_path: Path) -> None:
    async with Node(Parts(), data_dir=tmp_path) as node:
        await node.ready(60)
        machine = node.machine
        taken = await machine.lock.acquire()

        async def observe() -> None:
            async for _ in machine.dict.changes():
                pass

        waiting = [
            asyncio.create_task(work)  # type: ignore[arg-type]
            for work in (machine.queue.get(), machine.lock.acquire(), machine.barrier.wait(), observe())
        ]
        while await machine.barrier.waiting() < 1 or len(await machine.lock.waiting()) < 1:
            await asyncio.sleep(0.01)
    done, pending = await asyncio.wait(waiting, timeout=30)
    assert not pending
    for task in done:
        assert isinstance(task.exception(), RaftError), task
    assert not taken.valid
    del taken


async def test_a_call_that_repeats_itself_ends_with_the_node(tmp_path: Path, free_addresses: FREE) -> None:
    node = await Node(Parts(), "n1", **lonely(tmp_path, free_addresses)).start()
    call = asyncio.ensure_future(node.machine.add.options(retry_safe=True)(1))
    await asyncio.sleep(0.05)
    await node.aclose(timeout=0.2)
    with pytest.raises(RaftError) as error:
        await asyncio.wait_for(call, 30)
    assert error.value.outcome in (Outcome.NOT_EXECUTED, Outcome.UNKNOWN)


async def test_a_command_that_is_too_large_is_refused_and_not_repeated(tmp_path: Path) -> None:
    async with Node(Parts(), data_dir=tmp_path) as node:
        await node.ready(60)
        huge = bytes(70 << 20)
        for call in (node.machine.queue.put, node.machine.queue.put.options(retry_safe=True)):
            with pytest.raises(Unencodable, match=r"put is \d+ bytes.*COMMAND_BYTES_MAX"):
                await asyncio.wait_for(asyncio.ensure_future(call(huge)), 60)


async def test_work_for_the_leader_that_is_no_coroutine_is_told_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls = 0
    done = asyncio.Event()

    def plain(token: int) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise OSError("at once")
        if calls == 2:
            return None

        async def work() -> None:
            done.set()

        return work()

    async with Node(Parts(), data_dir=tmp_path) as node:
        node.on_leader(plain)
        await asyncio.wait_for(done.wait(), 60)
    assert "at once" in caplog.text and "coroutine" in caplog.text


async def test_closing_does_not_wait_for_work_that_ignores_it(tmp_path: Path) -> None:
    begun, told, end = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def stubborn(token: int) -> None:
        begun.set()
        while not end.is_set():
            try:
                await end.wait()
            except asyncio.CancelledError:
                told.set()

    node = await Node(Parts(), data_dir=tmp_path).start()
    node.on_leader(stubborn)
    await begun.wait()
    await asyncio.wait_for(node.aclose(timeout=0.5), 30)
    assert told.is_set()
    end.set()
    async with Node(Parts(), data_dir=tmp_path) as again:
        await again.ready(60)


async def test_a_node_can_be_made_again_after_a_mistake(tmp_path: Path) -> None:
    machine = Parts()
    with pytest.raises(ConfigurationError):
        Node(machine, "", data_dir=tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = Node(machine, data_dir=tmp_path / "busy", listen=f"127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(ConfigurationError):
            await busy.start()
    async with Node(machine, data_dir=tmp_path) as node:
        assert await node.machine.add(1) == 1


async def test_cancelled_at_any_moment_a_start_leaves_nothing(tmp_path: Path) -> None:
    before = threading.active_count(), len(os.listdir("/proc/self/fd"))
    machine = Parts()
    for steps in (0, 1, 2, 3, 5, 8, 13, 21):
        node = Node(machine, data_dir=tmp_path)
        starting = asyncio.create_task(node.start())
        for _ in range(steps):
            await asyncio.sleep(0)
        starting.cancel()
        with suppress(asyncio.CancelledError):
            await starting
        await node.aclose()
    async with Node(machine, data_dir=tmp_path) as node:
        assert await node.machine.add(1) == 1
    assert not tasks()
    gc.collect()
    assert (threading.active_count(), len(os.listdir("/proc/self/fd"))) <= (before[0], before[1] + 1)


async def test_closed_while_it_starts(tmp_path: Path) -> None:
    node = Node(Parts(), data_dir=tmp_path)
    starting = asyncio.create_task(node.start())
    await asyncio.sleep(0)
    await node.aclose()
    with pytest.raises(RuntimeError, match="closed"):
        await starting
    assert not tasks()
    async with Node(Parts(), data_dir=tmp_path) as again:
        assert await again.machine.add(1) == 1


async def test_a_close_that_is_cancelled_goes_on(tmp_path: Path, free_addresses: FREE) -> None:
    node = await Node(Parts(), "n1", **lonely(tmp_path, free_addresses)).start()
    call = asyncio.ensure_future(node.machine.add(1))
    closing = asyncio.create_task(node.aclose(timeout=0.5))
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await asyncio.gather(node.aclose(), node.aclose())
    with pytest.raises(RaftError):
        await call
    assert not tasks()
    async with Node(Parts(), data_dir=tmp_path / "other") as again:
        assert await again.machine.add(1) == 1


@pytest.mark.parametrize("seconds", [math.nan, "1", None])
async def test_a_time_limit_is_a_number(tmp_path: Path, seconds: Any) -> None:
    async with Node(Parts(), data_dir=tmp_path) as node:
        await node.ready(60)
        machine = node.machine
        if seconds is None:
            assert await machine.add.options(timeout=math.inf)(1) == 1
            assert await machine.get.options(timeout=1e12)() == 1
            await node.ready(math.inf)
            return
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: machine.add.options(timeout=seconds)(1), lambda: machine.get.options(timeout=seconds)(),
            lambda: machine.queue.get(seconds), lambda: machine.queue.put_wait(b"", seconds),
            lambda: machine.lock.acquire(seconds), lambda: machine.barrier.wait(seconds),
            lambda: machine.rate.acquire(1, seconds), lambda: node.ready(seconds), lambda: node.aclose(timeout=seconds),
        ]  # fmt: skip
        for call in calls:
            with pytest.raises((ValueError, TypeError), match=r"seconds"):
                await asyncio.ensure_future(call())  # type: ignore[arg-type]
        assert await machine.add(1) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        {"election_timeout": math.nan}, {"election_timeout": math.inf}, {"heartbeat": math.nan}, {"timeout": math.inf},
        {"timeout": math.nan}, {"lease_ttl": math.inf}, {"lease_ttl": 100_000.0}, {"lease_ttl": math.nan},
        {"snapshot_entries": 0}, {"snapshot_entries": 1.5},
    ],
)  # fmt: skip
def test_numbers_that_cannot_be(tmp_path: Path, arguments: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(arguments))):
        Node(Parts(), data_dir=tmp_path, **arguments)


# ------------------------------------------------------------------ threads


def ends_of(calls: list[Callable[[], object]]) -> tuple[list[threading.Thread], list[BaseException]]:
    ends: list[BaseException] = []

    def run(call: Callable[[], object]) -> None:
        try:
            call()
        except BaseException as error:
            ends.append(error)

    threads = [threading.Thread(target=run, args=(call,), daemon=True) for call in calls]
    for thread in threads:
        thread.start()
    return threads, ends


def test_close_frees_every_thread_that_waits(tmp_path: Path, free_addresses: FREE) -> None:
    node = sync.Node(Blocking(), "n1", **lonely(tmp_path, free_addresses)).start()
    machine = node.machine
    threads, ends = ends_of([
        lambda: machine.add(1), lambda: machine.add.options(retry_safe=True)(1), machine.get,
        lambda: machine.queue.get(), lambda: node.ready(), lambda: node.transfer("n2"),
    ])  # fmt: skip
    time.sleep(0.2)
    closing, _ = ends_of([lambda: node.close(timeout=0.5)] * 3)
    for thread in [*threads, *closing]:
        thread.join(60)
        assert not thread.is_alive()
    assert len(ends) == len(threads) and all(isinstance(error, RaftError | RuntimeError) for error in ends), ends


def test_calls_racing_with_close_end(tmp_path: Path) -> None:
    for n in range(5):
        node = sync.Node(Blocking(), data_dir=tmp_path / str(n)).start()
        node.ready(60)
        stop = threading.Event()

        def hammer(node: sync.Node[Blocking] = node, stop: threading.Event = stop) -> None:
            while not stop.is_set():
                node.machine.add(1)
                node.machine.get()

        threads, ends = ends_of([hammer] * 4)
        time.sleep(0.05)
        node.close()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()
        assert all(isinstance(error, RaftError | RuntimeError) for error in ends), ends


def test_a_time_limit_in_threads(tmp_path: Path) -> None:
    with sync.Node(Blocking(), data_dir=tmp_path) as node:
        node.ready(60)
        for seconds in (math.nan, "1"):
            for method in (node.machine.add, node.machine.get):
                with pytest.raises((ValueError, TypeError), match="seconds"):
                    method.options(timeout=seconds)  # type: ignore[arg-type]
        assert node.machine.add.options(timeout=math.inf)(1) == 1
        assert node.machine.add.options(timeout=1e12)(1) == 2
        assert node.machine.get.options(timeout=math.inf)() == 2
        with pytest.raises(RaftError):
            node.machine.add.options(timeout=-1)(1)
            node.machine.add.options(timeout=0)(1)


def test_control_c_during_the_start_leaves_the_directory_free(tmp_path: Path) -> None:
    addresses = {"listen": "127.0.0.1:1", "join": ["127.0.0.1:2"]}
    node = sync.Node(Blocking(), data_dir=tmp_path, **addresses)  # type: ignore[arg-type]
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        node.start()
    assert threading.active_count() <= before
    node.close()
    with sync.Node(Blocking(), data_dir=tmp_path) as again:
        assert again.machine.add(1) == 1


def test_nothing_is_logged_by_a_node_that_closes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        with sync.Node(Blocking(), data_dir=tmp_path) as node:
            threads, _ = ends_of([lambda: node.machine.queue.get()])
            node.machine.add(1)
        for thread in threads:
            thread.join(60)
        gc.collect()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR], caplog.text


async def test_a_caller_that_gives_up_takes_no_item_with_it(tmp_path: Path) -> None:
    """Whenever it is cancelled: what it would have got is the next one's, in the old order."""
    async with Node(Parts(), data_dir=tmp_path) as node:
        await node.ready(60)
        queue = node.machine.queue
        items = [b"%d" % n for n in range(3)]
        for item in items:
            await queue.put(item)

        async def work() -> None:
            async with queue.task():
                await asyncio.sleep(60)

        for steps in range(12):
            for begin in (lambda: asyncio.ensure_future(queue.get()), lambda: asyncio.create_task(work())):
                task = begin()
                for _ in range(steps):
                    await asyncio.sleep(0)
                if task.done():
                    await queue.put_back((1, task.result()))
                    continue
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
                async with asyncio.timeout(60):
                    while node.calls._background:
                        await asyncio.sleep(0.001)
                assert await queue.length() == len(items)
                assert await queue.in_work() == 0
        assert [await queue.get() for _ in items] == items


async def test_a_turn_that_its_caller_does_not_take_is_the_next_ones() -> None:
    from oarlock.embed.calls import Session
    from oarlock.node.replica.sessions import WINDOW_MAX

    session = Session(None)  # type: ignore[arg-type]
    first = [await session.take() for _ in range(WINDOW_MAX)]
    waiting = [asyncio.create_task(session.take()) for _ in range(3)]
    await asyncio.sleep(0)
    session.give_back(first[0])
    waiting[0].cancel()  # in the same moment: its turn has come, and it does not know yet
    session.give_back(first[1])
    await asyncio.wait(waiting, timeout=30)
    assert [task.cancelled() for task in waiting] == [True, False, False]


async def test_why_there_is_no_leader_is_said_to_the_caller(tmp_path: Path, free_addresses: FREE) -> None:
    """A library configures no logging, so what the log says of lists of peers that differ nobody would see."""
    first, second, third = free_addresses(3)
    whole = {"n1": first, "n2": second, "n3": third}
    async with (
        Node(Parts(), "n1", peers=whole, data_dir=tmp_path / "1") as one,
        Node(Parts(), "n2", peers={"n1": first, "n2": second}, data_dir=tmp_path / "2"),
    ):
        async with asyncio.timeout(60):
            while True:
                with pytest.raises(NoLeader, match=r"are a majority of n1, n2, n3 running") as error:
                    await one.ready(0.3)
                if "n2: it refused us" in str(error.value) and "check the peer URLs, the initial cluster" in str(
                    error.value
                ):
                    break
