"""The reference page, docs/reference/oarlockctl.md, made from the table of verbs: `python -m oarlock.ctl.reference PATH`
writes it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

from oarlock.ctl.failures import MEANINGS
from oarlock.ctl.flags import Flag
from oarlock.ctl.verbs import FAMILIES, GLOBAL, VERBS, Verb

_HEAD: Final = """# oarlockctl

<!-- made by `make bless` from the table in src/oarlock/ctl/verbs.py -->

A client for the command line, for Oarlock and for any etcd of 3.4 or later: etcdctl's verbs, flags, environment, output and exit
codes, so that scripts need another name and nothing else. It speaks gRPC over one blocking connection. Tasks are in
[use oarlockctl](../how-to/use-oarlockctl.md); it comes with `pip install "oarlock[client]"` or `"oarlock[server]"`.

A verb's flags stand before or after its words and arguments; `--` ends them, so that `put -- -key -value` works. A flag goes
before the environment: `OARLOCKCTL_ENDPOINTS`, or else `ETCDCTL_ENDPOINTS`, gives `--endpoints`, and so on for every flag of the first
table. An error is a line `Error: ...` on stderr in etcdctl's words, and often a second line that says what to do.

## Flags of every verb

| flag | default | meaning |
| --- | --- | --- |
"""
_TAIL: Final = """## Formats

| `--write-out` | what is printed |
| --- | --- |
| `simple` | what people read; keys and values as they are, or with `--hex` as `\\x61` |
| `json` | one line for an answer: numbers as numbers, keys and values in base64, what is empty left out |
| `fields` | a line for each field, `"Name" : value`, keys and values quoted |
| `protobuf` | the answer as the server sent it, without a line's end |
| `table` | with a frame; for members and endpoints only |

## Where it differs from etcdctl 3.5

| here | etcdctl 3.5.1 |
| --- | --- |
| a flag goes before the environment | the two together are an error |
| a variable of the environment that cannot be read is an error | it is overlooked |
| a format that a verb does not have is refused before anything is done | the call is made, then the format is refused |
| a flag that cannot be read prints one `Error:` line; help is asked for with `--help` | the whole help on stdout, the error twice |
| what the client retries is not reported; `--debug` prints each call | warnings in JSON on stderr |
| `--user` and `--password` are not shown by `--debug` | they are |
| `alarm disarm -w fields`, and an unknown operator or a lease in a compare of `txn`, work or are refused | a crash (exit code 2) |
| `'single quotes'` work in lines of `txn` and `watch -i` | an empty word, or a crash |
| `endpoint health`, `status` and `hashkv` ask all members at once and print in the order given | in the order of the answers |
| `lease` verbs print the whole answer with `-w protobuf` | its header |
| `watch KEY END WORD` without `--` is refused | END and WORD are lost |
| a command that `lock` runs is sent SIGTERM when `lock` is; the lock is held until it has ended | the signal is lost |
| `lock` and `elect` revoke their lease at the end; a lost lease is told while the command runs | the lease runs out by itself |
| `snapshot save` leaves no `.part` file behind an error | it does |
| `snapshot status` and `restore` read Oarlock's backups; `--skip-hash-check`, `--wal-dir`, `defrag --data-dir` are refused | etcd's |
| `make-mirror` writes in transactions, and goes on through another member when one goes away | key by key |
| `check perf` shows its progress on a terminal only, and says when the client itself was too slow | a bar on stdout |
| `completion`, `--json` | do not exist |

## What it takes to start

`get` loads h2 and protobuf, and no event loop, no TLS unless it is asked for, no parser library: `tests/system/test_oarlockctl.py` names
what must stay out. `python tools/time_oarlockctl.py` measures a whole `get`, and the same without a call.
"""


def render() -> str:
    """The whole page."""
    lines = [_HEAD + "\n".join(_flag(flag) for flag in GLOBAL), "", "## Verbs", ""]
    lines += ["`simple json fields protobuf` stand for the formats of a verb; one without prints the same in all.", ""]
    seen = ""
    for verb in VERBS:
        if verb.words[0] in FAMILIES and verb.words[0] != seen:
            seen = verb.words[0]
            lines += [f"### {seen}: {FAMILIES[seen]}", ""]
        elif verb.words[0] not in FAMILIES:
            seen = ""
        lines += _verb(verb)
    lines += ["## Exit codes", "", "| code | meaning |", "| --- | --- |"]
    lines += [f"| {code} | {meaning} |" for code, meaning in MEANINGS.items()]
    lines += ["", "`lock` ends with the exit code of its command.", "", _TAIL.rstrip("\n")]
    return "\n".join(lines) + "\n"


def _verb(verb: Verb) -> Sequence[str]:
    level = "####" if verb.words[0] in FAMILIES else "###"
    lines = [f"{level} {verb.name}", "", f"`{' '.join(filter(None, (verb.name, verb.usage)))}`: {verb.summary}."]
    if verb.formats:
        lines[-1] += f" Formats: {', '.join(verb.formats)}."
    if verb.details:
        lines += ["", verb.details.replace("\n", " ")]
    if verb.flags:
        lines += ["", "| flag | default | meaning |", "| --- | --- | --- |", *(_flag(flag) for flag in verb.flags)]
    return [*lines, ""]


def _flag(flag: Flag) -> str:
    names = f"`--{flag.name}`" + (f" `-{flag.short}`" if flag.short else "")
    shown = flag.shown().lstrip("=").strip("[]").lstrip("=").strip('"')
    return f"| {names} | {f'`{shown}`' if shown else 'none'} | {flag.help} |"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m oarlock.ctl.reference PATH")
    with open(sys.argv[1], "w", encoding="utf-8") as page:
        page.write(render())
