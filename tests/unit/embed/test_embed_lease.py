"""Leases: what hangs on one lives as long as it does, on both faces."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from oarlock import LeasedDict, LeaseLost, Lock, Node, RWLock, StateMachine, command
from oarlock.embed import sync as blocking
from oarlock.embed.lease import LEASE_TTL_MAX_S
from oarlock.machines.objects.machine import END
from oarlock.sync import Leading, Schedule
from oarlock.sync import LeasedDict as SyncLeasedDict
from oarlock.sync import Node as SyncNode

FREE = Callable[[int], list[str]]


class Tokens(StateMachine):
    """A part of a program's own that hangs things on leases."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}

    @command
    def keep(self, what: str, lease: str) -> bool:
        if not self.holder_lives(lease):
            return False
        self.kept[what] = lease
        return True

    def holder_ended(self, holder: str) -> None:
        self.kept = {what: lease for what, lease in self.kept.items() if lease != holder}


class App(StateMachine):
    def __init__(self) -> None:
        self.lock = Lock()
        self.rw = RWLock()
        self.services: LeasedDict[str, str] = LeasedDict()
        self.own = Tokens()

    @command
    def nothing(self) -> None:
        pass


def node_of(path: Path, **options: float) -> Node[App]:
    return Node(App(), data_dir=path / "n1", timeout=20, lease_ttl=options.get("lease_ttl", 60))


async def test_what_hangs_on_a_lease_goes_with_it_and_nothing_else(tmp_path: Path) -> None:
    async with node_of(tmp_path) as node:
        app = node.machine
        assert await app.services.register("mine", "node")
        async with node.lease(ttl=30) as lease:
            assert lease.valid and not lease.lost and 0 < lease.remaining <= 30 and lease.ttl == 30
            assert await app.services.register("web", "leased", lease)
            assert await app.own.keep("x", lease.name)
            held = await app.lock.acquire(lease=lease)
            assert held.token > lease.token > 0
            async with app.rw.read(lease=lease) as reading, app.rw.read() as other:
                assert reading.token < other.token
            assert await app.lock.try_acquire() is None
            assert not await app.services.register("web", "other"), "another holder has it"
            assert app.own.kept == {"x": lease.name}
        assert not lease.valid and lease.lost and lease.remaining == 0.0
        assert await app.services.copy() == {"mine": "node"}
        assert not held.valid and app.own.kept == {}
        second = await app.lock.try_acquire()
        assert second is not None and second.token > held.token
        with pytest.raises(LeaseLost, match="has ended"):
            await app.lock.acquire(lease=lease)
        with pytest.raises(LeaseLost):
            await app.lock.try_acquire(lease=lease)
        with pytest.raises(LeaseLost):
            await app.services.register("web", "leased", lease)


async def test_a_body_is_cancelled_when_the_group_knows_that_its_lease_has_ended(tmp_path: Path) -> None:
    async with node_of(tmp_path) as node:
        reached = False
        with pytest.raises(LeaseLost, match="while its body ran"):
            async with node.lease() as lease:
                assert lease.ttl == 60
                await node.calls.propose(node.calls.machine.codec.encode([END, [lease.name]]))
                await asyncio.sleep(60)
                reached = True
        assert not reached and lease.lost
        task = asyncio.current_task()
        assert task is not None and task.cancelling() == 0


async def test_bodies_within_each_other_end_with_the_lease_that_both_hang_on(tmp_path: Path) -> None:
    async with node_of(tmp_path) as node:
        with pytest.raises(LeaseLost):
            async with node.lease() as lease:
                async with node.machine.lock.holding(lease=lease) as held:
                    await node.calls.propose(node.calls.machine.codec.encode([END, [lease.name]]))
                    await asyncio.sleep(60)
        assert lease.lost and not held.valid
        task = asyncio.current_task()
        assert task is not None and task.cancelling() == 0
        async with asyncio.timeout(30):
            assert await node.machine.lock.owner() == ""


async def test_a_lease_that_is_not_kept_alive_ends_in_time_unless_renewed(tmp_path: Path) -> None:
    async with node_of(tmp_path) as node:
        lease = await node.lease(ttl=1, keep_alive=False).grant()
        kept = await node.lease(ttl=1).grant()
        assert await node.machine.services.register("web", "x", lease)
        before = lease.holder.valid_until
        await lease.renew()
        assert lease.holder.valid_until > before
        await lease.wait_lost()
        assert not lease.valid and kept.valid, "the other one was renewed behind the scenes"
        while await node.machine.services.get("web"):  # the group's clock runs behind
            await asyncio.sleep(0.05)
        with pytest.raises(LeaseLost, match="begin anew"):
            await lease.renew()
        await lease.revoke()
        await kept.revoke()
        await kept.wait_lost()


