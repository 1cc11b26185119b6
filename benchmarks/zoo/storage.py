"""Snapshots, the write-ahead log, the machine, and what ties them together."""

# ruff: noqa: E501 - what is replaced is written as it stands

from __future__ import annotations

from typing import Final

from benchmarks.zoo.entry import Arena, Edit, Entry, Excluded

CORE: Final = "raft/core.py"
WAL: Final = "storage/wal.py"
RECOVERY: Final = "storage/recovery.py"
MEMBER: Final = "node/replica/member.py"
SESSIONS: Final = "node/replica/sessions.py"
MACHINE: Final = "machines/kv/machine.py"

ENTRIES: Final = (
    Entry(
        id="BZ-81",
        name="a snapshot is dated with the present term",
        source="tikv/raft-rs fc1ef2f (#408); RedisRaft cbf9fd9",
        trigger="a snapshot of an entry of an earlier term",
        edits=(
            Edit(
                CORE,
                "        return SnapshotMeta(index=index, term=term, configuration=self.configuration_at(index))\n\n"
                "    @property\n    def transferring",
                "        term = self.current_term\n"
                "        return SnapshotMeta(index=index, term=term, configuration=self.configuration_at(index))\n\n"
                "    @property\n    def transferring",
            ),
        ),
    ),
    Entry(
        id="BZ-83",
        name="a finished local snapshot deletes all others",
        source="rabbitmq/ra de94f929",
        trigger="a newer snapshot is installed while a local one is being written",
        edits=(
            Edit(
                "storage/snapshots.py",
                '        _publish(self._disk, self._file, self._base + ".tmp", self._base + SUFFIX, self._group, meta)\n'
                "        return meta\n",
                '        _publish(self._disk, self._file, self._base + ".tmp", self._base + SUFFIX, self._group, meta)\n'
                '        directory, _, own = self._base.rpartition("/")\n'
                "        for name in self._disk.listdir(directory):\n"
                "            if name.endswith(SUFFIX) and name != own + SUFFIX:\n"
                '                self._disk.unlink(f"{directory}/{name}")\n'
                "        self._disk.sync_dir(directory)\n"
                "        return meta\n",
            ),
        ),
    ),
    Entry(
        id="BZ-85",
        name="a snapshot below what is committed is installed",
        source="NuRaft #407 (ClickHouse Jepsen)",
        trigger="a snapshot that arrives late or twice",
        edits=(
            Edit(
                CORE,
                "        if meta.index <= log.commit_index:\n"
                "            self._snapshot_installed(sender, meta.index)\n"
                "            return\n"
                "        if log.matches(meta.index, meta.term):\n",
                "        if log.matches(meta.index, meta.term) and meta.index > log.commit_index:\n",
            ),
            Edit(
                CORE,
                "        if meta.index <= self.log.commit_index:\n"
                "            self._snapshot_installed(event.sender, meta.index)\n"
                "        elif event.complete and self.log.matches(meta.index, meta.term):\n",
                "        if event.complete and self.log.matches(meta.index, meta.term) "
                "and meta.index > self.log.commit_index:\n",
            ),
        ),
    ),
    Entry(
        id="BZ-86",
        name="the log is released before the snapshot's mark is durable",
        source="etcd #10219",
        trigger="power loss between the two",
        arena=Arena.SCOPE,
        edits=(
            Edit(
                CORE,
                "                self._durability.mark_snapshot(snapshot, release_to=base)\n",
                "                self._effects.append(ReleaseLog(base))\n"
                "                self._durability.mark_snapshot(snapshot, release_to=None)\n",
            ),
            Edit(
                WAL,
                "                if last > min(self._released.get(group, 0), self._marks.get(group, 0)):\n",
                "                if last > self._released.get(group, 0):\n",
            ),
        ),
    ),
    Entry(
        id="BZ-87",
        name="entries from before a snapshot come back behind it",
        source="canonical/raft a3de078 (Jepsen)",
        trigger="a snapshot replaces a log, and a crash before the next segment",
        note="the log forgets to say that the snapshot replaced what was there",
        edits=(
            Edit(
                WAL,
                "            self._put(SNAPSHOT, RESET if item.reset else 0, 0, group",
                "            self._put(SNAPSHOT, 0, 0, group",
            ),
        ),
    ),
    Entry(
        id="BZ-89",
        name="a snapshot wanted while another is written is forgotten",
        source="openraft d0e245a2 (#1829)",
        trigger="a follower needs a snapshot while one is being written, then silence",
        edits=(
            Edit(
                MEMBER,
                "                self._snapshot_wanted = max(index, 1)\n",
                "                if not self._saving:\n                    self._snapshot_wanted = max(index, 1)\n",
            ),
        ),
    ),
    Entry(
        id="BZ-93",
        name="a damaged snapshot is taken for an empty state",
        source="NATS #7556; RedisRaft #14",
        trigger="rot in a snapshot, and a restart",
        edits=(
            Edit(
                "storage/snapshots.py",
                "        except Corrupt as error:\n"
                "            kept = quarantine(self._disk, self._file.path)\n"
                '            raise Corrupt(f"{error}; the file is kept as {kept}", path=kept, offset=error.offset) from '
                "error\n\n    def verify",
                "        except Corrupt:\n            return\n\n    def verify",
            ),
            Edit(
                MACHINE,
                "            read_capture(index, chunks, replacement if fresh is None else FreshReplacement(replacement, fresh))\n",
                "            try:\n"
                "                read_capture(index, chunks, replacement)\n"
                "            except ValueError:\n"
                "                replacement = self._store.replacement(index)\n",
            ),
        ),
    ),
    # ---------------------------------------------------------------- the log
    Entry(
        id="BZ-98",
        name="written is taken for durable",
        source="sofa-jraft 8dc7729e (#480)",
        trigger="power loss after an acknowledgement",
        edits=(
            Edit(
                WAL,
                "        self._write_batch()\n        self._file.datasync()\n",
                "        self._write_batch()\n",
            ),
        ),
    ),
    Entry(
        id="BZ-99",
        name="a failed fsync is tried again",
        source="fsyncgate 2018; ATC'20",
        trigger="one failed fsync, then power loss",
        edits=(
            Edit(
                WAL,
                "        self._write_batch()\n        self._file.datasync()\n",
                "        self._write_batch()\n"
                "        try:\n"
                "            self._file.datasync()\n"
                "        except StorageError:\n"
                "            self._file = self._disk.open(self._file.path)\n"
                "            self._file.datasync()\n",
            ),
        ),
    ),
    Entry(
        id="BZ-100",
        name="a new segment's name is not synced",
        source="etcd bd7107bd4; sofa-jraft PR #745",
        trigger="power loss after a new segment was begun",
        edits=(
            Edit(
                WAL,
                "        self._disk.rename(source, name)\n"
                "        self._disk.sync_dir(self._path)\n"
                "        old, self._file = self._file, file\n",
                "        self._disk.rename(source, name)\n        old, self._file = self._file, file\n",
            ),
        ),
    ),
    Entry(
        id="BZ-101",
        name="a torn tail refuses to start",
        source="etcd #15069; rabbitmq/ra 2a463afd",
        trigger="power loss in the middle of a write",
        edits=(
            Edit(
                RECOVERY,
                "            if later is not None:\n                raise corrupt(\n",
                "            if torn:\n"
                "                raise corrupt(file, bad, reason)\n"
                "            if later is not None:\n                raise corrupt(\n",
            ),
        ),
    ),
    Entry(
        id="BZ-102",
        name="rot is taken for a torn tail",
        source="FAST'18; etcd isTornEntry; NATS #7549",
        trigger="rot in the last segment, and a restart",
        edits=(
            Edit(
                RECOVERY,
                "            if later is not None:\n                raise corrupt(\n",
                "            if False:\n                raise corrupt(\n",
            ),
            Edit(RECOVERY, "    if watermark is not None and watermark.batch > batch:\n", "    if False:\n"),
        ),
    ),
    Entry(
        id="BZ-103",
        name="what is behind a torn tail stays where it is",
        source="etcd bfe3a3d08 (ZeroToEnd)",
        trigger="a torn write, a restart, a shorter write, a restart",
        edits=(Edit(WAL, "            if image.torn or not image.trusted:\n", "            if False:\n"),),
    ),
    Entry(
        id="BZ-104",
        name="a new segment forgets term and vote",
        source="RedisRaft 46a6ad0",
        trigger="older segments are dropped, and a restart",
        arena=Arena.SCOPE,
        edits=(
            Edit(
                WAL,
                "        for group, written in self._written.items():\n"
                "            payload = pack_group(written.hard_state, written.snapshot)\n",
                "        for group, written in self._written.items():\n"
                "            payload = pack_group(HardState(), written.snapshot)\n",
            ),
            Edit(
                RECOVERY,
                "        if told != (hard_state, snapshot, record.index, record.term):\n",
                "        if told[1:] != (snapshot, record.index, record.term):\n",
            ),
        ),
    ),
    Entry(
        id="BZ-107",
        name="a segment is dropped when its first entry is not needed",
        source="rabbitmq/ra f2b3e0ca, 23646168; sofa-jraft 2cef7ec5",
        trigger="a snapshot in the middle of a segment",
        edits=(
            Edit(
                WAL,
                "            for group, last in list(oldest.last_index.items()):\n"
                "                if last > min(self._released.get(group, 0), self._marks.get(group, 0)):\n",
                "            for group, last in list(oldest.last_index.items()):\n"
                "                first = last - 3\n"
                "                if first > min(self._released.get(group, 0), self._marks.get(group, 0)):\n",
            ),
        ),
        note="`first` is taken to be three before the last, as segments do not remember it",
    ),
    Entry(
        id="BZ-109",
        name="data and applied index are stored one after the other",
        source="etcd #13766 (3.5.0 to 3.5.2)",
        trigger="a crash between the two",
        note="in the world's model of the durable store, which stands for LMDB's one transaction",
        edits=(
            Edit(
                "sim/world/disks.py",
                "        data = msgspec.msgpack.encode((index, {name: sorted(pairs.items()) for name, pairs in "
                "contents.items()}))\n",
                "        if self._disk.exists(self._path):\n"
                "            old = self._disk.open(self._path, write=False)\n"
                "            _, before = msgspec.msgpack.decode(old.pread(0, old.size()))\n"
                '            file = self._disk.create(self._path + ".tmp")\n'
                "            file.pwrite(0, msgspec.msgpack.encode((index, before)))\n"
                "            file.datasync()\n"
                '            self._disk.rename(self._path + ".tmp", self._path)\n'
                "            self._disk.sync_dir(parent_of(self._path))\n"
                "        data = msgspec.msgpack.encode((index, {name: sorted(pairs.items()) for name, pairs in "
                "contents.items()}))\n",
            ),
        ),
    ),
    Entry(
        id="BZ-110",
        name="the revision is taken from the keys that are left",
        source="etcd #14685, #17780",
        trigger="deletions, a compaction, and a restore",
        edits=(
            Edit(
                "machines/kv/capture.py",
                "    state = State(revision, compact_revision, keys, counts[TOMBSTONES], digest",
                "    revision = max(newest, compact_revision, 1)\n"
                "    state = State(revision, compact_revision, keys, counts[TOMBSTONES], digest",
            ),
            Edit(
                "machines/kv/capture.py",
                "        replacement.put(names[tag], data[:key_size], data[key_size:])\n",
                "        replacement.put(names[tag], data[:key_size], data[key_size:])\n"
                "        if names[tag] == CURRENT:\n"
                "            newest = max(newest, mod_revision_of(data[key_size:]))\n",
            ),
            Edit("machines/kv/capture.py", "    last = 0\n    while tag", "    last = newest = 0\n    while tag"),
            Edit(
                "machines/kv/capture.py",
                "from oarlock.machines.kv.layout import",
                "from oarlock.machines.kv.encoding import mod_revision_of\nfrom oarlock.machines.kv.layout import",
            ),
        ),
    ),
    Entry(
        id="BZ-111",
        name="a restore does not wait for the snapshot that is being written",
        source="etcd #20271, #20650",
        trigger="a snapshot is installed during a checkpoint",
        edits=(
            Edit(
                MEMBER,
                "        if loaded is None or self._saving:\n            return\n        self._loaded = None\n",
                "        if loaded is None:\n            return\n        self._loaded = None\n",
            ),
        ),
    ),
    Entry(
        id="BZ-114",
        name="a torn file of little importance blocks the start",
        source="rabbitmq/ra cbe9e566, eacc8f22",
        trigger="power loss while it is overwritten",
        note="the watermark has one slot, and must be readable",
        edits=(
            Edit(
                WAL,
                "        self._watermark.pwrite((self._batch & 1) * SECTOR_BYTES, pack_watermark(self._identity, mark))\n",
                "        self._watermark.pwrite(0, pack_watermark(self._identity, mark))\n",
            ),
            Edit(
                RECOVERY,
                "    return max((slot for slot in slots if slot is not None), default=None)\n",
                "    if slots[0] is None:\n"
                '        raise corrupt(name, 0, "the watermark is damaged")\n'
                "    return slots[0]\n",
            ),
        ),
    ),
    # ---------------------------------------------------------------- machine, sessions, runtime
    Entry(
        id="BZ-115",
        name="members without a waiting client skip the reads of a transaction",
        source="etcd #18667",
        trigger="a transaction that reads a compacted revision and writes",
        edits=(
            Edit(
                MACHINE, "        for request in ranges:\n", "        for request in ranges if self.waited else []:\n"
            ),
            Edit(
                MACHINE,
                "    def __init__(self, store: Store) -> None:\n",
                "    waited = True\n\n    def __init__(self, store: Store) -> None:\n",
            ),
            Edit(
                MEMBER,
                "                results = envelope.apply(entry.index, entry.term, batch.stamp_ns, commands)\n",
                "                mine = any(group.origin == own and group.boot == boot for group in groups)\n"
                '                getattr(self.machine, "inner", self.machine).waited = mine\n'
                "                results = envelope.apply(entry.index, entry.term, batch.stamp_ns, commands)\n",
            ),
        ),
    ),
    Entry(
        id="BZ-116",
        name="what is cached beside the state is not read again after a restore",
        source="etcd #14571 (fbed8cb64)",
        trigger="a member restored from a snapshot, and a repeated command",
        edits=(
            Edit(
                MEMBER,
                "        self._envelope.load()\n        self._entries_since = self._bytes_since = 0\n",
                "        self._entries_since = self._bytes_since = 0\n",
            ),
        ),
    ),
    Entry(
        id="BZ-117",
        name="the order of a set decides what is applied",
        source="etcd-io/raft 65dbcbd; rabbitmq/ra a0c240da",
        trigger="two processes with different hash seeds",
        arena=Arena.HASHES,
        edits=(
            Edit(
                MACHINE,
                "        for key, record in pairs:\n            place = _place(writes.main, writes.sub)\n",
                "        for key, record in set(pairs):\n            place = _place(writes.main, writes.sub)\n",
            ),
        ),
    ),
    Entry(
        id="BZ-128",
        name="a repeated command is executed again",
        source="TiDB auto-retry (Jepsen); FoundationDB commit_unknown_result",
        trigger="an answer is lost and the client asks again",
        edits=(
            Edit(
                SESSIONS,
                "        for reply in session.replies:\n"
                "            if reply.sequence == asked.sequence:\n"
                "                return self._repeat(reply)\n",
                "",
            ),
        ),
    ),
    Entry(
        id="BZ-131",
        name="an exception while applying is swallowed",
        source="sofa-jraft 913a85ab (#1246); hashicorp/raft 8ba6aca",
        trigger="a command that raises on one path",
        note="a read of a compacted revision raises, and the apply loop goes on",
        edits=(
            Edit(
                MACHINE,
                "        if 0 < at < self._compact_revision:\n            return Refused",
                "        if 0 < at < self._compact_revision:\n            raise RuntimeError(at)\n            return Refused",
            ),
            Edit(
                MEMBER,
                "                results = envelope.apply(entry.index, entry.term, batch.stamp_ns, commands)\n",
                "                try:\n"
                "                    results = envelope.apply(entry.index, entry.term, batch.stamp_ns, commands)\n"
                "                except Exception:\n"
                "                    continue\n",
            ),
        ),
    ),
    Entry(
        id="BZ-134",
        name="timers run on the wall clock",
        source="PySyncObj #99; logcabin #24",
        trigger="the wall clock is set",
        edits=(
            Edit(
                MEMBER,
                "        if self._halted:\n            return []\n        self._now = now\n",
                "        if self._halted:\n            return []\n"
                "        now = self._wall_clock() - self._wall_offset\n        self._now = now\n",
            ),
            Edit(
                MEMBER,
                "        self._wall_clock = wall_clock\n",
                "        self._wall_clock = wall_clock\n        self._wall_offset = wall_clock() - now\n",
            ),
        ),
    ),
)

