"""`oarlock completion`."""

from __future__ import annotations

import click

SHELLS = ("bash", "zsh", "fish")
COMPLETE_VARIABLE = "_OARLOCK_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the completion script for SHELL.

    \b
    For this shell:    eval "$(oarlock completion bash)"
    For all sessions:  oarlock completion fish > ~/.config/fish/completions/oarlock.fish
    """
    from click.shell_completion import get_completion_class

    from oarlock.cli.app import cli

    kind = get_completion_class(shell)
    assert kind is not None, shell
    made = kind(cli, {}, "oarlock", COMPLETE_VARIABLE)
    # not `source()`: it would start bash to look at its version
    click.echo(made.source_template % made.source_vars())
