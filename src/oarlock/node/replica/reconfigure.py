"""Changes of membership as people ask for them: add, remove, update, promote. (diss. 4; docs/how-to/change-members.md)

Any member may be asked; the leader decides. A change given to another member travels as `ChangeMembers`, and the rule
that makes waiting honest is the one of proposals: what was passed on to the leader of term T is in the log, if at all,
in an entry of term T. So once an entry of a later term is applied here, the committed configuration says whether the
change took place; if it did not, it never will, and may be asked for again. Every change is asked for under a target
state that can be recognised (`reached`), and gets exactly one answer.

A member that is added to vote begins as a learner that votes by itself once it has caught up (diss. 4.2.1), so adding
one never costs the group its majority: neither while the new member is not started yet, nor while it copies the state.

The checks are etcd's, made by the leader against the configuration that the change will apply to. So is the question
whether who asks may do that: the change carries a name, and the leader's machine is asked in the turn in which the
change goes into the log. A right that was taken away before, as anybody has been told, is gone then.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from oarlock.errors import DeadlineExceeded, NoLeader, Overloaded, ProposalDropped, RaftError, Rejected
from oarlock.node.replica.directory import URLS_MAX, MemberRecord, decode_record, encode_record
from oarlock.raft.core import Raft
from oarlock.raft.events import (
    ChangeKind,
    ConfigChange,
    ConfigChanged,
    ConfigChangeRequested,
    ConfigRefused,
    Event,
    TransferDone,
    TransferRequested,
)
from oarlock.raft.messages import ChangeMembers, ChangeMembersReply, Message
from oarlock.raft.types import NOBODY, Configuration, Index, MemberInfo, MemberRole, NodeId, Term

CHANGES_PENDING_MAX: Final = 64  # changes without an answer that one member keeps, of its own callers and of others
REPLIES_REMEMBERED_MAX: Final = 256  # answers that a leader can give again
CHANGE_BYTES_MAX: Final = 8 << 10  # of an encoded change
LEARNERS_MAX: Final = 1  # as etcd; members that are on their way to vote do not count
LEARNER_READY: Final = 0.9  # of the leader's log: below it a learner is not promoted, as in etcd
TOKEN_MIN: Final = 2**62  # of requests that this module makes; the driver's own are below
NEVER: Final = 2**63 - 1

U64 = Annotated[int, Meta(ge=0)]
Url = Annotated[str, Meta(max_length=1024)]
Name = Annotated[str, Meta(max_length=1024)]
Urls = Annotated[tuple[Url, ...], Meta(max_length=URLS_MAX)]

REFUSALS: Final[Mapping[str, str]] = {
    "id_exists": "a member with this id is there already",
    "id_removed": "a member with this id was removed: ids are never used again",
    "urls_exist": "another member has one of these peer URLs",
    "not_found": "there is no member with this id",
    "not_learner": "the member is not a learner",
    "not_in_sync": "the learner has not caught up with the leader",
    "too_many_learners": f"there may be {LEARNERS_MAX} learner at a time",
    "too_many_members": "there may be 64 members, and more full voters than witnesses",
    "not_enough_started": "too few of the members that would vote have ever been started",
    "unhealthy": "too few members are connected: the change could cost the group its majority",
    "no_user": "nobody is logged in, and membership is root's to change",
    "unknown_user": "the user who asked is not there any more",
    "not_permitted": "the user who asked does not hold the role root",
    "malformed": "the change does not decode, or names and URLs take too much room",
}
"""The reasons of a `Rejected` change, for people."""


class AddMember(msgspec.Struct, tag=1, array_like=True, frozen=True, gc=False):
    """Add `member`, a new id. `role` is a `MemberRole`. `strict`: refuse what could cost the group its majority."""

    member: U64
    peer_urls: Urls
    role: Annotated[int, Meta(ge=0, le=2)] = 0
    strict: bool = True
    asker: Name = ""
    """Who asks, where users are known; likewise below."""


class RemoveMember(msgspec.Struct, tag=2, array_like=True, frozen=True, gc=False):
    member: U64
    strict: bool = True
    asker: Name = ""


class UpdateMember(msgspec.Struct, tag=3, array_like=True, frozen=True, gc=False):
    """Give `member` other peer URLs."""

    member: U64
    peer_urls: Urls
    asker: Name = ""


class PromoteMember(msgspec.Struct, tag=4, array_like=True, frozen=True, gc=False):
    """Make a learner that has caught up a voter."""

    member: U64
    strict: bool = True
    asker: Name = ""


MemberChange = AddMember | RemoveMember | UpdateMember | PromoteMember

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(MemberChange)


def encode_change(change: MemberChange) -> bytes:
    """Raises `ValueError` for one that is too large."""
    data = _encoder.encode(change)
    if len(data) > CHANGE_BYTES_MAX:
        raise ValueError(f"a change of membership of {len(data)} bytes (at most {CHANGE_BYTES_MAX})")
    return data


def decode_change(data: bytes) -> MemberChange:
    """The inverse of `encode_change`. Raises `ValueError` for anything else."""
    if len(data) > CHANGE_BYTES_MAX:
        raise ValueError(f"a change of membership of {len(data)} bytes (at most {CHANGE_BYTES_MAX})")
    change: MemberChange = _decoder.decode(data)
    return change


def becomes_voter(info: MemberInfo) -> bool:
    """Whether a learner is one only until it has caught up: people see a voter in it."""
    return info.role is MemberRole.LEARNER and info.promote_when_ready


def reached(configuration: Configuration, change: MemberChange) -> bool:
    """Whether `configuration`, not joint, is what `change` asks for."""
    if configuration.joint:
        return False
    info = configuration.member(change.member)
    match change:
        case AddMember():
            return info is not None or change.member in configuration.removed
        case RemoveMember():
            return change.member in configuration.removed
        case UpdateMember():
            return info is not None and decode_record(info.context).peer_urls == change.peer_urls
        case _:
            return change.member in configuration.voters


class Health:
    """What the leader knows of the members, for the checks: who has ever been started, and who is heard now.

    What was heard before this leadership began does not count, nor before `down_at`: when a member's process was last
    seen to be gone. A member that is started and was neither heard after that nor silent for an election timeout
    is in `doubtful`: it may be there or not, and a check that counts the members has to wait.
    """

    __slots__ = ("active", "doubtful", "match_index", "last_index", "records", "started")

    def __init__(
        self, raft: Raft, records: Mapping[NodeId, MemberRecord], down_at: Mapping[NodeId, int], now: int
    ) -> None:
        status = raft.status()
        begun = status.leading_since_ns
        limit = raft.config.election_timeout_ns
        self.records = records
        self.started = frozenset(node for node, record in records.items() if record.name)
        recent = {peer.id: now - peer.silent_ns for peer in status.peers if peer.silent_ns < limit}
        heard = {node for node, heard_at in recent.items() if heard_at > max(begun, down_at.get(node, 0))}
        self.active = frozenset({raft.id, *heard})
        self.doubtful = frozenset(node for node in recent if node in self.started and node not in heard)
        self.match_index: dict[NodeId, Index] = {peer.id: peer.match_index for peer in status.peers}
        self.last_index = status.last_index


def plan(configuration: Configuration, change: MemberChange, health: Health) -> ConfigChange:
    """The step that `change` means for `configuration`, which is not joint. Raises `Rejected` with a key of
    `REFUSALS`; the order of the checks is etcd's."""
    info = configuration.member(change.member)
    match change:
        case AddMember():
            return _plan_add(configuration, change, health)
        case RemoveMember():
            if info is not None and change.strict and _votes(configuration, info):
                _check_removal(configuration, change.member, health)
            if info is None:
                raise _rejected("not_found")
            return ConfigChange(ChangeKind.REMOVE, MemberInfo(id=change.member))
        case UpdateMember():
            if info is None:
                raise _rejected("not_found")
            _check_urls(change, health)
            context = _context(decode_record(info.context).name, change.peer_urls)
            return ConfigChange(
                ChangeKind.UPDATE, MemberInfo(id=change.member, context=context), set_priority=False,
                set_incarnation=False,
            )  # fmt: skip
        case _:
            if info is None:
                raise _rejected("not_found")
            if _votes(configuration, info):
                raise _rejected("not_learner")
            if health.match_index.get(change.member, 0) < LEARNER_READY * health.last_index:
                raise _rejected("not_in_sync")
            if change.strict:
                others = _voting(configuration)
                started = 1 + len(others & health.started)
                if started < (1 + len(others)) // 2 + 1:
                    raise _rejected("not_enough_started")
            return ConfigChange(ChangeKind.ADD_VOTER, info)


