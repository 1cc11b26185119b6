"""Clients of the simulated group: all commands through any member, linearizable reads, sessions and retries."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from oarlock.errors import Outcome, RaftError
from oarlock.machines.kv import commands as kv
from oarlock.node.replica.sessions import close_session, in_session, open_session, plain
from oarlock.raft.types import Index
from oarlock.sim.world.choices import Stream
from oarlock.sim.world.model import Plain
from oarlock.sim.world.swarm import WATCHES

if TYPE_CHECKING:
    from oarlock.sim.world.process import Process
    from oarlock.sim.world.world import World

BATCH_MAX: Final = 4
BIG_BYTES: Final = 600


class Op:
    """One request of one client, at one member: some commands, or a read."""

    __slots__ = ("asked_at", "client", "floor", "left", "question")

    def __init__(self, client: Client, floor: Index, left: int, question: Any = None) -> None:
        self.client = client
        self.floor = floor  # what answers had rested on before it began
        self.asked_at = client.world.oracle.commit_max
        self.left = left
        self.question = question

    def answered(self, process: Process, number: int, result: Plain) -> None:
        self.left -= 1
        self.client.learned(result)
        if not self.left:
            self.client.done(self)

    def failed(self, process: Process, number: int, error: RaftError) -> None:
        self.left -= 1
        if not self.left:
            self.client.failed(self, error.outcome)

    def lost(self, process: Process) -> None:
        """The member it was asked of died."""
        if self.left:
            self.left = 0
            self.client.failed(self, Outcome.UNKNOWN)

    def read(self, process: Process) -> None:
        self.left = 0
        machine = process.machine
        if machine is None:
            raise AssertionError("a witness answered a read")
        world = process.world
        result = world.application.answer(machine.inner, self.question)
        world.oracle.read(
            process.id, self.floor, max(self.asked_at, self.floor), machine.applied_index, self.question, result
        )
        self.client.done(self)


class Client:
    """Asks, waits for the answer (or does not), thinks, asks again."""

    def __init__(self, world: World, name: int) -> None:
        self.world = world
        self.name = name
        self._draw = world.choices.stream(f"client/{name}")
        self._home = 0
        self._session = 0
        self._nonce = 0
        self._sequence = 0
        self._retry: bytes = b""  # a command of the session that has no answer yet
        self._waiting: Op | None = None
        self._asker = world.application.asker(world, name, self._draw)
        self.stopped = False
        self._think()

    def _think(self) -> None:
        world = self.world
        pause = world.swarm.think * (1 + self._draw.draw(64)) // 32
        world.later(max(1, pause), self._next)

    def _next(self) -> None:
        if self.stopped:
            return
        draw = self._draw
        if self._waiting is not None and not ("abandon" in self.world.swarm.classes and draw.draw(4) == 3):
            self._think()
            return
        self._waiting = None
        kind = draw.draw(32)
        if kind:  # 0: nothing this time
            process = self._choose(draw.draw(8))
            if process is not None:
                self._ask(process, kind)
        self._think()

    def _choose(self, roll: int) -> Process | None:
        """Mostly the member it knows, now and then another one."""
        up = [p for p in self.world.up() if not p.witness]
        if not up:
            return None
        if roll >= 6 or not any(p.id == self._home for p in up):
            self._home = up[self._draw.draw(len(up))].id
        return next(p for p in up if p.id == self._home)

    def _ask(self, process: Process, kind: int) -> None:
        world = self.world
        floor = world.oracle.acknowledged
        if kind >= 24:
            op = Op(self, floor, 1, self._asker.question())
            self._waiting = op
            process.barrier(op)
        elif kind >= 20 and "retry" in world.swarm.classes:
            self._in_session(process, floor)
        else:
            count = 1 + (self._draw.draw(BATCH_MAX) if kind >= 16 else 0)
            op = Op(self, floor, count)
            self._waiting = op
            process.submit(op, [plain(self._asker.command()) for _ in range(count)])

    def ask_one(self, what: tuple[Process | None, bool]) -> None:
        """One more read or command at this very member (None: at whoever leads), whatever else it waits for."""
        process, read = what
        if process is None:
            process = self.world.leader()
        if process is None or not process.up or process.witness or self.stopped:
            return
        floor = self.world.oracle.acknowledged
        if read:
            process.barrier(Op(self, floor, 1, self._asker.question()))
        else:
            process.submit(Op(self, floor, 1), [plain(self._asker.command())])

    def _in_session(self, process: Process, floor: Index) -> None:
        if not self._session:
            if not self._nonce:
                self._nonce = 1 + self._draw.draw(2**40)
            command = open_session(self._nonce)
        else:
            if not self._retry and self._draw.draw(16) == 15:
                self._retry = close_session(self._session)  # and goes on using it: it must be told
            elif not self._retry:
                self._sequence += 1
                self._retry = in_session(self._session, self._sequence, self._sequence, self._asker.command())
            command = self._retry
        op = Op(self, floor, 1)
        self._waiting = op
        process.submit(op, [command])
        if self._draw.draw(4) == 3:  # the same, at another member at the same time
            others = [p for p in self.world.up() if p is not process and not p.witness]
            if others:
                others[self._draw.draw(len(others))].submit(Op(self, floor, 1), [command])

    def learned(self, result: Plain) -> None:
        if isinstance(result, tuple) and result[0] == "session":
            self._session = result[1]
        elif result == ("rejected", "session_expired"):
            self._session = self._nonce = self._sequence = 0
            self._retry = b""

    def done(self, op: Op) -> None:
        if op is self._waiting:
            self._waiting = None
            self._retry = b""

    def failed(self, op: Op, outcome: Outcome) -> None:
        if op is self._waiting:
            self._waiting = None  # a command of a session stays in `_retry` and comes again


class Persistent(Client):
    """Waits for a write, then a read, at every member; asks again for what was refused (a queue may be full)."""

    def __init__(self, client: Client) -> None:
        self.world = client.world
        self.left = 0
        self._asked: dict[Op, tuple[Process, bytes]] = {}
        self._once: dict[Op, tuple[Process, bytes]] = {}
        self.done_once = 0

    def wait_once(self, what: tuple[Process, bytes]) -> None:
        """A write alone; `done_once` counts those that were answered."""
        process, command = what
        if process.halted:  # removed meanwhile: nobody there will answer
            self.done_once += 1
            return
        op = Op(self, self.world.oracle.acknowledged, 1)
        self._once[op] = what
        process.submit(op, [command])

    def wait_for(self, process: Process, command: bytes) -> None:
        self.left += 1
        self._ask_again((process, command))

    def _ask_again(self, what: tuple[Process, bytes]) -> None:
        process, command = what
        if process.halted:
            self.left -= 1
            return
        floor = self.world.oracle.acknowledged
        op = Op(self, floor, 1, None if command else self.world.application.broad_question())
        self._asked[op] = what
        if command:
            process.submit(op, [command])
        else:
            process.barrier(op)

    def learned(self, result: object) -> None:
        pass

    def done(self, op: Op) -> None:
        if self._once.pop(op, None) is not None:
            self.done_once += 1
            return
        process, command = self._asked.pop(op)
        if command:
            self._ask_again((process, b""))
        else:
            self.left -= 1

    def failed(self, op: Op, outcome: object) -> None:
        once = self._once.pop(op, None)
        if once is not None:
            self.world.later(self.world.swarm.timeout // 4, self.wait_once, once)
            return
        self.world.later(self.world.swarm.timeout // 4, self._ask_again, self._asked.pop(op))


class KvAsker:
    """Commands and reads of the key-value machine: everything it knows, on few keys."""

    def __init__(self, world: World, name: int, draw: Stream) -> None:
        self.world = world
        self.name = name
        self._draw = draw
        self._values = 0

    def question(self) -> kv.Range:
        return self._range()

    def _key(self) -> bytes:
        return b"k%02d" % self._draw.draw(self.world.swarm.keys)

    def _value(self) -> bytes:
        self._values += 1
        value = b"%d.%d" % (self.name, self._values)
        if "big" in self.world.swarm.classes and self._draw.draw(4) == 3:
            value = value.ljust(BIG_BYTES, b".")
        return value

    def _range(self) -> kv.Range:
        roll = self._draw.draw(8)
        if roll < 4:
            return kv.Range(self._key())
        if roll < 6:
            return kv.Range(self._key(), b"k99", limit=self._draw.draw(4))
        return kv.Range(b"k", b"\0", count_only=roll == 6, keys_only=roll == 7)

    def _op(self) -> kv.Put | kv.DeleteRange | kv.Range:
        roll = self._draw.draw(8)
        if roll < 5:
            return kv.Put(self._key(), self._value(), prev_kv=roll == 4)
        if roll == 5:
            return kv.DeleteRange(self._key(), prev_kv=True)
        if roll == 6:
            return kv.DeleteRange(self._key(), b"k99")
        return self._range()

    def command(self) -> bytes:
        roll = self._draw.draw(16)
        if roll < 10:
            return kv.encode(self._op())
        if roll < 14:
            return kv.encode(self._txn(0))
        revision = self.world.oracle.model.revision
        if roll == 14:
            at = max(1, revision - self._draw.draw(8))
            return kv.encode(kv.Range(self._key(), b"k99", revision=at))
        back = self._draw.draw(12)
        if WATCHES in self.world.swarm.features:  # rather where something was deleted
            model = self.world.oracle.model
            back = next((n for n in range(1, 12 - back) if model.deleted_at(revision + 1 - n)), back)
        return kv.encode(kv.Compact(max(0, revision + 1 - back)))

    def _txn(self, depth: int) -> kv.Txn:
        draw = self._draw
        key = self._key()
        operand: int | bytes = draw.draw(4)
        target = draw.draw(4)
        if target == kv.CompareTarget.VALUE:
            operand = b"%d.%d" % (self.name, max(0, self._values - draw.draw(3)))
        compare = [kv.Compare(target, draw.draw(4), key, operand)]
        success: list[kv.Put | kv.DeleteRange | kv.Range | kv.Txn] = [kv.Put(key, self._value(), prev_kv=True)]
        success += [self._op() for _ in range(draw.draw(3))]
        if draw.draw(4) == 3:  # a read of the past, which may be compacted: then nothing at all is executed
            at = max(1, self.world.oracle.model.revision - draw.draw(8))
            success.append(kv.Range(self._key(), b"k99", revision=at))
        failure: list[kv.Put | kv.DeleteRange | kv.Range | kv.Txn] = [kv.Range(key)]
        if depth < 2 and draw.draw(4) == 3:
            failure.append(self._txn(depth + 1))
        return kv.Txn(compare, success, failure)
