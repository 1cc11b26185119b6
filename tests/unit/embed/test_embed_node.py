"""`Node`: a program's own object on real members in one process."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import warnings
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

import oarlock
from oarlock import (
    CommandError,
    ConfigurationError,
    DeadlineExceeded,
    Node,
    NoLeader,
    Outcome,
    StateMachine,
    bounded,
    command,
    query,
)
from oarlock.errors import DirectoryInUse, WrongDirectory

FREE = Callable[[int], list[str]]
STEADY_S = 5.0  # so that a busy machine does not change who leads


class Counter(StateMachine):
    def __init__(self) -> None:
        self.value = 0
        self.words: list[str] = []

    @command
    def add(self, n: int = 1) -> int:
        """Add and tell."""
        self.value += n
        return self.value

    @command
    def fail(self, text: str) -> None:
        self.value += 100
        raise ValueError(text)

    @command
    def stop(self) -> None:
        raise StopIteration("enough")

    @query
    def get(self) -> int:
        return self.value

    @query
    def all_words(self) -> list[str]:
        return self.words

    @query
    def broken(self) -> int:
        raise LookupError("nothing here")


@asynccontextmanager
async def members(free: FREE, path: Path, count: int = 3, **options: Any) -> AsyncIterator[list[Node[Counter]]]:
    names = [f"n{n + 1}" for n in range(count)]
    peers = dict(zip(names, free(count), strict=True))
    async with AsyncExitStack() as stack:
        options = {"election_timeout": STEADY_S, **options}
        nodes = [Node(Counter(), name, peers=peers, data_dir=path / name, timeout=60, **options) for name in names]
        for node in nodes:
            await stack.enter_async_context(node)
        await nodes[0].ready(120)
        yield nodes


async def test_three_copies_of_one_object(tmp_path: Path, free_addresses: FREE) -> None:
    async with members(free_addresses, tmp_path) as nodes:
        assert await nodes[0].machine.add(5) == 5
        assert await nodes[1].machine.add(n=2) == 7
        assert [await node.machine.get() for node in nodes] == [7, 7, 7]
        answers = await asyncio.gather(*(nodes[n % 3].machine.add() for n in range(90)))
        assert sorted(answers) == list(range(8, 98)), "each was executed once, in one order"
        status = nodes[0].status()
        assert sorted(member.name for member in status.members) == ["n1", "n2", "n3"]
        assert status.leader in ("n1", "n2", "n3") and sum(node.is_leader for node in nodes) == 1
        assert nodes[0].leader == status.leader


async def test_a_leader_that_closes_hands_over(tmp_path: Path, free_addresses: FREE) -> None:
    async with members(free_addresses, tmp_path) as nodes:
        await nodes[0].machine.add(1)
        leader = next(node for node in nodes if node.is_leader)
        others = [node for node in nodes if node is not leader]
        await leader.aclose()
        assert await others[0].machine.add(1) == 2
        assert await others[1].machine.get() == 2
        assert repr(leader) == f"<Node {leader.name!r} closed>"


async def test_leadership_goes_where_it_is_sent(tmp_path: Path, free_addresses: FREE) -> None:
    async with members(free_addresses, tmp_path) as nodes:
        leader = next(node for node in nodes if node.is_leader)
        target = next(node for node in nodes if node is not leader)
        await leader.transfer(target.name)
        await target.machine.add()
        assert target.is_leader
        with pytest.raises(ConfigurationError, match="no member 'n9'"):
            await leader.transfer("n9")


async def test_what_a_command_raises_is_raised_once_and_harms_nobody(tmp_path: Path) -> None:
    async with Node(Counter(), data_dir=tmp_path / "n1") as node:
        counter = node.machine
        with pytest.raises(ValueError, match="no") as error:
            await counter.fail("no")
        assert error.value.args == ("no",)
        with pytest.raises(CommandError, match="StopIteration"):
            await counter.stop()
        with pytest.raises(LookupError, match="nothing here"):
            await counter.broken()
        assert await counter.get() == 0, "nothing is left of a command that raised"


async def test_a_restart_finds_everything(tmp_path: Path) -> None:
    async with Node(Counter(), data_dir=tmp_path / "n1", snapshot_entries=10) as node:
        for _ in range(35):
            await node.machine.add(1)
    async with Node(Counter(), data_dir=tmp_path / "n1") as node:
        assert await node.machine.get() == 35
        assert await node.machine.add(1) == 36


async def test_a_query_gives_no_part_of_the_state_away(tmp_path: Path) -> None:
    async with Node(Counter(), data_dir=tmp_path / "n1") as node:
        (await node.machine.all_words()).append("mine")
        assert await node.machine.all_words() == []


async def test_reads_promise_what_they_are_asked_for(tmp_path: Path, free_addresses: FREE) -> None:
    async with members(free_addresses, tmp_path) as nodes:
        counter = nodes[0].machine
        await counter.add(1)
        assert await counter.get.options(consistency=bounded(60))() == 1
        assert await counter.get.options(consistency="local")() >= 0
        with pytest.raises(ValueError, match="lease_reads=True"):
            counter.get.options(consistency="lease")()
        for node in nodes[1:]:
            await node.aclose()
        # without a majority only the promises that need none are kept
        assert await counter.get.options(consistency=bounded(60))() == 1
        assert await counter.get.options(consistency="local")() == 1
        with pytest.raises(DeadlineExceeded):
            await counter.get.options(timeout=0.2)()
        with pytest.raises(DeadlineExceeded):
            await counter.get.options(timeout=0.2, consistency=bounded(1e-9))()


async def test_a_linearizable_query_asks_a_majority_also_where_leases_are_allowed(
    tmp_path: Path, free_addresses: FREE
) -> None:
    async with members(free_addresses, tmp_path, lease_reads=True) as nodes:
        await nodes[0].machine.add(1)
        while (leader := next((node for node in nodes if node.is_leader), None)) is None:
            await asyncio.sleep(0.02)
        get = leader.machine.get
        rounds: list[int] = []
        read_barrier = leader.engine.node.read_barrier

        def counting(done: Any, *, confirmed: bool = False) -> None:
            rounds.append(leader.engine.node.member.raft.role.round)  # type: ignore[union-attr]
            read_barrier(done, confirmed=confirmed)

        leader.engine.node.read_barrier = counting  # type: ignore[method-assign]
        async with asyncio.timeout(60):
            while len(rounds) < 2 or rounds[-1] != rounds[-2]:  # a lease may have run out on a busy machine
                assert await get.options(consistency="lease")() == 1
        for _ in range(3):
            assert await get() == 1
            assert await get.options(consistency="linearizable")() == 1
        assert len(set(rounds[-6:])) == 6, "each had a round of its own"


async def test_after_a_timeout_the_error_says_what_is_known(tmp_path: Path, free_addresses: FREE) -> None:
    peers = dict(zip(("n1", "n2"), free_addresses(2), strict=True))
    async with Node(Counter(), "n1", peers=peers, data_dir=tmp_path / "n1", timeout=0.2, election_timeout=0.3) as node:
        with pytest.raises(NoLeader) as nothing:
            await node.machine.add()
        assert nothing.value.outcome is Outcome.NOT_EXECUTED
        with pytest.raises(DeadlineExceeded) as late:
            await node.machine.add.options(timeout=0.05)()
        assert late.value.outcome is Outcome.UNKNOWN
        with pytest.raises(NoLeader, match="majority of n1, n2"):
            await node.ready(0.1)


async def test_retry_safe_calls_are_executed_once(tmp_path: Path, free_addresses: FREE) -> None:
    async with members(free_addresses, tmp_path) as nodes:
        add = nodes[0].machine.add.options(retry_safe=True, timeout=120)
        assert sorted(await asyncio.gather(*(add() for _ in range(300)))) == list(range(1, 301))

        async def keep_adding() -> None:
            for _ in range(40):
                await add()

        task = asyncio.create_task(keep_adding())
        for node in (nodes[1], nodes[2], nodes[0], nodes[1]):
            leader = next((each for each in nodes if each.is_leader), None)
            if leader is not None and leader is not node:
                try:
                    await leader.transfer(node.name)
                except oarlock.RaftError:
                    pass  # the race is the point; whether a transfer wins it is not
            await asyncio.sleep(0.05)
        await task
        assert await nodes[2].machine.get() == 340


async def test_a_lost_answer_is_asked_for_again(tmp_path: Path) -> None:
    """The answer of the first attempt is thrown away: the second attempt gets it from the session."""
    async with Node(Counter(), data_dir=tmp_path / "n1") as node:
        await node.machine.add.options(retry_safe=True)(1)
        runtime = node.calls.node
        propose, lost = runtime.propose, []

        def lossy(data: bytes, done: Callable[[object], None], *, enveloped: bool = False) -> None:
            def first(result: object) -> None:
                lost.append(result)
                done(oarlock.LeadershipLost("the answer was lost"))

            propose(data, first if not lost else done, enveloped=enveloped)

        runtime.propose = lossy  # type: ignore[method-assign, assignment]
        assert await node.machine.add.options(retry_safe=True)(10) == 11
        assert len(lost) == 1 and await node.machine.get() == 11


class Newer(Counter):
    code_version: ClassVar[int] = 2

    @command(since=2)
    def reset(self) -> None:
        self.value = 0


async def test_a_new_command_waits_for_the_last_member(tmp_path: Path, free_addresses: FREE) -> None:
    peers = dict(zip(("n1", "n2"), free_addresses(2), strict=True))
    old = Node(Counter(), "n2", peers=peers, data_dir=tmp_path / "n2", timeout=60)
    async with Node(Newer(), "n1", peers=peers, data_dir=tmp_path / "n1", timeout=60) as node:
        async with old:
            await node.ready(120)
            await old.machine.add(3)
            await old.machine.add(0)  # by now both have said what they run, or will before n2 is upgraded
            with pytest.raises(oarlock.Rejected) as error:
                await node.machine.reset()
            assert error.value.reason == "not_active"
        async with Node(Newer(), "n2", peers=peers, data_dir=tmp_path / "n2", timeout=60) as upgraded:
            await upgraded.ready(120)
            for _ in range(1500):
                if node.status().active_version == 2 and upgraded.status().active_version == 2:
                    break
                await asyncio.sleep(0.02)
            await upgraded.machine.reset()
            assert await node.machine.get() == 0


async def test_a_command_that_is_not_deterministic_stops_a_development_node(tmp_path: Path) -> None:
    class Chance(StateMachine):
        def __init__(self) -> None:
            self.value = 0

        @command
        def roll(self) -> int:
            self.value = id(object()) ^ int.from_bytes(os.urandom(4), "big")
            return 0

    node = Node(Chance(), data_dir=tmp_path / "n1", development=True)
    async with node:
        await node.ready(120)
        with pytest.raises(oarlock.RaftError):
            await node.machine.roll()
        assert isinstance(await node.wait_stopped(), oarlock.NotDeterministic)
        assert node.status().role == "stopped"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"name": ""}, "name is empty"),
        ({"peers": {"n2": "127.0.0.1:1"}}, "peers does not hold this member 'n1'"),
        ({"peers": {"n1": "127.0.0.1"}}, "must be host:port"),
        ({"peers": {"n1": "127.0.0.1:x"}}, "must be host:port"),
        ({"peers": {"n1": "a:1", "n2": "a:1"}}, "more than one member"),
        ({"heartbeat": 0.5}, "at least 3 times heartbeat"),
        ({"data_dir": ""}, "data_dir is empty"),
        ({"join": ["a:1"]}, "join needs listen"),
        ({"join": "a:1"}, "must be a list"),
        ({"join": ["a:1"], "peers": {"n1": "a:2"}}, "exclude each other"),
        ({"lease_ttl": 0.1}, "lease_ttl"),
    ],
)
def test_options_that_cannot_work_are_refused_at_once(tmp_path: Path, arguments: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        Node(Counter(), **{"name": "n1", "data_dir": tmp_path, **arguments})  # type: ignore[arg-type]


async def test_a_directory_belongs_to_one_member(tmp_path: Path, free_addresses: FREE) -> None:
    async with Node(Counter(), data_dir=tmp_path / "n1") as node:
        with pytest.raises(DirectoryInUse):
            await Node(Counter(), data_dir=tmp_path / "n1").start()
        await node.machine.add()
    with pytest.raises(WrongDirectory):
        await Node(Counter(), "n7", data_dir=tmp_path / "n1").start()


async def test_a_node_starts_once_and_says_when_it_is_not_running(tmp_path: Path) -> None:
    node = Node(Counter(), data_dir=tmp_path / "n1")
    with pytest.raises(RuntimeError, match="is not started"):
        node.status()
    async with node:
        with pytest.raises(RuntimeError, match="started before"):
            await node.start()
    await node.aclose()
    with pytest.raises(RuntimeError, match="started before"):
        await node.start()
    with pytest.raises(oarlock.NotAttached):
        node.machine.add()


async def test_a_group_grows_from_one_member_and_shrinks_again(tmp_path: Path, free_addresses: FREE) -> None:
    one, two, three = free_addresses(3)
    async with AsyncExitStack() as stack:
        first = Node(Counter(), "n1", listen=one, data_dir=tmp_path / "n1", timeout=60)
        await stack.enter_async_context(first)
        await first.machine.add(5)
        await first.add(two)
        second = Node(Counter(), "n2", join=[one], listen=two, data_dir=tmp_path / "n2", timeout=60)
        await stack.enter_async_context(second)
        await second.ready(120)
        assert await second.machine.get() == 5
        learner = await second.add(three, learner=True)
        third = Node(Counter(), "n3", join=[one, two], listen=three, data_dir=tmp_path / "n3", timeout=60)
        await stack.enter_async_context(third)
        assert await third.machine.add(1) == 6
        assert not next(member for member in third.members() if member.id == learner).is_voter
        for _ in range(500):
            try:
                await third.promote("n3")
                break
            except oarlock.Rejected as error:
                if error.reason != "not_in_sync":
                    raise
                await asyncio.sleep(0.02)
        assert all(member.is_voter for member in first.members())
        await second.remove("n1")
        assert isinstance(await asyncio.wait_for(first.wait_stopped(), 30), oarlock.Stopped)
        assert await third.machine.add(1) == 7
        assert {member.name for member in third.members()} == {"n2", "n3"}
        await third.aclose()
        again = Node(Counter(), "n3", join=[two], listen=three, data_dir=tmp_path / "n3", timeout=60)
        await stack.enter_async_context(again)
        assert await again.machine.get() == 7, "who has entered before needs nobody to ask"


async def test_joining_says_what_is_missing(
    tmp_path: Path, free_addresses: FREE, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = free_addresses(2)
    async with Node(Counter(), "n1", listen=one, data_dir=tmp_path / "n1"):
        node = Node(Counter(), "n2", join=[one], listen=two, data_dir=tmp_path / "n2")
        node._options = replace(node._options, join_s=0.1)
        with pytest.raises(ConfigurationError, match=f"no member at {two}: let one of its members `add` it"):
            await node.start()
    nobody = Node(Counter(), "n3", join=[two], listen=one, data_dir=tmp_path / "n3")
    nobody._options = replace(nobody._options, join_s=0.1)
    with pytest.raises(ConfigurationError, match="no member could be asked"):
        await nobody.start()


async def test_nothing_is_left_behind(tmp_path: Path) -> None:
    before_threads = set(threading.enumerate())
    before_files = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    before_tasks = asyncio.all_tasks()
    async with Node(Counter(), data_dir=tmp_path / "n1") as node:
        await node.machine.add.options(retry_safe=True)()
    assert set(threading.enumerate()) == before_threads
    assert asyncio.all_tasks() == before_tasks
    if before_files:
        assert len(os.listdir("/proc/self/fd")) <= before_files


async def test_a_cancelled_program_closes_its_node(tmp_path: Path) -> None:
    started = asyncio.Event()
    node = Node(Counter(), data_dir=tmp_path / "n1")

    async def program() -> None:
        async with node:
            started.set()
            await asyncio.sleep(3600)

    task = asyncio.create_task(program())
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with Node(Counter(), data_dir=tmp_path / "n1") as again:  # the lock is free
        assert await again.machine.get() == 0


async def test_a_node_that_was_forgotten_warns(tmp_path: Path) -> None:
    node = await Node(Counter(), data_dir=tmp_path / "n1").start()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        node.__del__()
        assert any("was not closed" in str(each.message) for each in caught)
    await node.aclose()
    del node
    gc.collect()


def test_the_package_gives_its_names_lazily() -> None:
    assert set(oarlock.__all__) <= set(dir(oarlock))
    for name in oarlock.__all__:
        getattr(oarlock, name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = oarlock.nothing  # type: ignore[attr-defined]
