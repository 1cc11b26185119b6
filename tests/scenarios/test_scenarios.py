"""Every golden scenario, played again: what it records must come out the same, and no invariant may break."""

from __future__ import annotations

from pathlib import Path

import pytest

from oarlock.sim.scenario import COMMANDS, ScenarioError, play

HERE = Path(__file__).parent
SCENARIOS = sorted(HERE.glob("*.scn"))
REFERENCE = HERE.parents[1] / "docs" / "reference" / "scenarios.md"


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path: Path, request: pytest.FixtureRequest) -> None:
    recorded = path.read_text()
    played = play(recorded, path.name)
    if request.config.getoption("--bless", default=False):
        path.write_text(played)
        recorded = played
    assert played == recorded, f"{path.name} records something else; if that is right: make bless, and read the diff"


def test_there_are_scenarios() -> None:
    assert len(SCENARIOS) >= 30


def test_every_scenario_says_what_it_is_about() -> None:
    for path in SCENARIOS:
        assert path.read_text().startswith("# "), f"{path.name} begins without a comment"


@pytest.mark.parametrize(
    ("text", "line", "column", "what"),
    [
        ("> elect 1\n", 1, 3, "first command of a scenario is `group`"),
        ("> group 1 2 3\n> elct 1\n", 2, 3, "unknown command 'elct'"),
        ("> group 1 2 3; elect 4\n", 1, 22, "there is no member 4"),
        ("> group 1 2 3; elect\n", 1, 16, "id of a member is missing"),
        ("> group 1 2 3; wait 3x\n", 1, 21, "'3x' is not a duration"),
        ('> group 1 2 3; propose 1 "open\n', 1, 26, "without its end"),
        ("> group 1 2 3; deliver 1>2\n", 1, 24, "is not a route"),
        ("> group 1 2 3; deliver 1->2 AppendEntry\n", 1, 29, "is not a message type"),
        ("> group 1 2 3; deliver 1->2\n", 1, 24, "no such message"),
        ("> group 1 2 3; change 1 add:4\n", 1, 25, "is not a step"),
        ("> group 1 2 3; restart 1\n", 1, 24, "member 1 is running"),
        ("> group 1 2 3; crash 1; elect 1\n", 1, 31, "member 1 is down"),
        ("> group 1 2 3 colour=red\n", 1, 15, "none of on, off, a number, a duration"),
        ("> group 1 2 3 pre-vot=on\n", 1, 3, "refuses these options"),
        ("> group 1 1\n", 1, 3, "each once"),
        ("> group 1 2 3\n> group 1\n", 2, 3, "there is a group already"),
        ("> group 1 2 3; cut\n", 1, 16, "who is cut off"),
        ("> group 1 2 3; replay old\n", 1, 23, "no such copy"),
        ("> group 1 2 3; settle now\n", 1, 23, "did not expect 'now'"),
        ("elect 1\n", 1, 1, "a line begins with"),
        ("    1 leader\n", 1, 1, "belongs below"),
    ],
)
def test_a_wrong_scenario_names_line_and_column(text: str, line: int, column: int, what: str) -> None:
    with pytest.raises(ScenarioError, match=what) as caught:
        play(text, "wrong.scn")
    assert (caught.value.line, caught.value.column) == (line, column), str(caught.value)
    assert str(caught.value).startswith(f"wrong.scn:{line}:{column}: ")


def test_recorded_lines_are_replaced() -> None:
    text = "# one\n> group 1; elect 1; settle\n    rubbish\n    more rubbish\n\n# two\n> state\n"
    played = play(text)
    assert "rubbish" not in played
    assert "leader" in played
    assert play(played) == played


def test_every_command_is_documented() -> None:
    text = REFERENCE.read_text()
    missing = [command for command in COMMANDS if f"`{command}" not in text]
    assert not missing, f"docs/reference/scenarios.md does not mention {missing}"
