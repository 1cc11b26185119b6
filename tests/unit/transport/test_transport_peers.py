"""Transports over real sockets on loopback: meeting, parting, order, bounds, and those who must not disturb."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import oarlock
from oarlock.cli.local_cluster import free_ports
from oarlock.errors import ConfigurationError
from oarlock.raft.messages import AppendEntries, Heartbeat, Propose, TimeoutNow
from oarlock.raft.types import Entry
from oarlock.transport import PeerAddress
from oarlock.transport.handshake import Hello, encode_hello, encode_ping
from oarlock.wire import frames as wire
from oarlock.wire.frames import FrameParser, encode_frame, encode_raw

Run = Callable[[Callable[[], Awaitable[None]]], None]


def append(index: int, size: int = 10) -> AppendEntries:
    return AppendEntries(
        term=1, prev_log_index=index, prev_log_term=1, entries=(Entry(1, index + 1, 0, bytes(size)),), commit_index=0
    )


def beat(round: int) -> Heartbeat:
    return Heartbeat(term=1, commit_index=0, round=round)


def hello(kit: Any, id: int, **changes: Any) -> Hello:
    fields = {"cluster_id": kit.CLUSTER, "member_id": id, "incarnation": 1000 + id, "name": f"m{id}", **changes}
    return Hello(**fields)


def free_port() -> int:
    [port] = free_ports(1)
    return port


async def everything(reader: asyncio.StreamReader) -> bytes:
    """What comes until the other side closes, however it closes."""
    data = b""
    try:
        while more := await asyncio.wait_for(reader.read(65536), 120):
            data += more
    except ConnectionError:
        pass
    return data


def refusal_in(data: bytes) -> str:
    """The text of the refusal frame that ends `data`."""
    parser = FrameParser("test")
    parser.feed(data)
    refusals = [body for number, body in parser.take_controls() if number == wire.REFUSAL]
    assert len(refusals) == 1, data
    return refusals[0].decode(errors="replace")


# ---------------------------------------------------------------- meeting and parting


def test_members_meet_and_hear_each_other(run: Run, kit: Any) -> None:
    async def test() -> None:
        async with kit.cluster(kit.Node(1), kit.Node(2), kit.Node(3)) as (a, b, c):
            assert sorted(a.connected) == [(2, 1002), (3, 1003)]
            a.send(2, beat(1), append(4), group=7)
            c.send(2, beat(3))
            await kit.until(lambda: len(b.messages) == 3)
            assert {(1, 7, beat(1)), (1, 7, append(4)), (3, 0, beat(3))} == set(b.messages)
            assert not a.messages and not a.down
            stats = a.transport.stats()
            assert stats[2].connected and stats[2].sent_messages == 2 and stats[2].incarnation == 1002
            await kit.until(lambda: a.transport.stats()[2].rtt_ns > 0)
            assert b.transport.stats()[1].received_messages == 2
            assert stats[2].sent_bytes == len(encode_frame(7, beat(1))) + len(encode_frame(7, append(4)))

    run(test)


def test_a_member_that_comes_back_is_found_again_and_its_end_was_told(run: Run, kit: Any) -> None:
    async def test() -> None:
        async with kit.cluster(kit.Node(1), kit.Node(2)) as (a, b):
            await b.transport.close()
            await kit.until(lambda: a.down)
            assert a.down == [2], "told once"
            a.send(2, beat(1))
            assert a.transport.stats()[2].dropped == 1
            assert not a.transport.stats()[2].connected
            assert (
                "refused" in a.transport.stats()[2].last_error
                or "Connect call failed" in a.transport.stats()[2].last_error
            )
            again = kit.Node(2)
            await again.listen(b.port)
            try:
                again.transport.set_peers([a.address])
                await kit.until(lambda: a.reaches(2) and again.reaches(1))
                a.send(2, beat(2))
                await kit.until(lambda: again.messages == [(1, 0, beat(2))])
                assert a.down == [2]
            finally:
                await again.transport.close()

    run(test)


PEER_PROCESS = """
import asyncio, sys
from oarlock.transport import LocalIdentity, Transport
async def main():
    t = Transport(LocalIdentity(0xC0FFEE, 2, 1002, "m2"), on_messages=lambda *_: None,
                  on_peer_connected=lambda *_: None, on_peer_down=lambda *_: None)
    print((await t.listen(["http://127.0.0.1:0"]))[0], flush=True)
    from oarlock.transport import PeerAddress
    t.set_peers([PeerAddress(1, "m1", (sys.argv[1],))])
    await asyncio.sleep(600)
