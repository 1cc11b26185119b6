"""What goes wrong, and who meddles: one method for each class of fault that strikes now and then."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from oarlock.node.replica.reconfigure import AddMember, MemberChange, PromoteMember, RemoveMember, UpdateMember
from oarlock.raft import events as raft
from oarlock.raft.types import Configuration, MemberInfo, NodeId
from oarlock.sim.invariants import quorum_holds
from oarlock.sim.world.choices import Stream
from oarlock.sim.world.process import LOG, MACHINE, SNAPSHOTS, Process
from oarlock.sim.world.swarm import TIMED
from oarlock.storage.sim_disk import Fault

if TYPE_CHECKING:
    from oarlock.sim.world.world import World

HOUR: Final = 3600 * 10**9
SCENES: Final = ("strand", "lag", "behind")  # that strike some time after an election
IDS_MAX: Final = 12  # members that a run may ever have
ASKING_WORLDS: Final = 3  # in one of so many worlds operators also ask as people do, at any member
CAPACITY_SLACK: Final = 9000  # bytes that a full disk still takes


class Faults:
    """Strikes at the intervals that the swarm drew, until the world heals."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._asks = not world.choices.draw("reconfigure", ASKING_WORLDS)
        self.struck: dict[str, int] = {}
        for name in TIMED:
            if name in world.swarm.interval:
                self._schedule(name)

    def _schedule(self, name: str) -> None:
        draw = self._world.choices.stream(f"fault/{name}")
        wait = self._world.swarm.interval[name] * (1 + draw.draw(32)) // 16
        self._world.later(wait, self._strike, name)

    def _strike(self, name: str) -> None:
        world = self._world
        if world.healed:
            return
        draw = world.choices.stream(f"fault/{name}")
        if draw.draw(5):  # 0: spared
            self.struck[name] = self.struck.get(name, 0) + 1
            getattr(self, f"_{name}")(draw)
        self._schedule(name)

    def _some(self, draw: Stream, among: list[Process] | None = None) -> Process | None:
        found = self._world.up() if among is None else among
        return found[draw.draw(len(found))] if found else None

    def _hold(self, draw: Stream) -> int:
        """How long a trouble lasts: mostly around an election timeout, at times much longer."""
        return self._world.swarm.timeout * (1 + draw.draw(12)) // (1 if draw.draw(3) == 2 else 4)

    # ------------------------------------------------------------------ the network

    def _cut(self, links: set[tuple[NodeId, NodeId]], duration: int) -> None:
        network = self._world.network
        fresh = links - network.cut
        network.cut |= fresh
        self._record_links()
        self._world.later(duration, self._mend, fresh)

    def _mend(self, links: set[tuple[NodeId, NodeId]]) -> None:
        network = self._world.network
        network.cut -= links
        if self._world.swarm.stream:  # connections that broke are made anew
            for one, other in sorted(links):
                if one < other and not self._world.is_foreign(one) and not self._world.is_foreign(other):
                    network.connected(one, other)
        self._record_links()

    def _record_links(self) -> None:
        world = self._world
        if world.recording is not None:
            world.recording.links(world.now, world.network.cut, self._ids())

    def _ids(self) -> list[NodeId]:
        return sorted(self._world.processes)

    def _between(self, one: set[NodeId], other: set[NodeId]) -> set[tuple[NodeId, NodeId]]:
        return {(a, b) for a in one for b in other} | {(b, a) for a in one for b in other}

    def _partition(self, draw: Stream) -> None:
        """One alone, the leader alone, or two sides."""
        ids = self._ids()
        kind = draw.draw(8)
        leaders = [p.id for p in self._world.up() if p.leads]
        if kind < 3 and leaders:
            side = {leaders[draw.draw(len(leaders))]}
        elif kind < 5:
            side = {ids[draw.draw(len(ids))]}
        else:
            side = {node for node in ids if draw.draw(2)}
        self._cut(self._between(side, set(ids) - side), self._hold(draw))

    def _bridge(self, draw: Stream) -> None:
        """Two sides that only one member reaches both of; or a chain in which each reaches its neighbours only."""
        ids = self._ids()
        hold = self._hold(draw)
        if draw.draw(2) and len(ids) > 2:
            links = {(a, b) for i, a in enumerate(ids) for j, b in enumerate(ids) if abs(i - j) > 1}
        else:
            bridge = ids[draw.draw(len(ids))]
            rest = [node for node in ids if node != bridge]
            side = {node for node in rest if draw.draw(2)}
            links = self._between(side, set(rest) - side)
        self._cut(links, hold)

    def _one_way(self, draw: Stream) -> None:
        ids = self._ids()
        node = ids[draw.draw(len(ids))]
        others = [other for other in ids if other != node]
        outgoing = draw.draw(2)
        self._cut({(node, o) if outgoing else (o, node) for o in others}, self._hold(draw))

    def _flap(self, draw: Stream) -> None:
        """A link, or all of one member's, that comes and goes."""
        ids = self._ids()
        node = ids[draw.draw(len(ids))]
        others = {other for other in ids if other != node and (draw.draw(2) or len(ids) < 3)}
        period = max(1, self._world.swarm.timeout * (3 + draw.draw(27)) // 10)
        for turn in range(2 + draw.draw(6)):
            self._world.later(2 * turn * period, self._cut_later, (self._between({node}, others), period))

    def _cut_later(self, what: tuple[set[tuple[NodeId, NodeId]], int]) -> None:
        if not self._world.healed:
            self._cut(*what)

    def _clog(self, draw: Stream) -> None:
        """Links hold everything back for a while; they open again in another order than they closed."""
        ids = self._ids()
        links = [(a, b) for a in ids for b in ids if a != b]
        for link in links:
            if draw.draw(3) == 2:
                self._world.network.clogged[link] = self._world.now + self._hold(draw)

    def _versions(self, draw: Stream) -> None:
        """A member is stopped and comes back in another release: a step of a rolling upgrade, or back."""
        process = self._some(draw)
        if process is not None:
            process.release = draw.draw(3) - 1
            self._world.note(process, f"changes to release {process.release:+}")
            process.die(power=False)
            self._world.restart_later(process)

    def _reset(self, draw: Stream) -> None:
        ids = self._ids()
        if len(ids) > 1:
            one = ids[draw.draw(len(ids))]
            others = [node for node in ids if node != one]
            self._world.network.reset(one, others[draw.draw(len(others))])

    def _strand(self, draw: Stream) -> None:
        """A leader is cut off while its clients go on: what it takes then, its successor replaces."""
        world = self._world
        timeout = world.swarm.timeout
        leader = self._some(draw, [p for p in world.up() if p.leads])
        if leader is None:
            return
        others = {node for node in self._ids() if node != leader.id}
        heard = {node for node in others if draw.draw(4) == 3}  # few hear it and cannot answer, or all the other way
        kind = draw.draw(5)
        links = self._between({leader.id}, others)
        duration = timeout * (2 + draw.draw(8))
        if "drift" in world.swarm.classes and draw.draw(2):
            # Its clock is as slow, and those of its successors as fast, as clocks may be.
            limit = self._drift_limit(draw)
            for process in world.processes.values():
                self._set_rate(process, 1_000_000 - limit if process is leader else 1_000_000 + limit)
        if kind == 1:
            links -= {(leader.id, node) for node in heard}
        elif kind == 2:
            links -= self._between({leader.id}, heard)
        if kind == 3:
            # What the others answered is under way for about as long as they are patient, and comes when they are not.
            for node in others:
                world.network.clogged[node, leader.id] = world.now + timeout * (4 + draw.draw(5)) // 8
            world.later(timeout * (1 + draw.draw(4)) // 8, self._cut_later, (links, duration))
        elif kind == 4 and others:
            # It hands leadership over, and does not hear that its successor was elected.
            leader.transfer(sorted(others)[draw.draw(len(others))])
            incoming = {(node, leader.id) for node in others}
            wait = (1 + draw.draw(6)) * (world.swarm.latency_min + world.swarm.latency_mean // 4 + world.swarm.cpu)
            world.later(wait, self._cut_later, (incoming, duration))
        else:
            self._cut(links, duration)
        for turn in range(1 + draw.draw(6) if draw.draw(2) else 8 + draw.draw(17)):
            self._call_on(draw, leader, turn)
            if kind >= 3 or world.swarm.lease_reads:
                self._call_on(draw, None, turn)
        end = draw.draw(4)
        if end == 3:
            world.later(timeout * (1 + draw.draw(8)) // 4, self._end, leader)
        elif end:  # or its disk stands still until after the successor has come
            self._stand_still(leader, timeout * (2 + draw.draw(16)))

    def _call_on(self, draw: Stream, process: Process | None, turn: int) -> None:
        """Some client asks something of this member, or of one that it knows, about `turn` eighths of T from now."""
        world = self._world
        client = world.clients[draw.draw(len(world.clients))]
        read = draw.draw(2) == 1
        wait = world.swarm.timeout * (turn + draw.draw(4)) // 8
        world.later(wait, client.ask_one, (process, read))

    def _lag(self, draw: Stream) -> None:
        """What a follower is sent comes late, all at once, while clients read there and write at the leader."""
        world = self._world
        leader = self._some(draw, [p for p in world.up() if p.leads])
        follower = self._some(draw, [p for p in world.up() if not p.leads and not p.witness])
        if leader is None or follower is None:
            return
        world.network.clogged[leader.id, follower.id] = world.now + world.swarm.timeout * (1 + draw.draw(16)) // 4
        for turn in range(2 + draw.draw(12)):
            self._call_on(draw, follower, turn)
            self._call_on(draw, leader, turn)

    def _behind(self, draw: Stream) -> None:
        """A member is down while clients write so much that a snapshot has to bring it back."""
        world = self._world
        leader = self._some(draw, [p for p in world.up() if p.leads])
        process = self._some(draw, [p for p in world.up() if not p.leads])
        if leader is None or process is None:
            return
        process.die(power=bool(draw.draw(2)) and "power" in world.swarm.classes)
        duration = world.swarm.timeout * (1 + draw.draw(8)) // 2
        count = min(60, 4 + draw.draw(2 * world.swarm.snapshot_entries + 8))
        for turn in range(count):
            client = world.clients[draw.draw(len(world.clients))]
            world.later(duration * turn // count, client.ask_one, (None, False))
        world.later(duration, self._begin_again, process)

    def _begin_again(self, process: Process) -> None:
        if not process.halted and self._world.processes[process.id] is process:
            process.start()

    def _stand_still(self, process: Process, duration: int) -> None:
        process.sync_extra = duration
        self._world.later(duration, self._flow, process)

    def _flow(self, process: Process) -> None:
        process.sync_extra = 0

    def _end(self, process: Process) -> None:
        if process.up and not self._world.healed:
            process.die(power=False)
            self._world.restart_later(process)

    # ------------------------------------------------------------------ processes

    def _kill(self, draw: Stream) -> None:
        process = self._some(draw)
        if process is not None:
            process.die(power=False)
            self._world.restart_later(process)

    def _power(self, draw: Stream) -> None:
        process = self._some(draw)
        if process is not None:
            process.die(power=True)
            self._world.restart_later(process)

    def _crash_all(self, draw: Stream) -> None:
        power = bool(draw.draw(2))
        for process in self._world.up():
            process.die(power=power)
            self._world.restart_later(process)

    def _pause(self, draw: Stream) -> None:
        process = self._some(draw)
        if process is not None:
            process.paused_until = self._world.now + self._world.swarm.timeout * (1 + draw.draw(40)) // 4

    def _slow_cpu(self, draw: Stream) -> None:
        process = self._some(draw)
        if process is not None:
            process.cpu = self._world.swarm.cpu * (10 + draw.draw(90))
            self._world.later(self._hold(draw) * 2, self._quick, process)

    def _quick(self, process: Process) -> None:
        process.cpu = self._world.swarm.cpu

    def _hint(self, draw: Stream) -> None:
        """Word that a peer's process is gone, true or not."""
        process = self._some(draw)
        if process is not None:
            ids = self._ids()
            process.give(raft.PeerDown(ids[draw.draw(len(ids))]))

    # ------------------------------------------------------------------ disks

    def _slow_disk(self, draw: Stream) -> None:
        process = self._some(draw)
        if process is not None:
            if draw.draw(4) == 3:
                self._stand_still(process, self._world.swarm.timeout * (2 + draw.draw(30)) // 2)
                return
            process.sync_factor = 10 + draw.draw(90)
            if draw.draw(2):
                process.called_sick = True
                process.give(raft.DiskHealth(True))
            self._world.later(self._hold(draw) * 2, self._well, process)

    def _well(self, process: Process) -> None:
        process.sync_factor = 1
        process.called_sick = False
        process.give(raft.DiskHealth(False))

    def _sync_failure(self, draw: Stream) -> None:
        process = self._some(draw)
        if process is not None:
            process.faulty = True
            operation = "sync" if draw.draw(4) else "sync_dir"
            process.disk.inject(operation, Fault.EIO, after=draw.draw(4))  # type: ignore[arg-type]

    def _eio(self, draw: Stream) -> None:
        process = self._some(draw)
        if process is not None:
            process.faulty = True
            operation = ("read", "write", "create", "rename", "unlink")[draw.draw(5)]
            process.disk.inject(operation, Fault.EIO, after=draw.draw(8), sticky=draw.draw(4) == 3)  # type: ignore[arg-type]

    def _full(self, draw: Stream) -> None:
        process = self._some(draw)
        if process is not None:
            process.faulty = True
            if draw.draw(2):
                process.disk.capacity_bytes = process.disk._used() + draw.draw(CAPACITY_SLACK)
                self._world.later(self._hold(draw) * 3, process.repair)
            else:
                process.disk.inject("write", Fault.SHORT if draw.draw(2) else Fault.ENOSPC, after=draw.draw(6))

    def _rot(self, draw: Stream) -> None:
        """Durable bytes change; it shows when the member starts again. Only where the group can do without it."""
        process = self._some(draw, [p for p in self._world.processes.values() if not p.broken])
        if process is None or not self._world.can_lose(process.id):
            return
        disk = process.disk
        places = disk.rot_places((LOG, SNAPSHOTS, MACHINE))
        places = [(path, size) for path, size in places if not path.startswith(MACHINE)]
        if not places:
            return
        process.rotten = True
        path, size = places[draw.draw(len(places))]
        kind = draw.draw(4)
        at = draw.draw(size)
        if kind < 2:
            disk.flip_bit(path, at, draw.draw(8))
        elif kind == 2:
            disk.put_sector(path, at // 512)
        elif not disk.stale_sector(path, at // 512):
            other, other_size = places[draw.draw(len(places))]
            disk.misdirect(path, at // 512, other, draw.draw(other_size) // 512)
        self._world.note(process, f"rots in {path}")

    def _misdirect(self, draw: Stream) -> None:
        """A write lands in the wrong place and reports success. Only where the group can do without the member."""
        process = self._some(draw)
        if process is None or not self._world.can_lose(process.id):
            return
        process.rotten = True
        part = (".wal", ".wal", ".partial", ".tmp")[draw.draw(4)]
        process.disk.inject("write", Fault.MISDIRECTED, after=draw.draw(6), path_part=part)
        self._world.note(process, f"will misdirect a write to {part}")

    def _wipe(self, draw: Stream) -> None:
        """The disk is replaced by an empty one, and the member keeps its name: the others must not hear it again."""
        world = self._world
        process = self._some(draw)
        if process is None or not world.swarm.incarnations or not world.can_lose(process.id):
            return
        for other in world.processes.values():
            watched = world.oracle.watched[other.id]
            info = watched.disk.configuration.member(process.id)
            if info is None or info.incarnation != process.incarnation or watched.disk.configuration.joint:
                return  # not everybody knows this disk yet
        process.die(power=False)
        world.note(process, "gets an empty disk")
        world.replace_disk(process)
        world.restart_later(process)

    # ------------------------------------------------------------------ clocks

    def _drift(self, draw: Stream) -> None:
        process = self._some(draw, list(self._world.processes.values()))
        limit = self._drift_limit(draw)
        if process is not None:
            self._set_rate(process, 1_000_000 - limit + draw.draw(2 * limit + 1))

    def skew(self, process: Process, *, slow: bool) -> None:
        """A clock at the end of what clocks may be."""
        limit = self._drift_limit(self._world.choices.stream("fault/skew"))
        self._set_rate(process, 1_000_000 - limit if slow else 1_000_000 + limit)

    def _drift_limit(self, draw: Stream) -> int:
        """Millionths: within what the configuration allows when leases are in use; wild otherwise."""
        swarm = self._world.swarm
        wild = (100, 50_000, 200_000, 600_000)[draw.draw(4)]
        return swarm.drift_ppm if swarm.lease_reads else wild

    def _set_rate(self, process: Process, rate: int) -> None:
        process.clock.set_rate(self._world.now, rate)
        process.wake_if_up()

    def _wall(self, draw: Stream) -> None:
        process = self._some(draw, list(self._world.processes.values()))
        if process is not None:
            process.wall_offset = draw.draw(2 * HOUR) - HOUR

    def _freeze(self, draw: Stream) -> None:
        """The whole machine is suspended: its monotonic clock stands still. A lease cannot survive that."""
        process = self._some(draw)
        if process is not None and not self._world.swarm.lease_reads:
            duration = self._hold(draw)
            process.clock.freeze(self._world.now, duration)
            process.paused_until = self._world.now + duration

    # ------------------------------------------------------------------ operators

    def _transfer(self, draw: Stream) -> None:
        process = self._some(draw)
        if process is not None:
            ids = [0, *self._ids()]
            process.transfer(ids[draw.draw(len(ids))])

    def _ask(self) -> None:
        """An operator asks any member for a change, as the API does; the leader decides. (node.replica.reconfigure)"""
        world = self._world
        draw = world.choices.stream("reconfigure")
        process = self._some(draw)
        if process is None:
            return
        configuration = process.core.configuration
        ids = configuration.ids
        fresh = max(world.processes) + 1
        kind = draw.draw(8)
        change: MemberChange
        if kind < 3 and fresh <= IDS_MAX:
            change = AddMember(fresh, (f"http://n{fresh}:1",), draw.draw(2), strict=draw.draw(4) == 3)
            world.join(fresh)
        elif not ids:
            return
        else:
            node = ids[draw.draw(len(ids))]
            if kind < 5:
                change = PromoteMember(node, strict=False)
            elif kind == 5:
                change = UpdateMember(node, (f"http://n{node}:{1 + draw.draw(3)}",))
            else:
                # Without the leader's own check only where those that are left agree, whatever else is under way.
                removal = [raft.ConfigChange(raft.ChangeKind.REMOVE, MemberInfo(id=node))]
                spared = node in configuration.learners or (process.leads and self._survivable(configuration, removal))
                change = RemoveMember(node, strict=not spared)
        process.reconfigure(change)

    def _members(self, draw: Stream) -> None:
        """An operator changes the membership, at any member, whatever others do at the same time."""
        if self._asks:
            self._ask()
        world = self._world
        leaders = [p for p in world.up() if p.leads]
        process = self._some(draw, leaders if leaders and draw.draw(4) else None)
        if process is not None:
            self._change_at(process, draw)

    def _change_at(self, process: Process, draw: Stream) -> None:
        world = self._world
        configuration = process.core.configuration
        if draw.draw(2) if configuration.joint else draw.draw(24) == 23:  # also where there is nothing to leave
            process.change(())
            return
        changes: list[raft.ConfigChange] = []
        for _ in range(1 + (draw.draw(3) == 2)):
            change = self._one_change(draw, configuration)
            if change is not None:
                changes.append(change)
        if changes and (self._survivable(configuration, changes) or self._refused(configuration, changes)):
            for change in changes:
                if change.member.id not in world.processes:
                    world.join(change.member.id, witness=change.kind is raft.ChangeKind.ADD_WITNESS)
            process.change(tuple(changes), auto_leave=draw.draw(4) != 3)

    def _replace(self, draw: Stream) -> None:
        """A member is lost for good with its disk; a new one takes its place."""
        world = self._world
        leaders = [p for p in world.up() if p.leads]
        leader = self._some(draw, leaders)
        if leader is None or len(world.processes) >= IDS_MAX:
            return
        configuration = leader.core.configuration
        others = [
            n for n in configuration.ids if n != leader.id and n in world.processes and not world.processes[n].broken
        ]
        if not others:
            return
        lost = others[draw.draw(len(others))]
        fresh = max(world.processes) + 1
        info = MemberInfo(id=fresh)
        changes = [
            raft.ConfigChange(raft.ChangeKind.ADD_VOTER, info),
            raft.ConfigChange(raft.ChangeKind.REMOVE, MemberInfo(id=lost)),
        ]
        if world.processes[lost].witness or not world.can_lose(lost) or not self._survivable(configuration, changes):
            return
        process = world.processes[lost]
        process.die(power=False)
        process.broken = "lost with its disk"
        world.note(process, "is lost with its disk")
        world.join(fresh)
        leader.change(tuple(changes))

    def elected(self, process: Process) -> None:
        """A leader is new: what needs one is set up; an operator may be there before it has committed anything."""
        world = self._world
        if world.healed:
            return
        classes, timeout = world.swarm.classes, world.swarm.timeout
        for name in SCENES:
            if name in classes:
                draw = world.choices.stream(f"fault/{name}")
                if draw.draw(2):
                    world.later(timeout * (1 + draw.draw(12)) // 4, self._scene, (name, process))
        if "hasty" not in classes:
            return
        draw = world.choices.stream("fault/hasty")
        kind = draw.draw(6)
        if kind == 0:
            return
        self.struck["hasty"] = self.struck.get("hasty", 0) + 1
        wait = 1 + world.swarm.cpu * draw.draw(4)
        if kind == 1 and "transfer" in classes:
            ids = self._ids()
            world.later(wait, self._transfer_now, (process, ids[draw.draw(len(ids))]))
        elif "members" in classes:
            world.later(wait, self._change_now, process)

    def _scene(self, what: tuple[str, Process]) -> None:
        """Among members that otherwise reach each other, and only while somebody leads: else nothing would follow."""
        name, process = what
        world = self._world
        if world.healed or not process.leads:
            return
        world.network.cut.clear()
        world.network.clogged.clear()
        self.struck[name] = self.struck.get(name, 0) + 1
        getattr(self, f"_{name}")(world.choices.stream(f"fault/{name}"))

    def _transfer_now(self, what: tuple[Process, NodeId]) -> None:
        process, target = what
        if process.up and not self._world.healed:
            process.transfer(target)

    def _change_now(self, process: Process) -> None:
        if process.up and not self._world.healed:
            self._change_at(process, self._world.choices.stream("fault/hasty"))

    def _one_change(self, draw: Stream, configuration: Configuration) -> raft.ConfigChange | None:
        world = self._world
        kind = draw.draw(8)
        ids = configuration.ids
        if not ids:
            return None
        member = configuration.member(ids[draw.draw(len(ids))])
        assert member is not None
        fresh = max(world.processes) + 1
        if kind == 3 and configuration.removed and draw.draw(2):
            again = sorted(configuration.removed)
            return raft.ConfigChange(raft.ChangeKind.ADD_LEARNER, MemberInfo(id=again[draw.draw(len(again))]))
        if kind < 4 and fresh <= IDS_MAX:
            info = MemberInfo(id=fresh, promote_when_ready=draw.draw(2) == 1)
            role = (raft.ChangeKind.ADD_LEARNER, raft.ChangeKind.ADD_LEARNER, raft.ChangeKind.ADD_VOTER)[kind % 3]
            return raft.ConfigChange(role, info)
        if kind == 4:
            learners = sorted(configuration.learners)
            if learners:
                info = MemberInfo(id=learners[draw.draw(len(learners))])
                return raft.ConfigChange(raft.ChangeKind.ADD_VOTER, info)
        if kind == 5 and member.id in configuration.voters and member.id not in configuration.witnesses:
            return raft.ConfigChange(raft.ChangeKind.ADD_LEARNER, MemberInfo(id=member.id))
        if kind == 6:
            info = MemberInfo(id=member.id, priority=1 + draw.draw(3))
            return raft.ConfigChange(raft.ChangeKind.UPDATE, info, set_incarnation=False, set_context=False)
        return raft.ConfigChange(raft.ChangeKind.REMOVE, MemberInfo(id=member.id))

    @staticmethod
    def _refused(configuration: Configuration, changes: list[raft.ConfigChange]) -> bool:
        """Whether the group itself must say no: nobody would be left who could lead, or somebody comes again."""
        gone = {c.member.id for c in changes if c.kind in (raft.ChangeKind.REMOVE, raft.ChangeKind.ADD_LEARNER)}
        full = configuration.voters - configuration.witnesses
        comes = {c.member.id for c in changes if c.kind is not raft.ChangeKind.REMOVE}
        return (len(changes) == 1 and full <= gone) or bool(comes & configuration.removed)

    def _survivable(self, configuration: Configuration, changes: list[raft.ConfigChange]) -> bool:
        """Whether those that are left can still agree: people do not vote their group away."""
        voters = set(configuration.voters)
        for change in changes:
            if change.kind is raft.ChangeKind.ADD_VOTER:
                voters.add(change.member.id)
            elif change.kind in (raft.ChangeKind.REMOVE, raft.ChangeKind.ADD_LEARNER):
                voters.discard(change.member.id)
        well = self._world.well()
        fresh = {change.member.id for change in changes if change.member.id not in self._world.processes}
        full = {n for n in voters if n in fresh or (n in well and not self._world.processes[n].witness)}
        after = Configuration(voters=frozenset(voters))
        return bool(full) and quorum_holds(after, full | (well & voters)) and quorum_holds(configuration, well)
