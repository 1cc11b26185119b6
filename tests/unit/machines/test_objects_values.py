"""Python values through bytes and back: exactly, canonically, and with errors that name the place."""

from __future__ import annotations

import enum
import random
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.msgpack import Ext

from oarlock.machines.objects.values import DEPTH_MAX, Codec, MirroredSet, Registry, Undecodable, Unencodable


@dataclass
class Item:
    name: str
    tags: set[str] = field(default_factory=set)
    seen: int = field(default=0, init=False)


@dataclass(frozen=True)
class Frozen:
    x: int


class Point(NamedTuple):
    x: int
    y: int = 0


class Order(msgspec.Struct):
    number: int
    lines: list[Item] = []


class Colour(enum.Enum):
    RED = "r"
    BLUE = "b"


CODEC = Codec(Registry([Item, Frozen, Point, Order, Colour]))

ATOMS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.datetimes(timezones=st.none() | st.just(UTC)) | st.dates() | st.times() | st.timedeltas()
    | st.decimals(allow_nan=False) | st.fractions() | st.uuids() | st.complex_numbers(allow_nan=False)
    | st.sampled_from(Colour) | st.builds(Point, st.integers(), st.integers()) | st.builds(Frozen, st.integers())
)  # fmt: skip
HASHABLE = st.recursive(ATOMS, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=4)
VALUES = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.tuples(inner) | st.dictionaries(HASHABLE, inner, max_size=4)
        | st.sets(HASHABLE, max_size=4) | st.builds(deque, st.lists(inner, max_size=3), st.none() | st.just(3))
        | st.builds(bytearray, st.binary()) | st.builds(Order, st.integers(), st.just([]))
        | st.dictionaries(st.text(), inner, max_size=3).map(OrderedDict)
        | st.dictionaries(st.text(), inner, max_size=3).map(lambda d: defaultdict(list, d))
    ),
    max_leaves=12,
)  # fmt: skip


def same(first: Any, second: Any) -> bool:
    """Equal, and of the same types all the way down."""
    if type(first) is not type(second) or first != second:
        return False
    if isinstance(first, dict):
        return list(first) == list(second) and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple | deque):
        return all(map(same, first, second))
    return True


UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


@UNHURRIED
@given(VALUES)
def test_every_value_comes_back_as_it_was(value: Any) -> None:
    data = CODEC.encode(value)
    back = CODEC.decode(data)
    assert same(back, value)
    assert CODEC.encode(back) == data, "equal values have equal bytes"


def test_classes_come_back_with_all_their_fields() -> None:
    item = Item("a", {"x", "y"})
    item.seen = 7
    order = Order(2, [item, Item("b")])
    back = CODEC.decode(CODEC.encode({(1, 2): order}))
    assert back == {(1, 2): order} and back[1, 2].lines[0].seen == 7


def test_a_default_dict_and_a_bounded_deque_keep_what_they_can_do() -> None:
    back = CODEC.decode(CODEC.encode([defaultdict(int, {"a": 1}), deque([1, 2], 2), Counter("aab")]))
    back[0]["new"] += 1
    back[1].append(3)
    assert back == [{"a": 1, "new": 1}, deque([2, 3], 2), Counter({"a": 2, "b": 1})]


def test_sets_are_written_in_one_order_whatever_theirs() -> None:
    words = [f"word {n}" for n in range(50)]
    shuffled = words.copy()
    random.Random(1).shuffle(shuffled)
    assert CODEC.encode(set(words)) == CODEC.encode(set(shuffled)) == CODEC.encode(MirroredSet(words))
    assert list(MirroredSet(words)) == list(set(words))[::-1]


def test_times_of_other_zones_are_the_same_moment_in_utc() -> None:
    moment = datetime(2026, 3, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    assert CODEC.decode(CODEC.encode(moment)) == moment


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (object(), r"the value is a builtins\.object"),
        ({"a": [1, {"b": object()}]}, r"the value\['a'\]\[1\]\['b'\] is a builtins\.object"),
        ({frozenset({2}): lambda: 0}, r"the value\[frozenset\(\{2\}\)\] is a builtins\.function"),
        (Item("x", {"ok"}).__class__("x", [object()]), r"the value\.tags\[0\] is a builtins\.object"),  # type: ignore[arg-type]
        (["\ud800"], r"the value\[0\] is a string with lone surrogates"),
        (defaultdict(lambda: 0), "a defaultdict whose factory is none of int"),
    ],
)
def test_what_cannot_travel_is_refused_with_its_place(value: object, place: str) -> None:
    with pytest.raises(Unencodable, match=place):
        CODEC.encode(value)


def test_a_class_that_is_not_known_is_refused_on_both_sides() -> None:
    @dataclass
    class Stranger:
        x: int

    with pytest.raises(Unencodable, match=r"Stranger, which this machine does not know"):
        CODEC.encode(Stranger(1))
    with pytest.raises(Undecodable, match="'Item' is not known to this program"):
        Codec().decode(CODEC.encode(Item("a")))
    with pytest.raises(Unencodable, match="no value"):
        Registry([int])


def test_what_contains_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(Unencodable, match="DEPTH_MAX"):
        CODEC.encode(loop)
    deep: list[Any] = []
    for _ in range(DEPTH_MAX - 1):
        deep = [deep]
    assert CODEC.decode(CODEC.encode(deep)) == deep
    with pytest.raises(Unencodable):
        CODEC.encode([deep])


def test_a_class_may_gain_and_lose_fields() -> None:
    old = Codec(Registry([Item])).encode(Item("a", {"t"}))

    def newer() -> type:
        @dataclass
        class Item:
            name: str
            colour: str = "none"

        Item.__qualname__ = "Item"
        return Item

    cls = newer()
    back = Codec(Registry([cls])).decode(old)
    assert vars(back) == {"name": "a", "colour": "none"}


@UNHURRIED
@given(st.binary(max_size=60))
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    try:
        CODEC.decode(data)
    except Undecodable:
        pass


@UNHURRIED
@given(VALUES, st.data())
def test_damaged_bytes_are_decoded_or_refused(value: Any, data: st.DataObject) -> None:
    encoded = bytearray(CODEC.encode(value))
    at = data.draw(st.integers(0, len(encoded) - 1))
    encoded[at] ^= 1 << data.draw(st.integers(0, 7))
    for damaged in (bytes(encoded), bytes(encoded[:at])):
        try:
            CODEC.decode(damaged)
        except Undecodable:
            pass


def test_an_extension_of_a_newer_version_is_refused() -> None:
    with pytest.raises(Undecodable, match="extension 99"):
        CODEC.decode(msgspec.msgpack.encode(Ext(99, b"\xc0")))


def test_values_with_a_known_encoding() -> None:
    """What is in logs and snapshots: these bytes must be read for ever."""
    value = [
        (1,), {2, 1}, 2**70, date(2026, 1, 2), time(3, 4), Decimal("1.50"), Fraction(1, 3), UUID(int=5), Colour.RED,
        Point(1), {1: "a", (2,): b"b"},
    ]  # fmt: skip
    data = bytes.fromhex(
        "9bd5019101c70302920102c70905400000000000000000c70a11323032362d30312d3032d71230333a30343a3030d614312e"
        "3530c70315312f33d81600000000000000000000000000000005c70c2192a6436f6c6f7572a3524544c70e2092a5506f696e"
        "7482a17801a17900c70d04929201a16192d5019102c40162"
    )
    assert CODEC.encode(value) == data
    assert CODEC.decode(data) == value
