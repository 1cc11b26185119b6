"""watch: changes as they happen, printed or given to a command; from stdin, as many watches as wanted."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from oarlock.ctl import kv, text
from oarlock.ctl.app import Run
from oarlock.ctl.client import Client, environment_with, hint_for, method
from oarlock.ctl.connection import UNAVAILABLE, Call
from oarlock.ctl.failures import INTERRUPTED, INVALID_INPUT, CallError, Failure, bad_arguments
from oarlock.ctl.flags import PREFIXES, HelpWanted, parse
from oarlock.ctl.show import Printer, plain
from oarlock.ctl.verbs import BY_WORDS, GLOBAL

RPC: Final = "Watch/Watch"
COMPACTED: Final = "etcdserver: mvcc: required revision has been compacted"
FUTURE: Final = "etcdserver: mvcc: required revision is a future revision"
LINE_BYTES_MAX: Final = 1 << 20


class Wanted(NamedTuple):
    """One watch: what is asked for, and the command to run for each change."""

    key: bytes
    range_end: bytes
    start_revision: int
    prev_kv: bool
    progress_notify: bool
    command: list[str]


def watch(run: Run) -> None:
    if run.interactive:
        _Interactive(run.client, run.printer).read()
    wanted = wanted_of(run.args, run.dash, run.flags)
    watches = _Watches(run.client, run.printer)
    watches.add(wanted)
    while True:
        watches.take()


def wanted_of(args: list[str], dash: int, flags: dict[str, Any]) -> Wanted:
    """What `watch` asks for. Raises `Failure`."""
    before, command = (args, []) if dash < 0 else (args[:dash], args[dash:])
    if dash >= 0 and not command:
        raise bad_arguments("bad number of arguments (found separator --, but no commands)")
    key, end = (next(filter(None, (os.environ.get(p + name) for p in PREFIXES)), "") for name in
                ("WATCH_KEY", "WATCH_RANGE_END"))  # fmt: skip
    if key and before:
        raise bad_arguments("bad number of arguments (found conflicting environment key)",
                            "ETCDCTL_WATCH_KEY is set: leave KEY out, or unset it")  # fmt: skip
    given = before or [word for word in (key, end) if word]
    if not 1 <= len(given) <= 2:
        raise bad_arguments("bad number of arguments", "`--` goes before the command to run" if len(given) > 2 else "")
    if flags["prefix"] and len(given) > 1:
        raise bad_arguments("`range_end` and `--prefix` are mutually exclusive")
    bounds = kv.span(given, {"prefix": flags["prefix"], "from_key": False}, "watch")
    return Wanted(bounds["key"], bounds["range_end"], flags["rev"], flags["prev_kv"], flags["progress_notify"], command)


class _Watches:
    """Watches on one stream. When it breaks, another member goes on where it ended."""

    def __init__(self, client: Client, printer: Printer) -> None:
        self.client = client
        self.printer = printer
        self.wanted: dict[int, Wanted] = {}
        self.next: dict[int, int] = {}
        """The first revision that has not been shown, by watch; 0 while it is not known."""
        self.call: Call | None = None
        self._created = 0

    def add(self, wanted: Wanted) -> None:
        self._created += 1
        self.wanted[self._created] = wanted
        self.next[self._created] = wanted.start_revision
        if self.call is None:
            self._begin()
        else:
            self._send(self._create(self._created))

    def progress(self) -> None:
        self._send({"progress_request": {}})

    def take(self) -> None:
        """Wait for the next response and show it. Raises `Failure` when a watch ends."""
        if self.call is None:
            self._begin()
        assert self.call is not None, "a stream was just begun"
        try:
            raw = self.call.receive()
        except CallError as error:
            if error.code != UNAVAILABLE:
                raise
            raw = None
        if raw is None:
            self.call = None
            self.client.drop()
            return
        self.show(method(RPC)[2].FromString(raw))

    def show(self, answer: Any) -> None:
        number = answer.watch_id
        if answer.canceled:
            self.wanted.pop(number, None)
            reason = COMPACTED if answer.compact_revision else answer.cancel_reason or FUTURE
            sys.stderr.write(f"watch was canceled ({reason})\n")
            self._print(answer)
            self.canceled(reason)
            return
        if answer.created:
            self.next[number] = self.next.get(number) or answer.header.revision + 1
            return
        numbers = [number] if number in self.wanted else list(self.wanted)  # an answer to `progress` is for all
        for one in numbers:
            revision = answer.events[-1].kv.mod_revision if answer.events else answer.header.revision
            self.next[one] = max(self.next.get(one, 0), revision + 1)
            if not answer.events:
                self.printer.write(b"progress notify: %d\n" % answer.header.revision)
            self._print(answer)
            for event in answer.events if self.wanted[one].command else ():
                _execute(self.wanted[one].command, answer.header.revision, event)

    def canceled(self, reason: str) -> None:
        raise Failure("watch is canceled by the server", INTERRUPTED, hint_for(reason))

    def _print(self, answer: Any) -> None:
        answer.watch_id = 0
        json = {
            "Header": plain(answer.header), "Events": [plain(event) for event in answer.events],
            "CompactRevision": answer.compact_revision, "Canceled": answer.canceled, "Created": False,
        }  # fmt: skip
        self.printer(answer, lambda: self._lines(answer.events), json)

    def _lines(self, events: Any) -> Iterator[bytes]:
        for event in events:
            yield b"DELETE" if event.type else b"PUT"
            if event.HasField("prev_kv"):
                yield from self.printer.pairs([event.prev_kv])
            yield from self.printer.pairs([event.kv])

    def _begin(self) -> None:
        self.call = self.client.open(RPC)
        for number in self.wanted:
            self._send(self._create(number))

    def _create(self, number: int) -> dict[str, Any]:
        fields = self.wanted[number]._asdict() | {"watch_id": number, "start_revision": self.next[number]}
        del fields["command"]
        return {"create_request": fields}

    def _send(self, fields: dict[str, Any]) -> None:
        if self.call is None:
            return
        try:
            self.call.send(method(RPC)[1](**fields).SerializeToString())
        except CallError as error:
            if error.code != UNAVAILABLE:
                raise
            self.call = None  # `take` begins another one
            self.client.drop()


class _Interactive(_Watches):
    """Watches that lines on stdin ask for."""

    def __init__(self, client: Client, printer: Printer) -> None:
        super().__init__(client, printer)
        self._typed = bytearray()

    def read(self) -> None:
        """Read and watch until stdin ends, which is a `Failure` as in etcdctl."""
        while True:
            line, newline, rest = self._typed.partition(b"\n")
            if newline:
                self._typed = bytearray(rest)
                self._order(os.fsdecode(bytes(line)))
            elif self.call is None and not self.wanted:
                self._more()
            elif self.call is not None and not self.call.messages and not self.call.ended:
                connection = self.client.connection
                if connection is not None and connection.broken is None and not connection.pump(None, also=0):
                    self._more()
            else:
                self.take()

    def canceled(self, reason: str) -> None:
        """The others go on."""

    def _more(self) -> None:
        data = os.read(0, 65536)
        if not data:
            raise Failure("error reading watch request line: EOF", INVALID_INPUT)
        self._typed += data
        if len(self._typed) > LINE_BYTES_MAX:
            raise Failure(f"a line on stdin has more than {LINE_BYTES_MAX} bytes", INVALID_INPUT)

    def _order(self, line: str) -> None:
        try:
            words = text.words(line)
        except ValueError as error:
            sys.stderr.write(f"Invalid command {line} ({error})\n")
            return
        if words[:1] == ["progress"]:
            self.progress()
            return
        if words[:1] != ["watch"]:
            sys.stderr.write(f"Invalid command {line} (only support watch)\n")
            return
        try:
            parsed = parse(words[1:], (*BY_WORDS["watch",].flags, *GLOBAL))
            if not parsed.args:
                raise Failure("command type or key is not provided")
            wanted = wanted_of(parsed.args, parsed.dash, parsed.flags)
        except HelpWanted:
            sys.stderr.write("watch KEY [END] [--prefix] [--rev=N] [--prev-kv] [-- COMMAND...], or: progress\n")
            return
        except Failure as failure:
            sys.stderr.write(f"Invalid command {line} ({failure})\n")
            return
        self.add(wanted)


def _execute(command: list[str], revision: int, event: Any) -> None:
    environment = environment_with([
        ("ETCD_WATCH_REVISION", str(revision)),
        ("ETCD_WATCH_EVENT_TYPE", text.quoted(b"DELETE" if event.type else b"PUT")),
        ("ETCD_WATCH_KEY", text.quoted(event.kv.key)),
        ("ETCD_WATCH_VALUE", text.quoted(event.kv.value)),
    ])  # fmt: skip
    shown = "[" + " ".join(text.quoted(os.fsencode(word)) for word in command) + "]"
    try:
        code = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, check=False).returncode  # noqa: S603 - the user's own
        wrong = ended(code)
    except OSError as error:
        wrong = not_started(command[0], error)
    if wrong:
        sys.stderr.write(f"command {shown} error ({wrong})\n")
        raise Failure("")


def ended(code: int) -> str:
    """How a command ended that did not end well; nothing for 0."""
    import signal

    if code >= 0:
        return f"exit status {code}" if code else ""
    return f"signal: {(signal.strsignal(-code) or str(-code)).lower()}"


def not_started(name: str, error: OSError) -> str:
    if isinstance(error, FileNotFoundError) and "/" not in name:
        return f'exec: "{name}": executable file not found in $PATH'
    return f"fork/exec {name}: {str(error.strerror).lower()}"
