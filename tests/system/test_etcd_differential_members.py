"""The Cluster service beside a real etcd 3.5: the same requests to clusters of the same shape, answers alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.support.clusters import STEADY, find_leader, wait_until

from oarlock.api import proto
from oarlock.cli.local_cluster import LocalCluster, MemberProcess, etcd_program, oarlock_program

grpc = pytest.importorskip("grpc")

pytestmark = pytest.mark.timeout(400)
FREE = "http://127.0.0.1:9"
Answer = tuple[str, str]


def m(name: str, **fields: Any) -> Any:
    return proto.message(f"etcdserverpb.{name}")(**fields)


def call(member: MemberProcess, rpc: str, request: Any, *, timeout: float = 120.0) -> tuple[Answer, Any]:
    """(code and text, response or None)."""
    response_class = proto.message(f"etcdserverpb.{rpc}Response")
    with grpc.insecure_channel(member.endpoint) as channel:
        method = channel.unary_unary(
            f"/etcdserverpb.Cluster/{rpc}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response_class.FromString,
        )
        try:
            return ("OK", ""), method(request, timeout=timeout)
        except grpc.RpcError as error:
            return (error.code().name, error.details()), None


class Side:
    """One of the two clusters: requests name members by number."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.cluster = cluster
        self.order = list(cluster.members)

    def ids(self) -> dict[str, int]:
        _, listed = call(self.order[0], "MemberList", m("MemberListRequest", linearizable=True))
        return {member.peerURLs[0]: member.ID for member in listed.members}

    def id_of(self, number: int) -> int:
        return self.ids()[self.order[number].peer_url]

    def shape(self, response: Any) -> Any:
        """A response without what differs between clusters."""
        if response is None:
            return None
        names = {member.peer_url: f"member {n}" for n, member in enumerate(self.order)}
        rows = sorted(
            (tuple(names.get(url, url) for url in x.peerURLs), bool(x.name), len(x.clientURLs), x.isLearner)
            for x in response.members
        )
        added = response.member.isLearner if response.DESCRIPTOR.name == "MemberAddResponse" else None
        header = response.header
        return rows, added, bool(header.cluster_id), bool(header.member_id), header.revision, header.raft_term > 0


@pytest.fixture(scope="module")
def both() -> Iterator[tuple[Side, Side]]:
    with LocalCluster(etcd_program(), 3) as theirs, LocalCluster(oarlock_program().with_flags(*STEADY), 3) as ours:
        theirs.start()
        ours.start()
        sides = Side(theirs), Side(ours)
        for side in sides:
            wait_until(lambda side=side: not unhealthy(side, side.order[1].peer_url), 120, "healthy", poll=0.2)  # type: ignore[misc]
        yield sides


def unhealthy(side: Side, url: str) -> bool:
    """Whether an addition is refused for the cluster's health, as etcd does until five seconds after its members have
    met. The URL of a member is refused in any case."""
    answer, _ = call(find_leader(side.cluster), "MemberAdd", m("MemberAddRequest", peerURLs=[url]))
    return answer[1] == "etcdserver: unhealthy cluster"


def same(both: tuple[Side, Side], rpc: str, make: Callable[[Side], Any]) -> Answer:
    found = []
    for side in both:
        leader = find_leader(side.cluster)
        answer, response = call(leader, rpc, make(side))
        found.append((answer, side.shape(response)))
    assert found[0] == found[1], f"{rpc}\netcd: {found[0]}\nours: {found[1]}"
    return found[0][0]


def test_lists_are_alike(both: tuple[Side, Side]) -> None:
    assert same(both, "MemberList", lambda side: m("MemberListRequest", linearizable=True)) == ("OK", "")
    assert same(both, "MemberList", lambda side: m("MemberListRequest")) == ("OK", "")


