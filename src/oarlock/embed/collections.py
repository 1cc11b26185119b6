"""Collections that all members share. Each is a part of a machine, or a machine by itself.

Every change is one command and every look is linearizable unless a call says otherwise. What comes back is a copy.
"""

from __future__ import annotations

import asyncio
import copy
import heapq
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Hashable, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, ClassVar, Final, Generic, TypeVar, cast

from oarlock.embed.hold import calls_of, holder_unknown, limit, run
from oarlock.embed.holders import Holder, LeaseLost
from oarlock.embed.lease import Lease, holder_of
from oarlock.errors import DeadlineExceeded
from oarlock.machines.objects.claims import HolderUnknown
from oarlock.machines.objects.declare import AnyCommand, command, query, whole
from oarlock.machines.objects.machine import StateMachine

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
T = TypeVar("T")
H = TypeVar("H", bound=Hashable)

QUEUE_ITEMS_MAX: Final = 1_000_000


class QueueFull(Exception):
    """The queue holds as many items as it may."""


class ReplicatedDict(StateMachine, Generic[K, V]):
    """A dictionary."""

    atomic_commands: ClassVar[bool] = False  # they look before they change anything

    def __init__(self, initial: Mapping[K, V] | None = None) -> None:
        self.data: dict[K, V] = dict(initial or {})

    @command
    def set(self, key: K, value: V) -> None:
        self.data[key] = value
        self.note_change()

    @command
    def update(self, values: dict[K, V]) -> None:
        """Set many at once: others see all of them or none."""
        self.data.update(values)
        self.note_change()

    @command
    def setdefault(self, key: K, value: V) -> V:
        """What the key has, after giving it `value` if it had nothing."""
        self.note_change()
        return self.data.setdefault(key, value)

    @command
    def delete(self, key: K) -> bool:
        """Whether there was such a key."""
        if key not in self.data:
            return False
        del self.data[key]
        self.note_change()
        return True

    @command
    def pop(self, key: K, default: V | None = None) -> V | None:
        """Take a key out; gives what it had."""
        self.note_change()
        return self.data.pop(key, default)

    @command
    def clear(self) -> None:
        self.data.clear()
        self.note_change()

    @command
    def compare_and_set(self, key: K, expected: V | None, value: V) -> bool:
        """Set if the key has `expected` (None: does not exist, or is None)."""
        if self.data.get(key) != expected:
            return False
        self.data[key] = value
        self.note_change()
        return True

    @command
    def compare_and_delete(self, key: K, expected: V) -> bool:
        """Take the key out if it has `expected`."""
        if key not in self.data or self.data[key] != expected:
            return False
        del self.data[key]
        self.note_change()
        return True

    @command
    def increment(self, key: K, by: int = 1) -> int:
        """Add to a number, 0 if there was none; gives the sum."""
        value: int = self.data.get(key, 0) + by  # type: ignore[operator]
        self.data[key] = value  # type: ignore[assignment]
        self.note_change()
        return value

    @query
    def get(self, key: K, default: V | None = None) -> V | None:
        return self.data.get(key, default)

    @query
    def contains(self, key: K) -> bool:
        return key in self.data

    @query
    def keys(self) -> list[K]:
        return list(self.data)

    @query
    def values(self) -> list[V]:
        return list(self.data.values())

    @query
    def items(self) -> list[tuple[K, V]]:
        return list(self.data.items())

    @query
    def copy(self) -> dict[K, V]:
        return dict(self.data)

    @query
    def length(self) -> int:
        return len(self.data)

    async def changes(self) -> AsyncIterator[dict[K, V]]:
        """A copy now, and another after changes, as this member learns of them; not one for each change."""
        calls = calls_of(self)
        last: dict[K, V] | None = None
        while True:
            seen: dict[K, V] = await calls.until(self, None, lambda last=last: _other(self.data, last))
            last = seen
            yield copy.deepcopy(seen)


def _other(data: dict[K, V], last: dict[K, V] | None) -> dict[K, V] | None:
    return dict(data) if data != last or last is None else None


class ReplicatedSet(StateMachine, Generic[H]):
    """A set. Its members are kept in the order in which they were added, which is the same everywhere."""

    atomic_commands: ClassVar[bool] = False  # they look before they change anything

    def __init__(self, initial: Iterable[H] = ()) -> None:
        self.data: dict[H, None] = dict.fromkeys(initial)

    @command
    def add(self, item: H) -> bool:
        """Whether it is new."""
        new = item not in self.data
        self.data[item] = None
        return new

    @command
    def update(self, items: list[H]) -> int:
        """Add many at once; gives how many are new."""
        before = len(self.data)
        self.data.update(dict.fromkeys(items))
        return len(self.data) - before

    @command
    def discard(self, item: H) -> bool:
        """Whether it was there."""
        return self.data.pop(item, 1) is None

    @command
    def pop(self) -> H | None:
        """Take out the one added first; None if there is none."""
        if not self.data:
            return None
        first = next(iter(self.data))
        del self.data[first]
        return first

    @command
    def clear(self) -> None:
        self.data.clear()

    @query
    def contains(self, item: H) -> bool:
        return item in self.data

    @query
    def copy(self) -> set[H]:
        return set(self.data)

    @query
    def length(self) -> int:
        return len(self.data)