def _counts_the_active(change: MemberChange) -> bool:
    """Whether the checks of `change` ask who is heard now."""
    return isinstance(change, AddMember | RemoveMember) and change.strict


def _rejected(reason: str) -> Rejected:
    return Rejected(reason, REFUSALS[reason])


def _votes(configuration: Configuration, info: MemberInfo) -> bool:
    return info.id in configuration.voters or becomes_voter(info)


def _voting(configuration: Configuration) -> frozenset[NodeId]:
    """Voters, and members that will be voters by themselves."""
    return frozenset(info.id for info in configuration.members if _votes(configuration, info))


def _context(name: str, urls: tuple[str, ...]) -> bytes:
    try:
        return encode_record(name, urls)
    except ValueError as error:
        raise _rejected("malformed") from error


def _check_urls(change: AddMember | UpdateMember, health: Health) -> None:
    wanted = set(change.peer_urls)
    for node, record in sorted(health.records.items()):
        if node != change.member and wanted & set(record.peer_urls):
            raise _rejected("urls_exist")


def _plan_add(configuration: Configuration, change: AddMember, health: Health) -> ConfigChange:
    learner = change.role == MemberRole.LEARNER
    voting = _voting(configuration)
    if change.strict:
        if not learner:
            started, total = len(voting & health.started), len(voting) + 1
            if not (started == 1 and total == 2) and started < total // 2 + 1:
                raise _rejected("not_enough_started")
        if not voting <= health.active:
            raise _rejected("unhealthy")
    if change.member in configuration.removed:
        raise _rejected("id_removed")
    if configuration.member(change.member) is not None:
        raise _rejected("id_exists")
    _check_urls(change, health)
    if learner and sum(1 for m in configuration.members if not _votes(configuration, m)) >= LEARNERS_MAX:
        raise _rejected("too_many_learners")
    kind = ChangeKind.ADD_WITNESS if change.role == MemberRole.WITNESS else ChangeKind.ADD_LEARNER
    info = MemberInfo(
        id=change.member, context=_context("", change.peer_urls), promote_when_ready=change.role == MemberRole.VOTER
    )
    return ConfigChange(kind, info)


