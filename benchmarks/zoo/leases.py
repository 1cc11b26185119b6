"""Leases that clients hold: who may end one, and when. Hunted by the seeds that draw leases, and by
the keeper's own test where seeds cannot tell."""

from __future__ import annotations

from typing import Final

from benchmarks.zoo.entry import Arena, Edit, Entry

KEEPER: Final = "node/replica/leases.py"
GROUP: Final = "tests/unit/node/test_node_leases.py"

ENTRIES: Final = (
    Entry(
        id="BZ-120",
        name="a stuck former leader revokes leases",
        source="etcd #15247, #16822",
        trigger="a leader is cut off or stalls, a lease expires on its clock, and its end reaches the log later",
        edits=(
            Edit(
                KEEPER,
                "        if self._due and self._expiry_confirmed:\n",
                "        if self._due:\n",
            ),
            Edit(
                "machines/kv/machine.py",
                "        if command.term != self._term:\n            return Refused(KvError.LEASE_OF_OTHER_TERM",
                "        if command.term > self._term:\n            return Refused(KvError.LEASE_OF_OTHER_TERM",
            ),
        ),
        arena=Arena.TESTS,
        tests=(f"{GROUP}::test_a_leader_that_cannot_confirm_itself_ends_nothing_and_promises_nothing",),
        note="both fences go: the read round before an end, and the term that it carries. Seeds show nothing: an end "
        "is an entry of its leader's own term, and becomes committed only while nobody else leads",
    ),
    Entry(
        id="BZ-122",
        name="a lease's time begins anew at each failover",
        source="etcd #13508, #14253",
        trigger="leaders change more often than the TTL",
        edits=(
            Edit(
                KEEPER,
                "{lease: ceiling for lease, (_, ceiling) in book.items()}",
                "{lease: book.clock + ttl * SECOND for lease, (ttl, _) in book.items()}",
            ),
        ),
    ),
)
