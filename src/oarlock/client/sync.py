"""The client for threads: the same calls, blocking. Its event loop runs in one daemon thread of its own.

with Client("127.0.0.1:2379") as client:
    client.put("greeting", "hello")
    for event in client.watch("greeting"): ...
"""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from oarlock.blocking import LoopThread
from oarlock.client import client as asynchronous
from oarlock.client.client import TRANSACT_ATTEMPTS
from oarlock.client.lease import Lease as AsyncLease
from oarlock.client.model import (
    Condition,
    Delete,
    Deleted,
    Event,
    Get,
    KeyValue,
    Page,
    Put,
    Text,
    Txn,
    TxnResult,
    raw,
)
from oarlock.client.recipes import Leadership, Lock
from oarlock.client.watch import Watch as AsyncWatch

T = TypeVar("T")


class Held(Generic[T]):
    """A context manager of the asynchronous client, entered and left from a thread.

    A lease that is lost cannot stop a thread: `valid` of what is held says so, and leaving raises `LeaseExpired`.
    """

    def __init__(self, client: Client, manager: AbstractAsyncContextManager[T, Any]) -> None:
        self._client = client
        self._manager = manager
        self._left: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None

    def __enter__(self) -> T:
        async def begin() -> T:
            """The whole life of the manager is one task, as its cancellation needs it to be."""
            if self._task is not None:
                raise RuntimeError("it is held, or was: make another for each `with`")
            loop = asyncio.get_running_loop()
            entered: asyncio.Future[T] = loop.create_future()
            self._left = loop.create_future()
            self._task = task = loop.create_task(self._live(entered, self._left))
            try:
                return await asyncio.shield(entered)
            except asyncio.CancelledError:
                entered.cancel()
                task.cancel()  # out of the line, and not into what nobody would leave
                await asyncio.gather(task, return_exceptions=True)
                raise

        return self._client.run(begin())

    async def _live(self, entered: asyncio.Future[T], left: asyncio.Future[None]) -> None:
        try:
            async with self._manager as value:
                if not entered.done():
                    entered.set_result(value)
                    await left
        except Exception as error:
            if entered.done():
                raise
            entered.set_exception(error)
        finally:
            entered.cancel()  # if it did not come so far

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async def end() -> None:
            assert self._left is not None and self._task is not None
            if not self._left.done():
                self._left.set_result(None)
            await asyncio.shield(self._task)

        self._client.run(end())


