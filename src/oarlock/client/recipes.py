"""Locks and elections as etcd's clients build them: keys under a name, each with a lease, in order of their creation.

They are compatible with `etcdctl lock` and `etcdctl elect` and with etcd's Go package `concurrency`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING

from oarlock.client.errors import Compacted, LeaseExpired
from oarlock.client.lease import Lease
from oarlock.client.model import Delete, Get, Key, KeyValue, Page, Put, Text, prefix_end, raw

if TYPE_CHECKING:
    from oarlock.client.client import Client


class Claim:
    """A key in the line, first or not. `token` (its create revision) is a fencing token."""

    def __init__(self, client: Client, name: bytes, lease: Lease) -> None:
        self._client = client
        self._prefix = name + b"/"
        self.key = self._prefix + b"%x" % lease.id
        self.lease = lease
        self.token = 0

    async def enter(self, value: bytes = b"") -> None:
        result = await self._client.txn(
            when=[Key(self.key).missing], then=[Put(self.key, value, self.lease.id)], otherwise=[Get(self.key)]
        )
        if result.succeeded:
            self.token = result.revision
            return
        found = result.results[0]
        assert isinstance(found, Page)
        self.token = found.items[0].create_revision

    async def wait(self) -> None:
        """Until every key that was created before ours is gone. Raises `LeaseExpired` if ours is gone: somebody has
        revoked its lease or deleted it, and others do not wait for us."""
        while True:
            before = await self._client.range(
                self._prefix, range_end=prefix_end(self._prefix), sort_by="create_revision", descending=True, limit=2,
            )  # fmt: skip
            older = [item for item in before.items if item.create_revision < self.token]
            if not older and before.more:
                before = await self._client.range(self._prefix, prefix=True, keys_only=True)
                older = [item for item in before.items if item.create_revision < self.token]
                older.sort(key=lambda item: -item.create_revision)
            if not older:
                if not any(item.key == self.key and item.create_revision == self.token for item in before.items):
                    raise LeaseExpired(f"the key {self.key!r} was deleted while it waited in line: nobody waits for it")
                return
            try:
                async with self._client.watch(older[0].key, start_revision=before.revision + 1, puts=False) as gone:
                    await anext(gone)
            except Compacted:
                pass  # between the two requests: look again

    async def leave(self) -> None:
        await self._client.txn(when=[Key(self.key).create_revision == self.token], then=[Delete(self.key)])


class Lock:
    """`async with client.lock("name") as lock`. `token` is the fencing token."""

    def __init__(self, client: Client, name: bytes, ttl: int) -> None:
        self._client = client
        self._name = name
        self._ttl = ttl
        self._claim: Claim | None = None
        self._lease: Lease | None = None

    def _held(self) -> Claim:
        if self._claim is None:
            raise RuntimeError("the lock was not acquired: it is held within `async with`")
        return self._claim

    @property
    def token(self) -> int:
        return self._held().token

    @property
    def key(self) -> bytes:
        """The key that is ours while the lock is: compare its create revision with `token` in transactions."""
        return self._held().key

    @property
    def valid(self) -> bool:
        return self._lease is not None and self._lease.valid

    async def __aenter__(self) -> Lock:
        lease = self._client.lease(self._ttl)
        await lease.__aenter__()
        claim = Claim(self._client, self._name, lease)
        try:
            await claim.enter()
            await claim.wait()
        except BaseException as error:
            await lease.__aexit__(type(error), error, error.__traceback__)  # its key goes with it
            raise
        self._lease, self._claim = lease, claim
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        lease = self._lease
        assert lease is not None
        return await lease.__aexit__(kind, error, trace)


class Leadership:
    """What a leader has."""

    def __init__(self, client: Client, claim: Claim) -> None:
        self._client = client
        self._claim = claim

    @property
    def token(self) -> int:
        return self._claim.token

    @property
    def key(self) -> bytes:
        return self._claim.key

    @property
    def valid(self) -> bool:
        return self._claim.lease.valid

    async def proclaim(self, value: Text) -> bool:
        """Make another value known. False if it leads no more."""
        result = await self._client.txn(
            when=[Key(self.key).create_revision == self.token], then=[Put(self.key, value, self._claim.lease.id)]
        )
        return result.succeeded


class Election:
    """A line of candidates; the first one leads."""

    def __init__(self, client: Client, name: bytes, ttl: int) -> None:
        self._client = client
        self._name = name
        self._ttl = ttl

    @asynccontextmanager
    async def campaign(self, value: Text) -> AsyncIterator[Leadership]:
        """Stand, and lead while the body runs. Losing the lease cancels the body (`LeaseExpired`)."""
        async with self._client.lease(self._ttl) as lease:
            claim = Claim(self._client, self._name, lease)
            await claim.enter(raw(value))
            await claim.wait()
            yield Leadership(self._client, claim)

    async def leader(self) -> KeyValue | None:
        """The key of the leader, with its value; None while nobody leads."""
        prefix = self._name + b"/"
        found = await self._client.range(prefix, prefix=True, sort_by="create_revision", limit=1)
        return found.items[0] if found.items else None

    async def observe(self) -> AsyncIterator[KeyValue]:
        """The leader's key now, and again when its value or the leader changes."""
        prefix = self._name + b"/"
        last: tuple[bytes, int] | None = None
        while True:
            found = await self._client.range(prefix, prefix=True, sort_by="create_revision", limit=1)
            if found.items and (found.items[0].key, found.items[0].mod_revision) != last:
                last = (found.items[0].key, found.items[0].mod_revision)
                yield found.items[0]
            try:
                async with self._client.watch(prefix, prefix=True, start_revision=found.revision + 1) as changes:
                    await anext(changes)
            except Compacted:
                pass  # between the two requests: look again
            await asyncio.sleep(0)
