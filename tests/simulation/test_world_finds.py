"""The simulated world finds planted defects: each by an invariant, within a few seeds. Without this its silence means
nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from tests.support.planted_defects import (
    acknowledge_before_the_sync,
    count_one_too_many,
    delete_nothing,
    keep_stable_on_truncation,
    read_before_the_term_is_committed,
    snapshot_with_todays_configuration,
)

from oarlock.node.replica.pending import Reads
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


def forget_to_sync(patch: Patch) -> None:
    real = SimFile.datasync

    def datasync(self: SimFile) -> None:
        if not self.path.endswith(".wal"):
            real(self)

    patch.setattr(SimFile, "datasync", datasync)


def answer_reads_before_they_are_applied(patch: Patch) -> None:
    real = Reads.ready
    patch.setattr(Reads, "ready", lambda self, token, index, applied: real(self, token, 0, applied))


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
