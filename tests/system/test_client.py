"""The client, against Oarlock's server and against a real etcd alike: what holds for one must hold for the other."""

from __future__ import annotations

import asyncio
import inspect
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from functools import wraps
from typing import Any

import pytest

from oarlock.cli.local_cluster import LocalCluster, ProgramMissing, etcd_program, oarlock_program
from oarlock.client import (
    Client,
    Compacted,
    DeadlineExceeded,
    Delete,
    EtcdError,
    Event,
    FutureRevision,
    Get,
    Key,
    LeaseExpired,
    Outcome,
    Page,
    PermissionDenied,
    Put,
    TransactionConflict,
    Txn,
    TxnResult,
    Unauthenticated,
    Unavailable,
)
from oarlock.client.sync import Client as SyncClient

pytestmark = pytest.mark.timeout(400)


def synchronous(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        coroutine = test(*args, **kwargs)
        assert inspect.iscoroutine(coroutine)
        asyncio.run(coroutine)

    return run


@pytest.fixture(scope="module", params=["oarlock", "etcd"])
def cluster(request: pytest.FixtureRequest) -> Iterator[LocalCluster]:
    try:
        program = oarlock_program() if request.param == "oarlock" else etcd_program()
    except ProgramMissing as missing:
        pytest.skip(str(missing))
    with LocalCluster(program, 3) as made:
        made.start()
        yield made


@pytest.fixture(autouse=True)
def all_run(request: pytest.FixtureRequest) -> Iterator[None]:
    """After a test that killed or paused a member, all run again and keys are gone."""
    yield
    if "cluster" in request.fixturenames:
        cluster: LocalCluster = request.getfixturevalue("cluster")
        for member in cluster.members:
            member.signal(signal.SIGCONT)
        cluster.start()
        with SyncClient(cluster.endpoints, timeout=120) as client:
            while True:
                try:
                    client.delete("", prefix=True)
                    break
                except Unavailable:  # who leads may be changing still
                    time.sleep(0.05)


@asynccontextmanager
async def connected(cluster: LocalCluster, **options: Any) -> AsyncIterator[Client]:
    async with Client(cluster.endpoints, **{"timeout": 120, **options}) as client:
        yield client


@synchronous
async def test_what_was_left_is_not_valid(cluster: LocalCluster) -> None:
    async with connected(cluster) as client:
        async with client.lease(60) as lease:
            assert lease.valid
        assert not lease.valid
        async with client.lock("left") as lock:
            assert lock.valid
        assert not lock.valid
        async with client.election("left").campaign("me") as leadership:
            assert leadership.valid
        assert not leadership.valid
        granted = await client.grant(60)
        assert 50 < await client.time_to_live(granted) <= 60
        await client.revoke(granted)
        await client.revoke(granted)
        assert await client.time_to_live(granted) == -1


@synchronous
async def test_keys_and_values(cluster: LocalCluster) -> None:
    async with connected(cluster) as client:
        assert await client.get("a") is None
        assert await client.put("a", "1") is None
        before = await client.put("a", "2", previous=True)
        assert before is not None and before.text == "1"
        now = await client.get("a")
        assert now is not None and (now.key, now.text, now.version) == (b"a", "2", 2)
        old = await client.get("a", revision=now.mod_revision - 1)
        assert old is not None and old.text == "1"
        await client.put("b", "x" * 3000)
        page = await client.range("", prefix=True, limit=1)
        assert (page.count, page.more, page.items[0].key) == (2, True, b"a")
        page = await client.range("", prefix=True, sort_by="mod_revision", descending=True, keys_only=True)
        assert [(item.key, item.value) for item in page.items] == [(b"b", b""), (b"a", b"")]
        assert (await client.range("a", range_end="c", count_only=True)).count == 2
        gone = await client.delete("a", prefix=True, previous=True)
        assert (gone.count, gone.previous[0].text) == (1, "2")
        assert (await client.delete("nothing")).count == 0
        with pytest.raises(FutureRevision):
            await client.get("a", revision=10**9)
        with pytest.raises(ValueError, match="sort_by"):
            await client.range("a", sort_by="colour")


@synchronous
async def test_a_scan_is_of_one_revision(cluster: LocalCluster) -> None:
    async with connected(cluster) as client:
        for n in range(25):
            await client.put(f"k{n:02}", str(n))
        seen = []
        async for item in client.scan("k", page_size=10):
            seen.append(item.text)
            if item.key == b"k03":
                await client.delete("k20")
                await client.put("k99", "late")
        assert seen == [str(n) for n in range(25)]


@synchronous
async def test_transactions_are_expressions(cluster: LocalCluster) -> None:
    async with connected(cluster) as client:
        assert await client.create("a", "1") and not await client.create("a", "2")
        assert await client.compare_and_set("a", "1", "2") and not await client.compare_and_set("a", "1", "3")
        result = await client.txn(
            when=[Key("a").value == "2", Key("a").version > 1, Key("b").missing, Key("a").value != "x"],
            then=[Put("b", "new"), Get("", prefix=True), Delete("a", previous=True), Txn(then=[Get("b")])],
            otherwise=[Get("a")],
        )
        assert result.succeeded
        put, page, deleted, nested = result.results
        assert put is None
        assert isinstance(page, Page) and [item.key for item in page.items] == [b"a", b"b"]
        assert deleted is not None and deleted.previous[0].text == "2"  # type: ignore[union-attr]
        assert isinstance(nested, TxnResult) and nested.results[0].items[0].text == "new"  # type: ignore[union-attr]
        other = await client.txn(when=[Key("b").exists, Key("b").create_revision < 2], otherwise=[Get("b")])
        assert not other.succeeded
    with pytest.raises(TypeError, match="no truth of its own"):
        bool(Key("a").value == "1")
    with pytest.raises(TypeError, match="compared with an int"):
        Key("a").version == "1"  # noqa: B015


@synchronous
async def test_transactional_memory_loses_nothing(cluster: LocalCluster) -> None:
    async with connected(cluster) as client:
        await client.put("from", "100")
        await client.put("to", "0")

        async def move(transaction: Any) -> int:
            source, target = int(await transaction.get("from")), int(await transaction.get("to"))
            transaction.put("from", str(source - 1))
            transaction.put("to", str(target + 1))
            assert await transaction.get("to") == str(target + 1).encode(), "own writes are seen"
            return source

        results = await asyncio.gather(*(client.transact(move, attempts=1000) for _ in range(20)))
        assert sorted(results) == list(range(81, 101)), "each saw another state"
        left, right = await client.get("from"), await client.get("to")
        assert left is not None and right is not None and (left.text, right.text) == ("80", "20")

        async def always_late(transaction: Any) -> None:
            await transaction.get("from")
            await client.put("from", "changed")
            transaction.put("from", "mine")

        with pytest.raises(TransactionConflict, match="3 times"):
            await client.transact(always_late, attempts=3)


@synchronous
async def test_a_watch_goes_on_when_its_member_is_killed(cluster: LocalCluster) -> None:
    async with connected(cluster) as client, connected(cluster) as writer:
        seen: list[Event] = []
        async with client.watch("w", prefix=True, previous=True) as watch:

            async def follow() -> None:
                async for event in watch:
                    seen.append(event)
                    if event.kv.key == b"w-end":
                        return

            following = asyncio.create_task(follow())
            for n in range(60):
                if n == 20:
                    victim = next(m for m in cluster.members if m.endpoint.endswith(client.endpoint.rpartition(":")[2]))
                    victim.kill()
                while True:
                    try:
                        await writer.put(f"w{n % 7}", str(n))
                        break
                    except (Unavailable, DeadlineExceeded):
                        await asyncio.sleep(0.05)
            await writer.delete("w3")
            await writer.put("w-end", "")
            await asyncio.wait_for(following, 240)
        revisions = [event.kv.mod_revision for event in seen]
        assert revisions == sorted(set(revisions)), "in order, none twice"
        numbers = [int(event.kv.value) for event in seen if event.kind == "put" and event.kv.value]
        assert [n for k, n in enumerate(numbers) if k == 0 or n != numbers[k - 1]] == list(range(60)), "none is missing"
        assert [event.kv.key for event in seen if event.kind == "delete"] == [b"w3"]
        assert all(event.previous is not None for event in seen if not event.is_create)
        assert watch.revision == revisions[-1]


@synchronous
async def test_a_watch_survives_a_member_that_hangs(cluster: LocalCluster) -> None:
    async with connected(cluster, keepalive=0.5, keepalive_timeout=0.5) as client:
        async with client.watch("h") as watch:
            await client.get("h")
            victim = next(m for m in cluster.members if m.endpoint.endswith(client.endpoint.rpartition(":")[2]))
            victim.signal(signal.SIGSTOP)
            others = [member.endpoint for member in cluster.members if member is not victim]
            async with Client(others, timeout=120) as writer:
                while True:
                    try:
                        await writer.put("h", "after")
                        break
                    except (Unavailable, DeadlineExceeded):
                        await asyncio.sleep(0.1)
            event = await asyncio.wait_for(anext(watch), 240)
            assert event.kv.text == "after"


@synchronous
async def test_compaction_is_told_or_made_up_for(cluster: LocalCluster) -> None:
    async with connected(cluster) as client:
        for n in range(5):
            await client.put("c", str(n))
        await client.put("gone", "x")
        await client.delete("gone")
        now = (await client.range("c")).revision
        resyncing = client.watch("", prefix=True, resync=True)
        async with resyncing:
            await client.put("c", "seen")
            assert (await anext(resyncing)).kv.text == "seen"
            channel = resyncing._channel
            assert channel is not None
            channel.close()  # the connection breaks; meanwhile:
            await client.put("c", "5")
            await client.put("d", "new")
            await client.delete("c")
            await client.put("c", "6")
            await client.compact((await client.range("c")).revision)
            difference = [await asyncio.wait_for(anext(resyncing), 240) for _ in range(2)]
            assert {(event.kind, event.kv.key, event.kv.text) for event in difference} == {
                ("put", b"c", "6"),
                ("put", b"d", "new"),
            }
            await client.delete("d")
            last = await asyncio.wait_for(anext(resyncing), 240)
            assert (last.kind, last.kv.key) == ("delete", b"d")
        with pytest.raises(Compacted) as error:
            await anext(client.watch("c", start_revision=now))
        assert error.value.compact_revision > now
        with pytest.raises(Compacted):
            await client.get("c", revision=now)


@synchronous
async def test_a_lease_lives_as_long_as_its_body(cluster: LocalCluster) -> None:
    async with connected(cluster) as client:
        async with client.lease(5) as lease:
            await client.put("leased", "x", lease=lease)
            await asyncio.sleep(7)
            assert lease.valid and await client.get("leased") is not None
            told = await lease.time_to_live(keys=True)
            assert 0 < told.TTL <= lease.ttl and list(told.keys) == [b"leased"]
        assert await client.get("leased") is None, "it is revoked at the end"
        reached = False
        with pytest.raises(LeaseExpired):
            async with client.lease(5) as lease:
                await lease.revoke()
                await asyncio.sleep(60)
                reached = True
        assert not reached
        with pytest.raises(ValueError, match="at least one second"):
            client.lease(0)


@synchronous
async def test_a_lock_is_held_by_one(cluster: LocalCluster) -> None:
    async with connected(cluster) as one, connected(cluster) as two:
        inside, most, tokens = 0, 0, []

        async def work(client: Client) -> None:
            nonlocal inside, most
            async with client.lock("l", ttl=10) as lock:
                inside += 1
                most = max(most, inside)
                tokens.append(lock.token)
                owner = await client.get(lock.key)
                assert owner is not None and owner.create_revision == lock.token and lock.valid
                inside -= 1

        await asyncio.gather(*(work(client) for client in (one, two) for _ in range(5)))
        assert most == 1 and tokens == sorted(set(tokens))
        assert (await one.range("l/", prefix=True)).count == 0
        async with one.lock("l"):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5), two.lock("l"):
                    pytest.fail("it is held")


