"""What a program says of its node, checked at once and without loading the engine."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from oarlock.discovery import check_discover
from oarlock.errors import ConfigurationError

if TYPE_CHECKING:
    from oarlock.transport.tls import PeerTls

CLUSTER: Final = "oarlock"
LONELY_PORT: Final = 1
"""Of the address of a member that listens nowhere: it can never be reached, and nobody else is there to reach it."""

LEASE_TTL_MIN_S: Final = 1.0
SECONDS_MAX: Final = 86_400.0
"""Of every time that a node is given: a day."""

JOIN_S: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """See `node.Node`. `peers` holds this member under `name`; `join` is empty for a group that begins. Addresses are
    `host:port`, times seconds."""

    name: str
    peers: Mapping[str, str]
    data_dir: str
    join: Sequence[str]
    listen: Sequence[str]
    cluster: str
    heartbeat: float
    election_timeout: float
    lease_reads: bool
    timeout: float
    lease_ttl: float
    snapshot_entries: int
    tls: PeerTls | None
    discover: str = ""
    join_s: float = JOIN_S

    @property
    def address(self) -> str:
        """Where the others reach this member."""
        return self.peers[self.name]

    def url(self, address: str) -> str:
        return f"{'https' if self.tls is not None else 'http'}://{address}"


def check_options(
    *,
    name: str,
    peers: Mapping[str, str] | None,
    data_dir: str | os.PathLike[str],
    join: Sequence[str],
    listen: str,
    cluster: str,
    heartbeat: float,
    election_timeout: float,
    lease_reads: bool,
    timeout: float,
    lease_ttl: float,
    snapshot_entries: int,
    tls: PeerTls | None,
    discover: str = "",
) -> Options:
    """Raises `ConfigurationError` that names what cannot work and what to do."""
    if not name:
        raise ConfigurationError("name is empty: every member needs one of its own")
    if not os.fspath(data_dir):
        raise ConfigurationError("data_dir is empty: give this member a directory of its own")
    if isinstance(join, str):
        raise ConfigurationError(f"join={join!r} must be a list of host:port")
    if join and peers:
        raise ConfigurationError("peers and join exclude each other: peers begins a group, join enters one")
    if join and not listen:
        raise ConfigurationError("join needs listen: the address under which this member was added")
    if discover:
        if peers or join:
            raise ConfigurationError(f"discover and {'peers' if peers else 'join'} exclude each other")
        check_discover(discover)
    peers = dict(peers or {})
    if not peers:
        peers = {name: listen or f"{name}.invalid:{LONELY_PORT}"}
        listens = [listen] if listen else []
    else:
        if name not in peers:
            raise ConfigurationError(
                f"peers does not hold this member {name!r} (it has {', '.join(sorted(peers))}): add it, or correct name"
            )
        listens = [listen or peers[name]]
    for each, address in [*peers.items(), *((name, address) for address in [*listens, *join])]:
        check_address(each, address)
    double = {address for address in peers.values() if list(peers.values()).count(address) > 1}
    if double:
        raise ConfigurationError(f"peers gives {', '.join(sorted(double))} to more than one member")
    times = {"heartbeat": heartbeat, "election_timeout": election_timeout, "timeout": timeout, "lease_ttl": lease_ttl}
    for what, seconds in times.items():
        if not _is_number(seconds) or not 0 < seconds <= SECONDS_MAX:
            raise ConfigurationError(f"{what}={seconds!r} must be seconds, more than 0 and at most {SECONDS_MAX:g}")
    if round(election_timeout * 1000) < 3 * round(heartbeat * 1000):
        raise ConfigurationError(
            f"election_timeout={election_timeout:g} must be at least 3 times heartbeat={heartbeat:g} (seconds)"
        )
    if not lease_ttl >= LEASE_TTL_MIN_S:
        raise ConfigurationError(f"lease_ttl={lease_ttl!r} must be at least {LEASE_TTL_MIN_S:g} seconds")
    if not _is_number(snapshot_entries) or snapshot_entries < 1 or snapshot_entries != int(snapshot_entries):
        raise ConfigurationError(f"snapshot_entries={snapshot_entries!r} must be a whole number, at least 1")
    return Options(
        name=name, peers=peers, data_dir=os.fspath(data_dir), join=tuple(join), listen=tuple(listens), cluster=cluster,
        heartbeat=heartbeat, election_timeout=election_timeout, lease_reads=lease_reads, timeout=timeout,
        lease_ttl=lease_ttl, snapshot_entries=snapshot_entries, tls=tls, discover=discover,
    )  # fmt: skip


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_address(name: str, address: str) -> None:
    """Raises `ConfigurationError` for anything but `host:port`."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536 or "/" in address:
        raise ConfigurationError(f"the address of member {name!r} is {address!r}: it must be host:port")
