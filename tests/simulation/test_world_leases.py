"""Leases under every class of fault: the LEASE checker over seeds, and whether it would see what it is for."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from oarlock.node.replica import leases as keeper
from oarlock.sim.world.features import EtcdApplication
from oarlock.sim.world.outcome import Outcome, Replay, run_replay

SEEDS = 12
EVENTS = 2500


def run(seed: int, *, events: int = EVENTS) -> tuple[Outcome, EtcdApplication]:
    application = EtcdApplication(frozenset({"leases"}))
    return run_replay(Replay(seed=seed, events=events), application=application), application


@pytest.mark.parametrize("first", range(0, SEEDS, 6))
def test_no_lease_ends_early_and_none_comes_back(first: int) -> None:
    for seed in range(first, first + 6):
        outcome, _ = run(seed)
        assert not outcome.failed, f"{outcome.trace}\nseed {seed}: {outcome.invariant} {outcome.what}"


ENOUGH = {"granted": 30, "renewed": 60, "expired": 12, "revoked": 3, "elections": 100}


def test_the_seeds_reach_what_they_are_for() -> None:
    """How many seeds that takes depends on every other part of the world; that it is some dozens does not."""
    totals: Counter[str] = Counter()
    for seed in range(100, 150):
        outcome, application = run(seed)
        assert not outcome.failed, f"seed {seed}: {outcome.invariant} {outcome.what}"
        checker = application.checker
        totals.update(
            granted=checker.granted, renewed=checker.renewed, expired=checker.expired, revoked=checker.revoked,
            elections=outcome.statistics["elections"],
        )  # fmt: skip
        if all(totals[name] >= enough for name, enough in ENOUGH.items()):
            return
    raise AssertionError(f"too little: {totals}")


def finds(monkeypatch: pytest.MonkeyPatch, seeds: range = range(40)) -> Outcome | None:
    for seed in seeds:
        outcome, _ = run(seed)
        if outcome.failed:
            return outcome
    return None


def test_a_new_leader_that_forgets_promises_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = keeper.LeaseKeeper._lead

    def lead(self: Any, term: int) -> None:
        real(self, term)
        for lease in self._deadlines:
            self._deadlines[lease] = self.reading(self._now) + 10**9 // 4
            self._heap.append((self._deadlines[lease], lease))
        self._heap.sort()

    monkeypatch.setattr(keeper.LeaseKeeper, "_lead", lead)
    found = finds(monkeypatch)
    assert found is not None and found.invariant == "LEASE", "nobody noticed"


def test_a_leader_that_promises_above_the_ceiling_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(self: Any, ask: Any) -> None:
        book = self._machine.leases
        reading = self.reading(self._now)
        for lease in ask.renew:
            found = book.get(lease)
            ask.renewed.append(0 if found is None or lease in self._ending else found[0])
            if ask.renewed[-1]:
                self._deadlines[lease] = reading + found[0] * 10**9  # and nobody else knows
        ask.remaining = [0] * len(ask.query)
        self._answer(ask)

    monkeypatch.setattr(keeper.LeaseKeeper, "_work", work)
    found = finds(monkeypatch, range(120))
    assert found is not None and found.invariant == "LEASE", "nobody noticed"
