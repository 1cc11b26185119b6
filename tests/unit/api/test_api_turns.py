"""Lock and Election: who waits, who is next, and what becomes of one whose lease or client dies while it waits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from tests.support.h2_client import Answer, H2Client, message_frame

from oarlock.api import proto
from oarlock.api.grpc.status import Code
from oarlock.machines.kv.encoding import decode_key_value

Run = Callable[[Any], None]


def message(name: str, /, **fields: Any) -> Any:
    return proto.message(name)(**fields)


def lock(client: H2Client, name: bytes, lease: int, extra: Any = ()) -> int:
    return start(client, "/v3lockpb.Lock/Lock", message("v3lockpb.LockRequest", name=name, lease=lease), extra)


def campaign(client: H2Client, name: bytes, lease: int, value: bytes) -> int:
    request = message("v3electionpb.CampaignRequest", lease=lease, value=value)
    request.name = name
    return start(client, "/v3electionpb.Election/Campaign", request)


def start(client: H2Client, path: str, request: Any, extra: Any = ()) -> int:
    stream_id = client.start(path, extra)
    client.send(stream_id, message_frame(request.SerializeToString()), end_stream=True)
    return stream_id


def locked(answer: Answer) -> Any:
    assert (answer.code, answer.text) == (0, "")
    return proto.message("v3lockpb.LockResponse").FromString(answer.messages[0])


async def grant(client: H2Client, lease: int) -> None:
    request = message("etcdserverpb.LeaseGrantRequest", TTL=100, ID=lease)
    assert (await client.unary("/etcdserverpb.Lease/LeaseGrant", request.SerializeToString())).code == 0


async def revoke(client: H2Client, lease: int) -> None:
    request = message("etcdserverpb.LeaseRevokeRequest", ID=lease)
    assert (await client.unary("/etcdserverpb.Lease/LeaseRevoke", request.SerializeToString())).code == 0


async def unlock(client: H2Client, key: bytes) -> None:
    request = message("v3lockpb.UnlockRequest", key=key)
    assert (await client.unary("/v3lockpb.Lock/Unlock", request.SerializeToString())).code == 0


def queued(served: Any, prefix: bytes) -> list[bytes]:
    return [key for key, _ in served.backend.machine._current.items(prefix, prefix + b"\xff")]


def test_locks_are_had_in_the_order_of_asking(engine: str, run: Run, serving: Any) -> None:
    async def scenario() -> None:
        async with serving(engine) as served, await H2Client.connect(served.url) as client:
            for lease in (1, 2, 3):
                await grant(client, lease)
            first, second, third = [lock(client, b"l", lease) for lease in (1, 2, 3)]
            held = locked(await client.finish(first))
            assert held.key == b"l/1"
            await served.until(lambda: len(queued(served, b"l/")) == 3, "all queue up")
            assert not client.answers[second].ended.is_set()
            tokens = []
            for stream_id in (second, third):
                record = served.backend.machine.range_one(held.key)
                tokens.append(decode_key_value(record).create_revision)
                await unlock(client, held.key)
                held = locked(await client.finish(stream_id))
                assert held.header.revision == served.backend.machine.revision
            assert held.key == b"l/3"
            assert tokens == sorted(tokens), "the fencing token rises from holder to holder"
            hub = served.backend.machine.watches
            await served.until(lambda: hub.watcher_count == 0, "nobody waits")

    run(scenario())


def test_a_lease_that_dies_while_it_waits_is_told_at_once(engine: str, run: Run, serving: Any) -> None:
    async def scenario() -> None:
        async with serving(engine) as served, await H2Client.connect(served.url) as client:
            for lease in (1, 2, 3):
                await grant(client, lease)
            await client.finish(lock(client, b"l", 1))
            second, third = lock(client, b"l", 2), lock(client, b"l", 3)
            await served.until(lambda: len(queued(served, b"l/")) == 3, "all queue up")
            await revoke(client, 2)
            answer = await client.finish(second)
            assert (answer.code, answer.text) == (Code.UNKNOWN, "mutex: session is expired")
            assert not client.answers[third].ended.is_set()
            await revoke(client, 1)
            assert locked(await client.finish(third)).key == b"l/3"

    run(scenario())


def test_a_caller_who_gives_up_leaves_the_queue(engine: str, run: Run, serving: Any) -> None:
    async def scenario() -> None:
        async with serving(engine) as served:
            async with await H2Client.connect(served.url) as client:
                for lease in (1, 2, 3):
                    await grant(client, lease)
                await client.finish(lock(client, b"l", 1))
                late = lock(client, b"l", 3, ((b"grpc-timeout", b"300m"),))
                async with await H2Client.connect(served.url) as other:
                    lock(other, b"l", 2)
                    await served.until(lambda: len(queued(served, b"l/")) == 3, "all queue up")
                answer = await client.finish(late)
                assert answer.code == Code.DEADLINE_EXCEEDED
                await served.until(lambda: queued(served, b"l/") == [b"l/1"], "only the holder is left")
                assert served.backend.machine.watches.watcher_count == 0

    run(scenario())


def test_a_caller_without_a_lease_gets_one_of_a_minute(engine: str, run: Run, serving: Any) -> None:
    async def scenario() -> None:
        async with serving(engine) as served, await H2Client.connect(served.url) as client:
            held = locked(await client.finish(lock(client, b"l", 0)))
            (lease,) = served.backend.machine.lease_ids()
            assert held.key == b"l/%x" % lease
            assert served.backend.machine.keys_of_lease(lease) == [held.key]
            assert served.backend.machine.leases.get(lease)[0] == 60

    run(scenario())


def test_waiting_calls_are_bounded(engine: str, run: Run, serving: Any) -> None:
    async def scenario() -> None:
        async with serving(engine, waiters_max=2) as served, await H2Client.connect(served.url) as client:
            for lease in (1, 2, 3, 4):
                await grant(client, lease)
            await client.finish(lock(client, b"l", 1))
            lock(client, b"l", 2)
            lock(client, b"l", 3)
            answer = await client.finish(lock(client, b"l", 4))
            assert (answer.code, answer.text) == (Code.RESOURCE_EXHAUSTED, "etcdserver: too many requests")

    run(scenario())


def test_an_election_is_won_in_turn_and_observed(engine: str, run: Run, serving: Any) -> None:
    async def scenario() -> None:
        async with serving(engine) as served, await H2Client.connect(served.url) as client:
            for lease in (1, 2):
                await grant(client, lease)
            request = message("v3electionpb.LeaderRequest")
            request.name = b"e"
            observer = start(client, "/v3electionpb.Election/Observe", request)
            await served.until(lambda: served.backend.machine.watches.watcher_count == 1, "somebody looks on")
            first = campaign(client, b"e", 1, b"one")
            won = proto.message("v3electionpb.CampaignResponse").FromString((await client.finish(first)).messages[0])
            assert (won.leader.name, won.leader.key, won.leader.lease) == (b"e", b"e/1", 1)
            second = campaign(client, b"e", 2, b"two")
            await served.until(lambda: len(queued(served, b"e/")) == 2, "both stand")
            for value in (b"one again", b"one at last"):
                proclaim = message("v3electionpb.ProclaimRequest", leader=won.leader, value=value)
                answer = await client.unary("/v3electionpb.Election/Proclaim", proclaim.SerializeToString())
                assert answer.code == 0
            resign = message("v3electionpb.ResignRequest", leader=won.leader)
            await client.unary("/v3electionpb.Election/Resign", resign.SerializeToString())
            assert (await client.finish(second)).code == 0
            answer = client.answers[observer]
            await served.until(lambda: len(answer.messages) == 4, "all that was proclaimed")
            seen = [proto.message("v3electionpb.LeaderResponse").FromString(m) for m in answer.messages]
            assert [r.kv.value for r in seen] == [b"one", b"one again", b"one at last", b"two"]
            assert all(r.header.revision >= r.kv.mod_revision for r in seen)

    run(scenario())


def test_a_candidate_whose_lease_dies_does_not_win(engine: str, run: Run, serving: Any) -> None:
    async def scenario() -> None:
        async with serving(engine) as served, await H2Client.connect(served.url) as client:
            for lease in (1, 2):
                await grant(client, lease)
            await client.finish(campaign(client, b"e", 1, b"one"))
            second = campaign(client, b"e", 2, b"two")
            await served.until(lambda: len(queued(served, b"e/")) == 2, "both stand")
            await revoke(client, 2)
            answer = await client.finish(second)
            assert (answer.code, answer.text) == (Code.UNKNOWN, "election: not leader")

    run(scenario())


def test_waiting_calls_end_with_the_server(engine: str, run: Run, serving: Any) -> None:
    async def scenario() -> None:
        async with serving(engine) as served:
            client = await H2Client.connect(served.url)
            for lease in (1, 2):
                await grant(client, lease)
            await client.finish(lock(client, b"l", 1))
            waiting = lock(client, b"l", 2)
            await served.until(lambda: len(queued(served, b"l/")) == 2, "both queue up")
            await asyncio.sleep(0)
        answer = await client.finish(waiting)
        assert answer.code in (None, Code.UNAVAILABLE)
        client.writer.transport.abort()

    run(scenario())
