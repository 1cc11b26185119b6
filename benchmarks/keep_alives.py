"""Keep-alives a second: our three-member cluster beside etcd's, in one run, measured in turns.

    python -m benchmarks.keep_alives --clients 64 --rounds 3

Every client has a connection, a stream and a lease of its own, and sends its next keep-alive when it has the answer to
the last. Both clusters run all the time. Prints medians over the rounds; `cpu_us` is CPU of
all members for one keep-alive. With `--member` some members only are asked.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import ngh2
from benchmarks.compare_etcd import cpu_seconds
from tests.support.clusters import find_leader
from tests.support.etcd_wire import EtcdClient

from oarlock.cli.local_cluster import LocalCluster, Program, etcd_program, oarlock_program

PATH = "/etcdserverpb.Lease/LeaseKeepAlive"
TTL = 60


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


class KeepAlives(asyncio.Protocol):
    """One client. `count` answers; `started` is when the last question was sent."""

    def __init__(self, lease: int, latencies: list[float]) -> None:
        body = b"\x08" + varint(lease)
        self._frame = b"\0" + len(body).to_bytes(4, "big") + body
        self._latencies = latencies
        self._transport: Any = None
        self._h2 = ngh2.Connection(ngh2.Role.CLIENT, ngh2.Configuration(auto_window_update=True))
        self._buffer = bytearray()
        self._stream = 0
        self._sent_at = 0.0
        self.failed = ""
        self.going = True

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._h2.initiate_connection({ngh2.Setting.ENABLE_PUSH: 0})
        self._stream = self._h2.send_request(
            [(b":method", b"POST"), (b":scheme", b"http"), (b":path", PATH.encode()), (b":authority", b"localhost"),
             (b"content-type", b"application/grpc"), (b"te", b"trailers")],
            end_stream=False,
        )  # fmt: skip
        self._ask()

    def _ask(self) -> None:
        self._h2.send_data(self._stream, self._frame)
        self._sent_at = time.perf_counter()
        self._transport.write(self._h2.data_to_send())

    def data_received(self, data: bytes) -> None:
        self._h2.receive_data(data)
        for event in self._h2.events():
            if isinstance(event, ngh2.DataReceived):
                self._buffer += event.data
            elif isinstance(event, ngh2.TrailersReceived | ngh2.StreamReset):
                self.failed = str(event)
        while len(self._buffer) >= 5:
            size = 5 + int.from_bytes(self._buffer[1:5], "big")
            if len(self._buffer) < size:
                break
            if b"\x18" not in self._buffer[5:size][-3:]:
                self.failed = "an answer without a TTL"
            del self._buffer[:size]
            self._latencies.append(time.perf_counter() - self._sent_at)
            if self.going:
                self._ask()
        out = self._h2.data_to_send()
        if out:
            self._transport.write(out)

    def close(self) -> None:
        self._transport.abort()


async def load(cluster: LocalCluster, endpoints: list[str], leases: list[int], seconds: float) -> dict[str, float]:
    latencies: list[float] = []
    loop = asyncio.get_running_loop()
    clients = []
    for number, lease in enumerate(leases):
        host, _, port = endpoints[number % len(endpoints)].rpartition(":")
        _, protocol = await loop.create_connection(partial(KeepAlives, lease, latencies), host, int(port))
        clients.append(protocol)
    await asyncio.sleep(0.4)
    latencies.clear()
    cpu = time.process_time()
    members = sum(cpu_seconds(member.pid) for member in cluster.members)
    await asyncio.sleep(seconds)
    counted = sorted(latencies)
    members = sum(cpu_seconds(member.pid) for member in cluster.members) - members
    cpu = time.process_time() - cpu
    for client in clients:
        client.going = False
        client.close()
    failed = [client.failed for client in clients if client.failed]
    if failed:
        raise SystemExit(f"error: {failed[0]}")
    return {
        "per_second": len(counted) / seconds,
        "p50_us": 1e6 * counted[len(counted) // 2],
        "p99_us": 1e6 * counted[len(counted) * 99 // 100],
        "cpu_us": 1e6 * members / len(counted),
        "client_cpu_us": 1e6 * cpu / len(counted),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 64, 256])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--member", choices=["all", "leader", "follower"], default="all")
    parser.add_argument("--flag", action="append", default=[], help="a flag of `oarlock serve`, for our members")
    options = parser.parse_args(arguments)
    programs: list[Program] = [oarlock_program().with_flags(*options.flag), etcd_program()]
    with contextlib.ExitStack() as stack:
        sides = []
        for program in programs:
            cluster = stack.enter_context(LocalCluster(program, 3))
            cluster.start()
            leader = find_leader(cluster)
            endpoints = {
                "all": cluster.endpoints,
                "leader": [leader.endpoint],
                "follower": [member.endpoint for member in cluster.members if member is not leader],
            }[options.member]
            with EtcdClient(leader.endpoint) as client:
                leases = [client.lease_grant(TTL) for _ in range(max(options.clients))]
            sides.append((cluster, list(endpoints), leases))
        for count in options.clients:
            rounds: dict[str, list[dict[str, float]]] = {cluster.program.name: [] for cluster, _, _ in sides}
            for _ in range(options.rounds):
                for cluster, endpoints, leases in sides:
                    found = asyncio.run(load(cluster, endpoints, leases[:count], options.seconds))
                    rounds[cluster.program.name].append(found)
            medians = {
                name: {key: round(statistics.median(r[key] for r in group), 1) for key in group[0]}
                for name, group in rounds.items()
            }
            ratio = medians["oarlock"]["per_second"] / medians["etcd"]["per_second"]
            print(json.dumps({"clients": count, "ratio": round(ratio, 2), **medians}), flush=True)


if __name__ == "__main__":
    main()
