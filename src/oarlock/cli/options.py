"""The flags of `serve` and `config show`, made from the table of options.

Values go through as texts: `oarlock.config` reads them, so that a flag, a variable and a key of the file are judged by
the same code and complained about in the same words.
"""

from __future__ import annotations

import os
from typing import Any

import click

from oarlock.config import OPTIONS, Loaded, load
from oarlock.config.load import nearest
from oarlock.config.options import CONFIG_FILE, ETCD_ONLY, Option
from oarlock.config.values import BOOL, PATH

NAMES = frozenset({CONFIG_FILE.name, *(option.name for option in OPTIONS), *ETCD_ONLY})


def as_click(option: Option) -> click.Option:
    """One flag. A boolean may stand alone (`--pre-vote`) or carry its value after an equals sign."""
    more: dict[str, Any] = {"is_flag": False, "flag_value": "true"} if option.kind is BOOL else {}
    help_text = option.help.replace("`", "")
    if option.default_text:
        help_text += f" Default: {option.default_text.replace('`', '')}."
    elif text := option.kind.show(option.default):
        help_text += f" Default: {text}."
    if option.choices:
        metavar = "|".join(option.choices)
    else:
        metavar = option.kind.metavar
    return click.Option(
        [option.flag, option.field],
        type=click.Path() if option.kind is PATH else str,
        metavar=metavar,
        help=help_text,
        **more,
    )


def _hidden(name: str) -> click.Option:
    """A flag of etcd that is accepted only with a value that asks for nothing."""
    return click.Option(
        [f"--{name}", "etcd_only_" + name.replace("-", "_")], type=str, hidden=True, is_flag=False, flag_value="true"
    )


class ConfiguredCommand(click.Command):
    """A command that takes every option of the table, spelt as click (`--name x`) or as Go (`-name x`) spells them."""

    def __init__(self, *arguments: Any, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.params += [as_click(option) for option in (CONFIG_FILE, *OPTIONS)]
        self.params += [_hidden(name) for name in sorted(ETCD_ONLY)]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        known = {name for param in self.params for name in param.opts} | {"--help", "-h"}
        return super().parse_args(ctx, _normalise(args, known, ctx))


def _normalise(args: list[str], known: set[str], context: click.Context) -> list[str]:
    """Give long options two dashes, and bare booleans their value (what follows a bare `-pre-vote` is not it)."""
    booleans = {option.name for option in OPTIONS if option.kind is BOOL}
    result = []
    for position, argument in enumerate(args):
        if argument == "--":
            result += args[position:]
            break
        if argument.startswith("-") and len(argument) > 2 and not _is_value(args, position, booleans):
            name, equals, value = argument.lstrip("-").partition("=")
            if f"--{name}" not in known and not context.resilient_parsing:  # resilient: a shell completes half a line
                near = nearest(f"--{name}", known - {"-h"})
                raise click.UsageError(f"unknown flag --{name}{near}", ctx=context)
            argument = f"--{name}{equals}{value}"
            if name in booleans and not equals:
                argument += "=true"
        result.append(argument)
    return result


def _is_value(args: list[str], position: int, booleans: set[str]) -> bool:
    """Whether `args[position]`, which begins with a dash, is the value of the flag before it (`--max-txn-ops -1`)."""
    argument = args[position]
    return position > 0 and argument[1:].isdigit() and args[position - 1].lstrip("-") in NAMES - booleans


def load_from(params: dict[str, Any]) -> Loaded:
    """Merge click's parameters, the environment and the file. Raises `ConfigurationError`."""
    flags: dict[str, str] = {}
    for option in (CONFIG_FILE, *OPTIONS):
        if (text := params.get(option.field)) is not None:
            flags[option.name] = text
    for name in ETCD_ONLY:
        if (text := params.get("etcd_only_" + name.replace("-", "_"))) is not None:
            flags[name] = text
    return load(flags, os.environ)
