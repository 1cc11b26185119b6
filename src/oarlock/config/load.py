"""Merging the sources: flags over environment over file over defaults, remembering where each value came from.

Unlike etcd, a file does not switch flags and environment off. Whatever is unknown (a flag, a key of the file, a
variable `OARLOCK_...`) is an error that names the nearest known one: a misspelt option must not be a default in
disguise.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from oarlock.config.options import BY_NAME, CONFIG_FILE, ETCD_ONLY, OPTIONS, Option, ServerConfig
from oarlock.errors import ConfigurationError

CONFIG_FILE_BYTES_MAX = 1 << 20

# A Kubernetes service named "oarlock" or "etcd" puts such variables into every container; they are not ours.
_KUBERNETES = re.compile(r"(OARLOCK|ETCD)_(.*_)?(SERVICE_(HOST|PORT(_.*)?)|PORT(_\d+_(TCP|UDP)(_(PROTO|PORT|ADDR))?)?)")


class Origin(Enum):
    """Where a value came from, the strongest first."""

    FLAG = "flag"
    ENVIRONMENT = "environment"
    FILE = "file"
    DEFAULT = "default"


@dataclass(frozen=True, slots=True)
class Source:
    """The origin of one value; `detail` is the flag, variable or file as the user wrote it."""

    origin: Origin
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.origin.value} {self.detail}".rstrip()


@dataclass(frozen=True, slots=True)
class Loaded:
    """Values and their origins, before `validate`. `ignored` are things that were seen and have no effect."""

    config: ServerConfig
    sources: Mapping[str, Source]
    """By field name."""
    ignored: tuple[str, ...] = field(default=())

    def given(self, name: str) -> bool:
        """Whether the option with this field name was set anywhere."""
        return self.sources[name].origin is not Origin.DEFAULT


def nearest(word: str, known: Iterable[str]) -> str:
    """` (did you mean X?)`, or nothing when no known word is near."""
    found = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f" (did you mean {found[0]}?)" if found else ""


def load(flags: Mapping[str, str], environ: Mapping[str, str]) -> Loaded:
    """Merge everything. `flags` maps names without dashes to their texts; `environ` is the whole environment.

    Raises `ConfigurationError` for the first thing that is wrong.
    """
    ignored: list[str] = []
    given: dict[str, tuple[object, Source]] = {}

    variables = _variables(environ, ignored)
    path, path_source = _config_file(flags, variables)
    if path:
        for name, value in _read_file(path, path_source).items():
            _take(given, name, value, Source(Origin.FILE, path), "key", ignored)
    for name, (variable, text) in variables.items():
        if name != CONFIG_FILE.name:
            _take(given, name, text, Source(Origin.ENVIRONMENT, variable), "variable", ignored)
    for name, text in flags.items():
        if name != CONFIG_FILE.name:
            _take(given, name, text, Source(Origin.FLAG, "--" + name), "flag", ignored)

    values: dict[str, object] = {}
    sources: dict[str, Source] = {}
    for option in OPTIONS:
        value, source = given.get(option.name, (option.default, Source(Origin.DEFAULT)))
        if source.origin is not Origin.DEFAULT:
            try:
                value = option.parse(value)
            except ValueError as error:
                raise ConfigurationError(f"{option.name} (from {source}): {error}") from error
        values[option.field] = value
        sources[option.field] = source
    return Loaded(config=ServerConfig(**values), sources=sources, ignored=tuple(ignored))  # type: ignore[arg-type]


def _take(
    given: dict[str, tuple[object, Source]],
    name: str,
    value: object,
    source: Source,
    what: str,
    ignored: list[str],
) -> None:
    """Let `value` replace a weaker source's. Callers go from the weakest source to the strongest."""
    if name in BY_NAME:
        given[name] = (value, source)
        return
    if name in ETCD_ONLY:
        text = str(value).lower() if isinstance(value, bool) else str(value)
        if text not in ETCD_ONLY[name]:
            raise ConfigurationError(
                f"{name} (from {source}): Oarlock does not have this option of etcd, and {text!r} asks for something; "
                f"leave it out, or give {' or '.join(repr(neutral) for neutral in ETCD_ONLY[name])}"
            )
        ignored.append(f"{source}: an option of etcd without meaning here")
        return
    spelling = {"flag": "--{}", "key": "{}", "variable": "{}"}[what]
    known = {spelling.format(option.name): option for option in OPTIONS}
    raise ConfigurationError(
        f"unknown {what} {spelling.format(name)}{_where(source)}{nearest(spelling.format(name), known)}"
    )


def _where(source: Source) -> str:
    return f" in {source.detail}" if source.origin is Origin.FILE else ""


def _variables(environ: Mapping[str, str], ignored: list[str]) -> dict[str, tuple[str, str]]:
    """The options that the environment gives: name -> (variable, text). Empty texts count as not given, as in etcd."""
    ours: dict[str, Option] = {option.environment: option for option in (*OPTIONS, CONFIG_FILE)}
    etcds = {option.etcd_environment: option for option in OPTIONS if option.etcd_environment}
    etcd_only = {"ETCD_" + name.replace("-", "_").upper(): name for name in ETCD_ONLY}
    found: dict[str, tuple[str, str]] = {}
    for variable in sorted(environ, reverse=True):  # OARLOCK_ before ETCD_: the preferred name is the one reported
        text = environ[variable]
        if not variable.startswith(("OARLOCK_", "ETCD_")) or _KUBERNETES.fullmatch(variable):
            continue
        option = ours.get(variable) or etcds.get(variable)
        if option is None and variable in etcd_only:
            if text:
                found[etcd_only[variable]] = (variable, text)
        elif option is None and variable.startswith("OARLOCK_"):
            raise ConfigurationError(f"unknown variable {variable} in the environment{nearest(variable, ours)}")
        elif option is None:
            ignored.append(f"environment {variable}: not an option of Oarlock")
        elif text:
            if option.name in found and found[option.name][1] != text:
                raise ConfigurationError(
                    f"{found[option.name][0]} and {variable} say different things in the environment; "
                    f"unset one of them ({option.environment} is the preferred name)"
                )
            found.setdefault(option.name, (variable, text))
    return found


def _config_file(flags: Mapping[str, str], variables: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    """The path of the TOML file and how it was named; empty when there is none."""
    if CONFIG_FILE.name in flags:
        path, named = flags[CONFIG_FILE.name], CONFIG_FILE.flag
    elif CONFIG_FILE.name in variables:
        named, path = variables[CONFIG_FILE.name]
    else:
        return "", ""
    if not path:
        raise ConfigurationError(f"{named} names no file")
    return path, named


def _read_file(path: str, named: str) -> dict[str, object]:
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > CONFIG_FILE_BYTES_MAX:
                raise ConfigurationError(
                    f"{path} has {size} bytes; a configuration has at most {CONFIG_FILE_BYTES_MAX}"
                )
            return tomllib.loads(file.read(CONFIG_FILE_BYTES_MAX + 1).decode())
    except OSError as error:
        raise ConfigurationError(f"cannot read {path} (from {named}): {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not valid TOML: {error}") from error
