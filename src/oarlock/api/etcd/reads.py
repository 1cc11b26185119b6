"""Reads that take long: a bounded number of units in one turn of the event loop, and everybody's turn comes.

Whoever reads hands over a generator that yields after each of its steps. What is done with the first step, as nearly
every read is, is answered at once. The rest goes on in turns: one step for each connection that has a read under way,
until the units of this turn of the loop are used up. In between heartbeats, leases, writes and other clients have
theirs.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Generator
from typing import Final, Protocol, TypeAlias, TypeVar

from oarlock.api.etcd import codec
from oarlock.api.grpc import Call, GrpcConnection
from oarlock.api.limits import Limits
from oarlock.machines.kv.commands import Range, RangeResult, Refused, Txn, TxnResult
from oarlock.machines.kv.reading import STEP_UNITS, UNIT_BYTES, Reading, StateReplaced, Stepped

Job: TypeAlias = Generator[tuple[int, int], None, int]
"""Yields, and at its end returns (without the second), the units of a step and the bytes that are held after it."""

ENCODE_KEYS: Final = 1024
"""Key-values of a large answer that are encoded in one step."""

T = TypeVar("T")
Steps: TypeAlias = Generator[tuple[int, int], None, "T"]


class _Waiting:
    __slots__ = ("call", "held", "job")

    def __init__(self, call: Call, job: Job) -> None:
        self.call = call
        self.job = job
        self.held = 0


class Reads:
    """Drives the jobs. One for each port."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._left = limits.read_units_per_turn
        self._turn_ends = False
        self._waiting: dict[GrpcConnection, deque[_Waiting]] = {}  # served longest ago first
        self._held = 0
        self.units_of_turn = 0
        """Units used in this turn of the loop."""

        self.units_of_turn_max = 0
        """The most units that any turn took. For tests."""

    @property
    def waiting(self) -> int:
        """Reads that are under way or wait for their first step."""
        return sum(map(len, self._waiting.values()))

    def run(self, call: Call, job: Job) -> None:
        """Run `job`, which answers `call` in its last step: now, as far as this turn has room, and then by and by."""
        waiting = _Waiting(call, job)
        if self._left > 0 and call.connection not in self._waiting and self._step(waiting):
            return
        self._waiting.setdefault(call.connection, deque()).append(waiting)
        self._end_turn_soon()

    def close(self) -> None:
        """The port is closed."""
        for queue in self._waiting.values():
            for waiting in queue:
                waiting.job.close()
        self._waiting.clear()

    def _end_turn_soon(self) -> None:
        if not self._turn_ends:
            self._turn_ends = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        self._turn_ends = False
        self._left = self._limits.read_units_per_turn
        self.units_of_turn = 0
        queues = self._waiting
        while queues and self._left > 0:
            connection, queue = next(iter(queues.items()))
            waiting = queue[0]
            if not waiting.call.open:  # the client has gone, or its time is over
                self._over(waiting)
                done = True
            else:
                done = self._step(waiting)
            if done:
                queue.popleft()
            if not queue:
                del queues[connection]
            elif self._held <= self._limits.read_held_bytes_max:
                del queues[connection]
                queues[connection] = queue
            # else there is much in memory: who is first goes on until it is answered
        if queues:
            self._end_turn_soon()

    def _step(self, waiting: _Waiting) -> bool:
        """Whether the job has ended."""
        call = waiting.call
        try:
            units, held = next(waiting.job)
        except StopIteration as end:
            self._spend(end.value)
            self._over(waiting)
            return True
        except Exception as error:  # the outer edge of a call: it ends here, everybody else goes on
            call.fail_for(error)
        else:
            self._spend(units)
            self._held += held - waiting.held
            waiting.held = held
            return False
        self._spend(1)
        self._over(waiting)
        return True

    def _spend(self, units: int) -> None:
        self._left -= units
        self.units_of_turn += units
        self.units_of_turn_max = max(self.units_of_turn_max, self.units_of_turn)
        self._end_turn_soon()

    def _over(self, waiting: _Waiting) -> None:
        self._held -= waiting.held
        waiting.held = 0
        waiting.job.close()


class Readable(Protocol):
    """What is asked of the machine."""

    def read(self, request: Range | Txn) -> Reading | Refused: ...


def read(kv: Readable, request: Range | Txn) -> Steps[tuple[RangeResult | TxnResult | Refused, int]]:
    """The result of a read, and the units of its last step."""
    return (yield from finish(lambda: kv.read(request)))


def finish(begin: Callable[[], Stepped[T] | Refused]) -> Steps[tuple[T | Refused, int]]:
    """The result of what `begin` begins to read, and the units of its last step."""
    while True:
        reading = begin()
        if isinstance(reading, Refused):
            return reading, 1
        try:
            while not reading.step(STEP_UNITS):
                yield reading.spent, reading.held
            assert reading.result is not None
            return reading.result, reading.spent
        except StateReplaced:
            pass  # by a later state, which is as good: begin again
        finally:
            reading.close()


def encode(header: bytes, result: RangeResult | TxnResult) -> Steps[bytes]:
    """The response to a range, or to a transaction that only read."""
    if isinstance(result, RangeResult):
        return (yield from _encode_range(header, result))
    parts = [header, codec.txn_begin(result)]
    for response in result.responses:
        assert isinstance(response, RangeResult | TxnResult), response
        inner = codec.inner_header(response.revision) if isinstance(response, RangeResult) else codec.NO_HEADER
        body = yield from encode(inner, response)
        parts.append(codec.txn_op(response, body))
    return b"".join(parts)


def _encode_range(header: bytes, result: RangeResult) -> Steps[bytes]:
    kvs = result.kvs
    if len(kvs) <= ENCODE_KEYS:
        return codec.range_response(header, result)
    parts = [header]
    held = 0
    kvs.reverse()
    while kvs:  # which lets go of them as it goes: all at once would take long
        part = codec.key_values(kvs[: -ENCODE_KEYS - 1 : -1])
        del kvs[-ENCODE_KEYS:]
        parts.append(part)
        held += 2 * len(part)
        yield len(part) // UNIT_BYTES + ENCODE_KEYS // 4, held
    parts.append(codec.range_end(result))
    return b"".join(parts)
