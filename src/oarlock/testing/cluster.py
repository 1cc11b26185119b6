"""Real members in this process, for one test: the asyncio runtime, sockets on this host, data directories.

The members run on an event loop in a thread of its own, so that a test is ordinary code without `await`. Leaving the
`with` block stops all members and the thread; data directories stay where the caller put them.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

from oarlock.cli.local_cluster import free_ports
from oarlock.errors import Outcome, RaftError
from oarlock.machines.base import Machine
from oarlock.node.bootstrap import NodeOptions, start_node
from oarlock.node.runtime import Node

T = TypeVar("T")

MEMBERS_MAX: Final = 9
ELECTION_MS: Final = 300
HEARTBEAT_MS: Final = 30
START_TRIES: Final = 3  # with other ports, if somebody took one between asking and listening
STOP_SECONDS: Final = 10.0
HALT_SECONDS: Final = 0.25  # between two looks whether a member has stopped by itself
LOOK_SECONDS: Final = 0.02


class ClusterFailed(AssertionError):
    """The members did not do in time what a test waited for."""


class Cluster:
    """`with Cluster(Counter, 3, directory=tmp_path) as cluster: ...`. Members are called `m1`, `m2`, ...

    `machine` makes a fresh, empty machine. Every method waits, and raises `ClusterFailed` after its timeout.
    """

    def __init__(
        self,
        machine: Callable[[], Machine],
        members: int = 3,
        *,
        directory: Path,
        election_ms: int = ELECTION_MS,
        heartbeat_ms: int = HEARTBEAT_MS,
    ) -> None:
        if not 1 <= members <= MEMBERS_MAX:
            raise ValueError(f"{members} members: 1 to {MEMBERS_MAX} are possible")
        self.names = tuple(f"m{number}" for number in range(1, members + 1))
        self.directory = directory
        self._make = machine
        self._election_ms = election_ms
        self._heartbeat_ms = heartbeat_ms
        self._urls: dict[str, list[str]] = {}
        self._nodes: dict[str, Node] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    # -- life

    def __enter__(self) -> Cluster:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="oarlock test cluster", daemon=True)
        self._thread.start()
        try:
            for last in range(START_TRIES):
                self._urls = {
                    name: [f"http://127.0.0.1:{port}"]
                    for name, port in zip(self.names, free_ports(len(self.names)), strict=True)
                }
                try:
                    for name in self.names:
                        self.start(name)
                    break
                except RaftError:
                    if last == START_TRIES - 1 or any((self.directory / name).exists() for name in self.names):
                        raise
            self.leader()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop everything and wait until it is gone. May be called again."""
        if self._loop is None or self._thread is None:
            return
        loop, thread = self._loop, self._thread
        self._loop = self._thread = None
        nodes, self._nodes = list(self._nodes.values()), {}

        async def finish() -> None:
            await asyncio.gather(*(node.stop(timeout_s=STOP_SECONDS / 4) for node in nodes))
            left = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            await loop.shutdown_asyncgens()
            await loop.shutdown_default_executor()

        try:
            asyncio.run_coroutine_threadsafe(finish(), loop).result(STOP_SECONDS * 2)
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(STOP_SECONDS)
            loop.close()

    def start(self, name: str) -> None:
        """Start a member: for the first time, or again from its data."""
        self._known(name)
        if name in self._nodes:
            raise ClusterFailed(f"member {name} is running")
        options = NodeOptions(
            name=name,
            data_dir=str(self.directory / name),
            listen_peer_urls=self._urls[name],
            advertise_peer_urls=self._urls[name],
            initial_cluster=self._urls,
            election_ms=self._election_ms,
            heartbeat_ms=self._heartbeat_ms,
            segment_bytes=1 << 20,
        )
        self.directory.mkdir(parents=True, exist_ok=True)
        self._nodes[name] = self._await(start_node(options, lambda directory: self._make()), 30.0, f"start of {name}")

    def stop(self, name: str) -> None:
        """Stop a member in order; what it holds is on disk."""
        node = self._node(name)
        del self._nodes[name]
        self._await(node.stop(timeout_s=STOP_SECONDS / 2), STOP_SECONDS, f"stop of {name}")

    @property
    def running(self) -> tuple[str, ...]:
        return tuple(name for name in self.names if name in self._nodes)

    # -- asking

    def propose(self, command: bytes, at: str | None = None, *, timeout: float = 20.0) -> Any:
        """Have a command applied by the group, and return its result.

        At the member `at`, or at any. A refusal that certainly executed nothing is asked again until the timeout;
        an answer that never came raises, because nobody knows whether the command was executed.
        """
        deadline = time.monotonic() + timeout
        while True:
            node = self._node(at) if at is not None else self._any()
            try:
                return self._await(node.apropose(command), max(0.01, deadline - time.monotonic()), "a proposal")
            except RaftError as error:
                if error.outcome is not Outcome.NOT_EXECUTED or time.monotonic() > deadline:
                    raise
                time.sleep(LOOK_SECONDS)

    def read(self, question: Callable[[Any], T], at: str | None = None, *, timeout: float = 20.0) -> T:
        """`question(machine)`, asked linearizably: it sees everything that was acknowledged before."""
        deadline = time.monotonic() + timeout

        async def ask(node: Node) -> T:
            await node.aread_barrier()
            return question(node.machine)

        while True:
            node = self._node(at) if at is not None else self._any()
            try:
                return self._await(ask(node), max(0.01, deadline - time.monotonic()), "a read")
            except RaftError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(LOOK_SECONDS)  # a read may be asked as often as one likes

    def look(self, name: str, question: Callable[[Any], T]) -> T:
        """`question(machine)` at this member as it stands, however old that is."""
        node = self._node(name)

        async def ask() -> T:
            return question(node.machine)

        return self._await(ask(), 10.0, f"a look at {name}")

    def leader(self, *, timeout: float = 20.0) -> str:
        """The member that leads, once all running members agree on it."""

        def agreed() -> str:
            leaders = {node.leader_id for node in self._nodes.values()}
            found = [name for name, node in self._nodes.items() if leaders == {node.member_id}]
            return found[0] if found else ""

        return self._until(agreed, timeout, "a leader that all members know")

    def wait_level(self, *, timeout: float = 20.0) -> int:
        """Wait until all running members have applied the same index; returns it."""

        def level() -> int:
            applied = {node.member.applied_index for node in self._nodes.values()}
            last = {node.member.raft.log.last_index for node in self._nodes.values()}
            return applied.pop() if applied == last and len(applied) == 1 else 0

        return self._until(level, timeout, "members of one state")

    # -- below

    def _known(self, name: str) -> None:
        if name not in self.names:
            raise ClusterFailed(f"there is no member {name!r}; there are {', '.join(self.names)}")

    def _node(self, name: str) -> Node:
        self._known(name)
        if name not in self._nodes:
            raise ClusterFailed(f"member {name} is stopped: `start({name!r})` first")
        return self._nodes[name]

    def _any(self) -> Node:
        if not self._nodes:
            raise ClusterFailed("no member is running")
        leading = [node for node in self._nodes.values() if node.is_leader]
        return leading[0] if leading else next(iter(self._nodes.values()))

    def _until(self, question: Callable[[], T], timeout: float, what: str) -> T:
        async def ask() -> T:
            return question()

        deadline = time.monotonic() + timeout
        while not (found := self._await(ask(), timeout + 5.0, what)):
            if time.monotonic() > deadline:
                raise ClusterFailed(f"no {what} within {timeout:g} s")
            time.sleep(LOOK_SECONDS)
        return found

    def _await(self, coroutine: Coroutine[Any, Any, T], timeout: float, what: str) -> T:
        if self._loop is None:
            coroutine.close()
            raise ClusterFailed("the cluster is closed: use it inside its `with` block")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        deadline = time.monotonic() + timeout
        while True:
            try:
                return future.result(min(HALT_SECONDS, max(0.01, deadline - time.monotonic())))
            except TimeoutError:
                if future.done():
                    raise  # the call's own
            except RaftError:
                self._look_for_halts()
                raise
            try:
                self._look_for_halts()
                if time.monotonic() >= deadline:
                    raise ClusterFailed(f"{what} took longer than {timeout:.1f} s")
            except ClusterFailed:
                future.cancel()
                raise

    def _look_for_halts(self) -> None:
        """A member that stopped by itself (its machine raised, its disk failed) is why a test waits in vain."""
        for name, node in self._nodes.items():
            if node.halted.done():
                reason = node.halted.result()
                raise ClusterFailed(f"member {name} stopped: {type(reason).__name__}: {reason}") from reason
