"""Members from DNS, asked of real DNS servers on loopback; what they must not answer is told before anything begins."""

from __future__ import annotations

import sys

import pytest
from tests.support.dns_server import Zone, dns_servers, srv_zone

from oarlock import discovery
from oarlock.discovery import find_members, find_urls, own_among
from oarlock.errors import ConfigurationError
from oarlock.raft import types

RECORD = "_oarlock._tcp.example.org"
THREE = ("n1.example.org:7101", "n2.example.org:7101", "n3.example.org:7103")


def found(*zones: Zone, record: str = RECORD, refuse: tuple[int, ...] = ()) -> tuple[str, ...]:
    with dns_servers(*zones, refuse=refuse) as servers:
        return find_members(f"dns+srv://{record}?nameserver={','.join(server.address for server in servers)}")


def test_srv_records_name_hosts_and_ports() -> None:
    assert found(srv_zone(RECORD, THREE)) == THREE
    assert found(srv_zone(RECORD, [each.upper() for each in reversed(THREE)])) == THREE, "alike on every member"
    assert found(srv_zone(RECORD, THREE), srv_zone(RECORD, THREE[::-1])) == THREE
    assert found({}, srv_zone(RECORD, THREE), refuse=(0,)) == THREE, "a server that fails is no reason not to begin"


def test_addresses_name_hosts_that_listen_on_one_port() -> None:
    zone = {("peers.example.org", "A"): ["127.0.0.3", "127.0.0.2"], ("peers.example.org", "AAAA"): ["fd00::2"]}
    with dns_servers(zone) as [server]:
        url = f"dns://peers.example.org:7101?nameserver={server.address}"
        assert find_members(url) == ("127.0.0.2:7101", "127.0.0.3:7101", "[fd00::2]:7101")
    with dns_servers({("peers.example.org", "A"): ["127.0.0.2"]}) as [server]:
        assert find_members(f"dns://peers.example.org:1?nameserver={server.address}") == ("127.0.0.2:1",)
    assert "127.0.0.1:7101" in find_members("dns://localhost:7101"), "by the system's own resolver"


@pytest.mark.parametrize(
    ("zones", "text"),
    [
        ([{}], f"DNS has no SRV record {RECORD}: make one for each member"),
        ([{(RECORD, "A"): ["127.0.0.1"]}], f"DNS has no SRV record {RECORD}"),
        ([{(RECORD, "SRV"): ["0 0 0 ."]}], f"there is no service {RECORD}"),
        (
            [srv_zone(RECORD, THREE), srv_zone(RECORD, THREE[:2])],
            "the nameservers disagree about .*n3.example.org:7103",
        ),
        ([srv_zone(RECORD, THREE), {}], "the nameservers disagree about .* one has it, another does not"),
        ([srv_zone(RECORD, [f"n{n}:1" for n in range(65)])], "DNS gives 65 members for .*; at most 64 are possible"),
    ],
)
def test_answers_that_are_of_no_use(zones: list[Zone], text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        found(*zones)


def test_servers_that_do_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "ANSWER_S", 0.2)
    with pytest.raises(ConfigurationError, match=r"DNS cannot be asked for .*127.0.0.1:"):
        found({}, refuse=(0,))
    with pytest.raises(ConfigurationError, match=r"DNS cannot be asked for"):
        find_members(f"dns+srv://{RECORD}?nameserver=127.0.0.1:9")
    with dns_servers({}) as [server], pytest.raises(ConfigurationError, match=r"no A or AAAA record peers.example.org"):
        find_members(f"dns://peers.example.org:1?nameserver={server.address}")
    with pytest.raises(ConfigurationError, match=r"cannot be looked up"):
        find_members("dns://no-such-host.invalid:1")


def test_etcds_names() -> None:
    secure, plain = "_etcd-server-ssl._tcp.example.org", "_etcd-server._tcp.example.org"
    both = {**srv_zone(secure, THREE[:1]), **srv_zone(plain, THREE[1:])}
    named = srv_zone("_etcd-server-blue._tcp.example.org", THREE[:2])
    with dns_servers({**both, **named}) as [server]:
        urls = find_urls("example.org", "etcd-server", "", [server.address])
        assert urls == (f"http://{THREE[1]}", f"http://{THREE[2]}", f"https://{THREE[0]}")
        blue = find_urls("example.org", "etcd-server", "blue", [server.address])
        assert blue == (f"http://{THREE[0]}", f"http://{THREE[1]}")
        with pytest.raises(ConfigurationError, match=r"_etcd-server-ssl-red._tcp.example.org or _etcd-server-red"):
            find_urls("example.org", "etcd-server", "red", [server.address])
    with dns_servers({**srv_zone(secure, THREE), **srv_zone(plain, THREE[2:])}) as [server]:
        with pytest.raises(ConfigurationError, match=r"n3.example.org:7103 in _etcd-server-ssl"):
            find_urls("example.org", "etcd-server", "", [server.address])


def test_which_of_them_we_are() -> None:
    assert own_among(THREE, "x", "N2.example.org:7101") == THREE[1]
    assert own_among(THREE, "n3", "") == THREE[2]
    assert own_among(THREE, "n2.example.org", "0.0.0.0:7101") == THREE[1]
    assert own_among(("203.0.113.1:1", "127.0.0.1:1"), "x", "") == "127.0.0.1:1"
    assert own_among(("n1.example.org:1", "n1.example.org:2"), "n1", "[::]:2") == "n1.example.org:2"
    with pytest.raises(ConfigurationError, match=r"n4.example.org:7101 is not among those that DNS gives"):
        own_among(THREE, "n1", "n4.example.org:7101")
    with pytest.raises(ConfigurationError, match=r"none is called so, and none is of this machine"):
        own_among(("203.0.113.1:1", "203.0.113.2:1"), "x", "")
    with pytest.raises(ConfigurationError, match=r"2 could be: say it with listen"):
        own_among(("127.0.0.1:1", "127.0.0.1:2"), "x", "")


@pytest.mark.parametrize(
    "url",
    ["", "n1:7101", "dns://host", "dns+srv://host:1", "dns+srv://", "dns://host:1/x", "dns://host:99999", "srv://host",
     "dns+srv://host?server=1", "dns+srv://host?nameserver=ns.example.org", "dns+srv://host?nameserver="],
)  # fmt: skip
def test_what_cannot_be_looked_up(url: str) -> None:
    with pytest.raises(ConfigurationError, match=r"must be|discover="):
        discovery.check_discover(url)


def test_the_package_that_is_needed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dns.resolver", None)
    with pytest.raises(ConfigurationError, match=r"dnspython is needed: pip install .oarlock\[dns\]"):
        find_members(f"dns+srv://{RECORD}?nameserver=127.0.0.1:9")


def test_as_many_as_a_group_can_have() -> None:
    assert discovery.MEMBERS_MAX == types.MEMBERS_MAX
