"""help and version: pages made from the table of verbs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

from oarlock.ctl.app import PROGRAM, Run
from oarlock.ctl.flags import Flag
from oarlock.ctl.verbs import BY_WORDS, FAMILIES, FAMILY_FLAGS, GLOBAL, VERBS, Verb

API_VERSION = "3.5"


def version(run: Run) -> None:
    from oarlock import __version__

    sys.stdout.write(f"{PROGRAM} version: {__version__}\nAPI version: {API_VERSION}\n")


def help(run: Run) -> None:
    sys.stdout.write(page(run.args))


def page(words: Sequence[str]) -> str:
    """Help on a verb, a family of verbs, or everything."""
    verb = BY_WORDS.get(tuple(words)) or BY_WORDS.get(tuple(words[:1]))
    if verb is not None:
        lines = _verb(verb)
    elif words and words[0] in FAMILIES:
        lines = _family(words[0])
    else:
        lines = _everything()
    return "\n".join(lines) + "\n"


def _verb(verb: Verb) -> Iterator[str]:
    yield from ("NAME:", f"\t{verb.name} - {verb.summary}", "", "USAGE:")
    yield f"\t{' '.join(filter(None, (PROGRAM, verb.name, verb.usage)))} [flags]"
    if verb.details:
        yield from ("", "DESCRIPTION:", *(f"\t{line}" for line in verb.details.split("\n")))
    if verb.formats:
        yield from ("", "FORMATS:", f"\t{', '.join(verb.formats)}")
    yield from _flags("OPTIONS", verb.flags)
    yield from _flags("GLOBAL OPTIONS", GLOBAL)


def _family(family: str) -> Iterator[str]:
    yield from ("NAME:", f"\t{family} - {FAMILIES[family]}", "", "USAGE:", f"\t{PROGRAM} {family} <subcommand> [flags]")
    yield from _verbs([(verb.words[1], verb) for verb in VERBS if verb.words[0] == family])
    yield from _flags("OPTIONS", FAMILY_FLAGS.get(family, ()))
    yield from _flags("GLOBAL OPTIONS", GLOBAL)


def _everything() -> Iterator[str]:
    from oarlock import __version__

    yield from ("NAME:", f"\t{PROGRAM} - a client for Oarlock and etcd", "", "USAGE:", f"\t{PROGRAM} VERB [flags]")
    yield from ("", "VERSION:", f"\t{__version__}", "", "API VERSION:", f"\t{API_VERSION}")
    yield from _verbs([(verb.name, verb) for verb in VERBS])
    yield from _flags("OPTIONS", GLOBAL)
    yield "Every option may be given in the environment: OARLOCKCTL_ENDPOINTS, or else ETCDCTL_ENDPOINTS."


def _verbs(verbs: list[tuple[str, Verb]]) -> Iterator[str]:
    yield from ("", "COMMANDS:")
    width = max(len(name) for name, _ in verbs)
    yield from (f"\t{name:{width}}  {verb.summary}" for name, verb in verbs)


def _flags(title: str, flags: Sequence[Flag]) -> Iterator[str]:
    shown = [
        (f"{f'-{flag.short}, ' if flag.short else '    '}--{flag.name}{flag.shown()}", flag.help) for flag in flags
    ]
    if title == "OPTIONS":
        shown.append(("-h, --help[=false]", "this page"))
    width = max((len(name) for name, _ in shown), default=0)
    yield from ("", f"{title}:", *(f"  {name:{width}}  {text}" for name, text in shown), "")
