"""Runs a workload through seeds, makes a failure short, and says what a person needs to know of it."""

from __future__ import annotations

import inspect
import os
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from oarlock import __version__
from oarlock.errors import ConfigurationError
from oarlock.sim.world.outcome import Outcome, Replay, run_replay
from oarlock.sim.world.shrink import Shrinker
from oarlock.sim.world.swarm import CLASSES
from oarlock.testing.application import MachineApplication
from oarlock.testing.guard import SECONDS_MAX
from oarlock.testing.hashorder import HashOrder, compare_hash_seeds
from oarlock.testing.workload import Workload

EVENTS: Final = 400
SHRINK_ATTEMPTS: Final = 150
LOOP_ATTEMPTS: Final = 25  # every one of them waits for the timer
LOOP_SECONDS: Final = 0.3  # of CPU time for a call, while a loop is made shorter
LOG_LINES: Final = 12
HASH_SEEDS: Final = 3  # seeds whose committed log is applied again in two processes with different hash seeds
TRACE_LINES: Final = 24
REGRESSIONS: Final = "regressions"  # the folder beside the test file

FAULTS: Final[dict[str, tuple[str, ...]]] = {
    "network": (
        "loss", "duplicate", "ghost", "jitter", "partition", "bridge", "one_way", "flap", "clog", "reset", "strand",
    ),
    "crashes": ("kill", "power", "crash_all", "crash_effect", "crash_recovery", "pause", "slow_cpu", "hint"),
    "disks": ("slow_disk", "sync_failure", "eio", "full", "rot", "wipe"),
    "clocks": ("drift", "wall", "freeze"),
    "people": ("transfer", "members", "replace", "retry", "abandon", "big"),
}  # fmt: skip
"""Names for groups of fault classes; `faults=` takes these and the classes themselves."""

_MEANING: Final[dict[str, str]] = {
    "IMPURE": "the machine asked for something that is not the same on every member",
    "LOOPS": "the machine did not come back: every member would hang at this entry, after every restart again",
    "RAISES": "the machine raised: every member would stop at this entry, after every restart again",
    "CHECK": "the state is one that `check` forbids",
    "MODEL": "the machine and the model do not agree",
    "RESTORE": "what `dump` writes is not what `load` makes of it: a member that gets a snapshot would differ",
    "HASH": "machines that applied the same commands hold different states: something besides the commands decides "
            "(time, randomness, the order of a set, an object's id), or `dump` and `load` forget something",
    "LIN": "a client was told something else than the machine answers when the log is applied in order: an update was "
           "lost or came twice on a member that was restored from a snapshot, or the machine is not deterministic",
    "READ": "a read showed something else than the committed log makes of the machine",
    "ORDER": "the result depends on PYTHONHASHSEED: something goes through a set, or uses hash()",
}  # fmt: skip

_OURS: Final = (
    "a promise of Oarlock itself is broken, which no machine should be able to do: please report it, with the replay "
    "file"
)

W = TypeVar("W", bound=type[Workload])


@dataclass(slots=True)
class Report:
    """What came of a run: `invariant` is empty if every seed held."""

    workload: str
    seeds: int = 0
    seconds: float = 0.0
    statistics: Counter[str] = field(default_factory=Counter)
    hash_order: str = ""  # how the order of hashes was looked at, or why not
    invariant: str = ""
    what: str = ""
    seed: int = 0
    phase: str = ""
    turns: int = 0
    shrunk: Replay | None = None
    file: str = ""
    command: str = ""
    trace: str = ""
    log: str = ""
    hints: list[str] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return bool(self.invariant)

    def text(self) -> str:
        totals = self.statistics
        done = (
            f"{self.workload}: {self.seeds} seeds in {self.seconds:.1f} s, {totals['committed']} entries, "
            f"{totals['reads']} reads, {totals['elections']} elections, {totals['recoveries']} recoveries, "
            f"{totals['snapshots']} snapshots"
        )
        if not self.failed:
            return f"{done}\nevery invariant held; {self.hash_order}"
        lines = [f"seed {self.seed} of {self.workload} failed: {self.what}"]
        lines += ["", f"what that means: {_MEANING.get(self.invariant, _OURS)}"]
        lines += [f"a hint: {hint}" for hint in self.hints]
        if self.shrunk is not None:
            lines += ["", f"made shorter: {self.turns} turns of members are left"]
        if self.log:
            lines += ["", "the last committed commands, and their answers if the log is applied in order:"]
            lines += [f"  {line}" for line in self.log.splitlines()]
        if self.trace:
            lines += ["", "the last things that happened (member, what came in <-, what it did ->):"]
            lines += [f"  {line}" for line in self.trace.splitlines()[-TRACE_LINES:]]
        lines += ["", f"replay: {self.command}"]
        if self.file:
            lines.append(f"kept as {self.file}: it runs first from now on, until you delete it")
        return "\n".join(lines)


