"""Watches: what a reader that is slow, late or elsewhere must not miss. Hunted by the seeds that draw watches."""

from __future__ import annotations

from typing import Final

from benchmarks.zoo.entry import Edit, Entry

HUB: Final = "machines/kv/watch.py"

ENTRIES: Final = (
    Entry(
        id="BZ-124",
        name="a slow watcher loses events to a compaction",
        source="etcd #17529, #17555",
        trigger="a reader's outbox is full while a compaction passes what its watch needs next",
        edits=(
            Edit(
                HUB,
                "        for watcher in [*self._behind, *self._blocked]:\n"
                "            if watcher.next_revision < compact_revision:\n",
                "        for watcher in [*self._behind]:\n            if watcher.next_revision < compact_revision:\n",
            ),
        ),
    ),
    Entry(
        id="BZ-125",
        name="a deletion at the compacted revision is lost",
        source="etcd #18089, #18274, #19179",
        trigger="a key is deleted, compacted at just that revision, and watched from it on a restored member",
        edits=(
            Edit(
                HUB,
                "topic.single and start > compact_revision and",
                "topic.single and start >= compact_revision and",
            ),
        ),
        note="here the log keeps the deletion, and only the tombstone is gone",
    ),
    Entry(
        id="BZ-126",
        name="a progress notice overtakes events",
        source="etcd #15220, #17557, #20221",
        trigger="progress is asked for while a watch of the stream is behind",
        edits=(
            Edit(
                HUB,
                "        if self.unsynced:\n            return False\n        for watcher in list(self.future):\n",
                "        for watcher in list(self.future):\n",
            ),
        ),
    ),
    Entry(
        id="BZ-127",
        name="one transaction in two watch responses",
        source="etcd #17247, #15275",
        trigger="a transaction of more bytes than a batch",
        edits=(
            Edit(
                "machines/kv/events.py",
                "        if size >= bytes_max and event.main != held[-1].main:\n",
                "        if size >= bytes_max and held:\n",
            ),
        ),
    ),
)
