"""`oarlock version`."""

from __future__ import annotations

import json
import platform
from importlib.util import find_spec

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
            "compiled": compiled(),
        }
        click.echo(json.dumps(document))
    else:
        how = "compiled" if compiled() else "interpreted"
        click.echo(f"oarlock {__version__} (Python {platform.python_version()}, {how})")


def compiled() -> bool:
    """Whether the hot modules are mypyc's extensions. (docs/how-to/compile.md)"""
    spec = find_spec("oarlock.raft.quorum")
    assert spec is not None and spec.origin is not None, "oarlock.raft.quorum is missing from this installation"
    return not spec.origin.endswith(".py")
