"""Markers: each names a line that can be reached, watching them changes nothing, and the command lists the rest."""

from __future__ import annotations

import json
from pathlib import Path
from types import CodeType

import pytest
from click.testing import CliRunner

import oarlock
from oarlock.cli.sim import sim
from oarlock.sim.world import run_seed
from oarlock.sim.world.markers import Marker, markers, watching
from oarlock.sim.world.outcome import MARKER


def lines_of(code: CodeType) -> set[int]:
    found = {line for _, _, line in code.co_lines() if line is not None}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= lines_of(constant)
    return found


def test_there_are_markers_in_core_replica_and_storage() -> None:
    folders = {marker.file.rpartition("/")[0] for marker in markers()}
    assert folders == {"raft", "node/replica", "storage"}
    assert len(markers()) > 100


@pytest.mark.parametrize("file", sorted({marker.file for marker in markers()}))
def test_a_marker_stands_above_a_statement(file: str) -> None:
    path = Path(oarlock.__file__).parent / file
    lines = lines_of(compile(path.read_text(), str(path), "exec"))
    missing = [marker for marker in markers() if marker.file == file and marker.line not in lines]
    assert not missing


def test_watching_finds_what_is_reached_and_changes_nothing() -> None:
    plain, watched = run_seed(3, events=300), run_seed(3, events=300, markers=True)
    assert plain.digest == watched.digest
    assert not any(name.startswith(MARKER) for name in plain.statistics)
    assert f"{MARKER}an append is refused" in watched.statistics
    known = {marker.name for marker in markers()}
    assert {name.removeprefix(MARKER) for name in watched.statistics if name.startswith(MARKER)} <= known


def test_a_line_that_is_not_reached_is_not_marked() -> None:
    with watching() as reached:
        pass
    assert not reached


def test_the_command_lists_what_no_seed_reached() -> None:
    arguments = ["--seeds", "4", "--events", "200", "--markers"]
    texts = [CliRunner().invoke(sim, [*arguments, "--jobs", jobs]).output for jobs in ("1", "2")]
    report = json.loads(CliRunner().invoke(sim, [*arguments, "--jobs", "1", "--json"]).output)
    never = report["markers"]["never"]
    for text in texts:
        assert f"{len(report['markers']['reached'])} markers reached, {len(never)} never:" in text
        assert all(name in text for name in never)
    assert not any(name.startswith(MARKER) for name in report["statistics"])


def test_markers_are_about_many_seeds() -> None:
    assert CliRunner().invoke(sim, ["--seed", "1", "--markers"]).exit_code == 2


def test_a_marker_says_where_it_is() -> None:
    assert str(Marker("a thing", "raft/core.py", 7)) == "a thing (raft/core.py:7)"
