"""One seed, run: what came of it, as a value that can be printed, stored and run again."""

from __future__ import annotations

import gc
from dataclasses import dataclass, field
from typing import Any

import msgspec

from oarlock import __version__
from oarlock.errors import ConfigurationError
from oarlock.sim.failures import Violation
from oarlock.sim.world.application import Application
from oarlock.sim.world.choices import Edits
from oarlock.sim.world.features import EtcdApplication
from oarlock.sim.world.markers import watching
from oarlock.sim.world.recording import Recording
from oarlock.sim.world.swarm import CLASSES, FEATURES
from oarlock.sim.world.trace import trace_text
from oarlock.sim.world.world import EVENTS, TRACE_KEPT, World

REPLAY_FORMAT = 1
MARKER = "marker."
"""What the names of markers begin with among the statistics."""


class Replay(msgspec.Struct, kw_only=True, frozen=True):
    """What makes a run: a seed, and what is different from the plain run of that seed. Stored as JSON.

    `edits` are choices that take another value: kind -> number of the choice -> value.
    """

    format: int = REPLAY_FORMAT
    version: str = __version__
    seed: int
    events: int = EVENTS
    off: list[str] = []
    stop_after: int | None = None
    edits: dict[str, dict[int, int]] = {}
    invariant: str = ""  # what it shows
    reason: str = ""

    def world(
        self,
        *,
        keep: int | None = TRACE_KEPT,
        application: Application | None = None,
        recording: Recording | None = None,
    ) -> World:
        edits: Edits | None = self.edits or None
        return World(
            self.seed,
            events=self.events,
            off=frozenset(self.off),
            edits=edits,
            stop_after=self.stop_after,
            keep=keep,
            application=application,
            recording=recording,
        )

    def dump(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"

    @staticmethod
    def load(data: bytes, name: str) -> Replay:
        """Raises `ConfigurationError` for a file that is none, or of another version."""
        try:
            replay = msgspec.json.decode(data, type=Replay)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{name} is not a replay file: {error}") from error
        if replay.format != REPLAY_FORMAT:
            raise ConfigurationError(f"{name} has format {replay.format}; this version reads {REPLAY_FORMAT}")
        unknown = sorted(set(replay.off) - {*CLASSES, *FEATURES})
        if unknown:
            raise ConfigurationError(f"{name} turns off {', '.join(unknown)}, which this version does not have")
        return replay


@dataclass(slots=True)
class Outcome:
    """`invariant` is empty if everything held. `statistics` count what the run reached."""

    seed: int
    invariant: str = ""
    what: str = ""
    phase: str = ""
    turns: int = 0
    digest: str = ""
    trace: str = ""
    statistics: dict[str, int] = field(default_factory=dict)

    @property
    def failed(self) -> bool:
        return bool(self.invariant)

    def command(self, events: int = EVENTS) -> str:
        """The line that runs it again."""
        more = f" --events {events}" if events != EVENTS else ""
        return f"oarlock sim --seed {self.seed}{more} --digest"


def run_seed(seed: int, *, events: int = EVENTS, off: frozenset[str] = frozenset(), markers: bool = False) -> Outcome:
    """Run one seed through all phases. With `markers` the statistics say which rare branches it reached (slower)."""
    replay = Replay(seed=seed, events=events, off=sorted(off))
    if not markers:
        return run_replay(replay)
    with watching() as reached:
        outcome = run_replay(replay)
    outcome.statistics.update((f"{MARKER}{name}", 1) for name in sorted(reached))
    return outcome


def run_replay(
    replay: Replay,
    *,
    keep: int | None = TRACE_KEPT,
    application: Application | None = None,
    recording: Recording | None = None,
) -> Outcome:
    """Run what a replay describes, with the key-value machine or another application."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        return _run_replay(replay, keep, application, recording)
    finally:
        if collecting:
            gc.collect(0)  # the world is gone, and nothing that was there before it has to be looked at
            gc.enable()


def _run_replay(
    replay: Replay, keep: int | None, application: Application | None, recording: Recording | None
) -> Outcome:
    outcome = Outcome(replay.seed)
    world: World | None = None
    try:
        world = replay.world(keep=keep, application=application, recording=recording)
        world.run()
    except Violation as violation:
        outcome.invariant = violation.name
        outcome.what = str(violation)
    if world is not None:
        outcome.phase = world.phase
        outcome.turns = world.turns
        outcome.digest = world.digest()
        if outcome.failed or keep is None:
            outcome.trace = trace_text(world)
        outcome.statistics = statistics(world)
    return outcome


def statistics(world: World) -> dict[str, Any]:
    """What a run reached: a run that elects nobody, commits nothing and reads nothing proves nothing."""
    oracle = world.oracle
    return {
        "turns": world.turns,
        "virtual_ms": world.now // 1_000_000,
        "messages": world.network.sent,
        "dropped": world.network.dropped,
        "encoded": world.network.encoded,
        "members": len(world.processes),
        "elections": oracle.elections,
        "committed": oracle.commit_max,
        "writes": oracle.writes,
        "reads": oracle.reads,
        "repeats": oracle.model.repeats,
        "recoveries": oracle.recoveries,
        "torn": oracle.torn,
        "cuts": oracle.cuts,
        "sent_early": oracle.sent_early,
        "snapshots": len(oracle.digests),
        "configurations": oracle.configuration_index and 1,
        "removed": len(oracle.configuration.removed),
        "broken": sum(bool(p.broken) for p in world.processes.values()),
        "done": int(world.phase == "done"),
        **(world.application.told() if isinstance(world.application, EtcdApplication) else {}),
        **{f"fault.{name}": count for name, count in sorted(world.faults.struck.items())},
    }