@synchronous
async def test_an_election(cluster: LocalCluster) -> None:
    async with connected(cluster) as one, connected(cluster) as two:
        election = two.election("e")
        assert await election.leader() is None
        seen: list[str] = []

        async def observe() -> None:
            async for kv in election.observe():
                seen.append(kv.text)  # noqa: PERF401 - it never ends

        observing = asyncio.create_task(observe())
        async with one.election("e").campaign("one") as leadership:
            leader = await election.leader()
            assert leader is not None and (leader.text, leader.create_revision) == ("one", leadership.token)
            assert await leadership.proclaim("uno") and leadership.valid
            while "uno" not in seen:
                await asyncio.sleep(0.02)
        async with two.election("e").campaign("two"):
            while "two" not in seen:
                await asyncio.sleep(0.02)
        observing.cancel()


@synchronous
async def test_calls_go_on_when_the_leader_is_killed(cluster: LocalCluster) -> None:
    async with connected(cluster) as client:
        await client.put("x", "1")
        status = await client.status()
        names = {known.ID: known.name for known in await client.members()}
        leader = cluster.member(names[status.leader])
        leader.kill()
        for n in range(5):
            while True:
                try:
                    await client.put("x", str(n))
                    break
                except (Unavailable, DeadlineExceeded) as error:
                    if error.outcome is Outcome.EXECUTED:
                        raise
            found = await client.get("x")
            assert found is not None and found.text == str(n)