class ReplicatedList(StateMachine, Generic[T]):
    """A list. An index that does not exist raises `IndexError` at the caller, as a list's does."""

    atomic_commands: ClassVar[bool] = False  # they look before they change anything

    def __init__(self, initial: Iterable[T] = ()) -> None:
        self.data: list[T] = list(initial)

    @command
    def append(self, item: T) -> int:
        """Gives the length."""
        self.data.append(item)
        return len(self.data)

    @command
    def extend(self, items: list[T]) -> int:
        """Gives the length."""
        self.data.extend(items)
        return len(self.data)

    @command
    def insert(self, index: int, item: T) -> None:
        self.data.insert(index, item)

    @command
    def set(self, index: int, item: T) -> T:
        """Gives what was there before."""
        before, self.data[index] = self.data[index], item
        return before

    @command
    def pop(self, index: int = -1) -> T:
        return self.data.pop(index)

    @command
    def remove(self, item: T) -> bool:
        """Take out the first that is equal; whether there was one."""
        if item not in self.data:
            return False
        self.data.remove(item)
        return True

    @command
    def clear(self) -> None:
        self.data.clear()

    @query
    def get(self, index: int) -> T:
        return self.data[index]

    @query
    def slice(self, start: int = 0, stop: int | None = None) -> list[T]:
        return self.data[start:stop]

    @query
    def copy(self) -> list[T]:
        return list(self.data)

    @query
    def length(self) -> int:
        return len(self.data)


class ReplicatedCounter(StateMachine):
    """A number."""

    atomic_commands: ClassVar[bool] = False  # they look before they change anything

    def __init__(self, initial: int = 0) -> None:
        self.data = initial

    @command
    def add(self, by: int = 1) -> int:
        """Gives the sum."""
        self.data += by
        return self.data

    @command
    def set(self, value: int) -> int:
        """Gives the value before."""
        before, self.data = self.data, value
        return before

    @command
    def compare_and_set(self, expected: int, value: int) -> bool:
        if self.data != expected:
            return False
        self.data = value
        return True

    @query
    def value(self) -> int:
        return self.data


