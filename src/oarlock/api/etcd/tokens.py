"""Tokens: what a client shows instead of a password.

A *simple* token is random text and the index of the log entry that made it valid. The replicated state knows it by a
digest, so every member takes a token that any of them gave, also one that was restarted since. How long it lives is
counted by each member for itself, from its issue or from its last use there.

A *JWT* is signed and says user, auth revision and expiry itself; nothing about it is replicated.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import string
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

from oarlock.machines.kv.auth import DIGEST_BYTES, AuthState

log = logging.getLogger(__name__)

TOKEN_BYTES_MAX: Final = 8192
PREFIX_LETTERS: Final = 32  # of 52: 182 bits
INDEX_DIGITS_MAX: Final = 20
TAKEN_APART_MAX: Final = 1024
_LETTERS: Final = string.ascii_letters


class Identity(NamedTuple):
    """Who a request comes from, as of which auth revision."""

    user: str
    revision: int


@dataclass(frozen=True, slots=True)
class JwtKeys:
    """`algorithm` is JWT's name (RS256, ES256, EdDSA, HS256, ...); without `private` tokens are only checked."""

    algorithm: str
    private: Any = field(repr=False)
    public: Any = field(repr=False)
    ttl_s: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthOptions:
    """How a member authenticates. `jwt` None: simple tokens. `certificate_users`: the common name of a client's
    certificate is its user, where it shows no token."""

    token_ttl_s: float = 300.0
    jwt: JwtKeys | None = None
    bcrypt_cost: int = 10
    password_length_min: int = 1
    certificate_users: bool = False


class Tokens(Protocol):
    """One kind of token."""

    def resolve(self, token: bytes) -> Identity | None:
        """Whom `token` belongs to; None for one that is not valid here and now."""

    def may_come(self, token: bytes, applied_index: int) -> bool:
        """Whether a token that is not valid may become so when this member has applied more of the log."""

    def sweep(self) -> None:
        """Called about once a second: drop what has expired."""


class SimpleTokens:
    """See the module."""

    def __init__(self, auth: AuthState, ttl_s: float, entries_max: int) -> None:
        self._auth = auth
        self._ttl_s = ttl_s
        self._entries_max = entries_max
        self._until: OrderedDict[bytes, float] = OrderedDict()  # digest -> monotonic time, used longest ago first
        self._taken_apart: dict[bytes, tuple[bytes, int]] = {}  # token -> digest and index; those used of late

    @staticmethod
    def make() -> tuple[str, bytes]:
        """A new token's text, without its index, and its digest."""
        prefix = "".join(secrets.choice(_LETTERS) for _ in range(PREFIX_LETTERS))
        return prefix, _digest(prefix.encode())

    def resolve(self, token: bytes) -> Identity | None:
        apart = self._taken_apart.get(token)
        if apart is None:
            prefix, number = _split(token)
            if number is None:
                return None
            apart = (_digest(prefix), number)
            if len(self._taken_apart) >= TAKEN_APART_MAX:
                self._taken_apart.clear()
            self._taken_apart[token] = apart
        digest, index = apart
        found = self._auth.token(digest)
        if found is None or found.index != index:
            return None
        now = time.monotonic()
        until = self._until.pop(digest, None)
        if until is None:
            # Not used here yet. The leader's clock gave the stamp; ours may differ from it, but not by its whole life.
            until = now + min(self._ttl_s, self._ttl_s - (time.time_ns() - found.stamp_ns) / 1e9)
        if until <= now:
            # Remembered as expired, or the stamp might be asked again; its record ends when newer ones push it out.
            self._until[digest] = until
            return None
        self._until[digest] = now + self._ttl_s
        if len(self._until) > self._entries_max:
            self._until.popitem(last=False)
        return Identity(found.user, self._auth.revision)

    def may_come(self, token: bytes, applied_index: int) -> bool:
        _, index = _split(token)
        return index is not None and index > applied_index

    def sweep(self) -> None:
        now = time.monotonic()
        while self._until:
            digest, until = next(iter(self._until.items()))
            if until > now or self._auth.token(digest) is not None:
                return
            del self._until[digest]


def _digest(prefix: bytes) -> bytes:
    return hashlib.sha256(prefix).digest()[:DIGEST_BYTES]


def _split(token: bytes) -> tuple[bytes, int | None]:
    """Random text and index of a simple token; no index for anything that is none."""
    prefix, dot, digits = token.partition(b".")
    if not dot or len(prefix) != PREFIX_LETTERS or not prefix.isalpha():
        return prefix, None
    if not 0 < len(digits) <= INDEX_DIGITS_MAX or not digits.isdigit():
        return prefix, None
    return prefix, int(digits)


class JwtTokens:
    """See the module."""

    def __init__(self, auth: AuthState, keys: JwtKeys, entries_max: int) -> None:
        self._auth = auth
        self._keys = keys
        self._entries_max = entries_max
        self._known: OrderedDict[bytes, tuple[str, int, float]] = OrderedDict()  # checked ones: user, revision, expiry

    def make(self, user: str, revision: int) -> str | None:
        """A signed token; None where only the public key is here."""
        import jwt

        if self._keys.private is None:
            return None
        claims = {"username": user, "revision": revision, "exp": int(time.time() + self._keys.ttl_s)}
        return jwt.encode(claims, self._keys.private, algorithm=self._keys.algorithm)

    def resolve(self, token: bytes) -> Identity | None:
        known = self._known.get(token)
        if known is None:
            known = self._read(token)
            if known is None:
                return None
            self._known[token] = known
            if len(self._known) > self._entries_max:
                self._known.popitem(last=False)
        user, revision, expiry = known
        if expiry <= time.time():
            return None
        if revision > self._auth.revision:
            return None  # of a revision that this cluster has not had: signed with our key, but for another cluster
        return Identity(user, revision)

    def _read(self, token: bytes) -> tuple[str, int, float] | None:
        import jwt

        try:
            # Only our own algorithm counts, whatever the token says it was signed with.
            claims = jwt.decode(
                token,
                self._keys.public,
                algorithms=[self._keys.algorithm],
                options={"require": ["exp"], "verify_aud": False, "verify_iss": False},
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            log.info("token refused kind=jwt reason=%s", type(error).__name__)
            return None
        user, revision, expiry = claims.get("username"), claims.get("revision"), claims.get("exp")
        if not isinstance(user, str) or not user:
            return None
        if isinstance(revision, float) and revision.is_integer():
            revision = int(revision)
        if isinstance(revision, bool) or not isinstance(revision, int) or revision < 1:
            return None
        if isinstance(expiry, bool) or not isinstance(expiry, int | float):
            return None
        return user, revision, float(expiry)

    def may_come(self, token: bytes, applied_index: int) -> bool:
        """A token of a revision that this member has not applied yet."""
        known = self._read(token) if len(token) <= TOKEN_BYTES_MAX else None
        return known is not None and known[1] > self._auth.revision and known[2] > time.time()

    def sweep(self) -> None:
        now = time.time()
        for token in [token for token, (_, _, expiry) in self._known.items() if expiry <= now]:
            del self._known[token]
