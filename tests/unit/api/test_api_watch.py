"""The Watch service on the wire: refusals, progress, back-pressure, limits. What events a watch is told is the hub's
affair (tests/unit/machines/test_machines_watch.py) and the differential suite's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from tests.support.auth_setup import CHEAP, ok, people
from tests.support.h2_client import H2Client, message_frame

from oarlock.api import proto
from oarlock.api.etcd import watch as api_watch
from oarlock.api.grpc.status import Code
from oarlock.machines.kv.commands import Put, encode
from oarlock.machines.kv.commands_alarm import AuditMark, AuditReport

WatchRequest = proto.message("etcdserverpb.WatchRequest")
WatchResponse = proto.message("etcdserverpb.WatchResponse")
RangeRequest = proto.message("etcdserverpb.RangeRequest")
PutRequest = proto.message("etcdserverpb.PutRequest")
WATCH = "/etcdserverpb.Watch/Watch"

Run = Callable[[Any], None]


class Watch:
    """One stream of a client."""

    def __init__(self, client: H2Client, extra: Any = ()) -> None:
        self.client = client
        self.stream_id = client.start(WATCH, extra)
        self.answer = client.answers[self.stream_id]

    def send(self, request: Any) -> None:
        self.client.send(self.stream_id, message_frame(request.SerializeToString()))

    def create(self, key: bytes, **fields: Any) -> None:
        request = WatchRequest()
        request.create_request.key = key
        for name, value in fields.items():
            setattr(request.create_request, name, value)
        self.send(request)

    def cancel(self, watch_id: int) -> None:
        request = WatchRequest()
        request.cancel_request.watch_id = watch_id
        self.send(request)

    def progress(self) -> None:
        request = WatchRequest()
        request.progress_request.SetInParent()
        self.send(request)

    @property
    def responses(self) -> list[Any]:
        """The whole ones that have come."""
        found, at, body = [], 0, self.answer.body
        while at + 5 <= len(body):
            end = at + 5 + int.from_bytes(body[at + 1 : at + 5], "big")
            if end > len(body):
                break
            found.append(WatchResponse.FromString(bytes(body[at + 5 : end])))
            at = end
        return found

    async def until(self, count: int) -> list[Any]:
        async with asyncio.timeout(120):
            while len(self.responses) < count:
                await asyncio.sleep(0.005)
        return self.responses


async def put(client: H2Client, key: bytes, value: bytes = b"v") -> None:
    answer = await client.unary("/etcdserverpb.KV/Put", PutRequest(key=key, value=value).SerializeToString())
    assert answer.code == 0


def test_events_come_with_the_revision_of_their_write(engine: str, run: Run, serving: Any) -> None:
    async def scenario() -> None:
        async with serving(engine) as served, await H2Client.connect(served.url) as client:
            watch = Watch(client)
            watch.create(b"a")
            (created,) = await watch.until(1)
            assert (created.created, created.watch_id, created.header.revision) == (True, 0, 1)
            assert created.header.member_id == served.backend.member_id
            await put(client, b"a")
            await put(client, b"b")
            await put(client, b"a")
            _, first, second = await watch.until(3)
            assert [event.kv.mod_revision for event in first.events] == [2]
            assert (first.header.revision, second.header.revision) == (2, 4)
            assert first.header.raft_term == served.backend.term

    run(scenario())


def test_refusals_come_in_the_stream(engine: str, run: Run, serving: Any) -> None:
    async def scenario() -> None:
        async with serving(engine, watches_per_stream_max=3) as served, await H2Client.connect(served.url) as client:
            watch = Watch(client)
            watch.create(b"a", watch_id=4)
            watch.create(b"a", watch_id=4)
            watch.create(b"b", range_end=b"a")
            watch.create(b"a", start_revision=-1)
            watch.create(b"a")
            watch.create(b"a")
            watch.create(b"a")
            responses = await watch.until(7)
            refused = [r for r in responses if r.canceled]
            assert all(r.created and r.watch_id == -1 and r.header.revision == 1 for r in refused)
            assert [r.cancel_reason for r in refused] == [
                "mvcc: duplicate watch ID provided on the WatchStream",
                "mvcc: watcher range is empty",
                "mvcc: required revision has been compacted",
                "etcdserver: too many watches on one stream (at most 3)",
            ]
            watch.cancel(4)
            watch.create(b"a", watch_id=9)
            assert [(r.watch_id, r.canceled) for r in (await watch.until(9))[7:]] == [(4, True), (9, False)]
            assert served.backend.machine.watches.watcher_count == 3

    run(scenario())


def test_all_watches_of_a_member_are_bounded(engine: str, run: Run, serving: Any) -> None:
    async def scenario() -> None:
        async with serving(engine, watches_total_max=2) as served, await H2Client.connect(served.url) as client:
            one, other = Watch(client), Watch(client)
            one.create(b"a")
            one.create(b"b")
            await one.until(2)
            other.create(b"c")
            (refused,) = await other.until(1)
            assert refused.cancel_reason == "etcdserver: too many watches on this member (at most 2)"

    run(scenario())


def test_a_stream_that_ends_leaves_nothing_behind(engine: str, run: Run, serving: Any) -> None:
    async def scenario() -> None:
        async with serving(engine) as served:
            hub = served.backend.machine.watches
            async with await H2Client.connect(served.url) as client:
                watch = Watch(client)
                for n in range(50):
                    watch.create(b"%d" % n, progress_notify=True)
                await watch.until(50)
                assert hub.watcher_count == 50
            await served.until(lambda: hub.watcher_count == 0, "the watches end with their connection")
            assert hub.topic_count == hub.outbox_bytes == 0

    run(scenario())


def test_a_malformed_request_ends_the_stream(engine: str, run: Run, serving: Any) -> None:
    async def scenario() -> None:
        async with serving(engine) as served, await H2Client.connect(served.url) as client:
            watch = Watch(client)
            client.send(watch.stream_id, message_frame(b"\xff\xff"))
            answer = await client.finish(watch.stream_id)
            assert answer.code == Code.INTERNAL
            assert "unmarshalling" in answer.text

    run(scenario())


def test_a_fault_ends_one_stream_and_not_the_turn(
    engine: str, run: Run, serving: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = api_watch._Watching._encode

    def faulty(self: Any, delivery: Any, messages: list[bytes]) -> None:
        if delivery.watch_id == 13:
            raise ZeroDivisionError("on purpose")
        encode(self, delivery, messages)

    flush = api_watch._Watching._flush
    flushed = [0]

    def counting(self: Any) -> None:
        flushed[0] += 1
        if flushed[0] > 10_000:
            raise asyncio.CancelledError  # or the loop would be held for ever
        flush(self)

    monkeypatch.setattr(api_watch._Watching, "_encode", faulty)
    monkeypatch.setattr(api_watch._Watching, "_flush", counting)

    async def scenario() -> None:
        async with serving(engine) as served, await H2Client.connect(served.url) as client:
            unlucky, other = Watch(client), Watch(client)
            other.create(b"a")
            await other.until(1)
            unlucky.create(b"a", watch_id=13)
            answer = await client.finish(unlucky.stream_id)
            assert (answer.code, answer.text) == (Code.INTERNAL, "internal error: ZeroDivisionError")
            flood = Watch(client)  # so many requests that their answers are sent in between
            requests = []
            for watch_id in (13, *range(1000, 6000)):
                request = WatchRequest()
                request.create_request.key, request.create_request.watch_id = b"b", watch_id
                requests.append(message_frame(request.SerializeToString()))
            client.send(flood.stream_id, b"".join(requests))
            assert (await client.finish(flood.stream_id)).code == Code.INTERNAL
            await asyncio.sleep(0)
            assert flushed[0] < 10_000
            await put(client, b"a")
            assert len((await other.until(2))[1].events) == 1
            await served.until(lambda: served.backend.machine.watches.watcher_count == 1, "nothing is left of it")

    run(scenario())


def test_a_learner_serves_no_watch(engine: str, run: Run, serving: Any) -> None:
    async def scenario() -> None:
        async with serving(engine) as served, await H2Client.connect(served.url) as client:
            served.backend.is_learner = True
            served.server.service.refresh()
            watch = Watch(client)
            answer = await client.finish(watch.stream_id)
            assert (answer.code, answer.text) == (
                Code.FAILED_PRECONDITION,
                "etcdserver: rpc not supported for learner",
            )

    run(scenario())


def test_a_stream_that_wants_a_leader_ends_without_one(engine: str, run: Run, serving: Any) -> None:
    async def scenario() -> None:
        async with serving(engine, leaderless_s=0.01) as served, await H2Client.connect(served.url) as client:
            wants = Watch(client, ((b"hasleader", b"true"),))
            other = Watch(client)
            for watch in (wants, other):
                watch.create(b"a")
                await watch.until(1)
            served.backend.leader = 0
            served.server.service.refresh()
            await asyncio.sleep(0.05)
            served.server.service.refresh()
            answer = await client.finish(wants.stream_id)
            assert (answer.code, answer.text) == (Code.UNAVAILABLE, "etcdserver: no leader")
            refused = Watch(client, ((b"hasleader", b"true"),))
            assert (await client.finish(refused.stream_id)).text == "etcdserver: no leader"
            other.create(b"b")
            await other.until(2)

    run(scenario())


def test_nothing_is_told_after_quarantine(engine: str, run: Run, serving: Any) -> None:
    """Not even what came in the same turn: the end of the streams does not wait for the tick of the port."""

    async def scenario() -> None:
        async with serving(engine) as served, await H2Client.connect(served.url) as client:
            served.server.service.refresh = lambda: None
            backend, machine = served.backend, served.backend.machine
            watches = [Watch(client) for _ in range(3)]
            for watch in watches:
                watch.create(b"k", range_end=b"l")
                await watch.until(1)
            await put(client, b"k1")
            for watch in watches:
                await watch.until(2)
            done: list[object] = []
            backend.propose(encode(AuditMark(backend.term, 3)), done.append)
            await served.until(lambda: len(done) == 1, "the mark")
            batch = [
                Put(b"k2", b"wrong"),
                *(AuditReport(member, machine.alarms.mark, b"A" * 16) for member in (1, 2)),
                AuditReport(backend.member_id, machine.alarms.mark, b"B" * 16),
                Put(b"k3", b"wrong"),
            ]
            for command in batch:
                backend.propose(encode(command), done.append)
            await served.until(lambda: len(done) == 6, "the batch")
            backend.propose(encode(Put(b"k4", b"wrong")), done.append)
            for watch in watches:
                answer = await client.finish(watch.stream_id)
                assert (answer.code, answer.text) == (Code.DATA_LOSS, "etcdserver: corrupt cluster")
                assert len(await watch.until(2)) == 2, "something was told after quarantine"
            answer = await client.unary("/etcdserverpb.KV/Range", RangeRequest(key=b"k1").SerializeToString())
            assert answer.text == "etcdserver: corrupt cluster"

    run(scenario())


def test_progress_is_told_to_quiet_watches_only(engine: str, run: Run, serving: Any) -> None:
    async def scenario() -> None:
        limits = {"watch_progress_interval_s": 0.3}
        async with serving(engine, **limits) as served, await H2Client.connect(served.url) as client:
            watch = Watch(client)
            watch.create(b"a", progress_notify=True)
            watch.create(b"b")
            await watch.until(2)
            await put(client, b"c")
            count = 4
            told = (await watch.until(count))[2:]
            while [r.header.revision for r in told[-2:]] != [2, 2]:  # the first may have come before the put
                count += 1
                told = (await watch.until(count))[2:]
            assert {(r.watch_id, len(r.events)) for r in told} == {(0, 0)}
            watch.progress()
            assert (await watch.until(count + 1))[count].watch_id in (-1, 0)

    run(scenario())


def test_a_reader_that_stalls_costs_bounded_memory_and_loses_nothing(engine: str, run: Run, serving: Any) -> None:
    """Its outbox fills up, its watch falls behind, and catches up from the log when it reads again."""

    async def scenario() -> None:
        limits = {"watch_outbox_bytes_max": 100_000, "stream_unsent_bytes": 50_000}
        async with serving(engine, **limits) as served:
            hub = served.backend.machine.watches
            async with (
                await H2Client.connect(served.url) as writer,
                await H2Client.connect(served.url, auto_window=False) as reader,
            ):
                watch = Watch(reader)
                watch.create(b"a")
                await watch.until(1)
                for n in range(300):
                    await put(writer, b"a", b"%04d" % n + b"x" * 4000)
                    assert hub.outbox_bytes <= 100_000 + 5000
                assert hub.fell_behind >= 1
                await served.until(lambda: hub.unsynced_count == 1, "the watch is behind")
                assert len(watch.responses) < 50
                taken = 0
                async with asyncio.timeout(120):
                    while sum(len(r.events) for r in watch.responses) < 300:
                        received = len(watch.answer.body)
                        if received > taken:
                            reader.h2.acknowledge_received_data(received - taken, watch.stream_id)
                            reader.flush()
                            taken = received
                        await asyncio.sleep(0.002)
                values = [event.kv.value[:4] for r in watch.responses for event in r.events]
                assert values == [b"%04d" % n for n in range(300)]
                assert hub.unsynced_count == 0

    run(scenario())


def test_a_client_that_asks_without_reading_is_not_heard_on(engine: str, run: Run, serving: Any) -> None:
    """Creating and cancelling for ever fills no memory: requests wait until their answers are read."""

    async def scenario() -> None:
        limits = {"stream_unsent_bytes": 2000}
        async with serving(engine, **limits) as served:
            async with await H2Client.connect(served.url, auto_window=False) as client:
                watch = Watch(client)
                for n in range(3000):
                    watch.create(b"a", watch_id=n + 1)
                    watch.cancel(n + 1)
                await asyncio.sleep(0.5)
                hub = served.backend.machine.watches
                assert hub.outbox_bytes < 1100 * 200
            await served.until(lambda: hub.watcher_count == 0, "the watches end")

    run(scenario())


@pytest.mark.parametrize("count", [1000])
def test_a_thousand_watches_on_one_stream(engine: str, run: Run, serving: Any, count: int) -> None:
    async def scenario() -> None:
        async with serving(engine) as served, await H2Client.connect(served.url) as client:
            watch = Watch(client)
            for _ in range(count):
                watch.create(b"a")
            await watch.until(count)
            await put(client, b"a")
            responses = await watch.until(2 * count)
            assert {r.watch_id for r in responses[count:]} == set(range(count))
            assert all(len(r.events) == 1 for r in responses[count:])

    run(scenario())


def test_ten_thousand_watches_on_one_member(engine: str, run: Run, serving: Any) -> None:
    """Counted, not timed: a write gives exactly one message to each watch that it concerns, and nothing to the rest."""

    async def scenario() -> None:
        async with serving(engine) as served, await H2Client.connect(served.url) as client:
            hub = served.backend.machine.watches
            watches = [Watch(client) for _ in range(20)]
            for number, watch in enumerate(watches):
                requests = []
                for n in range(500):
                    request = WatchRequest()
                    request.create_request.key = b"key/%d" % (number * 500 + n)
                    requests.append(message_frame(request.SerializeToString()))
                client.send(watch.stream_id, b"".join(requests))
            await served.until(lambda: hub.watcher_count == 10_000, "all watch")
            assert hub.topic_count == 10_000
            for key in (b"other", b"key/7", b"key/9999", b"key/10000"):
                await put(client, key)
            await served.until(lambda: hub.events_delivered == 2, "two of them were told")
            assert [event.kv.key for event in (await watches[0].until(501))[500].events] == [b"key/7"]
            assert [event.kv.key for event in (await watches[-1].until(501))[500].events] == [b"key/9999"]
            assert sum(len(watch.responses) for watch in watches) == 10_002

    run(scenario())


def test_what_may_not_be_read_may_not_be_watched(engine: str, run: Run, serving: Any) -> None:
    """The range is checked as it is watched: an empty key, an empty end and a zero byte are what they stand for."""

    async def scenario() -> None:
        async with serving(engine, auth=CHEAP) as served, await H2Client.connect(served.url) as client:
            tokens = await people(client)
            reader = Watch(client, ((b"token", tokens["reader"].encode()),))
            for key, end in (
                (b"a", b""),
                (b"a", b"c"),
                (b"c", b""),
                (b"a", b"\0"),
                (b"", b""),
                (b"", b"\0"),
                (b"b", b"d"),
            ):
                reader.create(key, range_end=end)
            responses = await reader.until(7)
            assert [r.canceled for r in responses] == [False, False, True, True, True, True, True]
            refused = responses[2:]
            assert {r.cancel_reason for r in refused} == {
                "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
            }
            assert all(r.created and r.watch_id == -1 for r in refused)
            nobody = Watch(client)
            nobody.create(b"a")
            (answer,) = await nobody.until(1)
            assert answer.canceled and answer.watch_id == -1
            assert answer.cancel_reason == "rpc error: code = InvalidArgument desc = etcdserver: user name is empty"
            put_request = PutRequest(key=b"a", value=b"seen")
            await ok(client, "KV/Put", put_request, tokens["writer"])
            assert [len(r.events) for r in (await reader.until(9))[7:]] == [1, 1]

    run(scenario())


def test_who_may_not_read_an_election_may_not_observe_it(engine: str, run: Run, serving: Any) -> None:
    async def scenario() -> None:
        async with serving(engine, auth=CHEAP) as served, await H2Client.connect(served.url) as client:
            tokens = await people(client)
            request = proto.message("v3electionpb.LeaderRequest")()
            for name, allowed in ((b"a", True), (b"x", False)):
                request.name = name
                stream_id = client.start("/v3electionpb.Election/Observe", ((b"token", tokens["reader"].encode()),))
                client.send(stream_id, message_frame(request.SerializeToString()), end_stream=True)
                if allowed:
                    hub = served.backend.machine.watches
                    await served.until(lambda hub=hub: hub.watcher_count == 1, "somebody looks on")
                else:
                    answer = await client.finish(stream_id)
                    assert answer.code == Code.PERMISSION_DENIED

    run(scenario())
