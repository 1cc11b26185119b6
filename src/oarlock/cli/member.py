"""One member as `oarlock serve` runs it: node, key-value machine and client port, wired by the configuration."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import cast

from oarlock.api.backend import Backend
from oarlock.api.etcd.compactor import AutoCompaction
from oarlock.api.limits import Limits
from oarlock.api.metrics import Metrics
from oarlock.api.server import ApiServer, start_api
from oarlock.cli.client_auth import auth_options
from oarlock.cli.client_tls import client_tls, peer_tls
from oarlock.cli.lifecycle import HaltedError, live
from oarlock.config import ServerConfig
from oarlock.config.validate import retained_ms, retained_revisions
from oarlock.discovery import check_nameservers, find_urls
from oarlock.errors import ConfigurationError, Stopped
from oarlock.machines.base import Machine
from oarlock.machines.kv.machine import KvMachine
from oarlock.node import survivor
from oarlock.node.backend import NodeBackend
from oarlock.node.bootstrap import NodeOptions, start_node
from oarlock.node.replica import MemberLimits
from oarlock.node.runtime import Node
from oarlock.storage.real_disk import RealDisk
from oarlock.storage.wal import WriteAheadLog
from oarlock.transport import Transport

log = logging.getLogger(__name__)

QUOTA_NONE = 1 << 62

DRAIN_S_MAX = 2.0
"""How long requests under way may take to end when the server stops; the rest of the shutdown timeout is the node's."""


def quota_of(config: ServerConfig) -> int:
    """etcd's rule: 0 is the default, less than 0 is no quota."""
    if config.quota_backend_bytes < 0:
        return QUOTA_NONE
    return config.quota_backend_bytes or Limits().quota_bytes


def compaction_of(config: ServerConfig) -> AutoCompaction:
    """When history is dropped by itself. The texts were checked with the rest of the configuration."""
    if config.auto_compaction_mode == "revision":
        return AutoCompaction("revision", revisions=retained_revisions(config.auto_compaction_retention))
    return AutoCompaction("periodic", retention_s=retained_ms(config.auto_compaction_retention) / 1000)


def progress_interval_s(config: ServerConfig) -> float:
    """etcd's rule: 0 is the default, and 100 ms the least."""
    milliseconds = config.experimental_watch_progress_notify_interval
    return max(0.1, milliseconds / 1000) if milliseconds else Limits().watch_progress_interval_s


def limits_of(config: ServerConfig) -> Limits:
    """The bounds of the client port that the configuration names."""
    return Limits(
        connections_max=config.max_connections,
        streams_per_connection_max=config.max_concurrent_streams,
        request_bytes_max=config.max_request_bytes,
        # one request of the permitted size must fit, whatever else is held back on the connection
        unfinished_request_bytes_max=max(Limits().unfinished_request_bytes_max, 2 * config.max_request_bytes),
        txn_ops_max=config.max_txn_ops,
        watch_progress_interval_s=progress_interval_s(config),
        leaderless_s=3 * config.election_timeout / 1000,
        quota_bytes=quota_of(config),
        keepalive_interval_s=config.grpc_keepalive_interval / 1000,
        keepalive_min_s=max(config.grpc_keepalive_min_time / 1000, 0.001),
        keepalive_timeout_s=config.grpc_keepalive_timeout / 1000,
    )


def discovered(config: ServerConfig) -> dict[str, tuple[str, ...]]:
    """The members that DNS names for `--discovery-srv`, this one under its name. Raises `ConfigurationError`."""
    nameservers = [each.strip() for each in config.discovery_nameserver.split(",") if each.strip()]
    check_nameservers(nameservers)
    urls = find_urls(config.discovery_srv, "etcd-server", config.discovery_srv_name, nameservers)
    own = [url for url in config.initial_advertise_peer_urls if url.lower() in urls]
    if len(config.initial_advertise_peer_urls) != 1 or own != list(config.initial_advertise_peer_urls):
        raise ConfigurationError(
            f"initial-advertise-peer-urls is {','.join(config.initial_advertise_peer_urls)}, and the SRV records of "
            f"{config.discovery_srv} give {', '.join(urls)}: it must be one of these, written alike"
        )
    return {**{url.partition("://")[2]: (url,) for url in urls if url != own[0]}, config.name: (own[0],)}


