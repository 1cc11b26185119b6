"""A user's machine in the simulated world: `sim.world.application.Application`, made of a `Workload`."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Final

import msgspec

from oarlock.errors import ConfigurationError, Rejected
from oarlock.machines.base import Capture, Checkpoint, Context
from oarlock.machines.volatile import VolatileMachine
from oarlock.node.replica.sessions import SessionClosed, SessionOpened
from oarlock.raft.types import Index, NodeId
from oarlock.sim.invariants import Violation
from oarlock.sim.world.application import NO_DIGEST
from oarlock.sim.world.choices import Stream
from oarlock.sim.world.disks import WorldDisk
from oarlock.sim.world.session_model import ESCAPED, FIRST_PLAIN, PUBLISH, SESSION, SessionModel, Submission
from oarlock.testing.guard import SECONDS_MAX, Guard
from oarlock.testing.workload import Choose, Workload, commands_text

if TYPE_CHECKING:
    from oarlock.sim.world.world import World

STATES_KEPT: Final = 512  # dumps by digest, to show how two states differ
COPY_EVERY: Final = 8  # entries between two copies of the reference machine through dump and load
SHOWN_MAX: Final = 160  # characters of a state in a message

_encode, _decode = msgspec.msgpack.encode, msgspec.msgpack.decode


class MachineApplication:
    """One run's worth of it: not shared between runs."""

    def __init__(self, workload: Workload, seconds_max: float = SECONDS_MAX) -> None:
        self.workload = workload
        self.name = type(workload).__name__
        self.guard = Guard(seconds_max)
        self.states: OrderedDict[bytes, tuple[bytes, ...]] = OrderedDict()
        self.entries: list[tuple[Context, list[bytes]]] = []  # the committed log, as the machine gets it
        self._reference: MachineReference | None = None
        self.results: list[list[object]] = []  # what the reference machine answers, entry by entry

    def machine(self, disk: WorldDisk, path: str, durable: bool) -> GuardedMachine:
        return GuardedMachine(self)

    def reference(self) -> MachineReference:
        self._reference = MachineReference(self)
        return self._reference

    def asker(self, world: World, client: int, draw: Stream) -> WorkloadAsker:
        return WorkloadAsker(self, Choose(draw, client))

    def serving(self, turn: int, node: NodeId) -> bytes:
        return WorkloadAsker(self, Choose(Stream(turn, f"serve/{node}", None), 0)).command()

    def broad_question(self) -> Any:
        return WorkloadAsker(self, Choose(_Zeros(), 0)).question()

    def everything(self) -> Any:
        return self.broad_question()

    def answer(self, machine: GuardedMachine, question: Any) -> object:
        return machine.read(question)

    def plain(self, result: object) -> Any:
        match result:
            case SessionOpened():
                return ("session", result.session)
            case SessionClosed():
                return ("closed",)
            case Rejected():
                return ("rejected", result.reason)
        result = self.workload.plain(result)
        try:
            return _decode(_encode(result), strict=False)
        except (TypeError, msgspec.MsgspecError):
            return result

    def digest(self, machine: GuardedMachine) -> bytes:
        pieces = machine.state()
        if pieces is None:
            return NO_DIGEST
        hasher = blake2b(digest_size=16)
        for piece in pieces:
            hasher.update(len(piece).to_bytes(8, "big") + piece)
        digest = hasher.digest()
        self.states[digest] = pieces
        if len(self.states) > STATES_KEPT:
            self.states.popitem(last=False)
        return digest

    def difference(self, one: bytes, other: bytes) -> str:
        """How two states differ, where they are remembered."""
        first, second = self.states.get(one), self.states.get(other)
        if first is None or second is None:
            return ""
        for a, b in zip(first, second, strict=False):
            if a != b:
                return f": {_shortened(a)} and {_shortened(b)}"
        return f": {len(first)} and {len(second)} pieces in their dumps"

    def forgotten(self) -> list[str]:
        """What the machine at the end of the log holds, and a copy made through dump and load does not."""
        if self._reference is None:
            return []
        try:
            return self._reference.forgotten()
        except Violation:
            return []  # a machine that cannot be copied has said so already

    def log_text(self, last: int) -> str:
        """The last committed commands and what they are to be answered, a line each."""
        lines: list[str] = []
        for at, (context, commands) in enumerate(self.entries):
            results = self.results[at] if at < len(self.results) else []
            for place, command in enumerate(commands):
                answer = f"-> {_shortened(results[place])}" if place < len(results) else "-> ?"
                lines.append(f"{context.term}.{context.index}  {_shortened(command)} {answer}")
        return "\n".join(lines[-last:])

    def validate(self, machine: GuardedMachine) -> None:
        self.guard.run("check", self.workload.check, machine.inner)


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_MAX else text[:SHOWN_MAX] + "..."


