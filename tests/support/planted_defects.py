"""Defects that the simulator's own tests plant in production classes, to see them found by worlds and scopes."""

from __future__ import annotations

from typing import Any

import pytest

from oarlock.machines.kv.machine import KvMachine
from oarlock.raft import quorum
from oarlock.raft.core import Raft
from oarlock.raft.events import Send
from oarlock.raft.log import Log
from oarlock.raft.types import SnapshotMeta

Patch = pytest.MonkeyPatch


def acknowledge_before_the_sync(patch: Patch) -> None:
    """BZ-38."""
    patch.setattr(Raft, "_send_durable", lambda self, to, message, index=0: self._effects.append(Send(to, message)))


def count_one_too_many(patch: Patch) -> None:
    def value(values: Any, voters: frozenset[int]) -> int:
        ascending = sorted(values.get(voter, 0) for voter in voters)
        return ascending[len(ascending) // 2] if ascending else 0

    patch.setattr(quorum, "_majority_value", value)


def read_before_the_term_is_committed(patch: Patch) -> None:
    """BZ-56."""
    patch.setattr(Raft, "_committed_in_term", lambda self: True)


def keep_stable_on_truncation(patch: Patch) -> None:
    """BZ-32."""
    real = Log.truncate_from

    def truncate(self: Log, index: int) -> None:
        stable = self.stable_index
        real(self, index)
        self.stable_index = stable

    patch.setattr(Log, "truncate_from", truncate)


def snapshot_with_todays_configuration(patch: Patch) -> None:
    real = Raft.snapshot_meta

    def meta(self: Raft, index: int) -> SnapshotMeta:
        found = real(self, index)
        return SnapshotMeta(found.index, found.term, self.configuration)

    patch.setattr(Raft, "snapshot_meta", meta)


def delete_nothing(patch: Patch) -> None:
    real = KvMachine._delete_range

    def delete(self: Any, op: Any, writes: Any) -> Any:
        result = real(self, op, writes)
        result.deleted = min(result.deleted, 1)
        return result

    patch.setattr(KvMachine, "_delete_range", delete)
