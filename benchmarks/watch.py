"""How many events a second reach their watchers, of ours and of etcd, measured in turns on the same machine.

    python -m benchmarks.watch              a few minutes
    python -m benchmarks.watch --quick      under a minute

Three members each; 64 writers put one key on the leader, and all watchers watch that key there: 100 on 10 streams, then
1,000 on 100 streams. The reader is one process that counts the watched key in what its sockets receive and decodes
nothing, so that it is not what is measured; a key that falls on the border of two frames is missed (one in a
thousand). A figure is the median over the rounds.
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from benchmarks.compare_etcd import cpu_seconds, in_turns, leader_of, machine, say
from benchmarks.load import key_of
from benchmarks.raw_grpc import Wire, address
from benchmarks.raw_grpc import field as wire_field

from oarlock.cli.local_cluster import LocalCluster, MemberProcess, etcd_program, oarlock_program

PATH: Final = "/etcdserverpb.Watch/Watch"
CASES: Final = ((10, 10), (100, 10))  # streams, watches of each
WRITERS: Final = 64
QUIET_S: Final = 1.5  # with no event for so long, all have come


def create_request(key: bytes) -> bytes:
    return wire_field(1, wire_field(1, key))


def read(endpoint: str, streams: int, watches: int) -> dict[str, float]:
    """Open the streams, say "ready", and count events until none come any more."""
    marker = wire_field(1, key_of(0))
    sockets: dict[int, socket.socket] = {}
    epoll = select.epoll()
    for _ in range(streams):
        wire = Wire(PATH)
        wire.open_stream([create_request(key_of(0))] * watches)
        connection = socket.create_connection(address(endpoint), timeout=10)
        connection.sendall(wire.out)
        connection.setblocking(False)
        sockets[connection.fileno()] = connection
        epoll.register(connection.fileno(), select.EPOLLIN)
    tails = dict.fromkeys(sockets, b"")
    events = received = 0
    first = last = 0.0
    time.sleep(1)
    print("ready", flush=True)
    began = time.monotonic()
    while True:
        ready = epoll.poll(0.1)
        now = time.monotonic()
        for descriptor, _ in ready:
            data = sockets[descriptor].recv(1 << 20)
            if not data:
                raise SystemExit("the server closed a connection")
            received += len(data)
            data = tails[descriptor] + data
            found = data.count(marker)
            tails[descriptor] = data[-(len(marker) - 1) :]
            if found:
                events += found
                first = first or now
                last = now
        if (first and now - last > QUIET_S) or (not first and now - began > 30):
            break
    return {"events": events, "bytes": received, "seconds": last - first, "cpu_seconds": time.process_time()}


@dataclass
class Side:
    cluster: LocalCluster
    results: dict[tuple[int, int], list[dict[str, float]]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.cluster.program.name


def measure(side: Side, streams: int, watches: int, seconds: float) -> dict[str, float]:
    leader: MemberProcess = leader_of(side.cluster)
    reader = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.watch", "--read", leader.endpoint, str(streams), str(watches)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == "ready\n"
    cpu = cpu_seconds(leader.pid)
    writer = [sys.executable, "-m", "benchmarks.load", "--endpoint", leader.endpoint, "--method", "put"]
    options = ["--clients", str(WRITERS), "--key-space", "1", "--seconds", str(seconds), "--warm-up", "0"]
    written = json.loads(subprocess.run([*writer, *options], check=True, stdout=subprocess.PIPE, text=True).stdout)
    counted: dict[str, float] = json.loads(reader.stdout.readline())
    reader.wait(20)
    cpu = cpu_seconds(leader.pid) - cpu
    return {
        "events_per_second": counted["events"] / counted["seconds"],
        "puts_per_second": written["per_second"],
        "events": counted["events"],
        "leader_cpu_us_per_event": 1e6 * cpu / counted["events"],
        "put_p50_us": written["p50_us"],
        "behind_s": counted["seconds"] - seconds,
        "bytes_per_event": counted["bytes"] / counted["events"],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--only", choices=["oarlock", "etcd"])
    parser.add_argument("--read", nargs=3, metavar=("ENDPOINT", "STREAMS", "WATCHES"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.read:
        endpoint, streams, watches = options.read
        print(json.dumps(read(endpoint, int(streams), int(watches))), flush=True)
        return
    rounds, seconds = (1, 2.0) if options.quick else (3, 5.0)
    programs = [p for p in (oarlock_program(), etcd_program()) if options.only in (None, p.name)]
    sides = [Side(LocalCluster(program)) for program in programs]
    try:
        for side in sides:
            side.cluster.start()
        for streams, watches in CASES:

            def turn(side: Side, number: int, streams: int = streams, watches: int = watches) -> None:
                result = measure(side, streams, watches, seconds)
                side.results.setdefault((streams, watches), []).append(result)
                shown = "  ".join(f"{name} {value:,.1f}" for name, value in result.items())
                say(f"{side.name:8} {streams} x {watches}  {shown}")

            in_turns(sides, rounds, turn)
    finally:
        for side in sides:
            side.cluster.close()
    print(json.dumps({"machine": machine(programs), "rounds": rounds, "seconds": seconds}))
    for streams, watches in sides[0].results:
        for side in sides:
            results = side.results[streams, watches]
            medians = {name: statistics.median(result[name] for result in results) for name in results[0]}
            print(json.dumps({"server": side.name, "watchers": streams * watches, "streams": streams, **medians}))


if __name__ == "__main__":
    main()
