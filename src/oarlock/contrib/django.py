"""A cache for Django that all its processes share, kept by Oarlock (or any etcd): `pip install "oarlock[django]"`.

    CACHES = {
        "default": {
            "BACKEND": "oarlock.contrib.django.OarlockCache",
            "LOCATION": ["10.0.1.10:2379", "10.0.1.11:2379", "10.0.1.12:2379"],
        }
    }

What was set is read by every process from then on: reads are linearizable. Values are never pickled: what comes out of
the cache is data, whoever wrote it. (docs/how-to/use-with-django.md)
"""

from __future__ import annotations

import atexit
import math
import os
import random
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeVar

from asgiref.sync import sync_to_async
from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache, InvalidCacheKey
from django.core.exceptions import ImproperlyConfigured
from django.utils.module_loading import import_string
from django.utils.safestring import SafeString

from oarlock.client import (
    Condition,
    Delete,
    Get,
    Key,
    KeyValue,
    NotFound,
    Outcome,
    Page,
    Put,
    TransactionConflict,
    Unavailable,
)
from oarlock.client import Lock as ClientLock
from oarlock.client.sync import Client, Held
from oarlock.machines.objects.values import Codec as ValueCodec
from oarlock.machines.objects.values import Registry, Undecodable, Unencodable

T = TypeVar("T")

OPERATIONS_MAX: Final = 100
"""Keys in one request of `get_many`, `set_many` and `delete_many`; servers take 128 unless told otherwise."""

REQUEST_BYTES_MAX: Final = 1 << 20
"""Of values in one request of `set_many`; servers take 1.5 MiB unless told otherwise."""

ATTEMPTS_MAX: Final = 3
"""How often what may be repeated (set, touch, delete) is sent when nobody knows whether it was done."""

CHANGES_MAX: Final = 100
"""How often `incr` and `touch` begin again because somebody else changed the entry."""

BACKOFF_S: Final = 0.005
LEASE_KEYS_MAX: Final = 1000
"""Entries of one lease: they go in one step when it ends."""

LEASE_WINDOW: Final = 8
"""A lease is shared by entries whose ends lie within 1/8 of their timeout."""

LEASE_S_MAX: Final = 9_000_000_000 // 2
TTL_SLACK_S: Final = 2
VERSION: Final = 1
_HEAD: Final = struct.Struct(">Bd")
_OPTIONS: Final = frozenset({"prefix", "user", "password", "timeout", "tls", "codec", "classes"})


class Codec(Protocol):
    """What `OPTIONS["codec"]` names: values as bytes and back."""

    def encode(self, value: Any, /) -> bytes: ...
    def decode(self, data: bytes, /) -> Any: ...


