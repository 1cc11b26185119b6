"""The life of this node as a holder of locks and the like (`machines.objects.leases`), and the leader's clock for all.

A node renews its lease three times within the time to live that it was given. If it cannot, it counts the lease as lost
by its own clock before the group can: from then on it must not act as a holder any more.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from oarlock.errors import RaftError
from oarlock.machines.objects.leases import HOLDERS_MAX
from oarlock.machines.objects.machine import END, RENEW, TICK, ObjectMachine

if TYPE_CHECKING:
    from oarlock.node.runtime import Node

TICK_S: Final = 0.5
RENEWALS: Final = 3  # within one time to live
CLOCK_MARGIN: Final = 0.02  # how far the rates of two members' clocks may differ
RETRY_S: Final = 0.05
END_TIMEOUT_S: Final = 1.0


class LeaseLost(Exception):
    """This node was not heard of in time, or could not know that it was: what it held may belong to others by now.

    `retry`: safe to begin again from the start, with a new claim and a new fencing token.
    """


class Holder:
    """One lease of this node. `name` stands in the replicated state, `token` is a fencing token once it has begun."""

    def __init__(self, calls: Any, name: str, ttl_s: float, *, keep_alive: bool = True) -> None:
        self._calls = calls
        self._loop = asyncio.get_running_loop()
        self.name = name
        self.ttl_s = ttl_s
        self.token = 0
        self._keep_alive = keep_alive
        self.valid_until = float("-inf")
        """On the loop's clock: until then nobody else can be given what this holder has."""

        self.lost = False
        self._on_lost: dict[int, Callable[[], None]] = {}
        self._next = 0
        self._task: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Make the holder known. Raises a `RaftError` if that could not be done."""
        await self._renew(begin=True)
        if self.lost:
            raise LeaseLost(f"the group takes no more holders (HOLDERS_MAX is {HOLDERS_MAX}): {self.name} was refused")
        self._task = asyncio.get_running_loop().create_task(self._keep(), name=f"oarlock holder {self.name}")

    def when_lost(self, call: Callable[[], None]) -> Callable[[], None]:
        """Call `call` once when the lease is lost; gives a function that takes this back."""
        self._next += 1
        number = self._next
        self._on_lost[number] = call

        def forget() -> None:
            self._on_lost.pop(number, None)

        return forget

    @property
    def valid(self) -> bool:
        return not self.lost and self._loop.time() < self.valid_until  # from any thread

    @property
    def remaining(self) -> float:
        """Seconds until it counts itself as lost unless it is renewed."""
        return max(0.0, self.valid_until - self._loop.time()) if not self.lost else 0.0

    async def renew(self) -> None:
        """Let it live for its whole time from now. Raises `LeaseLost` if it has ended, or a `RaftError`."""
        if not self.lost:
            await self._renew()
        if self.lost:
            raise LeaseLost(f"{self.name} has ended: begin anew, with a new fencing token")

    async def _renew(self, *, begin: bool = False) -> None:
        sent_at = self._loop.time()
        encode = self._calls.machine.codec.encode
        known = await self._calls.propose(encode([RENEW, [self.name, round(self.ttl_s * 1e9), begin]]))
        if known:
            if begin:
                self.token = int(known)
            self.valid_until = max(self.valid_until, sent_at + self.ttl_s * (1 - CLOCK_MARGIN))
        else:
            self._lose()

    async def _keep(self) -> None:
        try:
            await self._keep_until_lost()
        except asyncio.CancelledError:
            raise  # `aclose` knows what to do
        except BaseException:
            self._lose()  # whatever it was, nobody renews it any more
            raise

    async def _keep_until_lost(self) -> None:
        loop = self._loop
        next_at = loop.time() + self.ttl_s / RENEWALS if self._keep_alive else math.inf
        while not self.lost:
            await asyncio.sleep(max(0.0, min(next_at, self.valid_until) - loop.time()))
            if loop.time() >= self.valid_until:
                self._lose()
                return
            if not self._keep_alive:
                continue  # somebody renewed it
            try:
                async with asyncio.timeout_at(self.valid_until):
                    await self._renew()
                next_at = loop.time() + self.ttl_s / RENEWALS
            except TimeoutError:
                self._lose()
            except RaftError:
                next_at = loop.time() + RETRY_S

    def _lose(self) -> None:
        if self.lost:
            return
        self.lost = True
        calls, self._on_lost = list(self._on_lost.values()), {}
        for call in calls:
            call()

    async def aclose(self, *, tell: bool) -> bool:
        """Stop; with `tell` the group learns at once that this holder has ended. False if it could not be told."""
        told = not self.lost
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        if tell and not self.lost:
            try:
                async with asyncio.timeout(END_TIMEOUT_S):
                    await self._calls.propose(self._calls.machine.codec.encode([END, [self.name]]))
            except (RaftError, TimeoutError):
                told = False  # the lease ends by itself
        self._lose()
        return told


class Holders:
    """This node's holder, made when it is first needed and again after it was lost."""

    def __init__(self, calls: Any, node_name: str, ttl_s: float) -> None:
        self._calls = calls
        self._node_name = node_name
        self._ttl_s = ttl_s
        self._holder: Holder | None = None
        self._beginning: asyncio.Lock = asyncio.Lock()
        self._others: dict[str, Holder] = {}

    async def holder(self) -> Holder:
        async with self._beginning:
            if self._holder is None or self._holder.lost:
                holder = Holder(self._calls, self._new_name(), self._ttl_s)
                await holder.begin()
                self._holder = holder
            return self._holder

    def _new_name(self) -> str:
        return f"{self._node_name}/{secrets.token_hex(8)}"

    async def another(self, ttl_s: float | None, *, keep_alive: bool) -> Holder:
        """A holder with a life of its own, within this node's. Raises as `Holder.begin`."""
        holder = Holder(self._calls, self._new_name(), self._ttl_s if ttl_s is None else ttl_s, keep_alive=keep_alive)
        await holder.begin()
        self._others[holder.name] = holder

        def forget() -> None:
            self._others.pop(holder.name, None)

        holder.when_lost(forget)
        return holder

    async def aclose(self) -> bool:
        """End all holders. False if the group could not be told: it has no majority, or none that can be reached."""
        holders = [*self._others.values(), *([self._holder] if self._holder is not None else [])]
        return all(await asyncio.gather(*(holder.aclose(tell=True) for holder in holders)))


async def tick(node: Node, machine: ObjectMachine) -> None:
    """While this member leads and there are holders, let their clock advance. Runs until it is cancelled."""
    loop = asyncio.get_running_loop()
    raft = node.member.raft
    measured: tuple[int, float] = (0, 0.0)  # term, and the moment up to which it was told
    while True:
        await asyncio.sleep(TICK_S)
        if not raft.is_leader or not machine.holders.deadlines:
            measured = (0, 0.0)
            continue
        now = loop.time()
        term = raft.current_term
        if measured[0] == term:
            command = machine.codec.encode([TICK, [term, int((now - measured[1]) * 1e9)]])
            try:
                node.propose(command, lambda result: None)
            except RaftError:
                continue  # too much load: the next tick says more
        measured = (term, now)
