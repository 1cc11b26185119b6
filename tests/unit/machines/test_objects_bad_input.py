"""Classes, values and exceptions of programs that do what they like: the state stays what it was, on every member."""

from __future__ import annotations

import enum
import math
import sys
from dataclasses import InitVar, dataclass, field
from datetime import time, timedelta, timezone
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec
import pytest
from tests.unit.machines.test_objects_machine import Run

from oarlock.embed.collections import QueueFull, ReplicatedPriorityQueue, ReplicatedQueue, ReplicatedSet
from oarlock.embed.locks import Barrier, Lock, Semaphore
from oarlock.embed.tools import IdGenerator, RateLimiter
from oarlock.machines.objects import claims
from oarlock.machines.objects.claims import HolderUnknown, TooManyClaims
from oarlock.machines.objects.declare import command, query
from oarlock.machines.objects.machine import RENEW, CommandError, ObjectMachine, StateMachine
from oarlock.machines.objects.values import Codec, Registry, Undecodable, Unencodable


class May(enum.Flag):
    READ = 1
    WRITE = 2
    RUN = 4


class Mode(enum.IntFlag):
    A = 1
    B = 2


class Grade(enum.IntEnum):
    LOW = 1


@dataclass
class Price:
    """Its `__post_init__` does something else each time."""

    cents: int
    asked: int = 0

    def __post_init__(self) -> None:
        self.cents *= 100
        self.asked += 1
        self.cache: dict[str, int] = {}


@dataclass(frozen=True, slots=True)
class Small:
    name: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name.strip() + "!")


@dataclass
class Wants:
    hours: InitVar[int]
    seconds: int = 0
    tags: list[str] = field(default_factory=list)

    def __post_init__(self, hours: int) -> None:
        self.seconds = hours * 3600


@dataclass
class Child(Price):
    more: str = "x"


class Rising(msgspec.Struct):
    n: int

    def __post_init__(self) -> None:
        self.n += 1


class Point(NamedTuple):
    x: int
    y: int


CODEC = Codec(Registry([May, Mode, Grade, Price, Small, Wants, Child, Rising, Point]))


def again(value: Any) -> Any:
    return CODEC.decode(CODEC.encode(value))


@pytest.mark.parametrize(
    "value",
    [
        May.READ | May.WRITE, May(0), May.READ, Mode.A | Mode.B, Mode(0), Mode(8), Grade.LOW, Point(1, 2), True,
        1.0, -0.0,
        {True: 1, 2.5: 2, None: 3, b"\xff": 4, "\0": 5, (1, "a"): 6}, 2**63 - 1, -(2**63), 2**64, -(2**200),
        time(1, 2, tzinfo=timezone(timedelta(hours=2))), "\u2028\x00\U0001f600",
    ],
)  # fmt: skip
def test_what_can_be_encoded_can_be_decoded(value: Any) -> None:
    found = again(value)
    assert found == value and type(found) is type(value) and repr(found) == repr(value)


def test_fields_are_what_they_were_whatever_post_init_does() -> None:
    price = again(again(Price(5)))
    assert (price.cents, price.asked) == (500, 1) and price.cache == {}
    assert again(again(Small(" a "))).name == "a!"
    assert again(Rising(1)).n == 2
    child = again(Child(1, 0, "y"))
    assert (child.cents, child.more) == (100, "y")


def test_a_class_that_wants_more_than_its_fields_is_built_without_asking() -> None:
    wants = again(Wants(2))
    assert (wants.seconds, wants.tags) == (7200, [])
    assert wants.tags is not again(Wants(2)).tags

    @dataclass
    class Later:
        hours: InitVar[int]
        new: int

    Later.__qualname__ = "Wants"
    with pytest.raises(Undecodable, match="'new' without a default"):
        Codec(Registry([Later])).decode(CODEC.encode(Wants(2)))


@dataclass
class Once:
    name: str

    def __post_init__(self) -> None:
        if self.name in _SEEN:
            raise RuntimeError("there is one already")
        _SEEN.add(self.name)


class Picky(msgspec.Struct):
    name: str

    def __post_init__(self) -> None:
        if self.name in _SEEN:
            raise RuntimeError("there is one already")
        _SEEN.add(self.name)


_SEEN: set[str] = set()


def test_a_class_that_refuses_to_be_built_twice() -> None:
    codec = Codec(Registry([Once, Picky]))
    assert codec.decode(codec.encode(Once("a"))).name == "a"
    with pytest.raises(Undecodable, match="Picky cannot be built again: RuntimeError"):
        codec.decode(codec.encode(Picky("b")))


def test_a_time_whose_offset_depends_on_the_date_is_refused() -> None:
    with pytest.raises(Unencodable, match="use a datetime"):
        CODEC.encode(time(1, 2, tzinfo=ZoneInfo("Europe/Berlin")))


# ------------------------------------------------------------------ exceptions


class Silent(Exception):
    def __str__(self) -> str:
        raise AttributeError("no text")