LIBERTIES: Final = (
    Entry(
        id="OK-1",
        name="the commit index is never durable",
        source="etcd MustSync",
        trigger="none: it is a hint, and the log is the truth",
        survives=True,
        edits=(
            Edit(
                "raft/durability.py",
                "                hard_state=current if dirty or current.commit != saved.commit else None,\n",
                "                hard_state=HardState(current.term, current.vote, 0) if dirty else None,\n",
            ),
        ),
    ),
    Entry(
        id="OK-2",
        name="a leader sends entries before its own fsync",
        source="diss. 10.2.1",
        trigger="none: it counts itself only as far as its disk is",
        note="this is what ships; the change only holds the leader's own fsyncs back",
        survives=True,
        edits=(
            Edit(
                "sim/world/process.py",
                "(1 + draw.draw(8)) // 4 + self.sync_extra\n",
                "(1 + draw.draw(8)) // 4 * (4 if self.leads else 1) + self.sync_extra\n",
            ),
        ),
    ),
)

MUST_BREAK: Final = (
    Entry(
        id="DRIFT",
        name="leases while clocks drift more than configured",
        source="diss. 6.4.1",
        trigger="clocks of half and one and a half times the right rate: leases rest on the bound, and must break without it",
        edits=(
            Edit(
                "sim/world/faults.py",
                "        return swarm.drift_ppm if swarm.lease_reads else wild\n",
                "        return 600_000 if swarm.lease_reads else wild\n",
            ),
        ),
    ),
)

EXCLUDED: Final = (
    Excluded(
        "BZ-84",
        "a write from before a snapshot vouches for the log after it",
        "without effect here, in 90 seeds and by this argument: every answer of a term waits until the term is durable, and "
        "writes end in their order, so the write of a tail that differs has ended before its leader can learn of it and "
        "send a snapshot; what is under way then is that leader's own, and ends below the snapshot",
    ),
    Excluded(
        "BZ-112",
        "an offset or length of 32 bits overflows",
        "Python's integers do not wrap, and a length is checked against a segment that is in memory already; "
        "the decoders' own tests try every truncation",
    ),
    Excluded(
        "BZ-132",
        "an unknown kind of command is passed over",
        "members of other releases differ in what they send, not yet in which commands they know",
        True,
    ),
)
