"""What goes into a `Member` and comes out of it, beyond the core's own events and effects (`oarlock.raft.events`)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from oarlock.errors import RaftError
from oarlock.machines.base import Capture, Checkpoint
from oarlock.node.replica.reconfigure import MemberChange
from oarlock.raft.events import (
    ChunkWritten,
    ConfigChanged,
    ConfigChangeRequested,
    ConfigRefused,
    DiskHealth,
    Halt,
    MembersChanged,
    MessageReceived,
    PeerConnected,
    PeerDown,
    Persist,
    Persisted,
    ReleaseLog,
    Send,
    SendSnapshot,
    SnapshotLost,
    SnapshotWritten,
    TimePassed,
    TransferDone,
    TransferRequested,
    WriteChunk,
)
from oarlock.raft.types import SnapshotMeta

# ---------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Submit:
    """Replicate `commands`, which the driver numbers `first`, `first + 1`, ...; numbers only ever grow, below 2**62.

    Each gets exactly one answer, in `Completed` or `Failed`.
    """

    first: int
    commands: Sequence[bytes]


@dataclass(frozen=True, slots=True)
class ReadBarrier:
    """Say when reading the machine is linearizable with respect to this moment: `ReadsReady` or `ReadsFailed`.
    One token may stand for any number of reads; tokens only ever grow. `confirmed`: not by the leader's lease, where
    leases are used."""

    token: int
    confirmed: bool = False


@dataclass(frozen=True, slots=True)
class LeasesAsked:
    """Renew the leases `renew`, and say how long those in `query` have: `LeasesAnswered` or `LeasesFailed`. Tokens are
    this event's own and only ever grow; at most `leases.ASK_MAX` leases at once."""

    token: int
    renew: Sequence[int]
    query: Sequence[int]


@dataclass(frozen=True, slots=True)
class Reconfigure:
    """Somebody wants `change` of the membership; any member may be asked. Exactly one `Reconfigured` answers."""

    token: int
    change: MemberChange


@dataclass(frozen=True, slots=True)
class CaptureAsked:
    """Give a capture of the machine that shows at least what is applied now: `Captured` or `CaptureFailed`. Of a
    durable machine it may take until a checkpoint is written. Tokens are this event's own and only ever grow."""

    token: int


@dataclass(frozen=True, slots=True)
class CheckpointWritten:
    """The `write` of the checkpoint in `WriteCheckpoint` has returned."""

    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class SnapshotFailed:
    """`WriteSnapshot` could not be done for want of space; nothing is lost. It will be asked for again later."""


@dataclass(frozen=True, slots=True)
class SnapshotLoaded:
    """The bytes that `LoadSnapshot` asked for. They are read while `handle` runs."""

    snapshot: SnapshotMeta
    chunks: Iterable[bytes]


MemberEvent: TypeAlias = (
    Submit
    | ReadBarrier
    | LeasesAsked
    | Reconfigure
    | CaptureAsked
    | MessageReceived
    | Persisted
    | TimePassed
    | ConfigChangeRequested
    | TransferRequested
    | PeerConnected
    | PeerDown
    | SnapshotLost
    | SnapshotWritten
    | CheckpointWritten
    | SnapshotFailed
    | SnapshotLoaded
    | ChunkWritten
    | DiskHealth
)

# ---------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class Completed:
    """The commands numbered from `first` on were executed; these are the machine's results, in order."""

    first: int
    results: list[object]


@dataclass(frozen=True, slots=True)
class Failed:
    """The `count` commands numbered from `first` on failed alike; `error.outcome` says whether they may have run."""

    first: int
    count: int
    error: RaftError


@dataclass(frozen=True, slots=True)
class ReadsReady:
    """The machine may be read now for these tokens. It may be read until the end of this turn, and later too."""

    tokens: list[int]


@dataclass(frozen=True, slots=True)
class ReadsFailed:
    """Nothing was read."""

    token: int
    error: RaftError


@dataclass(frozen=True, slots=True)
class LeasesAnswered:
    """`renewed`: the TTL in s of each lease that was to be renewed, 0 if it is unknown or over. `remaining`: what is
    left of the TTL in s of each that was asked about, -1 if it is unknown or over."""

    token: int
    renewed: Sequence[int]
    remaining: Sequence[int]


@dataclass(frozen=True, slots=True)
class LeasesFailed:
    """No answer could be had. With the outcome UNKNOWN some may have been renewed."""

    token: int
    error: RaftError


@dataclass(frozen=True, slots=True)
class Reconfigured:
    """The change asked for under `token` is in force (no error), was refused (`Rejected`), or `error.outcome` says
    whether it may have taken place."""

    token: int
    error: RaftError | None


@dataclass(frozen=True, slots=True)
class Captured:
    """Whoever asked closes the capture, which shows the state after the entry at its index, of this term."""

    token: int
    capture: Capture
    term: int


@dataclass(frozen=True, slots=True)
class CaptureFailed:
    token: int
    error: RaftError


@dataclass(frozen=True, slots=True)
class WriteSnapshot:
    """Write `capture` to a file under the identity `snapshot` in the background and close it. Then give back
    `SnapshotWritten` with size and digest filled in, or `SnapshotFailed`."""

    snapshot: SnapshotMeta
    capture: Capture


@dataclass(frozen=True, slots=True)
class WriteCheckpoint:
    """Call `checkpoint.write()` in the background, and again later if there was no room; then `CheckpointWritten`."""

    checkpoint: Checkpoint


@dataclass(frozen=True, slots=True)
class LoadSnapshot:
    """Open the file of `snapshot`; give back `SnapshotLoaded`."""

    snapshot: SnapshotMeta


MemberEffect: TypeAlias = (
    Completed
    | Failed
    | ReadsReady
    | ReadsFailed
    | LeasesAnswered
    | LeasesFailed
    | Reconfigured
    | Captured
    | CaptureFailed
    | WriteSnapshot
    | WriteCheckpoint
    | LoadSnapshot
    | Send
    | Persist
    | SendSnapshot
    | WriteChunk
    | ReleaseLog
    | MembersChanged
    | ConfigChanged
    | ConfigRefused
    | TransferDone
    | Halt
)
