"""A client for Oarlock's server and for any etcd: one connection at a time, moved to another member when it fails.

    async with Client(["127.0.0.1:2379", "127.0.0.1:22379"]) as client:
        await client.put("greeting", "hello")
        async for event in client.watch("greeting"): ...

A request that was not sent, or that only reads, is sent again by itself until its time is over. A write whose outcome
is unknown is not: the error says so (`outcome`), as etcd's own client does.
"""

from __future__ import annotations

import asyncio
import math
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from oarlock.api import proto
from oarlock.api.grpc.status import Code
from oarlock.client.channel import CLOSE_S, RENEWALS_MAX, Address, Channel, Metadata, Stream
from oarlock.client.errors import (
    Compacted,
    EtcdError,
    TransactionConflict,
    Unauthenticated,
    Unavailable,
    closed,
    error_of,
)
from oarlock.client.lease import Lease
from oarlock.client.model import (
    Condition,
    Delete,
    Deleted,
    DeleteRangeRequest,
    Get,
    Key,
    KeyValue,
    Page,
    Put,
    PutRequest,
    RangeRequest,
    Text,
    Txn,
    TxnResult,
    deleted,
    key_value,
    page,
    prefix_end,
    raw,
    span,
    txn_result,
)
from oarlock.client.recipes import Election, Lock
from oarlock.client.watch import Watch
from oarlock.errors import Outcome

T = TypeVar("T")

BACKOFF_S: Final = 0.02
BACKOFF_S_MAX: Final = 0.5
AUTH_REVISION_OLD: Final = "revision of auth store is old"
SCAN_PAGE: Final = 1000
TRANSACT_ATTEMPTS: Final = 32

_AuthenticateRequest = proto.message("etcdserverpb.AuthenticateRequest")
_AuthenticateResponse = proto.message("etcdserverpb.AuthenticateResponse")
_RangeResponse = proto.message("etcdserverpb.RangeResponse")
_PutResponse = proto.message("etcdserverpb.PutResponse")
_DeleteRangeResponse = proto.message("etcdserverpb.DeleteRangeResponse")
_TxnResponse = proto.message("etcdserverpb.TxnResponse")
_CompactionRequest = proto.message("etcdserverpb.CompactionRequest")
_CompactionResponse = proto.message("etcdserverpb.CompactionResponse")
_StatusRequest = proto.message("etcdserverpb.StatusRequest")
_StatusResponse = proto.message("etcdserverpb.StatusResponse")
_MemberListRequest = proto.message("etcdserverpb.MemberListRequest")
_MemberListResponse = proto.message("etcdserverpb.MemberListResponse")

SORT_TARGETS: Final = {"key": 0, "version": 1, "create_revision": 2, "mod_revision": 3, "value": 4}


