"""`oarlock check`: decide whether a history is linearizable, and draw the part that is not.

Exit codes: 0 linearizable; 1 not linearizable; 2 the command line or the history is wrong; 3 too concurrent to decide.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from oarlock.check import (
    CONFIGURATIONS_MAX,
    CheckTooLarge,
    MalformedHistory,
    Model,
    Operation,
    check_linearizable,
    parse_jepsen_register,
    parse_kv_history,
)
from oarlock.check.explain import explain, operation_text, short, value_text
from oarlock.check.jsonl import MODELS, parse_jsonl
from oarlock.check.picture import violation_page
from oarlock.errors import ConfigurationError

EXIT_LINEARIZABLE = 0
EXIT_VIOLATION = 1
EXIT_UNDECIDED = 3

FORMATS = ("jsonl", "jepsen", "porcupine-kv")
SHOWN_MAX = 20  # operations of a violation that are printed


@click.command(name="check")
@click.argument("history", type=click.Path(dir_okay=False, exists=True, allow_dash=True, path_type=Path))
@click.option(
    "--format", "form", type=click.Choice(FORMATS), default="jsonl", show_default=True, help="How it is written."
)
@click.option(
    "--model",
    type=click.Choice(["auto", *MODELS]),
    default="auto",
    show_default=True,
    help="What the store promises to be; `auto` goes by the operations' names.",
)
@click.option("--html", type=click.Path(dir_okay=False, path_type=Path), help="Draw the violation into this file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout.")
@click.option(
    "--configurations",
    type=click.IntRange(1),
    default=CONFIGURATIONS_MAX,
    show_default=True,
    help="Give up when one moment needs more possibilities than this.",
)
@click.pass_context
def check(
    context: click.Context, history: Path, form: str, model: str, html: Path | None, as_json: bool, configurations: int
) -> None:
    """Decide whether the HISTORY of concurrent operations is linearizable: whether one store that answers one request
    at a time could have given these answers. `-` reads it from stdin."""
    name = "stdin" if str(history) == "-" else str(history)
    chosen, operations = _read(history, name, form, None if model == "auto" else model)
    the_model: Model = MODELS[chosen]()
    began = time.monotonic()
    try:
        with _progress(len(operations), quiet=as_json) as progress:
            verdict = check_linearizable(the_model, operations, configurations_max=configurations, progress=progress)
    except CheckTooLarge as error:
        if as_json:
            click.echo(json.dumps({"history": name, "linearizable": None, "reason": str(error)}, indent=2))
        click.echo(f"{name}: undecided: {error}", err=True)
        context.exit(EXIT_UNDECIDED)
    seconds = time.monotonic() - began
    if html is not None:
        try:
            html.write_text(violation_page(verdict, the_model, name, f"model {chosen}"), encoding="utf-8")
        except OSError as error:
            raise ConfigurationError(f"cannot write {html}: {error.strerror}") from error
    report: dict[str, Any] = {
        "history": name,
        "model": chosen,
        "linearizable": verdict.linearizable,
        "operations": verdict.operations,
        "keys": verdict.keys,
        "seconds": round(seconds, 3),
    }
    explanations = [explain(the_model, violation) for violation in verdict.violations]
    report["violations"] = [
        {
            "key": found.violation.key,
            "unplaced": _described(found.violation.unplaced),
            "reasons": list(found.reasons),
            "order": [_described(step.operation) | {"value_after": step.state} for step in found.order],
        }
        for found in explanations
    ]
    if as_json:
        click.echo(json.dumps(report, indent=2))
    else:
        what = f"{verdict.operations} operations on {verdict.keys} keys, model {chosen}, {seconds:.2f} s"
        click.echo(f"{name}: {'linearizable' if verdict.linearizable else 'NOT linearizable'} ({what})")
        for found in explanations:
            unplaced = found.violation.unplaced
            at = "" if found.violation.key is None else f"key {value_text(found.violation.key)}: "
            click.echo(f"\n{at}process {unplaced.process}: {short(operation_text(unplaced))} has no place")
            for reason in found.reasons:
                click.echo(f"  {reason}")
            first = max(0, len(found.order) - SHOWN_MAX)
            more = f" (the last {SHOWN_MAX} of {len(found.order)} operations)" if first else ""
            click.echo(f"the longest part that has an order{more}:")
            for number, step in enumerate(found.order[first:], first + 1):
                operation = step.operation
                click.echo(
                    f"  {number:>4}  process {operation.process:<4} {short(operation_text(operation))}"
                    f"   then {short(value_text(step.state))}"
                )
        if html is not None:
            click.echo(f"picture: {html}")
    context.exit(EXIT_LINEARIZABLE if verdict.linearizable else EXIT_VIOLATION)


def _read(history: Path, name: str, form: str, model: str | None) -> tuple[str, list[Operation]]:
    """The model's name and the operations. Raises `ConfigurationError`, which names line and column."""
    try:
        text = sys.stdin.read() if name == "stdin" else history.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{name} is not text in UTF-8: byte {error.start} is {error.object[error.start]:#04x}"
        ) from None
    except OSError as error:
        raise ConfigurationError(f"cannot read {name}: {error.strerror}") from error
    lines = text.splitlines()
    try:
        if form == "jsonl":
            return parse_jsonl(lines, model)
        of = "register" if form == "jepsen" else "kv"
        if model not in (None, of):
            raise ConfigurationError(f"--format {form} holds operations of the model {of}, not of {model}")
        return of, (parse_jepsen_register if form == "jepsen" else parse_kv_history)(lines)
    except MalformedHistory as error:
        raise ConfigurationError(f"{name}:{error.line}:{error.column}: {error.what}") from None


def _described(operation: Operation) -> dict[str, Any]:
    return {
        "process": operation.process,
        "operation": operation_text(operation),
        "start": operation.start,
        "end": operation.end,
    }


@contextmanager
def _progress(total: int, *, quiet: bool) -> Iterator[Callable[[int], None] | None]:
    """A bar on stderr, if that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("checking", total=total)
        yield lambda more: bar.advance(task, more)
