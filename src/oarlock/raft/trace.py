"""What happened inside, as values: the core does not log. One function prints them; see
docs/reference/trace-events.md."""

from __future__ import annotations

from dataclasses import dataclass

from oarlock.raft.types import Index, NodeId, Term

TRACES_MAX = 1024  # kept until somebody takes them; older ones are dropped


@dataclass(frozen=True, slots=True)
class Trace:
    """One event: its name, the term it happened in, and its fields in the order they are printed."""

    event: str
    term: Term
    fields: tuple[tuple[str, object], ...] = ()

    def __str__(self) -> str:
        return " ".join([self.event, f"t{self.term}", *(f"{key}={value}" for key, value in self.fields)])


def entry_name(term: Term, index: Index) -> str:
    return f"{term}.{index}"


def node_name(node: NodeId) -> str:
    """Ids below 1000 (tests, the lab) print as they are, hashed ones in hexadecimal as etcd prints them."""
    return str(node) if node < 1000 else f"{node:x}"
