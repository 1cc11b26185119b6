"""Every crash point of the write-ahead log: a scripted run is cut at every operation, and what comes back is checked.

The oracle knows nothing of files: after any crash the log must hold everything that was synced, plus a prefix of what
was appended after it, and must never call that `Corrupt`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from random import Random

import pytest

from oarlock.errors import DiskFull, StorageError, SyncFailed
from oarlock.raft.types import Configuration, Entry, HardState, SnapshotMeta
from oarlock.storage.records import Identity
from oarlock.storage.recovery import GroupState
from oarlock.storage.sim_disk import Fault, Operation, PowerCut, SimDisk
from oarlock.storage.wal import WriteAheadLog

PATH = "data/wal"
IDENTITY = Identity(0xC1, 0xA, 0x1234567890)
SEGMENT = 4096


def copied(groups: dict[int, GroupState]) -> dict[int, GroupState]:
    """Marks, hard states and entries are values: only the lists need copies."""
    return {g: GroupState(state.hard_state, state.snapshot, list(state.entries)) for g, state in groups.items()}


class Oracle:
    """The groups as lists, after each primitive step (a mark, a hard state, one entry)."""

    def __init__(self) -> None:
        self.states: list[dict[int, GroupState]] = [{}]
        self.synced = 0
        self.released: dict[int, int] = {}

    def append(
        self, group: int, hard_state: HardState | None, entries: list[Entry], snapshot: SnapshotMeta | None, reset: bool
    ) -> None:
        if snapshot is not None:
            state = self._next(group)
            if reset or snapshot.index > state.last_index:
                state.entries = []
            state.snapshot = snapshot
        if hard_state is not None:
            self._next(group).hard_state = hard_state
        for entry in entries:
            state = self._next(group)
            state.entries = [e for e in state.entries if e.index < entry.index] + [entry]

    def _next(self, group: int) -> GroupState:
        self.states.append(copied(self.states[-1]))
        return self.states[-1].setdefault(group, GroupState())

    def accepts(self, groups: dict[int, GroupState]) -> bool:
        """Whether `groups` is the state after some step that is not before the last sync."""
        return any(self.same(state, groups) for state in self.states[self.synced :])

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


SYNC_BY = "sync"


@pytest.fixture(params=["sync", "begin and end", "begin, then sync"], autouse=True)
def sync_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test of this file is a test of every way to sync."""
    monkeypatch.setattr(sys.modules[__name__], "SYNC_BY", request.param)


class NoKernel:
    def begin(self, fd: int) -> None:
        raise AssertionError("a simulated disk needs no kernel")


class Run:
    """The log and its oracle, driven together."""

    def __init__(self, disk: SimDisk) -> None:
        self.disk = disk
        self.oracle = Oracle()
        self.log: WriteAheadLog | None = None
        self.syncing = False

    def append(
        self, group: int, hard_state: HardState | None = None, entries: tuple[tuple[int, int, int], ...] = (),
        snapshot: SnapshotMeta | None = None, reset: bool = False,
    ) -> None:  # fmt: skip
        made = [Entry(term, index, 0, bytes([index % 251 + 1]) * size) for term, index, size in entries]
        assert self.log is not None
        self.log.append(group, hard_state, made, snapshot=snapshot, reset_log=reset)
        self.oracle.append(group, hard_state, made, snapshot, reset)

    def sync(self) -> None:
        assert self.log is not None
        self.syncing = True
        if SYNC_BY == "sync":
            self.log.sync()
        else:
            assert self.log.begin_sync(NoKernel())
            self.log.sync() if SYNC_BY == "begin, then sync" else self.log.end_sync(0)
        self.syncing = False
        self.oracle.synced = len(self.oracle.states) - 1

    def release(self, group: int, index: int) -> None:
        assert self.log is not None
        self.oracle.released[group] = index
        self.log.release(group, index)


def mark(index: int, term: int) -> SnapshotMeta:
    return SnapshotMeta(index, term, Configuration.of_voters(1, 2, 3), 77, b"d" * 32)


