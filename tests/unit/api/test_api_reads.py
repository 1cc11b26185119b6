"""Reads that take long: how much is done in one turn of the event loop, and who is served in between. Work is counted
in units and turns, never in seconds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import ngh2
from tests.support.h2_client import message_frame
from tests.support.single_backend import SingleBackend, make_machine
from tests.unit.api.test_api_fairness import Client

from oarlock.api import proto
from oarlock.api.etcd.reads import Job, Reads
from oarlock.api.grpc import Call, Code, RpcError
from oarlock.api.limits import Limits
from oarlock.api.metrics import Metrics
from oarlock.api.server import ApiServer, start_api
from oarlock.machines.base import Context
from oarlock.machines.kv.commands import Put, encode
from oarlock.machines.kv.commands_lease import LeaseGrant
from oarlock.machines.kv.reading import PAGE_KEYS, STEP_UNITS

KEYS = 6000
UNITS = 2000
TURN_MAX = UNITS + STEP_UNITS + 4 * PAGE_KEYS + 2

_Range = proto.message("etcdserverpb.RangeRequest")
_RangeResponse = proto.message("etcdserverpb.RangeResponse")
_Txn = proto.message("etcdserverpb.TxnRequest")
_TxnResponse = proto.message("etcdserverpb.TxnResponse")
_Put = proto.message("etcdserverpb.PutRequest")
_Leases = proto.message("etcdserverpb.LeaseLeasesRequest")
_LeasesResponse = proto.message("etcdserverpb.LeaseLeasesResponse")
EVERYTHING = {"key": b"\0", "range_end": b"\0"}


def _call(connection: str) -> Any:
    failed: list[tuple[Code, str]] = []
    method = SimpleNamespace(service="test", name="Test")
    call: Any = SimpleNamespace(connection=connection, open=True, failed=failed, method=method)
    call.fail = lambda *status: failed.append(status)
    call.fail_for = lambda error: Call.fail_for(call, error)
    return call


def _job(name: str, steps: int, log: list[str], units: int = 100, held: int = 0) -> Job:
    for step in range(1, steps):
        log.append(name)
        yield units, held * step
    log.append(name + " done")
    return units


def test_one_step_for_everybody_in_turn() -> None:
    async def work() -> None:
        log: list[str] = []
        reads = Reads(Limits(read_units_per_turn=300))
        for name in ("a1", "a2", "b1", "c1"):
            reads.run(_call(name[0]), _job(name, 4, log))
        assert log == ["a1", "b1", "c1"], "each connection began one read, and the turn was over"
        for turn in range(1, 6):
            await asyncio.sleep(0)
            assert len(log) <= 3 + 3 * turn, "a turn has an end"
        while reads.waiting:
            await asyncio.sleep(0)
        done = [entry for entry in log if entry.endswith("done")]
        assert sorted(done[:3]) == ["a1 done", "b1 done", "c1 done"] and done[3] == "a2 done"
        assert max(log[:12].count(name) for name in ("a1", "b1", "c1")) <= 4
        assert reads.units_of_turn_max <= 300

    asyncio.run(work())


def test_with_much_in_memory_one_read_goes_on_at_a_time() -> None:
    async def work() -> None:
        log: list[str] = []
        reads = Reads(Limits(read_units_per_turn=100, read_held_bytes_max=1000))
        for name in ("a", "b", "c"):
            reads.run(_call(name), _job(name, 10, log, held=200))
        while reads.waiting:
            await asyncio.sleep(0)
        done = [entry for entry in log if entry.endswith("done")]
        assert len(done) == 3
        first_end = log.index(done[0])
        assert log[first_end - 4 : first_end] == [done[0].removesuffix(" done")] * 4
        assert reads._held == 0

    asyncio.run(work())


def test_a_read_that_fails_or_is_not_wanted_any_more_ends_alone() -> None:
    async def work() -> None:
        log: list[str] = []
        reads = Reads(Limits(read_units_per_turn=100))

        def failing(error: Exception) -> Job:
            yield 100, 50
            raise error

        refused, broken, gone, good = _call("a"), _call("b"), _call("c"), _call("d")
        reads.run(refused, failing(RpcError(Code.ABORTED, "as asked")))
        reads.run(broken, failing(ZeroDivisionError()))
        reads.run(gone, _job("gone", 9, log, held=10))
        reads.run(good, _job("good", 3, log))
        await asyncio.sleep(0)
        gone.open = False
        while reads.waiting:
            await asyncio.sleep(0)
        assert refused.failed == [(Code.ABORTED, "as asked")]
        assert broken.failed == [(Code.INTERNAL, "internal error: ZeroDivisionError")]
        assert log[-1] == "good done" and "gone done" not in log
        assert reads._held == 0

    asyncio.run(work())


async def _served(work: Callable[[ApiServer, Any], Any], **limits: Any) -> None:
    machine = make_machine()
    machine.apply(Context(1, 1, 0), [encode(Put(b"k%04d" % n, b"v%04d" % n)) for n in range(KEYS)])
    machine.apply(Context(2, 1, 0), [encode(LeaseGrant(n, 60 + n % 7)) for n in range(1, 3001)])
    backend = SingleBackend(machine)
    backend.index = 2
    server = await start_api(backend, [], Metrics(), limits=Limits(read_units_per_turn=UNITS, **limits), engine="ngh2")
    try:
        await work(server, machine)
    finally:
        for connection in list(server._http2):
            connection.connection_lost(None)
        await server.close(0)
        assert server.open_streams == 0 and not machine.moments


def _ask(client: Client, path: str, message: bytes) -> int:
    stream: int = client.h2.send_request(
        [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", path.encode()),
            (b":authority", b"x"),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
        ]
    )
    client.h2.send_data(stream, message_frame(message), end_stream=True)
    client.connection.data_received(client.h2.data_to_send())
    return stream


class Answers:
    """What a client has received, by stream."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.data: dict[int, bytearray] = {}
        self.ended: list[int] = []

    def take(self) -> None:
        written, self.client.transport.written = bytes(self.client.transport.written), bytearray()
        self.client.h2.receive_data(written)
        for event in self.client.h2.events():
            if isinstance(event, ngh2.DataReceived):
                self.data.setdefault(event.stream_id, bytearray()).extend(event.data)
            elif isinstance(event, ngh2.TrailersReceived):
                self.ended.append(event.stream_id)
        if update := self.client.h2.data_to_send():
            self.client.connection.data_received(update)


