"""`oarlock sim`: run seeds of the simulated world on all cores, stop at the first failure, replay and shrink it.

Exit codes: 0 every seed held; 1 a seed failed; 2 the command line or a replay file is wrong.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click

from oarlock import __version__
from oarlock.sim.world import Outcome, Replay, run_replay, run_seed
from oarlock.sim.world.shrink import ATTEMPTS_MAX, Shrinker
from oarlock.sim.world.swarm import CLASSES
from oarlock.sim.world.world import EVENTS

EXIT_CLEAN = 0
EXIT_FAILED = 1
SEEDS_A_TASK = 4
TASKS_AHEAD = 3  # for each process
TRACE_LINES = 120  # of a failure, on the terminal


@click.command(name="sim")
@click.option("--seeds", type=click.IntRange(1), default=100, show_default=True, help="How many seeds to run.")
@click.option("--start", type=click.IntRange(0), default=0, show_default=True, help="The first seed.")
@click.option("--seed", type=click.IntRange(0), default=None, help="Run this one seed only.")
@click.option(
    "--events",
    type=click.IntRange(1),
    default=EVENTS,
    show_default=True,
    help="Turns of members while faults strike; what comes after is not counted.",
)
@click.option("--off", multiple=True, type=click.Choice(CLASSES), help="A class of faults to leave out; repeatable.")
@click.option("--replay", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Run a replay file.")
@click.option(
    "--digest", is_flag=True, help="Print the digest of the trace on the last line (needs --seed or --replay)."
)
@click.option("--trace", is_flag=True, help="Print everything that happened (needs --seed or --replay).")
@click.option("--shrink", is_flag=True, help="Make a failing run as short as possible and write it as a replay file.")
@click.option(
    "--attempts",
    type=click.IntRange(1),
    default=ATTEMPTS_MAX,
    show_default=True,
    help="How many runs shrinking may take.",
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="Where --shrink writes (default: seed-<S>.replay.json)."
)
@click.option("--jobs", type=click.IntRange(1), default=None, help="Processes (default: one for each core).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def sim(
    seeds: int,
    start: int,
    seed: int | None,
    events: int,
    off: tuple[str, ...],
    replay: Path | None,
    digest: bool,
    trace: bool,
    shrink: bool,
    attempts: int,
    output: Path | None,
    jobs: int | None,
    as_json: bool,
) -> None:
    """Run whole members on simulated networks, disks and clocks that fail, and check everything they promise.

    A seed decides everything. The first one that fails is printed with the invariant that broke and the command that
    runs it again.
    """
    gc.freeze()
    if replay is not None and seed is not None:
        raise click.UsageError("--replay and --seed exclude each other: a replay file names its seed")
    if replay is not None or seed is not None:
        if replay is not None:
            run = Replay.load(replay.read_bytes(), str(replay))
            if run.version != __version__:
                click.echo(
                    f"{replay} was written by version {run.version}, this is {__version__}: it may not replay", err=True
                )
        else:
            assert seed is not None
            run = Replay(seed=seed, events=events, off=sorted(off))
        outcome = run_replay(run, keep=None) if trace else run_replay(run)
        _finish([outcome], run, None, shrink=shrink, attempts=attempts, output=output, as_json=as_json, trace=trace)
        if digest:
            click.echo(outcome.digest)
        raise SystemExit(EXIT_FAILED if outcome.failed else EXIT_CLEAN)
    if digest or trace:
        raise click.UsageError("--digest and --trace need --seed or --replay: they are about one run")
    began = time.monotonic()
    outcomes: list[Outcome] = []
    failed: Outcome | None = None
    progress = _Progress(seeds, quiet=as_json)
    for outcome in _campaign(range(start, start + seeds), events, frozenset(off), jobs or os.cpu_count() or 1):
        outcomes.append(outcome)
        progress.advance(outcome)
        if outcome.failed and (failed is None or outcome.seed < failed.seed):
            failed = outcome
    progress.close()
    seconds = time.monotonic() - began
    run = Replay(seed=failed.seed if failed is not None else start, events=events, off=sorted(off))
    _finish(outcomes, run, seconds, shrink=shrink, attempts=attempts, output=output, as_json=as_json, trace=False)
    raise SystemExit(EXIT_FAILED if failed is not None else EXIT_CLEAN)


def _campaign(seeds: range, events: int, off: frozenset[str], jobs: int) -> Iterator[Outcome]:
    """Outcomes as they come; nothing new is begun after a failure."""
    if jobs == 1:
        for seed in seeds:
            outcome = run_seed(seed, events=events, off=off)
            yield outcome
            if outcome.failed:
                return
        return
    tasks = iter([seeds[at : at + SEEDS_A_TASK] for at in range(0, len(seeds), SEEDS_A_TASK)])
    with ProcessPoolExecutor(jobs, mp_context=get_context("fork")) as pool:
        under_way: set[Future[list[Outcome]]] = set()
        stopping = False
        while True:
            while not stopping and len(under_way) < jobs * TASKS_AHEAD and (task := next(tasks, None)) is not None:
                under_way.add(pool.submit(_task, task, events, off))
            if not under_way:
                return
            done, under_way = wait(under_way, return_when=FIRST_COMPLETED)
            for future in done:
                if future.cancelled():
                    continue
                for outcome in future.result():
                    yield outcome
                    stopping = stopping or outcome.failed
            if stopping:
                for future in under_way:
                    future.cancel()


def _task(seeds: range, events: int, off: frozenset[str]) -> list[Outcome]:
    outcomes: list[Outcome] = []
    for seed in seeds:
        outcomes.append(run_seed(seed, events=events, off=off))
        if outcomes[-1].failed:
            break
    return outcomes


def _finish(
    outcomes: list[Outcome],
    run: Replay,
    seconds: float | None,
    *,
    shrink: bool,
    attempts: int,
    output: Path | None,
    as_json: bool,
    trace: bool,
) -> None:
    failed = min((outcome for outcome in outcomes if outcome.failed), key=lambda o: o.seed, default=None)
    report: dict[str, Any] = {"version": __version__, "seeds": len(outcomes), "events": run.events}
    totals: Counter[str] = Counter()
    for outcome in outcomes:
        totals.update(outcome.statistics)
    report["statistics"] = dict(sorted(totals.items()))
    if seconds is not None:
        report["seconds"] = round(seconds, 3)
        report["seeds_per_second"] = round(len(outcomes) / max(seconds, 1e-9), 2)
    if failed is not None:
        report["failure"] = {**asdict(failed), "command": failed.command(run.events)}
    if failed is not None and shrink:
        shrinker = Shrinker(run, attempts=attempts, progress=_told if not as_json else None)
        small = shrinker.shrink()
        path = output if output is not None else Path(f"seed-{run.seed}.replay.json")
        path.write_bytes(small.dump())
        failed = run_replay(small, keep=None)
        report["shrunk"] = {"file": str(path), "attempts": shrinker.attempts, "turns": failed.turns, "off": small.off}
    if as_json:
        click.echo(json.dumps(report, indent=2))
        return
    if trace or failed is not None:
        whole = (failed if failed is not None else outcomes[0]).trace
        lines = whole.splitlines()
        if not trace and not shrink:
            lines = lines[-TRACE_LINES:]
        for line in lines:
            click.echo(line)
    if seconds is not None:
        click.echo(
            f"{len(outcomes)} seeds in {seconds:.1f} s ({report['seeds_per_second']} a second): {totals['turns']} "
            f"turns, {totals['committed']} entries committed, {totals['elections']} elections, "
            f"{totals['recoveries']} recoveries"
        )
    if failed is None:
        click.echo("every invariant held")
    else:
        click.echo(f"seed {failed.seed} failed in phase {failed.phase}, turn {failed.turns}: {failed.what}")
        if "shrunk" in report:
            click.echo(f"replay: oarlock sim --replay {report['shrunk']['file']} --digest")
        else:
            click.echo(f"replay: {failed.command(run.events)}")


def _told(replay: Replay, attempts: int) -> None:
    edits = sum(len(values) for values in replay.edits.values())
    click.echo(f"shrinking: {attempts} runs, {len(replay.off)} classes off, {edits} choices taken back", err=True)


class _Progress:
    """A bar on stderr, if that is a terminal."""

    def __init__(self, total: int, *, quiet: bool) -> None:
        self._bar: Any = None
        if not quiet and sys.stderr.isatty():
            self._bar = click.progressbar(length=total, label="seeds", file=sys.stderr)
            self._bar.__enter__()

    def advance(self, outcome: Outcome) -> None:
        if self._bar is not None:
            self._bar.update(1)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.__exit__(None, None, None)


if __name__ == "__main__":
    sim()
