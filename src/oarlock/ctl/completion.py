"""completion: scripts for bash, zsh and fish, made from the table of verbs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Final

from oarlock.ctl.app import PROGRAM, Run
from oarlock.ctl.failures import bad_arguments
from oarlock.ctl.flags import Flag
from oarlock.ctl.verbs import FAMILIES, FORMATS, GLOBAL, VERBS

SHELLS: Final = ("bash", "zsh", "fish")
CHOICES: Final = {
    "write-out": FORMATS, "order": ("ASCEND", "DESCEND"), "sort-by": ("CREATE", "KEY", "MODIFY", "VALUE", "VERSION"),
    "consistency": ("l", "s"), "load": ("s", "m", "l", "xl"),
}  # fmt: skip
FILES: Final = ("cacert", "cert", "key", "data-dir", "dest-cacert", "dest-cert", "dest-key")


def completion(run: Run) -> None:
    if len(run.args) != 1 or run.args[0] not in SHELLS:
        raise bad_arguments("completion command needs 1 argument: bash, zsh or fish")
    sys.stdout.write(script(run.args[0]))


def script(shell: str) -> str:
    return "\n".join(_fish() if shell == "fish" else _bash(zsh=shell == "zsh")) + "\n"


def _words(flags: Sequence[Flag]) -> str:
    return " ".join(sorted(f"--{flag.name}" + ("" if flag.kind == "bool" else "=") for flag in flags))


def _bash(*, zsh: bool) -> Iterator[str]:
    """One function for both: zsh reads bash's completions."""
    if zsh:
        yield "autoload -U +X bashcompinit && bashcompinit"
    valued = "|".join(sorted({f"--{f.name}" for verb in VERBS for f in (*GLOBAL, *verb.flags) if f.kind != "bool"}))
    yield f"_{PROGRAM}() {{"
    yield '  local current="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" verb="" word options="" i'
    yield "  for ((i = 1; i < COMP_CWORD; i++)); do"
    yield '    word="${COMP_WORDS[i]}"'
    yield f'    case "$word" in -w|-d|{valued}) ((i++)); [ "${{COMP_WORDS[i]}}" = "=" ] && ((i++)) ;; -*|=) ;;'
    yield '      *) verb="${verb:+$verb }$word" ;; esac'
    yield "  done"
    yield '  [ "$current" = "=" ] && current=""'
    yield '  [ "$before" = "=" ] && before="${COMP_WORDS[COMP_CWORD-2]}"'
    yield '  case "$before" in'
    for name, choices in CHOICES.items():
        pattern = f"--{name}|-w" if name == "write-out" else f"--{name}"
        yield f'    {pattern}) COMPREPLY=($(compgen -W "{" ".join(choices)}" -- "$current")); return ;;'
    yield f'    {"|".join(f"--{name}" for name in FILES)}) COMPREPLY=($(compgen -f -- "$current")); return ;;'
    yield "  esac"
    yield '  case "$verb" in'
    first = sorted({verb.words[0] for verb in VERBS})
    yield f'    "") options="{" ".join(first)}" ;;'
    for family in FAMILIES:
        options = " ".join(verb.words[1] for verb in VERBS if verb.words[0] == family)
        yield f'    "{family}") options="{options}" ;;'
    for verb in VERBS:
        values = " ".join(SHELLS) if verb.name == "completion" else ""
        yield f'    "{verb.name}"*) options="{" ".join(filter(None, (values, _words(verb.flags))))}" ;;'
    yield "  esac"
    yield f'  case "$current" in -*) options="$options {_words(GLOBAL)} --help" ;; esac'
    yield '  COMPREPLY=($(compgen -W "$options" -- "$current"))'
    yield '  case "${COMPREPLY[0]}" in *=) compopt -o nospace 2>/dev/null ;; esac'
    files = 'case "$current" in -*) ;; *) COMPREPLY+=($(compgen -f -- "$current")) ;; esac'
    yield f'  case "$verb" in "snapshot "*) {files} ;; esac'
    yield "}"
    yield f"complete -F _{PROGRAM} {PROGRAM}"


def _fish() -> Iterator[str]:
    yield f"complete -c {PROGRAM} -f"
    for flag in GLOBAL:
        yield _fish_flag(flag, "")
    for word in sorted({verb.words[0] for verb in VERBS}):
        summary = FAMILIES.get(word) or next(verb.summary for verb in VERBS if verb.words[0] == word)
        yield f"complete -c {PROGRAM} -n __fish_use_subcommand -a {word} -d {_quoted(summary)}"
    for verb in VERBS:
        condition = f"__fish_seen_subcommand_from {verb.words[0]}"
        if len(verb.words) == 2:
            others = " ".join(
                other.words[1] for other in VERBS if other.words[0] == verb.words[0] and len(other.words) == 2
            )
            unless = f"{condition}; and not __fish_seen_subcommand_from {others}"
            yield f"complete -c {PROGRAM} -n {_quoted(unless)} -a {verb.words[1]} -d {_quoted(verb.summary)}"
            condition += f"; and __fish_seen_subcommand_from {verb.words[1]}"
        for flag in verb.flags:
            yield _fish_flag(flag, condition)
    yield f"complete -c {PROGRAM} -n '__fish_seen_subcommand_from completion' -a '{' '.join(SHELLS)}'"


def _fish_flag(flag: Flag, condition: str) -> str:
    parts = [f"complete -c {PROGRAM}"]
    if condition:
        parts.append(f"-n {_quoted(condition)}")
    parts.append(f"-l {flag.name}")
    if flag.short:
        parts.append(f"-s {flag.short}")
    if flag.name in CHOICES:
        parts.append(f"-x -a {_quoted(' '.join(CHOICES[flag.name]))}")
    elif flag.kind != "bool":
        parts.append("-r -F" if flag.name in FILES else "-x")
    return " ".join([*parts, f"-d {_quoted(flag.help)}"])


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
