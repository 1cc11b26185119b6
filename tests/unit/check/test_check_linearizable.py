"""The linearizability checker on small histories, on random ones against brute force, and at its bound."""

from __future__ import annotations

import itertools
import random
from collections.abc import Hashable, Sequence

import pytest

from oarlock.check import (
    IMPOSSIBLE,
    UNKNOWN,
    Append,
    Cas,
    CheckTooLarge,
    Get,
    KeyValue,
    Model,
    Operation,
    Put,
    Read,
    Recorder,
    Register,
    Swap,
    Write,
    check_linearizable,
)


def op(call: Hashable, result: Hashable, start: float, end: float | None, key: Hashable = None) -> Operation:
    return Operation(call=call, result=result, start=start, end=end, key=key)


def ok(*operations: Operation, model: Model | None = None) -> bool:
    return check_linearizable(model or Register(), operations).linearizable


def test_empty_history_is_linearizable() -> None:
    assert ok()


def test_stale_read_after_an_acknowledged_write_is_refused() -> None:
    assert not ok(op(Write(1), None, 0, 1), op(Read(), None, 2, 3))
    assert ok(op(Write(1), None, 0, 1), op(Read(), 1, 2, 3))


def test_read_during_a_write_may_see_either() -> None:
    assert ok(op(Write(1), None, 0, 9), op(Read(), None, 1, 2), op(Read(), 1, 3, 4))
    assert not ok(op(Write(1), None, 0, 9), op(Read(), 1, 1, 2), op(Read(), None, 3, 4))


def test_touching_operations_count_as_concurrent() -> None:
    assert ok(op(Write(1), None, 0, 1), op(Read(), None, 1, 2))


def test_lost_update_is_refused() -> None:
    first, second = op(Cas(0, 1), True, 0, 5), op(Cas(0, 2), True, 0, 5)
    assert not ok(first, second, model=Register(start=0))
    assert ok(first, op(Cas(1, 2), True, 0, 5), model=Register(start=0))


def test_failed_cas_observes_that_the_value_was_another() -> None:
    assert not ok(op(Cas(None, 1), False, 0, 1))
    assert ok(op(Cas(5, 1), False, 0, 1))


def test_swap_sees_the_value_it_replaces() -> None:
    first = op(Write(1), None, 0, 1)
    assert ok(first, op(Swap(None), 1, 2, 3), op(Read(), None, 4, 5))
    assert not ok(first, op(Swap(None), None, 2, 3))
    assert not ok(first, op(Swap(None), 1, 2, 9), op(Swap(None), 1, 2, 9)), "both deleted the same value"


def test_unknown_outcome_may_take_effect_much_later_or_never() -> None:
    lost = op(Write(7), UNKNOWN, 0, None)
    assert ok(lost, op(Read(), None, 1, 2), op(Read(), 7, 50, 51))
    assert ok(lost, op(Read(), None, 1, 2), op(Read(), None, 50, 51))
    assert not ok(lost, op(Read(), 7, 1, 2), op(Read(), None, 50, 51)), "once seen it stays"


def test_unknown_outcome_takes_effect_only_once() -> None:
    lost = op(Write(7), UNKNOWN, 0, None)
    writes = [op(Write(8), None, 3, 4)]
    assert not ok(lost, op(Read(), 7, 1, 2), *writes, op(Read(), 7, 5, 6))


def test_unknown_outcome_cannot_take_effect_before_it_was_asked() -> None:
    assert not ok(op(Read(), 7, 0, 1), op(Write(7), UNKNOWN, 2, None))


def test_unknown_read_says_nothing() -> None:
    assert ok(op(Read(), UNKNOWN, 0, None), op(Write(1), None, 1, 2))


def test_delete_is_a_write_of_nothing() -> None:
    history = [op(Write(1), None, 0, 1), op(Write(None), None, 2, 3)]
    assert ok(*history, op(Read(), None, 4, 5))
    assert not ok(*history, op(Read(), 1, 4, 5))


def test_keys_are_judged_apart_and_each_bad_one_is_named() -> None:
    verdict = check_linearizable(
        Register(),
        [
            op(Write(1), None, 0, 1, "good"),
            op(Read(), 1, 2, 3, "good"),
            op(Write(1), None, 0, 1, "bad"),
            op(Read(), 2, 2, 3, "bad"),
        ],
    )
    assert [violation.key for violation in verdict.violations] == ["bad"]
    assert (verdict.operations, verdict.keys) == (4, 2)
    assert "at key 'bad'" in str(verdict)


def test_append_order_is_pinned_by_reads() -> None:
    appends = [op(Append("a"), None, 0, 9), op(Append("b"), None, 0, 9)]
    assert ok(*appends, op(Get(), "ba", 10, 11), model=KeyValue())
    assert not ok(*appends, op(Get(), "ba", 10, 11), op(Get(), "ab", 12, 13), model=KeyValue())
    assert ok(op(Put("x"), None, 0, 1), op(Append("y"), None, 2, 3), op(Get(), "xy", 4, 5), model=KeyValue())


