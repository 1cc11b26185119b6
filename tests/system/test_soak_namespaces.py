"""Everything at once, on hosts of their own: partitions of every kind, kills, pauses, full disks, members that come
and go, under clients of every kind. Afterwards the history is linearizable, every watch is complete, no lease was over
early, all members hold the same, and nothing has leaked.

`SOAK_SECONDS` is how long the soak takes (`make soak`), `SOAK_SEED` repeats a choice of faults (not the interleaving:
these are real processes). Needs root, for network namespaces and a small file system; docs/how-to/soak.md says more.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from tests.support.clusters import assert_all_equal, runs_etcd, wait_until
from tests.support.etcd_wire import EtcdClient
from tests.support.namespaces import Network, not_permitted
from tests.support.soak import (
    HOSTS,
    LEASED,
    OWN,
    SHARED,
    STAYS,
    Faults,
    Lab,
    Leases,
    Load,
    errors_in,
    hashes,
    held_by,
    sampling,
)
from tests.support.soak_clients import WATCHERS, Seen, WireWatcher
from tests.support.watch_client import WatchClient

from oarlock.check import Register, check_linearizable

SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
SEED = int(os.environ.get("SOAK_SEED", str(random.SystemRandom().randrange(1_000_000))))
CLIENTS = ["grpcio", "grpcio", "own", "own", "etcd3gw", "curl", "etcdctl"]
DESCRIPTORS_MORE_MAX = 12
BYTES_MORE_MAX = 250_000_000
"""What a member may grow by, in bytes, whatever happens: the end of its log, what is not checkpointed, and freed memory
that the allocator keeps after the large values of a full disk."""
BYTES_PER_EVENT_MAX = 4_000
"""And for each change: its history stays until it is compacted, which nobody does here."""


@pytest.mark.soak
def test_soak(tmp_path: Path) -> None:
    def more(faults: Faults, until: float) -> None:
        while time.monotonic() < until:
            faults.one()

    soak(tmp_path, more, SECONDS)


@pytest.mark.soak
def test_one_fault_of_each_kind(tmp_path: Path) -> None:
    """The soak in short."""

    def some(faults: Faults, _: float) -> None:
        for kind in (
            faults.isolate_leader, faults.one_way_from_leader, faults.pause_leader, faults.kill_leader,
            faults.full_disk, faults.replace_member,
        ):  # fmt: skip
            faults.one(kind)

    soak(tmp_path, some, 0.0)


def soak(directory: Path, mischief: Callable[[Faults, float], None], seconds: float) -> None:
    if runs_etcd():
        pytest.skip("exit codes of our own")
    if why := not_permitted(directory):
        pytest.skip(why)
    print(f"SOAK_SEED={SEED}", file=sys.stderr)
    with Network(HOSTS) as network, Lab(network, directory) as lab:
        try:
            lab.cluster.start()
            _soak(lab, mischief, seconds)
        except BaseException:
            print(lab.cluster.logs(), file=sys.stderr)
            raise


def _soak(lab: Lab, mischief: Callable[[Faults, float], None], seconds: float) -> None:
    stays = lab.hosts[STAYS]
    before = held_by(stays.pid)
    pid = stays.pid
    began = time.monotonic()
    watchers = [kind(SHARED, lab.endpoints, SEED) for kind in WATCHERS]
    watchers.append(WireWatcher(OWN, lab.endpoints, SEED + 1))
    lease_watcher = WireWatcher(LEASED, lab.endpoints, SEED + 2)
    everyone = [*watchers, lease_watcher]
    load = Load(lab.endpoints, CLIENTS, SEED)
    leases = Leases(lab.endpoints, SEED)
    faults = Faults(lab, load, SEED)
    for watcher in everyone:
        watcher.start()
    with sampling(lab, began):
        with load, leases:
            load.wait_progress(50)
            mischief(faults, began + seconds)
            load.wait_progress(100)
        took = time.monotonic() - began
        assert not load.errors, load.errors
        assert not leases.errors, leases.errors
        # Every lease is left alone now: in the end they are all over.
        with EtcdClient(stays.endpoint) as client:
            wait_until(
                lambda: not client.get(LEASED.encode(), range_end=b"lease0").count, 240, "no lease left", poll=0.5
            )
            last = client.get(b"x").header.revision
            history = whole_history(lab.members[0].endpoint, (SHARED, OWN, LEASED))
        try:
            for watcher in everyone:
                expected = [event for event in history if event[1].startswith(watcher.prefix)]
                goal = expected[-1][0]
                wait_until(
                    lambda watcher=watcher, goal=goal: watcher.error is not None or watcher.revision >= goal,  # type: ignore[misc]
                    240,
                    f"the watcher by {watcher.kind} of {watcher.prefix} at revision {goal}",
                )
                assert watcher.error is None, watcher.error
                compare(watcher.seen, expected, f"{watcher.kind} {watcher.prefix}")
        finally:
            for watcher in everyone:
                watcher.close()
    rows = assert_all_equal(lab.cluster)
    stored = {row[0].decode(): row[1].decode() for row in rows if row[0].startswith(OWN.encode())}
    lost = {key for key, value in load.acknowledged.items() if stored.get(key) != value}
    assert not lost, f"acknowledged and lost: {sorted(lost)[:5]}"
    early = early_ends(lease_watcher, leases)
    verdict = check_linearizable(Register(), load.recorder.operations())
    after = held_by(pid)
    assert after is not None and before is not None, f"{STAYS} was restarted"
    summary = "\n".join(
        [
            f"{took:.0f} s, seed {SEED}, revision {last}, {len(history)} events",
            f"faults: {dict(faults.done)}; served again after at most {faults.slowest:.1f} s",
            f"answered: {dict(load.answered)}; failed: {dict(load.failed)}",
            "watches: " + ", ".join(f"{w.kind} {w.prefix} {len(w.seen)} over {w.streams} streams" for w in everyone),
            f"leases: {len(leases.promised)} with {leases.renewals} renewals, {early} over early",
            f"{verdict}",
            f"{STAYS}: {before[0] / 1e6:.0f} MB, {before[1]} descriptors; then {after[0] / 1e6:.0f} MB, {after[1]}",
            *usage(lab),
        ]
    )
    print(summary, file=sys.stderr)
    told = hashes(lab)
    assert len(set(told.values())) == 1, f"hashes differ: {told}"
    assert early == 0, summary
    assert verdict.linearizable, summary
    for member in lab.hosts.values():
        assert not errors_in(member.log()), errors_in(member.log())[:3]
    assert after[0] - before[0] < BYTES_MORE_MAX + BYTES_PER_EVENT_MAX * len(history), summary
    wait_until(
        lambda: (held_by(pid) or (0, 0))[1] <= before[1] + DESCRIPTORS_MORE_MAX, 120, f"descriptors closed\n{summary}"
    )


def whole_history(endpoint: str, prefixes: Iterable[str]) -> list[Seen]:
    """Everything that happened to keys with these prefixes, as one member has it, up to a last key for each."""
    found: list[Seen] = []
    for prefix in prefixes:
        with EtcdClient(endpoint) as client:
            last = client.put(f"{prefix}~end".encode(), b"end").header.revision
            stream = WatchClient(client.channel)
            stream.create(prefix.encode(), range_end=f"{prefix[:-1]}0".encode(), start_revision=1)
            stream.wait(
                lambda answers, last=last: any(e.kv.mod_revision >= last for a in answers[-1:] for e in a.events),
                f"the history of {prefix}",
                300,
            )
            for event in stream.events():
                value = None if event.type else event.kv.value.decode()
                found.append((event.kv.mod_revision, event.kv.key.decode(), value))
            stream.close()
    return found


def compare(seen: list[Seen], expected: list[Seen], who: str) -> None:
    """Every event, once, in order."""
    if seen == expected:
        return
    place = next(
        (n for n, (a, b) in enumerate(zip(seen, expected, strict=False)) if a != b), min(len(seen), len(expected))
    )
    raise AssertionError(
        f"{who}: {len(seen)} events of {len(expected)}; from {place} on {seen[place : place + 3]} "
        f"and not {expected[place : place + 3]}"
    )


def early_ends(watcher: WireWatcher, leases: Leases) -> int:
    """How many keys went before their lease's time, by the clock of those who were promised it."""
    gone = {key: at for (_, key, value), at in zip(watcher.seen, watcher.times, strict=True) if value is None}
    return sum(at < leases.promised[key] for key, at in gone.items() if key in leases.promised)


def usage(lab: Lab) -> list[str]:
    """The first and the last look at every process that lived for long."""
    return [
        f"{name} (process {pid}): {s[0][1] / 1e6:.0f} MB, {s[0][2]} descriptors after {s[0][0]:.0f} s; "
        f"{s[-1][1] / 1e6:.0f} MB, {s[-1][2]} after {s[-1][0]:.0f} s"
        for (name, pid), s in sorted(lab.samples.items())
        if s[-1][0] - s[0][0] > 60
    ]
