"""Three nodes in this process, over real sockets, real files and the real key-value machine."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from oarlock.cli.local_cluster import free_ports
from oarlock.errors import (
    ConfigurationError,
    Corrupt,
    DirectoryInUse,
    NotLeader,
    Overloaded,
    ProposalDropped,
    RaftError,
    Rejected,
    Stopped,
    StorageError,
    SyncFailed,
    WrongDirectory,
)
from oarlock.machines.base import Machine
from oarlock.machines.kv.commands import Put, PutResult, encode
from oarlock.machines.kv.machine import KvMachine
from oarlock.node.backend import NodeBackend
from oarlock.node.bootstrap import NodeOptions, cluster_id_of, member_id_of, start_node
from oarlock.node.replica.member import MemberLimits
from oarlock.node.runtime import Node
from oarlock.node.survivor import recover
from oarlock.storage.real_disk import RealDisk

SEGMENT = 1 << 20


def in_memory(path: str) -> Machine:
    return KvMachine.in_memory()


def on_disk(path: str) -> Machine:
    return KvMachine.on_disk(path)


class Cluster:
    """`election_ms` is long, so that a busy machine does not change who leads; the first leader is there at once."""

    def __init__(
        self,
        tmp_path: Path,
        size: int = 3,
        factory: Callable[[str], Machine] = on_disk,
        election_ms: int = 3000,
        **more: Any,
    ) -> None:
        urls = {f"m{i}": [f"http://127.0.0.1:{port}"] for i, port in enumerate(free_ports(size), 1)}
        self.factory = factory
        self.options = {
            name: NodeOptions(
                name=name,
                data_dir=str(tmp_path / name),
                listen_peer_urls=own,
                advertise_peer_urls=own,
                advertise_client_urls=[f"http://client-{name}:2379"],
                initial_cluster=urls,
                heartbeat_ms=50,
                election_ms=election_ms,
                segment_bytes=SEGMENT,
                **more,
            )
            for name, own in urls.items()
        }
        self.nodes: dict[str, Node] = {}

    async def __aenter__(self) -> Cluster:
        for name in self.options:
            await self.start(name)
        return self

    async def __aexit__(self, *error: object) -> None:
        await asyncio.gather(*(node.stop() for node in self.nodes.values()))

    async def start(self, name: str, **changes: Any) -> Node:
        node = self.nodes[name] = await start_node(replace(self.options[name], **changes), self.factory)
        return node

    async def stop(self, name: str) -> None:
        await self.nodes.pop(name).stop()

    async def leader(self) -> Node:
        def found() -> list[Node]:
            return [n for n in self.nodes.values() if n.is_leader and not n.halted.done()]

        await until(lambda: len(found()) == 1 and all(n.leader_id == found()[0].member_id for n in self.nodes.values()))
        return found()[0]

    def name_of(self, node: Node) -> str:
        return next(name for name, n in self.nodes.items() if n is node)


async def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "waited too long"
        await asyncio.sleep(0.01)


def kv(node: Node) -> KvMachine:
    machine = node.machine
    assert isinstance(machine, KvMachine)
    return machine


def put(key: str, value: str = "v") -> bytes:
    return encode(Put(key.encode(), value.encode()))


def run(test: Callable[[], Awaitable[None]], *, uvloop: bool = False) -> None:
    """Run `test` on a fresh loop, and see that it leaves no thread, task or descriptor behind."""
    if uvloop:
        pytest.importorskip("uvloop").new_event_loop().close()  # the first one opens descriptors for the whole process
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))

    async def main() -> None:
        await asyncio.wait_for(test(), 280)
        await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks left behind: {left}"

    if uvloop:
        runner = pytest.importorskip("uvloop")
        with asyncio.Runner(loop_factory=runner.new_event_loop) as loop:
            loop.run(main())
    else:
        asyncio.run(main())
    assert threading.active_count() == threads, threading.enumerate()
    assert len(os.listdir("/proc/self/fd")) <= descriptors


@pytest.mark.parametrize("uvloop", [False, True])
@pytest.mark.parametrize("factory", [in_memory, on_disk])
def test_writes_and_reads_on_every_member(tmp_path: Path, factory: Callable[[str], Machine], uvloop: bool) -> None:
    async def test() -> None:
        async with Cluster(tmp_path, factory=factory) as cluster:
            await cluster.leader()
            revisions = set()
            for name, node in cluster.nodes.items():
                results = await asyncio.gather(*(node.apropose(put(f"{name}/{i}")) for i in range(50)))
                revisions |= {r.revision for r in results if isinstance(r, PutResult)}
            assert len(revisions) == 150
            for node in cluster.nodes.values():
                await node.aread_barrier()
                assert all(kv(node).range_one(f"m{m}/{i}".encode()) for m in (1, 2, 3) for i in range(50))
            assert len({kv(n).hash() for n in cluster.nodes.values()}) == 1

    run(test, uvloop=uvloop)


def test_members_know_each_others_urls(tmp_path: Path) -> None:
    async def test() -> None:
        async with Cluster(tmp_path) as cluster:
            leader = await cluster.leader()
            await until(lambda: all(r.client_urls for n in cluster.nodes.values() for r in n.records().values()))
            backend = NodeBackend(leader)
            views = backend.members()
            assert sorted(v.name for v in views) == ["m1", "m2", "m3"]
            assert all(v.client_urls == (f"http://client-{v.name}:2379",) and v.peer_urls for v in views)
            status = backend.status()
            assert status.leader == leader.member_id and status.raft_term == backend.term and not status.errors
            assert status.raft_applied_index <= status.raft_index and status.db_size > 0
            info = leader.status()
            assert info.member.raft.role == "leader" and len(info.member.raft.peers) == 2 and info.fsync_p99_s > 0
            assert all(m.incarnation for m in leader.member.raft.configuration.members)

    run(test)


@pytest.mark.parametrize("factory", [in_memory, on_disk])
def test_everything_is_there_after_all_have_been_restarted(tmp_path: Path, factory: Callable[[str], Machine]) -> None:
    async def test() -> None:
        limits = MemberLimits(snapshot_entries=40)
        cluster = Cluster(tmp_path, factory=factory, limits=limits, tail_entries_max=5)
        async with cluster:
            leader = await cluster.leader()
            for i in range(200):
                await leader.apropose(put(f"k{i:03}"))
        async with cluster:
            for node in cluster.nodes.values():
                assert node.member.applied_index > 100, "recovery began from a snapshot or the store"
                await node.aread_barrier()
                assert all(kv(node).range_one(f"k{i:03}".encode()) for i in range(200))

    run(test)


def test_a_stopped_leader_hands_over_first_and_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    async def test() -> None:
        # Nobody's election timeout ends while this runs: a new leader is one that was handed the leadership.
        async with Cluster(tmp_path, election_ms=100_000) as cluster:
            leader = await cluster.leader()
            name = cluster.name_of(leader)
            survivor = next(n for n in cluster.nodes.values() if n is not leader)
            acknowledged: list[str] = []
            unknown: list[RaftError] = []
            stop = asyncio.Event()

            async def client(number: int, node: Node) -> None:
                i = 0
                while not stop.is_set():
                    key = f"{number}/{i}"
                    i += 1
                    try:
                        await node.apropose(put(key))
                        acknowledged.append(key)
                    except RaftError as error:
                        unknown.append(error)
                        await asyncio.sleep(0.005)

            clients = [asyncio.create_task(client(n, leader if n % 2 else survivor)) for n in range(16)]
            await until(lambda: len(acknowledged) > 100)
            await cluster.stop(name)
            await until(lambda: survivor.leader_id not in (0, leader.member_id), 90)
            before = len(acknowledged)
            await until(lambda: len(acknowledged) > before + 50)
            stop.set()
            await asyncio.gather(*clients)
            assert all(isinstance(e, ProposalDropped) for e in unknown), {repr(e) for e in unknown}
            await survivor.aread_barrier()
            assert all(kv(survivor).range_one(key.encode()) for key in acknowledged)
            again = await cluster.start(name)
            await again.aread_barrier()
            assert all(kv(again).range_one(key.encode()) for key in acknowledged)

    run(test)


def test_a_member_that_was_away_for_long_gets_a_snapshot(tmp_path: Path) -> None:
    async def test() -> None:
        limits = MemberLimits(snapshot_entries=20, checkpoint_interval_ns=100_000_000)
        async with Cluster(tmp_path, limits=limits, tail_entries_max=3) as cluster:
            leader = await cluster.leader()
            away = next(name for name, n in cluster.nodes.items() if n is not leader)
            await cluster.stop(away)
            for i in range(100):
                await leader.apropose(put(f"k{i}", "x" * 10_000))
            await until(lambda: leader.member.raft.log.snapshot_index > 90)
            back = await cluster.start(away)
            await until(lambda: back.member.applied_index >= leader.member.raft.commit_index)
            assert back.metrics.snapshots_received
            assert all(kv(back).range_one(f"k{i}".encode()) for i in range(100))
            assert kv(back).hash() == kv(leader).hash()

    run(test)


def test_leadership_goes_where_it_is_asked_to(tmp_path: Path) -> None:
    async def test() -> None:
        async with Cluster(tmp_path) as cluster:
            leader = await cluster.leader()
            other = next(n for n in cluster.nodes.values() if n is not leader)
            with pytest.raises(NotLeader) as caught:
                await other.atransfer_leadership(other.member_id)
            assert caught.value.leader_id == leader.member_id
            with pytest.raises(Rejected, match="voter"):
                await leader.atransfer_leadership(12345)
            await leader.atransfer_leadership(leader.member_id)  # it leads already
            await leader.atransfer_leadership(other.member_id)
            assert (await cluster.leader()) is other

    run(test)


class FailingDisk(RealDisk):
    """A disk whose log files stop syncing when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.failing = False
        self.syncs_after = 0

    def open(self, path: str, *, write: bool = True) -> Any:
        return FailingFile(self, super().open(path, write=write))


