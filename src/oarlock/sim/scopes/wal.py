"""Scope H: the production log through every crash of three short lives.

The first life: a log is created; four groups of writes are synced (one of several sectors, one that cuts entries, one
that begins a new segment, one with a snapshot mark and a release). In the others the first segment is full, before or
after a vote is written, and is asked to go before the mark that lets it go is durable.

Before each operation that changes the disk the power goes, and every dirty sector is old, new, zero or garbage, every
size and every name old or new, in every combination. Each of these disks must open and hold all that was synced and a
part, from the front, of what was being written; must take one more write and show it after another start; and must do
so, too, if the start itself is interrupted anywhere.

Then rot: each sector of what was synced is zeroed, and one bit of each flipped. The log must refuse to open, or hold
everything: a damaged record is never taken for a torn one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import product
from typing import Final

from oarlock.errors import Corrupt, StorageError
from oarlock.raft.events import Persist
from oarlock.raft.types import Configuration, Entry, HardState, SnapshotMeta
from oarlock.sim.invariants import Violation
from oarlock.sim.scopes.explore import Report
from oarlock.sim.world.ledger import Ledger
from oarlock.storage import GroupState, Identity, WriteAheadLog
from oarlock.storage.disk import SECTOR_BYTES
from oarlock.storage.sim_disk import PowerCut, SimDisk, _Directory, _Inode

PATH: Final = "log"
GROUP: Final = 0
SEGMENT_BYTES: Final = 4096
IDENTITY: Final = Identity(7, 1, 99)
GARBAGE: Final = 0xA5
OLD: Final = 0.44  # to `SimDisk.power_loss`: a sector keeps its old content, a size its old value; a name comes
OUTCOMES_MAX: Final = 20_000  # of one crash
GROUP_OF: Final = Configuration.of_voters(1, 2, 3)


def _entry(term: int, index: int, size: int) -> Entry:
    return Entry(term, index, 0, bytes([index]) * size)


# The groups of each life, each one sync.
LIFE: Final = (
    Persist(1, HardState(1, 2, 0), (_entry(1, 1, 40),)),
    Persist(2, None, (_entry(1, 2, 700), _entry(1, 3, 30))),
    Persist(3, HardState(2, 1, 1), (_entry(2, 2, 900), _entry(2, 3, 900))),
    Persist(4, HardState(2, 1, 3), (_entry(2, 4, 1200),), SnapshotMeta(3, 2, GROUP_OF)),
)


def _brim(size: int) -> tuple[Persist, ...]:
    """An entry of so many bytes, a vote, a mark alone, and more."""
    return (
        Persist(1, HardState(1, 2, 0), (_entry(1, 1, size),)),
        Persist(2, HardState(3, 2, 1)),
        Persist(3, None, (), SnapshotMeta(1, 1, GROUP_OF)),
        Persist(4, None, (_entry(3, 2, 40),)),
    )


LIVES: Final = (LIFE, _brim(2900), _brim(3000))  # the mark, and the vote before it, begin the second segment
ONE_MORE: Final = _entry(3, 5, 600)


class Progress:
    """How far a life came: what is synced, and what is being written."""

    def __init__(self, life: Sequence[Persist] = LIFE) -> None:
        self.life = life
        self.synced: list[Persist] = []
        self.writing: list[Persist] = []


def live(disk: SimDisk, progress: Progress, groups: int | None = None) -> WriteAheadLog:
    """Create a log and write the first `groups` groups of the life, or all."""
    log = WriteAheadLog.create(disk, PATH, IDENTITY, segment_bytes=SEGMENT_BYTES)
    for persist in progress.life[:groups]:
        if progress.life is not LIFE and persist.snapshot is not None:
            log.release(GROUP, persist.snapshot.index)  # too early: it must wait for the mark
        log.append(GROUP, persist.hard_state, persist.entries, snapshot=persist.snapshot)
        progress.writing = [persist]
        log.sync()
        progress.synced.append(persist)
        progress.writing = []
        if persist.ticket == 2:
            log.prepare_next()
        if persist.snapshot is not None:
            log.release(GROUP, persist.snapshot.index)
    return log


def restart(disk: SimDisk, where: str) -> tuple[WriteAheadLog | None, GroupState]:
    """Open what is there; an empty directory is a log that was not begun."""
    if not WriteAheadLog.exists(disk, PATH):
        return None, GroupState()
    try:
        log, recovered = WriteAheadLog.open(disk, PATH, expected=(7, 1), segment_bytes=SEGMENT_BYTES)
    except StorageError as error:
        raise Violation("WAL", f"{where}: the log does not open: {error}") from error
    return log, recovered.groups.get(GROUP, GroupState())


def allowed(progress: Progress) -> list[Ledger]:
    """Every state that a restart may find."""
    ledger = Ledger(GROUP_OF)
    for persist in progress.synced:
        ledger.apply(persist)
    found = [ledger.copy()]
    for persist in progress.writing:
        if persist.snapshot is not None:
            ledger.mark(persist.snapshot, False)
            found.append(ledger.copy())
        if persist.hard_state is not None:
            ledger.hard_state = persist.hard_state
            found.append(ledger.copy())
        for entry in persist.entries:
            ledger.append(entry)
            found.append(ledger.copy())
    return found


def check(state: GroupState, progress: Progress, where: str) -> None:
    found = Ledger.recovered(state, GROUP_OF)
    if not any(ledger.same_as(found) for ledger in allowed(progress)):
        raise Violation("WAL", f"{where}: recovered t{found.hard_state.term} mark {found.snapshot.index} terms "
                        f"{found.terms} after {found.base}; synced were {len(progress.synced)} groups")  # fmt: skip
    written = {
        entry for life in (*LIVES, (Persist(5, None, (ONE_MORE,)),)) for persist in life for entry in persist.entries
    }
    for entry in state.entries:
        if entry not in written:
            raise Violation("WAL", f"{where}: entry {entry} has a content that nobody wrote")


# ---------------------------------------------------------------------- what a power loss leaves


def outcomes(disk: SimDisk) -> Iterator[SimDisk]:
    """Every disk that a power loss may leave of this one."""
    names = _names(disk)
    kinds: list[list[bytes]] = []
    spots: list[tuple[int, int]] = []  # (number of the inode, sector; -1: its size)
    for number in sorted(disk._touched):
        inode = disk._touched[number]
        matters = any(not name.endswith(".tmp") for name in names.get(number, ()))
        if inode.size_dirty:
            spots.append((number, -1))
            kinds.append([b"old", b"new"] if matters else [b"old"])
        for sector in sorted(inode.dirty):
            start, end = sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES
            old = bytes(inode.durable[start:end]).ljust(SECTOR_BYTES, b"\0")
            new = bytes(inode.volatile[start:end]).ljust(SECTOR_BYTES, b"\0")
            found = list(dict.fromkeys([old, new, bytes(SECTOR_BYTES), bytes([GARBAGE]) * SECTOR_BYTES]))
            spots.append((number, sector))
            kinds.append(found if matters else found[:1])
    directories = _directories(disk._root)
    pending = [(at, change) for at, directory in enumerate(directories) for change in range(len(directory.pending))]
    count = 2 ** len(pending)
    for kind in kinds:
        count *= len(kind)
    assert count <= OUTCOMES_MAX, f"{count} outcomes of one crash"
    for choice in product(*kinds):
        for done in product((False, True), repeat=len(pending)):
            left = deepcopy(disk)
            left.kill()
            _leave(left, dict(zip(spots, choice, strict=True)), dict(zip(pending, done, strict=True)))
            yield left


def _leave(disk: SimDisk, contents: dict[tuple[int, int], bytes], done: dict[tuple[int, int], bool]) -> None:
    for number in sorted(disk._touched):
        inode = disk._touched[number]
        size = len(inode.durable)
        if inode.size_dirty and contents[number, -1] == b"new":
            size = len(inode.volatile)
        left = bytearray(bytes(inode.durable[:size]).ljust(size, b"\0"))
        for sector in sorted(inode.dirty):
            start, end = sector * SECTOR_BYTES, min((sector + 1) * SECTOR_BYTES, size)
            if start < end:
                left[start:end] = contents[number, sector][: end - start]
        inode.durable, inode.volatile = left, bytearray(left)
        inode.dirty.clear()
        inode.size_dirty = False
    disk._touched.clear()
    for at, directory in enumerate(_directories(disk._root)):
        for change, (gone, come, named) in enumerate(directory.pending):
            if done[at, change]:
                if gone:
                    directory.durable.pop(gone, None)
                if come and named is not None:
                    directory.durable[come] = named
        directory.pending.clear()
        directory.volatile = dict(directory.durable)


def _directories(root: _Directory) -> list[_Directory]:
    found = [root]
    for directory in found:
        found += [node for _, node in sorted(directory.volatile.items()) if isinstance(node, _Directory)]
    return found


def _names(disk: SimDisk) -> dict[int, set[str]]:
    """The names, durable or not yet, of each file."""
    names: dict[int, set[str]] = {}
    for directory in _directories(disk._root):
        for table in (directory.volatile, directory.durable):
            for name, node in table.items():
                if isinstance(node, _Inode):
                    names.setdefault(node.number, set()).add(name)
        for _, come, named in directory.pending:
            if come and isinstance(named, _Inode):
                names.setdefault(named.number, set()).add(come)
    return names


def image(disk: SimDisk) -> tuple[tuple[str, bytes], ...]:
    """All files with their contents: two disks with one image are one state."""
    found = []
    for directory in _directories(disk._root):
        found += [(n, bytes(i.volatile)) for n, i in sorted(directory.volatile.items()) if isinstance(i, _Inode)]
    return tuple(found)


# ---------------------------------------------------------------------- the search


def bounds(*, second: bool) -> str:
    """What a search is limited to, in words."""
    words = (
        f"two lives of {len(LIFE)} groups of writes in segments of {SEGMENT_BYTES} bytes, a crash before each operation"
    )
    return words + (", and before each of the start that follows" if second else "")


def explore_crashes(*, second: bool = True) -> Report:
    """Every crash of the life, and with `second` every crash of the start after it."""
    report = Report()
    seen: set[tuple[object, int, int]] = set()
    try:
        for life in LIVES:
            _explore_life(life, seen, report, second=second)
            _rot(life, report)
        report.exhausted = True
    except Violation as violation:
        report.violation, report.invariant = str(violation), violation.name
    report.states = len(seen)
    return report


def _explore_life(life: Sequence[Persist], seen: set[tuple[object, int, int]], report: Report, *, second: bool) -> None:
    cut = 0
    while True:
        disk, progress = SimDisk(), Progress(life)
        disk.cut_at = cut
        try:
            live(disk, progress).close()
            over = True
        except PowerCut:
            over = False
        where = f"power lost before operation {cut} of life {LIVES.index(life) + 1}"
        for left in outcomes(disk):
            report.transitions += 1
            key = (image(left), len(progress.synced), len(progress.writing))
            if key in seen:
                continue
            seen.add(key)
            _restart_everywhere(left, progress, where, report, second=second)
        if over:
            break
        cut += 1
    report.depth = max(report.depth, cut)


def _restart_everywhere(disk: SimDisk, progress: Progress, where: str, report: Report, *, second: bool) -> None:
    _go_on(deepcopy(disk), progress, where)
    if not second:
        return
    cut = disk.operations
    while True:
        again = deepcopy(disk)
        again.cut_at = cut
        try:
            restart(again, where)
            return
        except PowerCut:
            pass
        for left in _extremes(again):
            report.transitions += 1
            _go_on(left, progress, f"{where}, and before operation {cut} of the start")
        cut += 1


def _extremes(disk: SimDisk) -> Iterator[SimDisk]:
    """Of the outcomes of a second crash, those in which everything is old, new, or garbage."""
    directories = _directories(disk._root)
    pending = [(at, change) for at, directory in enumerate(directories) for change in range(len(directory.pending))]
    for which in range(3):
        for done in {False, bool(pending)}:
            contents: dict[tuple[int, int], bytes] = {}
            for number in sorted(disk._touched):
                inode = disk._touched[number]
                contents[number, -1] = b"new" if which else b"old"
                for sector in inode.dirty:
                    start, end = sector * SECTOR_BYTES, (sector + 1) * SECTOR_BYTES
                    source = (inode.durable, inode.volatile, bytes([GARBAGE]) * end)[which]
                    contents[number, sector] = bytes(source[start:end]).ljust(SECTOR_BYTES, b"\0")
            left = deepcopy(disk)
            left.kill()
            _leave(left, contents, dict.fromkeys(pending, done))
            yield left


def _go_on(disk: SimDisk, progress: Progress, where: str) -> None:
    """Open, check, write one more, and see all of it after another start."""
    log, state = restart(disk, where)
    check(state, progress, where)
    if log is None:
        log = WriteAheadLog.create(disk, PATH, IDENTITY, segment_bytes=SEGMENT_BYTES)
    extra = Entry(max(3, state.hard_state.term + 1), state.last_index + 1, 0, ONE_MORE.payload)
    log.append(GROUP, HardState(extra.term, 0, state.hard_state.commit), (extra,))
    log.sync()
    disk.power_loss(_Old())  # type: ignore[arg-type]
    _, after = restart(disk, f"{where}, after one more write")
    if after.entries[-1:] != [extra] or after.entries[:-1] != state.entries:
        raise Violation("WAL", f"{where}: after one more write the log ends at {after.last_index}, not {extra}")


class _Old:
    """Stands for the generator that `power_loss` draws from."""

    def random(self) -> float:
        return OLD

    def randbytes(self, count: int) -> bytes:
        return bytes(count)


def _rot(life: Sequence[Persist], report: Report) -> None:
    """Damage to what was synced and closed is rot, wherever it is."""
    for groups in range(1, len(life) + 1):
        disk, progress = SimDisk(), Progress(life)
        live(disk, progress, groups).close()
        for name in disk.listdir(PATH):
            if name.endswith(".wal"):
                _rot_of(disk, f"{PATH}/{name}", progress, report)


def _rot_of(disk: SimDisk, path: str, progress: Progress, report: Report) -> None:
    content = disk.read_raw(path)
    used = len(content.rstrip(b"\0"))
    places = [(sector * SECTOR_BYTES, -1) for sector in range(-(-used // SECTOR_BYTES))]
    places += [(offset, offset % 8) for offset in range(0, used, 37)]
    for offset, bit in places:
        report.transitions += 1
        broken = deepcopy(disk)
        if bit < 0:
            broken.put_sector(path, offset // SECTOR_BYTES)
        else:
            broken.flip_bit(path, offset, bit)
        if broken.read_raw(path) == content:
            continue
        try:
            _, recovered = WriteAheadLog.open(broken, PATH, segment_bytes=SEGMENT_BYTES)
        except Corrupt:
            continue
        where = f"rot at offset {offset} of {path} after {len(progress.synced)} groups"
        check(recovered.groups.get(GROUP, GroupState()), progress, where)
