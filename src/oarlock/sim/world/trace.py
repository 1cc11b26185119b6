"""The last events of a run as text, in the notation of the golden files."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from oarlock.node.replica import events as ev
from oarlock.raft import events as raft
from oarlock.sim import notation

if TYPE_CHECKING:
    from oarlock.sim.world.world import World


def trace_text(world: World) -> str:
    """One line for each thing that happened to a member, with what it did below; oldest first."""
    lines: list[str] = []
    for now, turn, node, events, effects in world.trace:
        head = f"{now / 1e6:12.3f}ms  #{turn:<5} {node}"
        if isinstance(events, str):
            lines.append(f"{head}  {events}")
            continue
        lines.append(f"{head}  <- " + ("; ".join(event_text(event) for event in events) or "time"))
        lines.extend(f"{'':>29}-> {effect_text(effect)}" for effect in effects)
    return "\n".join(lines)


def event_text(event: Any) -> str:
    match event:
        case raft.MessageReceived(sender, message):
            return f"{sender}: {notation.message_text(message)}"
        case raft.Persisted(ticket):
            return f"persisted {ticket}"
        case raft.TimePassed():
            return "time"
        case ev.Submit(first, commands):
            return f"submit {first} ({len(commands)} commands)"
        case ev.ReadBarrier(token):
            return f"read {token}"
        case raft.PeerConnected(peer):
            return f"connected with {peer}"
        case raft.ConfigChangeRequested(_, changes):
            steps = ", ".join(f"{change.kind.value} {change.member.id}" for change in changes)
            return f"change: {steps or 'leave joint'}"
        case raft.TransferRequested(_, target):
            return f"transfer to {target or 'anybody'}"
        case raft.SnapshotWritten(snapshot):
            return f"snapshot written [{snapshot.term}.{snapshot.index}]"
        case raft.ChunkWritten(_, snapshot, offset, complete):
            return f"chunk written [{snapshot.term}.{snapshot.index}] {'complete' if complete else offset}"
        case ev.SnapshotLoaded(snapshot):
            return f"snapshot loaded [{snapshot.term}.{snapshot.index}]"
        case ev.CheckpointWritten(checkpoint):
            return f"checkpoint written {checkpoint.index}"
        case _:
            return type(event).__name__


def effect_text(effect: Any) -> str:
    match effect:
        case raft.Send(to, message):
            return f"{to}: {notation.message_text(message)}"
        case raft.Persist():
            words = [f"persist {effect.ticket}"]
            if effect.hard_state is not None:
                state = effect.hard_state
                words.append(f"t{state.term} vote {state.vote} commit {state.commit}")
            if effect.snapshot is not None:
                words.append(f"mark [{effect.snapshot.term}.{effect.snapshot.index}]" + " reset" * effect.reset_log)
            if effect.entries:
                words.append(notation.entries_text(effect.entries))
            words += [f"then {send.to}: {notation.message_text(send.message)}" for send in effect.release]
            return "; ".join(words)
        case ev.Completed(first, results):
            return f"completed {first} ({len(results)})"
        case ev.Failed(first, count, error):
            return f"failed {first} ({count}): {type(error).__name__}"
        case ev.ReadsReady(tokens):
            return f"reads ready {tokens}"
        case ev.ReadsFailed(token, error):
            return f"read failed {token}: {type(error).__name__}"
        case ev.Reconfigured(token, failure):
            return f"reconfigured {token}: {type(failure).__name__ if failure is not None else 'done'}"
        case raft.SendSnapshot(to, _, snapshot, offset):
            return f"send snapshot [{snapshot.term}.{snapshot.index}] from {offset} to {to}"
        case raft.WriteChunk(_, snapshot, offset, data):
            return f"write chunk [{snapshot.term}.{snapshot.index}] {offset}-{offset + len(data)}"
        case ev.WriteSnapshot(snapshot):
            return f"write snapshot [{snapshot.term}.{snapshot.index}]"
        case ev.LoadSnapshot(snapshot):
            return f"load snapshot [{snapshot.term}.{snapshot.index}]"
        case ev.WriteCheckpoint(checkpoint):
            return f"write checkpoint {checkpoint.index}"
        case raft.ReleaseLog(index):
            return f"release log to {index}"
        case raft.MembersChanged(members):
            return f"members {' '.join(str(info.id) for info in members)}"
        case raft.Halt(reason):
            return f"halt: {reason}"
        case raft.ConfigRefused(_, reason):
            return f"change refused: {reason}"
        case raft.TransferDone(_, error):
            return f"transfer failed: {error}" if error else "transfer done"
        case _:
            return type(effect).__name__
