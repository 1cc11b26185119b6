"""`oarlock version`."""

from __future__ import annotations

import json
import platform

import click

from oarlock import __version__


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print an object with the versions of Oarlock and Python.")
def version(as_json: bool) -> None:
    """Print the version."""
    if as_json:
        document = {
            "oarlock": __version__,
            "python": platform.python_version(),
            "implementation": platform.python_implementation(),
        }
        click.echo(json.dumps(document))
    else:
        click.echo(f"oarlock {__version__} (Python {platform.python_version()})")
