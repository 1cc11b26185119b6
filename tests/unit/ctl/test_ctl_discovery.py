"""Endpoints from SRV records, asked of a name server of our own."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from oarlock.ctl.discovery import endpoints_of
from oarlock.ctl.failures import Failure

SRV = 33


def name(text: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in text.split(".")) + b"\0"


class NameServer:
    """Answers from `records`, over UDP, and over TCP if `truncates`; sends `garbage` instead if there is some."""

    def __init__(self) -> None:
        self.records: dict[str, list[tuple[int, int, int, str]]] = {}
        self.truncates = False
        self.garbage = b""
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.port = self.tcp.getsockname()[1]
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", self.port))
        for work in (self._udp, self._tcp):
            threading.Thread(target=work, daemon=True).start()

    def _answer(self, query: bytes, flags: int = 0) -> bytes:
        at, labels = 12, []
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode())
            at += 1 + query[at]
        found = self.records.get(".".join(labels), [])
        code = 0 if found else 3
        head = query[:2] + struct.pack("!HHHHH", 0x8180 | code | flags, 1, 0 if flags else len(found), 0, 0)
        answer = head + query[12 : at + 5]
        for priority, weight, port, host in () if flags else found:
            data = struct.pack("!HHH", priority, weight, port) + name(host)
            answer += struct.pack("!HHHIH", 0xC00C, SRV, 1, 60, len(data)) + data
        return answer

    def _udp(self) -> None:
        while True:
            try:
                query, sender = self.udp.recvfrom(4096)
            except OSError:
                return
            self.udp.sendto(self.garbage or self._answer(query, 0x0200 if self.truncates else 0), sender)

    def _tcp(self) -> None:
        while True:
            try:
                connection, _ = self.tcp.accept()
            except OSError:
                return
            with connection:
                answer = self._answer(connection.recv(4096)[2:])
                connection.sendall(struct.pack("!H", len(answer)) + answer)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[NameServer, str]]:
    started = NameServer()
    conf = tmp_path / "resolv.conf"
    conf.write_text(f"# comment\nsearch example.org\nnameserver 127.0.0.1#{started.port}\n")
    yield started, str(conf)
    for sock in (started.udp, started.tcp):
        sock.shutdown(socket.SHUT_RDWR) if sock is started.tcp else None
        sock.close()


@pytest.mark.parametrize("truncates", [False, True])
def test_secure_endpoints_come_first(server: tuple[NameServer, str], truncates: bool) -> None:
    names, conf = server
    names.truncates = truncates
    names.records["_etcd-client-ssl._tcp.example.org"] = [(10, 0, 2379, "b.example.org"), (1, 0, 2379, "a.example.org")]
    names.records["_etcd-client._tcp.example.org"] = [(1, 0, 4001, "c.example.org")]
    secure = ["https://a.example.org:2379", "https://b.example.org:2379"]
    assert endpoints_of("example.org", "", insecure=True, resolv_conf=conf) == [*secure, "http://c.example.org:4001"]
    assert endpoints_of("example.org", "", insecure=False, resolv_conf=conf) == secure


def test_a_suffix_goes_into_the_services_name(server: tuple[NameServer, str]) -> None:
    names, conf = server
    names.records["_etcd-client-east._tcp.example.org"] = [(1, 0, 1, "e.example.org")]
    assert endpoints_of("example.org", "east", insecure=True, resolv_conf=conf) == ["http://e.example.org:1"]


def test_no_records(server: tuple[NameServer, str]) -> None:
    with pytest.raises(Failure, match=r"lookup _etcd-client-ssl\._tcp\.nothing\.invalid: no such host and lookup"):
        endpoints_of("nothing.invalid", "", insecure=True, resolv_conf=server[1])


@pytest.mark.parametrize("garbage", [b"\0", b"\0" * 12, b"\xff" * 100, bytes(range(256))])
def test_answers_that_make_no_sense(server: tuple[NameServer, str], garbage: bytes) -> None:
    names, conf = server
    names.garbage = garbage
    with pytest.raises(Failure, match="dns lookup errors"):
        endpoints_of("example.org", "", insecure=False, resolv_conf=conf)


@pytest.mark.parametrize("domain", ["", "..", "a" * 64 + ".org"])
def test_domains_that_are_none(server: tuple[NameServer, str], domain: str) -> None:
    with pytest.raises(Failure, match="dns lookup errors"):
        endpoints_of(domain, "", insecure=False, resolv_conf=server[1])


def test_nobody_to_ask(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    for conf in (tmp_path / "empty", tmp_path / "missing"):
        with pytest.raises(Failure, match="dns lookup errors"):
            endpoints_of("example.org", "", insecure=True, resolv_conf=str(conf))
