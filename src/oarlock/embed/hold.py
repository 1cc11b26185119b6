"""Holding a claim while a body of code runs, and ending the body when the claim is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine
from types import TracebackType
from typing import Any, Final, TypeVar, cast

from oarlock.embed.holders import Holder, LeaseLost
from oarlock.errors import DeadlineExceeded, RaftError, Stopped
from oarlock.machines.objects.claims import Claims, HolderUnknown
from oarlock.machines.objects.declare import BINDING, AnyCommand, Attached, NotAttached, check_timeout

T = TypeVar("T")

ATTEMPTS_MAX: Final = 3


def calls_of(part: object) -> Any:
    """The calls of the node that holds a part. Raises `NotAttached`."""
    found = getattr(part, BINDING, None)
    if isinstance(found, Attached) and found.binding is not None:
        return found.binding.calls
    raise NotAttached(f"this {type(part).__qualname__} belongs to no node: start one with `async with Node(...)`")


def run(part: object, work: Coroutine[Any, Any, T]) -> Awaitable[T]:
    """Work of several steps: awaitable on an asyncio node, done on one for threads."""
    found = getattr(part, BINDING, None)
    if not isinstance(found, Attached) or found.binding is None:
        work.close()
        raise NotAttached(f"this {type(part).__qualname__} belongs to no node: start one with `async with Node(...)`")
    return cast("Awaitable[T]", found.binding.run(work))


def limit(timeout: float | None) -> asyncio.Timeout:
    """`asyncio.timeout` for what a program has given. Raises `TypeError` or `ValueError`."""
    return asyncio.timeout(check_timeout(timeout))


def runs_blocking(part: object) -> bool:
    """Whether a part belongs to a node for threads."""
    binding = getattr(part, BINDING).binding
    return binding.calls is not binding


class Held:
    """A claim that was granted. `token` is its fencing token."""

    def __init__(self, claims: Claims, token: int, holder: Holder) -> None:
        self.claims = claims
        self.token = token
        self.holder = holder

    @property
    def valid(self) -> bool:
        """Whether nobody else can have been granted it by now, as far as this member's clock can tell."""
        return self.holder.valid and self.claims.state_of_claim(self.token) is True

    def release(self) -> Awaitable[None]:
        """Give the claim up. One that is lost already is no error."""
        return run(self.claims, self.give_up())

    async def give_up(self) -> None:
        """`release` from the node's own event loop."""
        calls = calls_of(self.claims)
        if calls.closing:
            return  # the holder ends as a whole
        try:
            await calls.command(self.claims, Claims.leave, self.token)
        except RaftError:
            if self.holder.valid:
                # Nobody can be told that this one claim is free, so the whole holder has to end in time.
                await self.holder.aclose(tell=False)


async def acquire(
    claims: Claims, kind: str = "", value: Any = None, timeout: float | None = None, lease: Holder | None = None
) -> Held:
    """Ask and wait. Raises `DeadlineExceeded` after `timeout` seconds, when the claim has been given up again, and
    `LeaseLost` if the `lease` that it is to hang on has ended (without one: the node's own, begun anew if need be)."""
    calls = calls_of(claims)
    try:
        async with limit(timeout):
            for _ in range(ATTEMPTS_MAX):
                holder: Holder = lease or await calls.holders.holder()
                try:
                    token = await _enter(claims, Claims.enter, holder, kind, value)
                except HolderUnknown:
                    await holder_unknown(holder, lease)
                    continue
                held = Held(claims, token, holder)
                try:
                    granted = await calls.until(claims, token, lambda token=token: _settled(claims, token))
                except BaseException:
                    await asyncio.shield(calls.background(held.give_up()))
                    raise
                if granted:
                    return held
                if holder.lost and lease is not None:
                    await holder_unknown(holder, lease)
    except TimeoutError:
        if timeout is None:
            raise  # of something below
        raise DeadlineExceeded(f"not granted within {timeout:g} s; nothing is held") from None
    raise LeaseLost("this node was not heard of while it waited: is the group overloaded, or lease_ttl too short?")


