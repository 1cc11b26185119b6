"""The bounds of the transport, each with a name, and log lines that a stranger cannot multiply."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

LOG_KEYS_MAX: Final = 512  # kinds of line that a limiter tells apart; past it, it forgets the oldest


@dataclass(frozen=True, slots=True, kw_only=True)
class TransportLimits:
    """Bounds of one `Transport`. Times are in seconds, sizes in bytes."""

    handshake_timeout_s: float = 10.0  # TLS and hello together, on both sides
    connect_timeout_s: float = 5.0  # name resolution included; for each address of a peer
    unauthenticated_max: int = 64  # incoming connections before their hello; past it the oldest goes
    strangers_max: int = 64  # connections from members that only `admit` let in
    bulk_mark_bytes: int = 256 * 2**10  # bulk waits in its own queue while a socket holds this much unsent
    bulk_bytes_max: int = 32 * 2**20  # of bulk waiting for one peer; new bulk is dropped past it
    control_bytes_max: int = 4 * 2**20  # of control messages waiting for one peer; new ones are dropped past it
    flush_bytes_max: int = 4 * 2**20  # bulk handed to one socket in one go, so that a turn stays short
    reconnect_min_s: float = 0.05  # after the first retry, which is immediate; doubles from here
    reconnect_max_s: float = 2.0
    ping_interval_s: float = 1.0
    pong_timeout_s: float = 15.0  # a dialled connection without an answer for this long is given up
    idle_timeout_s: float = 30.0  # an accepted connection without one whole frame for this long is given up
    tcp_user_timeout_s: float = 10.0  # data unacknowledged for this long ends a connection (TCP_USER_TIMEOUT)
    close_timeout_s: float = 1.0  # for the last bytes when a connection is closed in order
    log_interval_s: float = 10.0  # between two lines of the same kind


class LimitedLog:
    """At most one line of a kind in each interval; the next one says how many were left out."""

    def __init__(self, logger: logging.Logger, interval_s: float, clock: Callable[[], int]) -> None:
        self._logger = logger
        self._interval_ns = int(interval_s * 1e9)
        self._clock = clock
        self._seen: dict[str, tuple[int, int]] = {}  # kind -> (when last written, left out since)

    def warning(self, kind: str, line: str) -> None:
        """Write `line`, unless one of the same `kind` was written less than an interval ago."""
        now = self._clock()
        last, left_out = self._seen.pop(kind, (None, 0))
        if last is not None and now - last < self._interval_ns:
            self._seen[kind] = (last, left_out + 1)
            return
        if len(self._seen) >= LOG_KEYS_MAX:
            del self._seen[next(iter(self._seen))]
        self._seen[kind] = (now, 0)
        self._logger.warning("%s%s", line, f" similar={left_out}" if left_out else "")
