"""The keeper of leases: what one member does about them beyond applying entries. (docs/explanation/leases.md)

The leader keeps a deadline for each lease in memory, at or below the lease's replicated *ceiling*. A renewal that stays
below the ceiling costs no entry; one that does not raises the ceiling first, well above what is promised. The leader
carries its measurement of time into the log (`tick`), and ends leases that it finds expired, a few at a time. Before
it answers anything about a lease, and before it ends one, it confirms with a read round that it still leads.

Every other member passes questions on to the leader. Nothing is lost if an answer is: the question is asked again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import Final

from oarlock.errors import DeadlineExceeded, NoLeader, Outcome, Overloaded, RaftError
from oarlock.machines.base import LeaseMachine
from oarlock.node.replica.events import LeasesAnswered, LeasesFailed, MemberEffect
from oarlock.raft.events import Send
from oarlock.raft.messages import LeaseAnswer, LeaseAsk
from oarlock.raft.types import NOBODY, NodeId, Term

SECOND: Final = 1_000_000_000
TICK_IDLE_NS: Final = SECOND // 2  # at most so much of the lease clock is lost with a leader that is idle
TICK_BUSY_NS: Final = SECOND // 10  # the clock goes along with other proposals when it is this old
EXPIRE_BATCH_MAX: Final = 100  # leases ended by one proposal ...
EXPIRE_PAUSE_NS: Final = SECOND // 10  # ... and this long until the next: at most 1000 a second, as etcd
RENEW_BATCH_MAX: Final = 1000  # ceilings raised by one command
ASKED_MAX: Final = 100_000  # leases asked about and not answered, by this member's callers
ASKED_OF_OTHERS_MAX: Final = 100_000  # the same, by other members
ASK_MAX: Final = 4096  # leases in one ask, hence in one message to the leader
HEAP_STALE_MAX: Final = 1000  # deadlines of leases that are gone, beside as many as there are leases
NEVER: Final = 2**63 - 1
NEVER_YET: Final = -(2**63)


class _Ask:
    """Renewals and questions that came together, of this member's callers (`sender` NOBODY) or of another member."""

    __slots__ = ("deadline", "query", "remaining", "renew", "renewed", "request", "sender", "sent_at", "token", "waits")

    def __init__(
        self, sender: NodeId, token: int, renew: Sequence[int], query: Sequence[int], deadline: int, request: int
    ) -> None:
        self.sender = sender
        self.token = token
        self.renew = renew
        self.query = query
        self.deadline = deadline
        self.request = request  # of a message
        self.sent_at = 0
        self.renewed: list[int] = []
        self.remaining: list[int] = []
        self.waits = 0  # proposals that must be applied before the answer

    @property
    def size(self) -> int:
        return len(self.renew) + len(self.query)


class _Raise:
    """A proposal that raises ceilings: what each lease's deadline becomes, and who waits for which of them."""

    __slots__ = ("asks", "wants")

    def __init__(self) -> None:
        self.wants: dict[int, int] = {}  # lease -> deadline wanted, below the new ceiling
        self.asks: list[tuple[_Ask, int]] = []  # an ask and the place in its `renewed`