asyncio.run(main())
"""


def peer_process(url: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(oarlock.__file__).parents[1])}
    return subprocess.Popen(
        [sys.executable, "-c", PEER_PROCESS, url], stdout=subprocess.PIPE, text=True, env=environment
    )


def test_the_death_of_a_peers_process_is_told_at_once(run: Run, kit: Any) -> None:
    async def test() -> None:
        # No time limit of the transport's own ends while this runs: it is told, or never.
        limits = kit.quick(ping_interval_s=500.0, pong_timeout_s=1000.0, idle_timeout_s=1000.0)
        async with kit.cluster(kit.Node(1, limits=limits), meet=False) as (a,):
            process = peer_process(a.urls[0])
            try:
                assert process.stdout is not None
                url = (await asyncio.to_thread(process.stdout.readline)).strip()
                a.transport.set_peers([PeerAddress(2, "m2", (url,))])
                await kit.until(lambda: a.reaches(2) and 2 in a.transport._incoming)
                process.send_signal(signal.SIGKILL)
                await kit.until(lambda: a.down)
                assert a.down == [2]
            finally:
                process.kill()
                process.wait()
                if process.stdout is not None:
                    process.stdout.close()

    run(test)


def test_a_peer_that_stops_answering_is_given_up_but_not_called_dead(run: Run, kit: Any) -> None:
    """A stopped process still has its listener: timeouts prove nothing about it."""

    async def test() -> None:
        async with kit.cluster(
            kit.Node(1, limits=kit.quick(pong_timeout_s=0.3, handshake_timeout_s=0.2)), meet=False
        ) as (a,):
            process = peer_process(a.urls[0])
            try:
                assert process.stdout is not None
                url = (await asyncio.to_thread(process.stdout.readline)).strip()
                a.transport.set_peers([PeerAddress(2, "m2", (url,))])
                await kit.until(lambda: a.reaches(2))
                process.send_signal(signal.SIGSTOP)
                await kit.until(lambda: "no handshake within" in a.transport.stats()[2].last_error)
                assert not a.reaches(2) and a.down == []
                process.send_signal(signal.SIGCONT)
                await kit.until(lambda: a.reaches(2))
                assert a.down == []
            finally:
                process.kill()
                process.wait()
                if process.stdout is not None:
                    process.stdout.close()

    run(test)


def test_a_peer_that_was_never_there_is_not_called_dead(run: Run, kit: Any) -> None:
    async def test() -> None:
        async with kit.cluster(kit.Node(1), meet=False) as (a,):
            a.transport.set_peers([PeerAddress(2, "m2", (f"http://127.0.0.1:{free_port()}",))])
            await kit.until(lambda: a.transport.stats()[2].last_error)
            assert a.down == [] and a.connected == []

    run(test)


def test_the_second_url_is_tried_and_names_are_resolved_each_time(run: Run, kit: Any) -> None:
    async def test() -> None:
        async with kit.cluster(kit.Node(1), kit.Node(2), meet=False) as (a, b):
            asked: list[str] = []
            loop = asyncio.get_running_loop()
            resolve = loop.getaddrinfo

            async def getaddrinfo(host: Any, port: Any, **more: Any) -> Any:
                if host != "moved.test":
                    return await resolve(host, port, **more)
                asked.append(host)
                if len(asked) > 2:
                    return await resolve("127.0.0.1", port, **more)
                raise socket.gaierror(-2, "Name or service not known")

            loop.getaddrinfo = getaddrinfo  # type: ignore[method-assign]
            urls = (f"http://127.0.0.1:{free_port()}", f"http://moved.test:{b.port}")
            a.transport.set_peers([PeerAddress(2, "m2", urls)])
            b.transport.set_peers([a.address])
            await kit.until(lambda: a.reaches(2))
            assert len(asked) >= 3

    run(test)


def test_a_changed_address_is_dialled_and_a_removed_member_is_let_go(run: Run, kit: Any) -> None:
    async def test() -> None:
        async with kit.cluster(kit.Node(1), kit.Node(2)) as (a, b):
            second = await b.transport.listen(["http://127.0.0.1:0"])
            a.transport.set_peers([PeerAddress(2, "m2", tuple(second))])
            assert not a.reaches(2)
            await kit.until(lambda: a.reaches(2))
            assert a.transport.stats()[2].address == second[0].removeprefix("http://")
            a.transport.set_peers([])
            assert a.transport.stats() == {}
            await kit.until(lambda: "is not in the configuration" in b.transport.stats()[1].last_error)
            assert b.down == [], "a refusal is not a death"

    run(test)


def test_an_address_that_makes_no_sense_stops_nobody(run: Run, kit: Any) -> None:
    async def test() -> None:
        async with kit.cluster(kit.Node(1), kit.Node(2), meet=False) as (a, b):
            b.transport.set_peers([a.address])
            strange = [
                PeerAddress(i, "x", (url,))
                for i, url in enumerate(["", "ftp://h:1", "http://h", "http://[::1", "https://h:1"], 3)
            ]
            strange.append(PeerAddress(9, "x", (f"http://{'a' * 70}.test:1",)))
            a.transport.set_peers([*strange, PeerAddress(10, "none", ()), b.address])
            await kit.until(lambda: a.reaches(2) and all(s.last_error for i, s in a.transport.stats().items() if i > 2))
            stats = a.transport.stats()
            assert "must look like http://host:port" in stats[3].last_error
            assert "needs a peer certificate" in stats[7].last_error
            assert "has no address" in stats[10].last_error

    run(test)


@pytest.mark.parametrize("url", ["127.0.0.1:1", "http://127.0.0.1", "https://127.0.0.1:0", "http://127.0.0.1:99999"])
def test_listening_on_what_makes_no_sense_is_an_error(run: Run, kit: Any, url: str) -> None:
    async def test() -> None:
        node = kit.Node(1)
        with pytest.raises(ConfigurationError, match="peer URL"):
            await node.transport.listen([url])
        await node.transport.close()

    run(test)


def test_a_port_in_use_is_an_error_and_leaves_nothing_open(run: Run, kit: Any) -> None:
    async def test() -> None:
        async with kit.cluster(kit.Node(1), meet=False) as (a,):
            node = kit.Node(2)
            port = free_port()
            with pytest.raises(
                ConfigurationError, match=r"cannot listen for peers on .*another process may use the port"
            ):
                await node.transport.listen([f"http://127.0.0.1:{port}", a.urls[0]])
            with socket.socket() as probe:
                assert probe.connect_ex(("127.0.0.1", port)) != 0
            await node.transport.close()

    run(test)


@pytest.mark.filterwarnings("error::ResourceWarning", "error::pytest.PytestUnraisableExceptionWarning")
def test_close_leaves_no_socket_open_and_may_be_repeated(run: Run, kit: Any) -> None:
    async def test() -> None:
        before = set(os.listdir("/proc/self/fd"))
        for _ in range(3):
            async with kit.cluster(kit.Node(1), kit.Node(2)) as (a, _b):
                await a.transport.close()
                await a.transport.close()
        await asyncio.sleep(0)
        assert len(os.listdir("/proc/self/fd")) <= len(before) + 1

    run(test)
    gc.collect()  # a socket that nobody closed complains now


def test_a_peer_that_calls_is_called_back_at_once(run: Run, kit: Any) -> None:
    """A member that starts again must not wait until the others' pauses between dials are over."""

    async def test() -> None:
        limits = kit.quick(reconnect_min_s=60.0, reconnect_max_s=60.0)
        a, b, port = kit.Node(1, limits=limits), kit.Node(2), free_port()
        try:
            await a.listen()
            a.transport.set_peers([PeerAddress(2, "m2", (f"http://127.0.0.1:{port}",))])
            await kit.until(lambda: a.transport.stats()[2].last_error)
            await b.listen(port)
            b.transport.set_peers([a.address])
            await kit.until(lambda: a.reaches(2))
        finally:
            await a.transport.close()
            await b.transport.close()

    run(test)


