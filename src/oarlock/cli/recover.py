"""`oarlock recover`: a cluster of one from a survivor's disk, when the majority is gone for good."""

from __future__ import annotations

import click

from oarlock.cli.exits import Exit
from oarlock.errors import ConfigurationError


@click.command()
@click.argument("data_dir")
@click.option("--yes", is_flag=True, help="Do it. Without, only say what is known and what cannot be.")
def recover(data_dir: str, yes: bool) -> int:
    """Make a cluster of one of the member whose data is in DATA_DIR, when the majority of its cluster is lost for good.

    What the lost members had committed and this disk does not hold is lost. The old directory is kept under another
    name; the new cluster has another id, so old members that come back are refused.
    """
    from oarlock.node.survivor import finish_interrupted, survey
    from oarlock.node.survivor import recover as make

    kept = finish_interrupted(data_dir)
    if kept is not None:
        click.echo(f"an interrupted recovery is finished; the old directory is {kept}")
        return Exit.CLEAN
    found = survey(data_dir)
    for line in found.lines():
        click.echo(line)
    if found.alone:
        raise ConfigurationError(f"{data_dir} is of a cluster of one already: start it")
    if not yes:
        click.echo("nothing was changed; to go on: oarlock recover --yes " + data_dir)
        return Exit.CLEAN
    done = make(data_dir)
    click.echo(f"now member {done.identity.member_id:x} alone is cluster {done.identity.cluster_id:x}")
    click.echo(f"the old directory is {done.kept}")
    click.echo("start it as before, then add members: oarlock's docs, how to change members")
    return Exit.CLEAN