def script(run: Run) -> None:
    """A little of everything: two groups, cuts, resets, big entries, several segments, a release, a clean restart."""
    run.log = WriteAheadLog.create(run.disk, PATH, IDENTITY, segment_bytes=SEGMENT)
    run.append(0, HardState(1, 1, 0), ((1, 1, 20), (1, 2, 600)))
    run.sync()
    run.append(7, HardState(1, 2, 0), ((1, 1, 300),))
    run.append(0, HardState(1, 1, 1), ((1, 3, 700), (1, 4, 40)))
    run.sync()
    run.append(0, HardState(2, 0, 2), ((2, 4, 900), (2, 5, 10)))  # cuts 1.4
    run.sync()
    run.log.prepare_next()
    run.append(0, None, ((2, 6, 1500), (2, 7, 1500)))  # crosses into the next segment
    run.sync()
    run.append(7, HardState(3, 3, 50), snapshot=mark(50, 3), reset=True)
    run.append(7, None, ((3, 51, 100),))
    run.sync()
    run.append(0, HardState(2, 0, 6), snapshot=mark(6, 2))
    run.sync()
    run.release(0, 5)
    run.release(7, 50)
    run.append(0, None, ((2, 8, 9000),))  # larger than a segment
    run.sync()
    run.log.prepare_next()
    run.append(7, HardState(3, 3, 51), ((3, 52, 0),))
    run.append(0, None, tuple((3, 9 + n, 200) for n in range(12)))
    run.sync()
    run.append(0, HardState(3, 0, 8), snapshot=mark(8, 2))
    run.sync()
    run.release(0, 8)
    run.log.close()
    run.log, recovered = WriteAheadLog.open(run.disk, PATH, segment_bytes=SEGMENT)
    assert recovered.repaired == "" and run.oracle.accepts(recovered.groups)
    run.append(0, HardState(4, 1, 8), ((4, 15, 30),))
    run.sync()
    run.append(0, None, ((4, 16, 30), (4, 17, 400)))
    run.sync()


def check(run: Run, disk: SimDisk, *, expect_log: bool) -> None:
    """Recover, compare, write on, recover again."""
    if not WriteAheadLog.exists(disk, PATH):
        assert not expect_log and run.oracle.synced == 0
        return
    log, recovered = WriteAheadLog.open(disk, PATH, expected=(0xC1, 0xA), segment_bytes=SEGMENT)
    assert recovered.identity == IDENTITY
    assert run.oracle.accepts(recovered.groups), recovered
    for group in (0, 7, 9):
        state = recovered.groups.get(group, GroupState())
        next_index = state.last_index + 1
        log.append(group, HardState(9, 0, state.hard_state.commit), [Entry(9, next_index, 0, b"more")])
    log.sync()
    log.prepare_next()
    log.close()
    again, second = WriteAheadLog.open(disk, PATH, segment_bytes=SEGMENT)
    assert second.repaired == ""
    for group in (0, 7, 9):
        old, new = recovered.groups.get(group, GroupState()), second.groups[group]
        assert new.entries[:-1] == old.entries and new.entries[-1].payload == b"more"
    again.close()


def operations() -> int:
    disk = SimDisk()
    script(Run(disk))
    return disk.operations


def crashed(cut_at: int) -> tuple[Run, SimDisk]:
    disk = SimDisk()
    disk.cut_at = cut_at
    run = Run(disk)
    with pytest.raises(PowerCut):
        script(run)
    return run, disk


def test_the_script_reaches_what_it_is_for() -> None:
    disk = SimDisk()
    run = Run(disk)
    script(run)
    assert run.log is not None
    assert run.log.segment_count < int(run.log._segments[-1].number), "segments were cut and dropped"
    assert max(segment.size for segment in run.log._segments) >= SEGMENT
    assert operations() > 60


def test_power_loss_at_every_operation() -> None:
    total = operations()
    repaired = 0
    for cut_at in range(total):
        for seed in range(4):
            run, disk = crashed(cut_at)
            disk.power_loss(Random(cut_at * 1000 + seed))
            check(run, disk, expect_log=False)
            repaired += any(".torn-" in name for name in (disk.listdir(PATH) if disk.exists(PATH) else []))
    assert repaired > 10, "the power loss never tore a batch: this test proves nothing"


def test_kill_at_every_operation() -> None:
    for cut_at in range(operations()):
        run, disk = crashed(cut_at)
        disk.kill()
        check(run, disk, expect_log=False)


def test_power_loss_after_a_kill_loses_nothing_that_recovery_showed() -> None:
    """What a killed process left in the page cache is made durable before anybody acts on it."""
    for cut_at in range(operations()):
        _, disk = crashed(cut_at)
        disk.kill()
        if not WriteAheadLog.exists(disk, PATH):
            continue
        _, first = WriteAheadLog.open(disk, PATH, segment_bytes=SEGMENT)
        disk.power_loss(Random(cut_at))
        _, second = WriteAheadLog.open(disk, PATH, segment_bytes=SEGMENT)
        assert second.groups == first.groups


