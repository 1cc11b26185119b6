"""`Lease`: a time to live that things hang on, kept alive behind the scenes.

    async with node.lease(ttl=10) as lease:                      # or: with node.lease(ttl=10) as lease
        await node.machine.services.register("web-1", "10.0.0.1:80", lease)
        async with node.machine.lock.holding(lease=lease) as held:
            ...

What a program takes without a lease lives as long as its node. A lease has a life of its own within that: it ends when
it is revoked, when its body or its node ends, or when the group has not heard of it for `ttl` seconds, and then
everything that hangs on it is free at once, in one step of the log. Parts of a program's own hang things on one by its
`name` (`StateMachine.holder_lives` and `holder_ended`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from oarlock.embed.hold import Body
from oarlock.embed.holders import Holder, LeaseLost
from oarlock.embed.options import LEASE_TTL_MIN_S
from oarlock.machines.objects.leases import TTL_NS_MAX
from oarlock.machines.objects.machine import HOLDER_PATH

if TYPE_CHECKING:
    from oarlock.embed.calls import Calls

LEASE_TTL_MAX_S: Final = TTL_NS_MAX / 1e9

_LOST: Final = "the lease was lost while its body ran: what hung on it may be others' by now. Fence what it wrote"


class BaseLease:
    """What both faces share. Made by `Node.lease`."""

    def __init__(self, calls: Calls, ttl: float | None, *, keep_alive: bool) -> None:
        if ttl is not None and not LEASE_TTL_MIN_S <= ttl <= LEASE_TTL_MAX_S:
            raise ValueError(
                f"lease(ttl={ttl!r}): it must be between {LEASE_TTL_MIN_S:g} and {LEASE_TTL_MAX_S:g} seconds"
            )
        self._calls = calls
        self._ttl = ttl
        self._keep_alive = keep_alive
        self._holder: Holder | None = None
        self._granting = False
        self._watch: asyncio.Task[None] | None = None

    @property
    def holder(self) -> Holder:
        """Raises `RuntimeError` before it was granted."""
        if self._holder is None:
            raise RuntimeError("this lease was not granted: use `async with` (or `with`), or `grant()`")
        return self._holder

    @property
    def name(self) -> str:
        """What stands for it in the replicated state."""
        return self.holder.name

    @property
    def token(self) -> int:
        """A fencing token, greater than that of everything that was granted before."""
        return self.holder.token

    @property
    def ttl(self) -> float:
        """Seconds."""
        return self.holder.ttl_s

    @property
    def valid(self) -> bool:
        """Whether nobody else can have been given what hangs on it, as far as this member's clock can tell."""
        return self._holder is not None and self._holder.valid

    @property
    def lost(self) -> bool:
        """Whether it has ended, by whatever reason."""
        return self._holder is not None and not self._holder.valid

    @property
    def remaining(self) -> float:
        """Seconds until it ends if it is not renewed; 0.0 once it has ended."""
        return self.holder.remaining

    async def _grant(self) -> None:
        if self._granting:
            raise RuntimeError("a lease is granted once: ask the node for another")
        self._granting = True
        holders = self._calls.holders
        assert holders is not None, "the engine gives its calls their holders"
        self._holder = await holders.another(self._ttl, keep_alive=self._keep_alive)
        self._watch = self._calls.background(self._watch_group(self._holder))

    async def _watch_group(self, holder: Holder) -> None:
        """The group may know before us that it has ended."""
        gone = lambda: True if holder.name not in self._calls.machine.holders.deadlines else None  # noqa: E731
        await self._calls.until_place((HOLDER_PATH, holder.name), gone)
        await holder.aclose(tell=False)

    async def _revoke(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        if self._holder is not None:
            await self._holder.aclose(tell=not self._calls.closing)

    async def _until_lost(self) -> None:
        holder = self.holder
        if holder.lost:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        forget = holder.when_lost(lambda: None if future.done() else future.set_result(None))
        try:
            await future
        finally:
            forget()

    def __repr__(self) -> str:
        if self._holder is None:
            return f"<{type(self).__name__} not granted>"
        state = f"{self.remaining:.1f} s left" if self.valid else "ended"
        return f"<{type(self).__name__} {self.name} ttl={self.ttl:g} {state}>"


class Lease(BaseLease):
    """A lease on an asyncio node. See the module.

    The body of `async with` is cancelled when the lease is lost, and `LeaseLost` is raised in its place.
    """

    _body: Body | None = None
    _forget: Callable[[], None] | None = None

    async def grant(self) -> Self:
        """Let it begin. Raises a `RaftError`, or `LeaseLost` if the group takes no more."""
        await self._grant()
        return self

    async def renew(self) -> None:
        """Let it live for its whole time from now; needed only with `keep_alive=False`. Raises `LeaseLost`."""
        await self.holder.renew()

    async def revoke(self) -> None:
        """End it, and free everything that hangs on it. One that has ended already is no error."""
        await asyncio.shield(self._calls.background(self._revoke()))

    async def wait_lost(self) -> None:
        """Wait until it has ended, by whatever reason."""
        await self._until_lost()

    async def __aenter__(self) -> Self:
        if self._body is not None:
            raise RuntimeError("a lease has one body: ask the node for another lease")
        if self._holder is None:
            await self._grant()
        self._body = Body()
        self._forget = self.holder.when_lost(self._body.lose)
        if self.holder.lost:
            self._body.lose()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        body, forget = self._body, self._forget
        assert body is not None and forget is not None
        forget()
        if not await body.end(kind, error, _LOST):
            await self.revoke()
        return False


class BlockingLease(BaseLease):
    """A lease on a node for threads: `oarlock.sync.Lease`.

    The body of `with` cannot be stopped: look at `valid`. `LeaseLost` is raised at its end if the lease was lost.
    """

    def __init__(self, calls: Calls, ttl: float | None, run: Callable[[Any], Any], *, keep_alive: bool) -> None:
        super().__init__(calls, ttl, keep_alive=keep_alive)
        self._run = run

    def grant(self) -> Self:
        self._run(self._grant())
        return self

    def renew(self) -> None:
        self._run(self.holder.renew())

    def revoke(self) -> None:
        self._run(self._revoke())

    def wait_lost(self, timeout: float | None = None) -> bool:
        """Wait until it has ended, at most `timeout` seconds; whether it has."""

        async def wait() -> bool:
            try:
                await asyncio.wait_for(self._until_lost(), timeout)
            except TimeoutError:
                return False
            return True

        return bool(self._run(wait()))

    def __enter__(self) -> Self:
        return self if self._holder is not None else self.grant()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        lost = self.lost
        self.revoke()
        if lost and kind is None:
            raise LeaseLost(_LOST)


def holder_of(lease: BaseLease | None) -> Holder | None:
    """What a lease is below; None for none. Raises `RuntimeError` for one that was not granted."""
    return None if lease is None else lease.holder
