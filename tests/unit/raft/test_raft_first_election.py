"""How soon a member that has just started asks for votes."""

from __future__ import annotations

import random

import pytest

from oarlock.raft.config import MS
from oarlock.raft.core import Raft, RaftConfig
from oarlock.raft.types import Configuration, HardState, SnapshotMeta


def first_deadline(seed: int, *, term: int = 0, pre_vote: bool = True, lease_reads: bool = False) -> int:
    raft = Raft(
        RaftConfig(id=1, pre_vote=pre_vote, lease_reads=lease_reads), hard_state=HardState(term=term),
        snapshot=SnapshotMeta(), entries=(), applied=0, initial=Configuration.of_voters(1, 2, 3), incarnation=0,
        rng=random.Random(seed), now=0,
    )  # fmt: skip
    return raft.next_deadline()


@pytest.mark.parametrize("term", [0, 7])
def test_with_prevote_after_two_to_seven_heartbeats(term: int) -> None:
    deadlines = [first_deadline(seed, term=term) for seed in range(200)]
    assert 200 * MS <= min(deadlines) < 250 * MS
    assert 650 * MS < max(deadlines) < 700 * MS


def test_without_prevote_after_a_whole_timeout() -> None:
    """Its vote request would depose a living leader."""
    assert all(1000 * MS <= first_deadline(seed, pre_vote=False) < 2000 * MS for seed in range(200))


def test_a_restarted_member_whose_patience_a_lease_may_rest_on_waits_it_out() -> None:
    assert all(first_deadline(seed, term=3, lease_reads=True) >= 1000 * MS for seed in range(200))
