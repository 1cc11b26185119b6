"""The base of machines in memory, by a dict of registers built on it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest

from oarlock.machines.base import Context, Machine
from oarlock.machines.volatile import CHUNK_BYTES, VolatileMachine


class Registers(VolatileMachine):
    """`name=value` sets, `name` gets."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[bytes, bytes] = {}

    def command(self, context: Context, command: bytes) -> object:
        name, is_set, value = command.partition(b"=")
        if is_set:
            self.values[name] = value + b"@%d" % context.time_ns
        return self.values.get(name)

    def dump(self) -> Iterable[bytes]:
        for name, value in sorted(self.values.items()):
            yield name
            yield value

    def load(self, pieces: Sequence[bytes]) -> None:
        if len(pieces) % 2:
            raise ValueError("a register without a value")
        self.values = dict(zip(pieces[::2], pieces[1::2], strict=True))


def filled() -> Registers:
    machine = Registers()
    assert machine.apply(Context(3, 1, 77), [b"a=1", b"b=2", b"a", b"c"]) == [b"1@77", b"2@77", b"1@77", None]
    machine.annex_put(b"y", b"2")
    machine.annex_put(b"x", b"1")
    machine.annex_put(b"z", b"3")
    machine.annex_delete(b"z")
    machine.annex_delete(b"never there")
    return machine


def test_it_is_a_machine_without_checkpoints() -> None:
    machine: Machine = filled()
    assert not machine.durable and machine.applied_index == 3
    for call in (machine.dirty_bytes, machine.checkpoint, lambda: machine.checkpointed(None)):  # type: ignore[arg-type]
        with pytest.raises(RuntimeError, match="captures"):
            call()
    with pytest.raises(AssertionError, match="after 3"):
        machine.apply(Context(3, 1, 0), [])
    machine.close()


@pytest.mark.parametrize("size", [1, CHUNK_BYTES - 5, CHUNK_BYTES, 3 * CHUNK_BYTES])
def test_a_capture_stays_and_comes_back(size: int) -> None:
    machine = filled()
    machine.apply(Context(4, 1, 0), [b"big=" + bytes(size), b"empty="])
    machine.values[b""] = b""
    capture = machine.capture()
    machine.apply(Context(5, 1, 0), [b"a=changed"])
    machine.annex_put(b"x", b"changed")
    chunks = list(capture.chunks())
    assert chunks == list(capture.chunks())
    capture.close()
    assert capture.index == 4 and max(map(len, chunks)) <= CHUNK_BYTES
    other = Registers()
    other.restore(4, iter(chunks))
    assert other.values[b"a"] == b"1@77" and len(other.values[b"big"]) == size + 2 and other.values[b""] == b""
    assert other.annex_items() == [(b"x", b"1"), (b"y", b"2")] and other.annex_get(b"x") == b"1"
    assert other.applied_index == 4


def test_what_no_capture_wrote_is_refused() -> None:
    machine = filled()
    whole = b"".join(machine.capture().chunks())
    for cut in range(len(whole)):
        with pytest.raises(ValueError, match="capture"):
            machine.restore(3, [whole[:cut]])
        changed = bytearray(whole)
        changed[cut] ^= 1
        with pytest.raises(ValueError, match="capture"):
            machine.restore(3, [bytes(changed)])
    for index, data in ((4, whole), (3, whole + b"\0"), (3, b"")):
        with pytest.raises(ValueError, match="capture"):
            machine.restore(index, [data])
    assert machine.applied_index == 3 and machine.values[b"b"] == b"2@77" and len(machine.annex_items()) == 2
