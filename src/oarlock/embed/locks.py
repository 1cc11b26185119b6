"""Locks and what is built like them. Each is a part of a machine, or a machine by itself:

    async with Node(Lock(), "n1", ...) as node, node.machine as held:
        write(..., token=held.token)

What a node holds is free again when the node ends, closes or is not heard of for `lease_ttl`. A lock alone cannot stop
a program that was paused while it held it: give the token to what is written to, and let that refuse smaller ones
(`oarlock.fencing`).
"""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import AsyncIterator, Awaitable
from types import TracebackType
from typing import Any, ClassVar, Generic, TypeVar, cast

from oarlock.embed.hold import Held, acquire, acquire_nowait, calls_of, hold, limit, run
from oarlock.embed.holders import LeaseLost
from oarlock.embed.lease import Lease, holder_of
from oarlock.errors import DeadlineExceeded
from oarlock.machines.objects.claims import Claim, Claims, HolderUnknown, OneAtATime
from oarlock.machines.objects.declare import BINDING, command, query, whole
from oarlock.machines.objects.machine import StateMachine

T = TypeVar("T")


class Holding:
    """One way to hold a lock: `async with`, `with` on a node for threads, or `acquire` and `Held.release`."""

    def __init__(
        self,
        claims: Claims,
        kind: str = "",
        value: Any = None,
        timeout: float | None = None,
        lease: Lease | None = None,
    ) -> None:
        self._claims = claims
        self._kind = kind
        self._value = value
        self._timeout = timeout
        self._lease = lease
        self._holds: dict[object, list[hold]] = {}  # by task
        self._held: dict[int, list[Held]] = {}  # by thread

    async def __aenter__(self) -> Held:
        holding = hold(self._claims, self._kind, self._value, self._timeout, holder_of(self._lease))
        held = await holding.__aenter__()
        self._holds.setdefault(asyncio.current_task(), []).append(holding)
        return held

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        task = asyncio.current_task()
        holding = self._holds[task].pop()
        if not self._holds[task]:
            del self._holds[task]
        return await holding.__aexit__(kind, error, trace)

    def __enter__(self) -> Held:
        asking = acquire(self._claims, self._kind, self._value, self._timeout, holder_of(self._lease))
        held = cast(Held, run(self._claims, asking))
        self._held.setdefault(threading.get_ident(), []).append(held)
        return held

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it up. Raises `LeaseLost` if it was lost meanwhile: the body could not be stopped."""
        thread = threading.get_ident()
        held = self._held[thread].pop()
        if not self._held[thread]:
            del self._held[thread]
        run(self._claims, _release_or_tell(held, kind is None))


async def _release_or_tell(held: Held, tell: bool) -> None:
    lost = not held.valid
    await held.give_up()
    if lost and tell:
        raise LeaseLost("the claim was lost while its body ran: others may have acted. Fence what it wrote")


class _Line(Claims):
    """What all locks offer."""

    def acquire(self, timeout: float | None = None, lease: Lease | None = None) -> Awaitable[Held]:
        """Wait until it is ours; gives a `Held`. Raises `DeadlineExceeded` after `timeout` seconds. With a `lease` it
        is ours as long as that lives, else as long as this node does."""
        return run(self, acquire(self, timeout=timeout, lease=holder_of(lease)))

    def try_acquire(self, lease: Lease | None = None) -> Awaitable[Held | None]:
        """A `Held`, or None if it would have to wait."""
        return run(self, acquire_nowait(self, lease=holder_of(lease)))

    def holding(self, timeout: float | None = None, lease: Lease | None = None) -> Holding:
        """A context manager with a time limit for the wait, or for what hangs on a `lease`."""
        return Holding(self, timeout=timeout, lease=lease)

    def _own_holding(self) -> Holding:
        calls_of(self)
        memory: dict[str, Any] = getattr(self, BINDING).memory
        found: Holding = memory.setdefault("holding", Holding(self))
        return found

    async def __aenter__(self) -> Held:
        return await self._own_holding().__aenter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        return await self._own_holding().__aexit__(kind, error, trace)

    def __enter__(self) -> Held:
        return self._own_holding().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._own_holding().__exit__(kind, error, trace)


class Lock(_Line, OneAtATime):
    """One at a time, in the order of asking.

        async with lock as held:       # or: with lock as held
            ...
        held = await lock.acquire(timeout=5); ...; await held.release()

    Losing it cancels the body of `async with` and raises `LeaseLost`; a `with` body cannot be stopped, so look at
    `held.valid`, and at its end `LeaseLost` is raised.
    """

    @query
    def owner(self) -> str:
        """The holder (`member/...`) that has it, empty if nobody has."""
        return self.claims[0].holder if self.claims else ""


class Semaphore(_Line):
    """At most `capacity` at a time, in the order of asking."""

    atomic_commands: ClassVar[bool] = False  # they look before they change anything

    def __init__(self, capacity: int) -> None:
        whole(capacity, f"Semaphore({capacity!r})")
        super().__init__()
        self.capacity = capacity
        self.over = 0
        """How many have it although a smaller capacity was asked for since: they keep it."""

    def granted_count(self) -> int:
        return min(max(self.capacity, self.over), len(self.claims))

    def _remove(self, gone: list[Claim]) -> bool:
        if self.over:
            tokens = {claim.token for claim in gone}
            left = sum(claim.token not in tokens for claim in self.claims[: self.granted_count()])
            self.over = left if left > self.capacity else 0
        return super()._remove(gone)

    @command
    def resize(self, capacity: int) -> None:
        """Let another number have it. Nobody who has it loses it."""
        whole(capacity, f"resize({capacity!r})")
        before = self.granted_count()
        self.capacity = capacity
        self.over = before if before > capacity else 0
        self._tell(before)


class RWLock(Claims):
    """Many readers or one writer, in the order of asking, so that writers do not starve.

    async with lock.read(): ...
    async with lock.write(timeout=5) as held: ...
    """

    def granted_count(self) -> int:
        if self.claims and self.claims[0].kind == "write":
            return 1
        readers = 0
        for claim in self.claims:
            if claim.kind == "write":
                break
            readers += 1
        return readers

    def read(self, timeout: float | None = None, lease: Lease | None = None) -> Holding:
        return Holding(self, "read", timeout=timeout, lease=lease)

    def write(self, timeout: float | None = None, lease: Lease | None = None) -> Holding:
        return Holding(self, "write", timeout=timeout, lease=lease)


class Barrier(StateMachine):
    """`parties` wait for each other; then all go on, and the next round begins."""

    atomic_commands: ClassVar[bool] = False  # they look before they change anything

    def __init__(self, parties: int) -> None:
        whole(parties, f"Barrier({parties!r})")
        self.parties = parties
        self.round = 0
        self.arrived: list[tuple[int, str]] = []  # token, holder

    @command
    def arrive(self, holder: str) -> tuple[int, int, int]:
        """Gives the round, the token and the place in it. The last to arrive ends the round."""
        if not self.holder_lives(holder):
            raise HolderUnknown(holder)
        mine = (self.round, self.context.token, len(self.arrived))
        self.arrived.append((self.context.token, holder))
        if len(self.arrived) >= self.parties:
            self.round += 1
            self.arrived = []
            self.note_change()
        return mine

    @command
    def leave(self, token: int) -> bool:
        """Wait no longer. False if the round has ended before, so that the others counted on this one."""
        before = len(self.arrived)
        self.arrived = [each for each in self.arrived if each[0] != token]
        return len(self.arrived) < before

    def holder_ended(self, holder: str) -> None:
        self.arrived = [each for each in self.arrived if each[1] != holder]
        self.note_change()

    @query
    def waiting(self) -> int:
        return len(self.arrived)

    def wait(self, timeout: float | None = None) -> Awaitable[int]:
        """Wait for the others; gives one's place in the round, from 0. Raises `DeadlineExceeded` after `timeout`
        seconds, having left again, and `LeaseLost` if this node was not heard of meanwhile."""
        return run(self, self._wait(timeout))

    async def _wait(self, timeout: float | None) -> int:
        calls = calls_of(self)
        holder = await calls.holders.holder()
        arriving = calls.background(calls.command(self, Barrier.arrive, holder.name, retry_safe=True))
        try:
            async with limit(timeout):
                number, token, place = await asyncio.shield(arriving)
                passed = await calls.until(self, None, lambda: self._passed(number, token))
        except BaseException as error:
            leaving = calls.background(self._give_up(arriving))
            if not isinstance(error, TimeoutError) or timeout is None:
                await asyncio.shield(leaving)
                raise
            left = await asyncio.shield(leaving)
            if not left:
                return int(arriving.result()[2])  # the last one came at the same moment, and counted on us
            raise DeadlineExceeded(f"the others did not come within {timeout:g} s") from None
        if not passed:
            raise LeaseLost("this node was not heard of while it waited at the barrier")
        return int(place)

    def _passed(self, number: int, token: int) -> bool | None:
        if self.round > number:
            return True
        return None if any(each[0] == token for each in self.arrived) else False

    async def _give_up(self, arriving: asyncio.Task[Any]) -> bool:
        """Wait no longer, as soon as the arrival is known. Whether the round had not ended before."""
        number, token, _ = await arriving
        calls = calls_of(self)
        left = await calls.command(self, Barrier.leave, token, retry_safe=True)
        return bool(left) or self.round <= number


class Election(_Line, OneAtATime, Generic[T]):
    """A line of candidates, each with a value that it makes known; the first one leads until it resigns or ends.

    async with election.campaign("10.0.0.1:80") as held: ...
    async for value in election.observe(): ...
    """

    atomic_commands: ClassVar[bool] = False  # they look before they change anything

    def campaign(self, value: T, timeout: float | None = None, lease: Lease | None = None) -> Holding:
        """Stand, and lead while the body runs."""
        return Holding(self, value=value, timeout=timeout, lease=lease)

    @command
    def proclaim(self, token: int, value: T) -> bool:
        """The leader with this token makes another value known. False if it does not lead (any more)."""
        if not self.claims or self.claims[0].token != token:
            return False
        self.claims[0].value = value
        self.note_change()
        return True

    @query
    def leader(self) -> Claim | None:
        """The claim that leads: its token, holder and value."""
        return self.claims[0] if self.claims else None

    async def observe(self) -> AsyncIterator[T]:
        """The value of the present leader and of every later one, as this member learns of them. Values that were
        followed by others before one could look are left out."""
        calls = calls_of(self)
        seen: tuple[int, Any] = (0, None)

        def look() -> tuple[int, Any] | None:
            now = (self.claims[0].token, self.claims[0].value) if self.claims else None
            return now if now is not None and now != seen else None

        while True:
            seen = await calls.until(self, None, look)
            yield copy.deepcopy(seen[1])
