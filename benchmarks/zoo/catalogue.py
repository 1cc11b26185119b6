"""Everything in the zoo."""

from __future__ import annotations

from typing import Final

from benchmarks.zoo import elections, leases, membership, replication, storage, watches
from benchmarks.zoo.entry import Entry, Excluded


def _order(entry: Entry | Excluded) -> tuple[int, str]:
    return int(entry.id.partition("-")[2] or 0), entry.id


DEFECTS: Final[tuple[Entry, ...]] = tuple(
    sorted(
        (
            *elections.ENTRIES,
            *replication.ENTRIES,
            *membership.ENTRIES,
            *storage.ENTRIES,
            *leases.ENTRIES,
            *watches.ENTRIES,
        ),
        key=_order,
    )
)
LIBERTIES: Final[tuple[Entry, ...]] = storage.LIBERTIES
MUST_BREAK: Final[tuple[Entry, ...]] = storage.MUST_BREAK
ALL: Final[tuple[Entry, ...]] = (*DEFECTS, *LIBERTIES, *MUST_BREAK)
EXCLUDED: Final[tuple[Excluded, ...]] = tuple(
    sorted((*elections.EXCLUDED, *replication.EXCLUDED, *membership.EXCLUDED, *storage.EXCLUDED), key=_order)
)


def chosen(ids: list[str]) -> list[Entry]:
    """The entries of these ids, all if there are none. Raises `KeyError` for an id that does not exist."""
    known = {entry.id: entry for entry in ALL}
    return [known[name] for name in ids] if ids else list(ALL)
