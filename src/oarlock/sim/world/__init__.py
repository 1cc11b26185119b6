"""Whole members in one thread under virtual time: consensus, log, snapshots, sessions and the key-value machine, driven
by a seed through networks, disks, clocks and people that fail. (docs/explanation/simulation.md)

`run_seed` runs one seed and says what came of it; `shrink` makes a failing one short; `World` is the thing itself.
"""

from oarlock.sim.world.outcome import Outcome, Replay, run_replay, run_seed
from oarlock.sim.world.world import World

__all__ = ["Outcome", "Replay", "World", "run_replay", "run_seed"]
