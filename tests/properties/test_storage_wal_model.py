"""The write-ahead log against lists: Hypothesis appends, cuts, resets, marks, releases, syncs, reopens, kills, pulls
the plug."""

from __future__ import annotations

from random import Random

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from oarlock.raft.types import Configuration, Entry, HardState, SnapshotMeta
from oarlock.storage.records import Identity
from oarlock.storage.recovery import GroupState
from oarlock.storage.sim_disk import PowerCut, SimDisk
from oarlock.storage.wal import WriteAheadLog

PATH = "w"
SEGMENT = 4096
GROUPS = st.integers(0, 2)


def copied(groups: dict[int, GroupState]) -> dict[int, GroupState]:
    """Marks, hard states and entries are values: only the lists need copies."""
    return {g: GroupState(state.hard_state, state.snapshot, list(state.entries)) for g, state in groups.items()}


class LogModel(RuleBasedStateMachine):
    """`self.steps` are the states after each primitive step since the last sync; the first one is durable."""

    def __init__(self) -> None:
        super().__init__()
        self.disk = SimDisk()
        self.steps: list[dict[int, GroupState]] = [{}]
        self.released: dict[int, int] = {}

    @initialize()
    def create(self) -> None:
        self.log = WriteAheadLog.create(self.disk, PATH, Identity(1, 2, 3), segment_bytes=SEGMENT)

    def now(self, group: int) -> GroupState:
        return self.steps[-1].get(group, GroupState())

    def step(self, group: int) -> GroupState:
        self.steps.append(copied(self.steps[-1]))
        return self.steps[-1].setdefault(group, GroupState())

    def add(self, group: int, made: list[Entry]) -> None:
        for entry in made:
            state = self.step(group)
            state.entries = [old for old in state.entries if old.index < entry.index] + [entry]

    def last_term(self, group: int) -> int:
        state = self.now(group)
        return max(state.entries[-1].term if state.entries else state.snapshot.term, 1)

    @rule(
        group=GROUPS,
        sizes=st.lists(st.sampled_from([0, 1, 30, 400, 464, 900, 5000]), min_size=1, max_size=4),
        up=st.integers(0, 1),
    )
    def append(self, group: int, sizes: list[int], up: int) -> None:
        first = self.now(group).last_index + 1
        term = self.last_term(group) + up
        made = [Entry(term, first + n, 0, bytes([1 + (first + n) % 255]) * size) for n, size in enumerate(sizes)]
        self.log.append(group, None, made)
        self.add(group, made)

    @rule(group=GROUPS, back=st.integers(0, 6), size=st.sampled_from([0, 10, 900]))
    def overwrite(self, group: int, back: int, size: int) -> None:
        state = self.now(group)
        index = max(state.hard_state.commit, state.snapshot.index, state.last_index - back) + 1
        made = [Entry(self.last_term(group) + 1, index, 0, b"o" * size)]
        self.log.append(group, None, made)
        self.add(group, made)

    @rule(group=GROUPS, up=st.integers(0, 2), vote=st.integers(0, 3), commit=st.integers(0, 5))
    def vote(self, group: int, up: int, vote: int, commit: int) -> None:
        state = self.now(group)
        old = state.hard_state
        hard = HardState(
            old.term + up, vote if up or not old.vote else old.vote, min(state.last_index, old.commit + commit)
        )
        hard = HardState(hard.term, hard.vote, max(hard.commit, old.commit))
        self.log.append(group, hard, ())
        self.step(group).hard_state = hard

    @rule(group=GROUPS, back=st.integers(0, 5))
    def mark(self, group: int, back: int) -> None:
        state = self.now(group)
        index = max(state.snapshot.index, state.hard_state.commit - back)
        if index > state.snapshot.index and not any(entry.index == index for entry in state.entries):
            return
        term = next((entry.term for entry in state.entries if entry.index == index), state.snapshot.term)
        meta = SnapshotMeta(index, term, Configuration.of_voters(1, 2), index, b"d" * 32)
        self.log.append(group, None, (), snapshot=meta)
        self.step(group).snapshot = meta

    @rule(group=GROUPS, past=st.integers(1, 20), entries=st.integers(0, 2))
    def install(self, group: int, past: int, entries: int) -> None:
        state = self.now(group)
        term = self.last_term(group)
        meta = SnapshotMeta(state.last_index + past, term, Configuration.of_voters(1), 1, b"e" * 32)
        made = [Entry(term, meta.index + 1 + n, 0, b"i") for n in range(entries)]
        hard = HardState(max(term, state.hard_state.term), state.hard_state.vote, meta.index)
        self.log.append(group, hard, made, snapshot=meta, reset_log=True)
        after = self.step(group)
        after.snapshot, after.entries = meta, []
        self.step(group).hard_state = hard
        self.add(group, made)

    @rule()
    def sync(self) -> None:
        self.log.sync()
        self.steps = self.steps[-1:]

    @rule(group=GROUPS, back=st.integers(0, 4))
    def release(self, group: int, back: int) -> None:
        index = max(0, self.now(group).snapshot.index - back)
        self.log.release(group, index)
        self.released[group] = max(index, self.released.get(group, 0))

    @rule()
    def prepare(self) -> None:
        self.log.prepare_next()

    def recover(self) -> None:
        self.log, found = WriteAheadLog.open(self.disk, PATH, expected=(1, 2), segment_bytes=SEGMENT)
        assert any(self.same(state, found.groups) for state in self.steps), (found, self.steps)
        self.steps = [copied(found.groups)]

    def same(self, model: dict[int, GroupState], groups: dict[int, GroupState]) -> bool:
        if model.keys() != groups.keys():
            return False
        for group, state in model.items():
            found = groups[group]
            if (found.hard_state, found.snapshot) != (state.hard_state, state.snapshot):
                return False
            needed = [e for e in state.entries if e.index > min(self.released.get(group, 0), state.snapshot.index)]
            if (
                len(found.entries) < len(needed)
                or found.entries != state.entries[len(state.entries) - len(found.entries) :]
            ):
                return False
        return True

    @rule()
    def reopen(self) -> None:
        self.log.close()
        self.steps = self.steps[:1]
        self.recover()

    @rule()
    def kill(self) -> None:
        self.disk.kill()
        self.steps = self.steps[:1]  # what was only appended never reached the disk
        self.recover()

    @rule(seed=st.integers(0, 999))
    def power_loss(self, seed: int) -> None:
        self.disk.power_loss(Random(seed))
        self.recover()

    @precondition(lambda self: len(self.steps) > 1)
    @rule(seed=st.integers(0, 999), after=st.integers(0, 12))
    def power_loss_in_sync(self, seed: int, after: int) -> None:
        self.disk.cut_at = self.disk.operations + after
        try:
            self.log.sync()
            self.steps = self.steps[-1:]
        except PowerCut:
            pass
        self.disk.power_loss(Random(seed))
        self.recover()

    @invariant()
    def bounded(self) -> None:
        if hasattr(self, "log"):
            assert self.log.segment_count >= 1
            assert sum(name.startswith("spare-") for name in self.disk.listdir(PATH)) <= 1


TestLogModel = LogModel.TestCase
TestLogModel.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