@synchronous
async def test_nobody_there(cluster: LocalCluster) -> None:
    async with Client("127.0.0.1:1", timeout=0.5) as client:
        with pytest.raises(Unavailable, match="cannot be reached") as error:
            await client.put("a", "b")
        assert error.value.outcome is Outcome.NOT_EXECUTED
    with pytest.raises(ValueError, match="endpoints is empty"):
        Client([])
    with pytest.raises(Unavailable, match="closed"):
        await client.get("a")
    async with connected(cluster) as connected_client:
        assert len(await connected_client.sync_endpoints()) == 3
        assert (await connected_client.status()).leader


@synchronous
async def test_a_user_logs_in_and_again_when_the_token_is_gone(cluster: LocalCluster) -> None:
    from oarlock.api import proto

    def request(rpc: str, **fields: Any) -> tuple[str, Any, Any]:
        prefix = "" if rpc.startswith("Auth") else "Auth"
        kind = proto.message(f"etcdserverpb.{prefix}{rpc}Request")
        return f"/etcdserverpb.Auth/{rpc}", kind(**fields), proto.message(f"etcdserverpb.{prefix}{rpc}Response")

    async with connected(cluster) as client:
        for each in (
            request("UserAdd", name="root", password="root password"),
            request("RoleAdd", name="root"),
            request("UserGrantRole", user="root", role="root"),
            request("UserAdd", name="ann", password="her password"),
            request("AuthEnable"),
        ):
            await client.call(*each, reads=False)
    root = Client(cluster.endpoints, user="root", password="root password", timeout=120)
    for endpoint in cluster.endpoints:  # until each member has applied it
        async with Client(endpoint, user="root", password="root password", timeout=120) as each_member:
            while True:
                try:
                    await each_member.get("a")
                    break
                except EtcdError as error:
                    if "not enabled" not in error.text:
                        raise
                    await asyncio.sleep(0.05)
    try:
        await root.put("a", "1")
        root._token = "nonsense.17"
        found = await root.get("a")
        assert found is not None and found.text == "1", "another token was asked for"
        async with connected(cluster, user="ann", password="her password") as ann:
            with pytest.raises(PermissionDenied):
                await ann.get("a")
        async with connected(cluster, user="ann", password="wrong") as ann:
            with pytest.raises(Exception, match="authentication failed"):
                await ann.get("a")
        async with connected(cluster) as nobody:
            with pytest.raises((Unauthenticated, Exception), match=r"user name is empty|invalid auth token"):
                await nobody.get("a")
    finally:
        await root.call(*request("AuthDisable"), reads=False)
        for name in ("ann", "root"):
            await root.call(*request("UserDelete", name=name), reads=False)
        await root.call(*request("RoleDelete", role="root"), reads=False)
        await root.aclose()