# ---------------------------------------------------------------- order and bounds


def test_messages_of_a_kind_arrive_in_order(run: Run, kit: Any) -> None:
    async def test() -> None:
        async with kit.cluster(kit.Node(1), kit.Node(2)) as (a, b):
            for i in range(2000):
                a.transport.send(2, 0, append(i, size=700))
                a.transport.send(2, 0, beat(i))
                if i % 7 == 0:
                    a.transport.flush()
            a.transport.flush()
            await kit.until(lambda: len(b.messages) == 4000)
            got = [m for _, _, m in b.messages]
            assert [m for m in got if isinstance(m, AppendEntries)] == [append(i, size=700) for i in range(2000)]
            assert [m for m in got if isinstance(m, Heartbeat)] == [beat(i) for i in range(2000)]
            assert a.transport.stats()[2].dropped == 0

    run(test)


def test_equal_appends_of_one_turn_are_encoded_once(run: Run, kit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded = []
    original = wire.encode_frame

    def counting(group: int, message: Any) -> bytearray:
        encoded.append(message)
        return original(group, message)

    monkeypatch.setattr("oarlock.transport.peers.encode_frame", counting)

    async def test() -> None:
        async with kit.cluster(kit.Node(1), kit.Node(2), kit.Node(3)) as (a, b, c):
            encoded.clear()
            a.transport.send(2, 0, append(5))
            a.transport.send(3, 0, append(5))
            a.transport.send(3, 1, append(5))  # of another group: other bytes
            a.transport.send(3, 0, append(6))
            a.transport.flush()
            await kit.until(lambda: len(b.messages) == 1 and len(c.messages) == 3)
            assert encoded == [append(5), append(5), append(6)]
            assert c.messages == [(1, 0, append(5)), (1, 1, append(5)), (1, 0, append(6))]

    run(test)


class Deaf:
    """A peer that says hello, and reads only when it is told to."""

    def __init__(self, kit: Any, id: int = 2) -> None:
        self.kit, self.id = kit, id
        self.parser = FrameParser("deaf", handshaking=True)
        self.server: asyncio.Server | None = None

    async def __aenter__(self) -> Deaf:
        self.listener = socket.socket()
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen()
        self.listener.setblocking(False)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.listener.close()
        self.socket.close()

    @property
    def address(self) -> PeerAddress:
        return PeerAddress(self.id, f"m{self.id}", (f"http://127.0.0.1:{self.listener.getsockname()[1]}",))

    async def meet(self) -> None:
        loop = asyncio.get_running_loop()
        self.socket, _ = await loop.sock_accept(self.listener)
        self.socket.setblocking(False)
        while self.parser.first(await loop.sock_recv(self.socket, 4096)) is None:
            pass
        await loop.sock_sendall(self.socket, bytes(encode_hello(hello(self.kit, self.id))))

    async def read(self, size: int = 65536) -> list[Any]:
        data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.socket, size), 120)
        assert data, "closed"
        return [m for _, m in self.parser.feed(data)]