class Client:
    """A connection to a group of servers.

    - `endpoints`: `host:port`, `http://`, `https://` or `unix://` of members, one or more.
    - `user`, `password`: for servers with authentication.
    - `tls`: a context for `https`; made with the system's authorities if it is not given.
    - `timeout`: seconds that a call may take, its repetitions included. `attempt_timeout`: after so many seconds
      without an answer a *read* is asked of another member.
    - `keepalive`: seconds of silence after which a connection with calls is pinged, `keepalive_timeout`: after so many
      without an answer it counts as dead.
    """

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
        self.endpoints = [endpoints] if isinstance(endpoints, str) else list(endpoints)
        if not self.endpoints:
            raise ValueError("endpoints is empty: give host:port of one server or more")
        if bool(user) != bool(password):
            raise ValueError("give user and password, or neither")
        for name, seconds in (
            ("timeout", timeout), ("attempt_timeout", attempt_timeout), ("connect_timeout", connect_timeout),
            ("keepalive", keepalive), ("keepalive_timeout", keepalive_timeout),
        ):  # fmt: skip
            if not seconds > 0:  # NaN is not either
                raise ValueError(f"{name}={seconds!r}: give seconds, more than 0")
        for endpoint in self.endpoints:
            Address.of(endpoint)  # raises here, not at the first call
        self.timeout = timeout
        self._attempt_timeout = attempt_timeout
        self._connect_timeout = connect_timeout
        self._keepalive = keepalive
        self._keepalive_timeout = keepalive_timeout
        self._tls = tls
        self._user, self._password = user, password
        self._token = ""
        self._authenticating: asyncio.Lock = asyncio.Lock()
        self._at = 0
        self._channel: Channel | None = None
        self._connecting: asyncio.Lock = asyncio.Lock()
        self._closed = False

    # -- life

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connection. Calls under way fail."""
        self._closed = True
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
            await asyncio.wait({channel.closed}, timeout=2 * CLOSE_S)

    @property
    def endpoint(self) -> str:
        """The endpoint that is used now, or will be tried next."""
        return self.endpoints[self._at % len(self.endpoints)]

    def _is_closed(self) -> bool:
        return self._closed

    # -- connections

    async def channel(self) -> Channel:
        """A usable connection, to another endpoint if need be. Raises `Unavailable` when none can be reached."""
        if self._is_closed():
            raise closed()
        if self._channel is not None and self._channel.usable:
            return self._channel
        async with self._connecting:
            if self._channel is not None and self._channel.usable:
                return self._channel
            problems: list[str] = []
            for _ in self.endpoints:
                try:
                    channel = await Channel.connect(
                        self.endpoint, self._tls, timeout_s=self._connect_timeout, keepalive_s=self._keepalive,
                        keepalive_timeout_s=self._keepalive_timeout,
                    )  # fmt: skip
                except Unavailable as error:
                    if self._is_closed():
                        raise closed() from None
                    problems.append(error.text)
                    self._at += 1
                    continue
                except BaseException:
                    self._at += 1  # who waited had no time for this endpoint: the next one begins with another
                    raise
                if self._is_closed():  # meanwhile
                    channel.close()
                    raise closed()
                self._channel = channel
                return channel
            raise error_of(Code.UNAVAILABLE, "; ".join(problems), sent=False)

    def leave(self, channel: Channel) -> None:
        """This connection did not serve us: take the next endpoint for what comes. Other calls on it may end."""
        if self._channel is channel:
            self._channel = None
            self._at += 1
            channel.retire()

    async def metadata(self, *, need_leader: bool = False) -> Metadata:
        """What goes with every request."""
        made: list[tuple[str, str]] = []
        if self._user:
            if not self._token:
                async with self._authenticating:  # one of those that wait is enough
                    if not self._token:
                        await self._authenticate()
            if self._token:
                made.append(("token", self._token))
        if need_leader:
            made.append(("hasleader", "true"))
        return tuple(made)

    async def _authenticate(self) -> None:
        request = _AuthenticateRequest(name=self._user, password=self._password)
        channel = await self.channel()
        try:
            data = await channel.unary("/etcdserverpb.Auth/Authenticate", request.SerializeToString(), (), self.timeout)
        except EtcdError as error:
            if error.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
                self.leave(channel)
            if "authentication is not enabled" not in error.text:
                raise
            return  # then no token is wanted, as etcd's own client sees it
        self._token = _AuthenticateResponse.FromString(data).token

    def renew(self, error: EtcdError, metadata: Metadata) -> bool:
        """Whether the call that ended so was refused because of its token: the next one gets another."""
        used = dict(metadata).get("token")
        if not self._user or not (isinstance(error, Unauthenticated) or AUTH_REVISION_OLD in error.text):
            return False
        if self._token == used:
            self._token = ""
        return True

    async def call(self, path: str, request: Any, response: Any, *, reads: bool, timeout: float | None = None) -> Any:
        """One unary call with its repetitions. `reads`: it changes nothing, so it may be sent again."""
        loop = asyncio.get_running_loop()
        seconds = self.timeout if timeout is None else timeout
        if math.isnan(seconds):
            raise ValueError("timeout=nan: give seconds")
        deadline = loop.time() + seconds
        data = request.SerializeToString()
        pause = BACKOFF_S
        renewals = RENEWALS_MAX
        while True:
            left = deadline - loop.time()
            if left <= 0:
                raise error_of(Code.DEADLINE_EXCEEDED, f"no answer to {path.rpartition('/')[2]} in time", sent=False)
            channel: Channel | None = None
            metadata: Metadata = ()
            try:
                async with asyncio.timeout(None if math.isinf(left) else left):
                    metadata = await self.metadata()
                    channel = await self.channel()
                limit = min(left, self._attempt_timeout) if reads and len(self.endpoints) > 1 else left
                return response.FromString(await channel.unary(path, data, metadata, limit))
            except TimeoutError:
                continue
            except EtcdError as error:
                again = error.outcome is Outcome.NOT_EXECUTED or reads
                if error.code not in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED):
                    if not renewals or not self.renew(error, metadata):
                        raise
                    renewals -= 1  # the token has expired, its server has gone, rights have changed: get another
                    continue
                if channel is not None:
                    self.leave(channel)  # also if this call is over: the next one has better chances elsewhere
                if not again or loop.time() + pause >= deadline:
                    raise
                await asyncio.sleep(pause * random.uniform(0.5, 1))
                pause = min(2 * pause, BACKOFF_S_MAX)

    async def stream(self, path: str, *, need_leader: bool = True) -> tuple[Channel, Stream, Metadata]:
        """Begin a streaming call."""
        metadata = await self.metadata(need_leader=need_leader)
        channel = await self.channel()
        return channel, await channel.begin(path, metadata, None), metadata

    # -- keys and values

    async def get(
        self, key: Text, *, revision: int = 0, serializable: bool = False, timeout: float | None = None
    ) -> KeyValue | None:
        """One key, now or at an earlier revision. `serializable`: this member's state, which may be old."""
        request = RangeRequest(key=raw(key), revision=revision, serializable=serializable)
        response = await self.call("/etcdserverpb.KV/Range", request, _RangeResponse, reads=True, timeout=timeout)
        return key_value(response.kvs[0]) if response.kvs else None

    async def range(
        self,
        key: Text = b"",
        *,
        prefix: bool = False,
        range_end: Text = b"",
        limit: int = 0,
        revision: int = 0,
        sort_by: str = "key",
        descending: bool = False,
        keys_only: bool = False,
        count_only: bool = False,
        serializable: bool = False,
        timeout: float | None = None,
    ) -> Page:
        """The keys in a range: from `key` up to `range_end`, or all that begin with `key` if `prefix`."""
        if sort_by not in SORT_TARGETS:
            raise ValueError(f"sort_by={sort_by!r}: it must be one of {', '.join(SORT_TARGETS)}")
        start, end = span(key, prefix, range_end)
        request = RangeRequest(
            key=start, range_end=end, limit=limit,
            revision=revision, sort_target=SORT_TARGETS[sort_by],
            sort_order=2 if descending else 0 if sort_by == "key" else 1, keys_only=keys_only, count_only=count_only,
            serializable=serializable,
        )  # fmt: skip
        response = await self.call("/etcdserverpb.KV/Range", request, _RangeResponse, reads=True, timeout=timeout)
        return page(response, response.header.revision)

    async def scan(
        self, prefix: Text = b"", *, page_size: int = SCAN_PAGE, revision: int = 0
    ) -> AsyncIterator[KeyValue]:
        """All keys that begin with `prefix`, as they were at one revision, a page at a time."""
        start, end = raw(prefix), prefix_end(raw(prefix))
        at = start or b"\0"
        while True:
            found = await self.range(at, range_end=end, limit=page_size, revision=revision)
            revision = revision or found.revision
            for item in found.items:
                yield item
            if not found.more:
                return
            at = found.items[-1].key + b"\0"

    async def put(
        self, key: Text, value: Text, *, lease: int | Lease = 0, previous: bool = False, timeout: float | None = None
    ) -> KeyValue | None:
        """Set a key. With `previous`, gives what it had."""
        lease_id = lease.id if isinstance(lease, Lease) else lease
        request = PutRequest(key=raw(key), value=raw(value), lease=lease_id, prev_kv=previous)
        response = await self.call("/etcdserverpb.KV/Put", request, _PutResponse, reads=False, timeout=timeout)
        return key_value(response.prev_kv) if response.HasField("prev_kv") else None

    async def delete(
        self, key: Text, *, prefix: bool = False, range_end: Text = b"", previous: bool = False,
        timeout: float | None = None,
    ) -> Deleted:  # fmt: skip
        """Delete a key, a range, or all keys that begin with `key`."""
        start, end = span(key, prefix, range_end)
        request = DeleteRangeRequest(key=start, range_end=end, prev_kv=previous)
        response = await self.call(
            "/etcdserverpb.KV/DeleteRange", request, _DeleteRangeResponse, reads=False, timeout=timeout
        )
        return deleted(response, response.header.revision)

    async def txn(
        self,
        txn: Txn | None = None,
        *,
        when: Sequence[Condition] = (),
        then: Sequence[Put | Get | Delete | Txn] = (),
        otherwise: Sequence[Put | Get | Delete | Txn] = (),
        timeout: float | None = None,
    ) -> TxnResult:
        """`await client.txn(when=[Key("a").value == "1"], then=[Put("a", "2")], otherwise=[Get("a")])`"""
        made = txn if txn is not None else Txn(when, then, otherwise)
        response = await self.call(
            "/etcdserverpb.KV/Txn", made.request(), _TxnResponse, reads=_only_reads(made), timeout=timeout
        )
        return txn_result(response, response.header.revision)

    async def create(self, key: Text, value: Text, *, lease: int | Lease = 0) -> bool:
        """Set a key that does not exist. False if it does."""
        lease_id = lease.id if isinstance(lease, Lease) else lease
        return (await self.txn(when=[Key(key).missing], then=[Put(key, value, lease_id)])).succeeded

    async def compare_and_set(self, key: Text, expected: Text, value: Text) -> bool:
        """Set a key that has `expected`. False if it has something else, or nothing."""
        return (await self.txn(when=[Key(key).value == expected], then=[Put(key, value)])).succeeded

    async def transact(self, work: Callable[[Transaction], Awaitable[T]], *, attempts: int = TRANSACT_ATTEMPTS) -> T:
        """Software transactional memory: `work` reads and writes through the `Transaction` that it is given, and is
        called again if others changed what it had read. What it writes becomes visible at once, or not at all.

        Raises `TransactionConflict` after so many attempts.
        """
        if attempts < 1:
            raise ValueError(f"attempts={attempts}: give 1 or more")
        for attempt in range(attempts):
            transaction = Transaction(self)
            try:
                result = await work(transaction)
            except Compacted:
                if not transaction.stale:
                    raise  # of something else that the work has asked for
            else:
                if await transaction.commit():
                    return result
            await asyncio.sleep(random.uniform(0, BACKOFF_S * min(attempt + 1, 10)))
        raise TransactionConflict(attempts)

    async def compact(self, revision: int, *, physical: bool = False) -> None:
        """Forget what was before `revision`."""
        request = _CompactionRequest(revision=revision, physical=physical)
        await self.call("/etcdserverpb.KV/Compact", request, _CompactionResponse, reads=False)

    # -- what lasts longer

    def watch(
        self,
        key: Text = b"",
        *,
        prefix: bool = False,
        range_end: Text = b"",
        start_revision: int = 0,
        previous: bool = False,
        puts: bool = True,
        deletes: bool = True,
        resync: bool = False,
    ) -> Watch:
        """The changes of a key or range from `start_revision` (0: from now) on; `async for event in ...`.

        It goes on across failures of connections and members without losing or repeating an event. If the server has
        compacted what comes next it raises `Compacted`; with `resync` it then reads the range anew and gives the
        difference as events.
        """
        start, end = span(key, prefix, range_end)
        return Watch(
            self, start, end, start_revision, previous=previous, puts=puts, deletes=deletes, resync=resync
        )  # fmt: skip

    def lease(self, ttl: int, *, id: int = 0) -> Lease:
        """`async with client.lease(ttl=10) as lease`: kept alive while the body runs, revoked at its end. If it cannot
        be kept alive in time, the body is cancelled and `LeaseExpired` raised."""
        return Lease(self, ttl, id)

    async def grant(self, ttl: int, *, id: int = 0) -> int:
        """A lease that nobody keeps alive; gives its id."""
        return await Lease(self, ttl, id).grant()

    async def revoke(self, lease: int) -> None:
        """End a lease now, with all keys attached to it. One that has ended is no error."""
        await Lease.known(self, lease).revoke()

    async def time_to_live(self, lease: int) -> int:
        """Seconds that a lease has left; -1 if it has ended."""
        left: int = (await Lease.known(self, lease).time_to_live()).TTL
        return left

    def lock(self, name: Text, *, ttl: int = 10) -> Lock:
        """`async with client.lock("name") as lock`: one client at a time; `lock.token` is the fencing token."""
        return Lock(self, raw(name), ttl)

    def election(self, name: Text, *, ttl: int = 10) -> Election:
        """`async with client.election("name").campaign("value") as leadership`."""
        return Election(self, raw(name), ttl)

    # -- servers

    async def status(self) -> Any:
        """The status (a `StatusResponse`) of the member that is connected now."""
        return await self.call("/etcdserverpb.Maintenance/Status", _StatusRequest(), _StatusResponse, reads=True)

    async def members(self) -> list[Any]:
        """The members (`Member` messages) of the group."""
        response = await self.call(
            "/etcdserverpb.Cluster/MemberList", _MemberListRequest(linearizable=True), _MemberListResponse, reads=True
        )
        return list(response.members)

    async def sync_endpoints(self) -> list[str]:
        """Take the client URLs of all members as endpoints from now on."""
        found = [url for member in await self.members() for url in member.clientURLs]
        if found:
            here = self.endpoint
            self.endpoints = found
            self._at = next((n for n, url in enumerate(found) if url.endswith(here.rpartition("//")[2])), 0)
        return found


