"""Proposals of this member that have no answer yet, in groups; and reads that wait.

A group is what one turn brought. It is *queued*, or it was *handed over* in some term: appended by this member as the
leader of that term, or passed on to that leader. The rule that makes waiting safe: a group handed over in term T is in
the log, if at all, in an entry of term T. Terms in a log never go back, so once an entry of a later term is applied
here and the group was not, it never will be, and may be handed over again.
"""

from __future__ import annotations

from collections import deque

from oarlock.raft.types import Index, NodeId, Term


class Group:
    """Commands `first` .. `first + count - 1`, encoded once as `data`. `term` 0: queued."""

    __slots__ = ("count", "data", "deadline", "first", "request", "sent_at", "term", "to")

    def __init__(self, first: int, count: int, data: bytes, deadline: int) -> None:
        self.first = first
        self.count = count
        self.data = data
        self.deadline = deadline
        self.term: Term = 0
        self.to: NodeId = 0  # the leader it was passed on to; 0: appended here
        self.request = 0
        self.sent_at = 0


class Pending:
    """All groups, by `first`. `count` and `bytes` are of all of them."""

    __slots__ = ("_by_first", "_by_request", "bytes", "count", "queue")

    def __init__(self) -> None:
        self.queue: deque[Group] = deque()
        self._by_first: dict[int, Group] = {}  # in order of arrival, hence of deadlines
        self._by_request: dict[int, Group] = {}
        self.count = 0
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._by_first)

    def add(self, group: Group) -> None:
        assert group.first not in self._by_first, f"proposals from {group.first} on were submitted twice"
        self._by_first[group.first] = group
        self.queue.append(group)
        self.count += group.count
        self.bytes += len(group.data)

    def handed_over(self, group: Group, term: Term, *, to: NodeId = 0, request: int = 0, now: int = 0) -> None:
        """`group`, just taken off the queue, is on its way in `term`."""
        group.term, group.to, group.request, group.sent_at = term, to, request, now
        if request:
            self._by_request[request] = group

    def forwarded(self) -> list[Group]:
        """The groups that were passed on to a leader."""
        return list(self._by_request.values())

    def of_request(self, request: int) -> Group | None:
        return self._by_request.get(request)

    def applied(self, first: int, term: Term) -> bool:
        """The group was applied from an entry of `term`. Returns whether anybody waits for it."""
        group = self._by_first.get(first)
        if group is None:
            return False  # given up meanwhile
        assert group.term == term, f"proposal {first} was handed over in term {group.term} and applied in {term}"
        self._remove(group)
        return True

    def _remove(self, group: Group) -> None:
        del self._by_first[group.first]
        if group.request:
            self._by_request.pop(group.request, None)
        self.count -= group.count
        self.bytes -= len(group.data)

    def drop(self, group: Group) -> None:
        """Nobody waits for it any more."""
        if group.term == 0:
            self.queue.remove(group)
        self._remove(group)

    def requeue(self, groups: list[Group]) -> None:
        """These were not and will not be executed: they go to the head of the queue, in their order."""
        for group in sorted(groups, key=lambda g: -g.first):
            if group.request:
                self._by_request.pop(group.request, None)
            group.term = group.to = group.request = 0
            self.queue.appendleft(group)

    def overtaken(self, term: Term) -> list[Group]:
        """Groups handed over in terms below `term`."""
        return [group for group in self._by_first.values() if 0 < group.term < term]

    def up_to(self, term: Term) -> list[Group]:
        """Groups handed over in terms up to `term`."""
        return [group for group in self._by_first.values() if 0 < group.term <= term]

    def all(self) -> list[Group]:
        return list(self._by_first.values())

    def oldest(self) -> Group | None:
        for group in self._by_first.values():
            return group
        return None


class Reads:
    """Read tokens: asked for an index, then waiting for the machine to reach it."""

    __slots__ = ("_asked", "_waiting")

    def __init__(self) -> None:
        self._asked: dict[int, int] = {}  # token -> deadline, in order of both
        self._waiting: list[tuple[Index, int, int]] = []  # (index, token, deadline)

    def __len__(self) -> int:
        return len(self._asked) + len(self._waiting)

    def ask(self, token: int, deadline: int) -> None:
        self._asked[token] = deadline

    def fail(self, token: int) -> bool:
        """Returns whether anybody still waited."""
        return self._asked.pop(token, None) is not None

    def ready(self, token: int, index: Index, applied: Index) -> bool:
        """An index came. Returns whether the token may be answered at once."""
        deadline = self._asked.pop(token, None)
        if deadline is None:
            return False
        if index <= applied:
            return True
        self._waiting.append((index, token, deadline))
        return False

    def applied(self, applied: Index) -> list[int]:
        """Tokens that waited for an index up to `applied`."""
        if not self._waiting:
            return []
        done = [token for index, token, _ in self._waiting if index <= applied]
        if done:
            self._waiting = [item for item in self._waiting if item[0] > applied]
        return done

    def expired(self, now: int) -> list[int]:
        tokens: list[int] = []
        for token, deadline in self._asked.items():
            if deadline > now:
                break
            tokens.append(token)
        for token in tokens:
            del self._asked[token]
        if self._waiting:
            tokens += [token for _, token, deadline in self._waiting if deadline <= now]
            self._waiting = [item for item in self._waiting if item[2] > now]
        return tokens

    def deadline(self) -> int | None:
        found: int | None = None
        for deadline in self._asked.values():
            found = deadline
            break
        for _, _, deadline in self._waiting:
            if found is None or deadline < found:
                found = deadline
        return found

    def all(self) -> list[int]:
        """Every token; none is left."""
        tokens = [*self._asked, *(token for _, token, _ in self._waiting)]
        self._asked, self._waiting = {}, []
        return tokens
