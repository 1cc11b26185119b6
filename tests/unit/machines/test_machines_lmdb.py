"""What only the store on disk promises: crashes, full disks, rot, growth, reused pages."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import lmdb
import pytest

from oarlock.errors import Corrupt, WrongDirectory
from oarlock.machines import lmdb_store
from oarlock.machines.base import Context
from oarlock.machines.kv.commands import Compact, DeleteRange, Put, Range, encode
from oarlock.machines.kv.layout import TABLES
from oarlock.machines.kv.machine import KvMachine
from oarlock.machines.lmdb_store import LmdbStore


def checkpoint(store: LmdbStore | KvMachine) -> None:
    begun = store.checkpoint()
    begun.write()
    store.checkpointed(begun)


def data_file(path: Path) -> Path:
    return path / (path / "CURRENT").read_text().strip()


def test_reopening_shows_the_last_completed_checkpoint(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "s", ["t"])
    assert store.applied_index == 0
    store.table("t").put(b"a", b"1")
    store.commit(7)
    checkpoint(store)
    store.table("t").put(b"a", b"2")
    store.commit(9)
    begun = store.checkpoint()  # frozen, never written
    store.table("t").put(b"b", b"3")
    assert begun.index == 9
    store.close()
    store.close()
    store = LmdbStore(tmp_path / "s", ["t"])
    assert (store.applied_index, store.table("t").items()) == (7, [(b"a", b"1")])
    store.close()


CRASHER = """
import os, sys, random
from oarlock.machines.base import Context
from oarlock.machines.kv.commands import Put, encode
from oarlock.machines.kv.machine import KvMachine
machine = KvMachine.on_disk(sys.argv[1])
rng = random.Random(int(sys.argv[2]))
start = index = machine.applied_index
import threading
def dies(write):
    if rng.random() < 0.25:
        threading.Timer(rng.random() / 100, os._exit, (9,)).start()
    write()
while True:
    for _ in range(rng.randrange(40)):
        index += 1
        # the value tells the index of the entry that wrote it
        machine.apply(Context(index, 1, 0), [encode(Put(b"%d" % (index % 97), b"%d" % index + bytes(3000)))])
    checkpoint = machine.checkpoint()
    if rng.random() < 0.05 and index > start:
        os._exit(9)
    dies(checkpoint.write)
    print(checkpoint.index, flush=True)
    if rng.random() < 0.05:
        os._exit(9)
    machine.checkpointed(checkpoint)
"""


def test_a_killed_process_leaves_exactly_one_checkpoint(tmp_path: Path) -> None:
    acknowledged = 0
    for seed in range(8):
        run = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(CRASHER), str(tmp_path / "state"), str(seed)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert run.returncode == 9, run.stderr
        acknowledged = max([acknowledged, *map(int, run.stdout.split())])
        machine = KvMachine.on_disk(tmp_path / "state")
        index = machine.applied_index
        assert index >= acknowledged, "a completed checkpoint is lost"
        machine.validate()
        assert machine.revision == 1 + index, "the state and its index have parted"
        newest: dict[bytes, int] = {b"%d" % (at % 97): at for at in range(1, index + 1)}
        for key, at in newest.items():
            record = machine.range_one(key)
            assert record is not None and b"%d\0" % at in record
        machine.close()


FILLS_THE_DISK = """
import resource, signal, sys
from oarlock.errors import DiskFull
from oarlock.machines.lmdb_store import LmdbStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = LmdbStore(sys.argv[1], ["t"])
table = store.table("t")
table.put(b"old", b"1")
store.commit(1)
first = store.checkpoint(); first.write(); store.checkpointed(first)
limit = 1 << 20
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
for n in range(1000):
    table.put(b"%d" % n, bytes(3000))
table.delete(b"old")
store.commit(2)
full = store.checkpoint()
for attempt in range(2):
    try:
        full.write()
    except DiskFull as error:
        assert "Free some space" in str(error), error
    else:
        raise SystemExit("the disk was not full")
