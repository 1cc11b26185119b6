"""Reads that a member wants and cannot answer by itself: queued, and asked of the leader in one request at a time.

The leader's own side, rounds and leases, is in `core`. (diss. 6.4)
"""

from __future__ import annotations

from oarlock.raft.types import Index


class ReadQueue:
    """Read tokens of this member while it does not lead. Times are the driver's clock in ns."""

    __slots__ = (
        "_asked_at",
        "_confirmed",
        "_asked_tokens",
        "_limit",
        "_request",
        "_since",
        "_unanswered",
        "_waiting",
        "asked_confirmed",
        "asked_request",
    )

    def __init__(self, limit: int, now: int, first_request: int) -> None:
        """`first_request` differs from one process of this member to the next: an answer to a request of the process
        before, still on its way, must not pass for an answer to one of ours."""
        self._limit = limit
        self._waiting: list[int] = []
        self._asked_tokens: list[int] = []
        self._asked_at = now
        self._since = now
        self._request = first_request
        self._confirmed = False  # one of those that wait must be confirmed
        self.asked_confirmed = False
        self._unanswered = 0  # how often in a row no answer came in time
        self.asked_request = 0  # 0: nothing is under way

    def __len__(self) -> int:
        return len(self._waiting) + len(self._asked_tokens)

    def add(self, token: int, now: int, *, confirmed: bool = False) -> bool:
        """Queue one read; asked together with one that must be `confirmed`, all are. False if `reads_pending_max` wait
        already."""
        if len(self._waiting) >= self._limit:
            return False
        if not len(self):
            self._since = now
        self._waiting.append(token)
        self._confirmed = self._confirmed or confirmed
        return True

    @property
    def wants_to_ask(self) -> bool:
        return bool(self._waiting) and not self.asked_request

    def ask(self, now: int) -> int:
        """All waiting reads go under one new request number, never used before, which is returned."""
        self._request += 1
        self.asked_request = self._request
        self._asked_tokens, self._waiting = self._waiting, []
        self.asked_confirmed, self._confirmed = self._confirmed, False
        self._asked_at = now
        return self._request

    def unask(self) -> None:
        """The request may be lost, or its leader is: the reads wait again.

        They will be asked for under another number: an answer to the old one may rest on heartbeats that began before
        the leader was deposed (etcd issue 20418).
        """
        self._unanswered += bool(self.asked_request)
        self._waiting = self._asked_tokens + self._waiting
        self._confirmed = self._confirmed or self.asked_confirmed
        self.asked_confirmed = False
        self._asked_tokens = []
        self.asked_request = 0

    def answered(self, request: int, index: Index, now: int) -> list[int]:
        """The tokens that a reply answers: none if it is late, or if the leader could not say (`index` 0)."""
        if not self.asked_request or request != self.asked_request or index == 0:
            # sometimes: an answer to a read that is not waited for
            return []
        tokens, self._asked_tokens = self._asked_tokens, []
        self.asked_request = self._unanswered = 0
        self.asked_confirmed = False
        self._since = now
        return tokens

    def take_all(self) -> tuple[list[int], bool]:
        """All reads, and whether one of them must be confirmed."""
        tokens, confirmed = self._asked_tokens + self._waiting, self.asked_confirmed or self._confirmed
        self._asked_tokens, self._waiting = [], []
        self.asked_request = self._unanswered = 0
        self.asked_confirmed = self._confirmed = False
        return tokens, confirmed

    def retry_at(self, interval: int) -> int | None:
        """When an unanswered request is asked again; None if nothing is under way.

        The wait doubles each time: asking again drops the answer that is on its way, and where an answer takes longer
        than `interval` none would ever count.
        """
        return self._asked_at + (interval << self._unanswered) if self.asked_request else None

    def give_up_at(self, patience: int) -> int | None:
        """When the oldest read has waited for `patience`; None if there is none."""
        return self._since + patience if len(self) else None