class _Zeros(Stream):
    """Takes the first possibility of every choice."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(0, "zeros", None)

    def draw(self, n: int) -> int:
        return 0


class WorkloadAsker:
    """One client: asks the workload."""

    def __init__(self, application: MachineApplication, choose: Choose) -> None:
        self._application = application
        self._choose = choose

    def command(self) -> bytes:
        command = self._application.workload.command(self._choose)
        if not isinstance(command, bytes):
            raise ConfigurationError(
                f"{self._application.name}.command gave {command!r}: commands are bytes (encode the text)"
            )
        return command

    def question(self) -> Any:
        return self._application.workload.query(self._choose)


class GuardedMachine:
    """A user's machine, watched. What it does wrong comes out as a `Violation`."""

    durable = False

    def __init__(self, application: MachineApplication) -> None:
        self._application = application
        self._guard = application.guard
        self.inner: Any = self._guard.run("making the machine", application.workload.machine)
        if getattr(self.inner, "durable", None) is not False:
            raise ConfigurationError(
                f"{application.name}.machine gave {self.inner!r}: it must be a machine that is not durable "
                "(a subclass of oarlock.machines.volatile.VolatileMachine, or `durable = False`)"
            )
        self._commands: Sequence[bytes] = ()
        self._current: bytes | None = None
        if isinstance(self.inner, VolatileMachine):
            self._watch_commands()
        self.annex_get: Callable[[bytes], bytes | None] = self.inner.annex_get
        self.annex_put: Callable[[bytes, bytes], None] = self.inner.annex_put
        self.annex_delete: Callable[[bytes], None] = self.inner.annex_delete
        self.annex_items: Callable[[], list[tuple[bytes, bytes]]] = self.inner.annex_items
        for name in ("encode_result", "decode_result"):
            if hasattr(self.inner, name):
                setattr(self, name, getattr(self.inner, name))

    def _watch_commands(self) -> None:
        """Know which command of an entry is at work."""
        command_of = self.inner.command

        def command(context: Context, command: bytes) -> object:
            self._current = command
            return command_of(context, command)

        self.inner.command = command

    def _doing(self) -> str:
        return repr(self._current) if self._current is not None else commands_text(self._commands)

    @property
    def applied_index(self) -> int:
        return int(self.inner.applied_index)

    def apply(self, context: Context, commands: Sequence[bytes]) -> list[object]:
        self._commands, self._current = commands, None
        self._guard.doing = self._doing
        try:
            results = self._guard.run("apply", self.inner.apply, context, commands)
        finally:
            self._guard.doing = lambda: ""
        if not isinstance(results, list) or len(results) != len(commands):
            raise Violation(
                "RAISES", f"apply gave {results!r} for {len(commands)} commands: a list with one result each"
            )
        return results

    def read(self, question: Any) -> object:
        before = self.state()
        answer = self._guard.run("read", self._application.workload.read, self.inner, question)
        if before is not None and self.state() != before:
            raise Violation("IMPURE", "read changed the machine: only commands may, or members differ")
        return answer

    def state(self) -> tuple[bytes, ...] | None:
        """The dump of a `VolatileMachine`; None for other machines, whose captures are compared instead."""
        if not isinstance(self.inner, VolatileMachine):
            return None
        return self._guard.run("dump", lambda: tuple(bytes(piece) for piece in self.inner.dump()))

    def capture(self) -> Capture:
        return self._guard.run("capture", self.inner.capture)  # type: ignore[no-any-return]

    def restore(self, index: int, chunks: Iterable[bytes]) -> None:
        pieces = list(chunks)
        self._guard.run("load", self.inner.restore, index, pieces)

    def dirty_bytes(self) -> int:
        raise RuntimeError("a machine that is not durable has no checkpoints")

    def checkpoint(self) -> Checkpoint:
        raise RuntimeError("a machine that is not durable has no checkpoints")

    def checkpointed(self, checkpoint: Checkpoint) -> None:
        raise RuntimeError("a machine that is not durable has no checkpoints")

    def close(self) -> None:
        self.inner.close()


