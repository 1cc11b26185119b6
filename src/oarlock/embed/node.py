"""`Node`: one member of a group, inside an asyncio program, with a program's own object as its state.

    async with Node(Counter(), "n1", peers=PEERS, data_dir="n1") as node:
        await node.machine.add(5)

It takes no signal handlers, configures no logging and starts nothing at import. Whatever it starts ends with it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import threading
import warnings
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType
from typing import Any, Final, Generic, Self, TypeVar

from oarlock.embed.calls import Calls
from oarlock.embed.hold import hold
from oarlock.embed.holders import Holders, LeaseLost, tick
from oarlock.errors import ConfigurationError, NoLeader, RaftError, Stopped, WrongDirectory
from oarlock.machines.objects.claims import HolderUnknown, OneAtATime
from oarlock.machines.objects.declare import Binding
from oarlock.machines.objects.machine import ACTIVATE, ANNOUNCE, ObjectMachine
from oarlock.node.bootstrap import NodeOptions, start_node
from oarlock.node.replica.directory import decode_record
from oarlock.node.replica.member import MemberLimits
from oarlock.node.replica.reconfigure import AddMember, PromoteMember, RemoveMember
from oarlock.node.runtime import Node as RuntimeNode
from oarlock.raft.types import MemberRole
from oarlock.storage.real_disk import RealDisk
from oarlock.storage.wal import WriteAheadLog
from oarlock.transport.roster import NoRoster, ask_anyone
from oarlock.transport.tls import PeerTls

M = TypeVar("M")

_log = logging.getLogger(__name__)
logging.getLogger("oarlock").addHandler(logging.NullHandler())  # as libraries do: the program decides what is shown

CLUSTER: Final = "oarlock"
LONELY_PORT: Final = 1
"""Of the address of a member that listens nowhere: it can never be reached, and nobody else is there to reach it."""

LEASE_TTL_MIN_S: Final = 1.0
CLOSE_ALONE_S: Final = 1.0
"""How long closing waits for answers from a group that gives none."""

JOIN_RETRY_S: Final = 0.2
READY_POLL_S: Final = 0.02
LEADER_POLL_S: Final = 0.05
ANNOUNCE_RETRY_S: Final = 0.5

_open_nodes: weakref.WeakSet[Node[Any]] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class MemberStatus:
    """One member of the group, as this node sees it."""

    name: str
    address: str
    id: int
    is_leader: bool
    is_voter: bool
    is_self: bool


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What a person needs to see of a node."""

    name: str
    role: str
    """`leader`, `follower`, `candidate`, `pre_candidate` or `stopped`."""

    leader: str
    """The leader's name, empty while none is known."""

    term: int
    commit_index: int
    applied_index: int
    code_version: int
    active_version: int
    members: tuple[MemberStatus, ...]


