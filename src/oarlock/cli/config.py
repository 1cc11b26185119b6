"""`oarlock config show`."""

from __future__ import annotations

from typing import Any

import click

from oarlock.cli.options import ConfiguredCommand, load_from
from oarlock.config import show as showing
from oarlock.config import validate


@click.group()
def config() -> None:
    """Look at the configuration."""


@config.command(cls=ConfiguredCommand)
@click.option("--origin", is_flag=True, help="Say where each value came from: flag, environment, file or default.")
@click.option("--json", "as_json", is_flag=True, help="Print an object from option to value.")
def show(origin: bool, as_json: bool, **params: Any) -> None:
    """Print every option's value as `serve` with the same flags, environment and file would use it.

    Complains as `serve` would, so it serves to check a configuration too.
    """
    loaded = load_from(params)
    write = showing.as_json if as_json else showing.table
    click.echo(write(loaded, validate(loaded), origin=origin))
    for line in loaded.ignored:
        click.echo(f"ignored: {line}", err=True)