class FailingFile:
    def __init__(self, disk: FailingDisk, file: Any) -> None:
        self._disk, self._file = disk, file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def datasync(self) -> None:
        if self._disk.failing:
            self._disk.syncs_after += 1
            raise SyncFailed("fdatasync: Input/output error", path=self._file.path)
        self._file.datasync()

    def begin_datasync(self, kernel: Any) -> bool:
        return not self._disk.failing and self._file.begin_datasync(kernel)

    def end_datasync(self, code: int) -> None:
        self._file.end_datasync(5 if self._disk.failing else code)
        self._disk.syncs_after += self._disk.failing


def test_a_failed_fdatasync_halts_the_member_and_is_not_tried_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with Cluster(tmp_path) as cluster:
            await cluster.leader()
            await cluster.stop("m1")
            disk = FailingDisk()
            node = await cluster.start("m1", disk=disk)
            await node.aread_barrier()
            disk.failing = True
            other = cluster.nodes["m2"]
            with pytest.raises(StorageError):
                await asyncio.gather(other.apropose(put("k")), node.apropose(put("l")), _raised(node))
            error = await node.halted
            assert isinstance(error, SyncFailed)
            assert disk.syncs_after == 1
            with pytest.raises(RaftError):
                await node.apropose(put("m"))
            await cluster.stop("m1")
            assert disk.syncs_after == 1
            await other.apropose(put("n"))  # two are a majority
            await cluster.start("m1", disk=None)
            await cluster.nodes["m1"].aread_barrier()
            assert kv(cluster.nodes["m1"]).range_one(b"n")

    async def _raised(node: Node) -> None:
        raise await node.halted

    run(test)


