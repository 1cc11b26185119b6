"""Real transports on loopback, on both event loops, and what every test of them must leave behind: nothing."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

from oarlock.raft.messages import Message
from oarlock.transport import Hello, LocalIdentity, PeerAddress, PeerTls, Transport, TransportLimits

CLUSTER = 0xC0FFEE
LOOPS = ["asyncio", *(["uvloop"] if importlib.util.find_spec("uvloop") else [])]


def quick(**changes: Any) -> TransportLimits:
    """Limits for tests: nothing here waits for seconds."""
    defaults: dict[str, Any] = {
        "handshake_timeout_s": 20.0,
        "reconnect_min_s": 0.01,
        "reconnect_max_s": 0.05,
        "ping_interval_s": 0.05,
        "log_interval_s": 0.0,
    }
    return TransportLimits(**{**defaults, **changes})


class Node:
    """A transport and what it told."""

    def __init__(
        self,
        id: int,
        *,
        cluster: int = CLUSTER,
        incarnation: int = 0,
        name: str = "",
        limits: TransportLimits | None = None,
        tls: PeerTls | None = None,
        admit: Callable[[Hello], str | None] | None = None,
    ) -> None:
        self.identity = LocalIdentity(cluster, id, incarnation or 1000 + id, name or f"m{id}")
        self.messages: list[tuple[int, int, Message]] = []  # sender, group, message
        self.connected: list[tuple[int, int]] = []
        self.down: list[int] = []
        self.urls: list[str] = []
        self.secure = tls is not None
        self.transport = Transport(
            self.identity,
            on_messages=lambda sender, got: self.messages.extend((sender, group, m) for group, m in got),
            on_peer_connected=lambda peer, incarnation: self.connected.append((peer, incarnation)),
            on_peer_down=self.down.append,
            tls=tls,
            limits=limits or quick(),
            admit=admit,
        )

    async def listen(self, port: int = 0) -> None:
        scheme = "https" if self.secure else "http"
        self.urls = await self.transport.listen([f"{scheme}://127.0.0.1:{port}"])

    @property
    def port(self) -> int:
        return int(self.urls[0].rpartition(":")[2])

    @property
    def address(self) -> PeerAddress:
        return PeerAddress(self.identity.member_id, self.identity.name, tuple(self.urls))

    def reaches(self, peer: int) -> bool:
        """Whether our own dial stands (an incoming connection alone does not count)."""
        found = self.transport._peers.get(peer)
        return found is not None and found.dialled is not None

    def send(self, to: int, *messages: Message, group: int = 0) -> None:
        for message in messages:
            self.transport.send(to, group, message)
        self.transport.flush()


async def until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for a condition; the time is how long a broken program takes to fail, not how long a good one takes."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never came true"
        await asyncio.sleep(0.002)


@contextlib.asynccontextmanager
async def cluster(*nodes: Node, meet: bool = True) -> AsyncIterator[Sequence[Node]]:
    """`nodes` listening and, if they are to `meet`, connected in both directions; all closed at the end."""
    try:
        for node in nodes:
            await node.listen()
        if meet:
            for node in nodes:
                node.transport.set_peers([n.address for n in nodes])
            for a in nodes:
                for b in nodes:
                    if a is not b:
                        await until(lambda a=a, b=b: a.reaches(b.identity.member_id))
        yield nodes
    finally:
        for node in nodes:
            await node.transport.close()


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[None]]], None]:
    """Run a test's coroutine on each event loop; no task may be left and no error may have gone unseen."""

    def runner(test: Callable[[], Awaitable[None]]) -> None:
        unseen: list[dict[str, Any]] = []

        async def main() -> None:
            loop = asyncio.get_running_loop()
            loop.set_exception_handler(lambda _, context: unseen.append(context))
            await asyncio.wait_for(test(), 200)
            await asyncio.sleep(0)
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left, f"tasks left: {left}"

        if request.param == "uvloop":
            import uvloop

            uvloop.run(main())
        else:
            asyncio.run(main())
        assert not unseen, unseen

    return runner


@pytest.fixture
def kit() -> Any:
    """The helpers of this file, for test modules (which import nothing from each other)."""

    class Kit:
        Node = Node
        quick = staticmethod(quick)
        until = staticmethod(until)
        cluster = staticmethod(cluster)
        CLUSTER = CLUSTER

    return Kit