def test_bulk_over_its_bound_is_dropped_and_counted_and_what_was_kept_is_in_order(run: Run, kit: Any) -> None:
    async def test() -> None:
        limits = kit.quick(bulk_mark_bytes=64 * 1024, bulk_bytes_max=2**20)
        async with kit.cluster(kit.Node(1, limits=limits), meet=False) as (a,), Deaf(kit) as deaf:
            a.transport.set_peers([deaf.address])
            await deaf.meet()
            await kit.until(lambda: a.reaches(2))
            for i in range(400):
                a.send(2, append(i, size=20_000))
            stats = a.transport.stats()[2]
            assert stats.dropped > 100
            assert 2**20 - 21_000 < stats.waiting_bytes <= 2**20 + 64 * 1024 + 21_000
            kept = 400 - stats.dropped
            got: list[Any] = []
            while len(got) < kept:
                got += await deaf.read()
            assert got == [append(i, size=20_000) for i in range(kept)], "the newest went, the oldest stayed"
            a.send(2, append(kept))
            while len(got) == kept:
                got += await deaf.read()
            assert got[-1] == append(kept)
            assert a.transport.stats()[2].sent_messages == kept + 1

    run(test)


def test_control_over_its_bound_is_dropped_and_counted(run: Run, kit: Any) -> None:
    async def test() -> None:
        limits = kit.quick(bulk_mark_bytes=16 * 1024, control_bytes_max=8192, ping_interval_s=60.0)
        async with kit.cluster(kit.Node(1, limits=limits), meet=False) as (a,), Deaf(kit) as deaf:
            a.transport.set_peers([deaf.address])
            await deaf.meet()
            await kit.until(lambda: a.reaches(2))
            sent = 0
            while not a.transport.stats()[2].dropped:
                a.send(2, beat(sent))
                sent += 1
                assert sent < 2_000_000
            assert a.transport.stats()[2].waiting_bytes <= 16 * 1024 + 3 * 8192

    run(test)


