"""The Lease service over a single-member backend: what goes in and out, and what a backend's failures become."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.support.h2_client import Answer, H2Client

from oarlock import errors as raft_errors
from oarlock.api import proto
from oarlock.api.grpc.status import Code


def m(name: str, **fields: Any) -> Any:
    return proto.message(f"etcdserverpb.{name}")(**fields)


async def ask(client: H2Client, rpc: str, request: Any, service: str = "Lease") -> Answer:
    return await client.unary(f"/etcdserverpb.{service}/{rpc}", request.SerializeToString())


async def get(client: H2Client, rpc: str, request: Any, service: str = "Lease") -> Any:
    answer = await ask(client, rpc, request, service)
    assert (answer.code, answer.text) == (0, "")
    name = {"Put": "PutResponse"}.get(rpc, f"{rpc}Response")
    return proto.message(f"etcdserverpb.{name}").FromString(answer.messages[0])


def test_grant_show_list_and_revoke(run: Any, serving: Any, engine: str) -> None:
    async def work() -> None:
        async with serving(engine) as served, await H2Client.connect(served.url) as client:
            granted = await get(client, "LeaseGrant", m("LeaseGrantRequest", TTL=60, ID=7))
            assert (granted.ID, granted.TTL, granted.header.revision, granted.error) == (7, 60, 1, "")
            assert (await get(client, "LeaseGrant", m("LeaseGrantRequest", TTL=-5, ID=-3))).TTL == 2
            drawn = [(await get(client, "LeaseGrant", m("LeaseGrantRequest", TTL=1))).ID for _ in range(3)]
            assert len(set(drawn)) == 3 and all(0 < lease < 2**63 for lease in drawn)
            again = await ask(client, "LeaseGrant", m("LeaseGrantRequest", TTL=60, ID=7))
            assert (again.code, again.text) == (Code.FAILED_PRECONDITION, "etcdserver: lease already exists")
            await get(client, "Put", m("PutRequest", key=b"b", lease=7), "KV")
            await get(client, "Put", m("PutRequest", key=b"a", lease=7), "KV")
            shown = await get(client, "LeaseTimeToLive", m("LeaseTimeToLiveRequest", ID=7, keys=True))
            assert (shown.ID, shown.TTL, shown.grantedTTL, list(shown.keys)) == (7, 60, 60, [b"a", b"b"])
            assert not (await get(client, "LeaseTimeToLive", m("LeaseTimeToLiveRequest", ID=7))).keys
            unknown = await get(client, "LeaseTimeToLive", m("LeaseTimeToLiveRequest", ID=99, keys=True))
            assert (unknown.ID, unknown.TTL, unknown.grantedTTL) == (99, -1, 0)
            listed = await get(client, "LeaseLeases", m("LeaseLeasesRequest"))
            assert sorted(lease.ID for lease in listed.leases) == sorted([7, -3, *drawn])
            revoked = await get(client, "LeaseRevoke", m("LeaseRevokeRequest", ID=7))
            assert revoked.header.revision == 4, "both keys go in one revision"

    run(work())


def test_a_drawn_id_that_is_taken_is_drawn_anew(run: Any, serving: Any, monkeypatch: Any) -> None:
    ids = iter([4, 4, 8])
    monkeypatch.setattr("oarlock.api.etcd.lease.secrets.randbelow", lambda bound: next(ids))

    async def work() -> None:
        async with serving("ngh2") as served, await H2Client.connect(served.url) as client:
            assert (await get(client, "LeaseGrant", m("LeaseGrantRequest", TTL=60))).ID == 5
            assert (await get(client, "LeaseGrant", m("LeaseGrantRequest", TTL=60))).ID == 9

    run(work())


def test_keep_alives_are_answered_in_order(run: Any, serving: Any, engine: str) -> None:
    async def work() -> None:
        async with serving(engine) as served, await H2Client.connect(served.url) as client:
            for lease in range(1, 6):
                await get(client, "LeaseGrant", m("LeaseGrantRequest", TTL=10 * lease, ID=lease))
            asked = [1, 2, 99, 3, -4, 5, 4, 0] * 100
            requests = [m("LeaseKeepAliveRequest", ID=lease).SerializeToString() for lease in asked]
            answer = await client.stream("/etcdserverpb.Lease/LeaseKeepAlive", requests)
            assert answer.code == 0
            got = [proto.message("etcdserverpb.LeaseKeepAliveResponse").FromString(raw) for raw in answer.messages]
            assert [r.ID for r in got] == asked
            assert [r.TTL for r in got] == [10 * lease if 0 < lease < 6 else 0 for lease in asked]
            assert {r.header.revision for r in got} == {1} and {r.header.member_id for r in got} == {
                served.backend.member_id
            }

    run(work())


def test_failures_of_the_backend(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("ngh2") as served, await H2Client.connect(served.url) as client:
            await get(client, "LeaseGrant", m("LeaseGrantRequest", TTL=60, ID=7))
            for error, code, text in (
                (raft_errors.NoLeader(), Code.UNAVAILABLE, "etcdserver: no leader"),
                (raft_errors.DeadlineExceeded("late"), Code.UNAVAILABLE, "etcdserver: request timed out"),
            ):
                served.backend.fail_with = error
                alive = m("LeaseKeepAliveRequest", ID=7).SerializeToString()
                answer = await client.stream("/etcdserverpb.Lease/LeaseKeepAlive", [alive])
                assert (answer.code, answer.text, answer.messages) == (code, text, [])
                for rpc in ("LeaseGrant", "LeaseRevoke", "LeaseTimeToLive", "LeaseLeases"):
                    fields = {} if rpc == "LeaseLeases" else {"ID": 7}
                    answer = await ask(client, rpc, m(f"{rpc}Request", **fields))
                    assert (answer.code, answer.text) == (code, text), rpc
            served.backend.fail_with = None
            served.backend.is_learner = True
            await asyncio.sleep(0)
            served.server.service.refresh()
            for rpc in ("LeaseGrant", "LeaseRevoke", "LeaseTimeToLive", "LeaseLeases"):
                answer = await ask(client, rpc, m(f"{rpc}Request"))
                assert answer.text == "etcdserver: rpc not supported for learner", rpc
            answer = await client.stream("/etcdserverpb.Lease/LeaseKeepAlive", [alive])
            assert answer.text == "etcdserver: rpc not supported for learner"

    run(work())


def test_a_keep_alive_stream_that_wants_a_leader_ends_without_one(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("ngh2", leaderless_s=0.01) as served, await H2Client.connect(served.url) as client:
            stream_id = client.start("/etcdserverpb.Lease/LeaseKeepAlive", [(b"hasleader", b"true")])
            await served.until(lambda: served.server.open_streams == 1, "the stream")
            served.backend.leader = 0
            for _ in range(3):
                served.server.service.refresh()
                await asyncio.sleep(0.02)
            answer = await client.finish(stream_id)
            assert (answer.code, answer.text) == (Code.UNAVAILABLE, "etcdserver: no leader")

    run(work())
