"""make-mirror: copy a range of keys to another cluster, then every change, until stopped."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from typing import Any, Final

from oarlock.ctl import text
from oarlock.ctl.app import Run
from oarlock.ctl.client import Client, hint_for, method, tls_of, user_of
from oarlock.ctl.connection import DEADLINE_EXCEEDED, UNAVAILABLE, Endpoint
from oarlock.ctl.failures import INTERRUPTED, CallError, Failure, bad_arguments

PAGE_KEYS: Final = 1000
BATCH_OPERATIONS_MAX: Final = 100
BATCH_BYTES_MAX: Final = 512 << 10
"""Below a server's usual bounds, 128 operations and 1.5 MiB."""

REPORT_SECONDS: Final = 30.0
WATCH: Final = "Watch/Watch"


def make_mirror(run: Run) -> None:
    if len(run.args) != 1:
        raise bad_arguments("make-mirror takes one destination argument")
    if run.no_dest_prefix and run.dest_prefix:
        raise bad_arguments("`--dest-prefix` and `--no-dest-prefix` cannot be set at the same time, choose one")
    endpoint = Endpoint(run.args[0], tls_of(run.flags, "dest_"), run.keepalive_time, run.keepalive_timeout)
    user = user_of(run.dest_user, run.dest_password, "Destination Password: ")
    destination = Client([endpoint], user=user, dial_s=run.dial_timeout, timeout_s=run.command_timeout, debug=run.debug)
    prefix = os.fsencode(run.prefix)
    target = b"" if run.no_dest_prefix else os.fsencode(run.dest_prefix or run.prefix)
    _Mirror(run.client, destination, prefix, target).run()


class _Mirror:
    def __init__(self, source: Client, destination: Client, prefix: bytes, target: bytes) -> None:
        self.source = source
        self.destination = destination
        self.prefix = prefix
        self.target = target
        self.total = 0
        """Changes made there."""
        self._report_at = time.monotonic() + REPORT_SECONDS

    def run(self) -> None:
        revision = self.source("KV/Range", repeat=True, key=b"\0", limit=1).header.revision
        self._write(self._put(kv) for kv in self._everything(revision))
        self._follow(revision + 1)

    def _range(self) -> tuple[bytes, bytes]:
        return (self.prefix, text.prefix_end(self.prefix)) if self.prefix else (b"\0", b"\0")

    def _everything(self, revision: int) -> Iterator[Any]:
        """All keys as they were at `revision`, page by page."""
        key, end = self._range()
        while True:
            page = self.source("KV/Range", repeat=True, key=key, range_end=end, revision=revision, limit=PAGE_KEYS)
            yield from page.kvs
            if not page.more:
                return
            key = page.kvs[-1].key + b"\0"

    def _follow(self, revision: int) -> None:
        """Repeat what happens from `revision` on; a member that goes away is no end."""
        key, end = self._range()
        _, request, response = method(WATCH)
        while True:
            try:
                call = self.source.open(WATCH)
                create = {"key": key, "range_end": end, "start_revision": revision}
                call.send(request(create_request=create).SerializeToString())
                while True:
                    try:
                        raw = call.receive(self._report_at)
                    except CallError as error:
                        if error.code == DEADLINE_EXCEEDED and not call.ended:
                            self._report()
                            continue
                        raise
                    if raw is None:
                        break
                    told = response.FromString(raw)
                    if told.canceled:
                        reason = told.cancel_reason or "etcdserver: mvcc: required revision has been compacted"
                        raise Failure(reason, INTERRUPTED, hint_for(reason))
                    for group in _revisions(told.events):
                        self._write(self._delete(e.kv) if e.type else self._put(e.kv) for e in group)
                        revision = group[-1].kv.mod_revision + 1
                    if time.monotonic() >= self._report_at:
                        self._report()
            except CallError as error:
                if error.code != UNAVAILABLE:
                    raise
            self.source.drop()
            time.sleep(0.1)

    def _report(self) -> None:
        sys.stdout.write(f"{self.total}\n")
        sys.stdout.flush()
        self._report_at = time.monotonic() + REPORT_SECONDS

    def _there(self, key: bytes) -> bytes:
        return self.target + key[len(self.prefix) :]

    def _put(self, kv: Any) -> dict[str, Any]:
        return {"request_put": {"key": self._there(kv.key), "value": kv.value}}

    def _delete(self, kv: Any) -> dict[str, Any]:
        return {"request_delete_range": {"key": self._there(kv.key)}}

    def _write(self, operations: Iterator[dict[str, Any]]) -> None:
        """Write there, in as few transactions as fit."""
        batch: list[dict[str, Any]] = []
        size = 0
        for operation in operations:
            length = sum(len(part) for fields in operation.values() for part in fields.values()) + 64
            if batch and (len(batch) >= BATCH_OPERATIONS_MAX or size + length > BATCH_BYTES_MAX):
                self._send(batch)
                batch, size = [], 0
            batch.append(operation)
            size += length
        if batch:
            self._send(batch)

    def _send(self, batch: list[dict[str, Any]]) -> None:
        # to write the same once more does no harm: nothing else writes there
        self.destination("KV/Txn", repeat=True, success=batch)
        self.total += len(batch)


def _revisions(events: Any) -> Iterator[list[Any]]:
    """Events of one revision together: they are one transaction there too."""
    group: list[Any] = []
    for event in events:
        if group and group[-1].kv.mod_revision != event.kv.mod_revision:
            yield group
            group = []
        group.append(event)
    if group:
        yield group