def test_a_heartbeat_does_not_wait_behind_a_snapshot(run: Run, kit: Any) -> None:
    async def test() -> None:
        limits = kit.quick(bulk_mark_bytes=64 * 1024, ping_interval_s=60.0)
        async with kit.cluster(kit.Node(1, limits=limits), meet=False) as (a,), Deaf(kit) as deaf:
            a.transport.set_peers([deaf.address])
            await deaf.meet()
            await kit.until(lambda: a.reaches(2))
            for i in range(200):
                a.transport.send(2, 0, append(i, size=50_000))  # 10 MB
            a.transport.flush()
            a.send(2, beat(77))
            got: list[Any] = []
            while beat(77) not in got:
                got += await deaf.read()
            ahead = len(got) - 1
            # The kernel's buffers on loopback take some megabytes whatever we ask; the rest has been overtaken.
            assert ahead < 150, f"{ahead} of 200 went first"

    run(test)


def test_a_message_that_no_frame_holds_is_the_senders_error(run: Run, kit: Any) -> None:
    async def test() -> None:
        async with kit.cluster(kit.Node(1), kit.Node(2)) as (a, b):
            with pytest.raises(ValueError, match="a proposal of"):
                a.send(2, Propose(term=1, request=1, payload=bytes(wire.ENTRY_PAYLOAD_BYTES_MAX + 1)))
            a.send(2, beat(1))
            await kit.until(lambda: b.messages == [(1, 0, beat(1))])

    run(test)


def test_what_goes_nowhere_is_counted(run: Run, kit: Any) -> None:
    async def test() -> None:
        async with kit.cluster(kit.Node(1), meet=False) as (a,):
            a.send(5, beat(1))
            a.send(1, beat(1))
            assert a.transport.counters.unroutable == 2

    run(test)


# ---------------------------------------------------------------- those who must not come in


@pytest.mark.parametrize(
    ("make", "known", "reason", "text"),
    [
        ({"id": 2, "cluster": 0xBAD}, True, "cluster", "check the peer URLs, the initial cluster and its token"),
        ({"id": 2}, False, "unknown-member", "is not in the configuration"),
        ({"id": 2, "incarnation": 5}, True, "incarnation", "the disk of member 2 \\(m2\\) was replaced"),
    ],
)
def test_whom_we_refuse_both_sides_say_why(
    run: Run, kit: Any, caplog: pytest.LogCaptureFixture, make: dict[str, Any], known: bool, reason: str, text: str
) -> None:
    async def test() -> None:
        async with kit.cluster(kit.Node(1), kit.Node(**make), meet=False) as (a, b):
            if known:
                a.transport.set_peers([PeerAddress(2, "m2", (f"http://127.0.0.1:{free_port()}",), incarnation=1002)])
            b.transport.set_peers([a.address])
            with pytest.raises(ValueError, match=f"it refused us: .*{text}"):
                await kit.until(lambda: b.transport.stats()[1].last_error)
                raise ValueError(b.transport.stats()[1].last_error)
            assert a.transport.counters.refused >= 1 and b.transport.counters.refused_by_peer >= 1
            assert not a.connected and not b.connected and not b.down

    with caplog.at_level(logging.WARNING, "oarlock"):
        run(test)
    assert any(
        "peer refused node=1 address=127.0.0.1" in r.message and f"reason={reason}" in r.message for r in caplog.records
    )
    assert any("peer refused us node=2" in r.message and f"reason={reason}" in r.message for r in caplog.records)


def test_a_url_that_points_to_oneself_or_to_another_member_is_named(run: Run, kit: Any) -> None:
    async def test() -> None:
        async with kit.cluster(kit.Node(1), kit.Node(2), meet=False) as (a, b):
            b.transport.set_peers([a.address])
            a.transport.set_peers([PeerAddress(3, "m3", tuple(a.urls)), PeerAddress(4, "m4", tuple(b.urls))])
            await kit.until(lambda: all(s.last_error for s in a.transport.stats().values()))
            assert "talks to itself" in a.transport.stats()[3].last_error
            assert "wanted member 4 and met member 2" in a.transport.stats()[4].last_error
            assert not a.reaches(3) and not a.reaches(4)

    run(test)


