"""From options to a running node: ids, data directory, recovery, start.

A data directory holds `wal/` (the log, whose segments name cluster, member and disk), `snap/` (snapshot files) and, for
a durable machine, `kv/`. Two members never share one: the log's lock sees to it.

Ids are 64-bit hashes (`ids`). A first member's is that of the cluster's token and of its peer URLs in order; the
cluster's is that of its token and its first members' ids. A member that is added later is given its id, and asks for it
when it starts (`joining`). Neither changes later.
"""

from __future__ import annotations

import logging
import random
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final

from oarlock.errors import ConfigurationError, StorageError, WrongDirectory
from oarlock.machines.base import Machine
from oarlock.node.ids import cluster_id_of, member_id_of
from oarlock.node.joining import JOIN_S, Joined, join
from oarlock.node.kernel_sync import KernelSync
from oarlock.node.replica.directory import decode_record, encode_record
from oarlock.node.replica.member import Member, MemberLimits
from oarlock.node.runtime import GROUP, Node
from oarlock.node.snapshot_files import SnapshotFiles
from oarlock.raft.config import RaftConfig
from oarlock.raft.types import Configuration, EntryKind, MemberInfo, MemberRole, SnapshotMeta, decode_configuration
from oarlock.storage.disk import Disk
from oarlock.storage.real_disk import RealDisk
from oarlock.storage.snapshots import SnapshotStore
from oarlock.storage.wal import GroupState, Identity, WriteAheadLog
from oarlock.transport.handshake import LocalIdentity
from oarlock.transport.limits import TransportLimits
from oarlock.transport.peers import Transport
from oarlock.transport.tls import PeerTls

log = logging.getLogger(__name__)

MS: Final = 1_000_000
SEGMENT_BYTES: Final = 64 << 20

