"""The simulated world finds planted defects: each by an invariant, within a few seeds. Without this its silence means
nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from oarlock.machines.kv.machine import KvMachine
from oarlock.node.replica.pending import Reads
from oarlock.raft import quorum
from oarlock.raft.core import Raft
from oarlock.raft.events import Send
from oarlock.raft.log import Log
from oarlock.raft.types import SnapshotMeta
from oarlock.sim.world import Outcome, run_replay, run_seed
from oarlock.sim.world.outcome import Replay
from oarlock.sim.world.shrink import Shrinker
from oarlock.storage.sim_disk import SimFile

pytestmark = pytest.mark.interpreted
SEEDS = range(5000, 5040)
Patch = pytest.MonkeyPatch


def first_failure(seeds: Iterator[int] | range = SEEDS) -> Outcome:
    for seed in seeds:
        outcome = run_seed(seed)
        if outcome.failed:
            return outcome
    raise AssertionError("nothing was found")


def acknowledge_before_the_sync(patch: Patch) -> None:
    patch.setattr(Raft, "_send_durable", lambda self, to, message, index=0: self._effects.append(Send(to, message)))


def count_one_too_many(patch: Patch) -> None:
    def value(values: Any, voters: frozenset[int]) -> int:
        ascending = sorted(values.get(voter, 0) for voter in voters)
        return ascending[len(ascending) // 2] if ascending else 0

    patch.setattr(quorum, "_majority_value", value)


def forget_to_sync(patch: Patch) -> None:
    real = SimFile.datasync

    def datasync(self: SimFile) -> None:
        if not self.path.endswith(".wal"):
            real(self)

    patch.setattr(SimFile, "datasync", datasync)


def answer_reads_before_they_are_applied(patch: Patch) -> None:
    real = Reads.ready
    patch.setattr(Reads, "ready", lambda self, token, index, applied: real(self, token, 0, applied))


def read_before_the_term_is_committed(patch: Patch) -> None:
    patch.setattr(Raft, "_committed_in_term", lambda self: True)


def keep_stable_on_truncation(patch: Patch) -> None:
    real = Log.truncate_from

    def truncate(self: Log, index: int) -> None:
        stable = self.stable_index
        real(self, index)
        self.stable_index = stable

    patch.setattr(Log, "truncate_from", truncate)


def snapshot_with_todays_configuration(patch: Patch) -> None:
    real = Raft.snapshot_meta

    def meta(self: Raft, index: int) -> SnapshotMeta:
        found = real(self, index)
        return SnapshotMeta(found.index, found.term, self.configuration)

    patch.setattr(Raft, "snapshot_meta", meta)


def delete_nothing(patch: Patch) -> None:
    real = KvMachine._delete_range

    def delete(self: Any, op: Any, writes: Any) -> Any:
        result = real(self, op, writes)
        result.deleted = min(result.deleted, 1)
        return result

    patch.setattr(KvMachine, "_delete_range", delete)


@pytest.mark.parametrize(
    ("plant", "invariants"),
    [
        (acknowledge_before_the_sync, {"ES", "COQ"}),
        (count_one_too_many, {"COQ"}),
        (forget_to_sync, {"COQ", "WAL", "ES"}),
        (answer_reads_before_they_are_applied, {"READ"}),
        (read_before_the_term_is_committed, {"READ", "CFG"}),
        (keep_stable_on_truncation, {"COQ", "ASSERT", "DUR"}),
        (snapshot_with_todays_configuration, {"CFG"}),
        (delete_nothing, {"LIN"}),
    ],
)
def test_a_planted_defect_is_found(plant: Callable[[Patch], None], invariants: set[str], monkeypatch: Patch) -> None:
    plant(monkeypatch)
    assert first_failure().invariant in invariants


def test_a_failure_shrinks_to_a_replay_that_fails_alike(monkeypatch: Patch) -> None:
    answer_reads_before_they_are_applied(monkeypatch)
    failure = first_failure()
    shrinker = Shrinker(Replay(seed=failure.seed), attempts=12)
    small = shrinker.shrink()
    again = run_replay(Replay.load(small.dump(), "the dump"), keep=None)
    assert again.invariant == failure.invariant == small.invariant
    assert again.digest == run_replay(small).digest
    assert small.off, "no class of faults was dropped"
    assert "reads ready" in again.trace


def test_a_seed_that_holds_is_not_shrunk() -> None:
    with pytest.raises(ValueError, match="does not fail"):
        Shrinker(Replay(seed=207))
