"""What the key-value machine keeps in which table. All of it is a file format."""

from __future__ import annotations

import struct
from typing import NamedTuple

CURRENT, LOG, TOMBSTONES, ANNEX, META = "current", "log", "tombstones", "annex", "meta"
LEASES, LEASE_KEYS, AUTH, ALARMS = "leases", "lease_keys", "auth", "alarms"
TABLES = (ANNEX, CURRENT, TOMBSTONES, LOG, META, LEASES, LEASE_KEYS, AUTH, ALARMS)

PLACE = struct.Struct(">QI")
"""Main and sub revision, as keys of the log: their bytes sort like the numbers."""

PLACE_BYTES = PLACE.size

# The first byte of a log entry, and what follows it.
PUT_NEW = 0  # the key: it did not exist, and no deletion of it is known
PUT_OVER = 1  # the encoded key-value that was replaced
PUT_AFTER_DELETE = 2  # the place of the deletion before, then the key
DELETED = 3  # the encoded key-value that was deleted

STATE_KEY = b"state"
NOT_COMPACTED = -1

_STATE = struct.Struct("<qqqq16s")


class State(NamedTuple):
    """The one record of `meta`."""

    revision: int = 1
    compact_revision: int = NOT_COMPACTED
    keys: int = 0  # in `current`
    tombstones: int = 0  # in `tombstones`
    digest: bytes = bytes(16)  # of all changes so far


def pack_state(state: State) -> bytes:
    return _STATE.pack(*state)


def unpack_state(data: bytes | None) -> State:
    """The state of a new machine for None."""
    return State() if data is None else State(*_STATE.unpack(data))