def classes_of(faults: Sequence[str] | None) -> frozenset[str]:
    """The classes that `faults` names. None: all. Raises `ConfigurationError` for a name that there is not."""
    if faults is None:
        return frozenset(CLASSES)
    if isinstance(faults, str):
        raise ConfigurationError(f"faults={faults!r}: a list of names is wanted, such as [{faults!r}]")
    found: set[str] = set()
    for name in faults:
        if name in FAULTS:
            found.update(FAULTS[name])
        elif name in CLASSES:
            found.add(name)
        else:
            raise ConfigurationError(
                f"faults: {name!r} is none; there are the groups {', '.join(FAULTS)} and the classes "
                f"{', '.join(CLASSES)}"
            )
    return frozenset(found)


def run(
    workload: type[Workload],
    *,
    seeds: int = 200,
    start: int = 0,
    faults: Sequence[str] | None = None,
    events: int = EVENTS,
    shrink: bool = True,
    regressions: Path | None = None,
    only: Replay | None = None,
    progress: Callable[[int], None] | None = None,
) -> Report:
    """Run `workload` through seeds `start`, `start + 1`, ... until one fails.

    `regressions` is a folder: replay files in it run first, and a new failure is written there. `only` runs that one
    replay. Raises `ConfigurationError` for a workload that cannot run at all.
    """
    off = sorted(frozenset(CLASSES) - classes_of(faults))
    report = Report(workload.__name__)
    began = time.monotonic()
    replays = [only] if only is not None else _kept(workload, regressions)
    fresh = 0 if only is not None else seeds
    hash_orders: list[HashOrder] = []
    for number in range(len(replays) + fresh):
        if number < len(replays):
            replay = replays[number]
        else:
            replay = Replay(seed=start + number - len(replays), events=events, off=off)
        known = bool(replay.invariant)  # of a file: it has been made short already
        application = MachineApplication(workload())
        outcome = run_replay(replay, application=application)
        report.seeds += 1
        report.statistics.update(outcome.statistics)
        if not outcome.failed and not known and len(hash_orders) < HASH_SEEDS and len(application.entries) > 1:
            order = compare_hash_seeds(workload, application.entries)
            hash_orders.append(order)
            report.hash_order = order.said
            if order.difference:
                outcome.invariant, outcome.what = "ORDER", f"ORDER: {order.difference}"
                outcome.trace = ""
        if progress is not None:
            progress(1)
        if outcome.failed:
            _tell(report, workload, replay, outcome, application, shrink and not known, regressions)
            break
    report.seconds = time.monotonic() - began
    return report


