"""The same random requests about leases, alarms and hashes to a real etcd and to ours: the answers must be the same.

Remaining TTLs are compared with minutes of tolerance, ids that a server chose not at all, the order of a list not.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from tests.support.etcd_wire import EtcdClient, M, op
from tests.system.test_etcd_differential import Target, ours, real

__all__ = ["ours", "real"]  # fixtures

SEED = int(os.environ.get("OARLOCK_DIFFERENTIAL_SEED", "1"))
COUNT = int(os.environ.get("OARLOCK_DIFFERENTIAL_COUNT", "600"))
LEASES = (1, 2, 3, 0x7FFF_FFFF_FFFF_FFFF, -1, -(2**63))
TTLS = (600, 600, 1000, 7200, 9_000_000_000, 9_000_000_001, 2**63 - 1, 0, 1, -1, -(2**63))
LONG = 600


class Generator:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.alarm = False

    def lease(self) -> int:
        return self.random.choice((*LEASES, *LEASES[:3], 0, 77))

    def key(self) -> bytes:
        return self.random.choice((b"a", b"b", b"c", b"d\0", b"e" * 200))

    def put(self) -> Any:
        draw = self.random
        ignore_lease = draw.random() < 0.15
        lease = 0 if draw.random() < 0.4 else self.lease()
        if ignore_lease and draw.random() < 0.8:
            lease = 0
        value = b"" if (ignore_value := draw.random() < 0.1) else b"v"
        return M["PutRequest"](
            key=self.key(), value=value, lease=lease, prev_kv=True, ignore_lease=ignore_lease, ignore_value=ignore_value
        )

    def next(self) -> tuple[str, Any]:
        draw = self.random
        match draw.choice(
            ("grant",) * 3
            + (
                "revoke",
                "ttl",
                "ttl",
                "leases",
                "alive",
                "put",
                "put",
                "put",
                "delete",
                "txn",
                "range",
                "hash",
                "hash",
                "alarm",
            )
        ):
            case "grant":
                return "LeaseGrant", M["LeaseGrantRequest"](ID=self.lease(), TTL=draw.choice(TTLS))
            case "revoke":
                return "LeaseRevoke", M["LeaseRevokeRequest"](ID=self.lease())
            case "ttl":
                return "LeaseTimeToLive", M["LeaseTimeToLiveRequest"](ID=self.lease(), keys=draw.random() < 0.7)
            case "leases":
                return "LeaseLeases", M["LeaseLeasesRequest"]()
            case "alive":
                return "LeaseKeepAlive", [self.lease() for _ in range(draw.randint(1, 4))]
            case "put":
                return "Put", self.put()
            case "delete":
                return "DeleteRange", M["DeleteRangeRequest"](key=self.key(), prev_kv=True)
            case "hash":
                return "HashKV", M["HashKVRequest"](revision=draw.choice((0, 0, 1, 2, 5, 10, 20, 50, 10**6, -1)))
            case "alarm":
                # On and, nearly always, off again: what else is asked meanwhile must be refused alike.
                self.alarm = not self.alarm
                action = draw.choice((1, 1, 0)) if self.alarm else 2
                return "Alarm", M["AlarmRequest"](action=action, memberID=5, alarm=draw.choice((1, 1, 1, 0)))
            case "txn":
                compare = M["Compare"](result=draw.randint(0, 3), target=4, key=self.key(), lease=self.lease())
                ops = [[op(self.put()) for _ in range(draw.randint(0, 2))] for _ in range(2)]
                return "Txn", M["TxnRequest"](compare=[compare], success=ops[0], failure=ops[1])
        return "Range", M["RangeRequest"](key=b"a", range_end=b"z")


class Leases:
    """What is compared of one server."""

    def __init__(self, target: Target, address: str) -> None:
        self.client = EtcdClient(address, timeout=20.0)
        self.target = target

    def send(self, name: str, request: Any) -> Any:
        try:
            if name == "LeaseKeepAlive":
                return [self.plain(answer) for answer in self.client.keep_alive(*request)]
            response = self.client.send(name, request)
        except grpc.RpcError as error:
            return ("error", error.code().name, error.details())  # type: ignore[attr-defined]
        if name == "LeaseGrant" and not request.ID:
            assert response.ID > 0
            self.client.call("LeaseRevoke", ID=response.ID)
            response.ID = 0
        if name == "LeaseGrant" and request.TTL < LONG:
            assert response.TTL >= 2, "the shortest one follows from the server's election timeout"
            response.TTL = 2
        if name == "LeaseTimeToLive" and response.TTL > 0:
            assert -500 <= response.TTL - response.grantedTTL <= 0
            response.TTL = response.grantedTTL
        if name == "LeaseTimeToLive":  # etcd shows keys in any order
            ordered = sorted(response.keys)
            del response.keys[:]
            response.keys.extend(ordered)
        if name == "HashKV":
            response.ClearField("hash_revision")  # etcd has it since 3.6
        if name == "LeaseLeases":
            ids = sorted(lease.ID for lease in response.leases)
            del response.leases[:]
            response.leases.extend(M["LeaseStatus"](ID=lease) for lease in ids)
        return self.plain(response)

    def plain(self, response: Any) -> str:
        for field in ("cluster_id", "member_id", "raft_term"):
            response.header.ClearField(field)
        return str(response)


@pytest.mark.system
@pytest.mark.timeout(600)
def test_the_same_requests_about_leases_get_the_same_answers(
    real: Callable[[], Target], ours: Callable[[], Target]
) -> None:
    generator = Generator(SEED)
    etcd, us = real(), ours()
    one, other = Leases(etcd, etcd.address), Leases(us, us.address)
    # Leases of etcd's shortest TTL would expire in the middle of the run: those are renewed, or the same everywhere.
    granted = hashes = 0
    for number in range(COUNT):
        name, request = generator.next()
        if name == "LeaseGrant" and request.TTL < LONG and request.ID:
            request.ID = 77 if number % 2 else 0  # shown once, and gone
        expected, actual = one.send(name, request), other.send(name, request)
        assert expected == actual, f"seed {SEED}, request {number} {name}: {request}"
        hashes += name == "HashKV" and "error" not in expected
        granted += name == "LeaseGrant" and "error" not in expected
        if name == "LeaseGrant" and request.ID == 77:
            assert one.send("LeaseRevoke", M["LeaseRevokeRequest"](ID=77)) == other.send(
                "LeaseRevoke", M["LeaseRevokeRequest"](ID=77)
            )
    assert hashes > COUNT // 40, "too few hashes were compared"
    assert granted > COUNT // 60, "the run granted too little to mean anything"


@pytest.mark.system
@pytest.mark.timeout(600)
def test_hashes_after_compactions_are_etcds(real: Callable[[], Target], ours: Callable[[], Target]) -> None:
    """At every revision that can be asked for, after each of some compactions. One put a transaction: of compacted
    ones the sub-revisions are not known."""
    draw = random.Random(SEED)
    etcd, us = real(), ours()
    servers = [Leases(etcd, etcd.address), Leases(us, us.address)]

    def both(name: str, request: Any) -> str:
        expected, actual = (server.send(name, request) for server in servers)
        assert expected == actual, f"seed {SEED} {name}: {request}"
        return str(expected)

    revision = compacted = compared = 1
    for _ in range(6):
        for _ in range(draw.randint(5, 20)):
            key = b"k%d" % draw.randrange(6)
            if draw.random() < 0.3:
                said = both("DeleteRange", M["DeleteRangeRequest"](key=key, range_end=draw.choice((b"", b"k4"))))
            else:
                said = both("Put", M["PutRequest"](key=key, value=b"%d" % draw.randrange(10**6)))
            revision = int(said.partition("revision: ")[2].split()[0])
        for at in [0, *range(compacted, revision + 1)]:
            compared += "hash" in both("HashKV", M["HashKVRequest"](revision=at))
        compacted = draw.randint(compacted + 1, revision)
        both("Compact", M["CompactionRequest"](revision=compacted, physical=True))
    both("DeleteRange", M["DeleteRangeRequest"](key=b"\0", range_end=b"\0"))
    both("HashKV", M["HashKVRequest"]())
    assert compared > 30