def node_options(config: ServerConfig) -> NodeOptions:
    """The node's options. Raises `ConfigurationError` for certificates that other members would not accept, and for
    what DNS does not say. It is asked while the data directory is new."""
    discover = bool(config.discovery_srv) and not WriteAheadLog.exists(RealDisk(), f"{config.data_dir}/wal")
    return NodeOptions(
        name=config.name,
        data_dir=config.data_dir,
        listen_peer_urls=config.listen_peer_urls,
        advertise_peer_urls=config.initial_advertise_peer_urls,
        advertise_client_urls=config.advertise_client_urls,
        initial_cluster=discovered(config) if discover else dict(config.initial_cluster),
        names_known=not discover,
        state=config.initial_cluster_state,
        token=config.initial_cluster_token,
        cluster_id=config.cluster_id,
        heartbeat_ms=config.heartbeat_interval,
        election_ms=config.election_timeout,
        pre_vote=config.pre_vote,
        lease_reads=config.read_mode == "lease",
        log_sync=config.log_sync,
        limits=MemberLimits(snapshot_entries=config.snapshot_count),
        tls=peer_tls(config),
    )


def machine_factory(config: ServerConfig) -> Callable[[str], Machine]:
    """Makes, or opens, the key-value machine that `--storage` names."""
    if config.storage == "memory":
        return lambda directory: KvMachine.in_memory()
    return KvMachine.on_disk


class ServingMember:
    """A started node with its client port; what `oarlock.cli.lifecycle` runs."""

    def __init__(self, config: ServerConfig, node: Node, api: ApiServer) -> None:
        self.config = config
        self.node = node
        self.api = api

    def describe(self) -> str:
        return (
            f"name={self.config.name} member={self.node.member_id:x} cluster={self.node.cluster_id:x} "
            f"client={','.join(self.api.addresses)} peer={','.join(self.node.listening)}"
        )

    async def wait_halted(self) -> BaseException:
        reason = await asyncio.shield(self.node.halted)
        return HaltedError(str(reason)) if isinstance(reason, Stopped) else reason

    async def stop(self) -> None:
        """First the clients, so that no request is under way when leadership moves; then the node."""
        total_s = self.config.shutdown_timeout / 1000
        began = asyncio.get_running_loop().time()
        try:
            await self.api.close(min(DRAIN_S_MAX, total_s / 4))
        finally:
            spent = asyncio.get_running_loop().time() - began
            # a little less than what is left, so that the node ends in order before the process is ended
            await self.node.stop(timeout_s=max(0.05, 0.8 * (total_s - spent)))


def force_new_cluster(data_dir: str) -> None:
    """`--force-new-cluster`: see `oarlock.node.survivor`. Raises `StorageError`."""
    kept = survivor.finish_interrupted(data_dir)
    if survivor.was_recovered(data_dir) or kept is not None or survivor.survey(data_dir).alone:
        log.warning("force-new-cluster has nothing to do: this member is a cluster of its own already; remove the flag")
        return
    done = survivor.recover(data_dir)
    for line in done.survey.lines():
        log.warning("force-new-cluster: %s", line)
    log.warning(
        "force-new-cluster: now cluster %x of this member alone; the old directory is %s; remove the flag",
        done.identity.cluster_id, done.kept,
    )  # fmt: skip


async def start_member(config: ServerConfig) -> ServingMember:
    """Start the node and then its client port; if the second fails, the first is stopped again."""
    if config.force_new_cluster:
        force_new_cluster(config.data_dir)
    tls = client_tls(config)
    auth = auth_options(config)
    node = await start_node(node_options(config), machine_factory(config))
    metrics = Metrics()
    metrics.watch_node(node.metrics)
    metrics.watch_peers(cast(Transport, node.transport).stats)  # `start_node` makes no other
    try:
        api = await start_api(
            # the node's views have the fields of the API's without being the same classes
            cast(Backend, NodeBackend(node, strict_reconfig_check=config.strict_reconfig_check)),
            config.listen_client_urls,
            metrics,
            tls,
            limits_of(config),
            engine=None if config.http2 == "auto" else config.http2,
            allowed_hosts=config.host_whitelist,
            auth=auth,
            compaction=compaction_of(config),
            cors=config.cors,
        )
    except BaseException:
        await node.stop(timeout_s=1.0)
        raise
    return ServingMember(config, node, api)


def run_member(config: ServerConfig) -> int:
    """Run the member in an event loop of its own until it ends; returns the exit code."""
    factory: Callable[[], asyncio.AbstractEventLoop] | None = None
    if config.uvloop:
        try:
            import uvloop
        except ImportError:
            factory = None  # asyncio's own
        else:
            factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(live(lambda: start_member(config), config.shutdown_timeout / 1000))
