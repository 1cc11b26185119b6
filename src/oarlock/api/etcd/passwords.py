"""Passwords: hashed and checked with bcrypt, as etcd does, in a few threads beside the event loop.

A plain password lives in the request and here, nowhere else: not in the log of the group, not in a log line, not in a
`repr` (CVE-2021-28235). What is remembered of a right one is a keyed digest, for a short while.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import re
import secrets
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from oarlock.api.etcd import errors
from oarlock.api.grpc import Code, RpcError
from oarlock.api.limits import Limits

PASSWORD_BYTES_MAX: Final = 72
"""What bcrypt looks at. More would be cut off silently, so it is refused."""

COST_MIN, COST_MAX, COST_DEFAULT = 4, 16, 10
"""Powers of two of bcrypt's work. (etcd goes to 31: a check of days.)"""

_HASH: Final = re.compile(rb"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}")
_NOBODYS_HASH: Final = (
    b"$2a$%02d$HmgV3rRBT0Lw1BWY.Szva.UVVU1lv807yvDL9lNx5Z8CpuzjThhD6"  # of 40 random bytes that nobody kept
)

TOO_LONG = (Code.INVALID_ARGUMENT, f"oarlock: a password has at most {PASSWORD_BYTES_MAX} bytes")
NOT_A_HASH = (Code.INVALID_ARGUMENT, "oarlock: hashedPassword is not the base64 of a bcrypt hash with a cost up to 16")

Hashed = Callable[[bytes], None]
Checked = Callable[[bool], None]


class Passwords:
    """Hashes and checks. All methods on the event loop's thread; answers come there too, never within the call."""

    def __init__(self, limits: Limits, cost: int = COST_DEFAULT, length_min: int = 1) -> None:
        self._limits = limits
        self._cost = cost
        self._length_min = length_min
        self._pool: ThreadPoolExecutor | None = None
        self._waiting = 0
        self._key = secrets.token_bytes(32)
        self._right: OrderedDict[bytes, float] = OrderedDict()  # digest -> until
        self._wrong: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()  # (peer, user) -> (left, at)

    def __repr__(self) -> str:
        return f"Passwords(cost={self._cost}, waiting={self._waiting})"

    def close(self) -> None:
        """End the threads. Answers still due never come."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def refuse(self, password: str) -> RpcError | None:
        """What the policy has against a new password."""
        if len(password.encode()) > PASSWORD_BYTES_MAX:
            return RpcError(*TOO_LONG)
        if len(password) < self._length_min:
            return RpcError(Code.INVALID_ARGUMENT, f"oarlock: a password needs at least {self._length_min} characters")
        return None

    @staticmethod
    def given_hash(text: str) -> bytes:
        """A hash that the client made itself, as etcd's API carries it: base64. Raises `RpcError` unless it is one that
        can be checked in a bearable time."""
        try:
            hashed = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise RpcError(*NOT_A_HASH) from error
        found = _HASH.fullmatch(hashed)
        if found is None or not COST_MIN <= int(found[1]) <= COST_MAX:
            raise RpcError(*NOT_A_HASH)
        return hashed

    def hash(self, password: str, done: Hashed) -> None:
        """`done(hash)` with a salt of its own. Raises `RpcError` when too many wait."""
        self._run(_hash, (password.encode(), self._cost), done)

    def check(self, peer: str, user: str, password: str, hashed: bytes | None, done: Checked) -> None:
        """`done(whether the password is right)`. `hashed` is None for a user who does not exist; that takes as long.

        Raises `RpcError` when too many wait, or when `peer` has been wrong about `user` too often of late.
        """
        loop = asyncio.get_running_loop()
        data = password.encode()
        digest = b""
        if hashed is not None:
            secret = len(data).to_bytes(4, "big") + data + hashed + user.encode()
            digest = hashlib.blake2b(secret, key=self._key, digest_size=32).digest()
            until = self._right.get(digest)
            if until is not None:
                if until > loop.time():
                    loop.call_soon(done, True)
                    return
                del self._right[digest]
        if self._spent(peer, user, loop.time()):
            raise RpcError(*errors.TOO_MANY_REQUESTS)
        against = hashed if hashed is not None else _NOBODYS_HASH % self._cost
        self._run(_check, (data, against), partial(self._checked, peer, user, digest, done))

    def _checked(self, peer: str, user: str, digest: bytes, done: Checked, right: bool) -> None:
        if right and digest:
            self._right[digest] = asyncio.get_running_loop().time() + self._limits.password_cache_s
            if len(self._right) > self._limits.password_cache_max:
                self._right.popitem(last=False)
        else:
            self._spend(peer, user, asyncio.get_running_loop().time())
        done(right and bool(digest))

    # -- guessing
    def _left(self, peer: str, user: str, now: float) -> float:
        limits = self._limits
        left, at = self._wrong.get((peer, user), (float(limits.wrong_passwords_max), now))
        return min(float(limits.wrong_passwords_max), left + (now - at) * limits.wrong_passwords_per_s)

    def _spent(self, peer: str, user: str, now: float) -> bool:
        return self._left(peer, user, now) < 1

    def _spend(self, peer: str, user: str, now: float) -> None:
        left = self._left(peer, user, now) - 1
        self._wrong.pop((peer, user), None)
        self._wrong[peer, user] = (max(left, 0.0), now)
        if len(self._wrong) > self._limits.password_cache_max:
            self._wrong.popitem(last=False)

    # -- threads
    def _run(self, work: Callable[..., Any], arguments: tuple[Any, ...], done: Callable[[Any], None]) -> None:
        limits = self._limits
        if self._waiting >= limits.passwords_waiting_max:
            raise RpcError(*errors.TOO_MANY_REQUESTS)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(limits.password_threads, thread_name_prefix="oarlock-password")
        self._waiting += 1
        future = asyncio.get_running_loop().run_in_executor(self._pool, work, *arguments)
        future.add_done_callback(partial(self._ran, done))

    def _ran(self, done: Callable[[Any], None], future: asyncio.Future[Any]) -> None:
        self._waiting -= 1
        if not future.cancelled():
            done(future.result())


def _hash(password: bytes, cost: int) -> bytes:
    import bcrypt

    return bcrypt.hashpw(password, bcrypt.gensalt(cost, prefix=b"2a"))  # the prefix that etcd writes


def _check(password: bytes, hashed: bytes) -> bool:
    import bcrypt

    if len(password) > PASSWORD_BYTES_MAX:
        return False
    try:
        return bcrypt.checkpw(password, hashed)
    except ValueError:
        return False  # not a hash: the user was left without a password
