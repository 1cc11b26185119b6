"""A command that raises leaves nothing changed; what it costs is copied before, and only what it may change."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from datetime import date
from enum import Enum
from typing import Any, ClassVar, NamedTuple

import msgspec
import pytest

from oarlock.embed.collections import ReplicatedDict, ReplicatedPriorityQueue
from oarlock.machines.base import Context
from oarlock.machines.objects.atomic import ELEMENTS_MANY, Image, reached
from oarlock.machines.objects.declare import Command, Query, command, query
from oarlock.machines.objects.machine import HalfMadeChange, ObjectMachine, StateMachine


class Refused(Exception):
    pass


@dataclass
class Account:
    balance: int = 0
    history: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Money:
    pence: int


class Box(msgspec.Struct):
    inside: list[int]


class Pair(NamedTuple):
    left: int
    right: list[int]


class Colour(Enum):
    RED = 1


def helper(bank: Bank) -> None:
    bank.notes.append("from outside")


class Bank(StateMachine):
    def __init__(self) -> None:
        self.accounts = {"a": Account(10), "b": Account(0)}
        self.notes: list[str] = []
        self.seen: set[int] = set()
        self.total = 10
        self.big = list(range(50))
        self.rates: ReplicatedDict[str, int] = ReplicatedDict()

    def _log(self, text: str) -> None:
        self.notes.append(text)

    @property
    def first(self) -> Account:
        return self.accounts["a"]

    @command
    def move(self, amount: int, *, then: bool = True) -> int:
        self.accounts["a"].balance -= amount
        self.accounts["a"].history.append(-amount)
        self.accounts["c"] = Account(amount)
        self.seen.add(amount)
        self.total += 1
        self.fresh = "an attribute of its own"
        self._log("moved")
        if then:
            raise Refused(amount)
        return self.total

    @command
    def elsewhere(self) -> None:
        helper(self)
        self.first.balance = -1
        self.rates.set.inline("x", 1)
        del self.total
        raise Refused(0)

    @command
    def of_a_part(self) -> None:
        self.rates.set.inline("x", 1)
        self.rates.increment.inline("x")
        raise Refused(0)

    @command
    def unencodable(self) -> Any:
        self.total = 0
        return object()

    @command
    def by_another(self) -> int:
        self.notes.append("begun")
        return self.move.inline(1)

    @command(atomic=False)
    def careless(self, look_first: bool = False) -> None:
        if look_first:
            raise Refused(0)
        self.total = 0
        raise Refused(0)

    @query
    def get(self) -> int:
        return self.total


class Own(StateMachine):
    """It makes its snapshots by itself."""

    def __init__(self) -> None:
        self.things = [object()]
        self.n = 0

    def snapshot(self) -> bytes:
        return b"%d" % self.n

    def restore(self, data: bytes) -> None:
        self.n = int(data)

    @command
    def add(self, n: int) -> None:
        self.n += n
        raise Refused(n)


class Careless(StateMachine):
    atomic_commands: ClassVar[bool] = False

    def __init__(self) -> None:
        self.n = 0

    @command
    def add(self) -> None:
        self.n += 1
        raise Refused(0)


class Careful(Careless):
    """It says nothing anew: its own commands are atomic, the one of its base is not."""

    @command
    def add_twice(self) -> None:
        self.n += 2
        raise Refused(0)

    @command(atomic=True)
    def add_thrice(self) -> None:
        self.n += 3
        raise Refused(0)


class Run:
    def __init__(self, root: object, *, check: bool = False) -> None:
        self.machine = ObjectMachine(root, check=check)
        self.index = 0

    def call(self, method: Command[Any, ..., Any], *args: Any, path: str = "", **kwargs: Any) -> Any:
        self.index += 1
        data = self.machine.encode_call(path, method, args, kwargs)
        [result] = self.machine.apply(Context(self.index, 1, self.index), [data])
        assert isinstance(result, bytes)
        return self.machine.decode_outcome(result)


def state(machine: ObjectMachine) -> list[bytes]:
    return list(machine.dump())


@pytest.mark.parametrize("check", [False, True])
def test_nothing_is_left_of_a_command_that_raised(check: bool) -> None:
    bank = Bank()
    run = Run(bank, check=check)
    before = state(run.machine)
    for method, args in ((Bank.move, (3,)), (Bank.elsewhere, ()), (Bank.of_a_part, ()), (Bank.by_another, ())):
        with pytest.raises(Refused):
            run.call(method, *args)
        assert state(run.machine) == before, method.name
        assert not hasattr(bank, "fresh")
    with pytest.raises(TypeError, match="result of unencodable"):
        run.call(Bank.unencodable)
    assert state(run.machine) == before
    assert run.call(Bank.move, 3, then=False) == 11
    assert bank.accounts["a"] == Account(7, [-3]) and bank.fresh and bank.rates.data == {}


def test_a_class_with_its_own_snapshot_is_put_back_by_that() -> None:
    own = Own()
    run = Run(own)
    with pytest.raises(Refused):
        run.call(Own.add, 5)
    assert own.n == 0


def test_commands_can_be_declared_to_look_first() -> None:
    bank = Bank()
    with pytest.raises(Refused):
        Run(bank).call(Bank.careless)
    assert bank.total == 0
    careful = Careful()
    run = Run(careful)
    for method, after in ((Careful.add, 1), (Careful.add_twice, 1), (Careful.add_thrice, 1)):
        with pytest.raises(Refused):
            run.call(method)
        assert careful.n == after


def test_in_development_a_false_declaration_is_found() -> None:
    run = Run(Bank(), check=True)
    with pytest.raises(Refused):
        run.call(Bank.careless, True)
    with pytest.raises(HalfMadeChange, match=r"careless\(\) raised Refused after it had changed something"):
        run.call(Bank.careless)


def test_only_what_a_command_may_change_is_copied() -> None:
    def of(name: str) -> frozenset[str] | None:
        inner = lambda each: each.function if isinstance(each, Command | Query) else None  # noqa: E731
        return reached(Bank, vars(Bank)[name].function, inner)

    assert of("move") == {"accounts", "seen", "total", "notes", "fresh"}
    assert of("of_a_part") == {"rates"}
    assert of("by_another") == {"accounts", "seen", "total", "notes", "fresh"}
    assert of("elsewhere") is None, "self goes to a function"


class Ways(StateMachine):
    """Ways in which `self` leaves a method's sight."""

    value = 1

    def closure(self) -> Any:
        return lambda: self.value

    def alias(self) -> None:
        me = self
        me.value = 2

    def returned(self) -> Any:
        return self

    def dynamic(self) -> None:
        setattr(self, "val" + "ue", 3)

    def parent(self) -> None:
        super().note_change()

    def rebound(self, other: Any) -> None:
        self = other
        self.value = 2

    def with_context(self) -> int:
        self.note_change()
        return self.context.token + self.value


