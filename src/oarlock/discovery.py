"""Who the first members of a group are, asked of DNS.

- `dns+srv://_oarlock._tcp.example.org`: one SRV record for each member, with its host and port;
- `dns://peers.example.org:7101`: one A or AAAA record for each member, which all listen on that port;
- `?nameserver=10.0.0.53` or `?nameserver=10.0.0.53:5353,10.0.0.54` asks these in place of the system's.

Every nameserver is asked, and all must say the same: members that begin with different lists would be different groups.
SRV records, and nameservers of one's own choice, need the package dnspython (`pip install "oarlock[dns]"`).
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qs, urlsplit

from oarlock.errors import ConfigurationError

if TYPE_CHECKING:
    from dns.resolver import Answer

MEMBERS_MAX: Final = 64  # as in raft.types; a test holds the two together
ANSWER_S: Final = 5.0  # how long one nameserver may take
DNS_PORT: Final = 53
SCHEMES: Final = ("dns", "dns+srv")


class _None(Exception):
    """There is no such record."""


def check_discover(url: str) -> None:
    """Raises `ConfigurationError` for what could never be looked up."""
    _parse(url)


def find_members(url: str) -> tuple[str, ...]:
    """`host:port` of every member, in order. Raises `ConfigurationError` that says what DNS answered."""
    scheme, host, port, nameservers = _parse(url)
    if scheme == "dns+srv":
        return _checked(url, srv(host, nameservers))
    return _checked(url, [_join(address, port) for address in _addresses(host, nameservers)])


def find_urls(domain: str, service: str, name: str, nameservers: Sequence[str] = ()) -> tuple[str, ...]:
    """The URLs behind etcd's SRV names: `_SERVICE-ssl._tcp.DOMAIN` are https, `_SERVICE._tcp.DOMAIN` http, with
    `-NAME` after the service if a name is given. Raises `ConfigurationError`."""
    urls: list[str] = []
    asked: list[str] = []
    for scheme, kind in (("https", f"{service}-ssl"), ("http", service)):
        record = f"_{kind}{'-' if name else ''}{name}._tcp.{domain}"
        asked.append(record)
        try:
            urls += [f"{scheme}://{address}" for address in srv(record, nameservers, missing=True)]
        except _None:
            continue
    if not urls:
        raise ConfigurationError(f"DNS has no SRV records {' or '.join(asked)}: make one for each member")
    addresses = [url.partition("://")[2] for url in urls]
    for address in addresses:
        if addresses.count(address) > 1:
            raise ConfigurationError(
                f"DNS gives {address} in {asked[0]} and in {asked[1]}: a member has one of them, with TLS or without"
            )
    return _checked(" and ".join(asked), urls)


def own_among(members: Sequence[str], name: str, address: str) -> str:
    """Which of the members' addresses is our own: that which we were told (`address`, if it is one that others can
    reach); else the host that is called `name`, or by a longer name that begins so (`n1.example.org`); else the only
    one that is an address of this machine. Raises `ConfigurationError` if none is."""
    listed = ", ".join(members)
    host, _, port = address.rpartition(":")
    if address and not _wildcard(host):
        if address.lower() in members:
            return address.lower()
        raise ConfigurationError(
            f"this member's address {address} is not among those that DNS gives ({listed}): add a record for it, or "
            "correct listen"
        )
    found = [each for each in members if not port or each.endswith(f":{port}")]
    named = [each for each in found if each.rpartition(":")[0] == name.lower() or each.startswith(f"{name.lower()}.")]
    if len(named) == 1:
        return named[0]
    here = [each for each in found if _is_here(each.rpartition(":")[0].strip("[]"))]
    if len(here) == 1:
        return here[0]
    why = f"{len(named or here)} could be" if named or here else "none is called so, and none is of this machine"
    raise ConfigurationError(
        f"which of {listed} is member {name!r}? {why}: say it with listen='host:port' as DNS has it"
    )


def srv(record: str, nameservers: Sequence[str] = (), *, missing: bool = False) -> list[str]:
    """`host:port` of an SRV record, in order. With `missing`, raises `_None` if there is none."""
    found = []
    for answer in _ask(record, "SRV", nameservers, missing=missing):
        each = sorted(
            _join(rdata.target.to_text(omit_final_dot=True).lower(), rdata.port)
            for rdata in answer
            if rdata.target.to_text() != "."  # RFC 2782: there decidedly is no such service
        )
        if not each:
            if missing:
                raise _None
            raise ConfigurationError(f"DNS says that there is no service {record}: make one SRV record for each member")
        found.append(each)
    return _agreed(record, found)


def _addresses(host: str, nameservers: Sequence[str]) -> list[str]:
    if not nameservers:
        try:
            rows = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        except OSError as error:
            raise ConfigurationError(f"the name {host} cannot be looked up: {error}") from error
        return sorted({str(row[4][0]) for row in rows})
    found: list[str] = []
    for kind in ("A", "AAAA"):
        try:
            lists = [
                sorted(rdata.address for rdata in answer) for answer in _ask(host, kind, nameservers, missing=True)
            ]
        except _None:
            continue
        found += _agreed(host, lists)
    if not found:
        raise ConfigurationError(f"DNS has no A or AAAA record {host}: make one for each member")
    return sorted(found)


def _agreed(record: str, answers: Sequence[list[str]]) -> list[str]:
    for other in answers[1:]:
        if other != answers[0]:
            raise ConfigurationError(
                f"the nameservers disagree about {record}: one says {', '.join(answers[0])}, another "
                f"{', '.join(other)}. Wait until the change has reached all of them"
            )
    return answers[0]


def _checked(what: str, members: Sequence[str]) -> tuple[str, ...]:
    if len(members) > MEMBERS_MAX:
        raise ConfigurationError(f"DNS gives {len(members)} members for {what}; at most {MEMBERS_MAX} are possible")
    double = sorted({each for each in members if members.count(each) > 1})
    if double:
        raise ConfigurationError(f"DNS gives {', '.join(double)} more than once for {what}")
    return tuple(sorted(members))


def _ask(record: str, kind: str, nameservers: Sequence[str], *, missing: bool) -> list[Answer]:
    """The answer of each nameserver. Raises `ConfigurationError`, or `_None` with `missing`."""
    try:
        import dns.exception
        import dns.resolver
    except ImportError as error:
        raise ConfigurationError(
            f'to look up {kind} records the package dnspython is needed: pip install "oarlock[dns]"'
        ) from error
    try:
        system = dns.resolver.Resolver(configure=not nameservers)
    except dns.exception.DNSException as error:
        raise ConfigurationError(f"this machine has no DNS configuration: {error}; give a nameserver") from error
    servers = [_nameserver(each) for each in nameservers] or [(str(each), system.port) for each in system.nameservers]
    answers: list[Answer] = []
    failures: list[str] = []
    none = False
    for address, port in servers:
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = [address], port
        try:
            answers.append(resolver.resolve(record, kind, lifetime=ANSWER_S, search=False))
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            none = True
        except dns.exception.DNSException as error:
            failures.append(f"{address}:{port}: {error}")
    if none and answers:
        raise ConfigurationError(
            f"the nameservers disagree about {record}: one has it, another does not. Wait until the change has reached "
            "all of them"
        )
    if answers:
        return answers  # a server that does not answer at all is no reason not to begin
    if none:
        if missing:
            raise _None
        raise ConfigurationError(f"DNS has no {kind} record {record}: make one for each member")
    raise ConfigurationError(f"DNS cannot be asked for {record}: {'; '.join(failures)}")


def _parse(url: str) -> tuple[str, str, int, tuple[str, ...]]:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise ConfigurationError(f"discover={url!r}: {error}") from error
    query = parse_qs(parts.query, keep_blank_values=True)
    nameservers = tuple(each for text in query.pop("nameserver", []) for each in text.split(","))
    shape = "dns+srv://_service._tcp.example.org or dns://example.org:port, and ?nameserver=host:port if need be"
    if (
        parts.scheme not in SCHEMES
        or not parts.hostname
        or parts.path
        or query
        or (parts.scheme == "dns") != bool(port)
    ):
        raise ConfigurationError(f"discover={url!r} must be {shape}")
    for each in nameservers:
        _nameserver(each)
    return parts.scheme, parts.hostname, port or 0, nameservers


def _nameserver(text: str) -> tuple[str, int]:
    """`address`, `address:port` or `[address]:port`. Raises `ConfigurationError`: a name would need a nameserver."""
    parts = urlsplit(f"//{text}")
    try:
        return str(ipaddress.ip_address(parts.hostname or "")), parts.port or DNS_PORT
    except ValueError as error:
        raise ConfigurationError(
            f"the nameserver {text!r} must be an IP address, with a port if it is not 53"
        ) from error


def check_nameservers(nameservers: Sequence[str]) -> None:
    """Raises `ConfigurationError` for what is no address."""
    for each in nameservers:
        _nameserver(each)


def _join(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _wildcard(host: str) -> bool:
    return host.strip("[]") in ("", "0.0.0.0", "::")  # noqa: S104 - compared, not bound


def _is_here(host: str) -> bool:
    """Whether a host is an address of this machine: one can bind to it."""
    try:
        rows = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)
    except OSError:
        return False
    for family, kind, protocol, _, address in rows:
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.bind(address)
            except OSError:
                continue
            return True
    return False