class Node(Generic[M]):
    """One member. `machine` is the program's object (see `command` and `query`), `name` is this member's among `peers`.

    - `peers`: name -> `host:port` of every first member, this one included, the same on each of them. Without it the
      group has this one member, reachable at `listen` if that is given.
    - `data_dir`: a directory of this member's own; made if it does not exist. Everything acknowledged is in it.
    - `join`: `host:port` of members of a group that exists, one is enough, in place of `peers`. Somebody there must
      `add` this member first, under the address `listen`; the start waits for that for a while.
    - `listen`: `host:port` to listen on, if it is not the address in `peers` (behind NAT, in a container).
    - `cluster`: a name that keeps groups apart; members of another one are refused.
    - `heartbeat` and `election_timeout`: seconds. A leader that dies without a sign is missed after one to two election
      timeouts; one whose process ends is missed at once.
    - `lease_reads`: let the leader answer reads from its lease (diss. 6.4.1). Every member must say the same.
    - `development`: run every command on a second copy too and stop where the two differ, to find commands that are
      not deterministic. Twice the work.
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
    ) -> None:
        if isinstance(join, str):
            raise ConfigurationError(f"join={join!r} must be a list of host:port")
        if join and peers:
            raise ConfigurationError("peers and join exclude each other: peers begins a group, join enters one")
        if join and not listen:
            raise ConfigurationError("join needs listen: the address under which this member was added")
        for address in join:
            _check_address("join", address)
        self._join = [f"{'https' if tls is not None else 'http'}://{address}" for address in join]
        if not lease_ttl >= LEASE_TTL_MIN_S:
            raise ConfigurationError(f"lease_ttl={lease_ttl!r} must be at least {LEASE_TTL_MIN_S:g} seconds")
        self._lease_ttl = lease_ttl
        self._leader_claims = OneAtATime()
        self._tasks: list[asyncio.Task[None]] = []
        self.machine = machine
        self.name = name
        self._objects = ObjectMachine(machine, check=development, builtin={"@leader": self._leader_claims})
        self._lease_reads = lease_reads
        self._options = _options(
            name, dict(peers or {}), os.fspath(data_dir), listen, cluster, heartbeat, election_timeout, lease_reads,
            timeout, snapshot_entries, tls,
        )  # fmt: skip
        self._node: RuntimeNode | None = None
        self.calls: Calls | None = None
        self._binding: Callable[[Calls], Binding] = lambda calls: calls
        self._closed = False
        self._pid = os.getpid()

    # -- life

    async def start(self) -> Self:
        """Recover what the directory holds and take part. Does not wait for the others: calls do, and `ready`."""
        if self._node is not None or self._closed:
            raise RuntimeError(f"node {self.name!r} was started before: make a new one")
        loop = asyncio.get_running_loop()
        options = self._options
        if self._join:
            options = await _joining(options, self._join)
        node = await start_node(options, lambda directory: self._objects)
        own = node.member.raft.configuration.member(node.member_id)
        known_as = decode_record(own.context).name if own is not None else ""
        if known_as not in ("", self.name):
            await node.stop()
            raise WrongDirectory(
                f"{options.data_dir} belongs to member {known_as!r}, and this is {self.name!r}: give each member a "
                "directory of its own",
                path=options.data_dir,
            )
        self._node = node
        self.calls = Calls(node, self._objects, loop, threading.get_ident(), self._lease_reads)
        self._objects.bind(self._binding(self.calls))
        self._objects.on_announced = partial(loop.call_soon, self._maybe_activate)
        self.calls.holders = Holders(self.calls, self.name, self._lease_ttl)
        for work in (self._announce(), tick(node, self._objects)):
            self._tasks.append(loop.create_task(work, name=f"oarlock node {self.name}"))
        _open_nodes.add(self)
        return self

    def call_through(self, binding: Callable[[Calls], Binding]) -> None:
        """Before the start: let calls on the machine go through another binding, made from this node's own."""
        self._binding = binding

    async def aclose(self, *, timeout: float = 10.0) -> None:
        """Hand leadership over, answer what is under way, close. At most `timeout` seconds; may be called again."""
        self._closed = True
        node = self._node
        if node is None:
            return
        if self.calls is not None:
            self.calls.closing = True
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self.calls is not None and not await self.calls.aclose():
            timeout = min(timeout, CLOSE_ALONE_S)
        await node.stop(timeout_s=timeout)
        self._objects.unbind()
        _open_nodes.discard(self)

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if getattr(self, "_node", None) is not None and not self._closed and self._pid == os.getpid():
            warnings.warn(
                f"{self!r} was not closed: use `async with`, or await aclose()", ResourceWarning, stacklevel=2
            )

    async def ready(self, timeout: float | None = None) -> None:
        """Wait until the group has a leader and this member is in step with it. Raises `NoLeader` after `timeout` s."""
        node = self._running()

        async def in_step() -> None:
            while True:
                try:
                    await node.aread_barrier()
                    return
                except NoLeader:
                    await asyncio.sleep(READY_POLL_S)

        try:
            await asyncio.wait_for(in_step(), timeout)
        except TimeoutError:
            raise NoLeader(
                f"node {self.name!r} has found no leader within {timeout:g} s: are a majority of "
                f"{', '.join(sorted(self._options.initial_cluster))} running, and do they reach each other?"
            ) from None

    async def wait_stopped(self) -> BaseException:
        """Wait until this member cannot go on (its disk failed, it was removed, a command was not deterministic) and
        give the reason."""
        return await asyncio.shield(self._running().halted)

    # -- looking

    @property
    def is_leader(self) -> bool:
        """Whether this member takes itself for the leader. It may have been replaced without knowing yet."""
        return self._node is not None and self._node.member.raft.is_leader

    @property
    def leader(self) -> str:
        """The leader's name as far as this member knows, empty if it knows none."""
        node = self._node
        if node is None:
            return ""
        record = node.records().get(node.member.raft.leader_id)
        return record.name if record is not None else ""

    def members(self) -> tuple[MemberStatus, ...]:
        node = self._running()
        raft = node.member.raft
        configuration = raft.configuration
        return tuple(
            MemberStatus(
                record.name,
                record.peer_urls[0].partition("://")[2] if record.peer_urls else "",
                member_id,
                member_id == raft.leader_id,
                member_id in configuration.voters,
                member_id == node.member_id,
            )
            for member_id, record in sorted(node.records().items(), key=lambda item: item[1].name)
        )

    def status(self) -> NodeStatus:
        node = self._running()
        raft = node.member.raft
        return NodeStatus(
            self.name,
            "stopped" if node.halted.done() else raft.status().role,
            self.leader,
            raft.current_term,
            raft.commit_index,
            node.member.applied_index,
            self._objects.spec.code_version,
            self._objects.active_version,
            self.members(),
        )

    def __repr__(self) -> str:
        node = self._node
        if node is None or self._closed:
            return f"<Node {self.name!r} {'closed' if self._closed else 'not started'}>"
        raft = node.member.raft
        return f"<Node {self.name!r} {raft.status().role} term={raft.current_term} commit={raft.commit_index}>"

    # -- changing the group

    async def transfer(self, name: str = "") -> None:
        """Hand leadership to the member `name`, or to the most suitable one. Raises `NotLeader` on other members,
        `Rejected` if it did not work out."""
        node = self._running()
        target = self._id_of(name) if name else 0
        await node.atransfer_leadership(target)

    async def add(self, address: str, *, learner: bool = False) -> int:
        """Let a member at `host:port` in, which is then started with `join`; gives its id. A `learner` gets the log and
        has no vote until it is promoted: add it so while a majority must not depend on it.

        Raises `Rejected` with a reason of `node.replica.reconfigure.REFUSALS`: the group would lose its majority, say.
        """
        _check_address("add", address)
        url = f"{'https' if self._options.tls is not None else 'http'}://{address}"
        member = secrets.randbits(63) | 1
        role = MemberRole.LEARNER if learner else MemberRole.VOTER
        await self._running().areconfigure(AddMember(member, (url,), int(role)))
        return member

    async def promote(self, member: str | int) -> None:
        """Give a learner that has caught up a vote. `member`: its name, or the id that `add` gave."""
        await self._running().areconfigure(PromoteMember(self._id_of(member)))

    async def remove(self, member: str | int) -> None:
        """Let a member go, this one included; a leader hands over first. It never comes back under the same id."""
        await self._running().areconfigure(RemoveMember(self._id_of(member)))

    def _id_of(self, name: str | int) -> int:
        for member in self.members():
            if name in (member.name, member.id):
                return member.id
        raise ConfigurationError(
            f"there is no member {name!r}: the group has {', '.join(member.name for member in self.members())}"
        )

    # -- work for exactly one member

    def on_leader(self, work: Callable[[int], Coroutine[Any, Any, object]]) -> None:
        """Run `work(token)` on the member that leads, on that one only, from now until this node closes.

        It is begun when this member has become the leader and everybody before it has ended or can no longer act
        (`lease_ttl`), and is cancelled when leadership goes. What it returns is the end of it until leadership comes
        again; what it raises is logged, and it is begun again. `token` is a fencing token, greater than all before it.
        """
        self._running()
        task = asyncio.get_running_loop().create_task(self._lead(work), name=f"oarlock on_leader {self.name}")
        self._tasks.append(task)

    async def _lead(self, work: Callable[[int], Coroutine[Any, Any, object]]) -> None:
        raft = self._running().member.raft
        done_in_term = 0
        while True:
            if not raft.is_leader or raft.current_term == done_in_term:
                await asyncio.sleep(LEADER_POLL_S)
                continue
            term = raft.current_term
            try:
                async with hold(self._leader_claims) as held:
                    if await self._while_leading(work(held.token), term):
                        done_in_term = term
            except (RaftError, LeaseLost, HolderUnknown):
                await asyncio.sleep(LEADER_POLL_S)

    async def _while_leading(self, work: Coroutine[Any, Any, object], term: int) -> bool:
        """Whether the work came to its end by itself."""
        raft = self._running().member.raft
        task = asyncio.get_running_loop().create_task(work, name=f"oarlock leader's work {self.name}")
        try:
            while raft.is_leader and raft.current_term == term:
                done, _ = await asyncio.wait({task}, timeout=LEADER_POLL_S)
                if done:
                    error = None if task.cancelled() else task.exception()
                    if error is not None:
                        _log.error("the leader's work failed node=%s term=%d", self.name, term, exc_info=error)
                        await asyncio.sleep(ANNOUNCE_RETRY_S)
                    return error is None
            return False
        finally:
            task.cancel()
            await asyncio.wait({task})

    # -- code versions

    async def _announce(self) -> None:
        """Let the group know which code version this member runs, until it does."""
        node = self._running()
        objects = self._objects
        version = objects.spec.code_version
        command = objects.codec.encode([ANNOUNCE, [self.name, version]])
        while True:
            try:
                await node.aread_barrier()
                if objects.announced.get(self.name) != version:
                    await node.apropose(command)
                self._maybe_activate()
                return
            except Stopped:
                return
            except Exception:  # no leader, or too much load: the announcement is repeated until it is known
                await asyncio.sleep(ANNOUNCE_RETRY_S)

    def _maybe_activate(self) -> None:
        """The leader lets a code version begin once every member runs it."""
        node = self._node
        if node is None or self._closed or not node.member.raft.is_leader:
            return
        objects = self._objects
        announced = [objects.announced.get(record.name, 1) for record in node.records().values()]
        lowest = min(announced, default=1)
        if lowest > objects.active_version:
            node.propose(objects.codec.encode([ACTIVATE, [lowest]]), lambda result: None)

    def _running(self) -> RuntimeNode:
        if self._node is None:
            raise RuntimeError(f"node {self.name!r} is not started: use `async with`, or await start()")
        if self._pid != os.getpid():
            raise RuntimeError(
                f"node {self.name!r} was started before this process was forked: start nodes after the fork"
            )
        return self._node


