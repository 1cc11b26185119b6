"""What runs in the simulated world: a machine, what its clients ask of it, and what they must be told.

The world knows members, disks and networks; everything that depends on the state machine stands behind `Application`.
`KvApplication` is the key-value machine with its independent reference; `oarlock.testing` brings people's own machines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from oarlock.machines.base import Capture, Checkpoint, Context, Machine
from oarlock.machines.kv import commands as kv
from oarlock.machines.kv.layout import TABLES
from oarlock.machines.kv.machine import KvMachine
from oarlock.machines.memory_store import MemoryStore
from oarlock.raft.types import Index, NodeId, Term
from oarlock.sim.world.choices import Stream
from oarlock.sim.world.disks import CheckpointedStore, WorldDisk
from oarlock.sim.world.model import Model, Plain, plain_result
from oarlock.sim.world.workload import KvAsker

if TYPE_CHECKING:
    from oarlock.sim.world.world import World

NO_DIGEST: Final = b""
"""What `Application.digest` gives for a machine whose state cannot be compared between two snapshots."""


class Reference(Protocol):
    """The machine and the client sessions once more, played with the committed log. Decides what is right."""

    @property
    def repeats(self) -> int:
        """Commands of sessions that came again."""

    def skip(self, context: Context) -> None:
        """The next entry holds no commands."""

    def apply(self, commands: Sequence[bytes], context: Context) -> list[Plain]:
        """The results of the next entry's commands, envelopes included, as `Application.plain` would give them."""

    def read(self, question: Any, index: Index) -> Plain:
        """The answer to a question of a member that has applied exactly `index`, which is not in the future."""

    def digest(self) -> bytes:
        """What `Application.digest` must say of a member's machine after the same entries; `NO_DIGEST`: no opinion."""


class Asker(Protocol):
    """One client's imagination."""

    def command(self) -> bytes: ...

    def question(self) -> Any: ...


class Application(Protocol):
    """What the world must know of a state machine."""

    name: str

    def machine(self, disk: WorldDisk, path: str, durable: bool) -> Machine:
        """The machine as the disk holds it. `durable` is a wish: a machine that only snapshots keep is always right."""

    def reference(self) -> Reference: ...

    def asker(self, world: World, client: int, draw: Stream) -> Asker: ...

    def serving(self, turn: int, node: NodeId) -> bytes:
        """A command that every healthy member must take when everything is repaired."""

    def broad_question(self) -> Any:
        """A question that every member must answer when everything is repaired."""

    def everything(self) -> Any:
        """A question whose answer shows the whole state as clients see it."""

    def answer(self, machine: Any, question: Any) -> object:
        """Ask a member's machine, outside the log."""

    def plain(self, result: object) -> Plain:
        """A result, or an answer, in the form in which results are compared."""

    def digest(self, machine: Any) -> bytes:
        """Equal for machines of equal state, whatever they went through; or `NO_DIGEST`."""

    def difference(self, one: bytes, other: bytes) -> str:
        """How two states of these digests differ, for a message; empty if it is not known."""

    def validate(self, machine: Any) -> None:
        """Raises `AssertionError` for a machine whose state contradicts itself."""


class KvApplication:
    """etcd's key-value machine, on a modelled store that is durable in a third of the seeds."""

    name = "kv"

    def machine(self, disk: WorldDisk, path: str, durable: bool) -> Machine:
        return KvMachine(CheckpointedStore(disk, path, TABLES) if durable else MemoryStore(TABLES))

    def reference(self) -> Model:
        return Model()

    def asker(self, world: World, client: int, draw: Stream) -> KvAsker:
        return KvAsker(world, client, draw)

    def serving(self, turn: int, node: NodeId) -> bytes:
        return kv.encode(kv.Put(b"k%02d" % turn, b"served by %d" % node))

    def broad_question(self) -> kv.Range:
        return kv.Range(b"k", b"l")

    def everything(self) -> kv.Range:
        return kv.Range(b"\0", b"\0")

    def answer(self, machine: KvMachine, question: kv.Range) -> object:
        return machine.range(question)

    def plain(self, result: object) -> Plain:
        return plain_result(result)

    def digest(self, machine: KvMachine) -> bytes:
        return machine.hash()

    def difference(self, one: bytes, other: bytes) -> str:
        return ""

    def validate(self, machine: KvMachine) -> None:
        machine.validate()


class WorldMachine:
    """A member's machine, telling of every entry and every restore what the state is then. Otherwise as `inner`."""

    def __init__(
        self,
        inner: Machine,
        digest: Callable[[Any], bytes],
        applied: Callable[[Index, Term, bytes], None],
        restored: Callable[[Index, bytes], None],
    ) -> None:
        self.inner = inner
        self.durable = inner.durable
        self._digest = digest
        self._applied = applied
        self._restored = restored
        self.annex_get = inner.annex_get
        self.annex_put = inner.annex_put
        self.annex_delete = inner.annex_delete
        self.annex_items = inner.annex_items
        for name in ("encode_result", "decode_result"):  # sessions look whether a machine has them
            if hasattr(inner, name):
                setattr(self, name, getattr(inner, name))

    @property
    def applied_index(self) -> int:
        return self.inner.applied_index

    def apply(self, context: Context, commands: Sequence[bytes]) -> list[object]:
        results = self.inner.apply(context, commands)
        self._applied(context.index, context.term, self._digest(self.inner))
        return results

    def capture(self) -> Capture:
        return self.inner.capture()

    def restore(self, index: int, chunks: Iterable[bytes]) -> None:
        self.inner.restore(index, chunks)
        self._restored(index, self._digest(self.inner))

    def dirty_bytes(self) -> int:
        return self.inner.dirty_bytes()

    def checkpoint(self) -> Checkpoint:
        return self.inner.checkpoint()

    def checkpointed(self, checkpoint: Checkpoint) -> None:
        self.inner.checkpointed(checkpoint)

    def close(self) -> None:
        self.inner.close()
