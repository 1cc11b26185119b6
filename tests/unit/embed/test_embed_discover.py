"""Groups whose first members are found by DNS: of the library and of the server, on a DNS server of the test's own."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from tests.support.dns_server import DnsServer, dns_servers, srv_zone

from oarlock import ConfigurationError, Node, NoLeader, RaftError, StateMachine, StorageError, command
from oarlock.cli.member import node_options, start_member
from oarlock.config import load, validate
from oarlock.config.options import ServerConfig
from oarlock.sync import Node as SyncNode

FREE = Callable[[int], list[str]]
RECORD = "_oarlock._tcp.example.org"


class Counter(StateMachine):
    def __init__(self) -> None:
        self.value = 0

    @command
    def add(self, n: int = 1) -> int:
        self.value += n
        return self.value


def local(free: FREE, count: int) -> list[str]:
    return [address.replace("127.0.0.1", "localhost") for address in free(count)]


def url_of(server: DnsServer) -> str:
    return f"dns+srv://{RECORD}?nameserver={server.address}"


async def test_three_members_find_each_other_and_need_no_dns_afterwards(tmp_path: Path, free_addresses: FREE) -> None:
    addresses = local(free_addresses, 3)
    with dns_servers(srv_zone(RECORD, addresses)) as [server]:
        discover = url_of(server)

        def nodes() -> list[Node[Counter]]:
            return [
                Node(Counter(), f"n{n}", discover=discover, listen=address, data_dir=tmp_path / f"n{n}", timeout=30)
                for n, address in enumerate(addresses)
            ]

        async with AsyncExitStack() as stack:
            first = [await stack.enter_async_context(node) for node in nodes()]
            assert await first[0].machine.add(2) == 2
            assert await first[2].machine.add(3) == 5
            await first[1].ready(30)
            seen = {(member.name, member.address) for member in first[0].members()}
            assert {address for _, address in seen} == set(addresses)
        server.zone.clear()
        asked = server.asked
        async with AsyncExitStack() as stack:
            again = [await stack.enter_async_context(node) for node in nodes()]
            assert await again[1].machine.add(1) == 6
            # each member has told the others its name by the time that it has announced its code version
            assert {member.name for member in again[1].members()} <= {"n0", "n1", "n2", ""}
        assert server.asked == asked
        (tmp_path / "n0" / "discovered.json").write_text("{")
        with pytest.raises(StorageError, match="remove it, and the members are looked up again"):
            await nodes()[0].start()


async def test_members_with_different_answers_never_become_one_group(tmp_path: Path, free_addresses: FREE) -> None:
    a, b, c = local(free_addresses, 3)
    with dns_servers(srv_zone(RECORD, [a, b]), srv_zone(RECORD, [a, b, c])) as [small, large]:
        async with (
            Node(Counter(), "a", discover=url_of(small), listen=a, data_dir=tmp_path / "a", timeout=1) as one,
            Node(Counter(), "b", discover=url_of(large), listen=b, data_dir=tmp_path / "b", timeout=1) as two,
        ):
            for node in (one, two):
                with pytest.raises(RaftError):
                    await node.machine.add()
                with pytest.raises(NoLeader):
                    await node.ready(0.5)
                assert node.status().commit_index == 0


async def test_nothing_is_written_when_dns_does_not_know_us(tmp_path: Path, free_addresses: FREE) -> None:
    a, b, c = local(free_addresses, 3)
    with dns_servers(srv_zone(RECORD, [a, b])) as [server]:
        node = Node(Counter(), "c", discover=url_of(server), listen=c, data_dir=tmp_path / "c")
        with pytest.raises(ConfigurationError, match=f"{c} is not among those that DNS gives"):
            await node.start()
    assert not (tmp_path / "c").exists()
    for other in ({"peers": {"c": c}}, {"join": [a]}):
        with pytest.raises(ConfigurationError, match="exclude each other"):
            Node(Counter(), "c", discover="dns://peers:1", listen=c, data_dir=tmp_path, **other)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="must be dns"):
        Node(Counter(), "c", discover="peers:1", data_dir=tmp_path)


def test_a_node_for_threads_by_addresses(tmp_path: Path, free_addresses: FREE) -> None:
    port = free_addresses(1)[0].rpartition(":")[2]
    with dns_servers({("peers.example.org", "A"): ["127.0.0.1"]}) as [server]:
        discover = f"dns://peers.example.org:{port}?nameserver={server.address}"
        with SyncNode(Counter(), "n1", discover=discover, data_dir=tmp_path / "n1", timeout=30) as node:
            assert node.members()[0].address == f"127.0.0.1:{port}"
    content = json.loads((tmp_path / "n1" / "discovered.json").read_text())
    assert content == {"own": f"127.0.0.1:{port}", "members": [f"127.0.0.1:{port}"]}


def server_config(path: Path, name: str, peer: str, dns: str, **flags: str) -> ServerConfig:
    return validate(load({
        "name": name, "data-dir": str(path / name), "listen-peer-urls": f"http://{peer}",
        "initial-advertise-peer-urls": f"http://{peer}", "listen-client-urls": "http://127.0.0.1:0",
        "advertise-client-urls": "http://127.0.0.1:1", "storage": "memory", "discovery-srv": "example.org",
        "discovery-nameserver": dns, **flags,
    }, {}))  # fmt: skip


async def test_servers_find_each_other_by_etcds_names(tmp_path: Path, free_addresses: FREE) -> None:
    peers = local(free_addresses, 3)
    names = ["n1", "n2", "n3"]
    with dns_servers(srv_zone("_etcd-server-blue._tcp.example.org", peers)) as [server]:
        configs = [
            server_config(tmp_path, name, peer, server.address, **{"discovery-srv-name": "blue"})
            for name, peer in zip(names, peers, strict=True)
        ]
        members = [await start_member(config) for config in configs]
        try:
            assert len({member.node.cluster_id for member in members}) == 1
            await members[0].node.aread_barrier()
            for member in members:
                assert sorted(url for record in member.node.records().values() for url in record.peer_urls) == sorted(
                    f"http://{peer}" for peer in peers
                )
        finally:
            for member in members:
                await member.stop()
        server.zone.clear()
        asked = server.asked
        assert node_options(configs[0]).names_known and server.asked == asked, "the log knows the members"
        with pytest.raises(ConfigurationError, match="DNS has no SRV records"):
            node_options(server_config(tmp_path, "n4", peers[0], server.address))


def test_what_a_server_is_told_must_fit_what_dns_says(tmp_path: Path, free_addresses: FREE) -> None:
    peers = local(free_addresses, 2)
    with dns_servers(srv_zone("_etcd-server._tcp.example.org", peers)) as [server]:
        other = peers[0].replace("localhost", "127.0.0.1")
        with pytest.raises(ConfigurationError, match=f"http://{peers[0]}.*: it must be one of these, written alike"):
            node_options(server_config(tmp_path, "n1", other, server.address))
        options = node_options(server_config(tmp_path, "n1", peers[0], server.address))
        assert options.initial_cluster == {peers[1]: (f"http://{peers[1]}",), "n1": (f"http://{peers[0]}",)}
    base = {"discovery-srv": "example.org"}
    for flags, text in (
        ({"discovery-srv-name": "blue"}, "discovery-srv-name is given without discovery-srv"),
        ({"discovery-nameserver": "127.0.0.1"}, "discovery-nameserver is given without discovery-srv"),
        ({**base, "initial-cluster": "default=http://localhost:2380"}, "are both given"),
        ({**base, "initial-cluster-state": "existing"}, "members of a new cluster"),
        (base, "initial-advertise-peer-urls is required with discovery-srv"),
        ({"discovery-srv": "exa mple", "initial-advertise-peer-urls": "http://a:1"}, "is no name of DNS"),
    ):
        with pytest.raises(ConfigurationError, match=text):
            validate(load(flags, {}))