def _options(
    name: str, peers: dict[str, str], data_dir: str, listen: str, cluster: str, heartbeat: float,
    election_timeout: float, lease_reads: bool, timeout: float, snapshot_entries: int, tls: PeerTls | None,
) -> NodeOptions:  # fmt: skip
    scheme = "https" if tls is not None else "http"
    if not name:
        raise ConfigurationError("name is empty: every member needs one of its own")
    if not data_dir:
        raise ConfigurationError("data_dir is empty: give this member a directory of its own")
    if not peers:
        peers = {name: listen or f"{name}.invalid:{LONELY_PORT}"}
        listens = [listen] if listen else []
    else:
        if name not in peers:
            raise ConfigurationError(
                f"peers does not hold this member {name!r} (it has {', '.join(sorted(peers))}): add it, or correct name"
            )
        listens = [listen or peers[name]]
    for each, address in [*peers.items(), *((name, address) for address in listens)]:
        _check_address(each, address)
    double = {address for address in peers.values() if list(peers.values()).count(address) > 1}
    if double:
        raise ConfigurationError(f"peers gives {', '.join(sorted(double))} to more than one member")
    if not heartbeat > 0 or round(election_timeout * 1000) < 3 * round(heartbeat * 1000):
        raise ConfigurationError(
            f"election_timeout={election_timeout:g} must be at least 3 times heartbeat={heartbeat:g} (seconds)"
        )
    return NodeOptions(
        name=name,
        data_dir=data_dir,
        listen_peer_urls=[f"{scheme}://{address}" for address in listens],
        advertise_peer_urls=[f"{scheme}://{peers[name]}"],
        initial_cluster={each: [f"{scheme}://{address}"] for each, address in peers.items()},
        token=cluster,
        heartbeat_ms=max(1, round(heartbeat * 1000)),
        election_ms=max(1, round(election_timeout * 1000)),
        lease_reads=lease_reads,
        limits=MemberLimits(request_timeout_ns=round(timeout * 1e9), snapshot_entries=snapshot_entries),
        tls=tls,
    )


