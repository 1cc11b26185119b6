"""Locks and what is built like them, on real members; what happens when a holder is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from oarlock import (
    Barrier,
    DeadlineExceeded,
    Election,
    LeaseLost,
    Lock,
    Node,
    NotAttached,
    RWLock,
    Semaphore,
    StateMachine,
)
from oarlock.machines.objects.machine import END
from oarlock.sync import Node as SyncNode

pytestmark = pytest.mark.slow  # three real members for nearly every test

FREE = Callable[[int], list[str]]
STEADY_S = 5.0  # so that a busy machine does not change who leads


class App(StateMachine):
    def __init__(self) -> None:
        self.lock = Lock()
        self.rw = RWLock()
        self.two = Semaphore(2)
        self.barrier = Barrier(3)
        self.election: Election[str] = Election()


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


async def test_a_lock_is_held_by_one_in_the_order_of_asking(tmp_path: Path, free_addresses: FREE) -> None:
    async with apps(free_addresses, tmp_path) as nodes:
        inside, most, tokens = 0, 0, []

        async def work(node: Node[App]) -> None:
            nonlocal inside, most
            for _ in range(4):
                async with node.machine.lock as held:
                    inside += 1
                    most = max(most, inside)
                    tokens.append(held.token)
                    assert held.valid
                    await asyncio.sleep(0.002)
                    inside -= 1

        await asyncio.gather(*(work(node) for node in nodes for _ in range(3)))
        assert most == 1 and len(tokens) == 36
        assert tokens == sorted(tokens) and len(set(tokens)) == 36, "whoever is later has the greater token"
        assert await nodes[0].machine.lock.owner() == ""


async def test_waiting_can_end_without_the_lock(tmp_path: Path, free_addresses: FREE) -> None:
    async with apps(free_addresses, tmp_path, 1) as [node]:
        lock = node.machine.lock
        held = await lock.acquire()
        assert await lock.try_acquire() is None
        with pytest.raises(DeadlineExceeded, match="nothing is held"):
            await lock.acquire(timeout=0.05)
        with pytest.raises(DeadlineExceeded):
            async with lock.holding(timeout=0.05):
                pytest.fail("it is held")
        waiting = asyncio.create_task(lock.acquire())
        while not await lock.waiting():
            await asyncio.sleep(0.005)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        while await lock.waiting():
            await asyncio.sleep(0.005)
        assert [claim.token for claim in await lock.granted()] == [held.token]
        await held.release()
        await held.release()
        second = await lock.try_acquire()
        assert second is not None and second.token > held.token
        assert not held.valid and second.valid


async def test_a_body_that_lost_its_lock_is_cancelled(tmp_path: Path, free_addresses: FREE) -> None:
    async with apps(free_addresses, tmp_path, 1) as [node]:
        lock = node.machine.lock
        reached = False
        with pytest.raises(LeaseLost, match="Fence what it wrote"):
            async with lock as held:
                await node.calls.propose(node.calls.machine.codec.encode([END, [held.holder.name]]))
                await asyncio.sleep(60)
                reached = True
        assert not reached
        async with lock as again:
            assert again.token > held.token and again.holder is not held.holder
        task = asyncio.current_task()
        assert task is not None and task.cancelling() == 0


async def test_a_holder_that_cannot_renew_counts_itself_as_lost_in_time(tmp_path: Path, free_addresses: FREE) -> None:
    """The other members are gone: nothing can be renewed. The body ends by this member's own clock."""
    peers = dict(zip(("n1", "n2"), free_addresses(2), strict=True))
    other = Node(App(), "n2", peers=peers, data_dir=tmp_path / "n2", timeout=60)
    async with Node(App(), "n1", peers=peers, data_dir=tmp_path / "n1", timeout=60, lease_ttl=5) as node:
        await other.start()
        await node.ready(120)
        with pytest.raises(LeaseLost):
            async with node.machine.lock as held:
                await other.aclose()
                assert held.valid
                await asyncio.sleep(60)
        assert not held.valid


