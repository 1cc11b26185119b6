"""How calls on a program's object become proposals and reads of the node that holds it, and their answers results."""

from __future__ import annotations

import asyncio
import copy
import secrets
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

from oarlock.embed.holders import Holders
from oarlock.errors import DeadlineExceeded, Outcome, RaftError, Rejected, Stopped
from oarlock.machines.objects.declare import (
    BINDING,
    AnyCommand,
    AnyQuery,
    Attached,
    Consistency,
    bounded,
    check_consistency,
)
from oarlock.machines.objects.machine import EVERYTHING, CommandError, ObjectMachine
from oarlock.machines.objects.values import Unencodable
from oarlock.node.replica.batch import COMMAND_BYTES_MAX
from oarlock.node.replica.sessions import WINDOW_MAX, SessionExpired, SessionOpened, in_session, open_session
from oarlock.node.runtime import Node

T = TypeVar("T")

_IMMUTABLE: Final = frozenset({type(None), bool, int, float, str, bytes})
RETRY_PAUSE_S: Final = 0.05
ENVELOPE_BYTES_MAX: Final = 64
"""What a session adds to a command."""


class Calls:
    """The `Binding` of an asyncio node. Everything on the loop's thread."""

    def __init__(
        self, node: Node, machine: ObjectMachine, loop: asyncio.AbstractEventLoop, thread: int, lease_reads: bool
    ) -> None:
        self.node = node
        self.machine = machine
        self._loop = loop
        self._thread = thread
        self._lease_reads = lease_reads
        self.holders: Holders | None = None
        self.closing = False
        self._session: Session | None = None
        self._background: set[asyncio.Task[Any]] = set()
        self._watched: dict[tuple[str, object], list[asyncio.Future[None]]] = {}
        self._ended: RaftError | None = None
        machine.on_changes = self._changes
        node.halted.add_done_callback(lambda halted: self._end(f"the member has stopped: {halted.result()}"))
        self._in_step_at = float("-inf")
        """When the last read began after which this member was known to be in step."""

    def here(self) -> bool:
        return threading.get_ident() == self._thread

    @property
    def calls(self) -> Calls:
        return self

    def run(self, work: Coroutine[Any, Any, Any]) -> Coroutine[Any, Any, Any]:
        return work

    def memory_of(self, target: object) -> dict[str, Any]:
        """What a part remembers on this member only."""
        found = getattr(target, BINDING, None)
        assert isinstance(found, Attached), f"{target!r} belongs to no node"
        return found.memory

    def background(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Something that has to be brought to its end even if whoever began it has gone."""
        task = self._loop.create_task(work, name="oarlock background")
        self._background.add(task)
        task.add_done_callback(self._background_done)
        return task

    def _background_done(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled():
            task.exception()  # whoever waits for it sees it; if nobody does any more it concerns nobody

    def _end(self, text: str) -> None:
        """Who waits for a change is told that none will come."""
        if self._ended is None:
            self._ended = Stopped(text)
        watched, self._watched = self._watched, {}
        for futures in watched.values():
            for future in futures:
                if not future.done():
                    future.set_exception(Stopped(text))

    @property
    def over(self) -> bool:
        """Whether the member answers no more calls: there is no point in asking again."""
        return self.node.stopping or self.node.halted.done()

    async def aclose(self) -> bool:
        """End what runs in the background. False if the group did not answer, so that nothing else will end either."""
        self.closing = True
        self._end("the node was closed while this waited")
        for task in list(self._background):
            task.cancel()
        if self._background:
            await asyncio.wait(self._background)
        answered = self.holders is None or await self.holders.aclose()
        if self._session is not None:
            await self._session.aclose()
        return answered

    # -- commands

    def call_command(
        self, path: str, declared: AnyCommand, args: tuple[Any, ...], kwargs: dict[str, Any],
        timeout: float | None, retry_safe: bool,
    ) -> asyncio.Future[Any] | Coroutine[Any, Any, Any]:  # fmt: skip
        command = self.encode(path, declared, args, kwargs)
        if retry_safe:
            return self._limited(self._once(command), timeout, declared.name)
        future = self.propose(command)
        return future if timeout is None else self._limited(future, timeout, declared.name)

    def encode(self, path: str, declared: AnyCommand, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
        """A command for the log. Raises `Unencodable` for one that cannot be, or is too large."""
        command = self.machine.encode_call(path, declared, args, kwargs)
        if len(command) > COMMAND_BYTES_MAX - ENVELOPE_BYTES_MAX:
            raise Unencodable(
                f"{declared.name} is {len(command)} bytes with its arguments, and a command has at most "
                f"{COMMAND_BYTES_MAX - ENVELOPE_BYTES_MAX} (COMMAND_BYTES_MAX): send it in several calls"
            )
        return command

    async def command(self, target: object, declared: AnyCommand, *args: Any, retry_safe: bool = False) -> Any:
        """A command of a part, from its own methods that take several steps."""
        return await self.call_command(attached_path(target), declared, args, {}, None, retry_safe)

    def propose(self, command: bytes, enveloped: bool = False) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        decode = self.machine.decode_outcome

        def done(result: object) -> None:
            if future.done():
                return
            if type(result) is bytes:
                try:
                    future.set_result(decode(result))
                except StopIteration as error:  # a future cannot carry it
                    future.set_exception(CommandError("StopIteration", str(error)))
                except Exception as error:  # what the command raised is raised at its caller
                    future.set_exception(error)
            elif isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)

        try:
            self.node.propose(command, done, enveloped=enveloped)
        except RaftError as error:
            future.set_exception(error)
        return future

    async def _limited(self, call: asyncio.Future[Any] | Coroutine[Any, Any, Any], timeout: float | None,
                       name: str) -> Any:  # fmt: skip
        try:
            async with asyncio.timeout(timeout):
                return await call
        except TimeoutError:
            raise DeadlineExceeded(
                f"{name} has had no answer within {timeout:g} s; it may have been executed, or may still be"
            ) from None

    async def _once(self, command: bytes) -> Any:
        """Send a command until its answer is known. The session's number makes sure that it is executed once."""
        if self._session is None:
            self._session = Session(self)
        session = self._session
        async with session.place() as place:
            unknown: RaftError | None = None
            while True:
                number = await session.open()
                try:
                    return await self.propose(in_session(number, place.sequence, session.lowest, command), True)
                except SessionExpired as error:
                    session.expired(number)
                    if unknown is not None:
                        raise unknown from error  # what an earlier attempt did is not known any more
                    place.renew()
                except RaftError as error:
                    if isinstance(error, Rejected | CommandError) or error.outcome is Outcome.EXECUTED:
                        raise
                    if error.outcome is Outcome.UNKNOWN:
                        unknown = error
                    if self.over:
                        raise unknown or error  # noqa: B904 - one of the two is `error`
                    await asyncio.sleep(RETRY_PAUSE_S)

    # -- waiting for changes

    async def until(self, target: object, key: object, look: Callable[[], T | None]) -> T:
        """Wait on this member until `look` gives something. It is asked again whenever the part notes a change of
        `key`, so it must look at nothing else."""
        return await self.until_place((attached_path(target), key), look)

    async def until_place(self, place: tuple[str, object], look: Callable[[], T | None]) -> T:
        """`until` for a place of the machine's own, as `HOLDER_PATH` and a holder."""
        while (found := look()) is None:
            if self._ended is not None:
                raise Stopped(str(self._ended))
            future: asyncio.Future[None] = self._loop.create_future()
            self._watched.setdefault(place, []).append(future)
            try:
                await future
            finally:
                waiting = self._watched.get(place)
                if waiting is not None and future in waiting:
                    waiting.remove(future)
                    if not waiting:
                        del self._watched[place]
        return found

    def _changes(self) -> None:
        if not self._watched:
            return
        changed = self.machine.changed
        for place in list(self._watched) if EVERYTHING in changed else list(changed):
            for future in self._watched.pop(place, ()):
                if not future.done():
                    future.set_result(None)

    # -- queries

    def call_query(
        self, target: object, declared: AnyQuery, args: tuple[Any, ...], kwargs: dict[str, Any],
        timeout: float | None, consistency: Consistency | bounded,
    ) -> asyncio.Future[Any] | Coroutine[Any, Any, Any]:  # fmt: skip
        check_consistency(consistency)
        if consistency == "lease" and not self._lease_reads:
            raise ValueError('consistency="lease" needs nodes that were made with lease_reads=True, all of them')
        future: asyncio.Future[Any] = self._loop.create_future()

        def look() -> None:
            if future.done():
                return
            try:
                future.set_result(_own_copy(declared.function(target, *args, **kwargs)))
            except StopIteration as error:
                future.set_exception(CommandError("StopIteration", str(error)))
            except Exception as error:  # what the query raised is raised at its caller
                future.set_exception(error)

        asked_at = self._loop.time()
        recent = isinstance(consistency, bounded) and asked_at - self._in_step_at <= consistency.max_age
        if consistency == "local" or recent:
            look()
        else:
            self._barrier(future, look, asked_at, confirmed=self._lease_reads and consistency == "linearizable")
        return future if timeout is None else self._limited(future, timeout, declared.name)

    def _barrier(self, future: asyncio.Future[Any], look: Callable[[], None], asked_at: float, confirmed: bool) -> None:
        def done(error: RaftError | None) -> None:
            if error is None:
                self._in_step_at = max(self._in_step_at, asked_at)
                look()
            elif not future.done():
                future.set_exception(error)

        try:
            self.node.read_barrier(done, confirmed=confirmed)
        except RaftError as error:
            future.set_exception(error)


def _own_copy(value: Any) -> Any:
    """A result that does not share anything with the state."""
    return value if type(value) in _IMMUTABLE else copy.deepcopy(value)


def attached_path(target: object) -> str:
    """Where a part stands in its machine."""
    found = getattr(target, BINDING, None)
    assert isinstance(found, Attached), f"{target!r} belongs to no node"
    return found.path


class Session:
    """The client session of one node (diss. 6.3): opened when it is first needed, opened again when it has expired."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._number = 0
        self._opening: asyncio.Task[int] | None = None
        self._next = 1
        self._outstanding: dict[int, None] = {}  # ascending
        self._waiting: deque[asyncio.Future[None]] = deque()

    def place(self) -> Place:
        return Place(self)

    @property
    def lowest(self) -> int:
        return next(iter(self._outstanding), self._next)

    async def open(self) -> int:
        """The session's number. Concurrent callers share one opening."""
        if self._number:
            return self._number
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_task(self._open(), name="oarlock session")
        opening = self._opening
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if opening.cancelled() and (task is None or not task.cancelling()):
                raise Stopped("the node was closed before its session was open") from None
            raise
        finally:
            if opening.done() and self._opening is opening:
                self._opening = None

    async def _open(self) -> int:
        nonce = secrets.randbits(63)
        while True:
            try:
                opened = await self._calls.propose(open_session(nonce), True)
            except RaftError as error:
                if error.outcome is Outcome.EXECUTED or self._calls.over:
                    raise
                await asyncio.sleep(RETRY_PAUSE_S)
                continue
            assert isinstance(opened, SessionOpened)
            self._number = opened.session
            return self._number

    async def take(self) -> int:
        """The next sequence number, once it is within the window of the oldest that still waits."""
        while self._next - self.lowest >= WINDOW_MAX:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn in self._waiting:
                    self._waiting.remove(turn)
                else:
                    self._wake(1)  # it was ours, and is the next one's
                raise
        return self.take_nowait()

    def take_nowait(self) -> int:
        sequence = self._next
        self._next += 1
        self._outstanding[sequence] = None
        return sequence

    def give_back(self, sequence: int) -> None:
        """The answer of a command is known, or nobody waits for it any more."""
        self._outstanding.pop(sequence, None)
        self._wake(WINDOW_MAX - (self._next - self.lowest))

    def _wake(self, count: int) -> None:
        for _ in range(min(count, len(self._waiting))):
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)

    async def aclose(self) -> None:
        if self._opening is not None:
            self._opening.cancel()
            await asyncio.wait({self._opening})

    def expired(self, number: int) -> None:
        """A session is gone: the next command opens another. Sequence numbers go on."""
        if self._number == number:
            self._number = 0


class Place:
    """One sequence number of a session, for as long as its answer is waited for."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.sequence = 0

    async def __aenter__(self) -> Place:
        self.sequence = await self._session.take()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._session.give_back(self.sequence)

    def renew(self) -> None:
        """Under a new session: take the next number, the old one was never executed."""
        self._session.give_back(self.sequence)
        self.sequence = self._session.take_nowait()
