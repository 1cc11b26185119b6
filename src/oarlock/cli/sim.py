"""`oarlock sim`: run seeds of the simulated world on all cores, stop at the first failure, replay and shrink it.

Exit codes: 0 every seed held; 1 a seed failed; 2 the command line or a replay file is wrong; 130 interrupted.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import Any

import click

from oarlock import __version__
from oarlock.cli.campaign import campaign, dask_campaign
from oarlock.cli.exits import Exit
from oarlock.cli.scopes import scopes
from oarlock.errors import ConfigurationError
from oarlock.lab.diagram import diagram_page
from oarlock.sim.retell import retell
from oarlock.sim.scenario import ScenarioError, play
from oarlock.sim.world import Outcome, Replay, run_replay
from oarlock.sim.world.choices import Choices
from oarlock.sim.world.markers import markers as all_markers
from oarlock.sim.world.outcome import MARKER
from oarlock.sim.world.recording import Recording
from oarlock.sim.world.shrink import ATTEMPTS_MAX, Shrinker
from oarlock.sim.world.swarm import CLASSES, FEATURES, draw_swarm
from oarlock.sim.world.world import EVENTS

EXIT_CLEAN = 0
EXIT_FAILED = 1
TRACE_LINES = 120  # of a failure, on the terminal


@click.group(name="sim", invoke_without_command=True)
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
@click.option(
    "--off",
    multiple=True,
    type=click.Choice((*CLASSES, *FEATURES)),
    help="A class of faults, or a feature, to leave out; repeatable.",
)
@click.option("--replay", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Run a replay file.")
@click.option("--digest", is_flag=True, help="Print the digest of the trace, or of all traces, on the last line.")
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
@click.option(
    "--html",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Draw the end of the run (of the failure) into this file.",
)
@click.option(
    "--scenario",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Play this scenario on the core's stage instead, and print what it records.",
)
@click.option("--jobs", type=click.IntRange(1), default=None, help="Processes (default: one for each core).")
@click.option(
    "--dask", metavar="ADDRESS", default=None, help="Run the seeds on the workers of this dask.distributed scheduler."
)
@click.option("--markers", is_flag=True, help="Say which rare branches of the source no seed reached (slower).")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@click.pass_context
def sim(
    context: click.Context,
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
    html: Path | None,
    scenario: Path | None,
    jobs: int | None,
    dask: str | None,
    markers: bool,
    as_json: bool,
) -> None:
    """Run whole members on simulated networks, disks and clocks that fail, and check everything they promise.

    A seed decides everything. The first one that fails is printed with the invariant that broke and the command that
    runs it again.
    """
    if context.invoked_subcommand is not None:
        return
    gc.freeze()
    if replay is not None and seed is not None:
        raise click.UsageError("--replay and --seed exclude each other: a replay file names its seed")
    if scenario is not None:
        raise SystemExit(_play(scenario))
    if markers and (replay is not None or seed is not None):
        raise click.UsageError("--markers is about many seeds: without --seed and --replay")
    if dask is not None and (replay is not None or seed is not None or jobs is not None):
        raise click.UsageError("--dask is for many seeds on other machines: without --seed, --replay and --jobs")
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
        _finish(
            [outcome],
            run,
            None,
            shrink=shrink,
            attempts=attempts,
            output=output,
            html=html,
            as_json=as_json,
            trace=trace,
        )
        if digest:
            click.echo(outcome.digest)
        raise SystemExit(EXIT_FAILED if outcome.failed else EXIT_CLEAN)
    if trace:
        raise click.UsageError("--trace needs --seed or --replay: it is about one run")
    began = time.monotonic()
    outcomes: list[Outcome] = []
    interrupted = False
    numbers, classes = range(start, start + seeds), frozenset(off)
    source: Iterator[Outcome]
    if dask is not None:
        source = dask_campaign(numbers, events, classes, dask, markers=markers)
    else:
        source = campaign(numbers, events, classes, jobs or os.cpu_count() or 1, markers=markers)
    with _Progress(seeds, quiet=as_json) as progress:
        try:
            for outcome in source:
                outcomes.append(outcome)
                progress.advance(outcome)
        except KeyboardInterrupt:
            interrupted = True
    seconds = time.monotonic() - began
    failed = min((outcome for outcome in outcomes if outcome.failed), key=lambda o: o.seed, default=None)
    run = Replay(seed=failed.seed if failed is not None else start, events=events, off=sorted(off))
    if interrupted:
        click.echo(f"interrupted after {len(outcomes)} of {seeds} seeds; what was under way is not counted", err=True)
        if outcomes:
            gap = _first_gap(outcomes)
            click.echo(f"go on with: oarlock sim --start {gap} --seeds {start + seeds - gap}", err=True)
    _finish(
        outcomes,
        run,
        seconds,
        shrink=shrink and not interrupted,
        attempts=attempts,
        output=output,
        html=html if not interrupted else None,
        as_json=as_json,
        trace=False,
        markers=markers,
    )
    if digest:
        click.echo(_digest_of_all(outcomes))
    if failed is not None:
        raise SystemExit(EXIT_FAILED)
    raise SystemExit(int(Exit.INTERRUPTED) if interrupted else EXIT_CLEAN)


def _digest_of_all(outcomes: list[Outcome]) -> str:
    """One digest for a campaign: equal for equal seeds, wherever and in whatever order they ran."""
    whole = blake2b(digest_size=16)
    for outcome in sorted(outcomes, key=lambda o: o.seed):
        whole.update(f"{outcome.seed} {outcome.digest}\n".encode())
    return whole.hexdigest()


def _first_gap(outcomes: list[Outcome]) -> int:
    """Where to go on: the lowest seed from the first one on that did not run."""
    ran = {outcome.seed for outcome in outcomes}
    seed = min(ran)
    while seed in ran:
        seed += 1
    return seed


def _finish(
    outcomes: list[Outcome],
    run: Replay,
    seconds: float | None,
    *,
    shrink: bool,
    attempts: int,
    output: Path | None,
    html: Path | None,
    as_json: bool,
    trace: bool,
    markers: bool = False,
) -> None:
    failed = min((outcome for outcome in outcomes if outcome.failed), key=lambda o: o.seed, default=None)
    report: dict[str, Any] = {"version": __version__, "seeds": len(outcomes), "events": run.events}
    if outcomes:
        report["first_seed"] = min(outcome.seed for outcome in outcomes)
        report["next_seed"] = _first_gap(outcomes)
    totals: Counter[str] = Counter()
    for outcome in outcomes:
        totals.update(outcome.statistics)
    reached = {name.removeprefix(MARKER): totals.pop(name) for name in list(totals) if name.startswith(MARKER)}
    never = [str(marker) for marker in all_markers() if marker.name not in reached] if markers else []
    if markers:
        report["markers"] = {"reached": dict(sorted(reached.items())), "never": never}
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
        recording = Recording()
        failed = run_replay(small, keep=None, recording=recording)
        report["shrunk"] = {"file": str(path), "attempts": shrinker.attempts, "turns": failed.turns, "off": small.off}
        report["shrunk"] |= _retold(small, failed, recording, path)
        run = small
    if html is not None and (failed is not None or seconds is None):
        command = failed.command(run.events) if failed is not None else f"oarlock sim --seed {run.seed} --digest"
        if "shrunk" in report:
            command = f"oarlock sim --replay {report['shrunk']['file']} --digest"
        _draw(html, run, command, report.get("shrunk", {}).get("scenario"))
        report["html"] = str(html)
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
    if markers:
        click.echo(f"{len(reached)} markers reached, {len(never)} never" + ":" * bool(never))
        for marker in never:
            click.echo(f"  {marker}")
    if failed is None:
        click.echo("every invariant held" if outcomes else "nothing ran")
    else:
        click.echo(f"seed {failed.seed} failed in phase {failed.phase}, turn {failed.turns}: {failed.what}")
        if "shrunk" in report:
            shrunk = report["shrunk"]
            if shrunk["scenario"] is not None:
                click.echo(f"scenario: oarlock sim --scenario {shrunk['scenario']} ({shrunk['commands']} commands)")
            else:
                click.echo(f"no scenario: {shrunk['why']}; the list of events above is all there is")
            click.echo(f"replay: oarlock sim --replay {shrunk['file']} --digest")
        else:
            click.echo(f"replay: {failed.command(run.events)}")


def _retold(small: Replay, failed: Outcome, recording: Recording, path: Path) -> dict[str, Any]:
    """Try to say the failure as a scenario of the core, in a file beside the replay."""
    swarm = draw_swarm(Choices(small.seed, small.edits or None), frozenset(small.off))
    found = retell(
        recording, swarm, failed.invariant, failed.what, f"Seed {small.seed} of the simulated world, made short."
    )
    if not found.text:
        return {"scenario": None, "why": found.why}
    file = path.with_name(path.name.removesuffix(".json").removesuffix(".replay") + ".scn")
    file.write_text(found.text, encoding="utf-8")
    return {"scenario": str(file), "commands": found.commands}


def _draw(html: Path, run: Replay, command: str, scenario: str | None) -> None:
    """The end of a run as a sequence diagram."""
    recording = Recording()
    outcome = run_replay(run, keep=None, recording=recording)
    swarm = draw_swarm(Choices(run.seed, run.edits or None), frozenset(run.off))
    facts = [
        ("run it again", command),
        ("faults", ", ".join(sorted(swarm.classes)) or "none"),
        ("features", ", ".join(sorted(swarm.features)) or "none"),
        ("where", f"phase {outcome.phase}, turn {outcome.turns}, {recording.moments[-1].at / 1e6:.1f} ms"),
    ]
    texts = [("everything that happened, as text", outcome.trace)]
    if scenario is not None:
        texts.insert(0, ("as a scenario of the core", Path(scenario).read_text(encoding="utf-8")))
    text = diagram_page(
        recording,
        f"oarlock sim: seed {run.seed}",
        violation=outcome.what,
        invariant=outcome.invariant,
        facts=facts,
        texts=texts,
    )
    try:
        html.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"cannot write {html}: {error.strerror}") from error


def _play(scenario: Path) -> int:
    """Play a scenario file; 0: it held, 1: an invariant broke. A wrong one names line and column."""
    try:
        click.echo(play(scenario.read_text(encoding="utf-8"), str(scenario)), nl=False)
    except (ScenarioError, UnicodeDecodeError) as error:
        raise ConfigurationError(str(error)) from None
    except AssertionError as error:  # a violation, an assert of the core, or a group that does not settle
        click.echo(str(error))
        for note in getattr(error, "__notes__", []):
            click.echo(note)
        return EXIT_FAILED
    return EXIT_CLEAN


def _told(replay: Replay, attempts: int) -> None:
    edits = sum(len(values) for values in replay.edits.values())
    click.echo(f"shrinking: {attempts} runs, {len(replay.off)} classes off, {edits} choices taken back", err=True)


class _Progress:
    """A bar on stderr, if that is a terminal: seeds, how many a second, how long it will take."""

    def __init__(self, total: int, *, quiet: bool) -> None:
        self._bar: Any = None
        self._total = total
        self._entries = 0
        self._quiet = quiet or not sys.stderr.isatty()

    def __enter__(self) -> _Progress:
        if not self._quiet:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            self._bar = Progress(
                TextColumn("seeds"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task("seeds", total=self._total, rate="")
        return self

    def advance(self, outcome: Outcome) -> None:
        if self._bar is None:
            return
        self._entries += outcome.statistics.get("committed", 0)
        speed = self._bar.tasks[0].speed
        rate = f"{speed:.1f} a second, " if speed else ""
        self._bar.update(self._task, advance=1, rate=f"{rate}{self._entries} entries committed")

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()


sim.add_command(scopes)

if __name__ == "__main__":
    sim()
