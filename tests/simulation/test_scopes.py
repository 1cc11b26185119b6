"""Small scopes: every state within the bounds is visited; a state is captured whole; planted defects are named.

The quick sizes run here, on every change; `make scopes` runs the large ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import pytest
from tests.support.planted_defects import (
    acknowledge_before_the_sync,
    keep_stable_on_truncation,
    read_before_the_term_is_committed,
)

from oarlock.raft import membership, quorum
from oarlock.raft.core import Raft
from oarlock.raft.membership import ConfigurationHistory
from oarlock.raft.messages import AppendEntries
from oarlock.raft.roles import Candidate, PreCandidate
from oarlock.raft.types import Configuration, NodeId, SnapshotMeta
from oarlock.sim.scopes import member, wal
from oarlock.sim.scopes.capture import freeze, thaw
from oarlock.sim.scopes.catalog import (
    FIGURE_8,
    LEADER_1,
    REMOVE_1,
    REMOVE_3,
    SCOPES,
    WRITE,
    Size,
    explore,
)
from oarlock.sim.scopes.explore import Budgets, Model, Report
from oarlock.storage import recovery
from oarlock.storage.sim_disk import SimDisk, SimFile

Patch = pytest.MonkeyPatch
QUICK_STATES_MAX = 400_000


def quick() -> list[Any]:
    return [
        pytest.param(scope.name, size, id=f"{scope.name}{number}")
        for scope in SCOPES
        for number, size in enumerate(scope.quick, 1)
    ]


@pytest.mark.parametrize(("name", "size"), quick())
def test_every_state_of_a_quick_scope_holds(name: str, size: Size) -> None:
    report = explore(size, QUICK_STATES_MAX)
    assert not report.violation, "\n".join([*report.trace, report.violation])
    assert report.exhausted, f"more than {QUICK_STATES_MAX} states"
    assert report.states > 400 and report.committed, "a scope that reaches nothing proves nothing"
    assert report.messages, "nobody said anything"
    print(f"{name}: {size.text()}: {report.states} states, {report.transitions} transitions, depth {report.depth}")


def test_the_scopes_reach_what_they_are_for() -> None:
    sizes = {s.name: s.quick for s in SCOPES}
    assert "InstallSnapshotReply" in explore(sizes["C"][2], 120_000).messages
    assert "ReadIndexReply" in explore(sizes["F"][1], 50_000).messages
    assert "TimeoutNow" in explore(sizes["G"][0], 50_000).messages


def test_every_crash_of_the_log_holds() -> None:
    report = wal.explore_crashes(second=False)
    assert not report.violation, report.violation
    assert report.exhausted and report.states > 1000


@pytest.mark.soak
@pytest.mark.parametrize(
    ("name", "size"),
    [pytest.param(s.name, size, id=f"{s.name}{n}") for s in SCOPES for n, size in enumerate(s.full, 1)],
)
def test_a_full_scope(name: str, size: Size) -> None:
    report = explore(size, 3_000_000)
    assert not report.violation, "\n".join([*report.trace, report.violation])
    print(f"{name}: {size.text()}: {report.states} states, exhausted: {report.exhausted}")


@pytest.mark.soak
def test_every_crash_of_every_start() -> None:
    report = wal.explore_crashes(second=True)
    assert not report.violation, report.violation


# ---------------------------------------------------------------------- capture


@dataclass(slots=True)
class Shared:
    """Two names for one list, and containers of every kind."""

    first: list[int]
    second: list[int]
    table: dict[int, list[int]]
    row: deque[int]


Shared.__module__ = "oarlock.sim.scopes.test"


def test_a_capture_keeps_what_is_shared_and_shares_nothing_else() -> None:
    numbers = [1, 2]
    value = Shared(numbers, numbers, {2: [3], 1: []}, deque([5], maxlen=3))
    copy = thaw(freeze(value))
    assert freeze(copy) == freeze(value)
    copy.first.append(9)
    copy.table[2].append(9)
    assert copy.second == [1, 2, 9] and copy.row.maxlen == 3
    assert numbers == [1, 2] and value.table == {2: [3], 1: []}


def test_an_object_of_an_unknown_kind_is_an_error() -> None:
    with pytest.raises(TypeError, match="no rule"):
        freeze([Random(1)])


def test_nothing_of_a_core_is_left_out() -> None:
    """Every attribute that a core and its parts have is in the capture: changing any one changes it."""
    model, (code, _) = Size(voters=3, budgets=Budgets(), terms_max=2, script=LEADER_1).model()
    frozen = model.members.locals[code[0]].core
    core = thaw(frozen)
    parts = [core, core.log, core._durability, core._reads, core.role, core.role.progress[2], core._configurations]
    checked = 0
    for number, part in enumerate(parts):
        for name in [*getattr(part, "__dict__", {}), *getattr(type(part), "__slots__", ())]:
            live = thaw(frozen)
            ours = [
                live,
                live.log,
                live._durability,
                live._reads,
                live.role,
                live.role.progress[2],
                live._configurations,
            ]
            setattr(ours[number], name, 987654)
            assert freeze(live) != frozen, f"{type(part).__name__}.{name} is not captured"
            checked += 1
    assert checked > 90


@pytest.mark.parametrize("scope", [s.name for s in SCOPES])
def test_a_run_through_captures_is_the_run_of_live_objects(scope: str, monkeypatch: Patch) -> None:
    """Random walks. Once as the search goes: thaw, step, freeze. Once with members that stay alive. Everything that
    leaves a member, and everything that an observer sees, must be equal at every step."""
    size = next(s for s in SCOPES if s.name == scope).quick[-1]
    for seed in range(6):
        random = Random(seed)
        model, (code, touched) = size.model()
        alive = _Alive(size, monkeypatch)
        walked = 0
        for _ in range(60):
            choices = list(model.actions(code, touched))
            random.shuffle(choices)
            for node, action, spend, packet, keep in choices:
                after = model.apply(code, node, action, spend, packet, keep=keep)
                if after is not None:
                    break
            else:
                break
            found = model.members.step(node, code[model.places[node]], action)
            assert found is not None
            step = found[1]
            sends, local = alive.step(model, code, node, action)
            assert sends == step.sends
            assert local == step.local
            code, touched, walked = after, touched | 1 << model.places[node], walked + 1
        assert walked > 3


class _Alive:
    """Members whose cores are never thawed: the same objects take one step after the other."""

    def __init__(self, size: Size, patch: Patch) -> None:
        self.cores: dict[tuple[NodeId, int], Any] = {}
        self.patch = patch

    def step(self, model: Model, code: tuple[int, ...], node: NodeId, action: Any) -> tuple[Any, Any]:
        number = code[model.places[node]]
        before = model.members.locals[number]
        core = self.cores.get((node, number))
        stepper = member._Stepper(model.members, node, before)
        if core is not None:
            stepper.core = core
        assert stepper.take(action)
        local = stepper.finish()
        self.cores = {key: value for key, value in self.cores.items() if key[0] != node}
        self.cores[node, model.members.number(local)] = stepper.core
        return tuple(stepper.sends), local


def test_what_is_taken_away_would_never_have_been_heard(monkeypatch: Patch) -> None:
    """Answers of terms below the receiver's durable one, delivered in states that the search saw: nothing happens."""
    size = next(s for s in SCOPES if s.name == "A").quick[1]
    model, start = size.model()
    model.explore(states_max=30_000, start=start)
    delivered = 0
    for number, local in enumerate(list(model.members.locals)):
        for packet, (sender, to, message) in enumerate(list(model.packets)):
            if local.halted or model.mortal[packet][1] >= local.disk.hard_state.term:
                continue
            if local.view.leads or number % 7 == 0:
                action = member.Action("message", (sender, message))
                node = to
                assert model.members.step(node, number, action) is None
                delivered += 1
    assert delivered > 1000