def _tell(
    report: Report,
    workload: type[Workload],
    replay: Replay,
    outcome: Outcome,
    application: MachineApplication,
    shrink: bool,
    regressions: Path | None,
) -> None:
    report.invariant, report.what, report.seed = outcome.invariant, outcome.what, replay.seed
    small = replay
    if shrink and outcome.invariant != "ORDER":
        loops = outcome.invariant == "LOOPS"
        seconds = LOOP_SECONDS if loops else SECONDS_MAX
        shrinker = Shrinker(
            replay,
            attempts=LOOP_ATTEMPTS if loops else SHRINK_ATTEMPTS,
            application=lambda: MachineApplication(workload(), seconds),
        )
        small = shrinker.shrink()
        application = MachineApplication(workload())
        outcome = run_replay(small, application=application)
        report.what = outcome.what or report.what
        report.shrunk = small
    report.phase, report.turns, report.trace = outcome.phase, outcome.turns, outcome.trace
    report.log = application.log_text(LOG_LINES)
    if outcome.invariant in ("HASH", "LIN", "READ", "RESTORE"):
        report.hints = application.forgotten()
    file, test = _where(workload)
    report.command = f"python -m pytest {shlex.quote(f'{file}::{test}')} --oarlock-seed={replay.seed}"
    if regressions is not None and shrink and outcome.invariant != "ORDER":
        path = regressions / f"{workload.__name__}.seed-{replay.seed}.json"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(small.dump())
        except OSError as error:
            report.what += f"\n(the regression file {path} could not be written: {error.strerror})"
            return
        report.file = _relative(path)
        report.command = (
            f"python -m pytest {shlex.quote(f'{file}::{test}')} --oarlock-replay={shlex.quote(report.file)}"
        )


def _kept(workload: type[Workload], regressions: Path | None) -> list[Replay]:
    if regressions is None or not regressions.is_dir():
        return []
    return [load_replay(path) for path in sorted(regressions.glob(f"{workload.__name__}.*.json"))]


def load_replay(path: Path) -> Replay:
    """A replay file; one of another version is run with a warning. Raises `ConfigurationError`."""
    try:
        replay = Replay.load(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigurationError(f"cannot read {path}: {error.strerror}") from error
    if replay.version != __version__:
        sys.stderr.write(f"{path} was written by version {replay.version}, this is {__version__}: it may not replay\n")
    return replay


def _where(workload: type[Workload]) -> tuple[str, str]:
    """The file and the name under which pytest knows a workload."""
    try:
        file = inspect.getfile(workload)
    except (TypeError, OSError):
        file = "<unknown>"
    return _relative(Path(file)), workload.__qualname__.replace(".", "::")


def _relative(path: Path) -> str:
    try:
        return os.path.relpath(path)
    except ValueError:  # another drive
        return str(path)


def regressions_of(workload: type[Workload]) -> Path:
    """The folder in which the failures of a workload are kept: beside its file."""
    return Path(inspect.getfile(workload)).resolve().parent / REGRESSIONS


def simulated(
    *, seeds: int = 200, start: int = 0, faults: Sequence[str] | None = None, events: int = EVENTS, keep: bool = True
) -> Callable[[W], W]:
    """Make a test of a `Workload`: the class gets a method `test_simulated`, which pytest runs.

    `seeds` worlds are tried, beginning with number `start`; `faults` names what may go wrong in them (None: everything;
    `[]`: nothing); `events` bounds a seed, in turns of members. With `keep`, a failure is written into the folder
    `regressions` beside the test file and runs first from then on.
    """
    classes_of(faults)

    def decorate(workload: W) -> W:
        if not issubclass(workload, Workload):
            raise ConfigurationError("@simulated decorates a subclass of oarlock.testing.Workload")
        if not hasattr(workload, "machine"):
            raise ConfigurationError(f"{workload.__name__} must say in `machine` how a machine is made")

        def test_simulated(self: Workload, request: Any) -> None:
            import pytest

            option = request.config.getoption
            replay: Replay | None = None
            count, first = option("oarlock_seeds", default=None) or seeds, start
            one = option("oarlock_seed", default=None)
            path = option("oarlock_replay", default=None)
            if path is not None:
                replay = load_replay(Path(path))
            elif one is not None:
                replay = Replay(seed=one, events=events, off=sorted(frozenset(CLASSES) - classes_of(faults)))
            report = run(
                workload,
                seeds=count,
                start=first,
                faults=faults,
                events=events,
                regressions=regressions_of(workload) if keep else None,
                only=replay,
            )
            if report.failed:
                pytest.fail(report.text(), pytrace=False)
            sys.stdout.write(report.text() + "\n")

        workload.test_simulated = test_simulated  # type: ignore[attr-defined]
        return workload

    return decorate
