"""One way through a command and all transactions nested in it, for everything that must miss none of its operations:
permissions, quota, limits.

Two faults of etcd came of visiting one level only (CVE-2026-33343, CVE-2026-44283), and one of counting only it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

from oarlock.machines.kv.commands import Compare, DeleteRange, Op, Put, Range, Txn

Step: TypeAlias = Compare | Put | DeleteRange | Range

READ, WRITE = 1, 2


def steps(command: Op) -> Iterator[Step]:
    """Every compare and operation of `command`, of both branches and at all depths: for each transaction its compares,
    then its success branch, then its failure branch. Uses no recursion, so depth costs no stack."""
    if not isinstance(command, Txn):
        yield command
        return
    stack: list[Iterator[Compare | Op]] = [_parts(command)]
    while stack:
        part = next(stack[-1], None)
        if part is None:
            stack.pop()
        elif isinstance(part, Txn):
            stack.append(_parts(part))
        else:
            yield part


def _parts(txn: Txn) -> Iterator[Compare | Op]:
    yield from txn.compare
    yield from txn.success
    yield from txn.failure


def depth(command: Op) -> int:
    """How deep transactions are nested: 0 for a command that is none, 1 for a transaction that holds none."""
    deepest = 0
    level: list[Op] = [command]
    while transactions := [op for op in level if isinstance(op, Txn)]:
        deepest += 1
        level = [op for txn in transactions for op in (*txn.success, *txn.failure)]
    return deepest


def touches(command: Op) -> Iterator[tuple[int, bytes, bytes]]:
    """What `command` needs: READ or WRITE, and the range, as key and range end. Leases are not in it: see `attached`.

    An operation that shows what was there before needs to be allowed to read it.
    """
    for step in steps(command):
        if isinstance(step, Put):
            yield WRITE, step.key, b""
            # Keeping a value or a lease shows nothing of it.
            if step.prev_kv:
                yield READ, step.key, b""
        elif isinstance(step, DeleteRange):
            yield WRITE, step.key, step.range_end
            if step.prev_kv:
                yield READ, step.key, step.range_end
        else:
            yield READ, step.key, step.range_end


def attached(command: Op) -> Iterator[int]:
    """The leases that puts of `command` would attach a key to, at any depth. Who attaches a key ties its life to the
    lease's, and must be allowed to write the keys that hang on it already."""
    for step in steps(command):
        if isinstance(step, Put) and step.lease:
            yield step.lease