MachineFactory = Callable[[str], Machine]
"""Makes, or opens, the machine that keeps its state in the given directory; a volatile one ignores it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """What a node needs to know. URLs are `http://host:port` or `https://host:port`; times in ms.

    `initial_cluster` maps each first member's name to its peer URLs and holds this member under `name`; it is looked at
    only while the data directory is new. `state` "existing": join a cluster that already counts this member, which the
    others in `initial_cluster` are asked about; or, without others there, wait for a call of cluster `cluster_id`.
    `witnesses` are names in `initial_cluster` that vote and keep no state.
    """

    name: str
    data_dir: str
    listen_peer_urls: Sequence[str]
    advertise_peer_urls: Sequence[str]
    advertise_client_urls: Sequence[str] = ()
    initial_cluster: Mapping[str, Sequence[str]] = field(default_factory=dict)
    state: str = "new"
    token: str = "etcd-cluster"  # noqa: S105 - not a secret; etcd's default
    cluster_id: int = 0
    witnesses: Sequence[str] = ()
    heartbeat_ms: int = 100
    election_ms: int = 1000
    pre_vote: bool = True
    lease_reads: bool = False
    log_sync: str = "auto"  # or "thread": never the kernel by itself
    limits: MemberLimits = field(default_factory=MemberLimits)
    transport_limits: TransportLimits = field(default_factory=TransportLimits)
    tls: PeerTls | None = None
    segment_bytes: int = SEGMENT_BYTES
    tail_entries_max: int = 5_000
    names_known: bool = True  # False: the others' names in `initial_cluster` are not what they call themselves
    join_s: float = JOIN_S  # how long a new member asks an existing cluster for its place
    disk: Disk | None = None  # the file system's, unless a test gives another


def initial_configuration(options: NodeOptions) -> Configuration:
    """The configuration that the first members begin with. Raises `ConfigurationError` if the options do not fit."""
    cluster = options.initial_cluster
    if options.name not in cluster:
        raise ConfigurationError(
            f"initial-cluster does not hold this member {options.name!r} (it has "
            f"{', '.join(sorted(cluster)) or 'none'}): add it, or correct --name"
        )
    if sorted(cluster[options.name]) != sorted(options.advertise_peer_urls):
        raise ConfigurationError(
            f"initial-cluster says that member {options.name!r} is at {', '.join(cluster[options.name])}, and "
            f"initial-advertise-peer-urls says {', '.join(options.advertise_peer_urls)}: make them the same"
        )
    members: dict[int, MemberInfo] = {}
    for name, urls in sorted(cluster.items()):
        node = member_id_of(options.token, urls)
        if node in members:
            raise ConfigurationError(f"initial-cluster gives {', '.join(urls)} to more than one member")
        try:
            context = encode_record(name if options.names_known else "", urls)
        except ValueError as error:
            raise ConfigurationError(f"initial-cluster, member {name!r}: {error}") from error
        role = MemberRole.WITNESS if name in options.witnesses else MemberRole.VOTER
        members[node] = MemberInfo(id=node, role=role, context=context)
    return Configuration.of(*members.values())


@dataclass(slots=True)
class _Opened:
    wal: WriteAheadLog
    state: GroupState
    identity: Identity


def _unused(state: GroupState) -> bool:
    """Whether the log has never been part of a group."""
    return not (state.entries or state.snapshot.index or state.hard_state.term or state.snapshot.configuration.members)


async def open_log(options: NodeOptions, disk: Disk) -> _Opened:
    """Open the log of this member, or begin it. Raises `ConfigurationError` or a `StorageError` that says what to do.

    A new log begins with the initial configuration as a mark at index 0, so that a restart does not depend on options
    that may have changed meanwhile.
    """
    disk.mkdir(options.data_dir)
    path = f"{options.data_dir}/wal"
    if WriteAheadLog.exists(disk, path):
        wal, recovered = WriteAheadLog.open(disk, path, segment_bytes=options.segment_bytes)
        identity = recovered.identity
        state = recovered.groups.get(GROUP, GroupState())
        if recovered.repaired:
            log.warning("log repaired: %s", recovered.repaired)
    else:
        _refuse_leftovers(options, disk)
        joined = await _who_we_are(options)
        identity = Identity(joined.cluster_id, joined.member_id, secrets.randbits(63) | 1)
        wal = WriteAheadLog.create(disk, path, identity, segment_bytes=options.segment_bytes)
        state = GroupState()
    try:
        if _unused(state):
            joined = await _who_we_are(
                options
            )  # nothing of the group has come yet: the directory may be of another one
            if (joined.cluster_id, joined.member_id) != (identity.cluster_id, identity.member_id):
                raise _wrong_directory(options, identity, f"member {joined.member_id:x} of {joined.cluster_id:x}")
            if options.state != "existing":
                mark = SnapshotMeta(configuration=initial_configuration(options))
                wal.append(GROUP, None, (), snapshot=mark)
                wal.sync()
                state.snapshot = mark
        else:
            _check_owner(options, identity, state)
    except BaseException:
        wal.close()
        raise
    return _Opened(wal, state, identity)


async def _who_we_are(options: NodeOptions) -> Joined:
    """The ids that a member with an empty directory has: computed for a new cluster, asked for in an existing one."""
    own = member_id_of(options.token, options.advertise_peer_urls)
    if options.state != "existing":
        return Joined(cluster_id_of(options.token, initial_configuration(options).ids), own)
    if not any(name != options.name for name in options.initial_cluster):
        if options.cluster_id:
            return Joined(options.cluster_id, own)
        raise ConfigurationError(
            "initial-cluster-state is existing, and no cluster id is given and no other member in initial-cluster: "
            "give initial-cluster as `etcdctl member add` printed it"
        )
    return await join(
        options.name, options.advertise_peer_urls, options.initial_cluster, options.tls, options.transport_limits,
        cluster_id=options.cluster_id, join_s=options.join_s,
    )  # fmt: skip


def _wrong_directory(options: NodeOptions, identity: Identity, we: str) -> WrongDirectory:
    return WrongDirectory(
        f"{options.data_dir} belongs to member {identity.member_id:x} of cluster {identity.cluster_id:x}, and this is "
        f"{we}: give this member its own --data-dir, or the URLs that it has in the cluster",
        path=options.data_dir,
    )


def _check_owner(options: NodeOptions, identity: Identity, state: GroupState) -> None:
    """A directory is used by the member that it belongs to, and by none that was removed. Raises `WrongDirectory`."""
    if options.cluster_id and identity.cluster_id != options.cluster_id:
        raise _wrong_directory(options, identity, f"a member of cluster {options.cluster_id:x}")
    newest, committed = state.snapshot.configuration, state.snapshot.configuration
    for entry in state.entries:
        if entry.kind == EntryKind.CONFIG:
            newest = decode_configuration(entry.payload)
            if entry.index <= state.hard_state.commit:
                committed = newest
    if identity.member_id in committed.removed and not committed.joint:
        raise WrongDirectory(
            f"{options.data_dir} is of member {identity.member_id:x}, which was removed from cluster "
            f"{identity.cluster_id:x}. To come back it must be added again (`etcdctl member add`) and start with an "
            "empty data directory",
            path=options.data_dir,
        )
    if identity.member_id == member_id_of(options.token, options.advertise_peer_urls):
        return
    for info in newest.members:
        urls = set(decode_record(info.context).peer_urls)
        if info.id != identity.member_id and urls & set(options.advertise_peer_urls):
            raise _wrong_directory(options, identity, f"member {info.id:x}, by its peer URLs {','.join(sorted(urls))}")
    own = newest.member(identity.member_id)
    has = set(decode_record(own.context).peer_urls) if own is not None else set()
    if own is not None and has != set(options.advertise_peer_urls):
        raise _wrong_directory(
            options,
            identity,
            f"a member at {','.join(options.advertise_peer_urls)}, while that one is at {','.join(sorted(has))} (to "
            "move a member, tell the cluster first: etcdctl member update)",
        )


def _refuse_leftovers(options: NodeOptions, disk: Disk) -> None:
    """A directory with state but no log has lost its log: a member that began anew there would have forgotten votes."""
    for name in ("snap", "kv"):
        path = f"{options.data_dir}/{name}"
        if disk.exists(path) and disk.listdir(path):
            raise StorageError(
                f"{options.data_dir} holds {name}/ but no log: the log was lost or moved. Put wal/ back; or, if it is "
                "gone, remove this member from the cluster and add it again with an empty directory",
                path=path,
            )


def open_machine(options: NodeOptions, state: GroupState, snapshots: SnapshotFiles, factory: MachineFactory) -> Machine:
    """Open the machine and bring it as far as the log's snapshot. Raises `StorageError` if the two do not fit."""
    machine = factory(f"{options.data_dir}/kv")
    try:
        mark = state.snapshot
        if machine.applied_index < mark.index:
            if not mark.has_file:
                raise StorageError(
                    f"the state in {options.data_dir}/kv ends at {machine.applied_index}, but the log begins after "
                    f"{mark.index}: the state was lost or is an older copy. Put it back; or remove this member from "
                    "the cluster and add it again with an empty directory",
                    path=f"{options.data_dir}/kv",
                )
            try:
                machine.restore(mark.index, snapshots.load(mark))
            except ValueError as error:
                raise StorageError(
                    f"the snapshot at {mark.index} in {options.data_dir}/snap is not of this state machine: {error}",
                    path=f"{options.data_dir}/snap",
                ) from error
        if machine.applied_index > state.last_index:
            raise StorageError(
                f"the state in {options.data_dir}/kv is at {machine.applied_index}, but the log ends at "
                f"{state.last_index}: the log was lost or is an older copy. Put it back; or remove this member from "
                "the cluster and add it again with an empty directory",
                path=f"{options.data_dir}/wal",
            )
    except BaseException:
        machine.close()
        raise
    return machine