def test_a_machine_that_raises_halts_the_member_and_answers_its_callers(tmp_path: Path) -> None:
    class Broken(KvMachine):
        def apply(self, context: Any, commands: Any) -> list[object]:
            if commands and b"poison" in commands[0]:
                raise RuntimeError("a bug in the machine")
            return super().apply(context, commands)

    async def test() -> None:
        async with Cluster(tmp_path, size=1, factory=lambda path: Broken.in_memory()) as cluster:
            node = await cluster.leader()
            await node.apropose(put("fine"))
            with pytest.raises(Stopped):
                await node.apropose(put("poison"))
            assert isinstance(await node.halted, RuntimeError)
            assert node.status().halted == "a bug in the machine"

    run(test)


def test_a_full_queue_is_refused_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        limits = MemberLimits(proposals_pending_max=5, proposals_pending_bytes_max=1000)
        async with Cluster(tmp_path, size=1, limits=limits) as cluster:
            node = await cluster.leader()
            answers: list[object] = []
            for _ in range(5):
                node.propose(put("k"), answers.append)
            with pytest.raises(Overloaded, match="proposals_pending_max"):
                node.propose(put("k"), answers.append)
            assert not answers, "nobody is answered from inside the call"
            await until(lambda: len(answers) == 5)
            node.propose(put("k"), answers.append)
            with pytest.raises(Overloaded, match="proposals_pending_bytes_max"):
                node.propose(put("k", "x" * 2000), answers.append)
            with pytest.raises(Overloaded, match="COMMAND_BYTES_MAX"):
                await until(lambda: len(answers) == 6)
                node.propose(bytes(2 << 20), answers.append)

    run(test)


