"""Connections between members: who is there (`handshake`), connections and their queues (`connection`), all the peers
of a member (`peers`), and their certificates (`tls`). The bytes that they carry are `oarlock.wire`.

Public: `Transport`, `LocalIdentity`, `PeerAddress`, `PeerTls`, `TransportLimits`, `PeerStats`, `TransportCounters`,
`Hello`.
"""

from oarlock.transport.handshake import Hello, LocalIdentity, PeerAddress
from oarlock.transport.limits import TransportLimits
from oarlock.transport.peers import PeerStats, Transport, TransportCounters
from oarlock.transport.tls import PeerTls

__all__ = [
    "Hello",
    "LocalIdentity",
    "PeerAddress",
    "PeerStats",
    "PeerTls",
    "Transport",
    "TransportCounters",
    "TransportLimits",
]
