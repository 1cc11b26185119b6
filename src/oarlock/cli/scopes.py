"""`oarlock sim scopes`: visit every state of small groups, and print how many there were.

Exit codes: 0 every invariant held in every state that was visited; 1 one did not; 2 the command line is wrong.
"""

from __future__ import annotations

import gc
import json
import time
from dataclasses import asdict
from typing import Any, Final

import click

from oarlock.sim.scopes import wal
from oarlock.sim.scopes.catalog import SCOPES, explore
from oarlock.sim.scopes.explore import Report

NAMES: Final = (*(scope.name for scope in SCOPES), "H")
H_TITLE: Final = "the log alone: every crash, every outcome of every sector; rot everywhere"
BUDGET: Final = 2_000_000  # states of one search, about 0.7 KiB each


@click.command(name="scopes")
@click.argument("names", nargs=-1, type=click.Choice(NAMES, case_sensitive=False), metavar="[A..H]...")
@click.option("--full", is_flag=True, help="The large sizes (minutes), not the quick ones (seconds).")
@click.option(
    "--budget", type=click.IntRange(1), default=BUDGET, show_default=True, help="States of one search, at most."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
def scopes(names: tuple[str, ...], full: bool, budget: int, as_json: bool) -> None:
    """Visit every state that small groups of the production core can reach, and check each. Without NAMES, all scopes.

    A search that ends before it has seen every state says so: it is not exhausted. A violation prints a shortest way
    to it.
    """
    wanted = {name.upper() for name in names} or set(NAMES)
    rows: list[dict[str, Any]] = []
    failed = False
    for scope in SCOPES:
        if scope.name not in wanted:
            continue
        for size in scope.full if full else scope.quick:
            began = time.monotonic()
            report = explore(size, budget)
            rows.append(_row(scope.name, scope.title, size.text(), report, time.monotonic() - began))
            _print(rows[-1], as_json)
            failed = failed or bool(report.violation)
            gc.collect()
    if "H" in wanted:
        began = time.monotonic()
        report = wal.explore_crashes(second=full)
        rows.append(_row("H", H_TITLE, wal.bounds(second=full), report, time.monotonic() - began))
        _print(rows[-1], as_json)
        failed = failed or bool(report.violation)
    if as_json:
        click.echo(json.dumps({"scopes": rows}, indent=2))
    raise SystemExit(1 if failed else 0)


def _row(name: str, title: str, bounds: str, report: Report, seconds: float) -> dict[str, Any]:
    return {"scope": name, "title": title, "bounds": bounds, "seconds": round(seconds, 1), **asdict(report)}


def _print(row: dict[str, Any], as_json: bool) -> None:
    if as_json:
        return
    click.echo(f"{row['scope']}  {row['title']}\n   {row['bounds']}")
    whole = "exhausted" if row["exhausted"] else "NOT exhausted"
    click.echo(
        f"   {row['states']} states, {row['transitions']} transitions, depth {row['depth']}, {whole}, "
        f"{row['seconds']} s"
    )
    if row["violation"]:
        click.echo(f"   {row['violation']}")
        for line in row["trace"]:
            click.echo(f"     {line}")
