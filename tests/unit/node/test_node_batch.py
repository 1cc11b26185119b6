"""The payload of an entry: round trips, bounds, and bytes that nobody wrote."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from oarlock.errors import Overloaded
from oarlock.node.replica.batch import (
    BATCH_BYTES_MAX,
    COMMAND_BYTES_MAX,
    GROUP_BYTES_MAX,
    GROUP_COMMANDS_MAX,
    decode_batch,
    decode_group,
    encode_batch,
    encode_group,
    split,
)

U64 = st.integers(0, 2**64 - 1)
COMMANDS = st.lists(st.binary(max_size=40), min_size=1, max_size=5)


@given(U64, st.lists(st.tuples(U64, U64, U64, COMMANDS), max_size=4))
def test_a_batch_comes_back_as_it_was(stamp: int, groups: list[tuple[int, int, int, list[bytes]]]) -> None:
    batch = decode_batch(encode_batch(stamp, [encode_group(*group) for group in groups]))
    assert batch.stamp_ns == stamp
    assert [(g.origin, g.boot, g.first, g.commands) for g in batch.groups] == groups


def test_the_bytes_are_a_file_format() -> None:
    group = encode_group(1, 2, 3, [b"a", b"bc"])
    assert group.hex() == "9401020392c40161c4026263"
    assert encode_batch(7, [group, group]).hex() == "930107" + "92" + group.hex() * 2


def test_a_newer_format_says_so() -> None:
    with pytest.raises(ValueError, match="upgrade this member"):
        decode_batch(msgspec.msgpack.encode([2, 0, []]))


@given(st.binary(max_size=60))
def test_nothing_else_than_a_value_error_comes_out_of_garbage(data: bytes) -> None:
    for decode in (decode_batch, decode_group):
        try:
            decode(data)
        except ValueError:
            pass


def test_every_cut_and_many_flips_of_a_group_are_refused_or_well_formed() -> None:
    good = encode_group(2**64 - 1, 2**63, 5, [b"command", b"x" * 300])
    for cut in range(len(good)):
        with pytest.raises(ValueError):
            decode_group(good[:cut])
    for position in range(len(good)):
        for bit in range(8):
            bad = bytearray(good)
            bad[position] ^= 1 << bit
            try:
                group = decode_group(bytes(bad))
            except ValueError:
                continue
            assert len(group.commands) >= 1 and all(isinstance(c, bytes) for c in group.commands)


def test_bounds_of_a_group() -> None:
    with pytest.raises(Overloaded, match="COMMAND_BYTES_MAX"):
        encode_group(1, 1, 1, [bytes(COMMAND_BYTES_MAX + 1)])
    assert decode_group(encode_group(1, 1, 1, [bytes(COMMAND_BYTES_MAX)])).commands == [bytes(COMMAND_BYTES_MAX)]
    with pytest.raises(ValueError, match="at most"):
        decode_group(bytes(GROUP_BYTES_MAX + 1))
    with pytest.raises(ValueError, match="0 commands"):
        decode_group(encode_group(1, 1, 1, []))
    with pytest.raises(ValueError, match="65537 commands"):
        decode_group(encode_group(1, 1, 1, [b""] * (GROUP_COMMANDS_MAX + 1)))


@given(st.lists(st.sampled_from([0, 1, BATCH_BYTES_MAX // 3, BATCH_BYTES_MAX, BATCH_BYTES_MAX + 5]), max_size=12))
def test_runs_keep_order_and_bounds(sizes: list[int]) -> None:
    commands = [bytes([i]) * size for i, size in enumerate(sizes)]
    runs = split(commands)
    assert [command for run in runs for command in run] == commands
    for run in runs:
        assert len(run) == 1 or sum(map(len, run)) <= BATCH_BYTES_MAX or not commands


def test_a_run_holds_a_bounded_number_of_commands() -> None:
    assert [len(run) for run in split([b""] * (GROUP_COMMANDS_MAX + 1))] == [GROUP_COMMANDS_MAX, 1]
