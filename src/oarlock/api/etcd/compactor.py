"""Compaction by the clock, with etcd's two rules. Every member knows which revision was when; the leader compacts."""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass
from typing import Final

from oarlock.api.etcd.context import ServiceContext
from oarlock.errors import RaftError
from oarlock.machines.kv.commands import CompactResult
from oarlock.machines.kv.commands_alarm import AutoCompact

log = logging.getLogger(__name__)

HOUR_S: Final = 3600.0
REVISION_INTERVAL_S: Final = 300.0
SAMPLES_OF_INTERVAL: Final = 10


@dataclass(frozen=True, slots=True)
class AutoCompaction:
    """`periodic`: history of `retention_s` seconds is kept, and compacted as often, at least once an hour. `revision`:
    `revisions` revisions are kept, every five minutes."""

    mode: str = "periodic"
    retention_s: float = 0.0
    revisions: int = 0

    @property
    def on(self) -> bool:
        return self.retention_s > 0 if self.mode == "periodic" else self.revisions > 0


class Compactor:
    """Called about once a second with a monotonic clock."""

    def __init__(self, context: ServiceContext, rule: AutoCompaction) -> None:
        self._context = context
        self._rule = rule
        self._interval_s = min(rule.retention_s, HOUR_S) if rule.mode == "periodic" else REVISION_INTERVAL_S
        self._samples: deque[tuple[float, int]] = deque()  # when, and the revision then
        self._due: float | None = None
        self._asked = False

    def tick(self, now: float) -> None:
        if not self._rule.on:
            return
        if self._due is None:
            self._due = now + self._interval_s
        self._sample(now)
        if now < self._due or self._asked:
            return
        backend = self._context.backend
        if backend.status().leader != backend.member_id:
            return
        revision = self._revision(now)
        if revision <= max(self._context.kv.compact_revision, 0):
            self._due = now + self._interval_s
            return
        self._asked = True
        try:
            backend.propose(self._context.encode(AutoCompact(revision)), lambda result: self._done(now, result))
        except RaftError as error:
            self._done(now, error)

    def _sample(self, now: float) -> None:
        if self._rule.mode != "periodic":
            return
        samples = self._samples
        if not samples or now >= samples[-1][0] + self._interval_s / SAMPLES_OF_INTERVAL:
            samples.append((now, self._context.kv.revision))
        while len(samples) > 1 and samples[1][0] <= now - self._rule.retention_s:
            samples.popleft()  # a later one is old enough

    def _revision(self, now: float) -> int:
        """Up to which revision nothing has to be kept; 0 for none."""
        if self._rule.mode != "periodic":
            return self._context.kv.revision - self._rule.revisions
        at, revision = self._samples[0]
        return revision if at <= now - self._rule.retention_s else 0

    def _done(self, now: float, result: object) -> None:
        self._asked = False
        if isinstance(result, CompactResult):
            assert self._due is not None
            self._due = now + self._interval_s
            log.info("compacted mode=%s revision=%d", self._rule.mode, self._context.kv.compact_revision)
        elif isinstance(result, RaftError):
            log.info('not compacted, to be tried again error="%s"', result)