def test_flushes_run_once_at_the_end_of_the_turn(tmp_path: Path) -> None:
    async def test() -> None:
        async with Cluster(tmp_path, size=1) as cluster:
            node = await cluster.leader()
            order: list[str] = []

            def done(name: str) -> Callable[[object], None]:
                def answer(result: object) -> None:
                    order.append(name)
                    node.flush_soon(lambda: order.append(f"flush {name}"))

                return answer

            node.propose(put("a"), done("a"))
            node.propose(put("b"), done("b"))
            await until(lambda: len(order) == 4)
            assert order == ["a", "b", "flush a", "flush b"]
            node.flush_soon(lambda: order.append("outside"))
            await asyncio.sleep(0)
            assert order[-1] == "outside"

    run(test)


# -- bad data directories


def test_two_members_do_not_share_a_data_directory(tmp_path: Path) -> None:
    async def test() -> None:
        async with Cluster(tmp_path, size=1) as cluster:
            with pytest.raises(DirectoryInUse):
                await start_node(cluster.options["m1"], on_disk)

    run(test)


def test_a_data_directory_of_another_member_or_cluster_is_refused(tmp_path: Path) -> None:
    async def test() -> None:
        cluster = Cluster(tmp_path, size=2)
        async with cluster:
            await cluster.leader()
        with pytest.raises(WrongDirectory, match="belongs to member"):
            await start_node(replace(cluster.options["m2"], data_dir=cluster.options["m1"].data_dir), on_disk)
        with pytest.raises(WrongDirectory, match="of cluster 63"):
            await start_node(replace(cluster.options["m1"], cluster_id=99), on_disk)

    run(test)


def test_options_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    good = Cluster(tmp_path, size=1).options["m1"]
    bad = [
        (replace(good, name="other"), "does not hold this member"),
        (replace(good, advertise_peer_urls=["http://elsewhere:1"]), "make them the same"),
        (replace(good, advertise_peer_urls=[]), "must be able to reach"),
        (replace(good, state="begin"), "must be new or existing"),
        (replace(good, state="existing"), "no cluster id is given"),
        (replace(good, election_ms=50), "election_timeout_ns"),
        (replace(good, initial_cluster=dict.fromkeys(["m1", "m2"], good.advertise_peer_urls)), "more than one"),
    ]

    async def test() -> None:
        for options, text in bad:
            with pytest.raises(ConfigurationError, match=text):
                await start_node(options, on_disk)

    run(test)


def test_a_port_in_use_is_said_and_nothing_is_left_open(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path, size=1)

    async def test() -> None:
        url = cluster.options["m1"].listen_peer_urls[0]
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", int(url.rpartition(":")[2])))
            taken.listen()
            with pytest.raises(ConfigurationError, match="cannot listen"):
                await start_node(cluster.options["m1"], on_disk)
        node = await start_node(cluster.options["m1"], on_disk)
        await node.stop()

    run(test)