# ---------------------------------------------------------------------- planted defects


def vote_forgotten_in_prevote(patch: Patch) -> None:
    """BZ-04."""
    real = Raft._campaign

    def campaign(self: Raft, *, pre_vote: bool, transfer: bool = False) -> None:
        if pre_vote:
            self.voted_for = 0
        real(self, pre_vote=pre_vote, transfer=transfer)

    patch.setattr(Raft, "_campaign", campaign)


def votes_counted_twice(patch: Patch) -> None:
    """BZ-05: a counter in the place of a set of voters."""
    real = Raft._vote_received

    def received(self: Raft, sender: NodeId, message: Any) -> None:
        role = self.role
        if isinstance(role, Candidate) and message.granted and sender in role.votes:
            others = [node for node in self.configuration.ids if node not in role.votes]
            role.votes[others[0]] = True
        real(self, sender, message)

    patch.setattr(Raft, "_vote_received", received)


def joint_counts_the_union(patch: Patch) -> None:
    """BZ-06, for votes and for commits."""

    def tally(votes: Mapping[NodeId, bool], configuration: Configuration) -> quorum.VoteResult:
        return quorum._tally_one(votes, configuration.voters | configuration.outgoing)

    def agreed(values: Mapping[NodeId, int], configuration: Configuration) -> int:
        return quorum._majority_value(values, configuration.voters | configuration.outgoing)

    patch.setattr(quorum, "tally", tally)
    patch.setattr(quorum, "agreed", agreed)


