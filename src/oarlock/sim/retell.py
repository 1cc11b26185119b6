"""From a failing run of the simulated world to a short scenario in the language of the golden files.

The world's moments are told again as commands for the core's stage: who is asked what, which message is delivered
where, who crashes, who times out. Time is left out (a member that became a candidate `campaign`s), and so are the parts
around the core; commands that make no sense on the stage are dropped. If the same invariant fires there, delta
debugging takes away whatever is not needed for it. If it does not, the fault lies in a part that the stage does not
have (files, snapshots' bytes, sessions, the machine, the driver), or in the timing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from oarlock.node.replica import events as ev
from oarlock.raft import events as raft
from oarlock.raft import messages as ms
from oarlock.raft.types import MemberRole, NodeId
from oarlock.sim.failures import DoesNotSettle, Violation
from oarlock.sim.scenario import Player, ScenarioError, split
from oarlock.sim.world.recording import Note, Recording, Sent, Turn
from oarlock.sim.world.swarm import Swarm

LINES_MAX: Final = 30  # of a scenario, comments included
WIDTH: Final = 100
TRIES_MAX: Final = 4000  # runs of the stage that one scenario may take; each is some milliseconds
RELEASE: Final = -1  # stands for the order to release the log, among tickets
HEARTBEAT: Final = "100ms"  # the stage's members have the default timeouts

# What the stage's checkers call what the world's checkers call so.
ALIKE: Final[dict[str, frozenset[str]]] = {
    "ES": frozenset({"ES", "VOTE"}),
    "COQ": frozenset({"COQ", "ACK"}),
    "DUR": frozenset({"DUR", "COQ"}),
}


@dataclass(frozen=True, slots=True)
class Retold:
    """`text` is the scenario, empty if there is none; then `why` says why not. `invariant` is the stage's name."""

    text: str
    invariant: str = ""
    what: str = ""
    why: str = ""
    commands: int = 0
    tries: int = 0


def retell(recording: Recording, swarm: Swarm, invariant: str, what: str, title: str) -> Retold:
    """The shortest scenario that was found in which the stage complains of the same as the world did."""
    wanted = ALIKE.get(invariant, frozenset({invariant}))
    tries = _Tries(wanted)
    for held in (False, True):
        commands = _Teller(recording, swarm, held).commands()
        found = tries.run(commands)
        if found is None:
            continue
        shortest = _shortest(found, tries)
        violation = tries.violation
        assert violation is not None
        text = _text(shortest, title, what, str(violation))
        if text.count("\n") > LINES_MAX:
            return Retold(
                "", why=f"the shortest retelling has {len(shortest)} commands, more than fit {LINES_MAX} lines",
                commands=len(shortest), tries=tries.count,
            )  # fmt: skip
        return Retold(text, violation.name, str(violation), commands=len(shortest), tries=tries.count)
    if tries.others:
        said = "; ".join(tries.others.values())
        return Retold(
            "", why=f"given the same, the core breaks something else than {invariant}: {said}", tries=tries.count
        )
    return Retold(
        "",
        why=f"the core alone does not break {invariant} when it is given the same messages, requests and crashes: the "
        "fault needs a part that the stage of scenarios does not have (log files, snapshots' bytes, sessions, the "
        "machine, the driver), or the world's timing",
        tries=tries.count,
    )


class _Tries:
    """Runs commands on a fresh stage, tolerantly."""

    def __init__(self, wanted: frozenset[str]) -> None:
        self._wanted = wanted
        self.count = 0
        self.violation: Violation | None = None
        self.others: dict[str, str] = {}  # what else fired, by name

    def run(self, commands: Sequence[str]) -> list[str] | None:
        """The commands that could be carried out, up to the one at which a wanted invariant broke; else None."""
        self.count += 1
        player = Player()
        done: list[str] = []
        for command in commands:
            words = split("> " + command)
            try:
                player.act(words, "retold", len(done) + 1)
            except ScenarioError:
                continue  # not here, not now: the message does not exist, the member is down
            except Violation as violation:
                return self._fired(done, command, violation)
            except DoesNotSettle:
                return None
            except AssertionError as error:
                return self._fired(done, command, Violation("ASSERT", str(error)))
            except Exception as error:  # a bug in the core may show as anything
                return self._fired(done, command, Violation("CRASH", f"{type(error).__name__}: {error}"))
            done.append(command)
        return None

    def _fired(self, done: list[str], command: str, violation: Violation) -> list[str] | None:
        if violation.name not in self._wanted:
            self.others.setdefault(violation.name, str(violation))
            return None
        self.violation = violation
        return [*done, command]