def test_a_disk_that_was_replaced_is_refused_even_before_the_configuration_names_it(run: Run, kit: Any) -> None:
    async def test() -> None:
        async with kit.cluster(kit.Node(1), kit.Node(2)) as (a, b):
            await b.transport.close()
            wiped = kit.Node(2, incarnation=5)
            await wiped.listen(b.port)
            try:
                wiped.transport.set_peers([a.address])
                await kit.until(lambda: "was replaced" in wiped.transport.stats()[1].last_error)
                await kit.until(lambda: "was replaced" in a.transport.stats()[2].last_error)
                assert not a.reaches(2) and not wiped.reaches(1)
                # The configuration has the last word: once it names the new disk, the member is heard.
                a.transport.set_peers([PeerAddress(2, "m2", tuple(wiped.urls), incarnation=5)])
                await kit.until(lambda: a.reaches(2) and wiped.reaches(1))
                a.transport.set_peers([PeerAddress(2, "m2", tuple(wiped.urls), incarnation=6)])
                assert not a.transport.stats()[2].connected
            finally:
                await wiped.transport.close()

    run(test)


def test_a_member_that_we_never_heard_of_is_admitted_if_the_caller_says_so(run: Run, kit: Any) -> None:
    """After an absence the leader may be unknown to us; it must reach us, and our answers must reach it."""

    async def test() -> None:
        asked: list[tuple[int, str, int]] = []

        def admit(theirs: Hello) -> str | None:
            asked.append((theirs.member_id, theirs.name, theirs.incarnation))
            return None if theirs.member_id == 4 else "it was removed"

        old, leader, removed = kit.Node(1, admit=admit), kit.Node(4), kit.Node(5)
        async with kit.cluster(old, leader, removed, meet=False):
            old.transport.set_peers([])
            leader.transport.set_peers([old.address])
            removed.transport.set_peers([old.address])
            await kit.until(lambda: leader.reaches(1))
            await kit.until(lambda: old.connected == [(4, 1004)])
            leader.send(1, append(3))
            await kit.until(lambda: old.messages == [(4, 0, append(3))])
            old.send(4, beat(1))
            await kit.until(lambda: leader.messages == [(1, 0, beat(1))])
            await kit.until(lambda: "it was removed" in removed.transport.stats()[1].last_error)
            assert (4, "m4", 1004) in asked
            assert old.transport.stats()[4].connected
            old.transport.set_peers([leader.address])  # it learns of it
            await kit.until(lambda: old.reaches(4))
            assert old.connected == [(4, 1004)], "it was reachable all the time"

    run(test)


def test_a_member_that_cannot_be_dialled_is_answered_where_it_called_from(run: Run, kit: Any) -> None:
    async def test() -> None:
        async with kit.cluster(kit.Node(1), kit.Node(2), meet=False) as (a, b):
            a.transport.set_peers([PeerAddress(2, "m2", (f"http://127.0.0.1:{free_port()}",))])
            b.transport.set_peers([a.address])
            await kit.until(lambda: a.connected == [(2, 1002)])
            assert not a.reaches(2)
            a.send(2, append(1))
            await kit.until(lambda: b.messages == [(1, 0, append(1))])

    run(test)


def test_the_newest_connection_of_a_member_wins(run: Run, kit: Any) -> None:
    async def test() -> None:
        async with kit.cluster(kit.Node(1), meet=False) as (a,):
            a.transport.set_peers([PeerAddress(2, "m2", (f"http://127.0.0.1:{free_port()}",))])
            first_in, first_out = await asyncio.open_connection("127.0.0.1", a.port)
            first_out.write(encode_hello(hello(kit, 2)))
            await kit.until(lambda: 2 in a.transport._incoming)
            _second_in, second_out = await asyncio.open_connection("127.0.0.1", a.port)
            second_out.write(bytes(encode_hello(hello(kit, 2))) + bytes(encode_frame(3, beat(9))))
            await everything(first_in)  # ends
            await kit.until(lambda: a.messages == [(2, 3, beat(9))])
            assert a.transport.counters.replaced == 1
            first_out.close()
            second_out.close()

    run(test)


