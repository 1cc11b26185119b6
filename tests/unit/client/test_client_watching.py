"""Watches, leases, locks and transactions against a server that refuses, hangs, cuts revisions and forgets."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any

import pytest
from tests.support.fake_etcd import Call, FakeEtcd, message, serving

from oarlock.api.grpc.status import Code
from oarlock.client import Client, Compacted, DeadlineExceeded, EtcdError, Event, LeaseExpired, Transaction

pytestmark = pytest.mark.timeout(120)


def synchronous(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 90))  # type: ignore[arg-type]

    return run


def kv(key: str, revision: int, value: str = "v", created: int = 0) -> dict[str, Any]:
    return {
        "key": key.encode(),
        "value": value.encode(),
        "create_revision": created or revision,
        "mod_revision": revision,
    }


def response(revision: int, *events: dict[str, Any], **fields: Any) -> Any:
    return message("WatchResponse", header={"revision": revision}, events=events, **fields)


class Watched:
    """Answers each Watch stream with the next list of responses, and keeps the requests."""

    def __init__(self, *streams: list[Any]) -> None:
        self.streams = list(streams)
        self.asked: list[Any] = []
        self.calls: list[Call] = []

    def __call__(self, call: Call) -> None:
        for request in call.messages("WatchRequest"):
            self.asked.append(request.create_request)
            self.calls.append(call)
            for each in self.streams.pop(0) if self.streams else []:
                if each is None:
                    call.end(14, "etcdserver: no leader")
                else:
                    call.send(each)


CREATED = response(5, created=True)


@synchronous
async def test_a_watch_closed_by_another_task_simply_ends() -> None:
    server = FakeEtcd({"Watch": Watched([CREATED])})
    async with serving([server]) as endpoints, Client(endpoints, timeout=30) as client:
        watch = await client.watch("a").__aenter__()
        seen: list[Event] = []

        async def follow() -> None:
            async for event in watch:
                seen.append(event)  # noqa: PERF401 - written as users do

        following = asyncio.create_task(follow())
        await asyncio.sleep(0)
        await watch.aclose()
        await asyncio.wait_for(following, 30)
        assert not seen and await anext(watch, None) is None
        await server.until(lambda: not server.calls[0].open)


@synchronous
async def test_a_watch_closed_while_it_begins_or_before_does_not_go_on() -> None:
    server = FakeEtcd(mute=True)
    async with serving([server]) as endpoints, Client(endpoints, timeout=30, connect_timeout=30) as client:
        watch = client.watch("a")
        beginning = asyncio.create_task(anext(watch, None))
        await server.connected.wait()
        await watch.aclose()
        server.mute = False
        server.connections[0].h2.initiate_connection()
        server.connections[0].flush()
        assert await asyncio.wait_for(beginning, 30) is None
        assert not (await client.channel())._streams
        with pytest.raises(RuntimeError, match="closed: make another"):
            await watch.__aenter__()


@synchronous
async def test_a_watch_of_a_closed_client_says_so() -> None:
    server = FakeEtcd({"Watch": Watched([CREATED])})
    async with serving([server]) as endpoints:
        client = Client(endpoints, timeout=30)
        watch = await client.watch("a").__aenter__()
        following = asyncio.create_task(anext(watch))
        await asyncio.sleep(0)
        await client.aclose()
        with pytest.raises(EtcdError, match="client is closed"):
            await asyncio.wait_for(following, 30)


@synchronous
async def test_a_watch_given_up_while_it_begins_is_not_left_to_the_server() -> None:
    server = FakeEtcd({})
    async with serving([server]) as endpoints, Client(endpoints, timeout=30) as client:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1), client.watch("a"):
                pytest.fail("the server has not said that it watches")
        await server.until(lambda: server.calls and not server.calls[0].open)


@synchronous
async def test_a_watch_that_is_dropped_is_ended_at_the_server() -> None:
    server = FakeEtcd({"Watch": Watched([CREATED, response(6, {"kv": kv("a", 6)})])})
    async with serving([server]) as endpoints, Client(endpoints, timeout=30) as client:
        async for event in client.watch("a"):
            assert event.kv.mod_revision == 6
            break
        gc.collect()
        await server.until(lambda: not server.calls[0].open)


@synchronous
async def test_what_the_server_refuses_for_good_is_an_error() -> None:
    refused = response(5, created=True, canceled=True, watch_id=-1, cancel_reason="mvcc: watcher range is empty")
    server = FakeEtcd({"Watch": Watched([refused])})
    async with serving([server]) as endpoints, Client(endpoints, timeout=30) as client:
        with pytest.raises(EtcdError, match="range is empty") as error:
            await anext(client.watch("b", range_end="a"))
        assert error.value.code is Code.INVALID_ARGUMENT


@synchronous
async def test_what_the_server_cancels_is_begun_again_where_it_was() -> None:
    watched = Watched(
        [CREATED, response(6, {"kv": kv("a", 6)}), response(6, canceled=True, cancel_reason="who knows")],
        [CREATED, response(7, {"kv": kv("a", 7)}), None],
        [response(9, created=True), response(9, {"kv": kv("a", 7)}, {"kv": kv("a", 8)})],
    )
    server = FakeEtcd({"Watch": watched})
    async with serving([server]) as endpoints, Client(endpoints, timeout=30) as client:
        watch = client.watch("a")
        assert [(await anext(watch)).kv.mod_revision for _ in range(3)] == [6, 7, 8], "7 came twice, and is given once"
        assert [asked.start_revision for asked in watched.asked] == [0, 7, 8]


@synchronous
async def test_fragments_of_a_revision_are_given_when_it_is_whole() -> None:
    first = response(6, {"kv": kv("a", 6)}, {"kv": kv("b", 6)}, fragment=True)
    second = response(6, {"kv": kv("c", 6)}, {"kv": kv("d", 7)})
    watched = Watched([CREATED, first, None], [CREATED, first, second])
    async with serving([FakeEtcd({"Watch": watched})]) as endpoints, Client(endpoints, timeout=30) as client:
        watch = client.watch("", prefix=True)
        seen = []
        for _ in range(4):
            event = await anext(watch)
            seen.append((event.kv.key, watch.revision))
        assert seen == [(b"a", 5), (b"b", 5), (b"c", 6), (b"d", 7)]
        assert [asked.fragment for asked in watched.asked] == [True, True]


@synchronous
async def test_a_resync_is_in_order_keeps_its_filters_and_its_boundary() -> None:
    watched = Watched(
        [CREATED, response(6, {"kv": kv("b", 6)}), response(0, canceled=True, compact_revision=50)],
        [response(60, created=True), response(61, {"kv": kv("z", 61)})],
    )
    pages = [
        message("RangeResponse", header={"revision": 5}, kvs=[kv("a", 3), kv("gone", 4)]),
        message("RangeResponse", header={"revision": 60}, kvs=[kv("a", 58), kv("b", 6), kv("c", 55)]),
    ]
    server = FakeEtcd({"Watch": watched, "Range": lambda call: call.answer(pages.pop(0))})
    async with serving([server]) as endpoints, Client(endpoints, timeout=30) as client:
        watch = client.watch("", prefix=True, resync=True, deletes=False)
        seen = []
        for _ in range(4):
            event = await anext(watch)
            seen.append((event.kind, event.kv.key, event.kv.mod_revision, watch.revision))
        assert seen == [("put", b"b", 6, 6), ("put", b"c", 55, 6), ("put", b"a", 58, 60), ("put", b"z", 61, 61)]


@synchronous
async def test_a_server_that_sends_nonsense_on_a_watch() -> None:
    def answer(call: Call) -> None:
        call.begin()
        call.connection.h2.send_data(call.id, b"\0\0\0\0\2\xff\xff")
        call.connection.flush()

    server = FakeEtcd({"Watch": answer})
    async with serving([server]) as endpoints, Client(endpoints, timeout=30) as client:
        with pytest.raises(EtcdError, match="no answer to a watch"):
            await anext(client.watch("a"))
        await server.until(lambda: not server.calls[0].open)


# ------------------------------------------------------------------ leases


def granted(call: Call) -> None:
    for request in call.messages("LeaseGrantRequest"):
        call.answer(message("LeaseGrantResponse", ID=7, TTL=request.TTL))


def kept(call: Call) -> None:
    for request in call.messages("LeaseKeepAliveRequest"):
        call.send(message("LeaseKeepAliveResponse", ID=request.ID, TTL=3))


def revoked(call: Call) -> None:
    call.answer(message("LeaseRevokeResponse"))


@synchronous
async def test_a_lease_is_kept_alive_by_another_member_if_its_own_is_silent() -> None:
    """Well before the connection counts as dead: a lease of three seconds cannot wait for that."""
    stuck = FakeEtcd({"LeaseGrant": granted})
    good = FakeEtcd({"LeaseKeepAlive": kept, "LeaseRevoke": revoked})
    async with serving([stuck, good]) as endpoints, Client(endpoints, timeout=30, keepalive=60) as client:
        async with client.lease(6) as lease:
            until = lease.valid_until
            await good.until(lambda: lease.valid_until > until or not lease.valid)
            assert lease.valid
        assert good.counts["LeaseRevoke"] == 1


@synchronous
async def test_a_single_renewal_has_a_time_limit_and_two_do_not_mix() -> None:
    server = FakeEtcd({"LeaseGrant": granted})
    async with serving([server]) as endpoints, Client(endpoints, timeout=0.3, keepalive=60) as client:
        lease = client.lease(60)
        await lease.grant()
        with pytest.raises(DeadlineExceeded):
            await asyncio.wait_for(lease.keep_alive_once(), 30)
        server.answers["LeaseKeepAlive"] = kept
        client.timeout = 30
        assert await asyncio.wait_for(asyncio.gather(*(lease.keep_alive_once() for _ in range(5))), 30) == [3] * 5
        lost = asyncio.create_task(lease.keep_alive_once())
        lost.cancel()
        await asyncio.gather(lost, return_exceptions=True)
        assert await lease.keep_alive_once() == 3


@synchronous
async def test_a_lease_whose_keeper_fails_is_lost() -> None:
    """Also for a reason that nobody thought of: its body must not go on for ever."""

    def nonsense(call: Call) -> None:
        call.begin()
        call.connection.h2.send_data(call.id, b"\0\0\0\0\2\xff\xff")
        call.connection.flush()

    server = FakeEtcd({"LeaseGrant": granted, "LeaseKeepAlive": nonsense, "LeaseRevoke": revoked})
    async with serving([server]) as endpoints, Client(endpoints, timeout=30) as client:
        with pytest.raises(LeaseExpired):
            async with client.lease(3):
                await asyncio.sleep(60)


# ------------------------------------------------------------------ locks


class Line:
    """Answers what a lock asks. `others` are the claims before ours: `(key, create revision)`."""

    def __init__(self, others: list[tuple[str, int]]) -> None:
        self.claims = dict(others)
        self.ours = ""
        self.watched = Watched()
        self.answers = {
            "LeaseGrant": granted, "LeaseKeepAlive": kept, "LeaseRevoke": revoked, "Txn": self._txn,
            "Range": self._range, "Watch": self.watched,
        }  # fmt: skip

    def _txn(self, call: Call) -> None:
        for request in call.messages("TxnRequest"):
            self.ours = request.success[0].request_put.key.decode()
            self.claims[self.ours] = 10
            call.answer(
                message("TxnResponse", header={"revision": 10}, succeeded=True, responses=[{"response_put": {}}])
            )

    def _range(self, call: Call) -> None:
        for request in call.messages("RangeRequest"):
            found = sorted(self.claims.items(), key=lambda item: -item[1])
            shown = found[: request.limit or None]
            kvs = [kv(key, revision) for key, revision in shown]
            call.answer(message("RangeResponse", header={"revision": 20}, kvs=kvs, more=len(shown) < len(found)))


@pytest.mark.parametrize("behind", [0, 3])
def test_a_claim_that_is_gone_holds_no_lock(behind: int) -> None:
    """Somebody has revoked the lease or deleted the key while we waited: those behind us wait for it no more."""

    @synchronous
    async def run() -> None:
        line = Line([("l/other", 4)])
        line.watched.streams = [[response(20, created=True)]]
        server = FakeEtcd(line.answers)
        async with serving([server]) as endpoints, Client(endpoints, timeout=30) as client:

            async def hold() -> None:
                async with client.lock("l", ttl=60):
                    pytest.fail("the lock is not ours")

            waiting = asyncio.create_task(hold())
            await server.until(lambda: line.watched.calls)
            line.claims = {f"l/later{n}": 11 + n for n in range(behind)}
            line.watched.calls[0].send(response(21, {"type": 1, "kv": kv("l/other", 21)}))
            with pytest.raises(LeaseExpired, match="deleted while it waited"):
                await asyncio.wait_for(waiting, 30)
            assert server.counts["LeaseRevoke"] == 1

    run()


@synchronous
async def test_a_lock_is_got_although_history_is_compacted_meanwhile() -> None:
    line = Line([("l/other", 4)])
    compacted = response(0, created=True, canceled=True, compact_revision=50)
    line.watched.streams = [[compacted], [response(20, created=True)]]
    server = FakeEtcd(line.answers)
    async with serving([server]) as endpoints, Client(endpoints, timeout=30) as client:

        async def hold() -> int:
            async with client.lock("l", ttl=60) as lock:
                return lock.token

        holding = asyncio.create_task(hold())
        await server.until(lambda: len(line.watched.calls) == 2)
        del line.claims["l/other"]
        line.watched.calls[1].send(response(21, {"type": 1, "kv": kv("l/other", 21)}))
        assert await asyncio.wait_for(holding, 30) == 10


@synchronous
async def test_an_observer_goes_on_although_history_is_compacted_meanwhile() -> None:
    line = Line([("e/a", 4)])
    line.watched.streams = [[response(0, created=True, canceled=True, compact_revision=50)]]
    server = FakeEtcd(line.answers)
    async with serving([server]) as endpoints, Client(endpoints, timeout=30) as client:
        leaders = client.election("e").observe()
        assert (await anext(leaders)).key == b"e/a"
        following = asyncio.create_task(anext(leaders))  # type: ignore[arg-type]
        await server.until(lambda: len(line.watched.calls) == 2)
        line.claims = {"e/b": 30}
        line.watched.calls[1].send(
            response(20, created=True), response(30, {"type": 1, "kv": kv("e/a", 29)}, {"kv": kv("e/b", 30)})
        )
        assert (await asyncio.wait_for(following, 30)).key == b"e/b"
        await leaders.aclose()  # type: ignore[attr-defined]


@synchronous
async def test_a_lock_that_is_not_held_has_no_token() -> None:
    async with Client("127.0.0.1:1") as client:
        lock = client.lock("l")
        with pytest.raises(RuntimeError, match="async with"):
            _ = lock.token
        assert not lock.valid


@synchronous
async def test_a_transaction_whose_revision_was_compacted_begins_anew() -> None:
    reads: list[int] = []

    def read(call: Call) -> None:
        for request in call.messages("RangeRequest"):
            reads.append(request.revision)
            if request.revision == 5:
                call.end(11, "etcdserver: mvcc: required revision has been compacted")
            else:
                revision = 5 if len(reads) == 1 else 9
                call.answer(message("RangeResponse", header={"revision": revision}, kvs=[kv("a", 3)]))

    server = FakeEtcd({"Range": read, "Txn": lambda call: call.answer(message("TxnResponse", succeeded=True))})
    async with serving([server]) as endpoints, Client(endpoints, timeout=30) as client:

        async def work(transaction: Transaction) -> str:
            await transaction.get("a")
            await transaction.get("b")
            transaction.put("c", "x")
            return "done"

        assert await client.transact(work) == "done"
        assert reads == [0, 5, 0, 9]

        async def other(transaction: Transaction) -> None:
            raise Compacted("of something else")

        with pytest.raises(Compacted, match="something else"):
            await client.transact(other)
        with pytest.raises(ValueError, match="attempts"):
            await client.transact(work, attempts=0)
