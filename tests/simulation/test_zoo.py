"""The bug zoo in small: every planted defect applies, ten quick ones are killed, and the page says what was found.

`make zoo` runs all of it (docs/reference/zoo.md).
"""

from __future__ import annotations

import pytest
from benchmarks.zoo import report
from benchmarks.zoo.catalogue import ALL, DEFECTS, EXCLUDED, chosen
from benchmarks.zoo.entry import Edit, Entry
from benchmarks.zoo.hunt import Result, baseline, hunt
from benchmarks.zoo.tree import SOURCE, DoesNotApply, apply

BUDGET = 40
QUICK = ("BZ-01", "BZ-03", "BZ-09", "BZ-18", "BZ-22", "BZ-32", "BZ-38", "BZ-44", "BZ-48", "BZ-49")


@pytest.mark.parametrize("entry", ALL, ids=lambda entry: entry.id)
def test_an_entry_applies_exactly_once(entry: Entry) -> None:
    apply(entry.edits, SOURCE)


def test_an_entry_that_does_not_apply_is_loud() -> None:
    for old, times in (("no such text", 0), ("        return None\n", 2)):
        with pytest.raises(DoesNotApply, match=rf"[{times}-9]\d* times instead of once"):
            apply((Edit("raft/core.py", old, ""),), SOURCE)
    with pytest.raises(DoesNotApply, match="does not exist"):
        apply((Edit("raft/nowhere.py", "", ""),), SOURCE)


def test_every_defect_of_the_list_is_here_once() -> None:
    ids = [entry.id for entry in (*DEFECTS, *EXCLUDED)]
    assert len(ids) == len(set(ids)) == 100


@pytest.mark.parametrize("name", QUICK)
def test_a_planted_defect_is_killed(name: str) -> None:
    (entry,) = chosen([name])
    result = hunt(entry, BUDGET)
    assert result.killed, report.line(result)
    assert result.invariant not in ("ASSERT", "CRASH", "error", "hang")


def test_the_unchanged_source_passes_the_same_seeds() -> None:
    clean = baseline(BUDGET)
    assert not clean.invariant and not clean.unproven, clean.what


def test_the_page_shows_the_recorded_results() -> None:
    assert report.PAGE.read_text().partition(report.BEGIN)[2] == report.page(report.load())


def test_a_survivor_is_not_as_it_should_be() -> None:
    assert not report.as_it_should(Result("BZ-01", seeds=400))
    assert report.as_it_should(Result("BZ-01", invariant="ES", seeds=1))
    assert report.as_it_should(Result("OK-1", seeds=400))
    assert not report.as_it_should(Result("OK-1", invariant="WAL", seeds=2))