def test_huge_reads_leave_room_for_everything_else() -> None:
    """Six clients read everything in every expensive way; another one writes, gets a key and reads a few."""

    async def work(server: ApiServer, machine: Any) -> None:
        reads = server.service.context.reads
        huge, light = [Client(server, f"h{n}") for n in range(6)], Client(server, "light")
        requests = [
            _Range(**EVERYTHING, sort_order=2, sort_target=4),
            _Range(**EVERYTHING, min_mod_revision=100, max_mod_revision=KEYS),
            _Range(**EVERYTHING, revision=KEYS // 2),
            _Range(**EVERYTHING, revision=KEYS // 2, count_only=True),
            _Range(**EVERYTHING, serializable=True),
        ]
        answers = [Answers(client) for client in huge]
        streams = [
            _ask(client, "/etcdserverpb.KV/Range", r.SerializeToString())
            for client, r in zip(huge[:5], requests, strict=True)
        ]
        txn = _Txn()
        for _ in range(2):
            txn.success.add().request_range.MergeFrom(_Range(**EVERYTHING, keys_only=True))
        streams.append(_ask(huge[5], "/etcdserverpb.KV/Txn", txn.SerializeToString()))
        passes = 0
        own = Answers(light)
        while not all(stream in a.ended for stream, a in zip(streams, answers, strict=True)):
            wanted = [
                _ask(light, "/etcdserverpb.KV/Put", _Put(key=b"new%d" % passes).SerializeToString()),
                _ask(light, "/etcdserverpb.KV/Range", _Range(key=b"k0001").SerializeToString()),
                _ask(light, "/etcdserverpb.KV/Range", _Range(key=b"k00010", range_end=b"k00020").SerializeToString()),
            ]
            waited = 0
            while not set(wanted) <= set(own.ended):
                await asyncio.sleep(0)
                own.take()
                waited += 1
                assert waited < 20, "the light client waits for the others"
            for one in answers:
                one.take()
            passes += 1
            assert passes < 1000
        assert passes >= 5, "it was all done in a few turns: nothing was divided"
        assert reads.units_of_turn_max <= TURN_MAX, reads.units_of_turn_max
        found = [_RangeResponse.FromString(bytes(answers[n].data[streams[n]])[5:]) for n in range(5)]
        shown = [[kv for kv in r.kvs if kv.key.startswith(b"k")] for r in found]
        assert [len(kvs) for kvs in shown] == [KEYS, KEYS - 99, KEYS // 2 - 1, 0, KEYS]
        assert found[3].count == KEYS // 2 - 1
        assert [kv.value for kv in shown[0]] == [b"v%04d" % n for n in reversed(range(KEYS))]
        both = _TxnResponse.FromString(bytes(answers[5].data[streams[5]])[5:])
        assert both.responses[0] == both.responses[1], "both ranges of a transaction are of one moment"
        assert len(both.responses[0].response_range.kvs) >= KEYS
        assert {r.header.revision for r in found} <= set(range(KEYS + 1, KEYS + 2 + passes))

    asyncio.run(_served(work))


def test_a_long_list_of_leases_is_made_in_turns() -> None:
    async def work(server: ApiServer, machine: Any) -> None:
        client = Client(server, "c")
        answers = Answers(client)
        stream = _ask(client, "/etcdserverpb.Lease/LeaseLeases", _Leases().SerializeToString())
        while stream not in answers.ended:
            await asyncio.sleep(0)
            answers.take()
        assert server.service.context.reads.units_of_turn_max <= TURN_MAX
        found = _LeasesResponse.FromString(bytes(answers.data[stream])[5:])
        assert [lease.ID for lease in found.leases] == machine.leases.ids()
        assert found.header.revision == machine.revision

    asyncio.run(_served(work))


def test_a_client_that_goes_leaves_nothing_behind() -> None:
    async def work(server: ApiServer, machine: Any) -> None:
        client = Client(server, "c")
        _ask(client, "/etcdserverpb.KV/Range", _Range(**EVERYTHING, sort_target=4).SerializeToString())
        while not machine.moments:
            await asyncio.sleep(0)
        client.connection.connection_lost(None)
        reads = server.service.context.reads
        while reads.waiting:
            await asyncio.sleep(0)
        assert not machine.moments and reads._held == 0

    asyncio.run(_served(work))


def test_a_state_that_is_found_to_differ_is_not_shown_by_a_read_under_way() -> None:
    async def work(server: ApiServer, machine: Any) -> None:
        client = Client(server, "c")
        answers = Answers(client)
        stream = _ask(client, "/etcdserverpb.KV/Range", _Range(**EVERYTHING).SerializeToString())
        while not machine.moments:
            await asyncio.sleep(0)
        server.service.context.quarantined = True
        while server.service.context.reads.waiting:
            await asyncio.sleep(0)
        for _ in range(3):
            await asyncio.sleep(0)
        answers.take()
        assert stream not in answers.data, "nothing but a status"

    asyncio.run(_served(work))
