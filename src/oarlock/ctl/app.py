"""One command line from its words to its exit code."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

from oarlock.ctl import failures
from oarlock.ctl.failures import CallError, Failure, Interrupted
from oarlock.ctl.flags import HelpWanted, Parsed, environment, parse
from oarlock.ctl.verbs import BY_WORDS, FAMILIES, FAMILY_FLAGS, FORMATS, GLOBAL, Verb

PROGRAM: Final = "oarlockctl"


class Run:
    """A verb that runs: its arguments, its flags as attributes of `flags`, and what it prints through."""

    def __init__(self, verb: Verb, parsed: Parsed) -> None:
        self.verb = verb
        self.args = parsed.args
        self.dash = parsed.dash
        self.flags = parsed.flags
        self.given = parsed.given
        self._client: Any = None
        self._printer: Any = None

    def __getattr__(self, name: str) -> Any:
        """A flag's value."""
        try:
            return self.__dict__["flags"][name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def client(self) -> Any:
        """The client, made when it is first asked for: by then the arguments have been checked."""
        if self._client is None:
            self.check_format()
            from oarlock.ctl.client import Client

            self._client = Client.of(self.flags)
        return self._client

    @property
    def printer(self) -> Any:
        if self._printer is None:
            from oarlock.ctl.show import Printer

            self._printer = Printer(self.write_out, self.hex)
        return self._printer

    def check_format(self) -> None:
        """Refuse a format that the verb does not have, before anything is done. (etcdctl does it afterwards.)"""
        if self.verb.formats and self.write_out not in self.verb.formats:
            hint = f"`{self.verb.name}` prints {', '.join(self.verb.formats)}; nothing was asked of the server"
            raise Failure(f"{self.write_out} not supported as output format", failures.BAD_FEATURE, hint)

    def raw(self, number: int) -> bytes:
        """An argument as the bytes that were typed."""
        return os.fsencode(self.args[number])


def main() -> NoReturn:
    """Run `sys.argv` and exit."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(
            signal.SIGINT, signal.SIG_DFL
        )  # as etcdctl: verbs that have something to undo catch it themselves
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it was closed before we began
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except BrokenPipeError:
        reader_gone()
    except OSError:
        os._exit(code or failures.IO)  # said already, where that could be done
    sys.exit(code)


def run(words: Sequence[str]) -> int:
    """Run one command line: its exit code."""
    verb: Verb | None = None
    try:
        verb, rest = find(words)
        if verb is None:
            return _help(rest)
        flags = tuple({flag.name: flag for flag in (*GLOBAL, *verb.flags)}.values())
        weak, unknown = environment(os.environ, GLOBAL)
        parsed = parse(rest, flags, weak)
        for name in unknown:
            sys.stderr.write(f"warning: {name} in the environment is no setting of {PROGRAM} and has no effect\n")
        if parsed.flags["json"] and "write_out" not in parsed.given:
            parsed.flags["write_out"] = "json"
        command = Run(verb, parsed)
        if parsed.flags["write_out"] not in FORMATS:
            raise Failure("unsupported output format", failures.BAD_FEATURE, f"--write-out takes {', '.join(FORMATS)}")
        return int(function(verb)(command) or 0)
    except HelpWanted:
        return _help(verb.words if verb else [])
    except Failure as failure:
        hint = failure.hint
        if failure.code == failures.FAILED and failure.text.startswith(("unknown", "invalid argument", "flag needs")):
            hint += f"Run '{' '.join([PROGRAM, *(verb.words if verb else ())])} --help' for usage."
        return report(failure.text, hint, failure.code)
    except CallError as error:
        return report(error.text, error.hint, failures.FAILED)
    except Interrupted:
        return report("context canceled", "", failures.FAILED)
    except BrokenPipeError:
        return reader_gone()
    except OSError as error:
        return report(f"write /dev/stdout: {str(error.strerror).lower()}", "", failures.IO)


def function(verb: Verb) -> Callable[[Run], int | None]:
    """The function that does a verb's work."""
    name = verb.function
    found: Callable[[Run], int | None] = getattr(importlib.import_module(f"oarlock.ctl.{verb.module}"), name)
    return found


def find(words: Sequence[str]) -> tuple[Verb | None, list[str]]:
    """The verb that is meant and all other words; None, and words to give help on, if there is none."""
    taken: list[str] = []
    rest: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if word == "--":
            queue.insert(0, word)
            break
        if word.startswith("-") and word != "-":
            rest.append(word)
            if queue and _takes_value(word, taken):
                rest.append(queue.pop(0))
            continue
        taken.append(word)
        verb = BY_WORDS.get(tuple(taken))
        if verb is not None:
            return verb, [*rest, *queue]
        if len(taken) == 1 and word not in FAMILIES:
            import difflib

            near = difflib.get_close_matches(word, [*FAMILIES, *(words[0] for words in BY_WORDS)], n=1)
            raise Failure(f'unknown command "{word}" for "{PROGRAM}"', hint=f"did you mean {near[0]}? " if near else "")
        if len(taken) == 2:
            break
    return None, taken


def _takes_value(word: str, taken: list[str]) -> bool:
    """Whether the next word belongs to this flag."""
    if "=" in word:
        return False
    flags = (*GLOBAL, *(FAMILY_FLAGS.get(taken[0], ()) if taken else ()))
    for flag in flags:
        if word == f"--{flag.name}" or (flag.short and word == f"-{flag.short}"):
            return bool(flag.kind != "bool")
    return word.startswith("--") and word != "--help"


def _help(words: Sequence[str]) -> int:
    from oarlock.ctl.help import page

    sys.stdout.write(page(words))
    return 0


def report(text: str, hint: str, code: int) -> int:
    """Say on stderr what was wrong, and what to do."""
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    if text:
        red, plain = ("\x1b[31m", "\x1b[0m") if sys.stderr.isatty() and "NO_COLOR" not in os.environ else ("", "")
        sys.stderr.write(f"{red}Error:{plain} {_safe(text)}\n")
    if hint:
        sys.stderr.write(f"{_safe(hint)}\n")
    return code


def _safe(text: str) -> str:
    """Without bytes that are no text."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def reader_gone() -> NoReturn:
    """Nobody reads our stdout any more: end as programs do that meet this, without a word."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGPIPE)
    os._exit(failures.FAILED)