class Watch:
    """An iterator of `Event`s that waits for the next one. `close`, or leaving `with`, ends it from any thread."""

    def __init__(self, client: Client, watch: AsyncWatch) -> None:
        self._client = client
        self._watch = watch

    @property
    def revision(self) -> int:
        return self._watch.revision

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Event:
        async def following() -> Event | None:
            return await anext(self._watch, None)

        event = self._client.run(following())
        if event is None:
            raise StopIteration
        return event

    def __enter__(self) -> Self:
        self._client.run(self._watch.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if not self._client.closed:
            self._client.run(self._watch.aclose())


class Client:
    """See `oarlock.client.Client`. Safe from many threads."""

    def __init__(
        self,
        endpoints: Sequence[str] | str = "127.0.0.1:2379",
        *,
        user: str = "",
        password: str = "",
        tls: ssl.SSLContext | None = None,
        timeout: float = 5.0,
        attempt_timeout: float = 2.0,
        connect_timeout: float = 2.0,
        keepalive: float = 10.0,
        keepalive_timeout: float = 5.0,
    ) -> None:
        self._pid = os.getpid()
        self._client = asynchronous.Client(
            endpoints, user=user, password=password, tls=tls, timeout=timeout, attempt_timeout=attempt_timeout,
            connect_timeout=connect_timeout, keepalive=keepalive, keepalive_timeout=keepalive_timeout,
        )  # fmt: skip
        self._thread = LoopThread("oarlock client", "the client")

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine of the asynchronous client and wait for it. Raises `RuntimeError` once the client is
        closed, also if that happens meanwhile."""
        if asyncio._get_running_loop() is not None:
            work.close()
            raise RuntimeError(
                "a blocking call inside a running event loop would stop it: use oarlock.client.Client and await there"
            )
        if os.getpid() != self._pid:
            work.close()
            raise RuntimeError("the client was made before this process was forked: make one in each process")
        return self._thread.run(work)

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._thread.ended

    def close(self) -> None:
        """Give back what is held, close the connection and end the thread. Calls of other threads that are under way
        raise `RuntimeError`. May be called again."""
        self._thread.end(self._client.aclose(), cancel_first=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- keys and values

    def get(
        self, key: Text, *, revision: int = 0, serializable: bool = False, timeout: float | None = None
    ) -> KeyValue | None:
        return self.run(self._client.get(key, revision=revision, serializable=serializable, timeout=timeout))

    def range(
        self, key: Text = b"", *, prefix: bool = False, range_end: Text = b"", limit: int = 0, revision: int = 0,
        sort_by: str = "key", descending: bool = False, keys_only: bool = False, count_only: bool = False,
        serializable: bool = False, timeout: float | None = None,
    ) -> Page:  # fmt: skip
        return self.run(
            self._client.range(
                key, prefix=prefix, range_end=range_end, limit=limit, revision=revision, sort_by=sort_by,
                descending=descending, keys_only=keys_only, count_only=count_only, serializable=serializable,
                timeout=timeout,
            )
        )  # fmt: skip

    def scan(self, prefix: Text = b"", *, page_size: int = 1000, revision: int = 0) -> Iterator[KeyValue]:
        pages = self._client.scan(prefix, page_size=page_size, revision=revision)

        async def following() -> KeyValue | None:
            return await anext(pages, None)

        while (item := self.run(following())) is not None:
            yield item

    def put(
        self, key: Text, value: Text, *, lease: int | AsyncLease = 0, previous: bool = False,
        timeout: float | None = None,
    ) -> KeyValue | None:  # fmt: skip
        return self.run(self._client.put(key, value, lease=lease, previous=previous, timeout=timeout))

    def delete(
        self, key: Text, *, prefix: bool = False, range_end: Text = b"", previous: bool = False,
        timeout: float | None = None,
    ) -> Deleted:  # fmt: skip
        return self.run(
            self._client.delete(key, prefix=prefix, range_end=range_end, previous=previous, timeout=timeout)
        )

    def txn(
        self, txn: Txn | None = None, *, when: Sequence[Condition] = (),
        then: Sequence[Put | Get | Delete | Txn] = (), otherwise: Sequence[Put | Get | Delete | Txn] = (),
        timeout: float | None = None,
    ) -> TxnResult:  # fmt: skip
        return self.run(self._client.txn(txn, when=when, then=then, otherwise=otherwise, timeout=timeout))

    def create(self, key: Text, value: Text, *, lease: int | AsyncLease = 0) -> bool:
        return self.run(self._client.create(key, value, lease=lease))

    def compare_and_set(self, key: Text, expected: Text, value: Text) -> bool:
        return self.run(self._client.compare_and_set(key, expected, value))

    def transact(self, work: Callable[[Transaction], T], *, attempts: int = TRANSACT_ATTEMPTS) -> T:
        """See `oarlock.client.Client.transact`. `work` is called on a thread of the client."""

        async def once(transaction: asynchronous.Transaction) -> T:
            return await asyncio.to_thread(work, Transaction(self, transaction))

        return self.run(self._client.transact(once, attempts=attempts))

    def compact(self, revision: int, *, physical: bool = False) -> None:
        self.run(self._client.compact(revision, physical=physical))

    # -- what lasts longer

    def watch(
        self, key: Text = b"", *, prefix: bool = False, range_end: Text = b"", start_revision: int = 0,
        previous: bool = False, puts: bool = True, deletes: bool = True, resync: bool = False,
    ) -> Watch:  # fmt: skip
        return Watch(
            self,
            self._client.watch(
                key, prefix=prefix, range_end=range_end, start_revision=start_revision, previous=previous, puts=puts,
                deletes=deletes, resync=resync,
            ),
        )  # fmt: skip

    def lease(self, ttl: int, *, id: int = 0) -> Held[AsyncLease]:
        return Held(self, self._client.lease(ttl, id=id))

    def grant(self, ttl: int, *, id: int = 0) -> int:
        """A lease that nobody keeps alive; gives its id."""
        return self.run(self._client.grant(ttl, id=id))

    def revoke(self, lease: int) -> None:
        """End a lease now, with all keys attached to it. One that has ended is no error."""
        self.run(self._client.revoke(lease))

    def time_to_live(self, lease: int) -> int:
        """Seconds that a lease has left; -1 if it has ended."""
        return self.run(self._client.time_to_live(lease))

    def lock(self, name: Text, *, ttl: int = 10) -> Held[Lock]:
        return Held(self, self._client.lock(name, ttl=ttl))

    def campaign(self, name: Text, value: Text, *, ttl: int = 10) -> Held[Leadership]:
        return Held(self, self._client.election(name, ttl=ttl).campaign(raw(value)))

    def leader(self, name: Text) -> KeyValue | None:
        return self.run(self._client.election(name).leader())

    # -- servers

    def status(self) -> Any:
        return self.run(self._client.status())

    def members(self) -> list[Any]:
        return self.run(self._client.members())

    def sync_endpoints(self) -> list[str]:
        return self.run(self._client.sync_endpoints())


class Transaction:
    """See `oarlock.client.Transaction`."""

    def __init__(self, client: Client, transaction: asynchronous.Transaction) -> None:
        self._client = client
        self._transaction = transaction

    def get(self, key: Text) -> bytes | None:
        return self._client.run(self._transaction.get(key))

    def put(self, key: Text, value: Text, lease: int = 0) -> None:
        self._transaction.put(key, value, lease)

    def delete(self, key: Text) -> None:
        self._transaction.delete(key)
