"""Requests that must be refused: the code and text that clients know, nothing half-applied, the cluster as before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from tests.support.clusters import assert_all_equal, cluster_of, contents, runs_etcd
from tests.support.etcd_wire import EQUAL, VERSION, EtcdClient, M, op

from oarlock.cli.local_cluster import LocalCluster

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with cluster_of(3) as started:
        yield started


@pytest.fixture(params=[0, 1, 2], ids=["m1", "m2", "m3"])
def client(request: pytest.FixtureRequest, cluster: LocalCluster) -> Iterator[EtcdClient]:
    """A client of each member in turn: whoever leads, two of them are followers."""
    with EtcdClient(cluster.members[request.param].endpoint) as connected:
        yield connected


@pytest.fixture(autouse=True)
def nothing_changes(cluster: LocalCluster) -> Iterator[None]:
    """Around every test: the store is at the same revision afterwards, alike on all members, and all are alive."""
    before = assert_all_equal(cluster)
    revision = contents(cluster.members[0])[0]
    yield
    assert all(member.running for member in cluster.members)
    assert assert_all_equal(cluster) == before
    assert contents(cluster.members[0])[0] == revision


def refused(call: Any, code: grpc.StatusCode, text: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    error = caught.value
    assert isinstance(error, grpc.Call)
    assert (error.code(), error.details()) == (code, text)


def test_empty_key(client: EtcdClient) -> None:
    for call in (
        lambda: client.put(b"", b"x"),
        lambda: client.get(b""),
        lambda: client.delete(b""),
        lambda: client.call("Txn", success=[op(M["PutRequest"](key=b"", value=b"x"))]),
    ):
        refused(call, grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: key is not provided")


def test_request_over_one_and_a_half_mebibytes(client: EtcdClient) -> None:
    text = "etcdserver: request is too large"
    refused(lambda: client.put(b"big", bytes(1536 * 1024 + 1)), grpc.StatusCode.INVALID_ARGUMENT, text)
    items = [op(M["PutRequest"](key=b"big%d" % n, value=bytes(100 * 1024))) for n in range(16)]
    refused(lambda: client.call("Txn", success=items), grpc.StatusCode.INVALID_ARGUMENT, text)


def test_message_that_is_not_even_read(client: EtcdClient) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        client.put(b"big", bytes(8 * MIB))
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_future_and_compacted_revision(client: EtcdClient) -> None:
    code = grpc.StatusCode.OUT_OF_RANGE
    future = "etcdserver: mvcc: required revision is a future revision"
    refused(lambda: client.get(b"k", revision=10**9), code, future)
    refused(lambda: client.call("Compact", revision=10**9), code, future)


def nested(depth: int, leaves: list[Any]) -> list[Any]:
    """Operations at the given depth of transactions within transactions."""
    for _ in range(depth):
        leaves = [op(M["TxnRequest"](success=leaves))]
    return leaves


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_more_than_128_operations_anywhere(client: EtcdClient, depth: int) -> None:
    puts = [op(M["PutRequest"](key=b"k%d" % n, value=b"x")) for n in range(129)]
    code, text = grpc.StatusCode.INVALID_ARGUMENT, "etcdserver: too many operations in txn request"
    refused(lambda: client.call("Txn", success=nested(depth, puts)), code, text)
    refused(lambda: client.call("Txn", failure=nested(depth, puts)), code, text)
    compares = [M["Compare"](result=EQUAL, target=VERSION, key=b"k%d" % n, version=0) for n in range(129)]
    refused(lambda: client.call("Txn", compare=compares), code, text)


def test_key_put_twice_in_one_transaction(client: EtcdClient) -> None:
    puts = [op(M["PutRequest"](key=b"k", value=b"%d" % n)) for n in range(2)]
    text = "etcdserver: duplicate key given in txn request"
    refused(lambda: client.call("Txn", success=puts), grpc.StatusCode.INVALID_ARGUMENT, text)
    refused(lambda: client.call("Txn", success=nested(1, puts)), grpc.StatusCode.INVALID_ARGUMENT, text)


def test_unknown_sort_order(client: EtcdClient) -> None:
    if runs_etcd():
        pytest.skip("etcd checks this only in later versions")
    text = "etcdserver: invalid sort option"
    refused(lambda: client.get(b"k", sort_order=9), grpc.StatusCode.INVALID_ARGUMENT, text)
    refused(lambda: client.get(b"k", sort_target=9), grpc.StatusCode.INVALID_ARGUMENT, text)


def test_body_that_is_no_protobuf(client: EtcdClient) -> None:
    for body in (b"\xff" * 40, b"\x0a\xff\xff\xff\x7f", b"\x0a"):
        call = client.channel.unary_unary("/etcdserverpb.KV/Put")
        with pytest.raises(grpc.RpcError) as caught:
            call(body, timeout=120)
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT)


def test_unknown_method_and_service(client: EtcdClient) -> None:
    for path in ("/etcdserverpb.KV/Nothing", "/nobody.Nothing/Put"):
        with pytest.raises(grpc.RpcError) as caught:
            client.channel.unary_unary(path)(b"", timeout=120)
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
