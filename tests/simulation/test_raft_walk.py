"""Seeded random walks over the core: a smoke set on every change, as many as there is time for in `make soak`.

A failure prints its seed, its last steps and the command that replays it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from raft_cluster import Walk

SUPPORT = Path(__file__).parents[1] / "support" / "raft_cluster.py"
SMOKE_SEEDS = 160
SEEDS_A_TEST = 20
EVENTS = 1000
SOAK_FIRST = 1_000_000
REGRESSIONS = Path(__file__).with_name("raft_regressions.txt")


@pytest.mark.parametrize("first", range(0, SMOKE_SEEDS, SEEDS_A_TEST))
def test_smoke(first: int) -> None:
    for seed in range(first, first + SEEDS_A_TEST):
        Walk(seed).run(EVENTS)


def regressions() -> list[tuple[int, int, str]]:
    rows = [line.split(None, 2) for line in REGRESSIONS.read_text().splitlines() if line.strip() and line[0] != "#"]
    return [(int(seed), int(events), why) for seed, events, why in rows]


@pytest.mark.parametrize(("seed", "events", "why"), regressions())
def test_seed_that_once_failed(seed: int, events: int, why: str) -> None:
    Walk(seed).run(events)


def test_the_walks_reach_what_they_are_for() -> None:
    """A walk that elects nobody, commits nothing or reads nothing proves nothing."""
    walks = [Walk(seed) for seed in range(40)]
    for walk in walks:
        walk.run(EVENTS)
    assert sum(walk.invariants.elections for walk in walks) > 60
    assert sum(walk.invariants.commit_max for walk in walks) > 1000
    assert sum(walk.invariants.reads_ready for walk in walks) > 100
    actors = [actor for walk in walks for actor in walk.stage.actors.values()]
    assert sum(actor.disk.durable.snapshot.index > 0 for actor in actors) > 20
    assert any(actor.halted for actor in actors)


def test_a_seed_is_the_same_in_every_process() -> None:
    """Nothing but the seed may decide: not the order of sets, not the hash seed, not the clock."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from raft_cluster import Walk\n"
        "for seed in range(6):\n"
        "    walk = Walk(seed); walk.run(600); print(list(walk.trace)[-20:], walk.picture())\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program, str(SUPPORT.parent)],
            env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
            timeout=250,
        ).stdout
        for hash_seed in ("1", "77")
    }
    assert len(outputs) == 1


@pytest.mark.soak
def test_soak() -> None:
    end = time.monotonic() + float(os.environ.get("SOAK_SECONDS", "600"))
    seed = SOAK_FIRST
    while time.monotonic() < end:
        Walk(seed).run(EVENTS)
        seed += 1