def test_explanation_leaves_out_what_does_not_matter() -> None:
    noise = [op(Read(), 1, 10 + n, 10.5 + n) for n in range(200)]
    history = [op(Write(1), None, 0, 1), *noise, op(Write(2), None, 300, 301), op(Read(), 1, 302, 303)]
    later = [op(Read(), 2, 400, 401)]
    (violation,) = check_linearizable(Register(), [*history, *later]).violations
    assert violation.operations == (history[0], history[-2], history[-1])
    assert violation.unplaced == history[-1]
    assert violation.states == (2,)


def test_forty_operations_of_unknown_outcome_are_no_burden() -> None:
    """2^40 subsets would never end; only the minimal ones are followed."""
    lost = [op(Write(n), UNKNOWN, 0, None) for n in range(40)]
    reads = [op(Read(), n, 1 + n, 1.5 + n) for n in (3, 1, 39, 20)]
    assert ok(*lost, *reads)
    assert not ok(*lost, *reads, op(Read(), 1, 100, 101))


def test_bound_on_configurations_is_reached_and_named() -> None:
    history = [op(Append(str(n)), None, 0, 100 + n) for n in range(9)]
    with pytest.raises(CheckTooLarge, match="more than 1000 configurations"):
        check_linearizable(KeyValue(), history, configurations_max=1000)


@pytest.mark.parametrize("model", [Register(), KeyValue()])
def test_foreign_call_is_refused_by_name(model: Model) -> None:
    with pytest.raises(TypeError, match="'scan'"):
        check_linearizable(model, [op("scan", None, 0, 1)])


def test_operation_refuses_an_end_without_a_result_and_time_running_backwards() -> None:
    with pytest.raises(ValueError, match="if and only if"):
        op(Read(), UNKNOWN, 0, 1)
    with pytest.raises(ValueError, match="if and only if"):
        op(Read(), 1, 0, None)
    with pytest.raises(ValueError, match="ends before"):
        op(Read(), 1, 2, 1)


def test_recorder_keeps_open_calls_unknown_and_forgets_unexecuted_ones() -> None:
    now = itertools.count()
    recorder = Recorder(clock=lambda: float(next(now)))
    first = recorder.begin(1, Write(1), "k")
    recorder.begin(2, Write(2), "k")
    third = recorder.begin(3, Write(3), "k")
    recorder.ok(first, None)
    recorder.not_executed(third)
    assert recorder.operations() == [
        Operation(call=Write(1), result=None, start=0, end=3, process=1, key="k"),
        Operation(call=Write(2), result=UNKNOWN, start=1, end=None, process=2, key="k"),
    ]


def _brute_force(model: Model, history: Sequence[Operation]) -> bool:
    """Every subset of the unknown ones, every order, straight from the definition."""
    known = [operation for operation in history if operation.end is not None]
    lost = [operation for operation in history if operation.end is None]
    for size in range(len(lost) + 1):
        for used in itertools.combinations(lost, size):
            for order in itertools.permutations([*known, *used]):
                if _true_to_time(order) and _answers(model, order):
                    return True
    return False


def _true_to_time(order: Sequence[Operation]) -> bool:
    return all(
        not (after.end is not None and after.end < before.start)
        for position, after in enumerate(order)
        for before in order[:position]
    )


def _answers(model: Model, order: Sequence[Operation]) -> bool:
    state = model.initial()
    for operation in order:
        after = model.step(state, operation.call, operation.result)
        if after is IMPOSSIBLE:
            return False
        state = after
    return True


def _random_history(rng: random.Random) -> list[Operation]:
    history = []
    for _ in range(rng.randint(3, 6)):
        start = rng.randint(0, 8)
        end = start + rng.randint(1, 5)
        match rng.choice("rrwwc"):
            case "r":
                history.append(op(Read(), rng.choice([None, 1, 2]), start, end))
            case "w":
                lost = rng.random() < 0.4
                history.append(op(Write(rng.choice([1, 2])), UNKNOWN if lost else None, start, None if lost else end))
            case _:
                lost = rng.random() < 0.4
                call = Cas(rng.choice([None, 1, 2]), rng.choice([1, 2]))
                history.append(op(call, UNKNOWN if lost else rng.random() < 0.6, start, None if lost else end))
    return history


def test_agrees_with_brute_force_on_random_histories() -> None:
    rng = random.Random(20260801)
    verdicts = []
    for number in range(1500):
        history = _random_history(rng)
        expected = _brute_force(Register(), history)
        verdicts.append(expected)
        got = check_linearizable(Register(), history)
        assert got.linearizable is expected, f"history {number}:\n" + "\n".join(map(str, history)) + f"\n{got}"
    assert 200 < sum(verdicts) < 1300, "the generator should give plenty of both"
