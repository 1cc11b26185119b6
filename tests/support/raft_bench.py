"""One member alone, for tests that say exactly what it holds and what it hears."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from oarlock.raft import events as ev
from oarlock.raft import messages as ms
from oarlock.raft.core import Raft, RaftConfig
from oarlock.raft.types import Configuration, Entry, EntryKind, HardState, SnapshotMeta

MS = 1_000_000
TIMEOUT = 1000 * MS


def log_of(terms: Sequence[int]) -> tuple[Entry, ...]:
    """A log whose entry at index i has the i-th term. Payloads tell entries of one identity apart from no others."""
    return tuple(Entry(term, index, EntryKind.NORMAL, b"%d.%d" % (term, index)) for index, term in enumerate(terms, 1))


class Bench:
    """A member, its last effects, and a disk that is done at once unless `hold_syncs` is set."""

    def __init__(
        self,
        node: int = 1,
        *,
        terms: Sequence[int] = (),
        term: int | None = None,
        vote: int = 0,
        commit: int = 0,
        voters: Sequence[int] = (1, 2, 3),
        configuration: Configuration | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        entries = log_of(terms)
        options = {"pre_vote": False, "check_quorum": False, **options}
        self.now = 0
        self.hold_syncs = False
        self.tickets: list[int] = []
        self.releases: list[tuple[ev.Send, ...]] = []
        self.effects: list[ev.Effect] = []
        self.persists: list[ev.Persist] = []
        self.raft = Raft(
            RaftConfig(id=node, **options),
            hard_state=HardState(term if term is not None else (terms[-1] if terms else 0), vote, commit),
            snapshot=SnapshotMeta(),
            entries=entries,
            applied=0,
            initial=configuration or Configuration.of_voters(*voters),
            incarnation=0,
            rng=random.Random(seed),
            now=0,
        )

    @property
    def terms(self) -> list[int]:
        """The terms of the log, entry 1 first."""
        found = [self.raft.log.term(i) for i in range(self.raft.log.first_index, self.raft.log.last_index + 1)]
        return [term for term in found if term is not None]

    def do(self, *events: ev.Event) -> list[tuple[int, ms.Message]]:
        """One turn, and those that follow from it. Returns what was sent, `(to, message)`."""
        sent: list[tuple[int, ms.Message]] = []
        self.effects = []
        pending = list(events)
        while True:
            effects = self.raft.handle(pending, self.now)
            self.raft.validate()
            pending = []
            self.effects += effects
            for effect in effects:
                if isinstance(effect, ev.Send):
                    sent.append((effect.to, effect.message))
                elif isinstance(effect, ev.Persist):
                    self.persists.append(effect)
                    self.tickets.append(effect.ticket)
                    self.releases.append(effect.release)
                elif isinstance(effect, ev.Apply):
                    pending.append(ev.Applied(effect.entries[-1].index))
            if self.tickets and not self.hold_syncs:
                sent += self.take_released()
                pending.append(ev.Persisted(self.tickets.pop()))
                self.tickets.clear()
            if not pending:
                return sent

    def take_released(self) -> list[tuple[int, ms.Message]]:
        released = [(send.to, send.message) for release in self.releases for send in release]
        self.releases.clear()
        return released

    def sync(self) -> list[tuple[int, ms.Message]]:
        """The held fsyncs return."""
        self.hold_syncs = False
        return self.do()

    def hear(self, sender: int, message: ms.Message) -> list[tuple[int, ms.Message]]:
        return self.do(ev.MessageReceived(sender, message))

    def reply(self, sender: int, message: ms.Message) -> ms.Message:
        """The one answer to the sender."""
        answers = [m for to, m in self.hear(sender, message) if to == sender]
        assert len(answers) == 1, answers
        return answers[0]

    def pass_time(self, nanoseconds: int | None = None) -> list[tuple[int, ms.Message]]:
        """Let time pass: by so much, or until the next timer."""
        self.now = max(self.raft.next_deadline(), self.now) if nanoseconds is None else self.now + nanoseconds
        return self.do(ev.TimePassed())

    def append(
        self, sender: int, term: int, previous: tuple[int, int], terms: Sequence[int] = (), commit: int = 0
    ) -> list[tuple[int, ms.Message]]:
        """Hear AppendEntries; `previous` is `(term, index)`."""
        entries = tuple(
            Entry(t, previous[1] + i, EntryKind.NORMAL, b"%d.%d" % (t, previous[1] + i)) for i, t in enumerate(terms, 1)
        )
        message = ms.AppendEntries(
            term=term, prev_log_index=previous[1], prev_log_term=previous[0], entries=entries, commit_index=commit
        )
        return self.hear(sender, message)

    def lead(self) -> list[tuple[int, ms.Message]]:
        """Win an election with everybody's vote. Returns what the new leader sent."""
        self.pass_time()
        sent: list[tuple[int, ms.Message]] = []
        for peer in sorted(self.raft.configuration.voters - {self.raft.id}):
            sent += self.hear(peer, ms.RequestVoteReply(term=self.raft.current_term, granted=True))
            if self.raft.is_leader:
                break
        assert self.raft.is_leader
        return sent

    def acknowledge(self, sender: int, index: int) -> list[tuple[int, ms.Message]]:
        return self.hear(sender, ms.AppendEntriesReply(term=self.raft.current_term, success=True, index=index))

    def propose(self, *payloads: bytes) -> list[tuple[int, ms.Message]]:
        return self.do(*(ev.Proposed(token, payload) for token, payload in enumerate(payloads, 1)))

    def answers(self, kind: type[Any]) -> list[Any]:
        return [effect for effect in self.effects if isinstance(effect, kind)]


def only(sent: list[tuple[int, ms.Message]], kind: type[Any]) -> list[Any]:
    return [message for _, message in sent if isinstance(message, kind)]
