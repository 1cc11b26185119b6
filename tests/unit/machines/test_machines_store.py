"""The contract of an ordered store, which the one in memory and the one on disk both pass."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from oarlock.machines.lmdb_store import KEY_BYTES_DIRECT, LmdbStore
from oarlock.machines.memory_store import MemoryStore
from oarlock.machines.store import Store

TABLES = ("a", "b")
LONG = b"k" * KEY_BYTES_DIRECT
SETTLES: dict[Store, Callable[[], None]] = {}
"""What brings the writes of a store into the state that its fixture's parameter names."""


@pytest.fixture(params=["memory", "disk", "disk, checkpointed", "disk, frozen"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    made: Store = MemoryStore(TABLES) if request.param == "memory" else LmdbStore(tmp_path / "s", TABLES)
    SETTLES[made] = {
        "disk, checkpointed": lambda: checkpointed(made),
        "disk, frozen": lambda: frozen(made),
    }.get(request.param, lambda: None)
    yield made
    del SETTLES[made]
    made.close()


def checkpointed(store: Any) -> None:
    checkpoint = store.checkpoint()
    checkpoint.write()
    store.checkpointed(checkpoint)


def frozen(store: Any) -> None:
    """Leave a checkpoint open, written or not."""
    if store._open_checkpoint is not None:
        store._open_checkpoint.write()
        store.checkpointed(store._open_checkpoint)
    store.checkpoint()


def fill(store: Any) -> dict[bytes, bytes]:
    table = store.table("a")
    model: dict[bytes, bytes] = {}
    rng = random.Random(7)
    for index in range(1, 13):
        for _ in range(30):
            key = bytes(rng.choices(b"\0ab\xff", k=rng.choice([1, 2, 3])))
            key = rng.choice([key, key, LONG + key, LONG[:-1] + key])
            if rng.random() < 0.3:
                table.delete(key)
                model.pop(key, None)
            else:
                model[key] = value = rng.randbytes(rng.choice([0, 10, 5000]))
                table.put(key, value)
        store.commit(index, 1000)
        if index % 3 == 0:
            SETTLES[store]()
    return model


def test_ranges_in_both_directions_with_limits(store: Store) -> None:
    model = fill(store)
    table = store.table("a")
    points = [
        b"",
        b"\0",
        b"a",
        b"a\0",
        b"b",
        b"k",
        LONG[:-1],
        LONG,
        LONG + b"\0",
        LONG + b"a",
        LONG + b"\xff" * 9,
        b"\xff",
    ]
    for start in points:
        for end in [*points, None]:
            inside = sorted(pair for pair in model.items() if start <= pair[0] and (end is None or pair[0] < end))
            assert table.items(start, end) == inside
            assert table.count(start, end) == len(inside)
            for limit in (0, 1, 2, 5, 1000):
                for reverse in (False, True):
                    expected = (inside[::-1] if reverse else inside)[: limit or None]
                    assert table.items(start, end, limit=limit, reverse=reverse) == expected
                    assert table.values(start, end, limit=limit, reverse=reverse) == [value for _, value in expected]


def test_single_keys(store: Store) -> None:
    model = fill(store)
    table = store.table("a")
    for key in [*model, b"", b"missing", LONG + b"missing", b"\xff" * 2000]:
        assert table.get(key) == model.get(key)
    assert store.table("b").items() == []
    with pytest.raises(KeyError):
        store.table("c")


def test_a_delete_in_a_newer_layer_hides_and_a_put_brings_back(store: Store) -> None:
    table = store.table("a")
    settle = SETTLES[store]
    for key in (b"x", LONG + b"x"):
        table.put(key, b"1")
        settle()
        table.delete(key)
        assert table.get(key) is None and table.items() == []
        settle()
        assert table.get(key) is None and table.items() == []
        table.put(key, b"2")
        settle()
        assert table.get(key) == b"2" and table.values() == [b"2"]
        table.delete(key)


def test_a_view_stays_as_it_was(store: Any) -> None:
    model = fill(store)
    store.commit(13)
    if store.durable:
        if store._open_checkpoint is not None:
            frozen(store)
            store._open_checkpoint.write()
            store.checkpointed(store._open_checkpoint)
        checkpointed(store)
    view = store.view()
    assert view.index == 13
    for key in model:
        store.table("a").delete(key)
    store.commit(14)
    if store.durable:
        checkpointed(store)
        checkpointed(store)
    assert list(view.items("a")) == sorted(model.items())
    key = min(model)
    assert view.get("a", key) == model[key] and view.get("a", b"missing") is None
    assert store.table("a").items() == []
    view.close()
    view.close()
    with pytest.raises(Exception):  # noqa: B017 - the stores have their own
        list(view.items("a"))


def test_a_replacement_takes_the_place_of_everything(store: Any, tmp_path: Path) -> None:
    fill(store)
    if store.durable and store._open_checkpoint is not None:
        with pytest.raises(RuntimeError, match="checkpoint"):
            store.replacement(50)
        store._open_checkpoint.write()
        store.checkpointed(store._open_checkpoint)
    new = {f"n{n:05}".encode(): b"v" * 300 for n in range(50)} | {LONG + b"%d" % n: b"w" for n in range(10, 20)}
    replacement = store.replacement(50)
    for key, value in sorted(new.items()):
        replacement.put("b", key, value)
    with pytest.raises(ValueError, match="order"):
        replacement.put("b", b"a", b"")
    assert store.applied_index == 12, "nothing has changed before the commit"
    replacement.commit()
    replacement.abort()
    assert store.applied_index == 50
    assert store.table("a").items() == []
    assert store.table("b").items() == sorted(new.items())
    store.table("b").put(b"later", b"1")
    store.table("b").put(LONG + b"15", b"later")
    store.commit(51)
    if store.durable:
        checkpointed(store)
    assert store.table("b").count() == len(new) + 1
    assert store.table("b").get(LONG + b"15") == b"later"
    abandoned = store.replacement(60)
    abandoned.put("a", b"x", b"y")
    abandoned.abort()
    assert store.applied_index == 51 and store.table("a").items() == []


def test_sizes_follow_the_contents(store: Any) -> None:
    table = store.table("a")
    empty = store.size_in_use()
    for n in range(2000):
        table.put(n.to_bytes(4), bytes(200))
    store.commit(1, 2000 * 204)
    if store.durable:
        if store._open_checkpoint is not None:
            frozen(store)
            store._open_checkpoint.write()
            store.checkpointed(store._open_checkpoint)
        checkpointed(store)
    full = store.size_in_use()
    assert full - empty > 2000 * 204
    assert store.size() >= full
    for n in range(2000):
        table.delete(n.to_bytes(4))
    store.commit(2, 1)
    if store.durable:
        checkpointed(store)
    assert store.size_in_use() < empty + (full - empty) / 10
