"""The checker against histories whose verdict is known (tests/data/linearizability, with their licence beside them)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from oarlock.check import (
    KeyValue,
    Model,
    Operation,
    Register,
    Violation,
    check_linearizable,
    parse_jepsen_register,
    parse_kv_history,
)

DATA = Path(__file__).resolve().parents[2] / "data" / "linearizability"
VERDICTS: dict[str, dict[str, bool]] = json.loads((DATA / "verdicts.json").read_text())
FORMATS: dict[str, tuple[Model, Callable[[list[str]], list[Operation]]]] = {
    "jepsen-etcd": (Register(), parse_jepsen_register),
    "kv": (KeyValue(), parse_kv_history),
}
HISTORIES = [(group, name, verdict) for group, files in VERDICTS.items() for name, verdict in files.items()]


def test_all_56_histories_have_a_verdict() -> None:
    files = {(path.parent.name, path.name) for path in DATA.glob("*/*") if path.suffix in (".log", ".txt")}
    assert files == {(group, name) for group, name, _ in HISTORIES}
    assert len(files) == 56


@pytest.mark.parametrize(("group", "name", "verdict"), HISTORIES)
def test_agrees_with_the_known_verdict(group: str, name: str, verdict: bool) -> None:
    model, parse = FORMATS[group]
    history = parse((DATA / group / name).read_text().splitlines())
    assert len(history) > 30
    result = check_linearizable(model, history)
    assert result.linearizable is verdict, str(result)
    for violation in result.violations:
        _explanation_stands_alone(model, violation)


def _explanation_stands_alone(model: Model, violation: Violation) -> None:
    """The operations shown are by themselves a history without an order, and end with the one that has no place."""
    again = check_linearizable(model, violation.operations, shrink=False)
    assert [found.unplaced for found in again.violations] == [violation.unplaced]
    assert violation.unplaced in violation.operations
    assert "no place for" in str(violation)
