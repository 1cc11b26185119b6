"""The cache backend in a real Django: what Django's documentation promises, asked of its own in-memory cache too."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sqlite3
import sys
import threading
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import django
import pytest
from django.conf import settings
from django.core.cache import CacheKeyWarning
from django.core.cache.backends.base import BaseCache
from django.core.cache.backends.locmem import LocMemCache
from django.core.exceptions import ImproperlyConfigured
from tests.support.clusters import cluster_of, find_leader, wait_until
from tests.support.environments import ROOT
from tests.support.programs import Program

from oarlock.cli.local_cluster import LocalCluster, free_ports
from oarlock.client.sync import Client
from oarlock.contrib.django import (
    LEASE_KEYS_MAX,
    OPERATIONS_MAX,
    Leases,
    OarlockCache,
    close_connections,
)
from oarlock.machines.objects.values import Undecodable, Unencodable

pytestmark = pytest.mark.timeout(300)
PATIENCE_S = 60.0
Make = Callable[..., BaseCache]


@pytest.fixture(scope="module", autouse=True)
def configured() -> Iterator[None]:
    if not settings.configured:
        settings.configure(USE_TZ=True)
        django.setup()
    yield
    close_connections()
    assert not [each for each in threading.enumerate() if each.name == "oarlock client"]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with cluster_of(3, steady=False) as made:
        yield made


@pytest.fixture(params=["oarlock", "locmem"])
def make(request: pytest.FixtureRequest) -> Iterator[Make]:
    made: list[BaseCache] = []

    def build(**params: Any) -> BaseCache:
        if request.param == "oarlock":
            made.append(OarlockCache(request.getfixturevalue("cluster").endpoints, params))
        else:
            made.append(LocMemCache("contract", params))
        return made[-1]

    yield build
    for each in made:
        each.clear()


@pytest.fixture
def cache(cluster: LocalCluster) -> Iterator[OarlockCache]:
    made = OarlockCache(cluster.endpoints, {})
    yield made
    made.clear()


# -- what Django's documentation says of any backend (topics/cache, "The low-level cache API")


def test_set_and_get(make: Make) -> None:
    cache = make()
    cache.set("my_key", "hello, world!", 30)
    assert cache.get("my_key") == "hello, world!"
    assert cache.get("nothing") is None
    assert cache.get("nothing", "has expired") == "has expired"
    sentinel = object()
    cache.set("none", None)
    assert cache.get("none", sentinel) is None, "None is a value"
    assert cache.get("nothing", sentinel) is sentinel
    assert "my_key" in cache and cache.has_key("my_key") and "nothing" not in cache


@pytest.mark.parametrize(
    "value",
    [
        "text", "", "ünïcödé ☃", b"\0\xff", 0, -1, 2**40, 2**70, 1.5, True, None, [1, [2]], (1, (2,)), {"a": {"b": 1}},
        {1: "x"}, {1, 2}, frozenset({3}), Decimal("1.10"), datetime(2026, 1, 2, tzinfo=UTC), "x" * 100_000,
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_values_come_back_as_they_were(make: Make, value: Any) -> None:
    cache = make()
    cache.set("key", value)
    found = cache.get("key")
    assert found == value and type(found) is type(value)


def test_a_value_is_a_copy(make: Make) -> None:
    cache, value = make(), {"list": [1]}
    cache.set("key", value)
    value["list"].append(2)
    assert cache.get("key") == {"list": [1]}
    cache.get("key")["list"].append(3)
    assert cache.get("key") == {"list": [1]}


def test_add_sets_only_what_is_missing(make: Make) -> None:
    cache = make()
    cache.set("add_key", "Initial value")
    assert cache.add("add_key", "New value") is False
    assert cache.get("add_key") == "Initial value"
    assert cache.add("new", 1) is True
    assert cache.add("gone", 1, timeout=0) is True or cache.get("gone") is None
    assert cache.get("gone") is None


def test_get_or_set(make: Make) -> None:
    cache = make()
    assert cache.get_or_set("key", "new value", 100) == "new value"
    assert cache.get_or_set("key", lambda: pytest.fail("it is there"), 100) == "new value"
    assert cache.get_or_set("called", lambda: 5) == 5
    assert cache.get_or_set("null", None) is None


def test_many(make: Make) -> None:
    cache = make()
    assert cache.set_many({"a": 1, "b": 2, "c": 3}) == []
    assert cache.get_many(["a", "b", "c", "d"]) == {"a": 1, "b": 2, "c": 3}
    assert cache.get_many(iter(["a"])) == {"a": 1}
    assert cache.get_many([]) == {} and cache.set_many({}) == []
    cache.delete_many(["a", "b", "d"])
    assert cache.get_many(["a", "b", "c"]) == {"c": 3}
    cache.set_many({"a": 1}, timeout=0)
    assert cache.get("a") is None
    cache.clear()
    assert cache.get("c") is None


def test_many_are_as_many_as_one_likes(make: Make) -> None:
    cache = make(max_entries=10_000)
    wanted = {f"k{n}": "x" * 9000 for n in range(3 * OPERATIONS_MAX + 7)}
    cache.set_many(wanted)
    assert cache.get_many(wanted) == wanted
    cache.delete_many(wanted)
    assert cache.get_many(wanted) == {}


def test_delete_says_whether_it_was_there(make: Make) -> None:
    cache = make()
    cache.set("a", 1)
    assert cache.delete("a") is True
    assert cache.delete("a") is False


def test_incr_and_decr(make: Make) -> None:
    cache = make()
    cache.set("num", 1)
    assert (cache.incr("num"), cache.incr("num", 10), cache.decr("num"), cache.decr("num", 5)) == (2, 12, 11, 6)
    assert cache.incr("num", -7) == -1
    for call in (cache.incr, cache.decr):
        with pytest.raises(ValueError, match="not found"):
            call("nothing")
    cache.set("text", "a")
    with pytest.raises(TypeError):
        cache.incr("text")


def test_versions(make: Make) -> None:
    cache, second = make(), make(VERSION=2)
    cache.set("my_key", "hello world!", version=2)
    assert cache.get("my_key") is None and cache.get("my_key", version=2) == "hello world!"
    assert second.get("my_key") == "hello world!"
    assert cache.incr_version("my_key", version=2) == 3
    assert cache.get("my_key", version=2) is None and cache.get("my_key", version=3) == "hello world!"
    assert cache.decr_version("my_key", version=3) == 2
    with pytest.raises(ValueError, match="not found"):
        cache.incr_version("nothing")


def test_prefixes_and_key_functions_keep_caches_apart(make: Make) -> None:
    one, other = make(KEY_PREFIX="one"), make(KEY_PREFIX="other")
    own = make(KEY_FUNCTION=lambda key, prefix, version: f"CUSTOM-{version}-{key}")
    one.set("a", 1)
    other.set("a", 2)
    own.set("a", 3)
    assert (one.get("a"), other.get("a"), own.get("a")) == (1, 2, 3)


@pytest.mark.parametrize("key", ["has space", "x" * 300, "new\nline", "\x7f"])
def test_keys_that_others_would_refuse_are_warned_of(make: Make, key: str) -> None:
    cache = make()
    with pytest.warns(CacheKeyWarning):
        cache.set(key, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CacheKeyWarning)
        assert cache.get(key) == 1
        assert cache.get_many([key]) == {key: 1}


def test_entries_end(make: Make) -> None:
    cache = make()
    cache.set("kept", 1, timeout=None)
    cache.set("none", 1, timeout=0)
    cache.set("negative", 1)
    cache.set("negative", 1, timeout=-5)
    cache.set("short", 1, timeout=1)
    cache.set("touched", 1, timeout=1)
    cache.set("counted", 1, timeout=1)
    cache.set_many({"m1": 1, "m2": 2}, timeout=1)
    assert cache.get("none") is None and cache.get("negative") is None
    assert cache.touch("touched", 60) is True and cache.touch("nothing") is False
    cache.incr("counted")
    time.sleep(1.1)
    names = ["kept", "short", "touched", "counted", "m1", "m2"]
    assert cache.get_many(names) == {"kept": 1, "touched": 1}
    assert not any(cache.has_key(name) for name in ("short", "counted"))
    assert cache.delete("short") is False and cache.touch("short") is False
    assert cache.add("short", 2) is True and cache.get("short") == 2, "what is over counts as missing"
    with pytest.raises(ValueError, match="not found"):
        cache.incr("m1")
    assert cache.touch("kept", 0) is True and cache.get("kept") is None


def test_it_serves_asynchronous_views(make: Make) -> None:
    cache = make()

    async def view() -> None:
        await cache.aset("num", 1)
        assert await cache.aincr("num") == 2 and await cache.adecr("num") == 1
        assert await cache.aadd("num", 1) is False
        await cache.aset_many({"a": 1, "b": 2})
        assert await cache.aget_many(["a", "b", "c"]) == {"a": 1, "b": 2}
        await cache.adelete_many(["a"])
        assert await cache.aget_or_set("a", 5) == 5
        assert await cache.atouch("a") and await cache.ahas_key("a")

    asyncio.run(view())


# -- what is ours


def test_increments_of_many_processes_are_all_counted(cluster: LocalCluster, cache: OarlockCache) -> None:
    cache.set("hits", 0)
    with ThreadPoolExecutor(8) as pool:
        seen = list(pool.map(lambda _: cache.incr("hits"), range(80)))
    assert sorted(seen) == list(range(1, 81))
    assert cache.get("hits") == 80

    cache.set("async", 0)

    async def view() -> None:
        await asyncio.gather(*(cache.aincr("async") for _ in range(10)))

    asyncio.run(view())
    assert cache.get("async") == 10


def test_only_one_add_succeeds(cache: OarlockCache) -> None:
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda n: cache.add("once", n), range(8)))
    assert done.count(True) == 1
    assert cache.get("once") == done.index(True)


class Picklable:
    def __reduce__(self) -> tuple[Any, ...]:
        raise AssertionError("a value was pickled")


@dataclass
class Price:
    amount: Decimal
    currency: str


TRAP = b"cposix\n_exit\n(I99\ntR."
"""What would end the process with 99 if anybody took it for a pickle."""


def test_nothing_is_pickled(cluster: LocalCluster, cache: OarlockCache) -> None:
    for call in (cache.set, cache.add):
        with pytest.raises(
            Unencodable, match=r"value of 'cart': the value\['items'\]\[1\] is a .*Picklable.*never pickled"
        ):
            call("cart", {"items": [1, Picklable()]})
    assert cache.get("cart") is None
    with pytest.raises(Unencodable, match="classes"):
        cache.set("price", Price(Decimal("1.50"), "EUR"))
    knows = OarlockCache(cluster.endpoints, {"OPTIONS": {"classes": [f"{__name__}.Price", Price][1:]}})
    knows.set("price", Price(Decimal("1.50"), "EUR"))
    assert knows.get("price") == Price(Decimal("1.50"), "EUR")
    with pytest.raises(Undecodable, match="Price"):
        cache.get("price")

    with Client(cluster.endpoints) as client:
        client.put("django-cache/:1:trap", TRAP)
    with pytest.raises(Undecodable, match="not written by this cache"):
        cache.get("trap")


class Upper:
    def encode(self, value: Any) -> bytes:
        return str(value).upper().encode()

    def decode(self, data: bytes) -> Any:
        return data.decode()


def test_a_codec_of_one_s_own(cluster: LocalCluster) -> None:
    cache = OarlockCache(cluster.endpoints, {"OPTIONS": {"codec": Upper(), "prefix": "upper/"}})
    cache.set("a", "text")
    assert cache.get("a") == "TEXT"
    cache.clear()


def test_settings_that_cannot_be_meant(cluster: LocalCluster) -> None:
    for location, options, said in (
        ("", {}, "LOCATION"),
        ("a:1", {"usr": "x"}, "usr; known are"),
        ("a:1", {"prefix": ""}, "empty the store"),
        ("a:1", {"tls": {"cafile": "x"}}, "cafile; known are ca"),
        ("a:1", {"codec": Upper(), "classes": [Price]}, "one of the two"),
    ):
        with pytest.raises(ImproperlyConfigured, match=said):
            OarlockCache(location, {"OPTIONS": options})
    both = OarlockCache(" ; ".join(cluster.endpoints), {"OPTIONS": {"timeout": 7}})
    assert both.client.get("nothing") is None


def test_the_server_forgets_what_is_over(cluster: LocalCluster, cache: OarlockCache) -> None:
    """Entries share leases, and go by them."""
    cache.set_many({f"k{n}": n for n in range(20)}, timeout=2)
    with Client(cluster.endpoints) as client:
        page = client.range("django-cache/", prefix=True)
        assert page.count == 20
        assert len({item.lease for item in page.items}) <= 2
        assert all(item.lease for item in page.items)
        wait_until(lambda: client.range("django-cache/", prefix=True).count == 0, PATIENCE_S, "all are gone")


def test_an_entry_outlives_a_lease_that_somebody_revoked(cache: OarlockCache) -> None:
    cache.set("a", 1, timeout=100)
    found = cache.client.get("django-cache/:1:a")
    assert found is not None
    cache.client.revoke(found.lease)
    assert cache.get("a") is None
    cache.set("a", 2, timeout=100)
    assert cache.get("a") == 2


def test_leases_have_bounds(cluster: LocalCluster) -> None:
    with Client(cluster.endpoints) as client:
        leases = Leases(client)
        now = time.time()
        one = leases.until(now + 1000)
        assert {leases.until(now + 1000) for _ in range(LEASE_KEYS_MAX - 1)} == {one}
        assert leases.until(now + 1000) != one, "no more than LEASE_KEYS_MAX entries go in one step"
        assert leases.until(None) == 0
        for seconds in (0.01, 1, 59, 3600, 10**12):
            lease = leases.until(now + seconds)
            left = client.time_to_live(lease)
            assert min(seconds, 4_000_000_000) <= left + 1
            assert left <= max(seconds * 1.3, seconds + 30), "a new leader may give it some time again"


def test_threads_and_caches_share_a_connection_and_a_fork_has_its_own(
    cluster: LocalCluster, cache: OarlockCache
) -> None:
    cache.set("a", 1)
    other = OarlockCache(cluster.endpoints, {"KEY_PREFIX": "x"})
    assert other.client is cache.client
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            cache.set("child", os.getpid())
            close_connections()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert cache.get("child") == pid
    assert cache.get("a") == 1
    close_connections()
    assert cache.get("a") == 1, "it opens again"


def test_it_goes_on_when_the_leader_is_killed(cluster: LocalCluster, cache: OarlockCache) -> None:
    cache.set("a", 1)
    leader = find_leader(cluster)
    leader.kill()
    try:
        assert cache.get("a") == 1
        cache.set("a", 2)
        cache.set_many({"b": 3})
        assert cache.get_many(["a", "b"]) == {"a": 2, "b": 3}
    finally:
        leader.start()
        leader.wait_ready()


# -- a site of two processes


def ask(port: int, path: str, cookie: str = "") -> tuple[dict[str, Any], str]:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/{path}", headers={"Cookie": cookie} if cookie else {})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        return json.load(answer), answer.headers.get("Set-Cookie", "").partition(";")[0]


def test_processes_of_a_site_share_counts_sessions_and_a_lock(cluster: LocalCluster, tmp_path: Path) -> None:
    """examples/django_site.py"""
    ports = free_ports(2)
    members = ",".join(cluster.endpoints)
    site = [
        Program(
            [sys.executable, str(ROOT / "examples" / "django_site.py"), str(port), members], f"site{port}", tmp_path
        )
        for port in ports
    ]
    for each in site:
        each.start()
    try:
        for each in site:
            wait_until(lambda each=each: each.said("serves"), PATIENCE_S, "it serves")  # type: ignore[misc]
        numbers = [ask(port, "hits")[0]["hits"] for _ in range(5) for port in ports]
        assert numbers == list(range(1, 11))
        _, cookie = ask(ports[0], "sign-in?name=ada")
        answers = [ask(port, "who-am-i", cookie)[0] for port in ports]
        assert [answer["name"] for answer in answers] == ["ada", "ada"]
        assert len({answer["process"] for answer in answers}) == 2
        assert ask(ports[0], "who-am-i")[0]["name"] is None

        first = ask(ports[0], "report")[0]["token"]
        assert ask(ports[1], "report")[0]["token"] > first

        with ThreadPoolExecutor(2) as pool:
            # paused in the middle of its work: another has the lock, and what it writes when it wakes is refused
            paused = pool.submit(ask, ports[0], "report?seconds=1")
            wait_until(lambda: len([line for line in site[0].lines if "holds" in line]) == 2, PATIENCE_S, "it works")
            site[0].signal(signal.SIGSTOP)
            second = ask(ports[1], "report")[0]["token"]
            site[0].signal(signal.SIGCONT)
            with pytest.raises(urllib.error.HTTPError) as refused:
                paused.result(PATIENCE_S)
            assert refused.value.code in (409, 500)  # fenced, or the lock was found to be lost when it was left
            # killed in the middle of its work: the lock passes on
            killed = pool.submit(ask, ports[0], "report?seconds=60")
            wait_until(lambda: len([line for line in site[0].lines if "holds" in line]) == 3, PATIENCE_S, "it works")
            site[0].kill()
            third = ask(ports[1], "report")[0]["token"]
            with pytest.raises(OSError):
                killed.result(PATIENCE_S)
        with sqlite3.connect(tmp_path / "reports.db") as connection:
            tokens = [row[0] for row in connection.execute("SELECT token FROM reports ORDER BY rowid")]
        assert tokens == sorted(tokens) and tokens[-2:] == [second, third] and len(tokens) == 4
    except BaseException:
        for each in site:
            print(f"{each.name}: {each.lines[-15:]}", file=sys.stderr)
        raise
    finally:
        for each in site:
            each.kill()


def test_the_settings_of_the_page_are_right() -> None:
    """docs/how-to/use-with-django.md"""
    page = (ROOT / "docs" / "how-to" / "use-with-django.md").read_text()
    first, *_ = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(first, names)
    for params in names["CACHES"].values():
        location = params.pop("LOCATION")
        assert params.pop("BACKEND") == "oarlock.contrib.django.OarlockCache"
        OarlockCache(location, params)