async def test_what_a_dead_member_held_is_free_after_its_time(tmp_path: Path, free_addresses: FREE) -> None:
    names = ("n1", "n2", "n3")
    peers = dict(zip(names, free_addresses(3), strict=True))
    nodes = [Node(App(), name, peers=peers, data_dir=tmp_path / name, timeout=60, lease_ttl=3) for name in names]
    async with AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(node)
        await nodes[0].ready(120)
        victim = next(node for node in nodes if not node.is_leader)
        alive = next(node for node in nodes if node is not victim)
        held = await victim.machine.lock.acquire()
        await held.holder.aclose(tell=False)  # it renews no more, as if its process had died
        second = await alive.machine.lock.acquire(timeout=120)
        assert second.token > held.token
        assert not held.valid


async def test_closing_a_node_frees_what_it_holds_at_once(tmp_path: Path, free_addresses: FREE) -> None:
    async with apps(free_addresses, tmp_path) as nodes:
        await nodes[1].machine.lock.acquire()
        waiting = asyncio.create_task(nodes[0].machine.lock.acquire())
        await asyncio.sleep(0.05)
        await nodes[1].aclose()
        assert (await asyncio.wait_for(waiting, 50)).valid, "not after lease_ttl, which is a minute here"


async def test_a_claim_of_a_caller_that_is_gone_is_given_up(tmp_path: Path, free_addresses: FREE) -> None:
    """Cancelled while the command is under way, in every way to ask."""
    async with apps(free_addresses, tmp_path) as nodes:
        other = next(node for node in nodes if not node.is_leader)
        for ask in (other.machine.lock.acquire, other.machine.lock.try_acquire, other.machine.barrier.wait):
            await (await other.machine.two.acquire()).release()  # the holder is known
            asking = asyncio.ensure_future(ask())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            async with asyncio.timeout(60):
                while await other.machine.lock.granted() or await other.machine.barrier.waiting():
                    await asyncio.sleep(0.01)
            assert other.calls._background == set() or await asyncio.wait(other.calls._background)
        held = await nodes[0].machine.lock.acquire(timeout=60)
        assert held.valid


async def test_nobody_loses_a_semaphore_that_gets_smaller(tmp_path: Path, free_addresses: FREE) -> None:
    async with apps(free_addresses, tmp_path, 1) as [node]:
        two = node.machine.two
        first, second = await two.acquire(), await two.acquire()
        await two.resize(1)
        assert first.valid and second.valid
        await first.release()
        assert second.valid and await two.try_acquire() is None
        await second.release()
        third = await two.try_acquire()
        assert third is not None and await two.try_acquire() is None


async def test_a_barrier_that_opens_at_the_last_moment_has_opened(tmp_path: Path, free_addresses: FREE) -> None:
    """Whoever gives up after the others have counted on it has passed."""
    async with apps(free_addresses, tmp_path, 1) as [node]:
        barrier = node.machine.barrier
        calls = node.calls
        holder = await calls.holders.holder() if calls.holders is not None else None
        assert holder is not None
        for _ in range(2):
            await barrier.arrive(holder.name)
        number, token, _ = await barrier.arrive(holder.name)
        assert not await barrier.leave(token) and barrier.round == number + 1


async def test_a_semaphore_lets_so_many_in(tmp_path: Path, free_addresses: FREE) -> None:
    async with apps(free_addresses, tmp_path) as nodes:
        inside, most = 0, 0

        async def work(node: Node[App]) -> None:
            nonlocal inside, most
            async with node.machine.two:
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.01)
                inside -= 1

        await asyncio.gather(*(work(node) for node in nodes for _ in range(4)))
        assert most == 2
        held = [await nodes[0].machine.two.acquire() for _ in range(2)]
        assert await nodes[1].machine.two.try_acquire() is None
        await nodes[2].machine.two.resize(3)
        assert await nodes[1].machine.two.try_acquire() is not None
        assert all(each.valid for each in held)
    with pytest.raises(ValueError, match="at least 1"):
        Semaphore(0)