async def holder_unknown(holder: Holder, lease: Holder | None) -> None:
    """A holder has ended without our knowledge. Raises `LeaseLost` if it is a lease that somebody asked for."""
    await holder.aclose(tell=False)
    if lease is not None:
        raise LeaseLost(f"the lease {lease.name} has ended: nothing can hang on it any more")


async def acquire_nowait(claims: Claims, kind: str = "", value: Any = None, lease: Holder | None = None) -> Held | None:
    """Ask for what is free; None if it is not. Raises `LeaseLost` as `acquire` does."""
    calls = calls_of(claims)
    for _ in range(ATTEMPTS_MAX):
        holder: Holder = lease or await calls.holders.holder()
        try:
            token = await _enter(claims, Claims.enter_nowait, holder, kind, value)
        except HolderUnknown:
            await holder_unknown(holder, lease)
            continue
        return Held(claims, token, holder) if token else None
    raise LeaseLost("this node was not heard of while it asked: is the group overloaded, or lease_ttl too short?")


async def _enter(claims: Claims, declared: AnyCommand, holder: Holder, kind: str, value: Any) -> int:
    """Make a claim. If the caller is cancelled meanwhile, the claim is given up as soon as it is known."""
    calls = calls_of(claims)
    entering = calls.background(calls.command(claims, declared, holder.name, kind, value, retry_safe=True))
    try:
        token: int = await asyncio.shield(entering)
        return token
    except asyncio.CancelledError:

        async def give_up() -> None:
            token = await entering
            if token:
                await Held(claims, token, holder).give_up()

        calls.background(give_up())
        raise


def _settled(claims: Claims, token: int) -> bool | None:
    """True once a claim is granted, False if it has gone, None while it waits."""
    state = claims.state_of_claim(token)
    return True if state else None if state is False else False


class Body:
    """The body of an `async with` that must not go on once something is lost: the task that runs it is cancelled."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None, "a body runs in a task"
        self._task = task
        self._lost = False

    def lose(self) -> None:
        if not self._lost:
            self._lost = True
            self._task.cancel("the lease was lost")

    async def end(self, kind: type[BaseException] | None, error: BaseException | None, text: str) -> bool:
        """The body has ended, with that exception. Whether it was lost; raises `LeaseLost` if it did not fail else."""
        lost, self._lost = self._lost, True  # what comes from now on is our own doing
        if not lost:
            return False
        ours = self._task.uncancel() == 0
        if kind is not asyncio.CancelledError:
            try:
                await asyncio.sleep(0)  # our cancellation may still be on its way
            except asyncio.CancelledError:
                if not ours:
                    raise
        if kind is None or (kind is asyncio.CancelledError and ours):
            raise LeaseLost(text) from error
        return True


class hold:
    """`async with hold(claims) as held`: the body runs while the claim is granted. If it is lost the body is cancelled,
    and `LeaseLost` is raised in its place."""

    def __init__(
        self,
        claims: Claims,
        kind: str = "",
        value: Any = None,
        timeout: float | None = None,
        holder: Holder | None = None,
    ) -> None:
        self._claims = claims
        self._kind = kind
        self._value = value
        self._timeout = timeout
        self._holder = holder
        self._held: Held | None = None
        self._body: Body | None = None
        self._watch: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Held:
        held = await acquire(self._claims, self._kind, self._value, self._timeout, self._holder)
        self._held = held
        self._body = Body()
        self._forget = held.holder.when_lost(self._body.lose)
        self._watch = asyncio.get_running_loop().create_task(self._watch_claim(held, self._body), name="oarlock hold")
        if held.holder.lost:
            self._body.lose()
        return held

    async def _watch_claim(self, held: Held, body: Body) -> None:
        """The group may know before us: another member was told that we are gone."""
        gone = lambda: True if held.claims.state_of_claim(held.token) is None else None  # noqa: E731
        try:
            await calls_of(held.claims).until(held.claims, held.token, gone)
        except Stopped:
            return  # the holder is lost as a whole
        body.lose()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        held, body, watch = self._held, self._body, self._watch
        assert held is not None and body is not None and watch is not None
        self._forget()
        watch.cancel()
        if not await body.end(
            kind,
            error,
            "the claim was lost while its body ran: others may act by now. Fence what it wrote with the token",
        ):
            await asyncio.shield(calls_of(self._claims).background(held.give_up()))
        return False
