"""`oarlock serve`: read the configuration, then hand over to `oarlock.cli.member`."""

from __future__ import annotations

import logging
import sys
from typing import Any

import click

from oarlock.cli import logs
from oarlock.cli.options import ConfiguredCommand, load_from
from oarlock.config import validate
from oarlock.errors import ConfigurationError

log = logging.getLogger(__name__)


def check_interpreter(optimize: int) -> None:
    """Raises `ConfigurationError` under `python -O`: the assertions that guard the protocol would be gone."""
    if optimize:
        raise ConfigurationError(
            "the server does not run under python -O or PYTHONOPTIMIZE: its assertions keep a bug from losing data"
        )


@click.command(cls=ConfiguredCommand)
def serve(**params: Any) -> int:
    """Run one member of a cluster that speaks etcd's API.

    Options come from flags (with one dash or two), from the environment (OARLOCK_..., or etcd's ETCD_...), from a TOML
    file, and from defaults, in this order; `oarlock config show --origin` prints what came from where.

    \b
    One member:  oarlock serve --data-dir ./n1.oarlock
    """
    check_interpreter(sys.flags.optimize)
    loaded = load_from(params)
    config = validate(loaded)
    logs.set_up(config.log_level, config.log_format)
    for line in loaded.ignored:
        log.warning("ignored: %s", line)
    try:
        from oarlock.cli.member import run_member
    except ModuleNotFoundError as error:
        if error.name is not None and error.name.startswith("oarlock"):
            raise
        raise ConfigurationError(f'the server needs the package {error.name}: pip install "oarlock[server]"') from error
    return run_member(config)
