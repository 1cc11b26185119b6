"""The load generator: a process with one epoll loop, `--clients` connections and one request in flight on each.

    python -m benchmarks.load --endpoint 127.0.0.1:2379 --method put --clients 64 --seconds 3

Prints one JSON object: requests, errors, seconds, latencies in microseconds, and its own CPU time. With the method
`txn` every request is a transaction of `TXN_PUTS` puts, and the puts are what is counted.
"""

from __future__ import annotations

import argparse
import json
import random
import select
import socket
import sys
import time
from typing import Final

from benchmarks.raw_grpc import PUT, RANGE, TXN, CallFailed, Wire, address, put_request, range_request, txn_of_puts

KEY_BYTES: Final = 16
VALUE_BYTES: Final = 256
KEY_SPACE: Final = 100_000
DRAIN_SECONDS: Final = 10.0
TXN_PUTS: Final = 100
PATHS: Final = {"put": PUT, "range": RANGE, "txn": TXN}


def key_of(number: int) -> bytes:
    return b"%016d" % number


def value_of(number: int) -> bytes:
    return (b"%016d" % number) * (VALUE_BYTES // 16)


class Connection:
    """One client: a connection and the moment its request left."""

    __slots__ = ("sent_at", "socket", "wire")

    def __init__(self, endpoints: list[str], number: int, path: str) -> None:
        self.wire = Wire(path)
        self.socket = socket.create_connection(address(endpoints[number % len(endpoints)]), timeout=10)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.sent_at = 0.0

    def flush(self) -> None:
        out = self.wire.out
        while out:  # requests are small: a full socket buffer is the exception, so waiting here is cheap enough
            try:
                del out[: self.socket.send(out)]
            except BlockingIOError:
                time.sleep(0.0001)


def run(
    endpoints: list[str], method: str, clients: int, seconds: float, warm_up: float, key_space: int
) -> dict[str, object]:
    """Keep every client busy for `warm_up` and then, measured, for `seconds`."""
    path = PATHS[method]
    counted = TXN_PUTS if method == "txn" else 1
    chance = random.Random(clients)
    randrange = chance.randrange
    value = value_of(clients)
    connections = [Connection(endpoints, number, path) for number in range(clients)]
    epoll = select.epoll()
    by_descriptor = {connection.socket.fileno(): connection for connection in connections}
    for descriptor in by_descriptor:
        epoll.register(descriptor, select.EPOLLIN)

    def send(connection: Connection) -> None:
        if path is TXN:
            message = txn_of_puts([(key_of(number), value) for number in chance.sample(range(key_space), TXN_PUTS)])
        else:
            key = key_of(randrange(key_space))
            message = put_request(key, value) if path is PUT else range_request(key)
        connection.wire.request(message)
        connection.sent_at = clock()
        connection.flush()

    clock = time.perf_counter
    latencies: list[float] = []
    errors = 0
    in_flight = len(connections)
    for connection in connections:
        send(connection)
    begin = clock() + warm_up
    end = begin + seconds
    cpu_begin = 0.0
    measuring = False
    drain_until = end + DRAIN_SECONDS
    while in_flight:
        now = clock()
        if not measuring and now >= begin:
            measuring = True
            cpu_begin = time.process_time()
        if now > drain_until:
            raise CallFailed(f"{in_flight} of {clients} requests unanswered {DRAIN_SECONDS:g} s after the end")
        for descriptor, _ in epoll.poll(0.1):
            connection = by_descriptor[descriptor]
            try:
                received = connection.socket.recv(1 << 16)
            except BlockingIOError:
                continue
            if not received:
                raise CallFailed("the server closed a connection")
            for _, message in connection.wire.feed(received):
                now = clock()
                if message is None:
                    errors += 1
                elif begin <= now < end:
                    latencies.append(now - connection.sent_at)
                in_flight -= 1
                if now < end:
                    in_flight += 1
                    send(connection)
            if connection.wire.out:
                connection.flush()
    cpu = time.process_time() - cpu_begin
    epoll.close()
    for connection in connections:
        connection.socket.close()
    latencies.sort()
    count = len(latencies)
    if not count:
        raise CallFailed(f"no request of {clients} clients was answered within {seconds:g} s ({errors} errors)")
    return {
        "method": method,
        "clients": clients,
        "requests": count * counted,
        "errors": errors,
        "seconds": seconds,
        "per_second": count * counted / seconds,
        "p50_us": 1e6 * latencies[count // 2],
        "p99_us": 1e6 * latencies[min(count - 1, count * 99 // 100)],
        "client_cpu_us": 1e6 * cpu / (count * counted),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoint", action="append", required=True, help="host:port; several are used in turn")
    parser.add_argument("--method", choices=list(PATHS), required=True)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--warm-up", type=float, default=0.5)
    parser.add_argument("--key-space", type=int, default=KEY_SPACE)
    options = parser.parse_args()
    try:
        result = run(
            options.endpoint, options.method, options.clients, options.seconds, options.warm_up, options.key_space
        )
    except (CallFailed, OSError) as error:
        sys.exit(f"error: {error}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