class _Queue(StateMachine, Generic[T]):
    """What both queues share: waiting, and tasks that come back when whoever took them has ended."""

    atomic_commands: ClassVar[bool] = False  # they look before they change anything

    def __init__(self, maxsize: int = QUEUE_ITEMS_MAX) -> None:
        whole(maxsize, f"maxsize={maxsize!r}")
        self.maxsize = maxsize
        self.taken: dict[int, tuple[str, Any]] = {}  # number -> holder, and the entry as it comes back

    def _size(self) -> int:
        raise NotImplementedError

    def _first(self) -> tuple[int, T, Any] | None:
        """Take the next entry out: its number, its item, and the entry as it would come back."""
        raise NotImplementedError

    def _back(self, entry: Any) -> None:
        raise NotImplementedError

    def _item_of(self, entry: Any) -> T:
        item: T = entry[-1]
        return item

    @command
    def poll(self) -> tuple[int, T] | None:
        """The next item with its number, which nobody else gets; None if there is none."""
        found = self._first()
        if found is None:
            return None
        self.note_change("room")
        return found[0], found[1]

    @command
    def poll_as(self) -> tuple[int, Any] | None:
        """`poll`, with the entry as `put_back` takes it in place of the item."""
        found = self._first()
        if found is None:
            return None
        self.note_change("room")
        return found[0], found[2]

    @command
    def put_back(self, entry: Any) -> None:
        """What `poll_as` gave was not wanted after all: it is the first again. May exceed `maxsize`."""
        self._back(entry)
        self.note_change("items")

    @command
    def take(self, holder: str) -> tuple[int, T] | None:
        """The next item, until `done` or `give_back`; it comes back by itself when the holder ends."""
        if not self.holder_lives(holder):
            raise HolderUnknown(holder)
        found = self._first()
        if found is None:
            return None
        self.taken[found[0]] = (holder, found[2])
        return found[0], found[1]

    @command
    def done(self, number: int) -> bool:
        """A taken item is dealt with. False if it has come back meanwhile."""
        known = self.taken.pop(number, None) is not None
        if known:
            self.note_change("room")
        return known

    @command
    def give_back(self, number: int) -> bool:
        """A taken item is for somebody else."""
        entry = self.taken.pop(number, None)
        if entry is None:
            return False
        self._back(entry[1])
        self.note_change("items")
        return True

    def holder_ended(self, holder: str) -> None:
        for number in sorted((n for n, (who, _) in self.taken.items() if who == holder), reverse=True):
            self._back(self.taken.pop(number)[1])
            self.note_change("items")

    @query
    def length(self) -> int:
        """Items that wait to be taken."""
        return self._size()

    @query
    def in_work(self) -> int:
        """Items that are taken and not done."""
        return len(self.taken)

    def _full(self) -> bool:
        return self._size() + len(self.taken) >= self.maxsize

    async def _put_wait(self, declared: AnyCommand, args: tuple[Any, ...], timeout: float | None) -> int:
        calls = calls_of(self)
        try:
            async with limit(timeout):
                while True:
                    try:
                        return int(await calls.command(self, declared, *args, retry_safe=True))
                    except QueueFull:
                        await calls.until(self, "room", lambda: None if self._full() else True)
        except TimeoutError:
            raise DeadlineExceeded(f"the queue was full for {timeout:g} s") from None

    def get(self, timeout: float | None = None) -> Awaitable[T]:
        """Wait for the next item and take it out: it is given to one caller, once. Raises `DeadlineExceeded` after
        `timeout` seconds."""
        return run(self, self._get(timeout))

    async def _get(self, timeout: float | None) -> T:
        calls = calls_of(self)
        try:
            async with limit(timeout):
                while True:
                    polling = calls.background(calls.command(self, type(self).poll_as, retry_safe=True))
                    try:
                        found: tuple[int, Any] | None = await asyncio.shield(polling)
                    except asyncio.CancelledError:
                        calls.background(self._put_back(polling))
                        raise
                    if found is not None:
                        return self._item_of(found[1])
                    await calls.until(self, "items", lambda: True if self._size() else None)
        except TimeoutError:
            raise DeadlineExceeded(f"the queue had nothing for {timeout:g} s") from None

    async def _put_back(self, polling: asyncio.Task[Any]) -> None:
        """Nobody waits for this item any more: it is the next one's."""
        found = await polling
        if found is not None:
            await calls_of(self).command(self, type(self).put_back, found[1], retry_safe=True)

    async def _take(self, holder: str) -> tuple[int, T] | None:
        """`take` for a caller that may be cancelled meanwhile: then the item goes back."""
        calls = calls_of(self)
        taking = calls.background(calls.command(self, type(self).take, holder, retry_safe=True))
        try:
            found: tuple[int, T] | None = await asyncio.shield(taking)
            return found
        except asyncio.CancelledError:

            async def give_back() -> None:
                found = await taking
                if found is not None:
                    await calls.command(self, type(self).give_back, found[0], retry_safe=True)

            calls.background(give_back())
            raise

    @asynccontextmanager
    async def task(self, timeout: float | None = None) -> AsyncIterator[T]:
        """`async with queue.task() as item`: done when the body ends, back in the queue when it raises or this node
        ends. Another node may then see the item a second time."""
        calls = calls_of(self)
        try:
            async with limit(timeout):
                while True:
                    holder = await calls.holders.holder()
                    try:
                        found = await self._take(holder.name)
                    except HolderUnknown:
                        await holder_unknown(holder, None)
                        continue
                    if found is not None:
                        break
                    await calls.until(self, "items", lambda: True if self._size() else None)
        except TimeoutError:
            raise DeadlineExceeded(f"the queue had nothing for {timeout:g} s") from None
        number, item = found
        try:
            yield item
        except BaseException:
            await asyncio.shield(calls.background(calls.command(self, type(self).give_back, number)))
            raise
        if not await calls.command(self, type(self).done, number, retry_safe=True):
            raise LeaseLost("the item came back to the queue while it was worked on: somebody else may do it again")


class ReplicatedQueue(_Queue[T]):
    """First in, first out."""

    atomic_commands: ClassVar[bool] = False  # they look before they change anything

    def __init__(self, maxsize: int = QUEUE_ITEMS_MAX) -> None:
        super().__init__(maxsize)
        self.data: deque[tuple[int, T]] = deque()

    @command
    def put(self, item: T) -> int:
        """Gives the item's number. Raises `QueueFull`."""
        if self._full():
            raise QueueFull(f"{self.maxsize} items")
        self.data.append((self.context.token, item))
        self.note_change("items")
        return self.context.token

    def put_wait(self, item: T, timeout: float | None = None) -> Awaitable[int]:
        """`put` as soon as there is room. Raises `DeadlineExceeded` after `timeout` seconds."""
        return run(self, self._put_wait(ReplicatedQueue.put, (item,), timeout))

    def _size(self) -> int:
        return len(self.data)

    def _first(self) -> tuple[int, T, Any] | None:
        if not self.data:
            return None
        number, item = self.data.popleft()
        return number, item, (number, item)

    def _back(self, entry: Any) -> None:
        self.data.appendleft(entry)