def _check_removal(configuration: Configuration, node: NodeId, health: Health) -> None:
    voting = _voting(configuration)
    rest = voting - {node}
    if len(rest & health.started) < len(rest) // 2 + 1:
        raise _rejected("not_enough_started")
    if node not in health.active:  # it is no part of the majority that works now; a majority must work without it
        if len(rest & health.active) < len(rest) // 2 + 1:
            raise _rejected("unhealthy")
        return
    if len(voting & health.active) - 1 < 1 + (len(voting) - 1) // 2:
        raise _rejected("unhealthy")


class _Ask:
    """A change that somebody asked this member for. `term` 0: not with any leader."""

    __slots__ = ("change", "deadline", "done", "payload", "request", "sent_at", "term", "to", "token")

    def __init__(self, token: int, change: MemberChange, payload: bytes, request: int, deadline: int) -> None:
        self.token = token
        self.change = change
        self.payload = payload
        self.request = request
        self.deadline = deadline
        self.term: Term = 0
        self.to: NodeId = NOBODY
        self.sent_at = 0
        self.done = False  # in force, as the leader says; our own configuration may not show it yet


class _Task:
    """A change that the leader is to make. `sender` is the leader itself for its own callers."""

    __slots__ = ("change", "deadline", "handed_over", "request", "sender")

    def __init__(self, sender: NodeId, request: int, change: MemberChange, deadline: int) -> None:
        self.sender = sender
        self.request = request
        self.change = change
        self.deadline = deadline
        self.handed_over = False  # leadership was offered to others before this member removes itself


