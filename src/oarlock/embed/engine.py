"""The running member behind a `Node`: consensus, disk and connections, with a program's object as their machine."""

from __future__ import annotations

import asyncio
import inspect
import logging
import secrets
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from oarlock.embed.calls import Calls
from oarlock.embed.found import discovered
from oarlock.embed.hold import hold
from oarlock.embed.holders import Holders, LeaseLost, tick
from oarlock.embed.options import Options, check_address
from oarlock.embed.status import MemberStatus, NodeStatus
from oarlock.errors import ConfigurationError, NoLeader, RaftError, Stopped, WrongDirectory
from oarlock.machines.objects.claims import HolderUnknown, OneAtATime
from oarlock.machines.objects.declare import Binding, check_timeout
from oarlock.machines.objects.machine import ACTIVATE, ANNOUNCE, NotDeterministic, ObjectMachine
from oarlock.node.bootstrap import NodeOptions, start_node
from oarlock.node.replica.directory import decode_record
from oarlock.node.replica.member import MemberLimits
from oarlock.node.replica.reconfigure import AddMember, PromoteMember, RemoveMember
from oarlock.node.runtime import Node as RuntimeNode
from oarlock.raft.types import MemberRole
from oarlock.storage.real_disk import RealDisk
from oarlock.storage.wal import WriteAheadLog
from oarlock.transport.peers import Transport
from oarlock.transport.roster import NoRoster, ask_anyone

if TYPE_CHECKING:
    from oarlock.embed.hashseed import SecondProcess

_log = logging.getLogger(__name__)
logging.getLogger("oarlock").addHandler(logging.NullHandler())  # as libraries do: the program decides what is shown

CLOSE_ALONE_S: Final = 1.0
"""How long closing waits for answers from a group that gives none."""

JOIN_RETRY_S: Final = 0.2
PEERS_TOLD_MAX: Final = 3
READY_POLL_S: Final = 0.02
LEADER_POLL_S: Final = 0.05
ANNOUNCE_RETRY_S: Final = 0.5


