"""The ordered store under a machine: a few named tables of bytes to bytes, changed together and committed together.

A machine reads and writes tables freely while it applies an entry and then calls `commit` with the entry's index: what
`applied_index` says and what the tables hold never part. A store that keeps its contents on disk (`durable`) does so at
checkpoints: `checkpoint` freezes what is committed and not yet on disk, the `write` of what it returns makes that
durable together with its index in one transaction, and `checkpointed` lets the frozen part go. Nothing else reaches the
disk, so after a crash a durable store shows exactly its last completed checkpoint.

Ranges are half-open, `[start, end)`, in the order of the keys' bytes; an `end` of None is no bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from oarlock.machines.base import Checkpoint


class Table(Protocol):
    """One ordered map of bytes to bytes. A key is not empty."""

    def get(self, key: bytes) -> bytes | None:
        """The value under `key`, or None. Raises `oarlock.errors.Corrupt` if the disk gave back other bytes."""

    def put(self, key: bytes, value: bytes, /) -> None: ...

    def delete(self, key: bytes) -> None:
        """Take `key` out. A key that is not there is no error."""

    def items(
        self, start: bytes = b"", end: bytes | None = None, *, limit: int = 0, reverse: bool = False
    ) -> list[tuple[bytes, bytes]]:
        """The pairs in `[start, end)`, ascending, or descending with `reverse`; at most `limit` unless that is 0."""

    def values(
        self, start: bytes = b"", end: bytes | None = None, *, limit: int = 0, reverse: bool = False
    ) -> list[bytes]:
        """The values of `items`."""

    def page(
        self, start: bytes, end: bytes | None, limit: int, bytes_max: int, *, reverse: bool = False
    ) -> tuple[list[tuple[bytes, bytes]], bytes | None]:
        """The first pairs of `items(start, end, reverse=reverse)` in a bounded time, and where to go on: the next
        `start`, with `reverse` the next `end`, or None at the range's end. About `limit` keys are looked at, and none
        after values of `bytes_max`. A page may be empty and not the last."""

    def page_keys(self, start: bytes, end: bytes | None, limit: int) -> tuple[list[bytes], bytes | None]:
        """The same for keys alone, ascending."""

    counts_quickly: bool
    """Whether `count` takes a time that hardly depends on the answer."""

    def count(self, start: bytes = b"", end: bytes | None = None) -> int:
        """How many keys are in `[start, end)`. Takes time in proportion to the answer, unless `counts_quickly`."""


class View(Protocol):
    """A store as it was at one applied index, for reading on another thread while the store goes on."""

    @property
    def index(self) -> int: ...

    def get(self, table: str, key: bytes) -> bytes | None: ...

    def items(self, table: str) -> Iterator[tuple[bytes, bytes]]:
        """All pairs of a table in ascending order."""

    def close(self) -> None:
        """Let go of what the view holds; an iterator still running then fails. Idempotent, from any thread."""


class Replacement(Protocol):
    """New contents for a whole store, built beside the old ones."""

    def put(self, table: str, key: bytes, value: bytes) -> None:
        """Add one pair. Within a table keys come in ascending order: raises `ValueError` otherwise."""

    def commit(self) -> None:
        """Become the store's contents, atomically: a crash leaves the old contents or the new."""

    def abort(self) -> None:
        """Forget what was built. The store keeps its contents. Idempotent; does nothing after `commit`."""


class Store(Protocol):
    """A few named tables that change together. All methods on one thread, those of views and checkpoints excepted."""

    durable: bool

    @property
    def applied_index(self) -> int: ...

    def table(self, name: str) -> Table:
        """The table of that name. Raises `KeyError` for one that the store was not made with."""

    def commit(self, index: int, nbytes: int = 0) -> None:
        """What the tables hold now is the state at `index`. `nbytes` says roughly how much was written for it."""

    def view(self) -> View:
        """The present contents, or for a durable store those of its last checkpoint. Never waits for a disk."""

    def replacement(self, index: int) -> Replacement:
        """Begin new contents that will stand at `index`."""

    def dirty_bytes(self) -> int:
        """Roughly how much is committed and not on disk. 0 for a store in memory."""

    def size(self) -> int:
        """Bytes taken, free pages included."""

    def size_in_use(self) -> int:
        """Bytes taken by what the tables hold."""

    def checkpoint(self) -> Checkpoint:
        """Freeze what is not on disk. Raises `RuntimeError` if the store is not durable or a checkpoint is open."""

    def checkpointed(self, checkpoint: Checkpoint) -> None:
        """The `write` of `checkpoint` has returned: let what it froze go."""

    def close(self) -> None: ...


def page_end(keys: Sequence[bytes], limit: int, reverse: bool = False) -> bytes | None:
    """Where a page goes on behind these keys; None if fewer than `limit` were found."""
    if len(keys) < limit:
        return None
    return keys[-1] if reverse else keys[-1] + b"\0"


def nearest(ends: Sequence[bytes | None], reverse: bool = False) -> bytes | None:
    """How far pages of several sources, read from the same place, cover them all: the first of their ends."""
    known = [end for end in ends if end is not None]
    if not known:
        return None
    return max(known) if reverse else min(known)