class LeaseKeeper:
    """See the module. `Member` calls `ask` and the `..._received` with what arrives, and `turn` at the end of each of
    its own turns; effects collect in `out`, commands in `commands`, and `wants_round` asks for a read round."""

    def __init__(
        self,
        machine: LeaseMachine,
        *,
        timeout_ns: int,
        retry_ns: int,
        pause_ns: int,
        first_request: int,
        confirmed_ns: int = 0,
    ) -> None:
        self.out: list[MemberEffect] = []
        self.commands: list[bytes] = []
        self.wants_round = False
        self._machine = machine
        self._timeout_ns = timeout_ns  # how long an ask may take
        self._retry_ns = retry_ns  # after which a message without an answer is sent again
        self._pause_ns = pause_ns  # before a leader that refused is asked again
        self._confirmed_ns = confirmed_ns  # how long renewals are answered by one confirmation
        self._request = first_request
        self._now = 0

        self._queue: deque[_Ask] = deque()  # not begun
        self._hold_until = 0
        self._sent: dict[int, _Ask] = {}  # request -> passed on to `_sent_to` in `_sent_term`
        self._sent_to: NodeId = NOBODY
        self._sent_term: Term = 0
        self._asked = 0  # leases in all asks of our own callers
        self._asked_of_others = 0

        self._term: Term = 0  # that we lead in, with the machine in step; 0: we do not
        self._running = False  # the lease clock goes
        self._anchor_clock = 0
        self._anchor_now = 0
        self._ticked_at = 0
        self._deadlines: dict[int, int] = {}
        self._heap: list[tuple[int, int]] = []  # (a deadline that was true once, lease)
        self._due: dict[int, None] = {}  # off the heap: expired when last looked at
        self._ending: dict[int, None] = {}  # an end is proposed: no promise is made any more
        self._ends: dict[int, list[int]] = {}  # number of the proposal -> what it ends
        self._end_next: list[int] = []  # in `commands`
        self._expire_at = 0
        self._expiry_round = 0  # token of the round that is to confirm us, 0: none
        self._expiry_confirmed = False
        self._rounds: dict[int, list[_Ask]] = {}  # token -> asks that it confirms
        self._began: dict[int, int] = {}  # token -> when that round began
        self._confirmed_at = NEVER_YET  # when the last round began that was confirmed
        self._new_round: list[_Ask] = []
        self._waiting: list[tuple[int, list[_Ask]]] = []  # confirmed, until this index is applied
        self._collecting: _Raise | None = None
        self._raises: dict[int, list[_Raise]] = {}  # number of the proposal -> what it raises
        self._raising: dict[int, tuple[int, _Raise]] = {}  # lease -> ceiling under way, and its proposal
        self._proposing: list[_Raise] = []  # in `commands`

    # ------------------------------------------------------------------ what others may look at

    @property
    def leads(self) -> bool:
        return self._term != 0

    def deadline_of(self, lease: int) -> int | None:
        """The leader's deadline of a lease on the lease clock. For tests and checkers."""
        return self._deadlines.get(lease)

    def reading(self, now: int) -> int:
        """The lease clock as the leader reads it."""
        return self._anchor_clock + (now - self._anchor_now) if self._running else self._machine.leases.clock

    def next_deadline(self) -> int:
        """When `turn` has something to do even if nothing happens."""
        deadline = NEVER
        if self._queue:
            deadline = self._hold_until if self._hold_until > self._now else self._queue[0].deadline
            deadline = min(deadline, self._queue[0].deadline)
        for ask in self._sent.values():
            deadline = min(deadline, ask.deadline, ask.sent_at + self._retry_ns)
        if self._term and self._running:
            deadline = min(deadline, self._ticked_at + TICK_IDLE_NS)
            if self._heap:
                deadline = min(deadline, max(self._heap[0][0] - self._anchor_clock + self._anchor_now, self._now + 1))
            if self._due and not self._expiry_round:
                deadline = min(deadline, self._expire_at)
        return deadline

    # ------------------------------------------------------------------ questions arrive

    def ask(self, token: int, renew: Sequence[int], query: Sequence[int], now: int) -> None:
        """This member's callers ask; the answer is `LeasesAnswered` or `LeasesFailed`."""
        size = len(renew) + len(query)
        assert size <= ASK_MAX, f"{size} leases in one ask"
        if self._asked + size > ASKED_MAX and self._asked:
            self.out.append(LeasesFailed(token, Overloaded("ASKED_MAX", ASKED_MAX)))
            return
        self._asked += size
        self._queue.append(_Ask(NOBODY, token, renew, query, now + self._timeout_ns, 0))

    def ask_received(self, sender: NodeId, message: LeaseAsk, now: int) -> None:
        """Another member takes us for the leader of `message.term`."""
        ask = _Ask(sender, 0, message.renew, message.query, now + self._timeout_ns, message.request)
        if self._asked_of_others + ask.size > ASKED_OF_OTHERS_MAX and self._asked_of_others:
            return  # it will ask again
        self._asked_of_others += ask.size
        self._queue.append(ask)

    def answer_received(self, message: LeaseAnswer) -> None:
        ask = self._sent.pop(message.request, None)
        if ask is None:
            return
        if message.reason or len(message.renewed) != len(ask.renew) or len(message.remaining) != len(ask.query):
            self._queue.append(ask)
            self._hold_until = self._now + self._pause_ns
        else:
            ask.renewed, ask.remaining = list(message.renewed), list(message.remaining)
            self._answer(ask)

    def _answer(self, ask: _Ask) -> None:
        if ask.sender == NOBODY:
            self._asked -= ask.size
            self.out.append(LeasesAnswered(ask.token, ask.renewed, ask.remaining))
        else:
            self._asked_of_others -= ask.size
            answer = LeaseAnswer(
                term=self._term,
                request=ask.request,
                renewed=tuple(ask.renewed),
                remaining=tuple(ask.remaining),
            )
            self.out.append(Send(ask.sender, answer))

    def _fail(self, ask: _Ask, error: RaftError) -> None:
        if ask.sender == NOBODY:
            self._asked -= ask.size
            self.out.append(LeasesFailed(ask.token, error))
        else:
            self._asked_of_others -= ask.size
            self.out.append(Send(ask.sender, LeaseAnswer(term=0, request=ask.request, reason="not_leader")))

    def fail_everything(self, error: RaftError) -> None:
        """The member stops."""
        self._retreat()
        self._queue.extend(self._sent.values())
        self._sent = {}
        while self._queue:
            self._fail(self._queue.popleft(), error)

    # ------------------------------------------------------------------ the turn

    def turn(
        self,
        now: int,
        leader: NodeId,
        term: Term,
        applied: int,
        *,
        leads: bool,
        in_step: bool,
        leaving: bool = False,
        committed: int = 0,
    ) -> None:
        """Do what can be done now. `leads`: this member is the leader of `term`; `in_step`: its machine has applied an
        entry of that term, hence everything that earlier leaders decided; `leaving`: it has asked another to lead."""
        self._now = now
        if self._term and (not leads or self._term != term):
            self._retreat()
        if leads and in_step:
            if not self._term:
                self._lead(term)
            self._read_journal()
            if self._waiting:
                self._answer_confirmed(applied)
            if self._running:
                self._look_for_expired()
        if self._sent and (self._sent_to, self._sent_term) != (leader, term):
            for request, ask in list(self._sent.items()):
                self._queue.append(ask)
                del self._sent[request]
        fresh = not leaving and applied >= committed and now - self._confirmed_at < self._confirmed_ns
        self._begin_queue(leader, term, leads, fresh=fresh)
        if self._sent:
            self._send_again()
        if self._term and self._running and now >= self._ticked_at + TICK_IDLE_NS:
            self.tick()
            self._expire_asks()
        if self._new_round or (self._due and not self._expiry_round and now >= self._expire_at):
            self.wants_round = True

    def _begin_queue(self, leader: NodeId, term: Term, leads: bool, *, fresh: bool) -> None:
        """`fresh`: a confirmation is so young that renewals need no other. A ceiling is honoured by whoever leads, so
        what is promised below it is true even if somebody else leads since; that a lease was revoked meanwhile is all
        that can be missed, for as long as `confirmed_ns`."""
        queue = self._queue
        if not queue:
            return
        now = self._now
        while queue and queue[0].deadline <= now:
            self._late(queue.popleft())
        if now < self._hold_until:
            return
        for _ in range(len(queue)):
            ask = queue.popleft()
            if self._term and fresh and not ask.query:
                self._work(ask)
            elif self._term:
                self._new_round.append(ask)
            elif ask.sender != NOBODY and not leads:
                self._fail(ask, NoLeader("not the leader"))
            elif leader == NOBODY or leads:
                queue.append(ask)  # until there is a leader, or until we are in step
            else:
                self._pass_on(ask, leader, term)
        if self._collecting is not None:
            self._propose_raise()

    def _late(self, ask: _Ask) -> None:
        error: RaftError = NoLeader("no leader answered in time about leases")
        if ask.sent_at:
            error = DeadlineExceeded("no answer in time; leases may have been renewed")
            error.outcome = Outcome.UNKNOWN
        self._fail(ask, error)

    def _pass_on(self, ask: _Ask, leader: NodeId, term: Term) -> None:
        self._request += 1
        ask.request, ask.sent_at = self._request, self._now
        self._sent[ask.request] = ask
        self._sent_to, self._sent_term = leader, term
        message = LeaseAsk(term=term, request=ask.request, renew=tuple(ask.renew), query=tuple(ask.query))
        self.out.append(Send(leader, message))

    def _send_again(self) -> None:
        now = self._now
        for request, ask in list(self._sent.items()):
            if ask.deadline <= now:
                del self._sent[request]
                self._late(ask)
            elif ask.sent_at + self._retry_ns <= now:
                ask.sent_at = now
                message = LeaseAsk(
                    term=self._sent_term, request=request, renew=tuple(ask.renew), query=tuple(ask.query)
                )
                self.out.append(Send(self._sent_to, message))

    # ------------------------------------------------------------------ leading

    def _lead(self, term: Term) -> None:
        """Every ceiling is taken for a promise."""
        book = self._machine.leases
        book.journal = []
        self._term = term
        self._deadlines = {lease: ceiling for lease, (_, ceiling) in book.items()}
        self._heap = [(ceiling, lease) for lease, ceiling in self._deadlines.items()]
        heapify(self._heap)
        self._running = len(book) > 0
        self._anchor_clock, self._anchor_now = book.clock, self._now
        self._ticked_at = self._now
        self._expire_at = 0

    def _retreat(self) -> None:
        """We do not lead any more: what was begun begins anew, with whoever does."""
        if not self._term:
            return
        self._machine.leases.journal = None
        self._term = 0
        self._running = False
        again = [*self._new_round]
        for asks in self._rounds.values():
            again += asks
        for _, asks in self._waiting:
            again += asks
        raises = [r for group in self._raises.values() for r in group] + self._proposing
        if self._collecting is not None:
            raises.append(self._collecting)
        for one in raises:
            for ask, _ in one.asks:
                if ask.waits:
                    ask.waits = 0
                    again.append(ask)
        self._deadlines, self._heap, self._due, self._ending = {}, [], {}, {}
        self._rounds, self._new_round, self._waiting = {}, [], []
        self._began, self._confirmed_at = {}, NEVER_YET
        self._collecting, self._raises, self._raising, self._proposing = None, {}, {}, []
        self._ends, self._end_next = {}, []
        self._expiry_round, self._expiry_confirmed = 0, False
        self.commands = []
        self.wants_round = False
        for ask in again:
            ask.renewed, ask.remaining, ask.sent_at = [], [], 0
            self._queue.append(ask)

    def _read_journal(self) -> None:
        """What the machine has applied since the last turn."""
        book = self._machine.leases
        journal = book.journal
        assert journal is not None, "the machine was restored under a leader"
        if journal:
            book.journal = []
            for lease, ttl in journal:
                if not ttl:
                    self._deadlines.pop(lease, None)
                    self._due.pop(lease, None)
                    self._ending.pop(lease, None)
                    continue
                found = book.get(lease)
                if found is None:
                    continue  # ended in the same turn
                if not self._running:
                    self._running = True
                    self._anchor_clock, self._anchor_now = book.clock, self._now
                    self._ticked_at = self._now
                deadline = min(self.reading(self._now) + found[0] * SECOND, found[1])
                self._deadlines[lease] = deadline
                heappush(self._heap, (deadline, lease))
            if len(self._heap) > 2 * len(self._deadlines) + HEAP_STALE_MAX:
                self._heap = [(deadline, lease) for lease, deadline in self._deadlines.items()]
                heapify(self._heap)
        if self._running:
            if not len(book):
                self._running = False
                self._heap = []
            elif book.clock > self.reading(self._now):
                self._anchor_clock, self._anchor_now = book.clock, self._now

    # -- the clock

    def tick_due(self, now: int) -> bool:
        """Whether a tick should go along with what is proposed now."""
        self._now = now
        return self._term != 0 and self._running and self._now >= self._ticked_at + TICK_BUSY_NS

    def tick(self) -> None:
        """Put a tick before all other commands."""
        self._ticked_at = self._now
        self.commands.insert(0, self._machine.leases.tick_command(self._term, self.reading(self._now)))

    # -- expiry

    def _look_for_expired(self) -> None:
        reading = self.reading(self._now)
        heap = self._heap
        while heap and heap[0][0] <= reading:
            _, lease = heappop(heap)
            deadline = self._deadlines.get(lease)
            if deadline is None or lease in self._ending:
                continue
            if deadline > reading:
                heappush(heap, (deadline, lease))  # renewed meanwhile
            else:
                self._due[lease] = None
        if self._due and self._expiry_confirmed:
            self._end_some(reading)
        self._expiry_confirmed = False  # it speaks of this moment only

    def _end_some(self, reading: int) -> None:
        """A round has just confirmed that we lead: what is expired still may be ended."""
        self._expire_at = self._now + EXPIRE_PAUSE_NS
        book = self._machine.leases
        ids: list[int] = []
        ceilings: list[int] = []
        for lease in list(self._due)[:EXPIRE_BATCH_MAX]:
            del self._due[lease]
            deadline, found = self._deadlines.get(lease), book.get(lease)
            if deadline is None or found is None:
                continue
            if deadline > reading or lease in self._raising:
                heappush(self._heap, (max(deadline, reading + EXPIRE_PAUSE_NS), lease))  # renewed in the last moment
                continue
            self._ending[lease] = None
            ids.append(lease)
            ceilings.append(found[1])
        if ids:
            self.commands.append(book.expire_command(self._term, ids, ceilings))
            self._end_next += ids

    # -- rounds and answers

    def begin_round(self, token: int) -> None:
        """A read round begins under `token`: `wants_round` was set."""
        self.wants_round = False
        self._began[token] = self._now
        if self._new_round:
            self._rounds[token], self._new_round = self._new_round, []
        if self._due and not self._expiry_round and self._now >= self._expire_at:
            self._expiry_round = token

    def round_done(self, token: int, index: int) -> None:
        """We lead, or did after the round began; what was committed then is at or below `index`."""
        self._confirmed_at = max(self._confirmed_at, self._began.pop(token, NEVER_YET))
        asks = self._rounds.pop(token, None)
        if asks is not None:
            self._waiting.append((index, asks))
        if token == self._expiry_round:
            self._expiry_round = 0
            self._expiry_confirmed = True

    def round_failed(self, token: int) -> None:
        self._began.pop(token, None)
        asks = self._rounds.pop(token, None)
        if asks is not None:
            self._queue.extend(asks)
            self._hold_until = self._now + self._pause_ns
        if token == self._expiry_round:
            self._expiry_round = 0
            self._expire_at = self._now + EXPIRE_PAUSE_NS

    def _answer_confirmed(self, applied: int) -> None:
        waiting, self._waiting = self._waiting, []
        for index, asks in waiting:
            if index > applied:
                self._waiting.append((index, asks))
                continue
            for ask in asks:
                self._work(ask)
        if self._collecting is not None:
            self._propose_raise()

    def _work(self, ask: _Ask) -> None:
        book = self._machine.leases
        reading = self.reading(self._now)
        deadlines = self._deadlines
        renewed = ask.renewed
        for lease in ask.renew:
            found = book.get(lease)
            if found is None or lease in self._ending:
                renewed.append(0)
                continue
            ttl, ceiling = found
            wanted = reading + ttl * SECOND
            if wanted <= ceiling:
                if wanted > deadlines[lease]:
                    deadlines[lease] = wanted
            else:
                self._raise(ask, len(renewed), lease, wanted, wanted + book.slack_ns(ttl))
            renewed.append(ttl)
        for lease in ask.query:
            found = book.get(lease)
            if found is None or lease in self._ending:
                ask.remaining.append(-1)
            else:
                left = min(max(deadlines[lease] - reading, 0), found[0] * SECOND)
                ask.remaining.append(left // SECOND)
        if not ask.waits:
            self._answer(ask)

    def _raise(self, ask: _Ask, place: int, lease: int, wanted: int, ceiling: int) -> None:
        under_way = self._raising.get(lease)
        if under_way is not None and under_way[0] >= wanted:
            one = under_way[1]
        else:
            if self._collecting is None or len(self._collecting.wants) >= RENEW_BATCH_MAX:
                self._propose_raise()
                self._collecting = _Raise()
            one = self._collecting
            self._raising[lease] = (ceiling, one)
        one.wants[lease] = max(wanted, one.wants.get(lease, 0))
        one.asks.append((ask, place))
        ask.waits += 1

    def _propose_raise(self) -> None:
        one, self._collecting = self._collecting, None
        if one is not None:
            ids = list(one.wants)
            ceilings = [self._raising[lease][0] for lease in ids]
            self.commands.append(self._machine.leases.renew_command(self._term, ids, ceilings))
            self._proposing.append(one)

    # ------------------------------------------------------------------ our own proposals

    def take_commands(self, number: int) -> list[bytes]:
        """What is to be proposed, as one group with this number."""
        commands, self.commands = self.commands, []
        if self._proposing:
            self._raises[number], self._proposing = self._proposing, []
        if self._end_next:
            self._ends[number], self._end_next = self._end_next, []
        return commands

    def applied(self, number: int) -> None:
        """The group was applied."""
        book = self._machine.leases
        for lease in self._ends.pop(number, ()):
            # It is gone, or what has its id now is another one, or an alarm has kept it: then it is tried again.
            self._ending.pop(lease, None)
            if lease in self._deadlines and book.get(lease) is not None:
                heappush(self._heap, (max(self._deadlines[lease], self.reading(self._now) + SECOND), lease))
        for one in self._raises.pop(number, ()):
            self._forget_raising(one)
            for lease, wanted in one.wants.items():
                found = book.get(lease)
                if found is not None and lease in self._deadlines:
                    self._deadlines[lease] = max(self._deadlines[lease], min(wanted, found[1]))
            for ask, place in one.asks:
                if book.get(ask.renew[place]) is None:
                    ask.renewed[place] = 0
                ask.waits -= 1
                if not ask.waits:
                    self._answer(ask)

    def refused(self, number: int) -> None:
        """The log did not take the group (leadership is being handed over, or too much waits): ask again later."""
        self._hold_until = self._expire_at = self._now + self._pause_ns
        again: list[_Ask] = []
        for one in self._raises.pop(number, ()):
            self._forget_raising(one)
            for ask, _ in one.asks:
                if ask.waits:
                    ask.waits = 0
                    again.append(ask)
        for ask in again:
            self._let_go(ask)
            ask.renewed, ask.remaining = [], []
            self._queue.append(ask)
        for lease in self._ends.pop(number, ()):
            del self._ending[lease]
            heappush(self._heap, (self._deadlines.get(lease, 0), lease))

    def _forget_raising(self, one: _Raise) -> None:
        for lease in one.wants:
            under_way = self._raising.get(lease)
            if under_way is not None and under_way[1] is one:
                del self._raising[lease]

    def _let_go(self, ask: _Ask) -> None:
        """No proposal under way answers `ask` any more."""
        for group in self._raises.values():
            for one in group:
                one.asks = [pair for pair in one.asks if pair[0] is not ask]

    def _expire_asks(self) -> None:
        """Nobody waits longer than the deadline for a proposal that is not committed."""
        for group in list(self._raises.values()):
            for one in group:
                for ask, _ in list(one.asks):
                    if ask.waits and ask.deadline <= self._now:
                        ask.waits = 0
                        self._let_go(ask)
                        ask.sent_at = 1  # it may have been renewed
                        self._late(ask)
