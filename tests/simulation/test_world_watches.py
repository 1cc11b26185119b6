"""Watches in the simulated world: everything is told once and in order whatever happens to members, and what each of
the known faults (BZ-124 to 127) would do is found."""

from __future__ import annotations

from typing import Any

import pytest

from oarlock.machines.kv import events as kv_events
from oarlock.machines.kv import watch as kv_watch
from oarlock.sim.failures import Violation
from oarlock.sim.world.features import EtcdApplication
from oarlock.sim.world.world import World

EVENTS = 500
SEEDS = 8


def run(seed: int, events: int = EVENTS) -> EtcdApplication:
    application = EtcdApplication(frozenset({"watches"}))
    World(seed, events=events, application=application).run()
    return application


def test_everybody_is_told_everything_once() -> None:
    told: dict[str, int] = {}
    for seed in range(SEEDS):
        for name, count in run(seed).told().items():
            told[name] = told.get(name, 0) + count
    assert all(told.values()), f"something never happened: {told}"


def broken(seeds: range = range(60)) -> str:
    for seed in seeds:
        try:
            run(seed)
        except Violation as violation:
            return str(violation)
    return ""


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["BZ-124", "BZ-126", "BZ-127"])
def test_known_faults_are_found(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub: Any = kv_watch.WatchHub
    if fault == "BZ-124":  # a reader that is full is moved on
        original = hub._fall_behind

        def fall_behind(self: Any, watcher: Any, at: int) -> None:
            original(self, watcher, at + 1)

        monkeypatch.setattr(hub, "_fall_behind", fall_behind)
    elif fault == "BZ-126":  # progress whatever a watch was told
        monkeypatch.setattr(kv_watch.WatchStream, "all_synced", property(lambda self: True))
    else:  # a batch ends anywhere

        def cut(events: Any, filters: int, prev_kv: bool, bytes_max: int | None = None) -> Any:
            return [kv_events.EventBatch([event], prev_kv) for event in events if not filters]

        monkeypatch.setattr(kv_watch, "cut_batches", cut)
    assert "WATCH" in broken(), "the fault was not found"
