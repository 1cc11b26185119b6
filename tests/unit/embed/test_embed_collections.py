"""Collections, numbers, rates and schedules on real members."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from oarlock import (
    DeadlineExceeded,
    IdGenerator,
    LeasedDict,
    LeaseLost,
    Node,
    QueueFull,
    RateLimiter,
    ReplicatedCounter,
    ReplicatedDict,
    ReplicatedList,
    ReplicatedPriorityQueue,
    ReplicatedQueue,
    ReplicatedSet,
    Schedule,
    StateMachine,
)
from oarlock.machines.base import Context
from oarlock.machines.objects.machine import END, ObjectMachine
from oarlock.sync import Node as SyncNode

pytestmark = pytest.mark.slow  # three real members for nearly every test

FREE = Callable[[int], list[str]]
STEADY_S = 5.0  # so that a busy machine does not change who leads


class App(StateMachine):
    def __init__(self) -> None:
        self.dict: ReplicatedDict[str, int] = ReplicatedDict()
        self.set: ReplicatedSet[str] = ReplicatedSet()
        self.list: ReplicatedList[str] = ReplicatedList()
        self.counter = ReplicatedCounter()
        self.queue: ReplicatedQueue[str] = ReplicatedQueue(maxsize=3)
        self.heap: ReplicatedPriorityQueue[str] = ReplicatedPriorityQueue()
        self.ids = IdGenerator()
        self.rate = RateLimiter(rate=100, burst=5)
        self.schedule = Schedule()
        self.services: LeasedDict[str, str] = LeasedDict()


@asynccontextmanager
async def apps(free: FREE, path: Path, count: int = 3) -> AsyncIterator[list[Node[App]]]:
    names = [f"n{n + 1}" for n in range(count)]
    peers = dict(zip(names, free(count), strict=True))
    async with AsyncExitStack() as stack:
        nodes = [
            Node(App(), name, peers=peers, data_dir=path / name, timeout=60, lease_ttl=60, election_timeout=STEADY_S)
            for name in names
        ]
        for node in nodes:
            await stack.enter_async_context(node)
        await nodes[0].ready(120)
        yield nodes


async def test_a_dictionary(tmp_path: Path, free_addresses: FREE) -> None:
    async with apps(free_addresses, tmp_path) as nodes:
        one, two, _ = (node.machine.dict for node in nodes)
        await one.set("a", 1)
        await two.update({"b": 2, "c": 3})
        assert await one.copy() == {"a": 1, "b": 2, "c": 3}
        assert await two.setdefault("a", 9) == 1 and await two.setdefault("d", 4) == 4
        assert await one.pop("d") == 4 and await one.pop("d") is None and await one.pop("d", 7) == 7
        assert await one.delete("c") and not await one.delete("c")
        assert await one.compare_and_set("a", 1, 10) and not await one.compare_and_set("a", 1, 11)
        assert await one.compare_and_set("new", None, 5)
        assert not await one.compare_and_delete("new", 4) and await one.compare_and_delete("new", 5)
        assert await one.increment("n") == 1 and await one.increment("n", by=4) == 5
        assert await two.get("zz") is None and await two.get("zz", 8) == 8 and await two.contains("a")
        assert await two.keys() == ["a", "b", "n"] and await two.values() == [10, 2, 5]
        assert await two.items() == [("a", 10), ("b", 2), ("n", 5)] and await two.length() == 3
        with pytest.raises(TypeError):
            await one.increment("a", by="x")  # type: ignore[arg-type]
        await two.clear()
        assert await one.length() == 0


async def test_changes_of_a_dictionary_are_seen_elsewhere(tmp_path: Path, free_addresses: FREE) -> None:
    async with apps(free_addresses, tmp_path) as nodes:
        changes = nodes[1].machine.dict.changes()
        assert await anext(changes) == {}
        for n in range(3):
            await nodes[0].machine.dict.set("n", n)
            assert await asyncio.wait_for(anext(changes), 120) == {"n": n}
        await changes.aclose()  # type: ignore[attr-defined]


async def test_a_set_a_list_and_a_counter(tmp_path: Path, free_addresses: FREE) -> None:
    async with apps(free_addresses, tmp_path, 1) as [node]:
        words = node.machine.set
        assert await words.add("a") and not await words.add("a")
        assert await words.update(["b", "c", "a"]) == 2
        assert await words.discard("b") and not await words.discard("b")
        assert await words.copy() == {"a", "c"} and await words.contains("c") and await words.length() == 2
        assert await words.pop() == "a" and await words.pop() == "c" and await words.pop() is None
        lines = node.machine.list
        assert await lines.append("x") == 1 and await lines.extend(["y", "z"]) == 3
        await lines.insert(0, "w")
        assert await lines.set(1, "X") == "x"
        assert await lines.copy() == ["w", "X", "y", "z"] and await lines.slice(1, 3) == ["X", "y"]
        assert await lines.pop() == "z" and await lines.get(0) == "w" and await lines.length() == 3
        assert await lines.remove("w") and not await lines.remove("w")
        for call in (lines.get(9), lines.pop(9), lines.set(9, "q")):
            with pytest.raises(IndexError):
                await call
        counter = node.machine.counter
        assert await counter.add() == 1 and await counter.add(4) == 5 and await counter.set(7) == 5
        assert await counter.compare_and_set(7, 8) and not await counter.compare_and_set(7, 9)
        assert await counter.value() == 8
        await words.clear()
        await lines.clear()
        assert await lines.length() == 0


async def test_an_item_of_a_queue_goes_to_one_caller(tmp_path: Path, free_addresses: FREE) -> None:
    async with apps(free_addresses, tmp_path) as nodes:
        got: list[str] = []

        async def consume(node: Node[App]) -> None:
            while (item := await node.machine.queue.get(timeout=60)) != "end":
                got.append(item)

        consumers = [asyncio.create_task(consume(node)) for node in nodes]
        for n in range(40):
            await nodes[n % 3].machine.queue.put_wait(f"item {n}", timeout=60)
        for _ in consumers:
            await nodes[0].machine.queue.put_wait("end", timeout=60)
        await asyncio.gather(*consumers)
        assert sorted(got) == sorted(f"item {n}" for n in range(40))
        with pytest.raises(DeadlineExceeded, match="had nothing"):
            await nodes[0].machine.queue.get(timeout=0.05)
        assert await nodes[0].machine.queue.poll() is None


async def test_a_full_queue_says_so(tmp_path: Path, free_addresses: FREE) -> None:
    async with apps(free_addresses, tmp_path, 1) as [node]:
        queue = node.machine.queue
        for n in range(3):
            await queue.put(str(n))
        with pytest.raises(QueueFull):
            await queue.put("3")
        with pytest.raises(DeadlineExceeded, match="was full"):
            await queue.put_wait("3", timeout=0.05)
        waiting = asyncio.ensure_future(queue.put_wait("3"))
        assert await queue.get() == "0"
        await waiting
        assert await queue.length() == 3


async def test_a_task_comes_back_when_its_worker_fails_or_ends(tmp_path: Path, free_addresses: FREE) -> None:
    async with apps(free_addresses, tmp_path) as nodes:
        queue = nodes[0].machine.queue
        await queue.put("a")
        await queue.put("b")
        with pytest.raises(ZeroDivisionError):
            async with queue.task() as item:
                assert item == "a"
                assert (await queue.in_work(), await queue.length()) == (1, 1)
                raise ZeroDivisionError
        async with nodes[1].machine.queue.task() as item:
            assert item == "a", "it is the first again"
        with pytest.raises(LeaseLost, match="came back"):
            async with nodes[1].machine.queue.task() as item:
                assert item == "b"
                calls = nodes[1].calls
                assert calls.holders is not None
                holder = await calls.holders.holder()
                await calls.propose(calls.machine.codec.encode([END, [holder.name]]))
        assert await queue.get() == "b"
        with pytest.raises(DeadlineExceeded):
            async with queue.task(timeout=0.05):
                pytest.fail("there is nothing")


async def test_a_priority_queue_gives_the_lowest_number_first(tmp_path: Path, free_addresses: FREE) -> None:
    async with apps(free_addresses, tmp_path, 1) as [node]:
        heap = node.machine.heap
        for item, priority in (("late", 5), ("first", 1), ("second", 1), ("middle", 3)):
            await heap.put_wait(item, priority)
        with pytest.raises(ZeroDivisionError):
            async with heap.task() as item:
                assert item == "first"
                raise ZeroDivisionError
        assert [await heap.get() for _ in range(4)] == ["first", "second", "middle", "late"]


async def test_numbers_are_never_given_twice(tmp_path: Path, free_addresses: FREE) -> None:
    async with apps(free_addresses, tmp_path) as nodes:
        plain = await asyncio.gather(*(node.machine.ids.next() for node in nodes for _ in range(10)))
        fast = await asyncio.gather(*(node.machine.ids.fast_next(block=7) for node in nodes for _ in range(20)))
        assert sorted(plain) == list(range(1, 31))
        assert len({*plain, *fast}) == 90
        with pytest.raises(ValueError, match="at least 1"):
            await nodes[0].machine.ids.reserve(0)


def rate_machine() -> tuple[ObjectMachine, Callable[..., Any]]:
    machine = ObjectMachine(RateLimiter(rate=10, burst=5))
    index = 0

    def call(at_s: float, *args: Any) -> Any:
        nonlocal index
        index += 1
        data = machine.encode_call("", RateLimiter.try_acquire, args, {})
        [result] = machine.apply(Context(index, 1, int(at_s * 1e9)), [data])
        assert isinstance(result, bytes)
        return machine.decode_outcome(result)

    return machine, call


def test_a_rate_follows_the_log_s_clock() -> None:
    _, call = rate_machine()
    assert [call(100.0) for _ in range(5)] == [0.0] * 5
    assert call(100.0) == pytest.approx(0.1)
    assert call(100.1) == 0.0
    assert call(100.1, 3) == pytest.approx(0.3)
    assert call(50.0) == pytest.approx(0.1), "a clock that goes back gives nothing"
    assert [call(10_000.0) for _ in range(6)][:5] == [0.0] * 5, "at most one burst after a long time"
    assert call(10_000.0) > 0
    with pytest.raises(ValueError, match="at most the burst"):
        call(10_000.0, 6)
    with pytest.raises(ValueError, match="rate must be positive"):
        RateLimiter(0, 1)


async def test_whoever_exceeds_the_rate_waits(tmp_path: Path, free_addresses: FREE) -> None:
    async with apps(free_addresses, tmp_path, 1) as [node]:
        for _ in range(8):
            await node.machine.rate.acquire(timeout=120)
        await node.machine.rate.try_acquire(5)
        with pytest.raises(DeadlineExceeded, match="100 a second"):
            for _ in range(100):
                await node.machine.rate.acquire(5, timeout=0.01)


async def test_a_job_is_done_by_one_member_each_time(tmp_path: Path, free_addresses: FREE) -> None:
    async with apps(free_addresses, tmp_path) as nodes:
        done: list[str] = []
        running = []
        for node in nodes:

            async def work(name: str = node.name) -> None:
                done.append(name)

            async def broken() -> None:
                raise ZeroDivisionError

            node.machine.schedule.every(0.2, "job", work)
            node.machine.schedule.every(0.2, "broken", broken)
            running.append(asyncio.create_task(node.machine.schedule.run()))
        with pytest.raises(ValueError, match="a job 'job' already"):
            nodes[0].machine.schedule.every(1, "job", work)
        while len(done) < 5:
            await asyncio.sleep(0.01)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        slots = nodes[0].machine.schedule
        assert slots.last["job"] >= 4


def test_a_time_is_taken_once_and_done_again_only_if_asked() -> None:
    schedule = Schedule()
    machine = ObjectMachine(schedule)
    index = 0

    def call(declared: Any, *args: Any) -> Any:
        nonlocal index
        index += 1
        [result] = machine.apply(Context(index, 1, 0), [machine.encode_call("", declared, args, {})])
        assert isinstance(result, bytes)
        return machine.decode_outcome(result)

    for holder in ("a", "b"):
        index += 1
        machine.apply(Context(index, 1, 0), [machine.codec.encode(["$renew", [holder, 10**10, True]])])
    assert call(Schedule.claim, "job", 5, "a") == 5
    assert call(Schedule.claim, "job", 6, "b") == -1, "it is still at work"
    assert not call(Schedule.finished, "job", "b") and call(Schedule.finished, "job", "a")
    assert call(Schedule.claim, "job", 5, "b") == -1, "it was done"
    assert call(Schedule.claim, "job", 6, "a") == 6
    index += 1
    machine.apply(Context(index, 1, 0), [machine.codec.encode(["$end", ["a"]])])
    assert call(Schedule.claim, "job", 6, "b") == -1, "lost, unless it is asked for again"
    assert call(Schedule.claim, "job", 7, "b", True) == 6, "the time that was lost comes first"


async def test_services_are_there_as_long_as_their_members(tmp_path: Path, free_addresses: FREE) -> None:
    async with apps(free_addresses, tmp_path) as nodes:
        one, two, three = (node.machine.services for node in nodes)
        changes = three.changes()
        assert await anext(changes) == {}
        assert await one.register("web", "10.0.0.1") and not await two.register("web", "10.0.0.2")
        assert await two.register("db", "10.0.0.2")
        while await asyncio.wait_for(anext(changes), 120) != {"web": "10.0.0.1", "db": "10.0.0.2"}:
            pass
        assert await two.unregister("db") and not await two.unregister("web")
        await nodes[0].aclose()
        while await asyncio.wait_for(anext(changes), 120) != {}:
            pass
        assert await two.get("web") is None
        await changes.aclose()  # type: ignore[attr-defined]


def test_collections_for_threads(tmp_path: Path) -> None:
    with SyncNode(App(), data_dir=tmp_path / "n1", lease_ttl=60) as node:
        app: Any = node.machine
        app.dict.set("a", 1)
        assert app.dict.get("a") == 1
        app.queue.put("x")
        assert app.queue.get(timeout=60) == "x"
        assert app.ids.fast_next() == 1
        assert app.services.register("web", "here") is True