def cut_on_a_match(patch: Patch) -> None:
    """BZ-22."""
    real = Raft._append_entries

    def append(self: Raft, sender: NodeId, message: AppendEntries) -> None:
        log = self.log
        start = message.prev_log_index + 1
        if log.matches(message.prev_log_index, message.prev_log_term) and log.commit_index < start <= log.last_index:
            self._truncate_from(start)
        real(self, sender, message)

    patch.setattr(Raft, "_append_entries", append)


def commit_old_terms(patch: Patch) -> None:
    """BZ-44: Figure 8."""

    def commit(self: Raft, role: Any) -> None:
        match = {node: progress.match_index for node, progress in role.progress.items()}
        match[self.id] = self.log.stable_index
        index = quorum.agreed(match, self.configuration)
        if index > self.log.commit_index:
            self.log.commit_to(index)
            self._replicate_wanted = True
            self._committed_configuration_changed()

    patch.setattr(Raft, "_maybe_commit", commit)


def rounds_are_reused(patch: Patch) -> None:
    """BZ-57: a read is confirmed by the echo of a heartbeat that began before it."""

    def start(self: Raft, role: Any) -> None:
        if role.reads_round or not self._committed_in_term():
            return
        role.reads_round, role.reads_waiting = role.reads_waiting, []
        role.reads_round_number, role.reads_index = role.round, self.log.commit_index
        self._broadcast_heartbeat(role)
        self._confirm_reads(role)

    patch.setattr(Raft, "_start_read_round", start)


def single_changes_over_leaders(patch: Patch) -> None:
    """BZ-65: the bug of 2015. Changes of one member without a joint phase, and none of the rule that made them safe."""
    real = membership.changed

    def changed(before: Configuration, changes: Any, *, auto_leave: bool) -> Configuration | str:
        after = real(before, changes, auto_leave=auto_leave)
        return after if isinstance(after, str) else membership.left(after)

    patch.setattr(membership, "changed", changed)
    patch.setattr(Raft, "_committed_in_term", lambda self: True)


def configuration_survives_a_cut(patch: Patch) -> None:
    """BZ-70."""
    patch.setattr(ConfigurationHistory, "truncate_from", lambda self, index: False)


def snapshot_dated_with_the_present_term(patch: Patch) -> None:
    """BZ-81."""
    real = Raft.snapshot_meta

    def meta(self: Raft, index: int) -> SnapshotMeta:
        found = real(self, index)
        return SnapshotMeta(found.index, self.current_term, found.configuration)

    patch.setattr(Raft, "snapshot_meta", meta)


def successor_keeps_the_term(patch: Patch) -> None:
    """A transfer's target campaigns in the term of the leader that asked for it."""
    real = Raft._campaign

    def campaign(self: Raft, *, pre_vote: bool, transfer: bool = False) -> None:
        real(self, pre_vote=pre_vote, transfer=transfer)
        if transfer and not isinstance(self.role, PreCandidate):
            self._become_leader()

    patch.setattr(Raft, "_campaign", campaign)