class ReplicatedPriorityQueue(_Queue[T]):
    """The lowest priority number first; equal ones in the order in which they came."""

    atomic_commands: ClassVar[bool] = False  # they look before they change anything

    def __init__(self, maxsize: int = QUEUE_ITEMS_MAX) -> None:
        super().__init__(maxsize)
        self.heap: list[tuple[float, int, T]] = []  # numbers differ, so items are never compared

    @command
    def put(self, item: T, priority: float = 0) -> int:
        """Gives the item's number. Raises `QueueFull`."""
        if not isinstance(cast("object", priority), int | float) or priority != priority:
            raise TypeError(
                f"put(priority={priority!r}): it must be a number, and not NaN"
            )  # the heap could not order it
        if self._full():
            raise QueueFull(f"{self.maxsize} items")
        heapq.heappush(self.heap, (priority, self.context.token, item))
        self.note_change("items")
        return self.context.token

    def put_wait(self, item: T, priority: float = 0, timeout: float | None = None) -> Awaitable[int]:
        """`put` as soon as there is room. Raises `DeadlineExceeded` after `timeout` seconds."""
        return run(self, self._put_wait(ReplicatedPriorityQueue.put, (item, priority), timeout))

    def _size(self) -> int:
        return len(self.heap)

    def _first(self) -> tuple[int, T, Any] | None:
        if not self.heap:
            return None
        priority, number, item = heapq.heappop(self.heap)
        return number, item, (priority, number, item)

    def _back(self, entry: Any) -> None:
        heapq.heappush(self.heap, entry)


class LeasedDict(StateMachine, Generic[K, V]):
    """A dictionary whose entries live as long as the node that made them: who is there, and where.

    await services.register("web-1", "10.0.0.1:80")
    async for now in services.changes(): ...
    """

    atomic_commands: ClassVar[bool] = False  # they look before they change anything

    def __init__(self) -> None:
        self.data: dict[K, tuple[str, V]] = {}

    @command
    def put(self, key: K, value: V, holder: str) -> bool:
        """False if another living holder has the key."""
        if not self.holder_lives(holder):
            raise HolderUnknown(holder)
        if key in self.data and self.data[key][0] != holder:
            return False
        self.data[key] = (holder, value)
        self.note_change()
        return True

    @command
    def remove(self, key: K, holder: str) -> bool:
        """Take an entry of one's own out."""
        if key not in self.data or self.data[key][0] != holder:
            return False
        del self.data[key]
        self.note_change()
        return True

    def holder_ended(self, holder: str) -> None:
        for key in [key for key, (who, _) in self.data.items() if who == holder]:
            del self.data[key]
        self.note_change()

    @query
    def get(self, key: K) -> V | None:
        return self.data[key][1] if key in self.data else None

    @query
    def copy(self) -> dict[K, V]:
        return self._plain()

    def _plain(self) -> dict[K, V]:
        return {key: value for key, (_, value) in self.data.items()}

    def register(self, key: K, value: V, lease: Lease | None = None) -> Awaitable[bool]:
        """Make or change an entry that lives as long as this node, or as `lease`. False if another one that lives has
        the key. Raises `LeaseLost` if the lease has ended."""
        return run(self, self._register(key, value, holder_of(lease)))

    async def _register(self, key: K, value: V, lease: Holder | None) -> bool:
        calls = calls_of(self)
        while True:
            holder = lease or await calls.holders.holder()
            try:
                return bool(await calls.command(self, LeasedDict.put, key, value, holder.name, retry_safe=True))
            except HolderUnknown:
                await holder_unknown(holder, lease)

    def unregister(self, key: K, lease: Lease | None = None) -> Awaitable[bool]:
        """Take an entry of this node's, or of `lease`, out; whether there was one."""
        return run(self, self._unregister(key, holder_of(lease)))

    async def _unregister(self, key: K, lease: Holder | None) -> bool:
        calls = calls_of(self)
        holder = lease or await calls.holders.holder()
        return bool(await calls.command(self, LeasedDict.remove, key, holder.name, retry_safe=True))

    async def changes(self) -> AsyncIterator[dict[K, V]]:
        """What is there now, and again after changes, as this member learns of them."""
        calls = calls_of(self)
        last: dict[K, V] | None = None
        while True:
            seen: dict[K, V] = await calls.until(self, None, lambda last=last: _other(self._plain(), last))
            last = seen
            yield copy.deepcopy(seen)