REFUSED: list[tuple[str, Callable[[Side], Any]]] = [
    ("MemberAdd", lambda side: m("MemberAddRequest")),
    ("MemberAdd", lambda side: m("MemberAddRequest", peerURLs=["file:///etc/passwd"])),
    ("MemberAdd", lambda side: m("MemberAddRequest", peerURLs=["http://127.0.0.1"])),
    ("MemberAdd", lambda side: m("MemberAddRequest", peerURLs=["http://127.0.0.1:1/path"])),
    ("MemberAdd", lambda side: m("MemberAddRequest", peerURLs=["127.0.0.1:1"])),
    ("MemberAdd", lambda side: m("MemberAddRequest", peerURLs=[side.order[1].peer_url])),
    ("MemberAdd", lambda side: m("MemberAddRequest", peerURLs=[FREE, side.order[1].peer_url], isLearner=True)),
    ("MemberRemove", lambda side: m("MemberRemoveRequest", ID=0)),
    ("MemberRemove", lambda side: m("MemberRemoveRequest", ID=12345)),
    ("MemberUpdate", lambda side: m("MemberUpdateRequest", ID=12345, peerURLs=[FREE])),
    ("MemberUpdate", lambda side: m("MemberUpdateRequest", ID=side.id_of(0), peerURLs=[side.order[1].peer_url])),
    ("MemberPromote", lambda side: m("MemberPromoteRequest", ID=12345)),
    ("MemberPromote", lambda side: m("MemberPromoteRequest", ID=side.id_of(0))),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_refusals_are_alike(both: tuple[Side, Side], number: int) -> None:
    rpc, make = REFUSED[number]
    code, _ = same(both, rpc, make)
    assert code != "OK"


def test_a_learner_is_added_refused_twice_and_removed_alike(both: tuple[Side, Side]) -> None:
    add = lambda side: m("MemberAddRequest", peerURLs=[FREE], isLearner=True)  # noqa: E731
    assert same(both, "MemberAdd", add) == ("OK", "")
    other = lambda side: m("MemberAddRequest", peerURLs=["http://127.0.0.1:10"], isLearner=True)  # noqa: E731
    assert same(both, "MemberAdd", other)[0] != "OK"
    gone: dict[Side, int] = {}

    def remove(side: Side) -> Any:
        gone.setdefault(side, side.ids().get(FREE, 0))
        return m("MemberRemoveRequest", ID=gone[side])

    assert same(both, "MemberRemove", remove) == ("OK", "")
    assert same(both, "MemberRemove", remove)[0] == "NOT_FOUND"  # and once more: an id that was removed
    assert same(both, "MemberList", lambda side: m("MemberListRequest", linearizable=True)) == ("OK", "")


def test_with_a_member_down_the_same_is_refused(both: tuple[Side, Side]) -> None:
    down: dict[Side, int] = {}
    for side in both:
        leader = find_leader(side.cluster)
        number = next(n for n, member in enumerate(side.order) if member is not leader and n)
        down[side] = number
        side.order[number].kill()

    for side in both:
        wait_until(lambda side=side: unhealthy(side, side.order[0].peer_url), 120, "it is seen", poll=0.2)  # type: ignore[misc]
    assert same(both, "MemberAdd", lambda side: m("MemberAddRequest", peerURLs=[FREE]))[0] != "OK"
    assert same(both, "MemberAdd", lambda side: m("MemberAddRequest", peerURLs=[FREE], isLearner=True))[0] != "OK"

    def one_that_is_up(side: Side) -> Any:
        leader = find_leader(side.cluster)
        number = next(n for n, x in enumerate(side.order) if x is not leader and n != down[side])
        return m("MemberRemoveRequest", ID=side.id_of(number))

    assert same(both, "MemberRemove", one_that_is_up)[0] != "OK"


def test_the_last_member_stays(both: tuple[Side, Side]) -> None:
    with LocalCluster(etcd_program(), 1) as theirs, LocalCluster(oarlock_program(), 1) as ours:
        theirs.start()
        ours.start()
        alone = (Side(theirs), Side(ours))
        time.sleep(7)  # etcd calls a cluster healthy after five seconds
        assert same(alone, "MemberRemove", lambda side: m("MemberRemoveRequest", ID=side.id_of(0)))[0] != "OK"