def test_where_self_leaves_sight_everything_is_copied() -> None:
    for name in ("closure", "alias", "returned", "dynamic", "parent", "rebound"):
        assert reached(Ways, vars(Ways)[name], lambda each: None) is None, name
    assert reached(Ways, Ways.with_context, lambda each: None) == {"value"}


def test_copies_are_equal_and_share_nothing_that_can_change() -> None:
    values: list[Any] = [
        None, 1, "x", b"y", date(2026, 1, 2), Colour.RED, Money(3), (1, "a"), frozenset({1}),
        [1, [2]], {"a": {"b": [1]}}, {1, 2}, {(1, 2)}, deque([1, [2]], 5), Counter("aab"), OrderedDict(a=[1]),
        defaultdict(list, a=[1]), bytearray(b"z"), Account(1, [2]), Box([1]), Pair(1, [2]), ({"a": 1},), [Money(1)],
    ]  # fmt: skip
    for value in values:
        copied = Image().of(value)
        assert copied == value and type(copied) is type(value), value
    for value in (None, 1, Colour.RED, Money(3), (1, "a"), frozenset({1})):
        assert Image().of(value) is value
    nested = Image().of({"a": {"b": [1]}})
    original = {"a": {"b": [1]}}
    copied = Image().of(original)
    original["a"]["b"].append(2)
    assert copied == nested == {"a": {"b": [1]}}
    copied_deque = Image().of(deque([[1]], 3))
    assert copied_deque.maxlen == 3
    assert Image().of(defaultdict(list)).default_factory is list


def test_a_costly_copy_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    bank = Bank()
    bank.notes = ["x"] * (ELEMENTS_MANY + 1)
    run = Run(bank)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            run.call(Bank.move, 1, then=False)
    assert caplog.text.count("atomic=False") == 1 and "move" in caplog.text


def test_a_queue_refuses_a_priority_that_cannot_be_compared() -> None:
    queue: ReplicatedPriorityQueue[str] = ReplicatedPriorityQueue()
    run = Run(queue, check=True)
    run.call(ReplicatedPriorityQueue.put, "a", 1)
    with pytest.raises(TypeError, match="must be a number"):
        run.call(ReplicatedPriorityQueue.put, "b", "high")
    assert len(queue.heap) == 1
