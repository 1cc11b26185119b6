"""The face for threads: the same `Node` behind blocking calls. Its event loop runs in one daemon thread of its own.

Calls may come from any number of threads; those that arrive together travel together. Ctrl-C interrupts a waiting call.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar

from oarlock.blocking import LoopThread
from oarlock.embed.node import Node as AsyncNode
from oarlock.embed.options import CLUSTER
from oarlock.embed.status import MemberStatus, NodeStatus
from oarlock.errors import DeadlineExceeded, ProposalDropped, RaftError
from oarlock.machines.objects.declare import AnyCommand, AnyQuery, Consistency, bounded, check_timeout

if TYPE_CHECKING:
    from oarlock.embed.calls import Calls
    from oarlock.embed.lease import BlockingLease
    from oarlock.transport.tls import PeerTls

M = TypeVar("M")
T = TypeVar("T")

LEADING_END_S: Final = 10.0
_log = logging.getLogger(__name__)
_NOTHING: Final = object()


class _Waiter:
    """A caller that waits for one answer. The lock is held until there is one: the cheapest one-shot event there is."""

    __slots__ = ("lock", "result")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.lock.acquire()
        self.result: object = _NOTHING

    def done(self, result: object) -> None:
        if self.result is _NOTHING:
            self.result = result
            self.lock.release()

    def wait(self, timeout: float | None, name: str) -> object:
        seconds = -1 if timeout is None else min(max(0.0, timeout), threading.TIMEOUT_MAX)
        if not self.lock.acquire(timeout=seconds):
            raise DeadlineExceeded(
                f"{name} has had no answer within {timeout:g} s; it may have been executed, or may still be"
            )
        return self.result


class SyncCalls:
    """The `Binding` of a node for threads."""

    def __init__(self, calls: Calls, thread: LoopThread, check: Callable[[], None]) -> None:
        self.calls = calls
        self._thread = thread
        self._loop = thread.loop
        self._check = check
        self._ended = False
        self._queue: deque[tuple[bytes, _Waiter]] = deque()
        self._woken = False

    def here(self) -> bool:
        return self.calls.here()

    def call_command(
        self, path: str, declared: AnyCommand, args: tuple[Any, ...], kwargs: dict[str, Any],
        timeout: float | None, retry_safe: bool,
    ) -> Any:  # fmt: skip
        self._check()
        if retry_safe:
            return self._await(lambda: self.calls.call_command(path, declared, args, kwargs, timeout, retry_safe))
        machine = self.calls.machine
        command = self.calls.encode(path, declared, args, kwargs)
        waiter = _Waiter()
        self._queue.append((command, waiter))
        if self._ended:
            self.end()
        elif not self._woken:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._drain)
            except RuntimeError:
                self.end()  # the loop is closed
        result = waiter.wait(timeout, declared.name)
        if isinstance(result, BaseException):
            raise result
        assert isinstance(result, bytes)
        return machine.decode_outcome(result)

    def end(self) -> None:
        """The loop runs no more: whoever is still in the queue was not proposed, and nobody will be."""
        self._ended = True
        while self._queue:
            with suppress(IndexError):  # another thread was quicker
                self._queue.popleft()[1].done(ProposalDropped("the node is closed; nothing was proposed"))

    def _drain(self) -> None:
        """On the loop's thread: propose everything that threads have asked for since the last time."""
        self._woken = False
        queue = self._queue
        propose = self.calls.node.propose
        while queue:
            command, waiter = queue.popleft()
            try:
                propose(command, waiter.done)
            except RaftError as error:
                waiter.done(error)

    def call_query(
        self, target: object, declared: AnyQuery, args: tuple[Any, ...], kwargs: dict[str, Any],
        timeout: float | None, consistency: Consistency | bounded,
    ) -> Any:  # fmt: skip
        self._check()
        return self._await(lambda: self.calls.call_query(target, declared, args, kwargs, timeout, consistency))

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        try:
            self._check()
        except RuntimeError:
            work.close()
            raise
        return self._thread.run(work)

    def _await(self, make: Callable[[], asyncio.Future[Any] | Coroutine[Any, Any, Any]]) -> Any:
        async def run() -> Any:
            return await make()

        return self.run(run())


class Leading:
    """What `Node.on_leader` gives its work in a thread. `token` is a fencing token, greater than all before it."""

    def __init__(self, token: int) -> None:
        self.token = token
        self._lost = threading.Event()

    @property
    def lost(self) -> bool:
        """Whether leadership has gone, or the node closes: the work must end now."""
        return self._lost.is_set()

    def wait_lost(self, timeout: float | None = None) -> bool:
        """Wait until it is lost, at most `timeout` seconds; whether it is. In place of `time.sleep`."""
        return self._lost.wait(timeout)


async def _lead_in_thread(work: Callable[[Leading], object], token: int) -> None:
    """Run blocking work in a thread of its own until it ends; told to end, it has `LEADING_END_S` to do so."""
    leading = Leading(token)
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[BaseException | None] = loop.create_future()

    def run() -> None:
        error: BaseException | None = None
        try:
            work(leading)
        except BaseException as raised:  # the outer edge of the thread: the node logs it and begins the work again
            error = raised
        try:
            loop.call_soon_threadsafe(lambda: None if ended.done() else ended.set_result(error))
        except RuntimeError:
            pass  # the node has closed in between, and its loop

    threading.Thread(target=run, name=f"oarlock leading {token}", daemon=True).start()
    try:
        error = await asyncio.shield(ended)
    except asyncio.CancelledError:
        leading._lost.set()
        await asyncio.wait({ended}, timeout=LEADING_END_S)
        if not ended.done():
            _log.warning("the leader's work has not ended within %g s of being told token=%d", LEADING_END_S, token)
        raise
    if error is not None:
        raise error