def _gone(*_: object) -> Any:
    raise AssertionError("this member is gone")


class Reconfiguration:
    """One member's side of the module: `asks` of its own callers, and, while it leads, the tasks of everybody.

    `send` puts a message out, `step` gives an event to the core, `answer(token, error)` ends an ask. `request` draws
    request numbers, which no life of this member uses twice. `guard`, if the machine knows users, says why one of them
    may change nothing (a key of `REFUSALS`), or nothing.
    """

    def __init__(
        self,
        raft: Raft,
        *,
        timeout_ns: int,
        send: Callable[[NodeId, Message], None],
        step: Callable[[Event], None],
        answer: Callable[[int, RaftError | None], None],
        request: Callable[[], int],
        records: Callable[[], Mapping[NodeId, MemberRecord]],
        guard: Callable[[str], str] | None = None,
    ) -> None:
        self._raft = raft
        self._guard = guard
        self._timeout_ns = timeout_ns
        self._send = send
        self._step = step
        self._answer = answer
        self._request = request
        self._records = records
        self._asks: dict[int, _Ask] = {}  # by request, in order of arrival, hence of deadlines
        self._queue: deque[_Task] = deque()
        self._current: _Task | None = None
        self._token = TOKEN_MIN
        self._led: Term = 0
        self._down_at: dict[NodeId, int] = {}  # when a member's process was last seen to be gone
        self._taken: OrderedDict[tuple[NodeId, int], str | None] = OrderedDict()  # None: no answer yet
        self._again_at = NEVER
        self._now = 0
        self._work_at = 0  # the core said "not now": it is not asked again before this
        self.malformed = 0
        self.removed = False  # others say that this member was removed, and have that committed

    def let_go(self) -> None:
        """The member is gone: nothing here refers to it any more, so that its memory is free at once."""
        self._send = self._step = self._answer = self._request = self._records = _gone

    def __len__(self) -> int:
        return len(self._asks)

    @property
    def idle(self) -> bool:
        """Whether there is nothing to look at: nearly always."""
        return not self._asks and not self._queue and self._current is None

    def deadline(self) -> int:
        """When `turn` must be called at the latest."""
        if self.idle:
            return NEVER
        first = next(iter(self._asks.values()), None)
        return min(self._again_at, first.deadline if first is not None else NEVER)

    # ------------------------------------------------------------------ what comes in

    def ask(self, token: int, change: MemberChange, now: int) -> None:
        """One of our callers wants `change`; `answer(token, ...)` will be called once."""
        if len(self._asks) >= CHANGES_PENDING_MAX:
            self._answer(token, Overloaded("CHANGES_PENDING_MAX", CHANGES_PENDING_MAX))
            return
        try:
            payload = encode_change(change)
            decode_change(payload)
        except ValueError:
            self._answer(token, _rejected("malformed"))
            return
        request = self._request()
        self._asks[request] = _Ask(token, change, payload, request, now + self._timeout_ns)

    def peer_down(self, peer: NodeId, now: int) -> None:
        """The process of `peer` is gone, as its host says: what was heard before is no sign of life any more."""
        if self._raft.configuration.member(peer) is not None:
            self._down_at[peer] = now

    def _health(self) -> Health:
        return Health(self._raft, self._records(), self._down_at, self._now)

    def received(self, sender: NodeId, message: ChangeMembers | ChangeMembersReply, now: int) -> None:
        if isinstance(message, ChangeMembersReply):
            self._replied(sender, message)
            return
        try:
            change = decode_change(message.payload)
        except ValueError:
            self.malformed += 1
            return
        raft = self._raft
        if not raft.is_leader or message.term != raft.current_term or raft.configuration.member(sender) is None:
            return  # its sender finds out by itself, from the first entry of a later term
        self._lead()
        key = (sender, message.request)
        if key in self._taken:
            reason = self._taken[key]
            if reason is not None:
                self._reply(sender, message.request, reason)
        elif len(self._queue) < CHANGES_PENDING_MAX:  # else: the sender asks again
            self._take(_Task(sender, message.request, change, now + self._timeout_ns))

    def _take(self, task: _Task) -> None:
        self._taken[task.sender, task.request] = None
        if len(self._taken) > REPLIES_REMEMBERED_MAX:
            self._taken.popitem(last=False)
        self._queue.append(task)

    def _replied(self, sender: NodeId, message: ChangeMembersReply) -> None:
        ask = self._asks.get(message.request)
        if ask is None or ask.to != sender or ask.term != message.term:
            return
        if message.reason:
            self._end(ask, _rejected(message.reason if message.reason in REFUSALS else "malformed"))
        else:
            ask.done = True

    # ------------------------------------------------------------------ effects of the core that are ours

    def takes(self, token: int) -> bool:
        """Whether an answer of the core with this token is to a request of this module."""
        return token >= TOKEN_MIN

    def core_answered(self, effect: ConfigChanged | ConfigRefused | TransferDone) -> None:
        task = self._current
        assert task is not None and effect.token == self._token, f"{effect} answers nothing that was asked"
        self._current = None
        if isinstance(effect, TransferDone):
            self._queue.appendleft(task)  # if we still lead, nobody could take over: we manage it to its end ourselves
        elif isinstance(effect, ConfigChanged) or effect.reason == "no_change":
            self._finish(task, "")
        elif effect.reason in ("pending", "not_ready", "not_leader"):
            self._queue.appendleft(task)  # not now; or leadership is being handed over
            self._work_at = self._now + self._raft.config.heartbeat_interval_ns
        elif effect.reason == "lost":
            pass  # in the log or not: whoever asked finds out from the first entry of a later term
        else:
            self._finish(task, _OF_CORE.get(effect.reason, "malformed"))

    def _finish(self, task: _Task, reason: str) -> None:
        key = (task.sender, task.request)
        if key in self._taken:
            self._taken[key] = reason
        self._reply(task.sender, task.request, reason)

    def _reply(self, sender: NodeId, request: int, reason: str) -> None:
        message = ChangeMembersReply(term=self._led, request=request, reason=reason)
        if sender == self._raft.id:
            self._replied(sender, message)
        else:
            self._send(sender, message)

    # ------------------------------------------------------------------ the turn

    def turn(self, applied_term: Term, now: int) -> None:
        """Pass on, take up, answer, give up. Called in every turn of the member in which anything is under way."""
        self._now = now
        self._settle(applied_term)
        raft = self._raft
        if raft.is_leader:
            self._lead()
            self._dispatch_here(now)
            if self._guard is None or applied_term == raft.current_term:
                self._work(now)  # else the machine may not know yet what the leader before has told people
        else:
            self._queue.clear()
            if raft.leader_id != NOBODY and raft.log.last_term == raft.current_term:
                self._dispatch_to(raft.leader_id, now)
        self._expire(now)
        self._again_at = now + raft.config.heartbeat_interval_ns

    def _lead(self) -> None:
        term = self._raft.current_term
        if term != self._led:
            self._led = term
            members = self._raft.configuration
            self._down_at = {node: at for node, at in self._down_at.items() if members.member(node) is not None}
            self._taken.clear()
            self._queue.clear()

    def _dispatch_here(self, now: int) -> None:
        for ask in list(self._asks.values()):
            if not ask.term and not ask.done:
                ask.term, ask.to, ask.sent_at = self._led, self._raft.id, now
                self._take(_Task(self._raft.id, ask.request, ask.change, ask.deadline))

    def _dispatch_to(self, leader: NodeId, now: int) -> None:
        raft = self._raft
        for ask in self._asks.values():
            if ask.done or ask.term not in (0, raft.current_term):
                continue
            if not ask.term or (ask.to == leader and now >= ask.sent_at + raft.config.election_timeout_ns):
                ask.term, ask.to, ask.sent_at = raft.current_term, leader, now
                self._send(leader, ChangeMembers(term=ask.term, request=ask.request, payload=ask.payload))

    def _work(self, now: int) -> None:
        """The leader takes up the next task, one at a time (diss. 4.1)."""
        raft = self._raft
        if now < self._work_at:
            return
        while self._queue and self._current is None:
            configuration = raft.configuration
            if configuration.joint or raft.configuration_index > raft.commit_index or raft.transferring:
                return  # one change after the other
            task = self._queue.popleft()
            if task.deadline <= now:
                continue  # whoever asked has given up
            refused = self._guard(task.change.asker) if self._guard is not None else ""
            if refused:
                self._finish(task, refused)
                continue
            health = self._health()
            if _counts_the_active(task.change) and health.doubtful & _voting(configuration):
                self._queue.appendleft(task)  # soon they are heard, or silent for so long that they count as gone
                self._work_at = now + raft.config.heartbeat_interval_ns // 2
                return
            if isinstance(task.change, RemoveMember) and self._hand_over_first(task, health):
                return
            try:
                change = plan(configuration, task.change, health)
            except Rejected as refusal:
                self._finish(task, refusal.reason)
                continue
            self._current = task
            self._token += 1
            self._step(ConfigChangeRequested(self._token, (change,)))

    def _hand_over_first(self, task: _Task, health: Health) -> bool:
        """A leader that is to be removed lets somebody else do it, so that the group has no pause. (diss. 4.2.2)"""
        raft = self._raft
        if task.handed_over or task.change.member != raft.id or len(raft.configuration.voters) < 2:
            return False
        assert isinstance(task.change, RemoveMember)
        try:
            plan(raft.configuration, task.change, health)
        except Rejected:
            return False
        task.handed_over = True
        self._current = task
        self._token += 1
        self._step(TransferRequested(self._token, NOBODY))
        return True

    def _settle(self, applied_term: Term) -> None:
        """Answer what our own configuration shows, and take back what the leader of an earlier term did not do."""
        raft = self._raft
        for ask in list(self._asks.values()):
            if ask.done:
                if reached(raft.configuration, ask.change):
                    self._end(ask, None)
            elif 0 < ask.term < applied_term:
                committed = raft.committed_configuration
                if reached(committed, ask.change):
                    self._end(ask, None)
                elif not committed.joint:
                    ask.term, ask.to = 0, NOBODY

    def _expire(self, now: int) -> None:
        while self._asks:
            ask = next(iter(self._asks.values()))
            if ask.deadline > now:
                break
            if ask.done or (ask.term and reached(self._raft.committed_configuration, ask.change)):
                self._end(ask, None)
            elif ask.term:
                self._end(ask, DeadlineExceeded("no answer in time; the membership may have changed, or may still"))
            elif self._raft.leader_id == NOBODY:
                self._end(ask, NoLeader("no leader was elected in time; the membership is as it was"))
            else:
                self._end(ask, ProposalDropped("the leader could not be asked in time; the membership is as it was"))

    def fail_everything(self, error: RaftError) -> None:
        """The member stops. Who asked for what is done, its own removal for one, is told so."""
        for ask in list(self._asks.values()):
            own_end = self.removed and isinstance(ask.change, RemoveMember) and ask.change.member == self._raft.id
            if ask.done or own_end or (ask.term and reached(self._raft.committed_configuration, ask.change)):
                self._end(ask, None)
            elif ask.term:
                self._end(ask, error)
            else:
                self._end(ask, ProposalDropped(f"{error}; the membership is as it was"))
        self._queue.clear()
        self._current = None

    def _end(self, ask: _Ask, error: RaftError | None) -> None:
        del self._asks[ask.request]
        self._answer(ask.token, error)


_OF_CORE: Final[Mapping[str, str]] = {
    "unknown_member": "not_found",
    "removed_before": "id_removed",
    "already_member": "id_exists",
    "no_voters": "not_enough_started",
    "too_many": "too_many_members",
    "not_caught_up": "not_in_sync",
}
