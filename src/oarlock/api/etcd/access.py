"""Who a request comes from, and whether it may be served: asked before every handler while authentication is on.

A refusal that this member's state gives may only mean that it has not applied enough of the log yet: the token, the
role, the permission may have been given by another member a moment ago. So before a caller who showed something is
refused, the member catches up by one read barrier, which all such requests of a turn share, and looks again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Protocol

from oarlock.api.backend import Backend
from oarlock.api.etcd import errors, rights
from oarlock.api.etcd.tokens import TOKEN_BYTES_MAX, AuthOptions, Identity, JwtTokens, SimpleTokens, Tokens
from oarlock.api.grpc import Call, Method, RpcError, StreamCall
from oarlock.api.grpc.router import StreamHandler, UnaryHandler
from oarlock.api.limits import Limits
from oarlock.errors import RaftError
from oarlock.machines.kv import commands
from oarlock.machines.kv.auth import AuthState
from oarlock.machines.kv.commands import KvError
from oarlock.machines.kv.commands_auth import Checked
from oarlock.machines.kv.permissions import interval
from oarlock.machines.kv.visit import READ, WRITE

log = logging.getLogger(__name__)

NOBODY = Identity("", 0)
EXEMPT = -1  # `Call.admitted` of a call that needs no right


class AuthReads(Protocol):
    """What is asked of the key-value machine here."""

    @property
    def applied_index(self) -> int: ...
    @property
    def auth(self) -> AuthState: ...
    def keys_of_lease(self, lease: int) -> Iterable[bytes]: ...
    def lease_ids(self) -> Iterable[int]: ...


class Access:
    """See the module. One for each port."""

    def __init__(self, backend: Backend, machine: AuthReads, limits: Limits, options: AuthOptions) -> None:
        self.auth = machine.auth
        self._backend = backend
        self._machine = machine
        self._rows = rights.table(limits)
        self._certificate_users = options.certificate_users
        self.tokens: Tokens
        if options.jwt is not None:
            self.tokens = JwtTokens(machine.auth, options.jwt, limits.tokens_remembered_max)
        else:
            self.tokens = SimpleTokens(machine.auth, options.token_ttl_s, limits.tokens_remembered_max)
        self._doubtful: list[Callable[[RaftError | None], None]] = []

    def refresh(self) -> None:
        """Called about once a second."""
        self.tokens.sweep()

    # -- before handlers
    def protect(self, method: Method) -> None:
        """Put the table before the handler of `method`."""
        row = self._rows.get((method.service, method.name))
        if method.unary is not None:
            method.unary = partial(self._unary, row, method.unary)
        else:
            assert method.stream is not None
            method.stream = partial(self._stream, row, method.stream)

    def _unary(self, row: rights.Row | None, handler: UnaryHandler, call: Call, message: bytes) -> None:
        if self.auth.enabled and not self._admit(row, call, message):
            self._look_again(call, partial(self._unary_again, row, handler, call, message))
            return
        handler(call, message)

    def _unary_again(
        self, row: rights.Row | None, handler: UnaryHandler, call: Call, message: bytes, error: RaftError | None
    ) -> None:
        if not call.open:
            return  # the client has gone, or its time is over
        try:
            if self.auth.enabled:
                self._must(row, call, message)
            handler(call, message)
        except Exception as failure:  # the outer edge of a call: it ends here, the connection goes on
            call.fail_for(failure)

    async def _stream(self, row: rights.Row | None, handler: StreamHandler, call: StreamCall) -> None:
        # No stream that is asked here says in its messages who may have it.
        if self.auth.enabled and row is not rights.inside and not self._admit(row, call, b""):
            await self.caught_up()
            if self._is_on():
                self._must(row, call, b"")
        await handler(call)

    def _is_on(self) -> bool:
        """`auth.enabled`, asked again after something was awaited."""
        return self.auth.enabled

    def _admit(self, row: rights.Row | None, call: Call, message: bytes) -> bool:
        """Whether the call may be served; False: not by what this member knows now. Raises `RpcError` for one that
        must not be served whatever else there is to know."""
        try:
            self._must(row, call, message)
        except Doubt:
            return False
        return True

    def _must(self, row: rights.Row | None, call: Call, message: bytes) -> None:
        """Raises `RpcError` unless the call may be served; `Doubt` where more of the log might say otherwise."""
        if row is rights.open_to_all:
            call.admitted = EXEMPT
            return
        if row is None:
            log.error("refused: no right is declared for it method=%s/%s", call.method.service, call.method.name)
            raise RpcError(*errors.PERMISSION_DENIED)
        try:
            identity = self.identify(call)
        except RpcError:
            row(self.auth, *NOBODY, message, self._machine)  # what is wrong with the request itself is said first
            raise
        user, revision = NOBODY if identity is None else identity
        refused = row(self.auth, user, revision, message, self._machine)
        if refused is not None:
            raise self._refusal(refused, identity)
        call.identity = identity
        call.admitted = self.auth.revision

    @staticmethod
    def _refusal(refused: KvError, identity: Identity | None) -> RpcError:
        status = errors.of_kv_error(refused)
        return RpcError(*status) if identity is None else Doubt(*status)

    # -- catching up
    def _look_again(self, call: Call, look: Callable[[RaftError | None], None]) -> None:
        self._doubtful.append(look)
        if len(self._doubtful) == 1:
            self._backend.flush_soon(self._begin_barrier)

    def _begin_barrier(self) -> None:
        doubtful, self._doubtful = self._doubtful, []

        def done(error: RaftError | None) -> None:
            # Without a leader nobody can know more: what this member says then stands.
            for look in doubtful:
                look(error)

        try:
            self._backend.read_barrier(done)
        except RaftError as error:
            done(error)

    async def caught_up(self) -> None:
        """Return after a read barrier, or when there can be none."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(error: RaftError | None) -> None:
            if not waiter.done():
                waiter.set_result(None)

        self._doubtful.append(done)
        if len(self._doubtful) == 1:
            self._backend.flush_soon(self._begin_barrier)
        await waiter

    # -- who
    def identify(self, call: Call) -> Identity | None:
        """Who sent `call`; None if it does not say. Raises `Doubt` or `RpcError` for a token that is not valid.

        A certificate counts only where no token is shown, and only on gRPC's own connections.
        """
        token = call.metadata(b"token")
        if token is None:
            token = call.metadata(b"authorization")
        if token is not None:
            return self.identify_token(token)
        if not self._certificate_users:
            return None
        return self.identify_certificate(call.connection.certificate_user())

    def identify_token(self, token: bytes) -> Identity:
        """Who shows `token` (a gRPC metadata value, or the HTTP header Authorization). Raises as `identify`."""
        token = token.removeprefix(b"Bearer ")
        if len(token) <= TOKEN_BYTES_MAX:
            identity = self.tokens.resolve(token)
            if identity is not None:
                return identity
            if self.tokens.may_come(token, self._machine.applied_index):
                raise Doubt(*errors.INVALID_TOKEN)
        raise RpcError(*errors.INVALID_TOKEN)

    def identify_certificate(self, common_name: str) -> Identity | None:
        """The user of a client certificate that the port has verified. Never for the JSON gateway (CVE-2018-16886)."""
        return Identity(common_name, self.auth.revision) if common_name else None

    # -- what handlers ask
    def still(self, call: Call) -> bool:
        """Whether what was found when `call` was admitted holds: nothing about users and roles has changed since."""
        if not self.auth.enabled or call.admitted in (self.auth.revision, EXEMPT):
            return True
        # Authentication may have been turned on since; then nobody has looked at this call at all.
        return self._rows.get((call.method.service, call.method.name)) is rights.open_to_all

    def wrap(self, call: Call, command: bytes) -> bytes:
        """`command` as it goes into the log while authentication is on."""
        identity = call.identity
        return command if identity is None else commands.encode(Checked(*identity, command))

    def may_read(self, identity: Identity | None, key: bytes, range_end: bytes) -> RpcError | None:
        """What a watch of this range by `identity` is refused with; None if it is not. The range is as it will be
        watched: after every default was filled in."""
        user, revision = NOBODY if identity is None else identity
        refused = self.auth.refuse_range(user, revision, READ, interval(key, range_end))
        return None if refused is None else RpcError(*errors.of_kv_error(refused))

    def may_go_on(self, call: Call, key: bytes, range_end: bytes) -> RpcError | None:
        """What is left of a stream's right to read this range: by what its caller may do now, whatever has become of
        the token that it began with."""
        if not self.auth.enabled:
            return None
        identity = None if call.identity is None else Identity(call.identity[0], self.auth.revision)
        return self.may_read(identity, key, range_end)

    def may_use_lease(self, identity: Identity | None, lease: int, *, write: bool = True) -> RpcError | None:
        """What renewing (or with `write` False seeing) this lease by `identity` is refused with."""
        user, revision = NOBODY if identity is None else identity
        keys = self._machine.keys_of_lease(lease)
        refused = self.auth.refuse_lease(user, revision, keys, WRITE if write else READ)
        return None if refused is None else RpcError(*errors.of_kv_error(refused))

    async def ask(self, call: Call, question: Callable[[Identity | None], RpcError | None]) -> RpcError | None:
        """`question(who sent the call)` for one message of a stream: what it is refused with, or None. Catches up
        before it refuses somebody who showed something."""
        if not self.auth.enabled:
            return None
        try:
            identity = self.identify(call)
            refused = question(identity)
            if refused is None or identity is None:
                call.identity = identity
                return refused
        except Doubt:
            pass
        except RpcError as refusal:
            return refusal
        await self.caught_up()
        if not self._is_on():
            return None
        try:
            identity = call.identity = self.identify(call)
        except RpcError as refusal:
            return RpcError(refusal.code, refusal.text)
        return question(identity)


class Doubt(RpcError):
    """A refusal that more of the log might take back."""


__all__ = ["Access", "AuthOptions", "Doubt", "Identity"]