class Coded(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(f"code {code}")
        self.code = code


class Gone(OSError):
    pass


class Raises(StateMachine):
    def __init__(self) -> None:
        self.n = 0

    @command
    def silent(self) -> None:
        self.n += 1
        raise Silent("x")

    @command
    def coded(self) -> None:
        error = Coded(7)
        error.add_note("a note")
        raise error

    @command
    def leave(self) -> None:
        sys.exit(3)

    @command
    def system(self) -> None:
        raise Gone(2, "not there", "file")

    @command
    def decoding(self) -> None:
        b"\xff".decode()

    @command
    def odd(self) -> None:
        raise Coded(object())  # type: ignore[arg-type]


def test_an_exception_is_a_result_whatever_it_is_made_of() -> None:
    run = Run(ObjectMachine(Raises(), check=True))
    with pytest.raises(Silent) as silent:
        run("silent")
    assert silent.value.args == ("x",)
    with pytest.raises(Coded, match="code 7") as coded:
        run("coded")
    assert coded.value.code == 7 and coded.value.args == ("code 7",) and coded.value.__notes__ == ["a note"]
    with pytest.raises(CommandError, match="SystemExit: 3"):
        run("leave")
    with pytest.raises(Gone) as gone:
        run("system")
    assert (gone.value.errno, gone.value.filename) == (2, "file") or gone.value.args[0] == 2
    with pytest.raises(UnicodeDecodeError, match="invalid start byte"):
        run("decoding")
    with pytest.raises(CommandError, match="Coded: code <object"):
        run("odd")
    assert run.machine.spec.root.n == 0, "what raises leaves nothing"  # type: ignore[attr-defined]


# ------------------------------------------------------------------ classes


class Twice:
    def __init__(self) -> None:
        self.a = self.b = Lock()


class Pictures(StateMachine):
    def __init__(self) -> None:
        self.taken = 0

    @command
    def snapshot(self) -> int:
        self.taken += 1
        return self.taken

    @command
    def restore(self, n: int) -> None:
        self.taken = n


def test_a_part_at_two_places_is_refused() -> None:
    with pytest.raises(TypeError, match=r"at two places, a\. and b\."):
        ObjectMachine(Twice())


def test_commands_called_snapshot_and_restore_are_commands() -> None:
    run = Run(ObjectMachine(Pictures()))
    assert run("snapshot") == 1
    run("restore", 7)
    other = ObjectMachine(Pictures())
    other.load(list(run.machine.dump()))
    assert other.spec.root.taken == 7  # type: ignore[attr-defined]


def test_an_asynchronous_generator_is_no_command() -> None:
    for declare in (command, query):
        with pytest.raises(TypeError, match="coroutine or generator"):

            class _Wrong(StateMachine):
                @declare
                async def follow(self) -> Any:
                    yield 1


# ------------------------------------------------------------------ batteries


class OwnLock(Lock):
    """A program's own: what ours raises must still be known by its class."""


class OwnQueue(ReplicatedQueue[int]):
    pass


class Own(StateMachine):
    def __init__(self) -> None:
        self.lock = OwnLock()
        self.queue = OwnQueue(1)
        self.priorities: ReplicatedPriorityQueue[int] = ReplicatedPriorityQueue()
        self.semaphore = Semaphore(1)
        self.set: ReplicatedSet[Any] = ReplicatedSet()
        self.ids = IdGenerator()
        self.rate = RateLimiter(1, 1)

    @command
    def nothing(self) -> None:
        pass


@pytest.fixture
def own() -> Run:
    run = Run(ObjectMachine(Own(), check=True))
    run.raw(run.machine.codec.encode([RENEW, ["h", 10**12, True]]))
    return run


def test_what_an_extended_part_raises_keeps_its_class(own: Run) -> None:
    with pytest.raises(HolderUnknown):
        own("lock.enter", "nobody")
    own("queue.put", 1)
    with pytest.raises(QueueFull):
        own("queue.put", 2)


@pytest.mark.parametrize("priority", [math.nan, "high", None, [1]])
def test_a_priority_without_an_order_harms_nothing(own: Run, priority: Any) -> None:
    own("priorities.put", 1, 5)
    with pytest.raises(TypeError, match="must be a number"):
        own("priorities.put", 2, priority)
    own("priorities.put", 3, -math.inf)
    own("priorities.put", 4, True)
    assert [own("priorities.poll")[1] for _ in range(3)] == [3, 4, 1]
    assert own("priorities.poll") is None


@pytest.mark.parametrize("capacity", [1.5, math.nan, "2", None, True, 0, -1])
def test_a_capacity_is_a_whole_number(own: Run, capacity: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="must be"):
        own("semaphore.resize", capacity)
    assert own("semaphore.enter", "h") > 0
    for make in (Semaphore, Barrier, ReplicatedQueue, ReplicatedPriorityQueue):
        with pytest.raises((TypeError, ValueError), match="must be"):
            make(capacity)


def test_numbers_stay_whole(own: Run) -> None:
    for count in (1.5, math.nan, 0, True):
        with pytest.raises((TypeError, ValueError), match="must be"):
            own("ids.reserve", count)
    assert own("ids.next") == 1
    for rate, burst in ((math.inf, 1), (math.nan, 1), (1, math.nan), (1, math.inf), (0, 1)):
        with pytest.raises(ValueError, match="RateLimiter"):
            RateLimiter(rate, burst)
    with pytest.raises(ValueError, match="try_acquire"):
        own("rate.try_acquire", math.nan)


def test_none_in_a_set_can_be_taken_out(own: Run) -> None:
    own("set.add", None)
    own("set.add", 1)
    assert [own("set.pop") for _ in range(3)] == [None, 1, None]
    assert not own.machine.spec.root.set.data  # type: ignore[attr-defined]


def test_claims_that_do_not_wait_have_the_same_bound(own: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "CLAIMS_MAX", 3)
    own("semaphore.resize", 100)
    for _ in range(3):
        own("semaphore.enter_nowait", "h")
    with pytest.raises(TooManyClaims, match="CLAIMS_MAX is 3"):
        own("semaphore.enter_nowait", "h")