assert table.get(b"old") is None and table.count() == 1000
view = store.view()
assert view.index == 1 and list(view.items("t")) == [(b"old", b"1")]
view.close()
table.put(b"new", b"2")
store.commit(3)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
full.write()
store.checkpointed(full)
assert table.count() == 1001 and store.durable_index == 2
last = store.checkpoint(); last.write(); store.checkpointed(last)
store.close()
store = LmdbStore(sys.argv[1], ["t"])
assert store.applied_index == 3 and store.table("t").count() == 1001
"""


def test_a_full_disk_costs_nothing_and_the_write_can_be_repeated(tmp_path: Path) -> None:
    """The limit on file size stands in for the disk's: the kernel refuses the write in the same place."""
    assert resource.RLIMIT_FSIZE is not None and signal.SIGXFSZ
    run = subprocess.run(
        [sys.executable, "-c", FILLS_THE_DISK, str(tmp_path / "s")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def flip_in(file: Path, needle: bytes, at: int = 0) -> None:
    data = bytearray(file.read_bytes())
    places = [n for n in range(len(data)) if data.startswith(needle, n)]
    assert places, "the value is in the file"
    for place in places:
        data[place + at] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize("key", [b"key", b"k" * 600])
def test_rot_is_reported_and_never_served(tmp_path: Path, key: bytes) -> None:
    store = LmdbStore(tmp_path / "s", ["t"])
    store.table("t").put(key, b"precious value")
    store.table("t").put(b"another", b"sound")
    store.commit(1)
    checkpoint(store)
    store.close()
    flip_in(data_file(tmp_path / "s"), b"precious value", 3)
    store = LmdbStore(tmp_path / "s", ["t"])
    table = store.table("t")
    assert table.get(b"another") == b"sound"
    view = store.view()
    for read in (
        lambda: table.get(key),
        table.items,
        lambda: table.values(reverse=True),
        lambda: list(view.items("t")),
    ):
        with pytest.raises(Corrupt, match="checksum") as caught:
            read()
        assert str(data_file(tmp_path / "s")) in str(caught.value)
    view.close()
    store.close()


def test_a_damaged_or_foreign_directory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s"
    LmdbStore(path, ["t"]).close()
    file = data_file(path)
    (path / "CURRENT").write_bytes(b"state-9.lmdb\n")
    with pytest.raises(Corrupt, match=r"state-9\.lmdb"):
        LmdbStore(path, ["t"])
    (path / "CURRENT").write_bytes(file.name.encode() + b"\n")
    sound = file.read_bytes()
    file.write_bytes(b"garbage" * 5000)
    with pytest.raises(Corrupt):
        LmdbStore(path, ["t"])
    file.write_bytes(sound)
    with lmdb.open(str(file), subdir=False, max_dbs=9) as env, env.begin(write=True) as txn:
        version = lmdb_store._U64.pack(3)
        txn.put(b"format version", lmdb_store._seal(b"format version", version), db=env.open_db(b".store", txn))
    with pytest.raises(WrongDirectory, match="format 3"):
        LmdbStore(path, ["t"])


def test_a_state_of_format_1_opens_and_is_format_2_from_then_on(tmp_path: Path) -> None:
    path = tmp_path / "s"
    store = LmdbStore(path, ["t"])
    store.table("t").put(b"k", b"v")
    store.commit(1, 2)
    checkpoint(store)
    store.close()
    with lmdb.open(str(data_file(path)), subdir=False, max_dbs=9) as env, env.begin(write=True) as txn:
        version = lmdb_store._U64.pack(1)
        txn.put(b"format version", lmdb_store._seal(b"format version", version), db=env.open_db(b".store", txn))
    store = LmdbStore(path, ["t", "new"])
    assert store.table("t").get(b"k") == b"v"
    assert store.table("new").count() == 0
    store.close()
    with lmdb.open(str(data_file(path)), subdir=False, max_dbs=9) as env, env.begin() as txn:
        sealed = txn.get(b"format version", db=env.open_db(b".store", txn))
    assert sealed == lmdb_store._seal(b"format version", lmdb_store._U64.pack(2)), "an older version would lose tables"


def test_the_map_grows(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "s", ["t"], map_bytes=1 << 20)
    for index in range(1, 9):
        for n in range(200):
            store.table("t").put(b"%d.%d" % (index, n), bytes(4000))
        store.commit(index, 200 * 4000)
        checkpoint(store)
    assert store.table("t").count() == 1600
    assert store.size() > 6 << 20
    store.close()
    store = LmdbStore(tmp_path / "s", ["t"], map_bytes=1 << 20)
    assert store.table("t").count() == 1600, "a map smaller than the file is the file's size"
    store.close()


def test_pages_are_used_again_although_the_store_reads_all_the_time(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "s", ["t"])
    table = store.table("t")
    sizes = []
    for index in range(1, 31):
        for n in range(100):
            table.put(b"%d" % n, bytes(3000))
        store.commit(index, 0)
        checkpoint(store)
        assert table.count() == 100
        sizes.append(store.size())
    assert sizes[-1] == sizes[5], "a reader that is not renewed makes the file grow with every checkpoint"
    store.close()


def test_compaction_frees_space_while_commands_go_on(tmp_path: Path) -> None:
    machine = KvMachine.on_disk(tmp_path / "s")
    memory = KvMachine.in_memory()
    index = 0

    def apply(*commands: Put | DeleteRange | Compact) -> None:
        nonlocal index
        index += 1
        for one in (machine, memory):
            one.apply(Context(index, 1, 0), [encode(command) for command in commands])

    for n in range(2000):
        apply(Put(b"%d" % (n % 10), bytes(1000)))
    apply(DeleteRange(b"0", b"5"))
    apply(Put(b"new", b""))
    checkpoint(machine)
    before = machine.size_in_use(), memory.size_in_use()
    apply(Compact(machine.revision))
    assert machine._purging, "one command does not purge it all"
    for _ in range(40):
        apply(Put(b"new", b""))
    assert not machine._purging and not memory._purging
    checkpoint(machine)
    checkpoint(machine)
    after = machine.size_in_use(), memory.size_in_use()
    assert after[0] < before[0] / 10 and after[1] < before[1] / 10
    assert not machine._tombstones.items() and machine._tombstone_count == 0
    file_size = machine.size()
    for n in range(1000):
        apply(Put(b"%d" % (n % 10), bytes(1000)))
    checkpoint(machine)
    assert machine.size() <= file_size * 1.1, "the free pages are used again"
    machine.validate()
    machine.close()


def test_an_unfinished_restore_leaves_the_old_state(tmp_path: Path) -> None:
    machine = KvMachine.on_disk(tmp_path / "s")
    machine.apply(Context(1, 1, 0), [encode(Put(b"old", b"state"))])
    checkpoint(machine)
    other = KvMachine.in_memory()
    other.apply(Context(5, 1, 0), [encode(Put(b"new%d" % n, bytes(999))) for n in range(3000)])
    chunks = list(other.capture().chunks())
    assert len(chunks) > 2 and max(map(len, chunks)) == 1 << 20
    whole = b"".join(chunks)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 4
    swapped = [chunks[1], chunks[0], *chunks[2:]]
    for index, bad in [
        (5, chunks[:-1]),
        (5, [*chunks, b"more"]),
        (5, [bytes(flipped)]),
        (5, swapped),
        (5, []),
        (5, [b"garbage"]),
        (6, chunks),
        (5, [whole[:10] + b"\x02" + whole[11:]]),
    ]:
        with pytest.raises(ValueError, match="capture"):
            machine.restore(index, bad)
        assert machine.range_one(b"old") is not None and machine.applied_index == 1
        assert sorted(p.name for p in (tmp_path / "s").glob("*.lmdb")) == ["state-1.lmdb"]
    # A crash in the middle of one: what it wrote is left over and goes at the next opening.
    replacement = machine._store.replacement(5)
    replacement.put("current", b"x", bytes(100))
    machine.close()
    machine = KvMachine.on_disk(tmp_path / "s")
    assert machine.applied_index == 1 and machine.revision == 2
    assert sorted(p.name for p in (tmp_path / "s").glob("*.lmdb")) == ["state-1.lmdb"]
    before = machine.capture()
    machine.restore(5, iter(chunks))
    assert machine.applied_index == 5 and machine.range(Range(b"\0", b"\0", count_only=True)).count == 3000  # type: ignore[union-attr]
    assert b"state" in b"".join(before.chunks()), "a capture of the old state can still be read"
    before.close()
    machine.apply(Context(6, 1, 0), [encode(Put(b"new1", b"later"))])
    machine.close()
    machine = KvMachine.on_disk(tmp_path / "s")
    assert machine.applied_index == 5, "a restore is durable at once"
    assert machine.hash() == other.hash()
    machine.validate()
    machine.close()


@pytest.mark.parametrize("reverse", [False, True])
def test_a_limited_range_does_not_show_what_a_newer_layer_deletes_further_on(tmp_path: Path, reverse: bool) -> None:
    store = LmdbStore(tmp_path / "s", ["t"])
    table = store.table("t")
    keys = [b"%02d" % n for n in range(40)]
    if reverse:
        keys.reverse()
    for key in keys[30:]:
        table.put(key, b"1")
    store.commit(1)
    store.checkpoint()
    for key in keys[:36]:
        table.delete(key)
    for limit in range(1, 6):
        assert table.items(limit=limit, reverse=reverse) == [(key, b"1") for key in keys[36 : 36 + limit]]
    store.close()


def test_commits_let_a_completed_checkpoint_go_in_slices(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "s", ["t"])
    for n in range(3 * lmdb_store.RELEASE_ENTRIES):
        store.table("t").put(b"%d" % n, b"")
    store.commit(1)
    checkpoint(store)
    left = []
    for index in range(2, 6):
        left.append(sum(map(len, store._released)))
        store.commit(index)
    assert left == [3 * lmdb_store.RELEASE_ENTRIES - n * lmdb_store.RELEASE_ENTRIES for n in range(4)]
    assert store.table("t").count() == 3 * lmdb_store.RELEASE_ENTRIES
    store.close()


def test_one_checkpoint_at_a_time(tmp_path: Path) -> None:
    store = LmdbStore(tmp_path / "s", TABLES)
    first = store.checkpoint()
    with pytest.raises(RuntimeError, match="one at a time"):
        store.checkpoint()
    first.write()
    store.checkpointed(first)
    with pytest.raises(RuntimeError, match="not the open"):
        store.checkpointed(first)
    store.close()
