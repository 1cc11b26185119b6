"""The table: on the terminal, in `results.json` beside this file, and in docs/reference/zoo.md."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.zoo.catalogue import DEFECTS, EXCLUDED, LIBERTIES, MUST_BREAK
from benchmarks.zoo.entry import Arena, Entry
from benchmarks.zoo.hunt import Result
from benchmarks.zoo.tree import ROOT

RESULTS: Final = Path(__file__).with_name("results.json")
PAGE: Final = ROOT / "docs" / "reference" / "zoo.md"
BEGIN: Final = "<!-- what follows is written by `make zoo` -->\n"
SURVIVES: Final = {entry.id for entry in LIBERTIES}


@dataclass(slots=True)
class Results:
    """The latest result of each entry, and of the unchanged source."""

    results: dict[str, Result] = field(default_factory=dict)
    baseline: Result | None = None


def load() -> Results:
    if not RESULTS.exists():
        return Results()
    stored = json.loads(RESULTS.read_text())
    clean = stored["baseline"]
    return Results({result["id"]: Result(**result) for result in stored["results"]}, Result(**clean) if clean else None)


def save(results: Results) -> None:
    """Store the results and write the page."""
    known = [entry.id for entry in (*DEFECTS, *LIBERTIES, *MUST_BREAK)]
    stored = {
        "results": [results.results[name].as_json() for name in known if name in results.results],
        "baseline": results.baseline.as_json() if results.baseline else None,
    }
    RESULTS.write_text(json.dumps(stored, indent=1) + "\n")
    if PAGE.exists():
        head = PAGE.read_text().partition(BEGIN)[0]
        PAGE.write_text(head + BEGIN + page(results))


def as_it_should(result: Result) -> bool:
    return result.killed != (result.id in SURVIVES)


def line(result: Result) -> str:
    unproven = " ".join(f"{name}:{count}" for name, count in sorted(result.unproven.items()))
    return (
        f"{result.id:7} {result.invariant or '-':6} {result.seeds:4} seeds {result.seconds:7.1f} s  {unproven:12} "
        f"{result.what[:110]}"
    )


def summary(results: Results) -> str:
    """One sentence on the whole."""
    ran = [results.results[entry.id] for entry in DEFECTS if entry.id in results.results]
    killed = sorted(result.seeds for result in ran if result.killed)
    if not killed:
        return "nothing was killed"
    p95 = killed[min(len(killed) - 1, len(killed) * 95 // 100)]
    waiting = sum(excluded.waiting for excluded in EXCLUDED)
    return (
        f"{len(killed)} of {len(ran)} defects killed, in {median(killed):g} seeds at the median and {p95} at the 95th "
        f"percentile; {len(EXCLUDED) - waiting} cannot be expressed or have no effect, {waiting} wait for their parts"
    )


def page(results: Results) -> str:
    """The part of docs/reference/zoo.md that is written by the program."""
    out = ["", summary(results) + ".", ""]
    clean = results.baseline
    if clean is not None:
        out += [f"The unchanged source holds on seeds 0 to {clean.seeds - 1}.", ""]
    out += ["## Defects", "", *_table(DEFECTS, results)]
    out += ["", "## Liberties that must survive", "", *_table(LIBERTIES, results)]
    out += ["", "## Assumptions that must matter", "", *_table(MUST_BREAK, results)]
    out += ["", "## Not expressible, or without effect", "", "| id | defect | why |", "| --- | --- | --- |"]
    out += [f"| {e.id} | {e.name} | {e.why} |" for e in EXCLUDED if not e.waiting]
    out += ["", "## Waiting", "", "| id | defect | for |", "| --- | --- | --- |"]
    out += [f"| {e.id} | {e.name} | {e.why} |" for e in EXCLUDED if e.waiting]
    return "\n".join(out) + "\n"


def _table(entries: tuple[Entry, ...], results: Results) -> list[str]:
    rows = ["| id | defect | whose | killed by | seeds | seconds |", "| --- | --- | --- | --- | ---: | ---: |"]
    for entry in entries:
        result = results.results.get(entry.id)
        if result is None:
            rows.append(f"| {entry.id} | {entry.name} | {entry.source} | not run | | |")
            continue
        by = f"`{result.invariant}`" if result.killed else "survives"
        if entry.arena is not Arena.WORLD:
            by += f" ({entry.arena.value})"
        if result.asserts:
            by += ", also an assert"
        rows.append(f"| {entry.id} | {entry.name} | {entry.source} | {by} | {result.seeds} | {result.seconds:.1f} |")
    return rows
