"""Garbage, oversized, slow and half-open connections on both ports, and a peer of another cluster.

Whatever comes in, the members stay alive, do not grow, and go on serving.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.clusters import (
    STEADY,
    assert_all_equal,
    cluster_of,
    find_leader,
    program_under_test,
    runs_etcd,
    status_of,
    wait_until,
)
from tests.support.etcd_wire import EtcdClient

from oarlock.cli.local_cluster import LocalCluster, MemberProcess

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\0\0\0\x04\0\0\0\0\0"
GROWTH_BYTES_MAX = 150_000_000


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with cluster_of(3) as started:
        yield started


@pytest.fixture(autouse=True)
def serves_afterwards(cluster: LocalCluster) -> Iterator[None]:
    """Around every test: the same processes, the same leader, no growth, and every member answers at once."""
    leader = find_leader(cluster)
    term = status_of(leader).raftTerm
    pids = [member.pid for member in cluster.members]
    sizes = [resident(pid) for pid in pids]
    yield
    assert [member.pid for member in cluster.members] == pids
    for member in cluster.members:
        with EtcdClient(member.endpoint) as client:
            value = os.urandom(8)
            client.put(b"serves", value)
            assert client.get(b"serves").kvs[0].value == value
    assert status_of(leader).raftTerm == term, "a stranger's bytes moved the leadership"
    for pid, before in zip(pids, sizes, strict=True):
        assert resident(pid) - before < GROWTH_BYTES_MAX
    assert_all_equal(cluster)


def resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def ports(cluster: LocalCluster) -> list[int]:
    return [port for member in cluster.members for port in (member.client_port, member.peer_port)]


def connect(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=120)
    connection.settimeout(60)
    return connection


def pour(port: int, data: bytes) -> None:
    """Send all, or as much as the other side takes before it closes."""
    with connect(port) as connection, contextlib.suppress(OSError):
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        while connection.recv(1 << 16):
            pass


def test_garbage(cluster: LocalCluster) -> None:
    rng = random.Random(5)
    for port in ports(cluster):
        for size in (1, 9, 100, 70_000):
            pour(port, rng.randbytes(size))
        pour(port, b"\0" * 70_000)
        pour(port, b"\xff" * 70_000)
        pour(port, b"GET / HTTP/1.1\r\n\r\n" + rng.randbytes(5000))


def test_garbage_after_a_good_beginning(cluster: LocalCluster) -> None:
    rng = random.Random(6)
    for member in cluster.members:
        for _ in range(10):
            pour(member.client_port, PREFACE + SETTINGS + rng.randbytes(5000))
            length = rng.randrange(1, 200)
            frame = struct.pack(">BHBBI", 0, length, rng.randrange(10), rng.randrange(256), rng.randrange(8))
            pour(member.client_port, PREFACE + SETTINGS + frame + rng.randbytes(length))


def test_frames_that_promise_too_much(cluster: LocalCluster) -> None:
    for member in cluster.members:
        pour(member.client_port, PREFACE + SETTINGS + b"\xff\xff\xff\0\0\0\0\0\1" + bytes(100_000))
        pour(member.client_port, b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 2_000_000 + b"\r\n\r\n")
        pour(
            member.client_port,
            b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999999\r\n\r\n" + bytes(5_000_000),
        )
        for lead in (b"\xa1", b"\0", b"\x7f"):
            pour(member.peer_port, lead + b"\xff" * 13 + bytes(100_000))


def test_message_whose_length_prefix_lies(cluster: LocalCluster) -> None:
    """4 GiB announced, a few bytes sent: refused from the prefix, nothing reserved."""
    for member in cluster.members:
        with EtcdClient(member.endpoint) as client:
            client.get(b"warm")
        block = b"\x83\x86\x44\x14/etcdserverpb.KV/Put\x41\x01x\x5f\x10application/grpc\x40\x02te\x08trailers"
        headers = struct.pack(">BHBBI", 0, len(block), 1, 4, 1) + block
        data = struct.pack(">BHBBI", 0, 25, 0, 0, 1) + b"\0\xff\xff\xff\xff" + bytes(20)
        with connect(member.client_port) as connection:
            connection.sendall(PREFACE + SETTINGS + headers + data)
            deadline = time.monotonic() + 120
            received = b""
            # grpc-status 8 comes as an indexed or literal header: look for the end of stream 1 or a reset of it.
            while not stream_ended(received, 1):
                assert time.monotonic() < deadline, "no answer to a message that announced 4 GiB"
                chunk = connection.recv(1 << 16)
                if not chunk:
                    break
                received += chunk


def stream_ended(received: bytes, stream: int) -> bool:
    """Whether the frames received end the stream (END_STREAM or RST_STREAM) or the connection (GOAWAY)."""
    at = 0
    while len(received) - at >= 9:
        length = int.from_bytes(received[at : at + 3], "big")
        kind, flags = received[at + 3], received[at + 4]
        number = int.from_bytes(received[at + 5 : at + 9], "big")
        if kind == 7 or (number == stream and (kind == 3 or (kind in (0, 1) and flags & 1))):
            return True
        at += 9 + length
    return False


def test_half_open_and_slow_connections(cluster: LocalCluster) -> None:
    """Two hundred connections to each port that say nothing or a byte at a time keep nobody else from being served."""
    with contextlib.ExitStack() as stack:
        opened = []
        for port in ports(cluster):
            for number in range(200):
                connection = stack.enter_context(connect(port))
                if number % 2:
                    connection.sendall((PREFACE + SETTINGS)[: number % 24])
                opened.append(connection)
        for step in range(5):
            for connection in opened[::20]:
                with contextlib.suppress(ConnectionError):
                    connection.sendall(PREFACE[step : step + 1])
            for member in cluster.members:
                with EtcdClient(member.endpoint, timeout=120) as client:
                    client.put(b"beside", b"%d" % step)
                    assert client.get(b"beside").kvs[0].value == b"%d" % step


def test_connections_that_are_reset(cluster: LocalCluster) -> None:
    for port in ports(cluster):
        for number in range(50):
            connection = connect(port)
            with contextlib.suppress(ConnectionError):
                connection.sendall((PREFACE + SETTINGS)[: number + 1])
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()


def test_reader_that_does_not_read(cluster: LocalCluster) -> None:
    """A client asks for megabytes again and again and takes none of them."""
    with EtcdClient(cluster.members[0].endpoint) as client:
        client.put(b"large", bytes(1_000_000))
    block = b"\x83\x86\x44\x16/etcdserverpb.KV/Range\x41\x01x\x5f\x10application/grpc\x40\x02te\x08trailers"
    message = b"\0\0\0\0\x07\x0a\x05large"
    with contextlib.ExitStack() as stack:
        for member in cluster.members:
            connection = stack.enter_context(connect(member.client_port))
            window = struct.pack(">BHBBIHI", 0, 6, 4, 0, 0, 4, 2**31 - 1)
            grown = struct.pack(">BHBBII", 0, 4, 8, 0, 0, 2**30)
            requests = b"".join(
                struct.pack(">BHBBI", 0, len(block), 1, 4, stream) + block
                + struct.pack(">BHBBI", 0, len(message), 0, 1, stream) + message
                for stream in range(1, 160, 2)
            )  # fmt: skip
            connection.sendall(PREFACE + window + grown + requests)
        for _ in range(10):
            for member in cluster.members:
                with EtcdClient(member.endpoint, timeout=120) as client:
                    client.put(b"beside", b"x")


@pytest.mark.timeout(400)
def test_peer_of_another_cluster(cluster: LocalCluster) -> None:
    """A member of another cluster is pointed at our members: refused, told why, and nothing of ours moves."""
    with LocalCluster(program_under_test(*STEADY), 3, token="another-cluster", prefix="x") as other:
        stranger = other.members[0]
        targets = zip(other.members[1:], cluster.members[1:], strict=True)
        peers = [f"{theirs.name}={ours.peer_url}" for theirs, ours in targets]
        other.initial_cluster = ",".join([f"{stranger.name}={stranger.peer_url}", *peers])
        before = [status_of(member).raftTerm for member in cluster.members]
        stranger.start()
        logs = [stranger, *cluster.members[1:]]
        wait_until(lambda: any("cluster" in log_after_start(member) for member in logs), 120, "a line that says why")
        with EtcdClient(cluster.members[0].endpoint) as client:
            for number in range(50):
                client.put(b"meanwhile", b"%d" % number)
        assert not stranger.healthy()
        assert [status_of(member).raftTerm for member in cluster.members] == before
        with EtcdClient(cluster.members[0].endpoint) as client:
            assert sorted(member.name for member in client.call("MemberList").members) == ["m1", "m2", "m3"]


def log_after_start(member: MemberProcess) -> str:
    """The log without the command line, which names the cluster in its flags."""
    lines = member.log().lower().splitlines()
    return "\n".join(line for line in lines if not line.startswith("---") and ("mismatch" in line or "refused" in line))


def test_frozen_client_connections_do_not_stop_a_clean_end() -> None:
    """SIGTERM ends a member in time although strangers hold connections open."""
    with cluster_of(1) as single, contextlib.ExitStack() as stack:
        member = single.members[0]
        for port in (member.client_port, member.peer_port):
            for number in range(20):
                stack.enter_context(connect(port)).sendall(PREFACE[:number])
        with EtcdClient(member.endpoint) as client:
            client.put(b"k", b"v")
        code = member.terminate()
        assert code == (-signal.SIGTERM if runs_etcd() else 0)
