"""The reference for client sessions, which the models of all machines share: what the sessions' part of a command must
do, written for clearness and kept whole."""

from __future__ import annotations

from typing import Any

import msgspec

SESSION, PUBLISH, ESCAPED, FIRST_PLAIN = 0, 1, 2, 8
"""The first byte of a command as the replica takes it; what is plain has none of its own."""

_decode = msgspec.msgpack.decode


class Submission:
    """A command of a session, under the key by which it is known when it comes again."""

    __slots__ = ("command", "key")

    def __init__(self, key: tuple[int, int], command: bytes) -> None:
        self.key = key
        self.command = command


class SessionModel:
    """All sessions after the entries so far."""

    def __init__(self) -> None:
        self.replies: dict[tuple[int, int], Any] = {}
        """What the commands of sessions were answered with; whoever executes them puts it here."""

        self.repeats = 0
        """Commands that came again."""

        self._sessions: dict[int, int] = {}  # session -> lowest sequence number still waited for
        self._nonces: dict[int, int] = {}

    def take(self, position: int, data: bytes) -> tuple[Any, ...] | Submission:
        """A command that begins with `SESSION`, at a position that no other has: its answer, or what to execute."""
        tag, *fields = _decode(data[1:])
        if tag == 1:
            (nonce,) = fields
            session = self._nonces.setdefault(nonce, position)
            self._sessions.setdefault(session, 1)
            return ("session", session)
        if tag == 3:
            self._sessions.pop(fields[0], None)
            self._nonces = {nonce: session for nonce, session in self._nonces.items() if session != fields[0]}
            return ("closed",)
        session, sequence, lowest, command = fields
        if session not in self._sessions:
            return ("rejected", "session_expired")
        self._sessions[session] = max(lowest, self._sessions[session])
        if sequence < self._sessions[session]:
            return ("rejected", "sequence_forgotten")
        return Submission((session, sequence), command)