def test_threads(cluster: LocalCluster) -> None:
    before = set(threading.enumerate())
    with SyncClient(cluster.endpoints, timeout=120) as client:
        client.put("t", "1")
        assert [item.text for item in client.scan("t")] == ["1"]
        with client.watch("t") as watch:
            threading.Timer(0.1, client.put, ("t", "2")).start()
            assert next(watch).kv.text == "2"
        inside, most = 0, 0

        def work() -> None:
            nonlocal inside, most
            with client.lock("tl") as lock:
                inside += 1
                most = max(most, inside)
                assert lock.valid
                time.sleep(0.01)
                inside -= 1

        threads = [threading.Thread(target=work) for _ in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == 1

        def add(transaction: Any) -> None:
            transaction.put("t", str(int(transaction.get("t") or 0) + 1))

        client.transact(add)
        found = client.get("t")
        assert found is not None and found.text == "3"
        with client.campaign("te", "me") as leadership:
            leader = client.leader("te")
            assert leader is not None and leader.text == "me" and leadership.valid
        with pytest.raises(LeaseExpired), client.lease(5) as lease:
            client.run(lease.revoke())
            time.sleep(4)

        async def inside_a_loop() -> None:
            with pytest.raises(RuntimeError, match="await there"):
                client.get("t")

        asyncio.run(inside_a_loop())
    with pytest.raises(RuntimeError, match="closed"):
        client.get("t")
    assert set(threading.enumerate()) - before == set() or all(
        "to_thread" in each.name or "asyncio" in each.name for each in set(threading.enumerate()) - before
    )