async def _joining(options: NodeOptions, urls: Sequence[str]) -> NodeOptions:
    """The options of a member that enters a group: who the others are is asked of those it was told of."""
    disk = options.disk if options.disk is not None else RealDisk()
    if WriteAheadLog.exists(disk, f"{options.data_dir}/wal"):
        return options  # it has entered before: its log knows the group
    deadline = asyncio.get_running_loop().time() + options.join_s
    own = sorted(options.advertise_peer_urls)
    while True:
        try:
            rosters = await ask_anyone(urls, options.name, own, options.tls, options.transport_limits)
        except NoRoster as error:
            text = f"no member could be asked for the group: {error}"
        else:
            members = rosters[0].members
            if any(sorted(member.peer_urls) == own for member in members):
                cluster = {member.name or f"{member.id:x}": member.peer_urls for member in members}
                cluster = {name: found for name, found in cluster.items() if sorted(found) != own}
                return replace(options, state="existing", initial_cluster={**cluster, options.name: own})
            text = f"the group has no member at {own[0].partition('://')[2]}: let one of its members `add` it"
        if asyncio.get_running_loop().time() > deadline:
            raise ConfigurationError(f"node {options.name!r} cannot join: {text}")
        await asyncio.sleep(JOIN_RETRY_S)


def _check_address(name: str, address: str) -> None:
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or not 0 < int(port) < 65536 or "/" in address:
        raise ConfigurationError(f"the address of member {name!r} is {address!r}: it must be host:port")


def _forked() -> None:
    """In a child process: the nodes of the parent are not its own; what they hold open is closed, not used."""
    for node in list(_open_nodes):
        node._closed = True
    _open_nodes.clear()


os.register_at_fork(after_in_child=_forked)
