"""Seeds of the simulated world: a smoke set on every change, those that once failed, and whether they reach enough.

A failure prints its seed, the invariant, the last events and the command that runs it again.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from oarlock.sim.world import Outcome, run_seed
from oarlock.sim.world.choices import Choices
from oarlock.sim.world.swarm import CLASSES, FEATURES, draw_swarm

SMOKE_SEEDS = 40
SEEDS_A_TEST = 8
SOAK_FIRST = 1_000_000
REGRESSIONS = Path(__file__).with_name("regressions.txt")


def check(outcome: Outcome) -> None:
    if outcome.failed:
        where = f"phase {outcome.phase}, turn {outcome.turns}"
        pytest.fail(f"{outcome.trace}\n{outcome.what}\n{where}\n{outcome.command()}")


@pytest.mark.parametrize("first", range(0, SMOKE_SEEDS, SEEDS_A_TEST))
def test_smoke(first: int) -> None:
    for seed in range(first, first + SEEDS_A_TEST):
        check(run_seed(seed))


def regressions() -> list[tuple[int, frozenset[str], str]]:
    """Seed, what is off, and why it once failed."""
    found = []
    for line in REGRESSIONS.read_text().splitlines():
        if line.strip() and line[0] != "#":
            seed, off, why = line.split(None, 2)
            found.append((int(seed), frozenset(off.split(",")) - {"-"}, why))
    return found


@pytest.mark.parametrize(("seed", "off", "why"), regressions())
def test_seed_that_once_failed(seed: int, off: frozenset[str], why: str) -> None:
    assert off <= {*CLASSES, *FEATURES}, f"{off} cannot be off"
    check(run_seed(seed, off=off))


def test_every_feature_is_drawn_and_used() -> None:
    """Watches, leases and authentication, each alone and with the others; and every one of them does something."""
    combinations = {draw_swarm(Choices(seed), frozenset()).features for seed in range(100)}
    assert len(combinations) == 2 ** len(FEATURES)
    totals: Counter[str] = Counter()
    wanted = ("watches.events", "watches.moves", "leases.granted", "leases.renewed", "auth.changes", "auth.denials")
    for seed in range(600, 700):
        if len(draw_swarm(Choices(seed), frozenset()).features) > 1:
            outcome = run_seed(seed)
            check(outcome)
            totals.update(outcome.statistics)
            if all(totals[name] > 5 for name in wanted):
                return
    raise AssertionError(f"too little: {[(name, totals[name]) for name in wanted]}")


def test_what_is_off_is_not_drawn() -> None:
    seed = next(s for s in range(100) if len(draw_swarm(Choices(s), frozenset()).features) == len(FEATURES))
    assert not draw_swarm(Choices(seed), frozenset(FEATURES)).features


def test_the_seeds_reach_what_they_are_for() -> None:
    """A world that elects nobody, commits nothing, reads nothing and breaks nothing proves nothing."""
    totals: Counter[str] = Counter()
    for seed in range(500, 514):
        outcome = run_seed(seed)
        check(outcome)
        totals.update(outcome.statistics)
    assert totals["elections"] > 40
    assert totals["committed"] > 300
    assert totals["writes"] > 200
    assert totals["reads"] > 80
    assert totals["recoveries"] > 100
    assert totals["snapshots"] > 50
    assert totals["done"] >= 13


def test_every_class_of_fault_is_drawn() -> None:
    seen = Counter(name for seed in range(300) for name in draw_swarm(Choices(seed), frozenset()).classes)
    assert set(seen) == set(CLASSES)
    assert min(seen.values()) > 15


def test_a_seed_is_the_same_in_every_process() -> None:
    """Nothing but the seed may decide: not the order of sets, not the hash seed, not the clock."""
    program = "from oarlock.sim.world import run_seed\nfor seed in (3, 17, 205, 220): print(run_seed(seed).digest)\n"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
            timeout=250,
        ).stdout
        for hash_seed in ("1", "77")
    }
    assert len(outputs) == 1
    assert len(set(outputs.pop().split())) == 4


@pytest.mark.soak
def test_soak() -> None:
    end = time.monotonic() + float(os.environ.get("SOAK_SECONDS", "600"))
    seed = SOAK_FIRST
    while time.monotonic() < end:
        check(run_seed(seed))
        seed += 1
