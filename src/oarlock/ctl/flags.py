"""Reading a command line and the environment as etcdctl does: long and short flags anywhere, `--` ends them.

Small on purpose: the libraries for it take as long to load as everything else together, and read flags otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from oarlock.ctl import text
from oarlock.ctl.failures import Failure

TRUE: Final = frozenset({"1", "t", "T", "true", "TRUE", "True"})
FALSE: Final = frozenset({"0", "f", "F", "false", "FALSE", "False"})
PREFIXES: Final = ("OARLOCKCTL_", "ETCDCTL_")
"""Of environment variables, the stronger one first."""

OTHER_VARIABLES: Final = frozenset({"API", "WATCH_KEY", "WATCH_RANGE_END"})
"""What else the environment may say: which API (always 3), and what to watch."""


class Flag(NamedTuple):
    """One flag. `kind` is bool, int, text, seconds or list."""

    name: str
    kind: str
    default: Any
    help: str
    short: str = ""

    def parse(self, given: str) -> Any:
        """Raises `ValueError`."""
        if self.kind == "bool":
            if given not in TRUE | FALSE:
                raise ValueError(f'strconv.ParseBool: parsing "{given}": invalid syntax')
            return given in TRUE
        if self.kind == "int":
            return text.integer(given, 0)
        if self.kind == "seconds":
            return text.seconds(given)
        if self.kind == "list":
            return [part for part in given.split(",") if part]
        return given

    @property
    def field(self) -> str:
        return self.name.replace("-", "_")

    def shown(self) -> str:
        """As help prints the default."""
        if self.kind == "bool":
            return f"[={str(self.default).lower()}]"
        if self.kind == "list":
            return f"=[{','.join(self.default)}]"
        if self.kind == "seconds":
            return f"={text.duration(self.default)}"
        return f"={self.default}" if self.kind == "int" else f'="{self.default}"'


class Parsed(NamedTuple):
    """Flags by field name, whether given or not; arguments; how many of these stood before `--`, or -1."""

    flags: dict[str, Any]
    given: frozenset[str]
    args: list[str]
    dash: int


def parse(words: Sequence[str], flags: Sequence[Flag], known: Mapping[str, Any] | None = None) -> Parsed:
    """Read `words`. `known` are values that weaker sources gave. Raises `Failure` with code 1."""
    names = {flag.name: flag for flag in flags}
    shorts = {flag.short: flag for flag in flags if flag.short}
    found = {flag.field: flag.default for flag in flags} | dict(known or {})
    given: set[str] = set()
    args: list[str] = []
    rest = list(words)

    def take(flag: Flag, value: str, name: str) -> None:
        try:
            parsed = flag.parse(value)
        except ValueError as error:
            raise Failure(f'invalid argument "{value}" for "{name}" flag: {error}') from None
        # a list that is given twice is one list
        found[flag.field] = [*found[flag.field], *parsed] if flag.kind == "list" and flag.field in given else parsed
        given.add(flag.field)

    while rest:
        word = rest.pop(0)
        if word == "--":
            return Parsed(found, frozenset(given), [*args, *rest], len(args))
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            flag = names.get(name)
            if flag is None:
                if name == "help":
                    raise HelpWanted
                raise Failure(f"unknown flag: --{name}", hint=_like(name, names))
            if equals:
                take(flag, value, f"--{name}")
            elif flag.kind == "bool":
                take(flag, "true", f"--{name}")
            elif rest:
                take(flag, rest.pop(0), f"--{name}")
            else:
                raise Failure(f"flag needs an argument: --{name}")
        elif word.startswith("-") and word != "-":
            _short(word, rest, shorts, take)
        else:
            args.append(word)
    return Parsed(found, frozenset(given), args, -1)


class HelpWanted(Exception):
    """`-h` or `--help` was given."""


def _short(word: str, rest: list[str], shorts: Mapping[str, Flag], take: Any) -> None:
    cluster = word[1:]
    while cluster:
        letter, cluster = cluster[0], cluster[1:]
        flag = shorts.get(letter)
        if flag is None:
            if letter == "h":
                raise HelpWanted
            raise Failure(f"unknown shorthand flag: '{letter}' in {word}", hint="`--` ends the flags: put it before a "
                          "value or a command that begins with a dash")  # fmt: skip
        name = f"-{flag.short}, --{flag.name}"
        if cluster.startswith("="):
            take(flag, cluster[1:], name)
            return
        if flag.kind == "bool":
            take(flag, "true", name)
        elif cluster:
            take(flag, cluster, name)
            return
        elif rest:
            take(flag, rest.pop(0), name)
        else:
            raise Failure(f"flag needs an argument: '{letter}' in {word}")


def _like(name: str, names: Mapping[str, Flag]) -> str:
    import difflib

    near = difflib.get_close_matches(name, names, n=1)
    return f"did you mean --{near[0]}? " if near else ""


def environment(environ: Mapping[str, str], flags: Sequence[Flag]) -> tuple[dict[str, Any], list[str]]:
    """What the environment says, by field name, and variables that look like ours and are not. Raises `Failure`."""
    found: dict[str, Any] = {}
    names = {flag.field.upper(): flag for flag in flags}
    for name, flag in names.items():
        for prefix in PREFIXES:
            value = environ.get(prefix + name, "")
            if value:  # an empty one counts as not set
                try:
                    found[flag.field] = flag.parse(value)
                except ValueError as error:
                    raise Failure(
                        f'invalid value "{value}" for environment variable {prefix + name}: {error}'
                    ) from None
                break
    unknown = [
        name
        for name in sorted(environ)
        for prefix in PREFIXES
        if name.startswith(prefix) and name.removeprefix(prefix) not in names | dict.fromkeys(OTHER_VARIABLES)
    ]
    return found, unknown
