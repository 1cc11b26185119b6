"""`etcdctl watch`, `lock` and `elect`, 3.5 and 3.4, against a three-member cluster, and a watch across `kill -9`.

`OARLOCK_TEST_SERVER=etcd` runs the same expectations against etcd itself.
"""

from __future__ import annotations

import contextlib
import os
import queue
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

import grpc
import pytest
from tests.support.clusters import cluster_of, find_leader, wait_until
from tests.support.etcd_wire import EtcdClient
from tests.support.watch_client import WatchClient, as_answer, as_event
from tests.system.test_etcdctl_cluster import Ctl, cluster, ctl, etcdctl_path

from oarlock.check.watch import EventHistory, WatchChecker, WatchRequest
from oarlock.cli.local_cluster import LocalCluster

__all__ = ["cluster", "ctl"]  # fixtures

KILL_SECONDS = float(os.environ.get("OARLOCK_WATCH_KILL_SECONDS", "10"))


class Running:
    """An etcdctl that goes on, and the lines that it prints."""

    def __init__(self, command: list[str], env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **(env or {})},
        )  # fmt: skip
        self.lines: queue.Queue[str] = queue.Queue()
        assert self.process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self._reader.start()

    def _read(self, stdout: IO[str]) -> None:
        for line in stdout:
            self.lines.put(line.rstrip("\n"))

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def next(self, count: int = 1) -> list[str]:
        return [self.lines.get(timeout=120) for _ in range(count)]

    def quiet(self, seconds: float = 0.5) -> bool:
        time.sleep(seconds)
        return self.lines.empty()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(120)
        self._reader.join(120)
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


Start = Callable[..., Running]


@pytest.fixture
def start(request: pytest.FixtureRequest, cluster: LocalCluster, ctl: Ctl) -> Iterator[Start]:
    """Starts an etcdctl of the same version as `ctl` that is ended with the test."""
    path = etcdctl_path(request.node.callspec.params["ctl"])
    running: list[Running] = []

    def begin(*arguments: str, env: dict[str, str] | None = None, endpoints: list[str] | None = None) -> Running:
        endpoint_list = ",".join(endpoints or cluster.endpoints)
        running.append(Running([path, f"--endpoints={endpoint_list}", *arguments], env))
        return running[-1]

    yield begin
    for process in running:
        process.end()


@pytest.fixture
def prefix() -> str:
    return f"watch/{os.urandom(4).hex()}/"


def watched(ctl: Ctl, key: str, *watchers: Running) -> None:
    """Until the watches of `key` are at work, which etcdctl does not say: each has shown that it was set to "begun".
    What comes before is read and forgotten, and nothing of it comes after."""
    waiting = list(watchers)
    for _ in range(100):
        ctl("put", key, "probe")
        for watcher in list(waiting):
            with contextlib.suppress(queue.Empty):
                watcher.lines.get(timeout=0.3)
                waiting.remove(watcher)
        if not waiting:
            break
    else:
        raise AssertionError("the watch never began")
    ctl("put", key, "begun")
    for watcher in watchers:
        while watcher.next() != ["begun"]:
            pass


def test_watch_prints_what_happens(start: Start, ctl: Ctl, prefix: str) -> None:
    running = start("watch", prefix, "--prefix", "--prev-kv")
    one = start("watch", prefix + "a")
    watched(ctl, prefix + "a", one, running)
    ctl("put", prefix + "a", "2")
    assert running.next(5) == ["PUT", prefix + "a", "begun", prefix + "a", "2"]
    ctl("del", prefix, "--prefix")
    assert running.next(4) == ["DELETE", prefix + "a", "2", prefix + "a"]
    assert one.next(3) == ["PUT", prefix + "a", "2"]
    assert one.next(2) == ["DELETE", prefix + "a"]


def test_watch_from_the_past_and_a_compaction(cluster: LocalCluster, start: Start, ctl: Ctl, prefix: str) -> None:
    for n in range(5):
        ctl("put", prefix + "a", str(n))
    with EtcdClient(cluster.endpoints[0]) as client:
        revision = client.get(prefix.encode() + b"a").kvs[0].mod_revision
    running = start("watch", prefix + "a", f"--rev={revision - 2}")
    assert running.next(9) == [line for n in (2, 3, 4) for line in ("PUT", prefix + "a", str(n))]
    ctl("compaction", str(revision))
    for endpoint in cluster.endpoints:  # a member that has not applied it yet would still give the past
        with EtcdClient(endpoint) as client:
            client.get(prefix.encode() + b"a")
    refused = start("watch", prefix + "a", f"--rev={revision - 2}")
    assert refused.process.wait(120) != 0
    assert refused.process.stderr is not None
    assert "required revision has been compacted" in refused.process.stderr.read()


def test_watch_interactive(start: Start, ctl: Ctl, prefix: str) -> None:
    running = start("watch", "-i")
    running.say(f"watch {prefix}a")
    running.say(f"watch {prefix}b {prefix}c")
    watched(ctl, prefix + "a", running)
    watched(ctl, prefix + "b", running)
    ctl("put", prefix + "b", "1")
    assert running.next(3) == ["PUT", prefix + "b", "1"]
    running.say("progress")
    told = running.next()[0]
    while not told.startswith("progress notify:"):
        told = running.next()[0]


def test_lock_is_held_by_one_at_a_time(start: Start, ctl: Ctl, prefix: str) -> None:
    first = start("lock", prefix + "l")
    (key,) = first.next()
    assert key.startswith(prefix + "l/")
    second = start("lock", prefix + "l")
    wait_until(lambda: len(ctl("get", prefix, "--prefix", "--keys-only").split()) == 2, 120, "the second one queues")
    assert second.quiet()
    first.process.send_signal(2)  # as Ctrl-C: it unlocks
    (other,) = second.next()
    assert other != key
    assert first.process.wait(120) == 0
    second.process.send_signal(2)
    second.process.wait(120)
    assert ctl("get", prefix, "--prefix") == ""


