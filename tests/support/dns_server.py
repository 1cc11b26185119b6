"""A DNS server on loopback that answers from a table, over UDP."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

Zone = Mapping[tuple[str, str], Sequence[str]]
"""(name without the last dot, type) -> records as text. An empty list: the name exists, and has no such record."""


class DnsServer:
    """`address` is `host:port`. `refuse` answers SERVFAIL to everything; `asked` counts questions."""

    def __init__(self, zone: Zone, *, refuse: bool = False) -> None:
        self.zone = dict(zone)
        self.refuse = refuse
        self.asked = 0
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            data, peer = self._socket.recvfrom(4096)
            if data == b"end":
                return
            self.asked += 1
            query = dns.message.from_wire(data)
            question = query.question[0]
            reply = dns.message.make_response(query)
            reply.flags |= dns.flags.AA | dns.flags.RA
            name = question.name.to_text(omit_final_dot=True).lower()
            kind = dns.rdatatype.to_text(question.rdtype)
            records = self.zone.get((name, kind))
            if self.refuse:
                reply.set_rcode(dns.rcode.SERVFAIL)
            elif records:
                reply.answer.append(dns.rrset.from_text(question.name, 1, "IN", kind, *records))
            elif records is None and not any(known == name for known, _ in self.zone):
                reply.set_rcode(dns.rcode.NXDOMAIN)
            self._socket.sendto(reply.to_wire(), peer)

    def close(self) -> None:
        host, _, port = self.address.rpartition(":")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"end", (host, int(port)))
        self._thread.join()
        self._socket.close()


@contextmanager
def dns_servers(*zones: Zone, refuse: Sequence[int] = ()) -> Iterator[list[DnsServer]]:
    """One server for each zone; those whose places are in `refuse` answer nothing useful."""
    servers = [DnsServer(zone, refuse=place in refuse) for place, zone in enumerate(zones)]
    try:
        yield servers
    finally:
        for server in servers:
            server.close()


def srv_zone(record: str, addresses: Sequence[str]) -> Zone:
    """A zone with one SRV record for each `host:port`."""
    rows = [f"10 5 {port} {host}." for host, _, port in (address.rpartition(":") for address in addresses)]
    return {(record, "SRV"): rows}
