"""The determinism gate: a seed is the same run in every process. Nothing but the seed decides: not the order of sets,
not the hashes of strings, not the clock, the zone, the working directory or the moment at which a thread gives way.

Two fresh processes run the same seeds with different hash seeds and switch intervals; every digest must agree. The
seeds are chosen so that together they show both values of every yes or no of a configuration, and every class of fault.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from oarlock.sim.world.choices import Choices
from oarlock.sim.world.swarm import CLASSES, Swarm, draw_swarm

EVENTS = 500
SEEDS_MAX = 24
PROGRAM = """
import sys
sys.setswitchinterval(float(sys.argv[1]))
from oarlock.sim.world import World, run_seed
if sys.argv[2] == "planted":
    real = World.up
    def up(self):
        by_name = {f"member {process.id}": process for process in real(self)}
        return [by_name[name] for name in set(by_name)]  # the order of a set of strings
    World.up = up
for seed in map(int, sys.argv[4:]):
    outcome = run_seed(seed, events=int(sys.argv[3]))
    print(seed, outcome.digest, outcome.turns, outcome.invariant or "held")
"""


def features(swarm: Swarm) -> set[tuple[str, object]]:
    """What a configuration shows: every on/off choice, the kinds of members, the classes of faults."""
    found: set[tuple[str, object]] = {("class", name) for name in swarm.classes}
    for field in dataclasses.fields(swarm):
        value = getattr(swarm, field.name)
        if isinstance(value, bool):
            found.add((field.name, value))
    found |= {
        ("voters", min(swarm.voters, 5)),
        ("learners", bool(swarm.learners)),
        ("witnesses", bool(swarm.witnesses)),
    }
    return found


def covering_seeds() -> list[int]:
    """The first seeds that show something that none before them did."""
    seen: set[tuple[str, object]] = set()
    chosen: list[int] = []
    for seed in range(400):
        news = features(draw_swarm(Choices(seed), frozenset())) - seen
        if news:
            chosen.append(seed)
            seen |= news
    assert {name for kind, name in seen if kind == "class"} == set(CLASSES)
    two_valued = [f.name for f in dataclasses.fields(Swarm) if {(f.name, True), (f.name, False)} <= seen]
    assert len(two_valued) >= 5, two_valued
    assert len(chosen) <= SEEDS_MAX
    return chosen


def digests(seeds: list[int], hash_seed: str, interval: str, directory: Path, *, planted: bool = False) -> list[str]:
    environment = {
        **os.environ,
        "PYTHONHASHSEED": hash_seed,
        "PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path if path),
        "TZ": "Asia/Kathmandu" if hash_seed == "1" else "UTC",
    }
    arguments = [interval, "planted" if planted else "plain", str(EVENTS), *map(str, seeds)]
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_a_seed_is_the_same_in_every_process(tmp_path: Path) -> None:
    seeds = covering_seeds()
    one = digests(seeds, "1", "0.005", tmp_path)
    other = digests(seeds, "31337", "0.000001", Path.cwd())
    assert one == other
    assert len(one) == len(seeds)
    assert len({line.split()[1] for line in one}) == len(seeds), "two seeds with one digest: it says too little"


@pytest.mark.interpreted
def test_the_order_of_a_set_of_strings_is_noticed(tmp_path: Path) -> None:
    seeds = covering_seeds()[:4]
    runs = [digests(seeds, hash_seed, "0.005", tmp_path, planted=True) for hash_seed in ("1", "31337", "99")]
    assert any(run != runs[0] for run in runs), "a choice that rested on a set's order went unnoticed"