def test_lock_runs_a_command(start: Start, ctl: Ctl, prefix: str) -> None:
    running = start("lock", prefix + "l", "env")
    line = running.next()[0]
    while not line.startswith("ETCD_LOCK_KEY="):
        line = running.next()[0]
    assert line.startswith(f"ETCD_LOCK_KEY={prefix}l/")
    assert running.process.wait(120) == 0


def test_elect_and_listen(start: Start, ctl: Ctl, prefix: str) -> None:
    first = start("elect", prefix + "e", "one")
    key, value = first.next(2)
    assert (key.startswith(prefix + "e/"), value) == (True, "one")
    listener = start("elect", "--listen", prefix + "e")
    assert listener.next(2) == [key, "one"]
    second = start("elect", prefix + "e", "two")
    wait_until(lambda: len(ctl("get", prefix, "--prefix", "--keys-only").split()) == 2, 120, "the second one queues")
    assert second.quiet()
    first.process.send_signal(2)
    other, value = second.next(2)
    assert (value, other != key) == ("two", True)
    assert listener.next(2) == [other, "two"]
    second.process.send_signal(2)


def _write(client: EtcdClient, number: int) -> None:
    client.put(b"kill/%d" % (number % 7), b"%d" % number)


@pytest.mark.slow
@pytest.mark.timeout(KILL_SECONDS + 600)
def test_a_watch_across_kill_9_shows_every_event_once() -> None:
    """Members die under writers. A client that goes on elsewhere from the last revision that it saw is told of every
    change once; the judge is the store's whole history, read back at the end."""
    seed = int(os.environ.get("OARLOCK_KILL_SEED", str(random.SystemRandom().randrange(1_000_000))))
    print(f"seed {seed}")
    rng = random.Random(seed)
    stop = threading.Event()
    written = [0]
    with cluster_of(3, steady=False) as cluster:

        def write(start: int) -> None:
            number = start
            while not stop.is_set():
                for member in cluster.members:
                    if stop.is_set() or not member.running:
                        continue
                    try:
                        with EtcdClient(member.endpoint, timeout=3) as client:
                            while not stop.is_set():
                                _write(client, number)
                                number += 2
                                written[0] += 1
                                time.sleep(0.002)
                    except grpc.RpcError:
                        continue

        answers: list[Any] = []
        next_revision = [1]
        resumed = [0]
        last_revision = [0]

        def follow() -> None:
            turn = 0
            while not (stop.is_set() and last_revision[0] and next_revision[0] > last_revision[0]):
                turn += 1
                member = cluster.members[turn % 3]
                with grpc.insecure_channel(member.endpoint) as channel:
                    stream = WatchClient(channel, (("hasleader", "true"),))
                    stream.create(b"kill/", range_end=b"kill0", start_revision=next_revision[0], prev_kv=True)
                    seen = 0
                    idle_since = time.monotonic()
                    while not stream.ended.is_set():
                        fresh = stream.answers[seen:]
                        seen += len(fresh)
                        for response in fresh:
                            if response.events:
                                answers.append(response)
                                next_revision[0] = response.events[-1].kv.mod_revision + 1
                                idle_since = time.monotonic()
                        done = last_revision[0] and next_revision[0] > last_revision[0]
                        # It moves on by itself as well, so that it is many streams on all members.
                        if done or time.monotonic() - idle_since > 5 or seen > 200:
                            break
                        time.sleep(0.002)
                    stream.close()
                    resumed[0] += 1

        threads = [threading.Thread(target=write, args=(n,)) for n in range(2)]
        watcher = threading.Thread(target=follow)
        for thread in (*threads, watcher):
            thread.start()
        began = time.monotonic()
        while time.monotonic() - began < KILL_SECONDS:
            victim = find_leader(cluster) if rng.random() < 0.5 else rng.choice(cluster.members)
            before = written[0]
            victim.kill()
            wait_until(lambda before=before: written[0] > before + 50, 180, "writes go on")  # type: ignore[misc]
            victim.start()
            victim.wait_ready()
        stop.set()
        for thread in threads:
            thread.join()
        for member in cluster.members:
            member.wait_ready()
        with EtcdClient(cluster.members[0].endpoint) as client:
            last_revision[0] = max(kv.mod_revision for kv in client.get(b"kill/", range_end=b"kill0").kvs)
        watcher.join(300)
        assert not watcher.is_alive(), f"told up to {next_revision[0] - 1} of {last_revision[0]}"
        with grpc.insecure_channel(cluster.members[1].endpoint) as channel:
            whole = WatchClient(channel)
            whole.create(b"kill/", range_end=b"kill0", start_revision=1, prev_kv=True)
            whole.wait(
                lambda found: any(e.kv.mod_revision >= last_revision[0] for a in found[-1:] for e in a.events),
                "the whole history",
                180,
            )
            history = EventHistory(as_event(event) for event in whole.events())
            whole.close()
    request = WatchRequest(key=b"kill/", range_end=b"kill0", start_revision=1, prev_kv=True)
    checker = WatchChecker(request, history, name="the watch across kills")
    for response in answers:
        checker.answer(as_answer(response))
    checker.close(last_revision[0])
    assert not checker.violations, checker.violations[:3]
    assert len(history.events) >= written[0], "every acknowledged write is an event"
    assert checker.delivered == len(history.events)
    print(f"{len(history.events)} events, {resumed[0]} streams")