class Engine:
    """Made by `start_engine`. Everything on the thread of the loop that it was started in."""

    def __init__(
        self,
        options: Options,
        node: RuntimeNode,
        objects: ObjectMachine,
        leader_claims: OneAtATime,
        bind: Callable[[Calls], Binding],
        second: SecondProcess | None,
    ) -> None:
        self.options = options
        self.node = node
        self.name = options.name
        self._objects = objects
        self._leader_claims = leader_claims
        self._closed = False
        self._second = second
        loop = asyncio.get_running_loop()
        self.calls = Calls(node, objects, loop, threading.get_ident(), options.lease_reads)
        self.calls.holders = Holders(self.calls, options.name, options.lease_ttl)
        objects.bind(bind(self.calls))
        objects.on_announced = partial(loop.call_soon, self._maybe_activate)
        self._tasks = [
            loop.create_task(work, name=f"oarlock node {options.name}")
            for work in (self._announce(), tick(node, objects))
        ]

    async def aclose(self, timeout: float) -> None:
        """Hand leadership over, answer what is under way, close. At most `timeout` seconds, about."""
        self._closed = True
        told = self.node.halted.done()
        self.calls.closing = True
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        if tasks:
            _, stubborn = await asyncio.wait(tasks, timeout=timeout)
            for task in stubborn:
                _log.warning("%s has not ended within %g s of being cancelled", task.get_name(), timeout)
        if not await self.calls.aclose():
            timeout = min(timeout, CLOSE_ALONE_S)
        await self.node.stop(timeout_s=timeout)
        self._objects.unbind()
        if self._second is not None:
            await asyncio.to_thread(self._second.close)
            if self._second.found and not told:
                raise NotDeterministic(self._second.found)

    async def ready(self, timeout: float | None = None) -> None:
        """Wait until the group has a leader and this member is in step with it. Raises `NoLeader` after `timeout` s."""
        node = self.node

        async def in_step() -> None:
            while True:
                try:
                    await node.aread_barrier()
                    return
                except NoLeader:
                    await asyncio.sleep(READY_POLL_S)

        try:
            await asyncio.wait_for(in_step(), check_timeout(timeout))
        except TimeoutError:
            raise NoLeader(
                f"node {self.name!r} has found no leader within {timeout:g} s: are a majority of "
                f"{', '.join(sorted(self.options.peers))} running, and do they reach each other?{self._why_alone()}"
            ) from None

    def _why_alone(self) -> str:
        """What the last attempts to reach the others have met."""
        transport = self.node.transport
        known = [
            f"{peer.name or f'{peer.id:x}'}: {peer.last_error}"
            for peer in (transport.stats() if isinstance(transport, Transport) else {}).values()
            if peer.last_error and not peer.connected
        ]
        return f" Last heard of {'; of '.join(known[:PEERS_TOLD_MAX])}" if known else ""

    @property
    def is_leader(self) -> bool:
        return self.node.member.raft.is_leader

    @property
    def leader(self) -> str:
        record = self.node.records().get(self.node.member.raft.leader_id)
        return record.name if record is not None else ""

    def members(self) -> tuple[MemberStatus, ...]:
        node = self.node
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
        node = self.node
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

    def describe(self) -> str:
        raft = self.node.member.raft
        return f"{raft.status().role} term={raft.current_term} commit={raft.commit_index}"

    # -- changing the group

    async def transfer(self, name: str = "") -> None:
        """Hand leadership to the member `name`, or to the most suitable one. Raises `NotLeader` on other members,
        `Rejected` if it did not work out."""
        node = self.node
        target = self._id_of(name) if name else 0
        await node.atransfer_leadership(target)

    async def add(self, address: str, *, learner: bool = False) -> int:
        """Let a member at `host:port` in, which is then started with `join`; gives its id. A `learner` gets the log and
        has no vote until it is promoted: add it so while a majority must not depend on it.

        Raises `Rejected` with a reason of `node.replica.reconfigure.REFUSALS`: the group would lose its majority, say.
        """
        check_address("add", address)
        url = self.options.url(address)
        member = secrets.randbits(63) | 1
        role = MemberRole.LEARNER if learner else MemberRole.VOTER
        await self.node.areconfigure(AddMember(member, (url,), int(role)))
        return member

    async def promote(self, member: str | int) -> None:
        """Give a learner that has caught up a vote. `member`: its name, or the id that `add` gave."""
        await self.node.areconfigure(PromoteMember(self._id_of(member)))

    async def remove(self, member: str | int) -> None:
        """Let a member go, this one included; a leader hands over first. It never comes back under the same id."""
        await self.node.areconfigure(RemoveMember(self._id_of(member)))

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
        task = asyncio.get_running_loop().create_task(self._lead(work), name=f"oarlock on_leader {self.name}")
        self._tasks.append(task)

    async def _lead(self, work: Callable[[int], Coroutine[Any, Any, object]]) -> None:
        raft = self.node.member.raft
        done_in_term = 0
        while True:
            if not raft.is_leader or raft.current_term == done_in_term:
                await asyncio.sleep(LEADER_POLL_S)
                continue
            term = raft.current_term
            try:
                async with hold(self._leader_claims) as held:
                    if await self._while_leading(partial(work, held.token), term):
                        done_in_term = term
            except (RaftError, LeaseLost, HolderUnknown):
                await asyncio.sleep(LEADER_POLL_S)

    async def _while_leading(self, begin: Callable[[], Coroutine[Any, Any, object]], term: int) -> bool:
        """Whether the work came to its end by itself."""
        raft = self.node.member.raft

        async def work() -> None:
            coroutine = begin()  # here, for what it raises is the work's failure
            if not inspect.isawaitable(coroutine):
                raise TypeError(f"on_leader's work gave {coroutine!r}: it must be a coroutine function")
            await coroutine

        task = asyncio.get_running_loop().create_task(work(), name=f"oarlock leader's work {self.name}")
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
        node = self.node
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
        node = self.node
        if self._closed or not node.member.raft.is_leader:
            return
        objects = self._objects
        announced = [objects.announced.get(record.name, 1) for record in node.records().values()]
        lowest = min(announced, default=1)
        if lowest > objects.active_version:
            node.propose(objects.codec.encode([ACTIVATE, [lowest]]), lambda result: None)


async def start_engine(
    options: Options,
    objects: ObjectMachine,
    leader_claims: OneAtATime,
    bind: Callable[[Calls], Binding],
    second: SecondProcess | None = None,
) -> Engine:
    """Recover what the directory holds and take part. Raises `ConfigurationError` or `StorageError`."""
    if options.discover:
        options = await discovered(options)
    url = options.url
    settings = NodeOptions(
        name=options.name,
        data_dir=options.data_dir,
        listen_peer_urls=[url(address) for address in options.listen],
        advertise_peer_urls=[url(options.address)],
        initial_cluster={name: [url(address)] for name, address in options.peers.items()},
        token=options.cluster,
        heartbeat_ms=max(1, round(options.heartbeat * 1000)),
        election_ms=max(1, round(options.election_timeout * 1000)),
        lease_reads=options.lease_reads,
        limits=MemberLimits(request_timeout_ns=round(options.timeout * 1e9), snapshot_entries=options.snapshot_entries),
        tls=options.tls,
        join_s=options.join_s,
        names_known=not options.discover,
    )
    if options.join:
        settings = await _joining(settings, [url(address) for address in options.join])
    node = await start_node(settings, lambda directory: objects)
    own = node.member.raft.configuration.member(node.member_id)
    known_as = decode_record(own.context).name if own is not None else ""
    if known_as not in ("", options.name):
        await node.stop()
        raise WrongDirectory(
            f"{options.data_dir} belongs to member {known_as!r}, and this is {options.name!r}: give each member a "
            "directory of its own",
            path=options.data_dir,
        )
    return Engine(options, node, objects, leader_claims, bind, second)


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
