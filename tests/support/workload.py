"""Clients under whose eyes members die: they write down everything they asked and were told.

Each client is a thread that talks to a random member until that fails. Half of its requests go to a few keys that all
clients share (for the linearizability of the history), half create keys of its own that nobody touches again (for the
durability of every acknowledged write, at any volume).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
from tests.support.clusters import ClusterError
from tests.support.etcd_wire import EtcdClient, never_sent

from oarlock.check import Cas, Operation, Read, Recorder, Swap, Write

SHARED_KEYS = 16
CALL_SECONDS = 3.0
# A call refused with one of these was not executed; any other failure leaves the outcome unknown.
REFUSED = (grpc.StatusCode.RESOURCE_EXHAUSTED,)


@dataclass
class Acknowledged:
    """A key that a client created and was told so, with the revision of the answer."""

    key: bytes
    value: bytes
    revision: int


class Workload:
    """The clients. `acknowledgements` counts answered calls and never goes back; read it to see that life goes on."""

    def __init__(self, endpoints: Sequence[str], *, clients: int = 8, seed: int = 0) -> None:
        self.endpoints = list(endpoints)
        self.recorder = Recorder(clock=time.monotonic)
        self.acknowledged: list[Acknowledged] = []
        self.write_revisions: list[int] = []
        self.acknowledgements = 0
        self.failures: dict[str, int] = {}
        self.errors: list[BaseException] = []
        self._seed = seed
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._edge, args=(n,), daemon=True) for n in range(clients)]

    def __enter__(self) -> Workload:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Let every client end its present call; afterwards raises what a client stumbled over, if anything."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self.errors:
            raise self.errors[0]

    def wait_progress(self, calls: int, *, seconds: float = 120.0) -> None:
        """Wait until `calls` more have been answered. Raises `ClusterError`: the cluster has stopped serving."""
        goal = self.acknowledgements + calls
        deadline = time.monotonic() + seconds
        while self.acknowledgements < goal:
            if self.errors:
                raise self.errors[0]
            if time.monotonic() > deadline:
                missing = goal - self.acknowledgements
                raise ClusterError(
                    f"{missing} of {calls} calls unanswered after {seconds:g} s; failures: {self.failures}"
                )
            time.sleep(0.01)

    def history(self) -> list[Operation]:
        return self.recorder.operations()

    def _edge(self, number: int) -> None:
        try:
            self._client(number)
        except BaseException as error:  # the outer edge of the thread; stop() raises it
            self.errors.append(error)
            self._stop.set()

    def _client(self, number: int) -> None:
        rng = random.Random(f"{self._seed}-{number}")
        connections: dict[str, EtcdClient] = {}
        member = rng.choice(self.endpoints)
        count = 0
        try:
            while not self._stop.is_set():
                if member not in connections:
                    connections[member] = EtcdClient(member, timeout=CALL_SECONDS)
                count += 1
                if not self._one_call(connections[member], rng, number, f"{number}.{count}".encode()):
                    member = rng.choice(self.endpoints)
                    self._stop.wait(0.01)
                elif rng.random() < 0.02:
                    member = rng.choice(self.endpoints)
        finally:
            for connection in connections.values():
                connection.close()

    def _one_call(self, client: EtcdClient, rng: random.Random, number: int, unique: bytes) -> bool:
        """One random request with the unique value; whether it was answered."""
        key = f"shared/{rng.randrange(SHARED_KEYS):02}".encode()
        kind = rng.choices(["own", "put", "get", "cas", "delete"], [50, 15, 20, 12, 3])[0]
        if kind == "own":
            return self._own(client, b"own/" + unique, unique)
        if kind == "put":
            return self._shared(number, Write(unique), key, lambda: self._put(client, key, unique))
        if kind == "get":
            return self._shared(number, Read(), key, lambda: self._get(client, key))
        if kind == "delete":
            return self._shared(number, Swap(None), key, lambda: self._delete(client, key))
        # A swap needs a guess at the present value: read it first, as a recorded operation of its own.
        seen: list[bytes | None] = []

        def read() -> bytes | None:
            seen.append(self._get(client, key))
            return seen[-1]

        if not self._shared(number, Read(), key, read):
            return False
        return self._shared(number, Cas(seen[0], unique), key, lambda: self._swap(client, key, seen[0], unique))

    def _shared(self, number: int, call: Read | Write | Cas | Swap, key: bytes, send: Callable[[], object]) -> bool:
        ticket = self.recorder.begin(number, call, key)
        try:
            result = send()
        except grpc.RpcError as error:
            if self._refused(error):
                self.recorder.not_executed(ticket)
            return False
        self.recorder.ok(ticket, result)
        self._count()
        return True

    def _own(self, client: EtcdClient, key: bytes, value: bytes) -> bool:
        try:
            revision = client.put(key, value).header.revision
        except grpc.RpcError as error:
            self._refused(error)
            return False
        with self._lock:
            self.acknowledged.append(Acknowledged(key, value, revision))
            self.write_revisions.append(revision)
        self._count()
        return True

    def _put(self, client: EtcdClient, key: bytes, value: bytes) -> None:
        answer = client.put(key, value)
        with self._lock:
            self.write_revisions.append(answer.header.revision)

    def _get(self, client: EtcdClient, key: bytes) -> bytes | None:
        kvs = client.get(key).kvs
        return kvs[0].value if kvs else None

    def _delete(self, client: EtcdClient, key: bytes) -> bytes | None:
        answer = client.delete(key, prev_kv=True)
        if not answer.deleted:
            return None
        with self._lock:
            self.write_revisions.append(answer.header.revision)
        return bytes(answer.prev_kvs[0].value)

    def _swap(self, client: EtcdClient, key: bytes, expected: bytes | None, value: bytes) -> bool:
        answer = client.compare_and_swap(key, expected, value)
        if answer.succeeded:
            with self._lock:
                self.write_revisions.append(answer.header.revision)
        return bool(answer.succeeded)

    def _refused(self, error: grpc.RpcError) -> bool:
        """Count the failure; whether the call certainly was not executed. Raises a refusal that no fault explains."""
        assert isinstance(error, grpc.Call)
        code = error.code()
        with self._lock:
            name = f"{code.name}: {error.details()}"[:120]
            self.failures[name] = self.failures.get(name, 0) + 1
        if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.OUT_OF_RANGE):
            raise error
        return code in REFUSED or never_sent(error)

    def _count(self) -> None:
        with self._lock:
            self.acknowledgements += 1


def final_reads(endpoint: str, recorder: Recorder) -> None:
    """Read every shared key once more, linearizable, as a part of the history."""
    with EtcdClient(endpoint) as client:
        for number in range(SHARED_KEYS):
            key = f"shared/{number:02}".encode()
            ticket = recorder.begin(-1, Read(), key)
            kvs = client.get(key).kvs
            recorder.ok(ticket, kvs[0].value if kvs else None)


def assert_nothing_lost(rows: Sequence[tuple[bytes, bytes, int, int, int]], workload: Workload) -> None:
    """Every acknowledged key is there, written once, at the revision its client was told; no revision came twice."""
    stored = {key: (value, create, mod, version) for key, value, create, mod, version in rows}
    for one in workload.acknowledged:
        assert one.key in stored, f"acknowledged at revision {one.revision} and lost: {one.key!r}"
        assert stored[one.key] == (one.value, one.revision, one.revision, 1), f"{one} is stored as {stored[one.key]}"
    revisions = workload.write_revisions
    assert len(set(revisions)) == len(revisions), "two acknowledged writes have the same revision"