def test_power_loss_during_recovery() -> None:
    """The repair itself is cut at every operation; then nothing may be lost either, and it must succeed in the end."""
    for cut_at in range(10, operations(), 3):
        for step in range(25):
            run, disk = crashed(cut_at)
            disk.power_loss(Random(cut_at))
            if not WriteAheadLog.exists(disk, PATH):
                break
            disk.cut_at = disk.operations + step
            try:
                WriteAheadLog.open(disk, PATH, segment_bytes=SEGMENT)
                finished = True
            except PowerCut:
                finished = False
            disk.power_loss(Random(step))
            check(run, disk, expect_log=run.oracle.synced > 0)
            if finished:
                break
        else:
            pytest.fail("recovery takes more than 25 operations")


def every(kind: Operation, fault: Fault, path_part: str = "") -> Iterator[tuple[Run, SimDisk, StorageError]]:
    """Fail the n-th operation of one kind, for every n that the script has."""
    for skip in range(1000):
        disk = SimDisk()
        disk.inject(kind, fault, after=skip, path_part=path_part)
        run = Run(disk)
        try:
            script(run)
        except StorageError as error:
            yield run, disk, error
        else:
            assert skip > 0, f"the script has no {kind} at all"
            return


@pytest.mark.parametrize("after", ["kill", "power loss", "kill, then power loss"])
def test_failed_sync_at_every_sync(after: str) -> None:
    """The log dies at once, the failed sync is not tried again, and a new process neither loses nor trusts the
    pages."""
    for run, disk, error in every("sync", Fault.EIO):
        assert isinstance(error, SyncFailed)
        syncs = sum(kind == "sync" for kind, _ in disk.log)
        if run.syncing:
            assert run.log is not None and run.log.failed
            for use in uses_of(run.log):
                with pytest.raises(StorageError):
                    use()
            run.log.close()
            assert sum(kind == "sync" for kind, _ in disk.log) == syncs
        if after == "power loss":
            disk.power_loss(Random(syncs))
        else:
            disk.kill()
        if after == "kill, then power loss" and WriteAheadLog.exists(disk, PATH):
            _, first = WriteAheadLog.open(disk, PATH, segment_bytes=SEGMENT)
            disk.power_loss(Random(syncs))
            log, second = WriteAheadLog.open(disk, PATH, segment_bytes=SEGMENT)
            assert second.groups == first.groups, "recovery showed what was not durable"
            log.close()
        check(run, disk, expect_log=False)


def uses_of(log: WriteAheadLog) -> list[Callable[[], None]]:
    return [
        log.sync, lambda: log.append(3, HardState(1, 1, 0), ()), log.prepare_next, lambda: log.release(0, 1),
        lambda: log.begin_sync(NoKernel()) and None, lambda: log.end_sync(0),
    ]  # fmt: skip


@pytest.mark.parametrize("fault", [Fault.EIO, Fault.ENOSPC, Fault.SHORT])
def test_failed_write_at_every_write(fault: Fault) -> None:
    for run, disk, error in every("write", fault, ".wal"):
        assert isinstance(error, DiskFull) == (fault is not Fault.EIO)
        disk.clear_faults()
        disk.kill()
        check(run, disk, expect_log=False)


@pytest.mark.parametrize("kind", ["rename", "create", "sync_dir", "unlink"])
def test_failed_directory_operation(kind: Operation) -> None:
    for number, (run, disk, _) in enumerate(every(kind, Fault.EIO)):
        disk.clear_faults()
        disk.power_loss(Random(number)) if number % 2 else disk.kill()
        check(run, disk, expect_log=False)


def test_power_loss_while_segments_are_dropped_leaves_no_gap() -> None:
    """A removed name may come back; segments 1 and 3 without 2 would look like a lost one."""
    came_back: set[int] = set()
    for cut_at in range(100):
        for seed in range(20):
            disk = SimDisk()
            log = WriteAheadLog.create(disk, PATH, IDENTITY, segment_bytes=SEGMENT)
            log.append(0, None, [Entry(1, 1 + n, 0, bytes(900)) for n in range(20)], snapshot=None)
            log.append(0, HardState(1, 1, 20), (), snapshot=mark(20, 1))
            log.sync()
            disk.cut_at = disk.operations + cut_at
            try:
                log.release(0, 20)
            except PowerCut:
                disk.power_loss(Random(seed))
            else:
                assert cut_at > 8 and len(came_back) > 3
                return
            log, found = WriteAheadLog.open(disk, PATH, segment_bytes=SEGMENT)
            assert found.groups[0].last_index == 20 and found.repaired == ""
            came_back.add(log.segment_count)
