"""Explanations: the order shown is one, and what is said to stand in the way does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from oarlock.check import (
    IMPOSSIBLE,
    Explanation,
    KeyValue,
    Model,
    Operation,
    Read,
    Register,
    Write,
    check_linearizable,
    explain,
    parse_jepsen_register,
    parse_kv_history,
    violation_page,
)

DATA = Path(__file__).resolve().parents[2] / "data" / "linearizability"
VERDICTS = json.loads((DATA / "verdicts.json").read_text())
BAD = [(group, name) for group, files in VERDICTS.items() for name, verdict in files.items() if not verdict]


def explanations(group: str, name: str) -> tuple[Model, list[Explanation], str]:
    model: Model = Register() if group == "jepsen-etcd" else KeyValue()
    parse = parse_jepsen_register if group == "jepsen-etcd" else parse_kv_history
    verdict = check_linearizable(model, parse((DATA / group / name).read_text().splitlines()))
    found = [explain(model, violation) for violation in verdict.violations]
    return model, found, violation_page(verdict, model, name)


@pytest.mark.parametrize(("group", "name"), BAD)
def test_the_order_shown_is_one(group: str, name: str) -> None:
    model, found, page = explanations(group, name)
    for explanation in found:
        unplaced = explanation.violation.unplaced
        state = explanation.start
        latest_start = float("-inf")
        for step in explanation.order:
            operation = step.operation
            state = model.step(state, operation.call, operation.result)
            assert state == step.state
            assert state is not IMPOSSIBLE
            assert operation.end is None or operation.end >= latest_start, "the order goes against real time"
            latest_start = max(latest_start, operation.start)
        # It holds everything that had returned before, and the rest cannot take the unplaced one at its end.
        placed = {id(step.operation) for step in explanation.order}
        assert unplaced.end is not None
        for operation in explanation.violation.operations:
            if operation.end is not None and operation.end < unplaced.end:
                assert id(operation) in placed
        assert model.step(state, unplaced.call, unplaced.result) is IMPOSSIBLE
        if explanation.blocker is not None:
            assert explanation.blocker.end is not None
            assert explanation.blocker.end < unplaced.start
            assert any("had ended before it began" in reason for reason in explanation.reasons)
    assert page.count("has no place.") == len(found)
    assert not re.search(r"(src|href)=", page), "the page needs something from outside"
    assert "prefers-color-scheme:dark" in page


def test_the_reason_names_the_write_that_must_come_before() -> None:
    history = [
        Operation(call=Write("<old>"), result=None, start=0, end=1, process=1),
        Operation(call=Write("new"), result=None, start=2, end=3, process=2),
        Operation(call=Read(), result="<old>", start=4, end=5, process=3),
    ]
    verdict = check_linearizable(Register(), history)
    (violation,) = verdict.violations
    found = explain(Register(), violation)
    assert found.blocker == history[1]
    assert found.fits_after == 1
    assert found.states == (("new", '"new"'),)
    page = violation_page(verdict, Register(), "a & b")
    assert "a &amp; b" in page
    assert "&lt;old&gt;" in page
    assert "<old>" not in page


def test_a_value_that_nobody_wrote() -> None:
    verdict = check_linearizable(Register(), [Operation(call=Read(), result=7, start=0, end=1)])
    found = explain(Register(), verdict.violations[0])
    assert found.fits_after is None
    assert found.reasons[-1] == "No operation that had begun by then wrote 7."


def test_the_page_of_a_history_that_holds() -> None:
    verdict = check_linearizable(Register(), [Operation(call=Write(7), result=None, start=0, end=1)])
    assert "Every operation has a place" in violation_page(verdict, Register(), "good")
