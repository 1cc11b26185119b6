"""A machine for the tests of development mode: it stands in a module, so that a second process can load it."""

from __future__ import annotations

from oarlock import Lock, StateMachine, command


class Words(StateMachine):
    def __init__(self) -> None:
        self.all: dict[str, int] = {}
        self.lock = Lock()

    @command
    def in_order(self, text: str) -> str:
        for word in sorted(set(text.split())):
            self.all[word] = self.all.get(word, 0) + 1
        return next(iter(self.all))

    @command
    def any_of(self, text: str) -> str:
        return next(iter(set(text.split())))

    @command
    def kept(self, text: str) -> None:
        for word in set(text.split()):
            self.all[word] = 1