class MachineReference:
    """A second copy of the machine that applies the committed log and is never restored; beside it the user's model."""

    def __init__(self, application: MachineApplication) -> None:
        self._application = application
        self._workload = application.workload
        self._machine = GuardedMachine(application)
        self._model = application.workload.model() if application.workload.model is not None else None
        self._behind: GuardedMachine | None = None  # a copy for reads of a state that is past
        self._behind_at = 0
        self._sessions = SessionModel()

    @property
    def repeats(self) -> int:
        """Commands of sessions that came again."""
        return self._sessions.repeats

    # -- entries

    def skip(self, context: Context) -> None:
        self._execute(context, [])

    def apply(self, commands: Sequence[bytes], context: Context) -> list[Any]:
        sessions = self._sessions
        inner: list[bytes] = []
        places: list[tuple[int, int]] = []
        results: list[Any] = [None] * len(commands)
        fresh: dict[tuple[int, int], int] = {}
        for place, data in enumerate(commands):
            kind = data[0] if data else FIRST_PLAIN
            if kind == PUBLISH:
                continue
            if kind != SESSION:
                places.append((place, len(inner)))
                inner.append(data[1:] if kind == ESCAPED else data)
                continue
            found = sessions.take(context.index << 20 | place, data)
            if not isinstance(found, Submission):
                results[place] = found
                continue
            if found.key in sessions.replies:
                sessions.repeats += 1
                results[place] = sessions.replies[found.key]
                continue
            if found.key in fresh:
                sessions.repeats += 1
            else:
                fresh[found.key] = len(inner)
                inner.append(found.command)
            places.append((place, fresh[found.key]))
        answers = [self._application.plain(answer) for answer in self._execute(context, inner)]
        for place, at in places:
            results[place] = answers[at]
        for key, at in fresh.items():
            sessions.replies[key] = answers[at]
        return results

    def _execute(self, context: Context, commands: list[bytes]) -> list[object]:
        application, workload = self._application, self._workload
        application.entries.append((context, commands))
        results = self._machine.apply(context, commands)
        application.results.append(results)
        if self._model is not None:
            for command, result in zip(commands, results, strict=True):
                expected = application.plain(self._model.command(context, command))
                actual = application.plain(result)
                if actual != expected:
                    raise Violation("MODEL", f"{command!r} was answered with {actual!r}; the model says {expected!r}")
        application.guard.doing = lambda: commands_text(commands)
        try:
            application.guard.run("check", workload.check, self._machine.inner)
        finally:
            application.guard.doing = lambda: ""
        if context.index % COPY_EVERY == 0:
            self._copy(context.index)
        return results

    def _copy(self, index: Index) -> None:
        """Through dump and load, the state must come out as it went in."""
        application = self._application
        chunks = list(self._machine.capture().chunks())
        copy = GuardedMachine(application)
        copy.restore(index, chunks)
        before = application.digest(self._machine)
        after = application.digest(copy)
        if before == NO_DIGEST and b"".join(copy.capture().chunks()) != b"".join(chunks):
            raise Violation("RESTORE", f"at {index} a machine that restored a capture gives another capture")
        if after != before:
            raise Violation(
                "RESTORE",
                f"at {index} a machine that loaded a dump dumps another state{application.difference(before, after)}",
            )

    # -- looking

    def forgotten(self) -> list[str]:
        machine = self._machine
        copy = GuardedMachine(self._application)
        copy.restore(machine.applied_index, machine.capture().chunks())
        before, after = getattr(machine.inner, "__dict__", {}), getattr(copy.inner, "__dict__", {})
        return [
            f"`{name}` is {_shortened(before[name])}, and {_shortened(after.get(name))} after dump and load"
            for name in sorted(before)
            if not name.startswith("_") and not callable(before[name]) and before[name] != after.get(name)
        ]

    def digest(self) -> bytes:
        return self._application.digest(self._machine)

    def read(self, question: Any, index: Index) -> Any:
        if index == self._machine.applied_index:
            machine = self._machine
        else:
            machine = self._past(index)
        answer = self._application.plain(machine.read(question))
        reading = getattr(self._model, "read", None)
        if reading is not None and machine is self._machine:
            expected = self._application.plain(reading(question))
            if answer != expected:
                raise Violation(
                    "MODEL", f"the query {question!r} was answered with {answer!r}; the model says {expected!r}"
                )
        return answer

    def _past(self, index: Index) -> GuardedMachine:
        """The machine as it was at an earlier index."""
        if self._behind is None or self._behind.applied_index > index:
            self._behind, self._behind_at = GuardedMachine(self._application), 0
        while self._behind.applied_index < index:
            context, commands = self._application.entries[self._behind_at]
            self._behind_at += 1
            self._behind.apply(context, commands)
        return self._behind