# ---------------------------------------------------------------- garbage, slowness, crowds


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (os.urandom(0) + b"\x00" * 64, "these bytes begin no frame"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "it speaks HTTP"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(60), "it speaks TLS"),
        (bytes(encode_raw(wire.PING, 0, (1,))), "the first frame must be a hello"),
        (b"\xa1\x00\x00\x00\x00\xff\xff\xff\xff\x00\x00\x00\x00\xf0", "a frame of 4294967295 bytes"),
        (b"\xa1\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\xf0\x00", "checksum"),
    ],
)
def test_garbage_is_refused_and_disturbs_nobody(
    run: Run, kit: Any, caplog: pytest.LogCaptureFixture, data: bytes, text: str
) -> None:
    async def test() -> None:
        async with kit.cluster(kit.Node(1), kit.Node(2)) as (a, b):
            reader, writer = await asyncio.open_connection("127.0.0.1", a.port)
            writer.write(data)
            assert text in refusal_in(await everything(reader))
            writer.close()
            assert a.transport.counters.violations == 1
            b.send(1, beat(1))
            await kit.until(lambda: a.messages == [(2, 0, beat(1))])
            assert a.down == b.down == []

    with caplog.at_level(logging.WARNING, "oarlock"):
        run(test)
    assert any(
        "peer connection closed node=1 address=127.0.0.1" in r.message and text in r.message for r in caplog.records
    )


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (bytes(encode_raw(9, 0, (-1,))), "message type 9"),
        (b"\xa1\x00\x00\x00\x00\x01\x00\x00\x04\x00\x00\x00\x00\x03", "a frame of 67108865 bytes"),
        (bytes(encode_hello(Hello(cluster_id=1, member_id=1, incarnation=1, name=""))), "a second hello"),
        (bytes(encode_raw(wire.PONG, 0, (2**64 - 1,))), "a ping that was never sent"),
        (bytes(encode_raw(200, 0, ())), "message type 200 is not known"),
    ],
)
def test_a_member_that_talks_nonsense_loses_its_connection_only(run: Run, kit: Any, data: bytes, text: str) -> None:
    async def test() -> None:
        async with kit.cluster(kit.Node(1), kit.Node(2)) as (a, b):
            reader, writer = await asyncio.open_connection("127.0.0.1", a.port)
            a.transport.set_peers([b.address, PeerAddress(3, "m3", (f"http://127.0.0.1:{free_port()}",))])
            writer.write(bytes(encode_hello(hello(kit, 3))))
            await kit.until(lambda: 3 in a.transport._incoming)
            writer.write(bytes(encode_frame(0, TimeoutNow(term=1))))
            await kit.until(lambda: a.messages)
            writer.write(data)
            assert text in refusal_in(await everything(reader))
            writer.close()
            assert a.transport.counters.violations == 1 and a.messages == [(3, 0, TimeoutNow(term=1))]
            assert a.reaches(2) and b.reaches(1)

    run(test)


@pytest.mark.parametrize(
    "data", [b"", b"\xa1", bytes(encode_hello(Hello(cluster_id=1, member_id=1, incarnation=1, name="")))[:-1]]
)
def test_who_does_not_say_hello_in_time_is_closed(run: Run, kit: Any, data: bytes) -> None:
    async def test() -> None:
        async with kit.cluster(kit.Node(1, limits=kit.quick(handshake_timeout_s=0.05)), meet=False) as (a,):
            reader, writer = await asyncio.open_connection("127.0.0.1", a.port)
            writer.write(data)
            assert await everything(reader) == b""
            writer.close()
            assert a.transport.counters.handshake_timeouts == 1
            assert not a.transport._pending and not a.transport._connections

    run(test)


def test_a_hello_may_come_byte_by_byte(run: Run, kit: Any) -> None:
    async def test() -> None:
        async with kit.cluster(kit.Node(1), meet=False) as (a,):
            a.transport.set_peers([PeerAddress(2, "m2", (f"http://127.0.0.1:{free_port()}",))])
            _, writer = await asyncio.open_connection("127.0.0.1", a.port)
            for byte in bytes(encode_hello(hello(kit, 2))) + bytes(encode_frame(0, beat(1))):
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0)
            await kit.until(lambda: a.messages == [(2, 0, beat(1))])
            writer.close()

    run(test)


