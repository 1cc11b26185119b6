"""`Node`: one member of a group, inside an asyncio program, with a program's own object as its state.

    async with Node(Counter(), "n1", peers=PEERS, data_dir="n1") as node:
        await node.machine.add(5)

It takes no signal handlers, configures no logging and starts nothing at import. Whatever it starts ends with it.
"""

from __future__ import annotations

import asyncio
import os
import warnings
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from oarlock.embed.options import CLUSTER, check_options
from oarlock.embed.status import MemberStatus, NodeStatus
from oarlock.machines.objects.claims import OneAtATime
from oarlock.machines.objects.declare import Binding, check_timeout
from oarlock.machines.objects.machine import ObjectMachine

if TYPE_CHECKING:  # the engine is loaded when a node starts: importing a program that has one costs little
    from oarlock.embed.calls import Calls
    from oarlock.embed.engine import Engine
    from oarlock.embed.lease import Lease
    from oarlock.transport.tls import PeerTls

M = TypeVar("M")

_open_nodes: weakref.WeakSet[Node[Any]] = weakref.WeakSet()


class Node(Generic[M]):
    """One member. `machine` is the program's object (see `command` and `query`), `name` is this member's among `peers`.

    - `peers`: name -> `host:port` of every first member, this one included, the same on each of them. Without it the
      group has this one member, reachable at `listen` if that is given.
    - `data_dir`: a directory of this member's own; made if it does not exist. Everything acknowledged is in it.
    - `join`: `host:port` of members of a group that exists, one is enough, in place of `peers`. Somebody there must
      `add` this member first, under the address `listen`; the start waits for that for a while.
    - `discover`: where DNS has the first members, in place of `peers`: `"dns+srv://_oarlock._tcp.example.org"` or
      `"dns://peers.example.org:7101"` (see `oarlock.discovery`). Asked once, when the directory is new. Which of them
      this member is: the one at `listen`, else the host called `name` or `name.…`, else the only one of this machine.
    - `listen`: `host:port` to listen on, if it is not the address in `peers` (behind NAT, in a container).
    - `cluster`: a name that keeps groups apart; members of another one are refused.
    - `heartbeat` and `election_timeout`: seconds. A leader that dies without a sign is missed after one to two election
      timeouts; one whose process ends is missed at once.
    - `lease_reads`: let the leader answer queries of `consistency="lease"` from its lease, without a round of messages
      (diss. 6.4.1); `"linearizable"` ones go on to ask a majority. Every member must say the same.
    - `development`: run every command on a second copy too, and in a second process with another PYTHONHASHSEED, and
      stop where they differ, to find commands that are not deterministic. Three times the work.
    - `lease_ttl`: seconds after which what a dead member held (locks, elections, ...) is free again.
    - `timeout`: seconds that a call without a time limit of its own waits for an answer.
    - `tls`: certificates for the connections between members.

    Raises `TypeError`, `Unencodable`, `ConfigurationError` or `ValueError` at once for what could never work.
    """

    def __init__(
        self,
        machine: M,
        name: str = "n1",
        *,
        peers: Mapping[str, str] | None = None,
        data_dir: str | os.PathLike[str],
        join: Sequence[str] = (),
        listen: str = "",
        cluster: str = CLUSTER,
        heartbeat: float = 0.1,
        election_timeout: float = 1.0,
        lease_reads: bool = False,
        development: bool = False,
        timeout: float = 5.0,
        lease_ttl: float = 10.0,
        snapshot_entries: int = 10_000,
        tls: PeerTls | None = None,
        discover: str = "",
    ) -> None:
        self.machine = machine
        self.name = name
        self._options = check_options(
            name=name, peers=peers, data_dir=data_dir, join=join, listen=listen, cluster=cluster, heartbeat=heartbeat,
            election_timeout=election_timeout, lease_reads=lease_reads, timeout=timeout, lease_ttl=lease_ttl,
            snapshot_entries=snapshot_entries, tls=tls, discover=discover,
        )  # fmt: skip
        self._leader_claims = OneAtATime()
        self._objects = ObjectMachine(machine, check=development, builtin={"@leader": self._leader_claims})
        self._development = development
        self._engine: Engine | None = None
        self._bind: Callable[[Calls], Binding] = lambda calls: calls
        self._starting: asyncio.Task[Engine] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._begun = False
        self._closed = False
        self._pid = os.getpid()

    # -- life

    async def start(self) -> Self:
        """Recover what the directory holds and take part. Does not wait for the others: calls do, and `ready`."""
        if self._begun:
            raise RuntimeError(f"node {self.name!r} was started before: make a new one")
        if self._closed:
            raise RuntimeError(f"node {self.name!r} was closed: make a new one")
        self._begun = True
        from oarlock.embed.engine import start_engine

        second = None
        if self._development:
            from oarlock.embed.hashseed import SecondProcess

            self._objects.mirror = second = SecondProcess()
        work = start_engine(self._options, self._objects, self._leader_claims, self._bind, second)
        self._starting = asyncio.get_running_loop().create_task(work, name=f"oarlock start of {self.name}")
        _open_nodes.add(self)
        try:
            self._engine = await self._starting
        except BaseException:
            _open_nodes.discard(self)
            self._objects.unbind()  # it may be given to another node
            if second is not None:
                second.close()
            task = asyncio.current_task()
            if self._starting.cancelled() and (task is None or not task.cancelling()):
                raise RuntimeError(f"node {self.name!r} was closed while it started") from None
            raise
        if self._closed:
            raise RuntimeError(f"node {self.name!r} was closed while it started")
        return self

    def call_through(self, bind: Callable[[Calls], Binding]) -> None:
        """Before the start: let calls on the machine go through another binding, made from this node's own."""
        self._bind = bind

    async def aclose(self, *, timeout: float = 10.0) -> None:
        """Hand leadership over, answer what is under way, close. At most `timeout` seconds, about; may be called again.
        One that is cancelled goes on by itself."""
        if check_timeout(timeout) is None:
            raise TypeError("timeout=None: give seconds as a number")
        if self._pid != os.getpid():
            return
        if self._closing is None:
            self._closed = True
            closing = self._close(timeout)
            self._closing = asyncio.get_running_loop().create_task(closing, name=f"oarlock close of {self.name}")
        await asyncio.shield(self._closing)

    async def _close(self, timeout: float) -> None:
        starting = self._starting
        if starting is not None and not starting.done():
            starting.cancel()
            await asyncio.wait({starting})
        if starting is not None and not starting.cancelled() and starting.exception() is None:
            await starting.result().aclose(timeout)
        self._objects.unbind()
        _open_nodes.discard(self)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if getattr(self, "_engine", None) is not None and not self._closed and self._pid == os.getpid():
            warnings.warn(
                f"{self!r} was not closed: use `async with`, or await aclose()", ResourceWarning, stacklevel=2
            )

    async def ready(self, timeout: float | None = None) -> None:
        """Wait until the group has a leader and this member is in step with it. Raises `NoLeader` after `timeout` s."""
        await self.engine.ready(timeout)

    async def wait_stopped(self) -> BaseException:
        """Wait until this member cannot go on (its disk failed, it was removed, a command was not deterministic) and
        give the reason."""
        return await asyncio.shield(self.engine.node.halted)

    # -- looking

    @property
    def is_leader(self) -> bool:
        """Whether this member takes itself for the leader. It may have been replaced without knowing yet."""
        return self._engine is not None and self._engine.is_leader

    @property
    def leader(self) -> str:
        """The leader's name as far as this member knows, empty if it knows none."""
        return self._engine.leader if self._engine is not None else ""

    def members(self) -> tuple[MemberStatus, ...]:
        """The members of the group as this one knows them, by name."""
        return self.engine.members()

    def status(self) -> NodeStatus:
        """What a person needs to see of this node."""
        return self.engine.status()

    def __repr__(self) -> str:
        if self._engine is None or self._closed:
            return f"<Node {self.name!r} {'closed' if self._closed else 'not started'}>"
        return f"<Node {self.name!r} {self._engine.describe()}>"

    # -- changing the group

    async def transfer(self, name: str = "") -> None:
        """Hand leadership to the member `name`, or to the most suitable one. Raises `NotLeader` on other members,
        `Rejected` if it did not work out."""
        await self.engine.transfer(name)

    async def add(self, address: str, *, learner: bool = False) -> int:
        """Let a member at `host:port` in, which is then started with `join`; gives its id. A `learner` gets the log and
        has no vote until it is promoted: add it so while a majority must not depend on it.

        Raises `Rejected` with a reason of `node.replica.reconfigure.REFUSALS`: the group would lose its majority, say.
        """
        return await self.engine.add(address, learner=learner)

    async def promote(self, member: str | int) -> None:
        """Give a learner that has caught up a vote. `member`: its name, or the id that `add` gave."""
        await self.engine.promote(member)

    async def remove(self, member: str | int) -> None:
        """Let a member go, this one included; a leader hands over first. It never comes back under the same id."""
        await self.engine.remove(member)

    # -- work for exactly one member

    def on_leader(self, work: Callable[[int], Coroutine[Any, Any, object]]) -> None:
        """Run `work(token)` on the member that leads, on that one only, from now until this node closes.

        It is begun when this member has become the leader and everybody before it has ended or can no longer act
        (`lease_ttl`), and is cancelled when leadership goes. What it returns is the end of it until leadership comes
        again; what it raises is logged, and it is begun again. `token` is a fencing token, greater than all before it.
        """
        self.engine.on_leader(work)

    def lease(self, ttl: float | None = None, *, keep_alive: bool = True) -> Lease:
        """A time to live of `ttl` seconds (`lease_ttl` if left out) that things can hang on:

            async with node.lease(ttl=10) as lease:
                await node.machine.services.register("web-1", "10.0.0.1:80", lease)

        It is renewed behind the scenes, unless `keep_alive` is False: then it ends `ttl` seconds after it was granted
        or last renewed. Raises `ValueError` for a time that cannot be.
        """
        from oarlock.embed.lease import Lease

        return Lease(self.calls, ttl, keep_alive=keep_alive)

    @property
    def engine(self) -> Engine:
        """The running member. Raises `RuntimeError` if it is not started, or not in this process."""
        if self._engine is None:
            raise RuntimeError(f"node {self.name!r} is not started: use `async with`, or await start()")
        if self._pid != os.getpid():
            raise RuntimeError(
                f"node {self.name!r} was started before this process was forked: start nodes after the fork"
            )
        return self._engine

    @property
    def calls(self) -> Calls:
        """The calls on the machine, as its parts of several steps use them."""
        return self.engine.calls


def _forked() -> None:
    """In a child process: the nodes of the parent are not its own; what they hold open is closed, not used."""
    for node in list(_open_nodes):
        node._closed = True
    _open_nodes.clear()


os.register_at_fork(after_in_child=_forked)
