"""A program's object as a machine: calls, results, exceptions, snapshots, code versions, determinism."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from oarlock.errors import Rejected
from oarlock.machines.base import Context
from oarlock.machines.objects.declare import BINDING, NotAttached, bounded, command, query
from oarlock.machines.objects.machine import (
    ACTIVATE,
    CodeTooOld,
    NotDeterministic,
    ObjectMachine,
    StateMachine,
)
from oarlock.machines.objects.values import Unencodable


class OutOfStock(Exception):
    pass


class Fussy(Exception):
    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


@dataclass
class Item:
    name: str
    count: int = 0


class Shop(StateMachine):
    def __init__(self) -> None:
        self.items: dict[str, Item] = {}
        self.log: list[tuple[int, float]] = []
        self.tags: set[str] = set()

    @command
    def put(self, item: Item, /, count: int = 1) -> Item:
        self.items.setdefault(item.name, item).count += count
        return self.items[item.name]

    @command
    def take(self, name: str) -> int:
        if not self.items[name].count:
            raise OutOfStock(name)
        self.items[name].count -= 1
        return self.items[name].count

    @command
    def move(self, old: str, new: str) -> None:
        self.take.inline(old)
        self.put.inline(Item(new))

    @command
    def stamp(self) -> tuple[int, int]:
        self.log.append((self.context.index, self.context.time))
        return self.context.index, self.context.seed

    @command
    def fussy(self) -> None:
        raise Fussy(1, 2)

    @command
    def open_file(self) -> Any:
        return object()

    @command
    def clock(self) -> float:
        return time.time()

    @command
    def quiet_chance(self) -> None:
        self.log.append((random.randrange(10**9), 0.0))

    @command
    def first_tag(self, *tags: str) -> str:
        self.tags.update(tags)
        return next(iter(self.tags))

    @query
    def count(self, name: str) -> int:
        return self.items[name].count


class Run:
    """Applies calls to a machine, as a log would."""

    def __init__(self, machine: ObjectMachine) -> None:
        self.machine = machine
        self.index = machine.applied_index

    def raw(self, *commands: bytes) -> list[Any]:
        self.index += 1
        return self.machine.apply(Context(self.index, 1, self.index * 10**9), commands)

    def __call__(self, call: str, /, *args: Any, **kwargs: Any) -> Any:
        path, _, method = call.rpartition(".")
        target = self.machine.spec.entries[call].target
        declared = getattr(type(target), method)
        data = self.machine.encode_call(path + "." if path else "", declared, args, kwargs)
        return self.machine.decode_outcome(self.raw(data)[0])


@pytest.fixture
def shop() -> Run:
    return Run(ObjectMachine(Shop()))


def test_commands_change_the_state_and_give_results(shop: Run) -> None:
    assert shop("put", Item("nut"), 3) == Item("nut", 3)
    assert shop("put", Item("nut"), count=2) == Item("nut", 5)
    assert shop("take", name="nut") == 4
    shop("move", "nut", "bolt")
    assert shop.machine.spec.root.items == {"nut": Item("nut", 3), "bolt": Item("bolt", 1)}  # type: ignore[attr-defined]


def test_a_result_shares_nothing_with_the_state(shop: Run) -> None:
    item = shop("put", Item("nut"), 3)
    item.count = 99
    assert shop("take", "nut") == 2


def test_what_a_command_raises_is_raised_at_its_caller(shop: Run) -> None:
    with pytest.raises(KeyError) as error:
        shop("take", "nut")
    assert error.value.args == ("nut",)
    shop("put", Item("nut"), 0)
    with pytest.raises(OutOfStock, match="nut"):
        shop("take", "nut")
    with pytest.raises(Fussy, match=r"^1 and 2$"):  # although its arguments are not what its __init__ takes
        shop("fussy")
    with pytest.raises(TypeError, match=r"the result of open_file is a builtins\.object"):
        shop("open_file")


def test_time_and_chance_come_from_the_log(shop: Run) -> None:
    stamp = shop.machine.encode_call("", Shop.stamp, (), {})
    (first, second), third = shop.raw(stamp, stamp), shop.raw(stamp)[0]
    first, second, third = map(shop.machine.decode_outcome, (first, second, third))
    assert (first[0], second[0], third[0]) == (1, 1, 2)
    assert len({first[1], second[1], third[1]}) == 3, "another seed for every command"
    assert shop.machine.spec.root.log == [(1, 1.0), (1, 1.0), (2, 2.0)]  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="only while a command runs"):
        _ = shop.machine.spec.root.context  # type: ignore[attr-defined]


def test_a_capture_restores_the_object_in_place(shop: Run) -> None:
    shop("put", Item("nut"), 3)
    shop("first_tag", "x")
    chunks = list(shop.machine.capture().chunks())
    other = Shop()
    machine = ObjectMachine(other)
    machine.restore(shop.index, chunks)
    assert other.items == {"nut": Item("nut", 3)} and other.tags == {"x"}
    assert list(machine.capture().chunks()) == chunks


class Custom:
    def __init__(self) -> None:
        self.handle = object()  # could not be stored
        self.value = 0

    @command
    def add(self, n: int) -> int:
        self.value += n
        return self.value

    def snapshot(self) -> bytes:
        return b"%d" % self.value

    def restore(self, data: bytes) -> None:
        self.value = int(data)


def test_a_class_may_say_itself_how_it_is_stored() -> None:
    run = Run(ObjectMachine(Custom()))
    run("add", 5)
    other = Custom()
    ObjectMachine(other).restore(run.index, list(run.machine.capture().chunks()))
    assert other.value == 5


class App:
    def __init__(self) -> None:
        self.shop = Shop()
        self.total = 0

    @command
    def buy(self, name: str) -> int:
        self.total += 1
        return self.shop.take.inline(name)


def test_parts_of_a_machine_are_machines() -> None:
    app = App()
    run = Run(ObjectMachine(app))
    run("shop.put", Item("nut"), 2)
    assert run("buy", "nut") == 1
    other = App()
    ObjectMachine(other).restore(run.index, list(run.machine.capture().chunks()))
    assert other.total == 1 and other.shop.items["nut"].count == 1


def test_a_class_that_cannot_be_used_is_refused_at_once() -> None:
    class Nothing:
        pass

    class Held:
        def __init__(self) -> None:
            self.sockets = {"a": object()}

        @command
        def go(self) -> None: ...

    class Slotted:
        __slots__ = ("x",)

        @command
        def go(self) -> None: ...

    with pytest.raises(TypeError, match="no @command"):
        ObjectMachine(Nothing())
    with pytest.raises(Unencodable, match=r"Held\.sockets\['a'\] is a builtins\.object"):
        ObjectMachine(Held())
    with pytest.raises(TypeError, match="__slots__"):
        ObjectMachine(Slotted())
    held = Shop()
    ObjectMachine(held)
    with pytest.raises(RuntimeError, match="belongs to a node already"):
        ObjectMachine(held)
    with pytest.raises(TypeError, match="coroutine"):

        @command
        async def wait(self: Any) -> None: ...

    with pytest.raises(ValueError, match="consistency"):
        query(consistency="eventual")(Shop.count.function)  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="positive"):
        bounded(0)


def test_arguments_that_cannot_travel_are_refused_before_anything_is_sent(shop: Run) -> None:
    with pytest.raises(Unencodable, match=r"the argument 'item' of put is a builtins\.object"):
        shop("put", object())
    with pytest.raises(Unencodable, match=r"the argument 'count' of put is a builtins\.object"):
        shop("put", Item("x"), count=object())
    assert shop.index == 0


def test_calls_outside_of_a_node_say_what_to_do() -> None:
    shop = Shop()
    with pytest.raises(NotAttached, match="async with Node"):
        shop.put(Item("nut"))
    assert shop.put.inline(Item("nut")) == Item("nut", 1), "an object of no node is plain Python"
    ObjectMachine(shop)
    with pytest.raises(RuntimeError, match="this member's copy only"):
        shop.put.inline(Item("nut"))


class Calls(StateMachine):
    @command
    def outer(self) -> Any:
        return self.inner()

    @command
    def inner(self) -> int:
        return 1


def test_a_command_within_a_command_is_inline() -> None:
    with pytest.raises(RuntimeError, match=r"use inner\.inline"):
        Run(ObjectMachine(Calls()))("outer")


def test_malformed_and_unknown_commands_are_refused_alike(shop: Run) -> None:
    encode = shop.machine.codec.encode
    for data in (b"", b"\xc1", encode(5), encode([1, 2]), encode(["put", {}]), encode(["put", [], []]), b"\xff" * 40):
        with pytest.raises(Rejected) as error:
            shop.machine.decode_outcome(shop.raw(data)[0])
        assert error.value.reason == "malformed"
    with pytest.raises(Rejected) as unknown:
        shop.machine.decode_outcome(shop.raw(encode(["__init__", []]))[0])
    assert unknown.value.reason == "unknown_command"
    with pytest.raises(TypeError):
        shop.machine.decode_outcome(shop.raw(encode(["take", [1, 2, 3, 4]]))[0])


# -- code versions


class Second(StateMachine):
    code_version: ClassVar[int] = 2

    def __init__(self) -> None:
        self.value = 0

    @command
    def add(self, n: int) -> int:
        self.value += n
        return self.value

    @command(since=2, instead_of="add")
    def add_doubled(self, n: int) -> int:
        self.value += 2 * n
        return self.value

    @command(since=2)
    def reset(self) -> None:
        self.value = 0


def test_a_new_implementation_begins_when_the_version_is_active() -> None:
    run = Run(ObjectMachine(Second()))
    assert run("add", 1) == 1
    with pytest.raises(Rejected) as error:
        run("reset")
    assert error.value.reason == "not_active"
    run.raw(run.machine.codec.encode([ACTIVATE, [2]]))
    assert run("add", 1) == 3
    run("reset")
    other = ObjectMachine(Second())
    other.restore(run.index, list(run.machine.capture().chunks()))
    assert other.active_version == 2


def test_a_program_that_is_too_old_stops() -> None:
    run = Run(ObjectMachine(Shop()))
    with pytest.raises(CodeTooOld, match=r"reached code version 2 of Shop.*code_version 1"):
        run.raw(run.machine.codec.encode([ACTIVATE, [2]]))
    newer = Run(ObjectMachine(Second()))
    newer.raw(newer.machine.codec.encode([ACTIVATE, [2]]))

    class First(StateMachine):
        @command
        def add(self, n: int) -> int:
            return n

    with pytest.raises(CodeTooOld):
        ObjectMachine(First()).restore(newer.index, list(newer.machine.capture().chunks()))


def test_declarations_of_versions_are_checked() -> None:
    class Ahead:
        @command(since=3)
        def go(self) -> None: ...

    class Lost(StateMachine):
        code_version = 2

        @command(since=2, instead_of="nothing")
        def go(self) -> None: ...

    with pytest.raises(TypeError, match="since code version 3"):
        ObjectMachine(Ahead())
    with pytest.raises(TypeError, match="'nothing', which is no command"):
        ObjectMachine(Lost())
    with pytest.raises(ValueError, match="begin at 1"):
        command(since=0)(Shop.put.function)
    with pytest.raises(ValueError, match="since=2 or later"):
        command(instead_of="x")(Shop.put.function)


# -- determinism


@pytest.fixture
def checked() -> Run:
    return Run(ObjectMachine(Shop(), check=True))


def test_the_clock_chance_and_the_order_of_sets_are_found(checked: Run) -> None:
    with pytest.raises(NotDeterministic, match=r"clock\(\) gave .* on one copy"):
        checked("clock")
    again = Run(ObjectMachine(Shop(), check=True))
    with pytest.raises(NotDeterministic, match=r"after quiet_chance\(\) two copies of the same state differ in log"):
        again("quiet_chance")
    tags = Run(ObjectMachine(Shop(), check=True))
    tags("first_tag", "only")
    with pytest.raises(NotDeterministic, match="first_tag"):
        tags("first_tag", *"abcdefgh")


def test_a_machine_that_is_deterministic_passes_the_check(checked: Run) -> None:
    checked("put", Item("nut"), 3)
    checked("stamp")
    with pytest.raises(KeyError):
        checked("take", "x")
    chunks = list(checked.machine.capture().chunks())
    other = Run(ObjectMachine(Shop(), check=True))
    other.machine.restore(checked.index, chunks)
    other.index = checked.index
    assert other("take", "nut") == 2
    assert BINDING in vars(other.machine.spec.root)