async def test_a_body_that_fails_or_is_cancelled_revokes_its_lease(tmp_path: Path) -> None:
    async with node_of(tmp_path) as node:
        with pytest.raises(KeyError):
            async with node.lease() as lease:
                raise KeyError("of the body")
        assert lease.name not in node.calls.machine.holders.deadlines

        inside = asyncio.Event()
        names = []

        async def body() -> None:
            async with node.lease() as mine:
                names.append(mine.name)
                inside.set()
                await asyncio.sleep(60)

        task = asyncio.create_task(body())
        await inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert names[0] not in node.calls.machine.holders.deadlines


async def test_a_node_that_closes_revokes_its_leases(tmp_path: Path) -> None:
    async with node_of(tmp_path) as node:
        lease = await node.lease().grant()
        assert await node.machine.services.register("web", "x", lease)
    assert lease.lost
    async with node_of(tmp_path) as node:
        assert await node.machine.services.copy() == {}


async def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    node = node_of(tmp_path)
    with pytest.raises(RuntimeError, match="not started"):
        node.lease()
    async with node:
        for ttl in (0, 0.5, -1, float("nan"), LEASE_TTL_MAX_S + 1):
            with pytest.raises(ValueError, match="between 1 and 86400 seconds"):
                node.lease(ttl)
        lease = node.lease(2)
        assert "not granted" in repr(lease) and not lease.valid and not lease.lost
        for use in (lambda: lease.name, lambda: node.machine.lock.acquire(lease=lease)):
            with pytest.raises(RuntimeError, match="was not granted"):
                use()
        await lease.grant()
        assert "s left" in repr(lease)
        with pytest.raises(RuntimeError, match="granted once"):
            await lease.grant()
        await lease.revoke()
        assert "ended" in repr(lease)


class SyncApp(StateMachine):
    def __init__(self) -> None:
        self.services: SyncLeasedDict[str, str] = SyncLeasedDict()
        self.schedule = Schedule()


def test_leases_from_threads(tmp_path: Path) -> None:
    with SyncNode(SyncApp(), data_dir=tmp_path / "n1", timeout=20) as node:
        services = node.machine.services
        with node.lease(ttl=30) as lease:
            assert services.register("web", "x", lease) and lease.valid
            assert not lease.wait_lost(timeout=0.01)
        assert services.copy() == {} and lease.wait_lost()
        with pytest.raises(LeaseLost, match="while its body ran"):
            with node.lease(ttl=1, keep_alive=False) as lease:
                lease.renew()
                assert lease.wait_lost()
        with pytest.raises(KeyError):
            with node.lease() as lease:
                raise KeyError
        lease.revoke()


def test_the_leaders_work_runs_in_a_thread_until_it_is_told_to_end(tmp_path: Path) -> None:
    told: list[object] = []
    begun, failed = threading.Event(), threading.Event()

    def work(leading: Leading) -> None:
        if not failed.is_set():
            failed.set()
            raise OSError("it is begun again")
        told.append((threading.current_thread() is not threading.main_thread(), leading.token > 0, leading.lost))
        begun.set()
        told.append(leading.wait_lost())

    with SyncNode(SyncApp(), data_dir=tmp_path / "n1", timeout=20) as node:
        node.on_leader(work)
        assert begun.wait(60)
        assert [member.name for member in node.members()] == ["n1"]
    assert told == [(True, True, False), True]


def test_leaders_work_that_does_not_end_is_left_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(blocking, "LEADING_END_S", 0.05)
    begun, go = threading.Event(), threading.Event()

    def work(leading: Leading) -> None:
        begun.set()
        go.wait()

    with SyncNode(SyncApp(), data_dir=tmp_path / "n1", timeout=20) as node:
        node.on_leader(work)
        assert begun.wait(60)
    assert "has not ended" in caplog.text
    go.set()


def test_a_schedule_calls_plain_functions_in_threads(tmp_path: Path) -> None:
    done = threading.Event()
    threads: list[threading.Thread] = []

    def work() -> None:
        threads.append(threading.current_thread())
        done.set()

    with SyncNode(SyncApp(), data_dir=tmp_path / "n1", timeout=20) as node:
        node.machine.schedule.every(0.05, "tick", work)
        runner = threading.Thread(target=node.machine.schedule.run, daemon=True)
        runner.start()
        assert done.wait(60)
        assert threads[0] is not threading.main_thread() and threads[0] is not runner
