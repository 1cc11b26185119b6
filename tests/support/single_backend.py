"""A `Backend` of one member whose only part is a key-value machine: every command is applied at once, answers come
in the next turn. For tests and benchmarks of the API alone.

Run as a program it serves the API on a port: `python tests/support/single_backend.py [--port N] [--engine h2]`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

from oarlock.api.backend import MemberView, StatusView
from oarlock.errors import NotLeader, RaftError, Rejected
from oarlock.machines.base import Context

CLUSTER_ID = 0xCDF818194E3A8C32
MEMBER_ID = 0x8E9E05C52164694D


def make_machine() -> Any:
    """An empty in-memory key-value machine."""
    from oarlock.machines.kv.machine import KvMachine

    return KvMachine.in_memory()


class SingleBackend:
    """See the module. `fail_with`, when set, is what every proposal and barrier answers instead; `hold` keeps
    answers back in `held` until the test calls them."""

    def __init__(self, machine: Any) -> None:
        self.cluster_id = CLUSTER_ID
        self.member_id = MEMBER_ID
        self.term = 2
        self.machine = machine
        self.index = 1
        self.leader = MEMBER_ID
        self.is_learner = False
        self.fail_with: RaftError | None = None
        self.refuse_with: RaftError | None = None
        self.hold = False
        self.held: list[Callable[[], None]] = []
        self.errors: tuple[str, ...] = ()
        self.view_members: tuple[MemberView, ...] = (
            MemberView(MEMBER_ID, "default", ("http://localhost:2380",), ("http://localhost:2379",), False),
        )
        self._loop = asyncio.get_running_loop()
        self._inbox: list[tuple[bytes, Callable[[object], None]]] = []
        self._barriers: list[Callable[[RaftError | None], None]] = []
        self._planned = False

    @property
    def kv(self) -> Any:
        return self.machine

    def _plan(self) -> None:
        if not self._planned:
            self._planned = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        self._planned = False
        inbox, self._inbox = self._inbox, []
        barriers, self._barriers = self._barriers, []
        if inbox:
            if self.fail_with is None:
                self.index += 1
                results = self.machine.apply(
                    Context(self.index, self.term, time.time_ns()), [command for command, _ in inbox]
                )
            else:
                results = [self.fail_with] * len(inbox)
            for (_, done), result in zip(inbox, results, strict=True):
                done(result)
        for barrier in barriers:
            barrier(self.fail_with)

    def propose(self, command: bytes, done: Callable[[object], None]) -> None:
        if self.refuse_with is not None:
            raise self.refuse_with
        if self.hold:
            self.held.append(lambda: self._inbox.append((command, done)) or self._plan())  # type: ignore[func-returns-value]
            return
        self._inbox.append((command, done))
        self._plan()

    def read_barrier(self, done: Callable[[RaftError | None], None]) -> None:
        if self.refuse_with is not None:
            raise self.refuse_with
        if self.hold:
            self.held.append(lambda: self._barriers.append(done) or self._plan())  # type: ignore[func-returns-value]
            return
        self._barriers.append(done)
        self._plan()

    lease_ttl_min = 2
    quarantined = False

    def capture(self, done: Callable[[object], None]) -> None:
        self._loop.call_soon(
            done, self.fail_with if self.fail_with is not None else (self.machine.capture(), self.term)
        )

    def ask_leases(self, renew: Sequence[int], query: Sequence[int], done: Callable[[object], None]) -> None:
        """Without a keeper: nothing ever expires here, and a lease always has all of its TTL."""
        if self.refuse_with is not None:
            raise self.refuse_with
        book = self.machine.leases
        renewed = [book.get(lease)[0] if lease in book else 0 for lease in renew]
        remaining = [book.get(lease)[0] if lease in book else -1 for lease in query]
        self._loop.call_soon(done, self.fail_with if self.fail_with is not None else (renewed, remaining))

    def members(self) -> Sequence[MemberView]:
        return self.view_members

    def status(self) -> StatusView:
        return StatusView(self.leader, self.term, self.index, self.index, self.is_learner, 4096, 2048, self.errors)

    def transfer_leadership(self, target: int, done: Callable[[RaftError | None], None]) -> None:
        error: RaftError | None
        if self.leader != self.member_id:
            error = NotLeader(self.leader)
        elif target not in {m.id for m in self.view_members}:
            error = Rejected("bad_transferee")
        else:
            error = None
        self._loop.call_soon(done, error)

    def flush_soon(self, flush: Callable[[], None]) -> None:
        self._loop.call_soon(flush)


async def serve(port: int, engine: str | None) -> None:
    from oarlock.api.metrics import Metrics
    from oarlock.api.server import start_api

    server = await start_api(SingleBackend(make_machine()), [f"http://127.0.0.1:{port}"], Metrics(), engine=engine)
    print(server.addresses[0], flush=True)
    await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    import argparse
    import gc

    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--engine", default=None)
    parser.add_argument("--uvloop", action="store_true")
    options = parser.parse_args()
    gc.freeze()
    if options.uvloop:
        import uvloop

        uvloop.run(serve(options.port, options.engine))
    else:
        asyncio.run(serve(options.port, options.engine))
