"""The auditor: members compare their states through the log, and one that differs is put into quarantine.
(docs/explanation/alarms.md)

The leader marks a place in the log every `interval_ns` in which the state changed. Every member reports the digest that
its state has there; the machine compares them, alike on every member, and names whoever differs from a majority.
"""

from __future__ import annotations

from typing import Final

from oarlock.machines.base import AuditMachine
from oarlock.raft.types import NodeId, Term

NEVER: Final = 2**63 - 1


class Auditor:
    """One member's side. `interval_ns` 0: no marks are made; those of other leaders are answered."""

    def __init__(self, machine: AuditMachine, node: NodeId, interval_ns: int, now: int) -> None:
        self.quarantined = False
        """Whether this member's state differs from what a majority has."""
        self._machine = machine
        self._node = node
        self._interval_ns = interval_ns
        self._mark_at = now + interval_ns
        self._marked: bytes | None = None  # the digest at our last mark

    def next_deadline(self, leads: bool) -> int:
        """When `mark` has something to say; `leads`: it will be asked."""
        if not leads or not self._interval_ns or self._machine.hash() == self._marked:
            return NEVER
        return self._mark_at

    def mark(self, term: Term, members: int, now: int) -> bytes | None:
        """For the leader: the command that begins a comparison, if it is time for one."""
        if not self._interval_ns or now < self._mark_at:
            return None
        digest = self._machine.hash()
        if digest == self._marked:
            return None
        self._marked = digest
        self._mark_at = now + self._interval_ns
        if members < 2:
            return None  # nobody to compare with
        return self._machine.audit_mark_command(term, members)

    def report(self) -> bytes | None:
        """The command that answers the last mark, once."""
        found = self._machine.alarms.reportable
        if found is None:
            return None
        self._machine.alarms.reportable = None
        return self._machine.audit_report_command(self._node, *found)

    def look(self) -> bool:
        """Whether this member has just been put into quarantine or let out of it."""
        quarantined = self._machine.alarms.quarantined(self._node)
        if quarantined == self.quarantined:
            return False
        self.quarantined = quarantined
        return True
