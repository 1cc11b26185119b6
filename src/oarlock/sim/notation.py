"""One way to print members, messages and effects: alike in golden files, in failures and in the documentation.

An entry is `2.7` (term 2, index 7), three or more of one term in a row are `2.7-2.9`, a snapshot is `[2.7]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from oarlock.raft import events as ev
from oarlock.raft import messages as ms
from oarlock.raft.core import Raft
from oarlock.raft.roles import Follower, Leader, PreCandidate
from oarlock.raft.types import Configuration, Entry, Index, NodeId, Term
from oarlock.sim.stage import MILLISECOND, Answer, Ledger


def entries_text(entries: Sequence[Entry]) -> str:
    """`1.1 2.2-2.5 3.6`; `-` for none."""
    return _runs([(e.term, e.index) for e in entries])


def _runs(positions: Sequence[tuple[Term, Index]]) -> str:
    words: list[str] = []
    start = 0
    while start < len(positions):
        stop = start
        while stop + 1 < len(positions) and positions[stop + 1][0] == positions[start][0]:
            stop += 1
        if stop - start >= 2:
            words.append(f"{_position(*positions[start])}-{_position(*positions[stop])}")
        else:
            words.extend(_position(*positions[i]) for i in range(start, stop + 1))
        start = stop + 1
    return " ".join(words) or "-"


def _position(term: Term, index: Index) -> str:
    return f"{term}.{index}"


def ledger_text(ledger: Ledger) -> str:
    """The log with its snapshot in brackets; entries that the snapshot also covers are not repeated."""
    positions = [(e.term, e.index) for e in ledger.entries if e.index > ledger.snapshot.index]
    if not ledger.snapshot.index:
        return _runs(positions)
    base = f"[{_position(ledger.snapshot.term, ledger.snapshot.index)}]"
    return base + (" " + _runs(positions) if positions else "")


def ids_text(ids: Iterable[NodeId]) -> str:
    return " ".join(map(str, sorted(ids)))


def configuration_text(configuration: Configuration) -> str:
    """`voters 1 2 3`, then `outgoing`, `learners`, `witnesses` and `removed` where there are any."""
    words = [f"voters {ids_text(configuration.voters)}"]
    for name, ids in (
        ("outgoing", configuration.outgoing),
        ("learners", configuration.learners),
        ("witnesses", configuration.witnesses),
        ("removed", configuration.removed),
    ):
        if ids:
            words.append(f"{name} {ids_text(ids)}")
    return ", ".join(words)


def role_text(raft: Raft) -> str:
    role = raft.role
    if isinstance(role, Leader):
        return "leader"
    if isinstance(role, Follower):
        return "follower"
    return "pre-candidate" if isinstance(role, PreCandidate) else "candidate"


def message_text(message: ms.Message) -> str:
    """One message without its route."""
    head = f"{type(message).__name__} t{message.term}"
    match message:
        case ms.RequestVote():
            flags = " pre" * message.pre_vote + " transfer" * message.transfer
            return f"{head} last {_position(message.last_log_term, message.last_log_index)}{flags}"
        case ms.RequestVoteReply():
            return f"{head} {'granted' if message.granted else 'refused'}{' pre' * message.pre_vote}"
        case ms.AppendEntries():
            previous = _position(message.prev_log_term, message.prev_log_index)
            return f"{head} prev {previous} entries {entries_text(message.entries)} commit {message.commit_index}"
        case ms.AppendEntriesReply():
            if message.success:
                return f"{head} ok {message.index}"
            return f"{head} refused {message.index} hint {_position(message.hint_term, message.hint_index)}"
        case ms.Heartbeat():
            return f"{head} commit {message.commit_index} round {message.round}{' lease' * message.lease}"
        case ms.HeartbeatReply():
            return f"{head} round {message.round}"
        case ms.InstallSnapshot():
            meta = message.snapshot
            return (
                f"{head} snapshot {_position(meta.term, meta.index)} bytes "
                f"{message.offset}-{message.offset + len(message.data)} of {meta.size}"
            )
        case ms.InstallSnapshotReply():
            return f"{head} index {message.snapshot_index} " + (
                "installed" if message.installed else f"next {message.next_offset}"
            )
        case ms.TimeoutNow():
            return head
        case ms.TransferLeadership():
            return f"{head} target {message.target}"
        case ms.ReadIndex():
            return f"{head} confirmed" if message.confirmed else head  # its request number begins anywhere
        case ms.ReadIndexReply():
            return f"{head} index {message.index}"
        case ms.Propose():
            return f"{head} {len(message.payload)} bytes"
        case ms.ProposeReply():
            return f"{head} {message.reason}"
        case ms.LeaseAsk():
            return f"{head} renew {len(message.renew)} query {len(message.query)}"
        case ms.LeaseAnswer():
            return f"{head} {message.reason or len(message.renewed) + len(message.remaining)}"
        case ms.ChangeMembers():
            return f"{head} {len(message.payload)} bytes"
        case ms.ChangeMembersReply():
            return f"{head} {message.reason or 'done'}"


def answer_text(answer: Answer) -> str:
    """What a member told the one who asked it."""
    match answer:
        case ev.Appended():
            return f"appended {_position(answer.term, answer.index)}"
        case ev.ProposalRefused():
            return f"proposal refused: {answer.reason}" + (f", leader {answer.leader}" if answer.leader else "")
        case ev.ReadReady():
            return f"read ready at {answer.index}"
        case ev.ReadFailed():
            return f"read failed: {answer.reason}"
        case ev.ConfigChanged():
            return "change done"
        case ev.ConfigRefused():
            return f"change refused: {answer.reason}"
        case ev.TransferDone():
            return f"transfer failed: {answer.error}" if answer.error else "transfer done"


def duration_text(nanoseconds: int) -> str:
    return f"{nanoseconds // MILLISECOND}ms"
