"""A lease as a context manager: kept alive while its body runs, and the body ends when the lease is lost."""

from __future__ import annotations

import asyncio
import math
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from oarlock.api import proto
from oarlock.api.grpc.status import Code
from oarlock.client.channel import Channel, Metadata, Stream
from oarlock.client.errors import EtcdError, LeaseExpired, NotFound, error_of

if TYPE_CHECKING:
    from oarlock.client.client import Client

RENEWALS: Final = 3  # within one time to live
RETRY_S: Final = 0.1
TTL_MAX: Final = 9_000_000_000  # seconds, etcd's bound

_GrantRequest = proto.message("etcdserverpb.LeaseGrantRequest")
_GrantResponse = proto.message("etcdserverpb.LeaseGrantResponse")
_RevokeRequest = proto.message("etcdserverpb.LeaseRevokeRequest")
_RevokeResponse = proto.message("etcdserverpb.LeaseRevokeResponse")
_KeepAliveRequest = proto.message("etcdserverpb.LeaseKeepAliveRequest")
_KeepAliveResponse = proto.message("etcdserverpb.LeaseKeepAliveResponse")
_TimeToLiveRequest = proto.message("etcdserverpb.LeaseTimeToLiveRequest")
_TimeToLiveResponse = proto.message("etcdserverpb.LeaseTimeToLiveResponse")


