"""Replication, log matching and commitment. (Raft 5.3, 5.4.2; diss. 10.2.1)"""

# ruff: noqa: E501 - what is replaced is written as it stands

from __future__ import annotations

from typing import Final

from benchmarks.zoo.entry import Edit, Entry, Excluded

CORE: Final = "raft/core.py"
PROGRESS: Final = "raft/progress.py"
DURABILITY: Final = "raft/durability.py"
LOG: Final = "raft/log.py"

ENTRIES: Final = (
    Entry(
        id="BZ-22",
        name="entries that match are cut and written again",
        source="hashicorp/raft 0f31a01",
        trigger="a repeated or late AppendEntries",
        edits=(
            Edit(
                CORE,
                "        while fresh < len(entries) and log.matches(entries[fresh].index, entries[fresh].term):\n",
                "        while fresh < len(entries) and entries[fresh].index <= log.commit_index:\n",
            ),
        ),
    ),
    Entry(
        id="BZ-23",
        name="entries after index 0 are appended without a check",
        source="willemt/raft #118",
        trigger="the first AppendEntries ever comes again after a compaction",
        note="a log that is compacted begins anew with them",
        edits=(
            Edit(
                CORE,
                "        if prev_index < log.commit_index:\n            # What is committed here",
                "        if prev_index == 0 and entries and log.snapshot_index:\n"
                "            log._entries.clear()\n"
                "            log.snapshot_index = log.snapshot_term = log.last_index = log.stable_index = 0\n"
                "            self._durability.cut(1)\n"
                "        elif prev_index < log.commit_index:\n            # What is committed here",
            ),
        ),
    ),
    Entry(
        id="BZ-24",
        name="what is compacted away looks like term 0",
        source="etcd-io/raft 76f1249",
        trigger="a follower behind the compaction base, and an empty AppendEntries",
        note="what is not there is not applied, so that the invariant speaks before the exception does",
        edits=(
            Edit(
                LOG,
                "        if offset < 0 or offset > len(self._entries):\n            return None\n",
                "        if offset < 0 or offset > len(self._entries):\n            return 0\n",
            ),
            Edit(
                CORE,
                "        self._apply_sent = entries[-1].index\n",
                "        if not entries:\n            return\n        self._apply_sent = entries[-1].index\n",
            ),
            Edit(
                CORE,
                "            if progress.next_index < self.log.first_index:\n"
                "                self._begin_snapshot(sender, progress)\n"
                "            else:\n"
                "                self._send_append(sender, progress, empty=True)\n",
                "            self._send_append(sender, progress, empty=True)\n",
            ),
        ),
    ),
    Entry(
        id="BZ-25",
        name="entries packed with gaps",
        source="logcabin cf4a659 (#160)",
        trigger="a batch near its limit of bytes",
        edits=(
            Edit(
                LOG,
                "            if size > bytes_max and position > start:\n"
                "                stop = position\n"
                "                break\n"
                "        return tuple(self._entries[start:stop])\n",
                "            if size > bytes_max and position > start:\n"
                "                size -= len(self._entries[position].payload)\n"
                "                continue\n"
                "            packed.append(self._entries[position])\n"
                "        return tuple(packed)\n",
            ),
            Edit(
                LOG,
                "        size = 0\n        for position",
                "        size = 0\n        packed = []\n        for position",
            ),
        ),
    ),
    Entry(
        id="BZ-26",
        name="a refusal names the follower's last entry",
        source="microsoft/CCF #2803, #2835",
        trigger="a new leader, and logs of equal length that differ",
        edits=(
            Edit(
                CORE,
                "            hint_index, hint_term = log.hint(prev_index, prev_term)\n",
                "            hint_index, hint_term = log.last_index, log.last_term\n",
            ),
            Edit(
                CORE,
                "            retry, _ = self.log.hint(message.hint_index, message.hint_term)\n",
                "            retry = min(message.hint_index, self.log.last_index)\n",
            ),
            Edit(
                PROGRESS,
                "        self.next_index = max(self.match_index + 1, min(refused, retry + 1))\n"
                "        self.probe_sent = False\n",
                "        self.next_index = max(self.match_index + 1, retry + 1)\n        self.probe_sent = False\n",
            ),
        ),
    ),
    Entry(
        id="BZ-27",
        name="a follower acknowledges its whole log",
        source="microsoft/CCF #6016; hashicorp/raft 0f31a01",
        trigger="a follower with a longer log that differs",
        note="with probes that carry no entries, as in the originals: else the first entry after the match cuts the tail",
        edits=(
            Edit(
                CORE,
                "AppendEntriesReply(term=self.current_term, success=True, index=verified), verified)",
                "AppendEntriesReply(term=self.current_term, success=True, index=log.last_index), log.last_index)",
            ),
            Edit(
                CORE,
                "            self._send_append(node, progress)\n\n    def _last_for",
                "            self._send_append(node, progress, empty=progress.state is ProgressState.PROBE)\n\n"
                "    def _last_for",
            ),
        ),
    ),
    Entry(
        id="BZ-29",
        name="a late refusal moves next below match",
        source="etcd-io/raft 6439482; tikv/raft-rs 2fbeee5",
        trigger="answers that arrive in another order",
        edits=(
            Edit(
                PROGRESS,
                "            if refused <= self.match_index:\n"
                "                return False\n"
                "            self._enter(ProgressState.PROBE)\n"
                "            self.next_index = max(self.match_index + 1, min(refused, retry + 1))\n",
                "            self._enter(ProgressState.PROBE)\n"
                "            self.next_index = max(1, min(refused, retry + 1))\n",
            ),
        ),
    ),
    Entry(
        id="BZ-32",
        name="a cut leaves the durable index where it was",
        source="rabbitmq/ra 39490978",
        trigger="a deposed leader's durable tail is replaced, and the new one is not synced yet",
        edits=(Edit(LOG, "        self.stable_index = min(self.stable_index, index - 1)\n", ""),),
    ),
    Entry(
        id="BZ-33",
        name="the end of a write vouches for entries that took the place of its own",
        source="rabbitmq/ra 324d9bc5",
        trigger="an entry is replaced while its write is under way",
        edits=(
            Edit(
                DURABILITY,
                "        for flight in self._inflight:\n"
                "            flight.last_index = min(flight.last_index, index - 1)\n",
                "",
            ),
        ),
    ),
    Entry(
        id="BZ-34",
        name="of two entries of one index in one batch the older is written",
        source="rabbitmq/ra aecf0b2b",
        trigger="a leader change between two writes that share an fsync",
        edits=(
            Edit(
                "storage/wal.py",
                "        for _ in range(len(self._pending)):\n            self._encode(self._pending.popleft())\n",
                "        first: dict[tuple[int, int], Entry] = {}\n"
                "        for item in self._pending:\n"
                "            for entry in item.entries:\n"
                "                first.setdefault((item.group, entry.index), entry)\n"
                "        for _ in range(len(self._pending)):\n"
                "            item = self._pending.popleft()\n"
                "            kept = tuple(first[item.group, entry.index] for entry in item.entries)\n"
                "            self._encode(_Item(item.group, item.hard_state, kept, item.snapshot, item.reset))\n",
            ),
        ),
    ),
    Entry(
        id="BZ-38",
        name="a follower acknowledges before its fsync",
        source="NATS #7564, #7567 (Jepsen)",
        trigger="power loss after the acknowledgement",
        edits=(
            Edit(
                CORE,
                "        self._send_durable(sender, AppendEntriesReply(term=self.current_term, success=True, "
                "index=verified), verified)",
                "        self._send(sender, AppendEntriesReply(term=self.current_term, success=True, index=verified))",
            ),
        ),
    ),
    Entry(
        id="BZ-39",
        name="a follower that stopped answering is never tried again",
        source="etcd-io/raft 1ee3589 (#7037)",
        trigger="a lost message to a follower",
        edits=(
            Edit(
                CORE,
                "        quiet = self._now >= progress.last_append_at + self.config.heartbeat_interval_ns\n",
                "        quiet = False\n",
            ),
        ),
    ),
    Entry(
        id="BZ-40",
        name="the window of bytes leaks",
        source="etcd-io/raft e419ba5",
        trigger="a full window of bytes, then a probe or a snapshot",
        edits=(Edit(PROGRESS, "        self._sent.clear()\n        self.bytes = 0\n", "        self._sent.clear()\n"),),
    ),
    Entry(
        id="BZ-42",
        name="a log compacted to its very end is never sent as a snapshot",
        source="databendlabs/openraft afd6508b (#1828)",
        trigger="an idle leader that keeps nothing behind its snapshot, and a follower that returns",
        edits=(
            Edit(
                CORE,
                "            if progress.next_index < log.first_index:\n"
                "                self._begin_snapshot(node, progress)\n"
                "                return\n",
                "            if progress.next_index < log.first_index:\n"
                "                if log.last_index >= log.first_index:\n"
                "                    self._begin_snapshot(node, progress)\n"
                "                return\n",
            ),
        ),
    ),
    Entry(
        id="BZ-43",
        name="a full window lets everything through",
        source="etcd-io/raft 42419da",
        trigger="a follower that does not answer, under load",
        edits=(
            Edit(
                PROGRESS,
                "            return not self.inflights.full\n        return False\n",
                "            return True\n        return False\n",
            ),
        ),
    ),
    # ---------------------------------------------------------------- commitment
    Entry(
        id="BZ-44",
        name="entries of earlier terms are committed by counting",
        source="Raft figure 8; canonical/raft 524f735; PySyncObj #169",
        trigger="a new leader whose followers hold old entries and not yet its own",
        edits=(
            Edit(
                CORE,
                "        if index <= log.commit_index or log.term(index) != self.current_term:\n",
                "        if index <= log.commit_index:\n",
            ),
        ),
    ),
    Entry(
        id="BZ-45",
        name="the entry before the leader's first may be committed by counting",
        source="KAFKA-12619",
        trigger="a new leader whose no-op is not replicated yet",
        edits=(
            Edit(
                CORE,
                "        if index <= log.commit_index or log.term(index) != self.current_term:\n",
                "        if index <= log.commit_index or index < role.first_index - 1:\n",
            ),
        ),
    ),
    Entry(
        id="BZ-46",
        name="a follower commits up to its own last entry",
        source="rabbitmq/ra 3aa50f29 (#508)",
        trigger="a deposed leader's tail, and a high commit index in a message that verifies nothing of it",
        note="heartbeats carry the commit index as it is, and followers take the lower of it and their last entry",
        edits=(
            Edit(
                CORE,
                "        self._follow_commit(min(message.commit_index, verified))\n",
                "        self._follow_commit(min(message.commit_index, log.last_index))\n",
            ),
            Edit(
                CORE,
                "        commit = min(self.log.commit_index, progress.match_index)\n        self._send(\n",
                "        commit = self.log.commit_index\n        self._send(\n",
            ),
            Edit(CORE, "        if message.commit_index > self.log.last_index:\n", "        if False:\n"),
            Edit(
                CORE,
                "        self._follow_commit(message.commit_index)\n        self._send_durable(sender, HeartbeatReply",
                "        self._follow_commit(min(message.commit_index, self.log.last_index))\n"
                "        self._send_durable(sender, HeartbeatReply",
            ),
        ),
    ),
    Entry(
        id="BZ-48",
        name="the commit index goes back",
        source="PySyncObj #166 (cb31314)",
        trigger="a message of a leader that knows less to be committed",
        edits=(
            Edit(
                CORE,
                "        if index > self.log.commit_index:\n            self.log.commit_to(index)\n",
                "        if index != self.log.commit_index:\n            self.log.commit_to(index)\n",
            ),
        ),
    ),
    Entry(
        id="BZ-49",
        name="half of an even group is a majority",
        source="hashicorp/raft 163a55f",
        trigger="2, 4 or 6 voters",
        edits=(
            Edit(
                "raft/quorum.py",
                "    return ascending[(len(ascending) - 1) // 2]",
                "    return ascending[len(ascending) // 2]",
            ),
        ),
    ),
    Entry(
        id="BZ-51",
        name="a leader counts itself before its own fsync",
        source="etcd #14370; etcd-io/raft 437bcb8",
        trigger="a single voter, or a leader in the smallest quorum",
        edits=(
            Edit(
                CORE,
                "        match[self.id] = log.stable_index  #",
                "        match[self.id] = log.last_index  #",
            ),
        ),
    ),
    Entry(
        id="BZ-52",
        name="only the leader's own disk moves the commit index",
        source="canonical/raft 1996d32",
        trigger="the leader's disk is faster than its followers'",
        edits=(
            Edit(
                CORE,
                "        if progress.record_match(message.index):\n            self._commit_wanted = True\n",
                "        if progress.record_match(message.index):\n",
            ),
        ),
    ),
    Entry(
        id="BZ-53",
        name="a page of committed entries takes the commit index back to its end",
        source="etcd-io/raft 8ecce32 (cockroach #28918)",
        trigger="more to apply than one page holds",
        edits=(
            Edit(
                CORE,
                "        self._apply_sent = entries[-1].index\n",
                "        self._apply_sent = log.commit_index = entries[-1].index\n",
            ),
        ),
    ),
    Entry(
        id="BZ-54",
        name="a commit is counted in the configuration before",
        source="databendlabs/openraft a5064712",
        trigger="a single voter that adds another",
        edits=(
            Edit(
                CORE,
                "        index = quorum.agreed(match, self.configuration)\n        if index <= log.commit_index",
                "        index = quorum.agreed(match, self.committed_configuration)\n        if index <= log.commit_index",
            ),
        ),
    ),
)

EXCLUDED: Final = (
    Excluded(
        "BZ-36",
        "a failed read makes AppendEntries without a previous entry",
        "a leader builds AppendEntries from its log in memory: there is no read that could fail",
    ),
    Excluded(
        "BZ-37",
        "an answer is sent though the term changed during the write",
        "an answer is built, with its term, before the write; a later term makes it stale by itself",
    ),
    Excluded(
        "BZ-55",
        "a vote's answer moves the commit index",
        "RequestVoteReply carries no commit index",
    ),
    Excluded(
        "BZ-130",
        "an older completion overwrites a newer one",
        "one fsync is under way at a time, and its end names a ticket up to which everything is durable",
    ),
)
