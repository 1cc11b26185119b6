"""A campaign says where it ended, so that it can go on there."""

from __future__ import annotations

import json

from click.testing import CliRunner

from oarlock.cli import sim as sim_module
from oarlock.cli.sim import sim
from oarlock.sim.world import Outcome


def test_the_report_names_the_first_seed_and_the_next() -> None:
    ran = CliRunner().invoke(sim, ["--seeds", "3", "--start", "70", "--events", "60", "--jobs", "1", "--json"])
    assert ran.exit_code == 0, ran.output
    report = json.loads(ran.stdout)
    assert (report["first_seed"], report["next_seed"], report["seeds"]) == (70, 73, 3)
    assert report["statistics"]["turns"] > 100


def test_two_halves_are_the_whole() -> None:
    def digest(start: int, seeds: int) -> str:
        arguments = [
            "--seeds",
            str(seeds),
            "--start",
            str(start),
            "--events",
            "60",
            "--jobs",
            "1",
            "--json",
            "--digest",
        ]
        return CliRunner().invoke(sim, arguments).stdout.splitlines()[-1]

    assert digest(80, 1) != digest(81, 1)
    assert digest(80, 2) == digest(80, 2)


def test_what_ran_out_of_order_leaves_a_gap_to_go_on_from() -> None:
    assert sim_module._first_gap([Outcome(5), Outcome(7), Outcome(6), Outcome(9)]) == 8
