"""What every etcd service shares: the backend, the response header, batched linearizable reads, proposals and refusals.

Writes become one command each and are answered from the machine's result. Linearizable reads that arrive in one turn
share one read barrier. Nothing here creates a task or a future for a unary call.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, cast

from oarlock.api.backend import Backend
from oarlock.api.etcd import codec, errors
from oarlock.api.etcd.access import Access, AuthOptions, AuthReads
from oarlock.api.etcd.reads import Reads
from oarlock.api.grpc import Call, Code, RpcError, StreamCall
from oarlock.api.limits import Limits
from oarlock.errors import RaftError
from oarlock.machines.kv import commands
from oarlock.machines.kv.alarms import AlarmBook
from oarlock.machines.kv.commands import Range, Refused, Txn
from oarlock.machines.kv.commands_alarm import AlarmActivate, AlarmType
from oarlock.machines.kv.hashing import HashReading
from oarlock.machines.kv.leases import LeaseBook
from oarlock.machines.kv.reading import Reading
from oarlock.machines.kv.watch import WatchHub

log = logging.getLogger(__name__)

ETCD_VERSION = "3.5.0+oarlock"
"""The release whose API we speak, as a semantic version with our name as build metadata."""

CLUSTER_VERSION = "3.5.0"

RAFT_REQUEST_OVERHEAD_BYTES = 18
"""What etcd adds to a request before it compares it with --max-request-bytes (measured at the limit; it varies by 1
with the random request id)."""

QUOTA_MARGIN_BYTES = 64 << 20
"""So near to the quota every request that takes space is weighed: more than what comes in between two looks."""

REQUEST_SPACE_BYTES = 256
"""What a key-value takes besides its message, roughly (etcd's figure)."""


class KvReads(Protocol):
    """What the API reads from the key-value machine."""

    @property
    def revision(self) -> int: ...
    @property
    def compact_revision(self) -> int: ...
    @property
    def leases(self) -> LeaseBook: ...
    @property
    def alarms(self) -> AlarmBook: ...
    def hash(self) -> bytes: ...
    def read_hash(self, revision: int = 0) -> HashReading | Refused: ...
    def size_in_use(self) -> int: ...
    @property
    def watches(self) -> WatchHub: ...

    on_alarms: Callable[[], None] | None

    def read(self, request: Range | Txn) -> Reading | Refused: ...
    def range_one(self, key: bytes) -> bytes | None:
        """The encoded KeyValue of `key` now."""


class ServiceContext:
    """One member's port as its services see it."""

    def __init__(self, backend: Backend, limits: Limits, auth: AuthOptions | None = None) -> None:
        self.backend = backend
        self.access = Access(backend, cast(AuthReads, backend.kv), limits, auth or AuthOptions())
        """Who may do what; asked before every handler."""

        self.kv = cast(KvReads, backend.kv)
        self.limits = limits
        self.header = codec.HeaderEncoder(backend.cluster_id, backend.member_id).encode
        """`header(revision, term)`: an encoded ResponseHeader, as field 1 of any response."""

        self.propose = backend.propose
        self.encode = commands.encode
        self.message_bytes_max = limits.request_bytes_max - RAFT_REQUEST_OVERHEAD_BYTES
        self.is_learner = False
        self.quarantined = False
        """Whether this member's state is known to differ from the others': nothing of it is shown."""

        self.restricted = False
        """Whether `may_serve` would refuse: one truth test for the paths that are hot."""

        self.guarded = False
        """Whether a request that takes space has to ask `has_space`."""

        self._space_alarm_asked = False
        self._refused_for_space: list[Call] = []
        self.reads = Reads(limits)
        """Reads that may take long."""

        self._reads: list[tuple[Call, Callable[[Call], None]]] = []

        self.on_quarantine: Callable[[], None] | None = None
        """Called in the turn in which this member's state is found to differ: nothing may be told from then on."""

        self.kv.on_alarms = self._alarms_changed
        self._look()

    def close(self) -> None:
        """The port is closed: the machine goes on without us."""
        self.kv.on_alarms = None
        self.reads.close()

    def _alarms_changed(self) -> None:
        """In the middle of a turn of the member, which has just applied it."""
        if not self.quarantined and self.kv.alarms.quarantined(self.backend.member_id):
            self.quarantined = self.restricted = True
            if self.on_quarantine is not None:
                self.backend.flush_soon(self.on_quarantine)

    def refresh(self) -> None:
        """Called about once a second: what is too dear to ask for at every request."""
        self._look()
        self.access.refresh()

    def _look(self) -> None:
        self.is_learner = self.backend.status().is_learner
        self.quarantined = self.backend.quarantined or self.kv.alarms.quarantined(self.backend.member_id)
        self.restricted = self.is_learner or self.quarantined
        size, quota = self.kv.size_in_use(), self.limits.quota_bytes
        self.guarded = size + QUOTA_MARGIN_BYTES > quota
        if size > quota:
            self._raise_space_alarm()  # also what came in through other members counts

    def has_space(self, call: Call, size: int) -> bool:
        """Whether `size` bytes more stay within the quota. If not, the alarm that stops everybody is raised, and the
        call refused once it is: whoever was refused can see why."""
        if self.kv.size_in_use() + size + REQUEST_SPACE_BYTES <= self.limits.quota_bytes:
            return True
        self._refused_for_space.append(call)
        self._raise_space_alarm()
        return False

    def _raise_space_alarm(self) -> None:
        member = self.backend.member_id
        if self._space_alarm_asked:
            return
        if self.kv.alarms.is_active(member, AlarmType.NOSPACE):
            self._refuse_for_space()
            return
        self._space_alarm_asked = True
        try:
            self.propose(self.encode(AlarmActivate(member, AlarmType.NOSPACE)), self._space_alarm_raised)
        except RaftError as error:
            self._space_alarm_raised(error)

    def _refuse_for_space(self) -> None:
        calls, self._refused_for_space = self._refused_for_space, []
        for call in calls:
            call.fail(*errors.NO_SPACE)

    def _space_alarm_raised(self, result: object) -> None:
        self._space_alarm_asked = False
        self._refuse_for_space()
        if isinstance(result, RaftError):
            log.warning('the NOSPACE alarm was not raised, and will be tried again error="%s"', result)
        else:
            log.error("space quota exceeded: NOSPACE alarm raised member=%x quota=%d",
                      self.backend.member_id, self.limits.quota_bytes)  # fmt: skip

    # -- before every request of a kind
    def may_replicate(self, call: Call, size: int) -> None:
        """Raises `RpcError` unless a request of `size` bytes may go into the log from here."""
        if size > self.message_bytes_max:
            raise RpcError(*errors.REQUEST_TOO_LARGE)
        self.may_serve(call)

    def may_serve(self, call: Call) -> None:
        """Raises `RpcError` unless this member may serve what a learner, or one in quarantine, may not."""
        if self.quarantined:
            raise RpcError(*errors.CORRUPT)
        self.may_answer(call)

    def may_answer(self, call: Call) -> None:
        """The same for what needs nothing of this member's state."""
        if self.is_learner:
            view = self.backend.status()
            self.is_learner = view.is_learner
            if view.is_learner:  # one that has no leader either is about to join: its clients may try again elsewhere
                raise RpcError(*(errors.NOT_FOR_LEARNER if view.leader else errors.NO_LEADER))
        if call.need_leader and not self.backend.status().leader:
            raise RpcError(*errors.NO_LEADER)

    def submit(self, call: Call, command: commands.Command, done: Callable[[Call, object], None]) -> None:
        """Replicate `command`, then `done(call, result)` with the machine's result or a `RaftError`."""
        data = self.encode(command)
        if self.access.auth.enabled:
            data = self.access.wrap(call, data)
        try:
            self.propose(data, partial(done, call))
        except RaftError as error:
            call.fail(*errors.of_raft_error(error))

    # -- reads
    def read(self, call: Call, answer: Callable[[Call], None]) -> None:
        """Call `answer(call)` after a read barrier that begins at the end of this turn."""
        reads = self._reads
        reads.append((call, answer))
        if len(reads) == 1:
            self.backend.flush_soon(self._begin_reads)

    def _begin_reads(self) -> None:
        reads, self._reads = self._reads, []
        done = partial(self._barrier_done, reads)
        try:
            self.backend.read_barrier(done)
        except RaftError as error:
            done(error)

    def _barrier_done(self, reads: list[tuple[Call, Callable[[Call], None]]], error: RaftError | None) -> None:
        if error is not None:
            status = errors.of_raft_error(error)
            for call, _ in reads:
                call.fail(*status)
            return
        access = self.access
        for call, answer in reads:
            if not call.open:
                continue  # the client has gone, or its time is over
            if access.auth.enabled and not access.still(call):
                call.fail(*errors.AUTH_OLD_REVISION)  # what is read now, the caller may not be allowed to see
                continue
            try:
                answer(call)
            except Exception as fault:  # the outer edge of a call: the other reads of the batch go on
                call.fail_for(fault)

    # -- responses
    def fill(self, header: Any, revision: int) -> None:
        """Fill a ResponseHeader message."""
        header.cluster_id = self.backend.cluster_id
        header.member_id = self.backend.member_id
        header.revision = revision
        header.raft_term = self.backend.term

    def reply_header(self, call: Call) -> None:
        """End a call with a response that has nothing but a header."""
        call.reply(self.header(self.kv.revision, self.backend.term))


def fail(call: Call, result: object) -> None:
    """End a call whose proposal did not give its own kind of result."""
    if isinstance(result, Refused):
        call.fail(*errors.of_kv_error(result.error))
    elif isinstance(result, RaftError):
        call.fail(*errors.of_raft_error(result))
    else:
        log.error(
            "unexpected result method=%s/%s type=%s", call.method.service, call.method.name, type(result).__name__
        )
        call.fail(Code.INTERNAL, f"internal error: unexpected {type(result).__name__}")


def not_served(call: Call, message: bytes) -> None:
    """The handler of a unary method that this version does not have."""
    raise RpcError(
        Code.UNIMPLEMENTED, f"{call.method.service}/{call.method.name} is not served by this version of Oarlock"
    )


async def not_served_stream(call: StreamCall) -> None:
    """The handler of a streaming method that this version does not have."""
    not_served(call, b"")
