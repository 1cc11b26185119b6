"""A lease that a thread keeps alive while the command waits, holds or leads; and what a signal does meanwhile."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

from oarlock.ctl.client import Client, method
from oarlock.ctl.connection import UNAVAILABLE
from oarlock.ctl.failures import CallError, Failure, Interrupted

TTL_DEFAULT: Final = 60
LOOK_SECONDS: Final = 0.5
"""How often a wait looks whether the lease is still there."""


class Session:
    """Grants a lease and keeps it. A context manager: revokes it at the end."""

    def __init__(self, client: Client, ttl: int) -> None:
        self.client = client
        granted = client("Lease/LeaseGrant", TTL=ttl if ttl > 0 else TTL_DEFAULT)
        self.lease: int = granted.ID
        self.lost = threading.Event()
        self._stop = threading.Event()
        self._ttl: float = granted.TTL
        self._thread = threading.Thread(target=self._keep, args=(client.again(),), daemon=True)

    def __enter__(self) -> Session:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self.client.drop()  # a signal may have come in the middle of a frame
        if not self.lost.is_set():
            with contextlib.suppress(CallError, Failure):  # it would expire anyway
                self.client("Lease/LeaseRevoke", ID=self.lease, timeout_s=min(self.client.timeout_s, self._ttl))

    def _keep(self, client: Client) -> None:
        until = time.monotonic() + self._ttl
        while not self._stop.wait(self._ttl / 3):
            try:
                left = max(0.1, until - time.monotonic())
                answer = client("Lease/LeaseKeepAlive", repeat=True, timeout_s=left, ID=self.lease)
            except CallError:
                if time.monotonic() < until:
                    continue
                break
            except Failure:
                break
            if answer.TTL <= 0:
                break
            until = time.monotonic() + answer.TTL
        if not self._stop.is_set():
            self.lost.set()

    def wait_turn(self, rpc: str, **fields: Any) -> Any:
        """The answer of a call that waits for its turn, however long; asked again if a member goes away meanwhile.
        Raises `Failure` when the lease is lost."""
        name, request, response = method(rpc)
        payload = request(**fields).SerializeToString()
        while True:
            call = self.client.open(rpc)
            try:
                call.send(payload, end=True)
                while not (call.ended or call.messages):
                    if self.lost.is_set():
                        raise Failure("session expired", hint="the lease could not be kept alive; are the members up?")
                    self.client.connect().pump(time.monotonic() + LOOK_SECONDS)
                raw = call.receive()
                if raw is not None:
                    return response.FromString(raw)
                raise CallError(UNAVAILABLE, f"{name} ended without an answer")
            except CallError as error:
                if error.code != UNAVAILABLE or self.lost.is_set():
                    raise
                self.client.drop()
                time.sleep(LOOK_SECONDS / 5)

    def hold(self, what: str) -> None:
        """Wait until the lease is lost, which is a `Failure`, or a signal comes, which is `Interrupted`."""
        while not self.lost.wait(LOOK_SECONDS):
            pass
        raise Failure(f"{what}session expired", hint="somebody else may hold it by now")


@contextlib.contextmanager
def signals_interrupt() -> Iterator[None]:
    """SIGINT and SIGTERM raise `Interrupted` in here."""

    def interrupt(number: int, frame: object) -> None:
        raise Interrupted

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