class OarlockCache(BaseCache):
    """The backend. See the module.

    An entry's end is written into it, so that it is over at that moment, by the clock of the reader; a lease, shared by
    entries of about the same end, then removes it from the server. There is no limit of entries and no culling: give
    every entry an end.
    """

    def __init__(self, location: str | Sequence[str], params: dict[str, Any]) -> None:
        super().__init__(params)
        options: dict[str, Any] = dict(params.get("OPTIONS") or {})
        if unknown := sorted(set(options) - _OPTIONS):
            raise ImproperlyConfigured(
                f"OPTIONS of a cache in Oarlock has {', '.join(unknown)}; known are {', '.join(sorted(_OPTIONS))}"
            )
        self._prefix = str(options.get("prefix", "django-cache/")).encode()
        if not self._prefix:
            raise ImproperlyConfigured(
                'OPTIONS["prefix"] of a cache in Oarlock is empty: clear() would empty the store'
            )
        self._codec = _codec_of(options)
        self._connection = _connection(_endpoints(location), options)

    @property
    def client(self) -> Client:
        """The client of this process, for what is not a cache: watches, elections, transactions."""
        return self._connection.client

    # -- what Django asks a backend for

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        item = self.client.get(self._name(key, version))
        return default if item is None or _over(_end_of(item)) else self._value(item)

    def set(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        name, end = self._name(key, version), self.get_backend_timeout(timeout)
        data = self._pack(value, end, key)
        if _over(end):
            _repeat(lambda: self.client.delete(name))
        else:
            self._write(end, lambda lease: _repeat(lambda: self.client.put(name, data, lease=lease)))

    def add(self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        end = self.get_backend_timeout(timeout)
        data = self._pack(value, end, key)
        return self._change(key, version, lambda item: (data, end) if item is None else None) is not None

    def touch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        end = self.get_backend_timeout(timeout)

        def later(item: KeyValue | None) -> tuple[bytes, float | None] | None:
            return None if item is None else (_head(end) + item.value[_HEAD.size :], end)

        return self._change(key, version, later) is not None

    def delete(self, key: Any, version: int | None = None) -> bool:
        gone = _repeat(lambda: self.client.delete(self._name(key, version), previous=True))
        return any(not _over(_end_of(item)) for item in gone.previous)

    def incr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """Atomic: no increment is lost. The entry keeps its end. Raises `ValueError` if there is none, and `EtcdError`
        if nobody knows whether it was done."""
        result: Any = None

        def more(item: KeyValue | None) -> tuple[bytes, float | None] | None:
            nonlocal result
            if item is None:
                return None
            result = self._value(item) + delta
            return self._pack(result, _end_of(item), key), _end_of(item)

        if self._change(key, version, more) is None:
            raise ValueError(f"Key {key!r} not found")
        counted: int = result
        return counted

    def get_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        names = {self._name(key, version): key for key in keys}
        found: dict[Any, Any] = {}
        for part in _parts(list(names)):
            for page in self.client.txn(then=[Get(name) for name in part]).results:
                assert isinstance(page, Page)
                for item in page.items:
                    if not _over(_end_of(item)):
                        found[names[item.key]] = self._value(item)
        return found

    def set_many(
        self, data: Mapping[Any, Any], timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> list[Any]:
        """Several entries at once, in requests of at most `OPERATIONS_MAX` keys and `REQUEST_BYTES_MAX` bytes, each of
        which becomes visible at once. Gives the keys that failed: none, errors are raised."""
        end = self.get_backend_timeout(timeout)
        if _over(end):
            self.delete_many(data, version)
            return []
        packed = {self._name(key, version): self._pack(value, end, key) for key, value in data.items()}
        for part in _parts(list(packed), lambda name: len(packed[name])):
            self._write(end, partial(self._put_all, {name: packed[name] for name in part}))
        return []

    def delete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        for part in _parts(list({self._name(key, version): None for key in keys})):
            _repeat(partial(self.client.txn, then=[Delete(name) for name in part]))

    def clear(self) -> None:
        """Delete every entry under `OPTIONS["prefix"]`: of every `KEY_PREFIX` and version, as Django says."""
        _repeat(lambda: self.client.delete(self._prefix, prefix=True))

    def close(self, **kwargs: Any) -> None:
        """Django calls it after each request. The connection is the process's and stays: see `close_connections`."""

    # BaseCache's own do these key by key, and `aincr` as a read and a write, which would lose increments

    async def aincr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        return await sync_to_async(self.incr)(key, delta, version)

    async def adecr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        return await sync_to_async(self.incr)(key, -delta, version)

    async def aget_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        return await sync_to_async(self.get_many)(keys, version)

    async def aset_many(
        self, data: Mapping[Any, Any], timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> list[Any]:
        return await sync_to_async(self.set_many)(data, timeout, version)

    async def adelete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        await sync_to_async(self.delete_many)(keys, version)

    # -- more than a cache

    def lock(self, name: str, *, ttl: int = 10) -> Held[ClientLock]:
        """`with cache.lock("nightly") as lock`: one at a time over all processes; waits for its turn.

        `lock.token` fences what is written under it (docs/how-to/lock-and-fence.md), `lock.valid` says whether it is
        still held. A process that dies loses it after `ttl` seconds. `clear()` leaves locks alone.
        """
        return self.client.lock(b"django-lock/" + name.encode(), ttl=ttl)

    # -- how

    def _name(self, key: Any, version: int | None) -> bytes:
        made = self.make_and_validate_key(key, version=version)
        try:
            return self._prefix + str(made).encode()
        except UnicodeEncodeError:
            raise InvalidCacheKey(f"the cache key {made!r} has lone surrogates, which are no text") from None

    def _pack(self, value: Any, end: float | None, key: Any) -> bytes:
        if type(value) is SafeString:  # what {% cache %} keeps: output of a template, which it does not escape again
            value = str.__str__(value)
        try:
            return _head(end) + self._codec.encode(value)
        except Unencodable as error:
            raise Unencodable(
                f"the cache does not take the value of {key!r}: {error}. Values are never pickled: cache the data that "
                'the object is made from, name its class in OPTIONS["classes"], or give OPTIONS["codec"]'
            ) from None

    def _value(self, item: KeyValue) -> Any:
        return self._codec.decode(item.value[_HEAD.size :])

    def _write(self, end: float | None, write: Callable[[int], T]) -> T:
        """`write(lease)`, with another lease if that one has ended before its time: revoked by somebody, say."""
        leases = self._connection.leases
        for _ in range(ATTEMPTS_MAX):
            lease = leases.until(end)
            try:
                return write(lease)
            except NotFound:
                leases.forget(lease)
        return write(0)  # without a lease it goes only by its end; better than not at all

    def _put_all(self, entries: Mapping[bytes, bytes], lease: int) -> None:
        _repeat(lambda: self.client.txn(then=[Put(name, data, lease) for name, data in entries.items()]))

    def _put_if(self, condition: Condition, name: bytes, data: bytes, lease: int) -> bool:
        return self.client.txn(when=[condition], then=[Put(name, data, lease)]).succeeded

    def _change(
        self, key: Any, version: int | None, change: Callable[[KeyValue | None], tuple[bytes, float | None] | None]
    ) -> bytes | None:
        """Replace an entry by what `change` makes of it, unless somebody else does in between: then again. None, and
        nothing done, if `change` gives None. It is given None for an entry that is over."""
        name = self._name(key, version)
        for turn in range(CHANGES_MAX):
            item = self.client.get(name)
            wanted = change(None if item is None or _over(_end_of(item)) else item)
            if wanted is None:
                return None
            data, end = wanted
            same = Key(name).mod_revision == (0 if item is None else item.mod_revision)
            if _over(end):
                done = self.client.txn(when=[same], then=[Delete(name)]).succeeded
            else:
                done = self._write(end, partial(self._put_if, same, name, data))
            if done:
                return data
            time.sleep(random.uniform(0, BACKOFF_S * min(turn + 1, 10)))
        raise TransactionConflict(CHANGES_MAX)


class Leases:
    """Leases that entries of about the same end share: one for each entry would double the writes."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._known: dict[tuple[int, int], tuple[int, float, int]] = {}  # window: lease, its end, entries so far

    def until(self, end: float | None) -> int:
        """A lease that lasts a bit longer than that moment; 0 for an entry without an end."""
        if end is None:
            return 0
        now = time.time()
        seconds = min(end - now, LEASE_S_MAX)
        size = max(1, (1 << max(0, int(seconds).bit_length() - 1)) // LEASE_WINDOW)
        window = (size, int(min(end, now + LEASE_S_MAX) // size) + 1)
        with self._lock:
            lease, over, entries = self._known.get(window, (0, 0.0, LEASE_KEYS_MAX))
            if entries >= LEASE_KEYS_MAX:
                over = window[0] * window[1]
                lease, entries = self._client.grant(int(over - now) + TTL_SLACK_S), 0
                self._known = {each: known for each, known in self._known.items() if known[1] > now}
            self._known[window] = (lease, over, entries + 1)
        return lease

    def forget(self, lease: int) -> None:
        with self._lock:
            self._known = {window: known for window, known in self._known.items() if known[0] != lease}


# -- entries


def _head(end: float | None) -> bytes:
    return _HEAD.pack(VERSION, math.inf if end is None else end)


def _end_of(item: KeyValue) -> float | None:
    if len(item.value) < _HEAD.size or item.value[0] != VERSION:
        raise Undecodable(
            f"the key {item.key!r} was not written by this cache, or by a later version of it: give the cache a "
            'prefix of its own (OPTIONS["prefix"]), or clear() it'
        )
    end: float = _HEAD.unpack_from(item.value)[1]
    return None if end == math.inf else end


def _over(end: float | None) -> bool:
    return end is not None and end <= time.time()


def _parts(names: list[bytes], size: Callable[[bytes], int] = len) -> Iterator[list[bytes]]:
    """In parts that fit into a request each."""
    part: list[bytes] = []
    held = 0
    for name in names:
        if part and (len(part) == OPERATIONS_MAX or held + size(name) > REQUEST_BYTES_MAX):
            yield part
            part, held = [], 0
        part.append(name)
        held += size(name)
    if part:
        yield part


def _repeat(call: Callable[[], T]) -> T:
    """Do what may be done twice, again if nobody knows whether it was done."""
    for _ in range(ATTEMPTS_MAX - 1):
        try:
            return call()
        except Unavailable as error:  # a deadline that has passed is the caller's, and ends it
            if error.outcome is not Outcome.UNKNOWN:
                raise
    return call()


# -- connections: one for each process and configuration, whatever the number of threads and caches


class _Connection:
    def __init__(self, make: Callable[[], Client]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._pid = 0
        self._client: Client | None = None
        self._leases: Leases | None = None

    def _open(self) -> tuple[Client, Leases]:
        client, leases = self._client, self._leases
        if client is not None and leases is not None and self._pid == os.getpid():
            return client, leases
        with self._lock:
            if self._client is None or self._leases is None or self._pid != os.getpid():
                self._client = self._make()
                self._leases = Leases(self._client)
                self._pid = os.getpid()
            return self._client, self._leases

    @property
    def client(self) -> Client:
        return self._open()[0]

    @property
    def leases(self) -> Leases:
        return self._open()[1]

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
            if client is not None and self._pid == os.getpid():
                client.close()

    def forked(self) -> None:
        """In the child: the parent's thread is not here, and its lock may be held by nobody."""
        self._lock = threading.Lock()
        self._client = None


_connections: dict[str, _Connection] = {}
_connections_lock = threading.Lock()


def _connection(endpoints: list[str], options: Mapping[str, Any]) -> _Connection:
    kept = {name: options[name] for name in ("user", "password", "timeout", "tls") if name in options}
    tls: Mapping[str, Any] = kept.pop("tls", {})
    context: ssl.SSLContext | None = None
    if tls:
        if unknown := sorted(set(tls) - {"ca", "cert", "key"}):
            raise ImproperlyConfigured(f'OPTIONS["tls"] has {", ".join(unknown)}; known are ca, cert and key')
        context = ssl.create_default_context(cafile=tls.get("ca"))
        if "cert" in tls:
            context.load_cert_chain(tls["cert"], tls.get("key"))
    with _connections_lock:
        return _connections.setdefault(
            repr((endpoints, sorted(kept.items()), sorted(tls.items()))),
            _Connection(lambda: Client(endpoints, tls=context, **kept)),
        )


def close_connections() -> None:
    """Close what this process has open. The next use opens it again."""
    with _connections_lock:
        for each in _connections.values():
            each.close()


def _forked() -> None:
    global _connections_lock
    _connections_lock = threading.Lock()
    for each in _connections.values():
        each.forked()


os.register_at_fork(after_in_child=_forked)
atexit.register(close_connections)


# -- settings


def _endpoints(location: str | Sequence[str]) -> list[str]:
    found = location.replace(";", ",").split(",") if isinstance(location, str) else list(location)
    found = [each.strip() for each in found if each.strip()]
    if not found:
        raise ImproperlyConfigured(
            'LOCATION of a cache in Oarlock is empty: give the members, as ["10.0.1.10:2379", "10.0.1.11:2379"]'
        )
    return found


def _codec_of(options: Mapping[str, Any]) -> Codec:
    wanted, classes = options.get("codec"), options.get("classes", ())
    if wanted is None:
        return ValueCodec(Registry(import_string(each) if isinstance(each, str) else each for each in classes))
    if classes:
        raise ImproperlyConfigured('OPTIONS["classes"] is for the codec that comes with the cache: give one of the two')
    made: Codec = import_string(wanted)() if isinstance(wanted, str) else wanted
    return made