class Lease:
    """One lease. `id` is 0 until it is granted."""

    def __init__(self, client: Client, ttl: int, lease_id: int) -> None:
        if isinstance(ttl, bool) or not isinstance(ttl, int):
            raise TypeError(f"ttl={ttl!r}: give whole seconds, as an int")
        if not 1 <= ttl <= TTL_MAX:
            raise ValueError(f"ttl={ttl}: a lease lives at least one second, at most {TTL_MAX}")
        self._client = client
        self._wanted = (ttl, lease_id)
        self.id = 0
        self.ttl = ttl
        """Seconds, as granted."""

        self.valid_until = float("-inf")
        """On the loop's clock: until then the server keeps it for certain."""

        self.lost: asyncio.Future[None] | None = None
        """Done when the lease is lost."""

        self._task: asyncio.Task[None] | None = None
        self._owner: asyncio.Task[Any] | None = None
        self._channel: Channel | None = None
        self._stream: Stream | None = None
        self._metadata: Metadata = ()
        self._renewing: asyncio.Lock = asyncio.Lock()
        self._cancelled = False
        self._ending = False

    @classmethod
    def known(cls, client: Client, lease_id: int) -> Self:
        """One that was granted before, by whomever."""
        lease = cls(client, 1, lease_id)
        lease.id = lease_id
        return lease

    async def grant(self) -> int:
        """Get the lease without keeping it alive; gives its id."""
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        ttl, lease_id = self._wanted
        response = await self._client.call(
            "/etcdserverpb.Lease/LeaseGrant", _GrantRequest(TTL=ttl, ID=lease_id), _GrantResponse, reads=False
        )
        self.id, self.ttl = response.ID, response.TTL
        self.valid_until = asked_at + self.ttl
        self.lost = loop.create_future()
        return self.id

    async def revoke(self) -> None:
        """End it now, with all keys attached to it. One that has ended is no error."""
        self.valid_until = float("-inf")  # from the asking on: whether the answer comes or not
        try:
            await self._client.call(
                "/etcdserverpb.Lease/LeaseRevoke", _RevokeRequest(ID=self.id), _RevokeResponse, reads=True
            )
        except NotFound:
            pass

    async def keep_alive_once(self) -> int:
        """Renew it; gives the seconds that it has now. Raises `LeaseExpired` if it has ended."""
        loop = asyncio.get_running_loop()
        limit = self._client.timeout
        async with self._renewing:
            asked_at = loop.time()
            try:
                async with asyncio.timeout(None if math.isinf(limit) else limit):
                    if self._stream is None or self._stream.ended:
                        self._channel, self._stream, self._metadata = await self._client.stream(
                            "/etcdserverpb.Lease/LeaseKeepAlive"
                        )
                        asked_at = loop.time()
                    await self._stream.send(_KeepAliveRequest(ID=self.id).SerializeToString())
                    data = await self._stream.receive()
                    if data is None:
                        raise error_of(Code.UNAVAILABLE, "the server ended the stream of keep-alives")
            except BaseException as error:
                self._drop(error)
                if isinstance(error, TimeoutError):
                    raise error_of(Code.DEADLINE_EXCEEDED, f"no answer to a keep-alive within {limit:g} s") from None
                raise
        ttl: int = _KeepAliveResponse.FromString(data).TTL
        if ttl <= 0:
            raise LeaseExpired(f"lease {self.id:x} has expired")
        self.valid_until = max(self.valid_until, asked_at + ttl)
        return ttl

    def _drop(self, error: BaseException) -> None:
        """This stream did not serve us: the next renewal takes another, of another member if this one was silent."""
        stream, self._stream = self._stream, None
        channel, self._channel = self._channel, None
        if stream is not None:
            stream.cancel()
        if isinstance(error, EtcdError) and self._client.renew(error, self._metadata):
            return
        unserved = isinstance(error, TimeoutError | asyncio.CancelledError) or (
            isinstance(error, EtcdError) and error.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)
        )
        if unserved and channel is not None and not self._ending:
            self._client.leave(channel)

    async def time_to_live(self, *, keys: bool = False) -> Any:
        """The server's `LeaseTimeToLiveResponse`: TTL (-1: it has ended), grantedTTL, and with `keys` the keys."""
        request = _TimeToLiveRequest(ID=self.id, keys=keys)
        return await self._client.call("/etcdserverpb.Lease/LeaseTimeToLive", request, _TimeToLiveResponse, reads=True)

    @property
    def valid(self) -> bool:
        """Whether the server keeps it for certain, by this client's clock."""
        return self.lost is not None and not self.lost.done() and self.lost.get_loop().time() < self.valid_until

    def keep(self) -> None:
        """Keep it alive from now on."""
        self._task = asyncio.get_running_loop().create_task(self._keep(), name=f"lease {self.id:x}")

    async def _keep(self) -> None:
        try:
            await self._keep_until_lost()
        except asyncio.CancelledError:
            raise
        except BaseException:
            self._lose()  # whatever it was, nobody keeps the lease alive any more
            raise
        self._lose()

    async def _keep_until_lost(self) -> None:
        loop = asyncio.get_running_loop()
        next_at = loop.time() + self.ttl / RENEWALS
        while True:
            await asyncio.sleep(max(0.0, min(next_at, self.valid_until) - loop.time()))
            if loop.time() >= self.valid_until:
                break
            try:
                async with asyncio.timeout_at(min(self.valid_until, loop.time() + max(1.0, self.ttl / RENEWALS))):
                    await self.keep_alive_once()
                next_at = loop.time() + self.ttl / RENEWALS
            except LeaseExpired:
                break
            except (EtcdError, TimeoutError):
                next_at = loop.time() + RETRY_S

    def _lose(self) -> None:
        if self.lost is not None and not self.lost.done():
            self.lost.set_result(None)
            if self._owner is not None and not self._cancelled:
                self._cancelled = True
                self._owner.cancel("the lease was lost")

    async def __aenter__(self) -> Self:
        if self._task is not None or self.lost is not None:
            raise RuntimeError("a lease is entered once: make another with client.lease(...)")
        await self.grant()
        self._owner = asyncio.current_task()
        self.keep()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        owner, self._owner = self._owner, None
        self._ending = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        if self._stream is not None:
            self._stream.cancel()
        if self._cancelled and owner is not None:
            ours = owner.uncancel() == 0
            if kind is None or (kind is asyncio.CancelledError and ours):
                raise LeaseExpired(f"lease {self.id:x} was lost while its body ran") from error
            return False
        try:
            await asyncio.shield(self.revoke())
        except EtcdError:
            if kind is None:
                raise
        return False
