"""The transport of a member: who is connected, what goes where, and who is gone.

Every member dials every other and sends on the connection that it dialled; answers travel on the answerer's own. Two
connections for a pair cost two sockets, and spare the rule for who keeps his when both dial at once; each side alone
decides when to dial again. While a member's own dial fails, it sends on the connection that the peer dialled, if there
is one: so a member can answer a peer whose address it does not know yet, or cannot reach.

`send` and `flush` never wait. What cannot be sent is dropped and counted: Raft sends again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

from oarlock.errors import ConfigurationError, ProtocolViolation
from oarlock.raft.messages import Message
from oarlock.transport.connection import Connection, Counters, State, describe
from oarlock.transport.handshake import (
    Hello,
    LocalIdentity,
    PeerAddress,
    PeerRefused,
    Refusal,
    check_hello,
    hello_of,
)
from oarlock.transport.limits import LimitedLog, TransportLimits
from oarlock.transport.roster import Ask, Roster
from oarlock.transport.sockets import bind, parse_url, resolve, tune
from oarlock.transport.tls import PeerTls
from oarlock.wire.frames import BULK_TYPES, PROTOCOL_MAJOR_MAX, PROTOCOL_MAJOR_MIN, encode_frame

OnMessages = Callable[[int, list[tuple[int, Message]]], None]
OnConnected = Callable[[int, int], None]
OnDown = Callable[[int], None]
Admit = Callable[[Hello], str | None]

REMOVED: Final = "removed"  # the reason of a refusal: whoever says hello was removed, by a committed change
QUICK_RETRY_S: Final = 0.005  # between looks at a process that may be dying: its listener can outlive its connections
QUICK_RETRIES_MAX: Final = 5

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerStats:
    """What is known of one peer's connections. Times are of the transport's clock, in ns; 0 is "never"."""

    id: int
    name: str
    connected: bool
    address: str
    incarnation: int
    connected_since: int
    sent_bytes: int
    sent_messages: int
    received_bytes: int
    received_messages: int
    dropped: int
    unknown_frames: int
    waiting_bytes: int
    rtt_ns: int
    connects: int
    last_error: str


@dataclass(slots=True)
class TransportCounters:
    """What happened to connections, of whomever, since the start."""

    accepted: int = 0  # incoming sockets
    refused: int = 0  # handshakes that we refused
    refused_by_peer: int = 0
    violations: int = 0  # garbage, oversized frames, wrong checksums, messages that cannot be
    handshake_timeouts: int = 0
    handshake_failures: int = 0  # TLS errors, and connections closed before their hello
    evicted: int = 0  # `unauthenticated_max` was reached
    replaced: int = 0  # a member opened a newer connection
    idle: int = 0  # nothing whole came for too long
    unroutable: int = 0  # messages to somebody who is no peer


class DialFailed(ConnectionError):
    """No address of a peer could be used. `refused`: every one answered that nobody listens there."""

    def __init__(self, errors: Sequence[Exception]) -> None:
        super().__init__("; ".join(dict.fromkeys(map(describe, errors))) or "it has no address")
        self.refused = bool(errors) and all(isinstance(e, ConnectionRefusedError) for e in errors)
        self.cut = any(isinstance(e, ConnectionResetError | BrokenPipeError) for e in errors)


@dataclass(slots=True, eq=False)
class _Peer:
    address: PeerAddress
    counters: Counters = field(default_factory=Counters)
    task: asyncio.Task[None] | None = None
    wake: asyncio.Event = field(default_factory=asyncio.Event)  # dial now, do not wait for the end of the pause
    dialled: Connection | None = None
    seen_incarnation: int = 0  # the first that it named, while the configuration names none
    connects: int = 0
    last_error: str = ""

    @property
    def known(self) -> PeerAddress:
        if self.address.incarnation or not self.seen_incarnation:
            return self.address
        return replace(self.address, incarnation=self.seen_incarnation)


class Transport:
    """The connections of one member. Everything is called from one event loop, and the callbacks come from it.

    `on_messages(sender, [(group, message), ...])` hands over what one read of a socket brought.
    `on_peer_connected(peer, incarnation)` says that messages to `peer` can leave now. `on_peer_down(peer)` says that
    the process of a peer is gone: an established connection broke, and at once nobody listened at any of its addresses.
    A timeout never says so.

    `admit(hello)` is asked about a member of this cluster that is not among the peers: None lets it in, a text says
    that it was removed. `on_removed(text)` is called when another member says so of us; `roster` tells who the members
    are to somebody who wants to become one. Without `admit` none is let in. A member that was away while the cluster
    changed needs it: its leader may be one that it has never heard of (Raft 6).
    """

    def __init__(
        self,
        identity: LocalIdentity,
        *,
        on_messages: OnMessages,
        on_peer_connected: OnConnected,
        on_peer_down: OnDown,
        tls: PeerTls | None = None,
        limits: TransportLimits | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        admit: Admit | None = None,
        roster: Callable[[], Roster] | None = None,
        on_removed: Callable[[str], None] | None = None,
    ) -> None:
        if tls is not None:
            tls.check(identity.name)
        self.identity = identity
        self.limits = limits if limits is not None else TransportLimits()
        self.counters = TransportCounters()
        self._on_messages = on_messages
        self._on_peer_connected = on_peer_connected
        self._on_peer_down = on_peer_down
        self._admit = admit
        self._roster = roster
        self._on_removed = on_removed
        self._tls = tls
        self._clock = clock
        self._lines = LimitedLog(_log, self.limits.log_interval_s, clock)
        self._random = random.Random()
        self._me = f"{identity.member_id:x}"
        self._peers: dict[int, _Peer] = {}
        self._incoming: dict[int, Connection] = {}  # by member; the newest
        self._routes: dict[int, Connection] = {}  # where messages to a member go
        self._connections: dict[Connection, None] = {}  # all that have an open socket or may get one
        self._pending: dict[Connection, asyncio.Task[None]] = {}  # incoming, before their hello; oldest first
        self._dirty: list[Connection] = []
        self._listeners: list[tuple[socket.socket, asyncio.Task[None]]] = []
        self._ticker: asyncio.TimerHandle | None = None
        self._tick_due = 0
        self._closed = False
        self._last: tuple[int, Message, bytearray] | None = None  # the last bulk frame of this turn

    # ------------------------------------------------------------ listening

    async def listen(self, urls: Sequence[str]) -> list[str]:
        """Listen on `urls`; port 0 takes a free one. Returns them with the real ports.

        Raises `ConfigurationError` for a URL that makes no sense or an address that cannot be had; then nothing
        listens.
        """
        assert not self._closed, "the transport is closed"
        loop = asyncio.get_running_loop()
        opened: list[tuple[socket.socket, bool]] = []
        real = []
        try:
            for url in urls:
                host, port, secure = self._checked_url(url)
                try:
                    found = await resolve(loop, host, port)
                    for family, address in dict.fromkeys(found):
                        listener = bind(family, (address[0], port, *address[2:]))
                        opened.append((listener, secure))
                        port = listener.getsockname()[1]
                except (OSError, UnicodeError) as error:
                    raise ConfigurationError(
                        f"cannot listen for peers on {url}: {describe(error)}; another process may use the port, or "
                        "the host may not be an address of this machine"
                    ) from error
                real.append(f"{'https' if secure else 'http'}://{f'[{host}]' if ':' in host else host}:{port}")
        except BaseException:
            for listener, _ in opened:
                listener.close()
            raise
        for listener, secure in opened:
            self._listeners.append((listener, self._task(self._accept(listener, secure), "oarlock peer listener")))
        self._start_ticking()
        return real

    def _checked_url(self, url: str) -> tuple[str, int, bool]:
        host, port, secure = parse_url(url)
        if secure and self._tls is None:
            raise ConfigurationError(f"peer URL {url} needs a peer certificate, key and authority, and none are given")
        if not secure and self._tls is not None:
            raise ConfigurationError(f"peer URL {url} is plain although a peer certificate is given: write https://")
        return host, port, secure

    async def _accept(self, listener: socket.socket, secure: bool) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, address = await loop.sock_accept(listener)
            except OSError as error:  # no descriptors left, or the caller has gone already
                self._lines.warning("accept", f'peer connection not accepted node={self._me} error="{error}"')
                await asyncio.sleep(0.05)
                continue
            self.counters.accepted += 1
            if len(self._pending) >= self.limits.unauthenticated_max:
                oldest = next(iter(self._pending))
                self.counters.evicted += 1
                self._lines.warning(
                    "evicted",
                    f"peer connection closed node={self._me} address={oldest.address} "
                    f'error="more than {self.limits.unauthenticated_max} connections have not said who they are"',
                )
                self._pending.pop(oldest).cancel()
                oldest.abort("evicted")
            connection = self._connection(f"{address[0]}:{address[1]}", secure=secure)
            task = self._pending[connection] = self._task(self._welcome(sock, connection), "oarlock peer handshake")
            task.add_done_callback(partial(self._welcomed, sock, connection))

    async def _welcome(self, sock: socket.socket, connection: Connection) -> None:
        """See an incoming connection through its handshake."""
        loop = asyncio.get_running_loop()
        error: BaseException | None = None
        try:
            sock.setblocking(False)
            tune(sock, self.limits)
            context = self._tls.server_context() if connection.secure and self._tls is not None else None
            async with asyncio.timeout(self.limits.handshake_timeout_s):
                connection.owns_socket = True
                await loop.connect_accepted_socket(
                    lambda: connection,
                    sock,
                    ssl=context,
                    ssl_handshake_timeout=self.limits.handshake_timeout_s if context else None,
                )
                await asyncio.wait([connection.handshaken])
            error = connection.handshaken.result()
        except TimeoutError:
            self.counters.handshake_timeouts += 1
            self._lines.warning(
                "handshake timeout",
                f"peer connection closed node={self._me} address={connection.address} "
                f'error="no handshake within {self.limits.handshake_timeout_s:g} s"',
            )
            connection.abort("no handshake in time")
        except OSError as failure:  # `ssl.SSLError` is one
            error = failure
        except asyncio.CancelledError:
            connection.abort("cancelled")
            raise
        if error is not None and not isinstance(error, PeerRefused | ProtocolViolation):  # those have had their line
            self.counters.handshake_failures += 1
            self._lines.warning(
                "handshake failed",
                f'peer connection closed node={self._me} address={connection.address} error="{describe(error)}"',
            )

    def _welcomed(self, sock: socket.socket, connection: Connection, _: asyncio.Task[None]) -> None:
        """The end of `_welcome`, also of one that was cancelled before it began."""
        self._pending.pop(connection, None)
        if not connection.owns_socket:
            sock.close()
        if connection.transport is None:
            self._connections.pop(connection, None)

    # ------------------------------------------------------------ dialling

    def set_peers(self, peers: Iterable[PeerAddress]) -> None:
        """The members of the cluster, this one or not: dial those that are new, let go of those that are not there.

        To be called again on every change of the configuration. An address that makes no sense is logged, and shows in
        `stats`: it came from another member's configuration and must not stop this one.
        """
        assert not self._closed, "the transport is closed"
        wanted = {peer.id: peer for peer in peers if peer.id != self.identity.member_id}
        for gone in [i for i in self._peers if i not in wanted]:
            peer = self._peers.pop(gone)
            self._stop_dialling(peer, "it is not a member any more")
            if (incoming := self._incoming.get(gone)) is not None:
                incoming.close("it is not a member any more")
                self._left(incoming)
        for node, address in wanted.items():
            known = self._peers.get(node)
            if known is None:
                known = self._peers[node] = _Peer(address)
                if (incoming := self._incoming.get(node)) is not None:  # it was a stranger until now
                    known.seen_incarnation = incoming.incarnation
                    known.counters = incoming.counters
            else:
                before, known.address = known.address, address
                if before.urls != address.urls or (before.name != address.name and self._tls is not None):
                    self._stop_dialling(known, "its address has changed")
            for connection in (known.dialled, self._incoming.get(node)):
                if connection is not None and address.incarnation not in (0, connection.incarnation):
                    connection.close("its disk was replaced")
                    self._left(connection)
            if known.task is None:
                known.task = self._task(self._dial(known), f"oarlock dial {node:x}")
        for node, incoming in list(self._incoming.items()):
            if node not in self._peers and self._why_not_admitted(_hello_again(self.identity, incoming)) is not None:
                incoming.close("it is not a member any more")
                self._left(incoming)
        self._start_ticking()

    def _stop_dialling(self, peer: _Peer, why: str) -> None:
        if peer.task is not None:
            peer.task.cancel()
            peer.task = None
        if peer.dialled is not None:
            connection = peer.dialled
            if connection.dirty:
                connection.flush()
            connection.close(why)
            self._left(connection, peer)

    async def _dial(self, peer: _Peer) -> None:
        """Keep one connection to `peer`, for as long as it is a peer."""
        failures = quick = 0
        broke = False  # an established connection broke, and we do not know yet whether the process is gone
        while True:
            peer.wake.clear()
            try:
                connection = await self._connect(peer)
            except DialFailed as error:
                peer.last_error = describe(error)
                self._lines.warning(
                    f"dial {peer.address.id:x}",
                    f"peer not reached node={self._me} peer={peer.address.id:x} name={peer.address.name!r} "
                    f'urls={",".join(peer.address.urls)} error="{error}"',
                )
                if broke and error.cut and quick < QUICK_RETRIES_MAX:
                    quick += 1
                    await asyncio.sleep(QUICK_RETRY_S)
                    continue
                if broke and error.refused:
                    _log.info("peer down node=%s peer=%x", self._me, peer.address.id)
                    self._on_peer_down(peer.address.id)
                broke = False
            else:
                began = self._clock()
                await asyncio.wait([connection.closed])
                broke, quick = True, 0
                peer.last_error = connection.last_error or "the other side closed the connection"
                if self._clock() - began >= self.limits.reconnect_max_s * 1e9:
                    failures = 0
                if failures == 0:
                    failures = 1
                    continue  # the first retry is immediate
            failures += 1
            pause = min(self.limits.reconnect_max_s, self.limits.reconnect_min_s * 2 ** min(failures - 2, 20))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause * self._random.uniform(0.5, 1.0)):
                    await peer.wake.wait()

    async def _connect(self, peer: _Peer) -> Connection:
        """An open connection to one of the addresses of `peer`, names resolved anew. Raises `DialFailed`."""
        loop = asyncio.get_running_loop()
        errors: list[Exception] = []
        for url in peer.address.urls:
            try:
                host, port, secure = self._checked_url(url)
                async with asyncio.timeout(self.limits.connect_timeout_s):
                    found = await resolve(loop, host, port)
            except (OSError, UnicodeError, ConfigurationError) as error:
                errors.append(error)
                continue
            for family, address in dict.fromkeys(found):
                try:
                    return await self._connect_to(peer, family, address, host, secure)
                except (OSError, ProtocolViolation) as error:
                    errors.append(error)
        raise DialFailed(errors)

    async def _connect_to(
        self, peer: _Peer, family: int, address: tuple[Any, ...], host: str, secure: bool
    ) -> Connection:
        loop = asyncio.get_running_loop()
        sock = socket.socket(family, socket.SOCK_STREAM)
        connection: Connection | None = None
        where = f"{address[0]}:{address[1]}"
        try:
            sock.setblocking(False)
            try:
                async with asyncio.timeout(self.limits.connect_timeout_s):
                    await loop.sock_connect(sock, address)
            except TimeoutError as error:
                raise TimeoutError(f"{where} did not answer within {self.limits.connect_timeout_s:g} s") from error
            tune(sock, self.limits)
            context = self._tls.client_context() if secure and self._tls is not None else None
            hello = hello_of(self.identity, expected_id=peer.address.id)
            connection = dialled = self._connection(where, dialled=peer.address.id, hello=hello, secure=secure)
            try:
                async with asyncio.timeout(self.limits.handshake_timeout_s):
                    connection.owns_socket = True
                    await loop.create_connection(
                        lambda: dialled,
                        sock=sock,
                        ssl=context,
                        server_hostname=host if context else None,
                        ssl_handshake_timeout=self.limits.handshake_timeout_s if context else None,
                    )
                    await asyncio.wait([connection.handshaken])
            except TimeoutError as error:
                self.counters.handshake_timeouts += 1
                raise TimeoutError(f"{where}: no handshake within {self.limits.handshake_timeout_s:g} s") from error
            if (failure := connection.handshaken.result()) is not None:
                raise failure
        except BaseException as error:
            if connection is None or not connection.owns_socket:
                sock.close()
            if connection is not None:
                if connection.transport is None:
                    self._connections.pop(connection, None)
                elif not isinstance(error, PeerRefused | ProtocolViolation):  # else it is being closed in order
                    connection.abort(describe(error))
            raise
        return connection

    # ------------------------------------------------------------ sending

    def send(self, to: int, group: int, message: Message) -> None:
        """Queue `message` of `group` for the member `to`; it leaves with `flush`. Never waits.

        Dropped and counted when there is no connection, or a bound is reached. Raises `ValueError` for a message above
        the bounds of the wire format, which could never be sent.
        """
        connection = self._routes.get(to)
        if connection is None:
            peer = self._peers.get(to)
            if peer is not None:
                peer.counters.dropped += 1
            else:
                self.counters.unroutable += 1
            return
        if type(message) in BULK_TYPES:
            # Followers in step get the same entries after the same prefix: equal messages are encoded once a turn.
            # Equal ones share their entries, so the comparison is one of identities.
            last = self._last
            if last is not None and last[0] == group and last[1] == message:
                frame = last[2]
            else:
                frame = encode_frame(group, message)
                self._last = (group, message, frame)
            connection.queue_bulk(frame)
        else:
            connection.queue_control(encode_frame(group, message))
        if not connection.dirty:
            connection.dirty = True
            self._dirty.append(connection)

    def flush(self) -> None:
        """Hand over what `send` queued: one write for each peer, as a rule."""
        self._last = None
        if self._dirty:
            dirty, self._dirty = self._dirty, []
            for connection in dirty:
                connection.dirty = False
                connection.flush()

    # ------------------------------------------------------------ what connections say (`connection.Owner`)

    def greeting(self, connection: Connection, theirs: Hello) -> tuple[Hello | None, Refusal | None]:
        peer = self._peers.get(theirs.member_id)
        known = peer.known if peer is not None else None
        refusal = check_hello(self.identity, theirs, known=known, dialled=connection.dialled)
        if refusal is not None and refusal.reason == "unknown-member" and not connection.dialled:
            refusal = self._stranger(theirs, refusal)
        if refusal is None and connection.secure and self._tls is not None and self._tls.verifies:
            refusal = self._judge_certificate(connection, theirs, known)
        if refusal is not None:
            return None, refusal
        return (None if connection.dialled else hello_of(self.identity)), None

    def asked(self, connection: Connection, ask: Ask) -> Roster | Refusal:
        if ask.major_max < PROTOCOL_MAJOR_MIN or ask.major_min > PROTOCOL_MAJOR_MAX:
            return Refusal(
                "version", f"this member speaks protocol versions {PROTOCOL_MAJOR_MIN} to {PROTOCOL_MAJOR_MAX}"
            )
        if self._roster is None:
            return Refusal("protocol", "this member does not tell who the members are")
        if connection.secure and self._tls is not None and self._tls.verifies:
            assert connection.transport is not None
            why = self._tls.why_not(connection.transport.get_extra_info("peercert"), ask.name)
            if why is not None:
                return Refusal("certificate", f"whoever asks says that he is {ask.name!r}: {why}")
        return self._roster()

    def _stranger(self, theirs: Hello, refusal: Refusal) -> Refusal | None:
        if self._admit is None or not theirs.member_id:
            return refusal
        if sum(1 for node in self._incoming if node not in self._peers) >= self.limits.strangers_max:
            return Refusal("unknown-member", f"{self.limits.strangers_max} unknown members are connected already")
        why = self._admit(theirs)
        return None if why is None else Refusal(REMOVED, why)

    def _why_not_admitted(self, hello: Hello) -> str | None:
        return self._admit(hello) if self._admit is not None else "it is not a member"

    def _judge_certificate(self, connection: Connection, theirs: Hello, known: PeerAddress | None) -> Refusal | None:
        """Whether the certificate, whose signature TLS has checked, is that of the member who says hello."""
        assert connection.transport is not None and self._tls is not None
        certificate = connection.transport.get_extra_info("peercert")
        name = known.name if known is not None and known.name else theirs.name
        if (why := self._tls.why_not(certificate, name)) is not None:
            return Refusal("certificate", f"member {theirs.member_id:x} ({name}): {why}")
        if theirs.name != name:
            return Refusal(
                "name", f"member {theirs.member_id:x} is {name!r} in the configuration, and says {theirs.name!r}"
            )
        others = {peer.address.name: i for i, peer in self._peers.items() if i != theirs.member_id}
        others[self.identity.name] = self.identity.member_id
        if (known is None or not known.name) and name in others:
            return Refusal("name", f"the name {name!r} is that of member {others[name]:x}, not of {theirs.member_id:x}")
        return None

    def opened(self, connection: Connection) -> None:
        node = connection.peer_id
        peer = self._peers.get(node)
        if peer is not None:
            connection.counters = peer.counters
            peer.connects += 1
            peer.last_error = ""
            if not peer.seen_incarnation:
                peer.seen_incarnation = connection.incarnation
        if connection.dialled:
            assert peer is not None, f"dialled {node:x}, which is no peer"
            peer.dialled = connection
        else:
            older = self._incoming.get(node)
            self._incoming[node] = connection
            if older is not None:
                self.counters.replaced += 1
                older.close("a newer connection of the same member took its place")
            if peer is not None and peer.dialled is None:
                peer.wake.set()  # it is up: do not wait for the end of the pause
        _log.info(
            "peer connected node=%s peer=%x name=%r address=%s direction=%s incarnation=%x",
            self._me, node, connection.name, connection.address, "out" if connection.dialled else "in",
            connection.incarnation,
        )  # fmt: skip
        self._route(node)

    def received(self, connection: Connection, messages: list[tuple[int, Message]]) -> None:
        self._on_messages(connection.peer_id, messages)

    def violated(self, connection: Connection, error: ProtocolViolation) -> None:
        self.counters.violations += 1
        self._lines.warning(
            f"violation {connection.peer_id:x}",
            f'peer connection closed node={self._me} address={connection.address} error="{error}"',
        )

    def refused(self, connection: Connection, refusal: Refusal, by_us: bool) -> None:
        if by_us:
            self.counters.refused += 1
        else:
            self.counters.refused_by_peer += 1
            if refusal.reason == REMOVED and connection.dialled and self._on_removed is not None:
                self._on_removed(refusal.text)
        self._lines.warning(
            f"refused {by_us} {refusal.reason} {connection.dialled:x}",
            f"peer {'refused' if by_us else 'refused us'} node={self._me} address={connection.address} "
            f'reason={refusal.reason} error="{refusal.text}"',
        )

    def lost(self, connection: Connection, error: Exception | None) -> None:
        self._connections.pop(connection, None)
        if connection.peer_id:
            _log.info(
                'peer disconnected node=%s peer=%x address=%s direction=%s error="%s"',
                self._me, connection.peer_id, connection.address, "out" if connection.dialled else "in",
                connection.last_error or "closed by the other side",
            )  # fmt: skip
            self._left(connection)

    def _left(self, connection: Connection, peer: _Peer | None = None) -> None:
        """`connection` carries no more: messages go elsewhere, or nowhere."""
        node = connection.peer_id
        peer = peer if peer is not None else self._peers.get(node)
        if peer is not None and peer.dialled is connection:
            peer.dialled = None
        if self._incoming.get(node) is connection:
            del self._incoming[node]
        self._route(node)

    def _route(self, node: int) -> None:
        peer = self._peers.get(node)
        connection = (peer.dialled if peer is not None else None) or self._incoming.get(node)
        if connection is None or connection.state is not State.OPEN:
            self._routes.pop(node, None)
            return
        new = node not in self._routes
        self._routes[node] = connection
        if new:
            self._on_peer_connected(node, connection.incarnation)

    # ------------------------------------------------------------ time

    def _start_ticking(self) -> None:
        if self._ticker is None and not self._closed:
            interval = self.limits.ping_interval_s
            self._tick_due = self._clock() + int(interval * 1e9)
            self._ticker = asyncio.get_running_loop().call_later(interval, self._tick)

    def _tick(self) -> None:
        """Ask dialled connections for a sign of life; give up those that gave none."""
        now = self._clock()
        late = max(0, now - self._tick_due)  # we were stopped: what came meanwhile has not been read yet
        for connection in list(self._connections):
            if connection.state is not State.OPEN:
                continue
            connection.last_frame_at += late
            silent_s = (now - connection.last_frame_at) / 1e9
            if connection.dialled and silent_s > self.limits.pong_timeout_s:
                connection.abort(f"no answer for {silent_s:.1f} s")
            elif not connection.dialled and silent_s > self.limits.idle_timeout_s:
                self.counters.idle += 1
                self._lines.warning(
                    f"idle {connection.peer_id:x}",
                    f"peer connection closed node={self._me} peer={connection.peer_id:x} address={connection.address} "
                    f'error="no whole frame for {silent_s:.1f} s"',
                )
                connection.abort(f"no whole frame for {silent_s:.1f} s")
            elif connection.dialled:
                connection.ping()
        self._ticker = None
        self._start_ticking()

    # ------------------------------------------------------------ looking, and the end

    def stats(self) -> dict[int, PeerStats]:
        """For every peer, and every stranger that is connected."""
        result = {}
        for node in sorted({*self._peers, *self._routes}):
            peer, route = self._peers.get(node), self._routes.get(node)
            counters = peer.counters if peer is not None else (route.counters if route is not None else Counters())
            result[node] = PeerStats(
                id=node,
                name=(peer.address.name if peer is not None else "") or (route.name if route is not None else ""),
                connected=route is not None,
                address=route.address if route is not None else "",
                incarnation=route.incarnation if route is not None else 0,
                connected_since=route.opened_at if route is not None else 0,
                sent_bytes=counters.sent_bytes,
                sent_messages=counters.sent_messages,
                received_bytes=counters.received_bytes,
                received_messages=counters.received_messages,
                dropped=counters.dropped,
                unknown_frames=counters.unknown,
                waiting_bytes=route.waiting_bytes if route is not None else 0,
                rtt_ns=counters.rtt_ns,
                connects=peer.connects if peer is not None else 1,
                last_error=peer.last_error if peer is not None else "",
            )
        return result

    async def close(self) -> None:
        """Stop listening and dialling, let go what was flushed, close every connection. May be called again."""
        if self._closed:
            return
        self.flush()
        self._closed = True
        if self._ticker is not None:
            self._ticker.cancel()
        tasks = [task for _, task in self._listeners]
        tasks += [peer.task for peer in self._peers.values() if peer.task is not None]
        tasks += self._pending.values()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for listener, _ in self._listeners:
            listener.close()
        connections = list(self._connections)
        for connection in connections:
            connection.close("this member is stopping")
        waiting = [c.closed for c in connections if c.transport is not None]
        if waiting:
            await asyncio.wait(waiting, timeout=2 * self.limits.close_timeout_s)
        self._routes.clear()
        self._listeners.clear()

    def _connection(
        self, address: str, *, dialled: int = 0, hello: Hello | None = None, secure: bool = False
    ) -> Connection:
        connection = Connection(
            self, self.limits, self._clock, asyncio.get_running_loop(),
            address=address, dialled=dialled, hello=hello, secure=secure,
        )  # fmt: skip
        self._connections[connection] = None
        return connection

    def _task(self, work: Any, name: str) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work, name=name)
        task.add_done_callback(_report)
        return task


def _report(task: asyncio.Task[None]) -> None:
    """A task of ours ends by cancellation; with an error it is a bug, which must be seen."""
    if not task.cancelled() and (error := task.exception()) is not None:
        task.get_loop().call_exception_handler(
            {"message": f"{task.get_name()} failed", "exception": error, "task": task}
        )


def _hello_again(identity: LocalIdentity, connection: Connection) -> Hello:
    """What the member at the other end of `connection` said, as far as `admit` needs it."""
    return Hello(
        cluster_id=identity.cluster_id,
        member_id=connection.peer_id,
        incarnation=connection.incarnation,
        name=connection.name,
    )