A = Size(voters=3, budgets=Budgets(elections=2, repeats=1), terms_max=2, alike=True, instant=True)
A_FOUR = Size(voters=4, budgets=Budgets(elections=2, repeats=2), terms_max=1, instant=True, alike=True)
A_CRASH = Size(voters=3, budgets=Budgets(elections=2, crashes=1), terms_max=2, alike=True)
A_PREVOTE = Size(
    voters=3, budgets=Budgets(elections=3), terms_max=2, instant=True, pre_vote=True, script=("2 elect", "1 elect")
)
B = Size(voters=3, budgets=Budgets(elections=1, proposals=2, repeats=1), terms_max=2, script=LEADER_1, instant=True)
B_ASYNC = Size(voters=3, budgets=Budgets(elections=1, proposals=1, crashes=1), terms_max=2, script=LEADER_1)
FIGURE = Size(voters=3, budgets=Budgets(elections=1), terms_max=4, script=FIGURE_8, message_bytes_max=1, instant=True)
C = Size(voters=3, budgets=Budgets(elections=1, snapshots=1, wakes=1), terms_max=2, script=LEADER_1, instant=True)
D = Size(
    voters=4,
    budgets=Budgets(elections=1, changes=2),
    terms_max=2,
    script=LEADER_1,
    instant=True,
    changes=(REMOVE_3, REMOVE_1),
)
E = Size(
    voters=3,
    budgets=Budgets(elections=1, changes=1),
    terms_max=2,
    script=LEADER_1,
    instant=True,
    changes=(REMOVE_3, REMOVE_1),
)
F = Size(voters=3, budgets=Budgets(elections=1, reads=1), terms_max=2, script=WRITE, instant=True)
G = Size(voters=3, budgets=Budgets(transfers=1), terms_max=3, script=LEADER_1, instant=True, targets=(2,))


@pytest.mark.interpreted
@pytest.mark.parametrize(
    ("plant", "size", "invariants"),
    [
        (vote_forgotten_in_prevote, A_PREVOTE, {"ES"}),
        (votes_counted_twice, A_FOUR, {"ES"}),
        (joint_counts_the_union, E, {"COQ", "ES", "SMS", "LC"}),
        (keep_stable_on_truncation, B_ASYNC, {"ASSERT", "COQ"}),
        (acknowledge_before_the_sync, A_CRASH, {"ES", "COQ"}),
        (cut_on_a_match, B, {"DUR", "LAO", "COQ", "ASSERT"}),
        (commit_old_terms, FIGURE, {"LC"}),
        (read_before_the_term_is_committed, F, {"READ"}),
        (rounds_are_reused, F, {"READ"}),
        (single_changes_over_leaders, D, {"CFG", "SMS", "ES", "LC"}),
        (configuration_survives_a_cut, E, {"ASSERT", "CFG", "COQ", "ES"}),
        (snapshot_dated_with_the_present_term, C, {"LM", "SMS", "LC"}),
        (successor_keeps_the_term, G, {"ES", "ASSERT"}),
    ],
)
def test_a_planted_defect_is_named(
    plant: Callable[[Patch], None], size: Size, invariants: set[str], monkeypatch: Patch
) -> None:
    plant(monkeypatch)
    report = explore(size, 400_000)
    assert report.invariant in invariants, report.violation or f"{report.states} states, and nothing found"
    assert report.trace or "before the search" in report.violation
    monkeypatch.undo()


def no_directory_sync(patch: Patch) -> None:
    """BZ-100."""
    patch.setattr(SimDisk, "sync_dir", lambda self, path: None)


def rot_passes_for_a_torn_tail(patch: Patch) -> None:
    """BZ-102."""
    patch.setattr(recovery, "later_batch", lambda *arguments: None)
    patch.setattr(recovery, "read_watermark", lambda *arguments: None)


def no_data_sync(patch: Patch) -> None:
    """BZ-98."""
    patch.setattr(SimFile, "datasync", lambda self: None)


@pytest.mark.interpreted
@pytest.mark.parametrize("plant", [no_directory_sync, rot_passes_for_a_torn_tail, no_data_sync])
def test_a_planted_defect_of_the_log_is_named(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    plant(monkeypatch)
    report = wal.explore_crashes(second=False)
    assert report.invariant == "WAL", report


def test_a_search_that_stops_early_says_so() -> None:
    report: Report = explore(A, 500)
    assert not report.exhausted and not report.violation