@pytest.mark.parametrize("lost", ["wal", "kv"])
def test_half_a_data_directory_is_refused(tmp_path: Path, lost: str) -> None:
    async def test() -> None:
        cluster = Cluster(tmp_path, size=1, limits=MemberLimits(checkpoint_interval_ns=10_000_000))
        async with cluster:
            node = await cluster.leader()
            await node.apropose(put("k"))
            await until(lambda: node.member.raft.status().snapshot_index >= 0 and not node.member.saving)
        data = Path(cluster.options["m1"].data_dir)
        (data / lost).rename(tmp_path / "lost")
        with pytest.raises(StorageError, match="empty directory"):
            await start_node(cluster.options["m1"], on_disk)
        if (data / lost).exists():
            for path in (data / lost).iterdir():
                path.unlink()
            (data / lost).rmdir()
        (tmp_path / "lost").rename(data / lost)
        async with cluster:
            await cluster.nodes["m1"].aread_barrier()
            assert kv(cluster.nodes["m1"]).range_one(b"k")

    run(test)


def test_rot_in_the_log_is_refused_and_nothing_stays_open(tmp_path: Path) -> None:
    async def test() -> None:
        cluster = Cluster(tmp_path, size=1)
        async with cluster:
            node = await cluster.leader()
            for i in range(50):
                await node.apropose(put(f"k{i}", "needle"))
        (segment,) = (Path(cluster.options["m1"].data_dir) / "wal").glob("*1.wal")
        data = bytearray(segment.read_bytes())
        data[data.find(b"needle")] ^= 1
        segment.write_bytes(data)
        with pytest.raises(Corrupt, match="Nothing was changed"):
            await start_node(cluster.options["m1"], on_disk)

    run(test)


def test_restart_does_not_depend_on_the_initial_cluster_option(tmp_path: Path) -> None:
    async def test() -> None:
        cluster = Cluster(tmp_path)
        async with cluster:
            await (await cluster.leader()).apropose(put("k"))
        for name in cluster.options:
            await cluster.start(name, initial_cluster={}, state="existing")
        async with asyncio.timeout(120):
            node = await cluster.leader()
            await node.aread_barrier()
        assert len(node.member.raft.configuration.voters) == 3
        await cluster.__aexit__()

    run(test)


def test_a_member_that_keeps_entries_before_its_checkpoint_can_be_recovered(tmp_path: Path) -> None:
    """As every member does that ran for more than some seconds: they are there for slow peers."""

    async def test() -> None:
        cluster = Cluster(tmp_path)
        async with cluster:
            leader = await cluster.leader()
            for i in range(20):
                await leader.apropose(put(f"k{i}"))
            name = cluster.name_of(leader)
        options = cluster.options[name]  # when it stopped it wrote a checkpoint
        done = recover(options.data_dir, segment_bytes=SEGMENT)
        alone = await start_node(replace(options, initial_cluster={}, state="existing"), on_disk)
        try:
            await alone.aread_barrier()
            assert all(kv(alone).range_one(b"k%d" % i) for i in range(20))
            assert alone.member.raft.configuration.voters == {done.identity.member_id}
        finally:
            await alone.stop()

    run(test)


def test_ids_are_what_they_always_were() -> None:
    """They are in every data directory and every handshake: another hash would be another cluster."""
    one = member_id_of("etcd-cluster", ["http://127.0.0.1:2380"])
    assert one == member_id_of("etcd-cluster", ["http://127.0.0.1:2380"])
    assert member_id_of("t", ["http://b:1", "http://a:1"]) == member_id_of("t", ["http://a:1", "http://b:1"])
    assert member_id_of("t", ["http://a:1"]) != member_id_of("u", ["http://a:1"])
    assert cluster_id_of("t", [1, 2]) == cluster_id_of("t", [2, 1]) != cluster_id_of("t", [1, 3])
    assert one == 0xDB6875914CCF942E
    assert cluster_id_of("etcd-cluster", [one]) == 0x3D42C860C633CA02
