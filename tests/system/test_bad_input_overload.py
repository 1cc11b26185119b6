"""More than the members can take: a clear refusal, nothing half-applied, and full service afterwards."""

from __future__ import annotations

import contextlib
import signal
import threading

import grpc
import pytest
from tests.support.clusters import assert_all_equal, cluster_of, find_leader, runs_etcd, wait_until
from tests.support.etcd_wire import EtcdClient

MIB = 1024 * 1024


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_full_proposal_queue_refuses_and_applies_nothing_of_what_it_refused() -> None:
    """Both followers stand still, so nothing is committed and what arrives piles up at the leader to its bound.

    The election timeout is long: the leader shall meet its bound before it notices that it has lost its majority.
    """
    if runs_etcd():
        pytest.skip("etcd bounds entries not yet applied, not what waits for commitment")
    with cluster_of(3, "--heartbeat-interval=1000", "--election-timeout=50000") as cluster:
        leader = find_leader(cluster)
        followers = [member for member in cluster.members if member is not leader]
        for member in followers:
            member.signal(signal.SIGSTOP)
        outcomes: dict[bytes, grpc.StatusCode | None] = {}
        texts: set[str] = set()

        def put_many(number: int) -> None:
            with EtcdClient(leader.endpoint, timeout=45) as client:
                calls = {}
                for count in range(9):
                    key = b"%d/%d" % (number, count)
                    request = client.channel.unary_unary("/etcdserverpb.KV/Put")
                    body = b"\x0a" + bytes([len(key)]) + key + b"\x12\x80\x80\x40" + bytes(MIB)
                    calls[key] = request.future(body, timeout=45)
                for key, call in calls.items():
                    outcomes[key] = None if call.exception() is None else call.code()
                    if call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                        texts.add(call.details())

        threads = [threading.Thread(target=put_many, args=(number,)) for number in range(10)]
        try:
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            for member in followers:
                member.signal(signal.SIGCONT)
        refused = {key for key, code in outcomes.items() if code is grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert refused, f"90 MiB waiting were not refused: {set(outcomes.values())}"
        assert texts == {"etcdserver: too many requests"}
        for member in cluster.members:
            wait_until(lambda member=member: member.healthy(), 180, f"{member.name} healthy again")

        def put_afterwards() -> bool:
            with EtcdClient(find_leader(cluster).endpoint) as client, contextlib.suppress(grpc.RpcError):
                client.put(b"afterwards", b"1")
                return True
            return False  # who leads may have changed when the followers woke

        wait_until(put_afterwards, 180, "writes taken again")
        rows = assert_all_equal(cluster)
        stored = {row[0] for row in rows}
        assert not stored & refused, "what was refused has been applied"
        assert {key for key, code in outcomes.items() if code is None} <= stored
        assert b"afterwards" in stored


def test_one_clients_flood_costs_others_nothing_but_time() -> None:
    """Four connections keep as many writes under way as they may; another client's calls are answered, and who leads
    goes on leading.

    What is counted are answers and terms; the election timeout leaves room for a machine with much to do.
    """
    if runs_etcd():
        pytest.skip("the bounds are ours")
    with cluster_of(3, "--heartbeat-interval=200", "--election-timeout=10000") as cluster:
        leader = find_leader(cluster)
        with EtcdClient(leader.endpoint, timeout=120) as light:
            term = light.status().raftTerm
            stop = threading.Event()
            flooded: list[int] = []

            def flood(number: int) -> None:
                channel_of_its_own = (("grpc.channel_id", number),)
                with EtcdClient(leader.endpoint, timeout=120, options=channel_of_its_own) as client:
                    put = client.channel.unary_unary("/etcdserverpb.KV/Put")
                    body = b"\x0a\x05flood\x12\x40" + bytes(64)
                    done = 0
                    while not stop.is_set():
                        calls = [put.future(body, timeout=120) for _ in range(1000)]
                        done += sum(call.exception() is None for call in calls)
                    flooded.append(done)

            threads = [threading.Thread(target=flood, args=(number,)) for number in range(4)]
            for thread in threads:
                thread.start()
            try:
                for number in range(40):
                    light.put(b"light", b"%d" % number)
                    assert light.get(b"light").kvs[0].value == b"%d" % number
            finally:
                stop.set()
                for thread in threads:
                    thread.join()
            assert sum(flooded) >= 4000, "there was no flood"
            assert light.status().raftTerm == term, "the flood cost the leader its office"