def test_a_drip_that_never_completes_a_frame_is_closed(run: Run, kit: Any) -> None:
    async def test() -> None:
        limits = kit.quick(idle_timeout_s=0.2, ping_interval_s=0.05)
        async with kit.cluster(kit.Node(1, limits=limits), meet=False) as (a,):
            a.transport.set_peers([PeerAddress(2, "m2", (f"http://127.0.0.1:{free_port()}",))])
            reader, writer = await asyncio.open_connection("127.0.0.1", a.port)
            writer.write(encode_hello(hello(kit, 2)))
            await kit.until(lambda: 2 in a.transport._incoming)
            frame = bytes(encode_frame(0, append(1, size=5000)))
            sent = 0
            while a.transport.counters.idle == 0:
                assert sent < len(frame) - 1, "never closed"
                writer.write(frame[sent : sent + 1])
                sent += 1
                await asyncio.sleep(0.005)
            assert a.messages == []
            await everything(reader)
            writer.close()

    run(test)


def test_a_silent_member_that_pings_is_kept(run: Run, kit: Any) -> None:
    async def test() -> None:
        limits = kit.quick(idle_timeout_s=2.0, pong_timeout_s=2.0, ping_interval_s=0.02)
        async with kit.cluster(kit.Node(1, limits=limits), kit.Node(2, limits=limits)) as (a, _b):
            began = a.transport.stats()[2].connected_since
            await asyncio.sleep(4.5)
            assert a.transport.stats()[2].connected_since == began
            assert a.transport.counters.idle == 0

    run(test)


def test_half_closed_connections_end(run: Run, kit: Any) -> None:
    async def test() -> None:
        async with kit.cluster(kit.Node(1), meet=False) as (a,):
            a.transport.set_peers([PeerAddress(2, "m2", (f"http://127.0.0.1:{free_port()}",))])
            reader, writer = await asyncio.open_connection("127.0.0.1", a.port)
            writer.write(encode_hello(hello(kit, 2)))
            await kit.until(lambda: 2 in a.transport._incoming)
            writer.write_eof()
            await everything(reader)
            await kit.until(lambda: 2 not in a.transport._incoming)
            writer.close()

    run(test)


def test_a_crowd_of_strangers_does_not_keep_a_member_out(run: Run, kit: Any) -> None:
    async def test() -> None:
        limits = kit.quick(unauthenticated_max=8, handshake_timeout_s=30.0)
        async with kit.cluster(kit.Node(1, limits=limits), kit.Node(2), meet=False) as (a, b):
            crowd = [await asyncio.open_connection("127.0.0.1", a.port) for _ in range(40)]
            await kit.until(lambda: a.transport.counters.accepted >= 40)
            assert len(a.transport._pending) <= 8
            assert a.transport.counters.evicted >= 32
            a.transport.set_peers([b.address])
            b.transport.set_peers([a.address])
            await kit.until(lambda: a.reaches(2) and b.reaches(1))
            for _, writer in crowd:
                writer.close()

    run(test)


def test_unread_pongs_do_not_pile_up(run: Run, kit: Any) -> None:
    async def test() -> None:
        limits = kit.quick(control_bytes_max=4096, bulk_mark_bytes=4096)
        async with kit.cluster(kit.Node(1, limits=limits), meet=False) as (a,):
            a.transport.set_peers([PeerAddress(2, "m2", (f"http://127.0.0.1:{free_port()}",))])
            _, writer = await asyncio.open_connection("127.0.0.1", a.port, limit=1024)
            writer.write(encode_hello(hello(kit, 2)))
            await kit.until(lambda: 2 in a.transport._incoming)
            pings = bytes(encode_ping(1)) * 20_000
            for _ in range(40):  # 12 MB of pings, whose answers nobody reads
                writer.write(pings)
                await writer.drain()
            assert a.transport.stats()[2].waiting_bytes <= 4096 + 64
            writer.transport.abort()
            await kit.until(lambda: 2 not in a.transport._incoming)

    run(test)


def test_lines_of_one_kind_are_limited(kit: Any, caplog: pytest.LogCaptureFixture) -> None:
    from oarlock.transport.limits import LOG_KEYS_MAX, LimitedLog

    now = 0
    lines = LimitedLog(logging.getLogger("oarlock.test"), 10.0, lambda: now)
    with caplog.at_level(logging.WARNING, "oarlock.test"):
        for _ in range(5):
            lines.warning("a", "first")
        lines.warning("b", "other")
        now = 10_000_000_000
        lines.warning("a", "second")
        for i in range(2 * LOG_KEYS_MAX):
            lines.warning(str(i), "many")
    assert [r.message for r in caplog.records[:3]] == ["first", "other", "second similar=4"]
    assert len(lines._seen) == LOG_KEYS_MAX