def _shortest(commands: list[str], tries: _Tries) -> list[str]:
    """Delta debugging: leave out runs of commands, long ones first, as long as the same invariant fires."""
    best = commands
    size = max(1, len(best) // 2)
    while size:
        at, shorter = 1, False  # the first command makes the group
        while at < len(best) and tries.count < TRIES_MAX:
            found = tries.run([*best[:at], *best[at + size :]])
            if found is not None and len(found) < len(best):
                best, shorter = found, True
            else:
                at += size
        if not shorter or size > 1:
            size //= 2
    for option in [word for word in best[0].split() if "=" in word]:
        group = " ".join(word for word in best[0].split() if word != option)
        plainer = tries.run([group, *best[1:]])
        if plainer is not None and len(plainer) <= len(best):
            best = plainer
    final = tries.run(best)
    assert final is not None, "a retold scenario is not the same twice"
    return final


def _text(commands: Sequence[str], title: str, world: str, stage: str) -> str:
    """The file: what it is about, then the commands, several to a line."""
    lines = [f"# {title}"]
    lines += [f"# {line}" for line in _wrapped(f"In the simulated world: {world}")]
    lines += [f"# {line}" for line in _wrapped(f"Here: {stage}")]
    row = ""
    for command in commands:
        if row and len(row) + len(command) + 2 > WIDTH:
            lines.append(f"> {row}")
            row = ""
        row = f"{row}; {command}" if row else command
    lines.append(f"> {row}")
    return "\n".join(lines) + "\n"


def _wrapped(text: str) -> Iterable[str]:
    line = ""
    for word in text.split():
        if line and len(line) + len(word) > WIDTH:
            yield line
            line = ""
        line = f"{line} {word}" if line else word
    yield line


@dataclass(slots=True)
class _Queue:
    """Messages of one kind on one link that are on their way, oldest first."""

    waiting: list[Sent] = field(default_factory=list)


class _Teller:
    """Says a recording in commands. With `held`, fsyncs return when they did in the world, else at once."""

    def __init__(self, recording: Recording, swarm: Swarm, held: bool) -> None:
        self._recording = recording
        self._swarm = swarm
        self._held = held
        self._out: list[str] = []
        self._queues: dict[tuple[NodeId, NodeId, str], _Queue] = {}
        self._arrivals: dict[int, int] = {}  # how often a message will still arrive
        self._payloads = 0
        self._ordered: dict[NodeId, list[int]] = {}  # tickets of what a disk was asked for and has not synced
        self._up: set[NodeId] = set()

    def commands(self) -> list[str]:
        moments = self._recording.moments
        for moment in moments:
            if isinstance(moment, Turn):
                for sent in moment.arrived:
                    self._arrivals[id(sent)] = self._arrivals.get(id(sent), 0) + 1
        self._group()
        for moment in moments:
            match moment:
                case Note():
                    self._note(moment)
                case Sent():
                    key = (moment.sender, moment.to, type(moment.message).__name__)
                    self._queues.setdefault(key, _Queue()).waiting.append(moment)
                case Turn():
                    self._turn(moment)
        return self._out

    def _group(self) -> None:
        swarm = self._swarm
        members = []
        for node in range(1, swarm.voters + swarm.learners + 1):
            role = MemberRole.VOTER
            if node > swarm.voters:
                role = MemberRole.LEARNER
            elif node > swarm.voters - swarm.witnesses:
                role = MemberRole.WITNESS
            members.append({MemberRole.VOTER: "", MemberRole.LEARNER: "learner:", MemberRole.WITNESS: "witness:"}[role]
                           + str(node))  # fmt: skip
            self._up.add(node)
        switches = {"pre-vote": swarm.pre_vote, "check-quorum": swarm.check_quorum, "lease-reads": swarm.lease_reads}
        defaults = {"pre-vote": True, "check-quorum": True, "lease-reads": False}
        options = [f"{name}={'on' if on else 'off'}" for name, on in switches.items() if on != defaults[name]]
        options += [
            f"message-bytes-max={swarm.message_bytes}",
            f"inflight-messages-max={swarm.inflight}",
            f"apply-bytes-max={swarm.apply_bytes}",
            f"tail-entries-max={swarm.tail_entries}",
        ]
        if swarm.incarnations:
            options.append("incarnations=on")
        self._out.append(" ".join(["group", *members, *options]))
        if self._held:
            self._out += [f"persist hold {node}" for node in sorted(self._up)]

    def _note(self, note: Note) -> None:
        node, what = note.node, note.what
        if "starts" in what or any(word in what for word in ("killed", "loses power", "stops")):
            self._ordered.pop(node, None)
        if "starts" in what:
            if node not in self._up:
                self._out.append(f"restart {node}")
                self._up.add(node)
                if self._held:
                    self._out.append(f"persist hold {node}")
        elif node in self._up and ("killed" in what or what.startswith("stops")):
            self._out.append(f"crash {node}")
            self._up.discard(node)
        elif node in self._up and "loses power" in what:
            self._out.append(f"power-loss {node}")
            self._up.discard(node)
        elif "empty disk" in what:
            self._out.append(f"wipe {node}")

    def _turn(self, turn: Turn) -> None:
        node = turn.node
        arrived = iter(turn.arrived)
        for event in turn.events:
            match event:
                case raft.MessageReceived(_, message):
                    sent = next(arrived, None)
                    if sent is not None:
                        self._deliver(sent, message, leads=turn.before.role == "leader")
                case raft.Persisted(ticket):
                    self._synced(node, ticket)
                case ev.Submit():
                    if "leader" in (turn.before.role, turn.after.role):
                        self._propose(node)
                case ev.ReadBarrier():
                    self._out.append(f"read {node} r")
                case raft.ConfigChangeRequested(_, changes, auto_leave):
                    self._change(node, changes, auto_leave)
                case raft.TransferRequested(_, target):
                    self._out.append(f"transfer {node}" + (f" {target}" if target else ""))
                case raft.PeerDown(peer):
                    self._out.append(f"notice {node} {peer}")
                case raft.SnapshotWritten():
                    self._out.append(f"snapshot {node}")
                case raft.DiskHealth(sick):
                    self._out.append(f"disk {node} {'sick' if sick else 'well'}")
        for effect in turn.effects:
            if isinstance(effect, raft.Persist):
                self._ordered.setdefault(node, []).append(effect.ticket)
            elif isinstance(effect, raft.ReleaseLog):
                self._ordered.setdefault(node, []).append(RELEASE)
        campaigns = ("candidate", "precandidate")
        began = turn.after.role in campaigns and (
            turn.before.role != turn.after.role or turn.after.term > turn.before.term
        )
        by_message = any(isinstance(sent.message, ms.RequestVoteReply | ms.TimeoutNow) for sent in turn.arrived)
        if began and not by_message:
            self._out.append(f"campaign {node}")
        elif turn.before.role == "leader" and any(
            isinstance(effect, raft.Send) and isinstance(effect.message, ms.Heartbeat) for effect in turn.effects
        ):
            self._out.append(f"tick {node} {HEARTBEAT}")

    def _synced(self, node: NodeId, ticket: int) -> None:
        """One fsync of the world covers all that was ordered up to `ticket`; the stage syncs one order a step."""
        ordered = self._ordered.get(node, [])
        while self._held and any(number >= 0 and number <= ticket for number in ordered):
            ordered.pop(0)
            self._out.append(f"persist step {node}")

    def _deliver(self, sent: Sent, message: ms.Message, *, leads: bool) -> None:
        if isinstance(message, ms.Propose):
            if leads:
                self._propose(sent.to)
            return
        kind = type(message).__name__
        queue = self._queues[sent.sender, sent.to, kind]
        selector = f"{sent.sender}->{sent.to} {kind}"
        self._arrivals[id(sent)] -= 1
        if sent not in queue.waiting:
            return
        while queue.waiting[0] is not sent and not self._arrivals.get(id(queue.waiting[0])):
            self._out.append(f"drop {selector}")  # lost in the world, so it must not be taken for this one
            queue.waiting.pop(0)
        newest = queue.waiting[0] is not sent
        if self._arrivals[id(sent)] and not newest:
            self._out.append(f"duplicate {selector}")
        elif not self._arrivals[id(sent)]:
            queue.waiting.remove(sent)
        self._out.append(f"deliver {selector}" + " newest" * newest)

    def _propose(self, node: NodeId) -> None:
        self._payloads += 1
        self._out.append(f'propose {node} "{self._payloads}"')

    def _change(self, node: NodeId, changes: Sequence[raft.ConfigChange], auto_leave: bool) -> None:
        words = [f"change {node}"]
        names = {raft.ChangeKind.ADD_VOTER: "+", raft.ChangeKind.ADD_LEARNER: "+learner:",
                 raft.ChangeKind.ADD_WITNESS: "+witness:", raft.ChangeKind.REMOVE: "-"}  # fmt: skip
        for change in changes:
            name = names.get(change.kind)
            if name is None:
                words.append(f"{change.member.id}@{change.member.priority}")
                continue
            if name.startswith("+") and change.member.id not in self._up:
                self._out.append(f"join {change.member.id}")
                self._up.add(change.member.id)
            words.append(f"{name}{change.member.id}")
        if not auto_leave:
            words.append("stay")
        self._out.append(" ".join(words))
