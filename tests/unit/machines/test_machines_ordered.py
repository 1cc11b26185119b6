"""The dict that can be read in order, against sorted()."""

from __future__ import annotations

import random

import pytest

from oarlock.machines.ordered import BLOCK_KEYS, OrderedMap


@pytest.mark.parametrize("seed", range(4))
def test_it_reads_like_a_sorted_dict(seed: int) -> None:
    rng = random.Random(seed)
    ordered: OrderedMap[int] = OrderedMap()
    model: dict[bytes, int] = {}
    for step in range(60):
        for _ in range(rng.choice([1, 3, 40, 3 * BLOCK_KEYS if step < 4 else 200])):
            key = rng.randbytes(rng.choice([1, 2, 3]))
            ordered.data[key] = model[key] = step
        for key in rng.sample(sorted(model), min(len(model), rng.choice([0, 1, 50, 300]))):
            ordered.remove(key)
            del model[key]
        start, end = sorted((rng.randbytes(2), rng.randbytes(2)))
        for low, high in ((start, end), (end, start), (b"", None), (start, None), (b"", end), (start, start)):
            expected = sorted(key for key in model if low <= key and (high is None or key < high))
            assert ordered.keys(low, high) == expected
            assert ordered.count(low, high) == len(expected)
            assert ordered.keys(low, high, reverse=True) == expected[::-1]
            for limit in (1, 7, BLOCK_KEYS, 3 * BLOCK_KEYS):
                assert ordered.keys(low, high, limit) == expected[:limit]
                assert ordered.keys(low, high, limit, reverse=True) == expected[::-1][:limit]
    assert ordered.data == model


def test_blocks_split_when_they_have_grown() -> None:
    ordered: OrderedMap[int] = OrderedMap({n.to_bytes(4): 0 for n in range(8 * BLOCK_KEYS)})
    ordered.keys()
    for n in range(3 * BLOCK_KEYS):
        ordered.data[b"\0\0\0\1" + n.to_bytes(4)] = 0
        if n % 100 == 0:
            ordered.keys(limit=1)
    ordered.keys()
    assert max(map(len, ordered._blocks)) < 2 * BLOCK_KEYS
    assert ordered.keys() == sorted(ordered.data)
