"""How a command ends when it does not end well: what is printed, and etcdctl's exit codes."""

from __future__ import annotations

from typing import Final

OK: Final = 0
FAILED: Final = 1
BAD_CONNECTION: Final = 2
INVALID_INPUT: Final = 3
BAD_FEATURE: Final = 4
"""A word that a flag does not know, such as --order=UP, or a format that a verb does not have."""
INTERRUPTED: Final = 5
IO: Final = 5  # etcdctl gives one number to both
BAD_ARGUMENTS: Final = 128

MEANINGS: Final = {
    OK: "done (a key that is missing prints nothing)",
    FAILED: "the call failed, or a flag is unknown or cannot be read",
    BAD_CONNECTION: "no client could be made: no endpoint, wrong password; `lease keep-alive --once` failed",
    INVALID_INPUT: "what was read from stdin makes no sense (`txn`, `watch -i`); `check` found keys in its way",
    BAD_FEATURE: "a word that a flag does not know (`--order=UP`), or a format that the verb does not have",
    INTERRUPTED: "a watch or a mirror ended by the server; a file could not be written",
    BAD_ARGUMENTS: "the verb's arguments are wrong, or a file for TLS is",
}


class Failure(Exception):
    """Ends the command: `Error: text` on stderr, a further line that says what to do if there is a `hint`, and `code`.
    An empty text prints nothing: everything has been said."""

    def __init__(self, text: str, code: int = FAILED, hint: str = "") -> None:
        super().__init__(text)
        self.text = text
        self.code = code
        self.hint = hint


class CallError(Exception):
    """A call ended with the gRPC status `code` other than OK. `sent` is false if the server cannot have seen it; `hint`
    says more than `text`, which is in the server's or etcdctl's words."""

    def __init__(self, code: int, text: str, *, sent: bool = True, hint: str = "") -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.sent = sent
        self.hint = hint


class Interrupted(Exception):
    """A signal asked the command to end."""


def bad_arguments(text: str, hint: str = "") -> Failure:
    return Failure(text, BAD_ARGUMENTS, hint)