async def test_readers_together_writers_alone(tmp_path: Path, free_addresses: FREE) -> None:
    async with apps(free_addresses, tmp_path) as nodes:
        order: list[str] = []
        rw = [node.machine.rw for node in nodes]
        async with rw[0].read(), rw[1].read():

            async def write() -> None:
                async with rw[2].write():
                    order.append("write")

            writing = asyncio.create_task(write())
            while not await rw[0].waiting():
                await asyncio.sleep(0.005)

            async def read() -> None:
                async with rw[0].read():
                    order.append("read")

            reading = asyncio.create_task(read())
            while len(await rw[0].waiting()) < 2:
                await asyncio.sleep(0.005)
            assert order == [], "a reader behind a writer waits: writers do not starve"
        await asyncio.gather(writing, reading)
        assert order == ["write", "read"]


async def test_a_barrier_waits_for_all(tmp_path: Path, free_addresses: FREE) -> None:
    async with apps(free_addresses, tmp_path) as nodes:
        for _ in range(3):
            places = await asyncio.gather(*(node.machine.barrier.wait() for node in nodes))
            assert sorted(places) == [0, 1, 2]
        with pytest.raises(DeadlineExceeded, match="did not come"):
            await nodes[0].machine.barrier.wait(timeout=0.05)
        assert await nodes[1].machine.barrier.waiting() == 0, "who gives up has left"
    with pytest.raises(ValueError, match="at least 1"):
        Barrier(0)


async def test_an_election_has_one_leader_whom_everybody_sees(tmp_path: Path, free_addresses: FREE) -> None:
    async with apps(free_addresses, tmp_path) as nodes:
        seen: list[str] = []

        async def observe() -> None:
            async for value in nodes[2].machine.election.observe():
                seen.append(value)  # noqa: PERF401 - it never ends

        observing = asyncio.create_task(observe())
        async with nodes[0].machine.election.campaign("one") as held:
            leader = await nodes[1].machine.election.leader()
            assert leader is not None and (leader.value, leader.token) == ("one", held.token)
            assert await nodes[0].machine.election.proclaim(held.token, "uno")
            assert not await nodes[0].machine.election.proclaim(held.token + 1, "nobody")
            while "uno" not in seen:
                await asyncio.sleep(0.005)
        async with nodes[1].machine.election.campaign("two"):
            while "two" not in seen:
                await asyncio.sleep(0.005)
        observing.cancel()
        assert [value for value in seen if value != "one"] == ["uno", "two"]


async def test_work_of_the_leader_runs_on_one_member_and_moves_with_leadership(
    tmp_path: Path, free_addresses: FREE
) -> None:
    async with apps(free_addresses, tmp_path) as nodes:
        running: set[str] = set()
        begun: list[tuple[str, int]] = []

        def work(name: str) -> Callable[[int], Any]:
            async def lead(token: int) -> None:
                assert not running, f"{running} still work"
                running.add(name)
                begun.append((name, token))
                try:
                    await asyncio.sleep(3600)
                finally:
                    running.discard(name)

            return lead

        for node in nodes:
            node.on_leader(work(node.name))
        while not begun:
            await asyncio.sleep(0.01)
        first = next(node for node in nodes if node.name == begun[0][0])
        target = next(node for node in nodes if node is not first)
        while not target.is_leader:
            leader = next((node for node in nodes if node.is_leader), None)
            if leader is not None and leader is not target:
                await leader.transfer(target.name)
        while begun[-1][0] != target.name:
            await asyncio.sleep(0.01)
        assert running == {target.name}
        assert [token for _, token in begun] == sorted(token for _, token in begun)
    assert not running


async def test_a_lock_of_no_node_says_so() -> None:
    with pytest.raises(NotAttached):
        await Lock().acquire()
    with pytest.raises(NotAttached):
        async with Lock():
            pass


def test_locks_for_threads(tmp_path: Path) -> None:
    with SyncNode(App(), data_dir=tmp_path / "n1", lease_ttl=60) as node:
        lock = node.machine.lock
        with lock as held:
            assert held.valid
            assert lock.try_acquire() is None
            with pytest.raises(DeadlineExceeded), lock.holding(timeout=0.05):
                pass
        with pytest.raises(LeaseLost, match="others may have acted"):
            with lock as held:
                calls = node._node.calls

                async def end(holder: str) -> None:
                    await calls.propose(calls.machine.codec.encode([END, [holder]]))

                node._on_loop(end(held.holder.name))