def _only_reads(txn: Txn) -> bool:
    return all(isinstance(op, Get) or (isinstance(op, Txn) and _only_reads(op)) for op in (*txn.then, *txn.otherwise))


class Transaction:
    """What `Client.transact` gives to its work. Reads are of one revision; own writes are seen."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._revision = 0
        self._read: dict[bytes, KeyValue | None] = {}
        self._written: dict[bytes, Put | Delete] = {}
        self.stale = False
        """Whether the revision that it reads has been compacted: then only a new one can go on."""

    async def get(self, key: Text) -> bytes | None:
        """The value of a key, None if it does not exist."""
        name = raw(key)
        written = self._written.get(name)
        if written is not None:
            return raw(written.value) if isinstance(written, Put) else None
        if name not in self._read:
            try:
                found = await self._client.range(name, revision=self._revision)
            except Compacted:
                self.stale = True
                raise
            self._revision = self._revision or found.revision
            self._read[name] = found.items[0] if found.items else None
        kv = self._read[name]
        return None if kv is None else kv.value

    def put(self, key: Text, value: Text, lease: int = 0) -> None:
        self._written[raw(key)] = Put(key, value, lease)

    def delete(self, key: Text) -> None:
        self._written[raw(key)] = Delete(key)

    async def commit(self) -> bool:
        """Whether nothing that was read had changed; what was written is there then."""
        if not self._written:
            return True  # reads of one revision are a transaction by themselves
        conditions = [Key(name).mod_revision == (kv.mod_revision if kv else 0) for name, kv in self._read.items()]
        return (await self._client.txn(when=conditions, then=list(self._written.values()))).succeeded