async def start_node(options: NodeOptions, machine_factory: MachineFactory) -> Node:
    """Open or begin the data directory of `options`, recover, and take part. Returns a started `Node`.

    Raises `ConfigurationError`, or `StorageError` (`DirectoryInUse`, `WrongDirectory`, `Corrupt`, ...). Whatever was
    opened is closed again then.
    """
    if options.state not in ("new", "existing"):
        raise ConfigurationError(f"initial-cluster-state is {options.state!r}: it must be new or existing")
    if not options.advertise_peer_urls:
        raise ConfigurationError("initial-advertise-peer-urls is empty: the others must be able to reach this member")
    disk = options.disk if options.disk is not None else RealDisk()
    try:
        config = RaftConfig(  # with any id, before anything is written: the rest of it must be right
            id=1,
            election_timeout_ns=options.election_ms * MS,
            heartbeat_interval_ns=options.heartbeat_ms * MS,
            pre_vote=options.pre_vote,
            lease_reads=options.lease_reads,
            tail_entries_max=options.tail_entries_max,
        )
        record = encode_record(options.name, options.advertise_peer_urls, options.advertise_client_urls)
    except ValueError as error:
        raise ConfigurationError(str(error)) from error
    opened = await open_log(options, disk)
    config = replace(config, id=opened.identity.member_id)
    machine: Machine | None = None
    node: Node | None = None
    try:
        snapshots = SnapshotFiles(SnapshotStore(disk, f"{options.data_dir}/snap"), GROUP)
        state = opened.state
        own = state.snapshot.configuration.member(config.id)
        if own is None or own.role is not MemberRole.WITNESS:
            machine = open_machine(options, state, snapshots, machine_factory)
        member = Member(
            config,
            hard_state=state.hard_state,
            snapshot=state.snapshot,
            entries=state.entries,
            initial=state.snapshot.configuration,
            incarnation=opened.identity.incarnation,
            machine=machine,
            boot=secrets.randbits(64),
            rng=random.SystemRandom(),
            now=time.monotonic_ns(),
            wall_clock=time.time_ns,
            record=record,
            limits=options.limits,
        )
        identity = LocalIdentity(
            opened.identity.cluster_id, opened.identity.member_id, opened.identity.incarnation, options.name
        )
        node = Node(
            member,
            identity=identity,
            wal=opened.wal,
            snapshots=snapshots,
            make_transport=partial(Transport, tls=options.tls, limits=options.transport_limits),
            listen_urls=options.listen_peer_urls,
            kernel_sync=_kernel_sync(options),
        )
        await node.start()
    except BaseException:
        if node is not None:
            await node.stop()
        else:
            opened.wal.close()
            if machine is not None:
                machine.close()
        raise
    log.info(
        "member started node=%x name=%r cluster=%x incarnation=%x applied=%d last=%d peers=%s",
        node.member_id, node.name, node.cluster_id, identity.incarnation, member.applied_index,
        member.raft.log.last_index, ",".join(node.listening),
    )  # fmt: skip
    return node


def _kernel_sync(options: NodeOptions) -> KernelSync | None:
    if options.log_sync == "thread":
        return None
    try:
        return KernelSync()
    except OSError as error:
        log.info('the log is synced by a thread reason="%s"', error)
        return None
