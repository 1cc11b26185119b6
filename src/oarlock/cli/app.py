"""The command tree. Subcommands are named here and imported only when they run."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

try:
    import click
except ImportError:
    sys.stderr.write('error: the command line needs click: pip install "oarlock[cli]" (or "oarlock[server]")\n')
    sys.exit(1)

from oarlock.cli.exits import Exit
from oarlock.errors import ConfigurationError, StorageError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


@dataclass(frozen=True, slots=True)
class Lazy:
    """A subcommand: where it is, and the line that `--help` shows without importing it."""

    module: str
    attribute: str
    help: str
    bad_input: Exit | int = Exit.CONFIGURATION  # commands whose exit code 1 is a verdict say 2 to bad input


COMMANDS: Mapping[str, Lazy] = {
    "check": Lazy("oarlock.cli.check", "check", "Decide whether a history is linearizable.", 2),
    "completion": Lazy("oarlock.cli.completion", "completion", "Print the completion script for a shell."),
    "config": Lazy("oarlock.cli.config", "config", "Look at the configuration."),
    "demo": Lazy("oarlock.cli.demo", "demo", "Run a three-member cluster here, kill its leader and compare all data."),
    "dev": Lazy("oarlock.cli.dev", "dev", "A cluster for development on this machine, up until Ctrl-C."),
    "openapi": Lazy("oarlock.cli.openapi", "openapi", "Print the OpenAPI description of the HTTP side."),
    "serve": Lazy("oarlock.cli.serve", "serve", "Run one member of a cluster that speaks etcd's API."),
    "pki": Lazy("oarlock.cli.pki", "pki", "Make certificates for development and tests."),
    "recover": Lazy("oarlock.cli.recover", "recover", "Make a cluster of one from a survivor's disk."),
    "sim": Lazy("oarlock.cli.sim", "sim", "Run seeds of the simulated world.", 2),
    "snapshot": Lazy("oarlock.cli.snapshot", "snapshot", "Back up a cluster, look at a backup, restore it."),
    "version": Lazy("oarlock.cli.version", "version", "Print the version."),
    "wal": Lazy("oarlock.cli.wal", "wal", "Verify or print a write-ahead log."),
}


class LazyGroup(click.Group):
    """A group whose commands come from `COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        lazy = COMMANDS.get(cmd_name)
        if lazy is None:
            return None
        try:
            command = getattr(importlib.import_module(lazy.module), lazy.attribute)
        except ModuleNotFoundError as error:
            if error.name is not None and error.name.startswith("oarlock"):
                raise
            raise ConfigurationError(
                f'`oarlock {cmd_name}` needs the package {error.name}: pip install "oarlock[all]"'
            ) from error
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from oarlock.config.load import nearest

            raise click.UsageError(f"no such command: {args[0]}{nearest(args[0], COMMANDS)}", ctx=ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names of commands from the table, so that completing one word does not import them all."""
        from click.shell_completion import CompletionItem

        names = [CompletionItem(name, help=COMMANDS[name].help) for name in COMMANDS if name.startswith(incomplete)]
        return [*names, *click.Command.shell_complete(self, ctx, incomplete)]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].help) for name in self.list_commands(ctx)])


@click.command(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]}, invoke_without_command=True)
@click.version_option(message="%(prog)s %(version)s", package_name="oarlock", prog_name="oarlock")
@click.pass_context
def cli(context: click.Context) -> None:
    """Oarlock: Raft for Python, as a library and as a server that speaks etcd's API."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def run() -> NoReturn:
    """Run `sys.argv` and exit. Everything that can go wrong becomes one line on stderr and an exit code."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: list[str]) -> int:
    """Run one command line and return its exit code; texts go to stdout and stderr."""
    lazy = COMMANDS.get(arguments[0]) if arguments else None
    bad_input = int(lazy.bad_input) if lazy is not None else int(Exit.CONFIGURATION)
    try:
        result = cli.main(arguments, prog_name="oarlock", standalone_mode=False)
        code = int(result) if isinstance(result, int) else Exit.CLEAN
        sys.stdout.flush()
    except click.UsageError as error:
        usage = f"\n{error.ctx.get_usage()}" if error.ctx is not None else ""
        return fail(f"{error.format_message()}{usage}", bad_input)
    except click.ClickException as error:
        return fail(error.format_message(), bad_input)
    except ConfigurationError as error:
        return fail(str(error), bad_input)
    except StorageError as error:
        return fail(str(error), Exit.STORAGE)
    except (click.Abort, KeyboardInterrupt):
        return Exit.INTERRUPTED
    except BrokenPipeError:
        # whoever read our output has gone (`oarlock ... | head`); keep the interpreter from flushing into the same pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.CLEAN
    return code


def fail(message: str, code: int) -> int:
    """Say what went wrong on stderr; returns `code`."""
    sys.stderr.write(f"error: {message}\n")
    return code