class Node(Generic[M]):
    """`oarlock.Node` for programs without an event loop: the same arguments, with `with` in place of `async with`.

        with Node(Counter(), "n1", peers=PEERS, data_dir="n1") as node:
            node.machine.add(5)

    Declare the class with `command` and `query` of `oarlock.sync`, whose calls give results and no awaitables.
    """

    def __init__(
        self,
        machine: M,
        name: str = "n1",
        *,
        peers: Mapping[str, str] | None = None,
        data_dir: str | os.PathLike[str],
        join: Sequence[str] = (),
        listen: str = "",
        cluster: str = CLUSTER,
        heartbeat: float = 0.1,
        election_timeout: float = 1.0,
        lease_reads: bool = False,
        development: bool = False,
        timeout: float = 5.0,
        lease_ttl: float = 10.0,
        snapshot_entries: int = 10_000,
        tls: PeerTls | None = None,
        discover: str = "",
    ) -> None:
        self.machine = machine
        self.name = name
        self._pid = os.getpid()
        self._node = AsyncNode(
            machine, name, peers=peers, data_dir=data_dir, join=join, listen=listen, cluster=cluster,
            heartbeat=heartbeat, election_timeout=election_timeout, lease_reads=lease_reads, development=development,
            timeout=timeout, lease_ttl=lease_ttl,
            snapshot_entries=snapshot_entries, tls=tls, discover=discover,
        )  # fmt: skip
        self._node.call_through(self._bind)
        self._thread: LoopThread | None = None
        self._calls: SyncCalls | None = None

    def _bind(self, calls: Calls) -> SyncCalls:
        assert self._thread is not None
        self._calls = SyncCalls(calls, self._thread, self._check_caller)
        return self._calls

    # -- life

    def start(self) -> Self:
        """See `oarlock.Node.start`."""
        self._check_caller()
        if self._thread is not None:
            raise RuntimeError(f"node {self.name!r} was started before: make a new one")
        self._thread = LoopThread(f"oarlock {self.name}", f"node {self.name!r}")
        try:
            self._on_loop(self._node.start())
        except BaseException:
            self.close()
            raise
        return self

    def close(self, *, timeout: float = 10.0) -> None:
        """See `oarlock.Node.aclose`. The thread has ended when this returns. Calls of other threads that are under way
        raise a `RaftError`, or `RuntimeError`."""
        if self._thread is None or self._pid != os.getpid():
            return
        if check_timeout(timeout) is None:
            raise TypeError("timeout=None: give seconds as a number")
        try:
            self._thread.end(self._node.aclose(timeout=timeout))
        finally:
            if self._calls is not None:
                self._calls.end()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        if self._thread is None:
            work.close()
            raise RuntimeError(f"node {self.name!r} is not started: use `with`, or start()")
        return self._thread.run(work)

    def _check_caller(self) -> None:
        """Raises `RuntimeError` where a blocking call would block an event loop, or never end."""
        if self._pid != os.getpid():
            raise RuntimeError(
                f"node {self.name!r} was started before this process was forked: start nodes after the fork"
            )
        if asyncio._get_running_loop() is not None:
            raise RuntimeError(
                "a blocking call inside a running event loop would stop it: use oarlock.Node and await there, or call "
                "from a thread (asyncio.to_thread)"
            )

    # -- looking and changing: as on `oarlock.Node`

    def ready(self, timeout: float | None = None) -> None:
        self._check_caller()
        self._on_loop(self._node.ready(timeout))

    @property
    def is_leader(self) -> bool:
        return self._node.is_leader

    @property
    def leader(self) -> str:
        return self._node.leader

    def status(self) -> NodeStatus:
        async def status() -> NodeStatus:
            return self._node.status()

        self._check_caller()
        return self._on_loop(status())

    def transfer(self, name: str = "") -> None:
        self._check_caller()
        self._on_loop(self._node.transfer(name))

    def add(self, address: str, *, learner: bool = False) -> int:
        self._check_caller()
        return self._on_loop(self._node.add(address, learner=learner))

    def promote(self, member: str | int) -> None:
        self._check_caller()
        self._on_loop(self._node.promote(member))

    def remove(self, member: str | int) -> None:
        self._check_caller()
        self._on_loop(self._node.remove(member))

    def members(self) -> tuple[MemberStatus, ...]:
        return self.status().members

    def on_leader(self, work: Callable[[Leading], object]) -> None:
        """See `oarlock.Node.on_leader`: `work(leading)` runs in a thread on the member that leads, on that one only.

        A thread cannot be stopped from outside: the work has to look at `leading.lost`, or wait with
        `leading.wait_lost`, and end then within `LEADING_END_S` (10 s). Fence what it writes with `leading.token`.
        """

        async def begin() -> None:
            self._node.on_leader(lambda token: _lead_in_thread(work, token))

        self._check_caller()
        self._on_loop(begin())

    def lease(self, ttl: float | None = None, *, keep_alive: bool = True) -> BlockingLease:
        """See `oarlock.Node.lease`."""
        from oarlock.embed.lease import BlockingLease

        self._check_caller()
        return BlockingLease(self._node.calls, ttl, self._on_loop, keep_alive=keep_alive)

    def __repr__(self) -> str:
        return repr(self._node)
