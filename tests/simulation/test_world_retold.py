"""A failing seed becomes a short scenario of the core, a sequence diagram, and a command that runs it again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.support.planted_defects import (
    acknowledge_before_the_sync,
    count_one_too_many,
    delete_nothing,
    read_before_the_term_is_committed,
    snapshot_with_todays_configuration,
)

from oarlock.cli.app import main
from oarlock.cli.sim import sim
from oarlock.lab.diagram import diagram_page
from oarlock.sim.failures import Violation
from oarlock.sim.retell import ALIKE, LINES_MAX, retell
from oarlock.sim.scenario import play
from oarlock.sim.world import Outcome, run_replay, run_seed
from oarlock.sim.world.choices import Choices
from oarlock.sim.world.outcome import Replay
from oarlock.sim.world.recording import Links, Note, Recording, Sent, Turn
from oarlock.sim.world.shrink import Shrinker, shape
from oarlock.sim.world.swarm import draw_swarm

Patch = pytest.MonkeyPatch
SEEDS = range(5000, 5040)
ATTEMPTS = 60


def failing() -> Outcome:
    for seed in SEEDS:
        outcome = run_seed(seed, events=400)
        if outcome.failed:
            return outcome
    raise AssertionError("nothing was found")


def made_short(failure: Outcome) -> tuple[Replay, Outcome, Recording]:
    small = Shrinker(Replay(seed=failure.seed, events=400), attempts=ATTEMPTS).shrink()
    recording = Recording()
    return small, run_replay(small, keep=None, recording=recording), recording


@pytest.mark.parametrize(
    "plant",
    [
        count_one_too_many,
        acknowledge_before_the_sync,
        read_before_the_term_is_committed,
        snapshot_with_todays_configuration,
    ],
)
def test_a_defect_of_the_core_becomes_a_scenario(plant: Callable[[Patch], None], monkeypatch: Patch) -> None:
    with monkeypatch.context() as patch:
        plant(patch)
        failure = failing()
        small, outcome, recording = made_short(failure)
        assert shape(outcome) == shape(failure)
        assert outcome.turns <= failure.turns
        swarm = draw_swarm(Choices(small.seed, small.edits or None), frozenset(small.off))
        found = retell(recording, swarm, outcome.invariant, outcome.what, "A planted defect.")
        assert found.text, found.why
        assert len(found.text.splitlines()) <= LINES_MAX
        assert found.text.startswith("# A planted defect.")
        with pytest.raises(AssertionError) as caught:
            play(found.text)
        if isinstance(caught.value, Violation):
            assert caught.value.name in ALIKE.get(outcome.invariant, {outcome.invariant})
    play(found.text)  # the right code takes the same scenario


def test_a_defect_of_the_machine_cannot_be_told_on_the_core(monkeypatch: Patch) -> None:
    delete_nothing(monkeypatch)
    small, outcome, recording = made_short(failing())
    swarm = draw_swarm(Choices(small.seed, small.edits or None), frozenset(small.off))
    found = retell(recording, swarm, outcome.invariant, outcome.what, "A planted defect.")
    assert not found.text
    assert "a part that the stage of scenarios does not have" in found.why


def test_shrinking_makes_the_group_smaller(monkeypatch: Patch) -> None:
    count_one_too_many(monkeypatch)
    failure = failing()
    small, outcome, _ = made_short(failure)
    before = draw_swarm(Choices(failure.seed), frozenset())
    after = draw_swarm(Choices(small.seed, small.edits or None), frozenset(small.off))
    assert after.voters + after.learners < before.voters + before.learners or before.voters <= 2
    assert outcome.invariant == failure.invariant


def test_another_assert_is_another_failure() -> None:
    first = Outcome(1, invariant="ASSERT", what="ASSERT: member 3: stable 7 above last 1")
    assert shape(first) == shape(Outcome(2, invariant="ASSERT", what="ASSERT: member 1: stable 12 above last 9"))
    assert shape(first) != shape(Outcome(2, invariant="ASSERT", what="ASSERT: member 3: gap after 7"))


# ---------------------------------------------------------------- recording and drawing


@pytest.fixture(scope="module")
def recorded() -> tuple[Outcome, Recording]:
    recording = Recording()
    return run_replay(Replay(seed=220, events=300), recording=recording), recording


def test_a_recording_changes_nothing_and_is_whole(recorded: tuple[Outcome, Recording]) -> None:
    outcome, recording = recorded
    assert outcome.digest == run_replay(Replay(seed=220, events=300)).digest
    turns = [moment for moment in recording.moments if isinstance(moment, Turn)]
    assert len(turns) == outcome.turns
    assert all(turn.finished for turn in turns)
    sent = {id(moment) for moment in recording.moments if isinstance(moment, Sent)}
    assert len(sent) == outcome.statistics["messages"]
    arrived = [one for turn in turns for one in turn.arrived]
    assert len(arrived) > 50
    assert all(id(one) in sent and one.at < turn.at for turn in turns for one in turn.arrived)
    assert all(not one.fate for one in arrived)
    assert any(isinstance(moment, Note) for moment in recording.moments)


def test_the_page_stands_alone_and_shows_what_matters(monkeypatch: Patch) -> None:
    count_one_too_many(monkeypatch)
    _, outcome, recording = made_short(failing())
    page = diagram_page(recording, "a <failing> seed", violation=outcome.what, invariant=outcome.invariant)
    assert "a &lt;failing&gt; seed" in page
    assert not re.search(r'(src|href)="', page), "the page needs something from outside"
    assert "prefers-color-scheme:dark" in page
    for wanted in ("member 1", "leader t1", "RequestVote", "✗ here", outcome.what):
        assert wanted in page, f"{wanted!r} is not drawn"


def test_cuts_are_said_as_people_say_them() -> None:
    from oarlock.lab.diagram import _links_text

    parted = frozenset({(1, 2), (2, 1), (1, 3), (3, 1)})
    assert _links_text(Links(0, parted, (1, 2, 3))) == "cut 1 | 2 3"
    assert _links_text(Links(0, frozenset({(1, 2)}), (1, 2, 3))) == "cut 1->2"
    assert _links_text(Links(0, frozenset(), (1, 2, 3))) == "all links mended"


# ---------------------------------------------------------------- the command


def test_the_command_shrinks_tells_and_draws(monkeypatch: Patch, tmp_path: Path) -> None:
    count_one_too_many(monkeypatch)
    failure = failing()
    replay, page = tmp_path / "it.replay.json", tmp_path / "it.html"
    arguments = ["--seed", str(failure.seed), "--events", "400", "--shrink", "--attempts", str(ATTEMPTS)]
    result = CliRunner().invoke(sim, [*arguments, "--output", str(replay), "--html", str(page)])
    assert result.exit_code == 1, result.output
    scenario = tmp_path / "it.scn"
    assert f"scenario: oarlock sim --scenario {scenario}" in result.output
    assert f"replay: oarlock sim --replay {replay} --digest" in result.output
    assert "as a scenario of the core" in page.read_text()
    again = CliRunner().invoke(sim, ["--scenario", str(scenario)])
    assert again.exit_code == 1
    assert "COQ: " in again.output
    once_more = CliRunner().invoke(sim, ["--replay", str(replay), "--json"])
    assert json.loads(once_more.output)["failure"]["invariant"] == "COQ"


def test_a_scenario_that_holds_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).resolve().parents[1] / "scenarios" / "figure_8.scn"
    with pytest.raises(SystemExit) as ended:
        main(["sim", "--scenario", str(path)])
    assert ended.value.code == 0
    assert capsys.readouterr().out == path.read_text()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("> group 1 2 3\n> elct 1\n", ":2:3: unknown command 'elct'"),
        ("> group 1 2 3; elect 4\n", ":1:22: elect: there is no member 4"),
        ("> group 1 2 3; wait 3x\n", ":1:21: wait: '3x' is not a duration"),
    ],
)
def test_a_wrong_scenario_names_line_and_column(
    text: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "wrong.scn"
    path.write_text(text)
    assert main(["sim", "--scenario", str(path)]) == 2
    assert f"{path}{says}" in capsys.readouterr().err
