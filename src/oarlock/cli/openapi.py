"""`oarlock openapi`."""

from __future__ import annotations

import json

import click


def text() -> str:
    """The OpenAPI description of the HTTP side, as it is printed."""
    from oarlock.api.etcd import ETCD_VERSION
    from oarlock.api.gateway import description

    return json.dumps(description(ETCD_VERSION), indent=1) + "\n"


@click.command()
def openapi() -> None:
    """Print the OpenAPI description of the HTTP side of the client port (also at /openapi.json)."""
    click.echo(text(), nl=False)
