"""A leader's memory of proposals that other members passed on to it, so that none is appended twice.

A `Propose` may be repeated by the network or by its sender, and may arrive after this member has ceased to lead. The
sender relies on two statements: what it forwarded to the leader of term T is in the log, if at all, in entries of term
T, once; and a refusal means that nothing of it was or will be appended. (docs/explanation/life-of-a-write.md)
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from oarlock.raft.types import NodeId, Term

REQUESTS_REMEMBERED_MAX: Final = 8192  # of one sender in one term; older ones are taken for repetitions
SENDERS_REMEMBERED_MAX: Final = 1024  # lives of processes in one term; others are not answered


class Verdict(Enum):
    """What to do with a `Propose`."""

    NEW = "new"  # append it, or refuse it: it is remembered from now on
    REFUSE = "refuse"  # it was never appended and never will be
    SILENT = "silent"  # it was taken before, or may have been: any answer could be a lie


class _Window:
    __slots__ = ("floor", "refused", "seen")

    def __init__(self) -> None:
        self.floor = 0  # requests up to here count as seen
        self.seen: set[int] = set()
        self.refused: set[int] = set()

    def add(self, request: int) -> None:
        self.seen.add(request)
        if len(self.seen) > REQUESTS_REMEMBERED_MAX:
            ordered = sorted(self.seen)
            cut = len(ordered) // 2
            self.floor = ordered[cut - 1]
            self.seen = set(ordered[cut:])
            self.refused = {r for r in self.refused if r > self.floor}


class ForwardedProposals:
    """What the leader of `term` has taken from others. `born` is the term at which this process found itself."""

    def __init__(self, born: Term) -> None:
        self._born = born
        self._term: Term = 0  # the last one that we led
        self._windows: dict[tuple[NodeId, int], _Window] = {}

    def lead(self, term: Term) -> None:
        """This member leads in `term`."""
        if term != self._term:
            assert term > self._term, f"led {self._term}, now {term}"
            self._term = term
            self._windows = {}

    def judge(self, term: Term, sender: NodeId, boot: int, request: int, *, leads: bool, current_term: Term) -> Verdict:
        """Look at one `Propose` of `term`. NEW is answered only if `leads` and `term` is the present one."""
        if term > current_term:
            # sometimes: a proposal is passed on for a later term
            return Verdict.SILENT  # its sender knows a term that we have not seen: our leadership, if any, is over
        if term != self._term:
            # Never led by this process. If it is over, and began after our start, no earlier process led it either.
            return Verdict.REFUSE if max(self._born, self._term) < term < current_term else Verdict.SILENT
        window = self._windows.get((sender, boot))
        if window is None:
            if len(self._windows) >= SENDERS_REMEMBERED_MAX:
                return Verdict.SILENT
            window = self._windows[sender, boot] = _Window()
        if request in window.refused:
            # sometimes: a refused proposal comes again
            return Verdict.REFUSE
        if request <= window.floor or request in window.seen:
            # sometimes: a taken proposal comes again
            return Verdict.SILENT
        window.add(request)
        if leads and term == current_term:
            return Verdict.NEW
        window.refused.add(request)
        return Verdict.REFUSE

    def refused(self, sender: NodeId, boot: int, request: int) -> None:
        """A NEW one was not appended after all."""
        window = self._windows.get((sender, boot))
        if window is not None and request > window.floor:
            window.refused.add(request)
