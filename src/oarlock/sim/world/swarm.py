"""What kind of world a seed makes: which faults exist, how strong they are, how the group is built. (swarm testing)

Each class of fault is switched on or off by a coin of its own: leaving some out reaches states that a mixture of all
never does. One seed in twenty has no faults at all, one in ten a single class at its strongest, one in twenty has
everything.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from oarlock.sim.world.choices import MILLION, Choices

MS = 1_000_000

CLASSES: tuple[str, ...] = (
    # the network
    "loss", "duplicate", "ghost", "jitter", "partition", "bridge", "one_way", "flap", "clog",
    "reset", "strand", "lag",
    # processes
    "kill", "power", "crash_all", "crash_effect", "crash_recovery", "pause", "slow_cpu", "hint",
    "behind",
    # disks
    "slow_disk", "sync_failure", "eio", "full", "rot", "wipe", "misdirect",
    # clocks
    "drift", "wall", "freeze",
    # people and programs
    "transfer", "members", "replace", "retry", "abandon", "big", "hasty", "versions",
    # the order of things
    "priorities", "core",
)  # fmt: skip
"""Every class of fault or of unruly use, as `off` and a replay file name them."""

WATCHES, LEASES, AUTH = FEATURES = ("watches", "leases", "auth")
"""What the key-value machine's clients use beside keys: each in a part of the seeds. `off` names them, too."""

VOTERS = ((1, 5), (2, 5), (3, 45), (4, 10), (5, 25), (6, 5), (7, 5))  # (how many, per cent)


@dataclass(slots=True, kw_only=True)
class Swarm:
    """The configuration of one seed. Times in ns, intervals and probabilities already scaled."""

    classes: frozenset[str]
    features: frozenset[str]
    voters: int
    learners: int
    witnesses: int
    timeout: int  # T
    heartbeat: int
    pre_vote: bool
    check_quorum: bool
    lease_reads: bool
    drift_ppm: int
    message_bytes: int
    inflight: int
    inflight_bytes: int
    uncommitted_bytes: int
    apply_bytes: int
    snapshot_entries: int
    tail_entries: int
    promote_lag: int
    request_timeout: int
    durable_machine: bool
    incarnations: bool
    publish: bool
    segment_bytes: int
    latency_min: int
    latency_mean: int
    stream: bool  # per link in order, and a reset loses what is under way; otherwise datagrams
    loss: int  # per million
    duplicate: int
    ghost: int
    crash_effect: int
    crash_recovery: int
    cpu: int  # how long a turn takes to begin
    sync: int  # how long an fsync takes
    job: int  # how long a piece of background work takes
    chunk_bytes: int
    clients: int
    think: int  # mean pause of a client
    keys: int
    turning_points: int  # turns at which the priorities of members change anew (0: there are none)
    interval: dict[str, int] = field(default_factory=dict)  # class -> mean time between two of its faults


TIMED: tuple[str, ...] = (
    "partition", "bridge", "one_way", "flap", "clog", "reset", "kill", "power", "crash_all", "pause",
    "slow_cpu", "hint", "slow_disk", "sync_failure", "eio", "full", "rot", "wipe", "misdirect", "drift", "wall",
    "freeze", "transfer", "members", "replace", "versions",
)  # fmt: skip
"""The classes that strike now and then; the others colour everything, or follow an election."""

_ONE_IN = {"priorities": 10, "core": 5}
"""Classes that are not on in every second seed."""

_RARE = {
    "crash_all": 6,
    "rot": 4,
    "misdirect": 4,
    "wipe": 10,
    "replace": 4,
    "power": 1,
    "hint": 2,
    "full": 2,
    "behind": 3,
}


def draw_swarm(choices: Choices, off: frozenset[str]) -> Swarm:
    """The world of this seed, without the classes and features in `off`."""
    draw = choices.stream("swarm")
    mood = draw.draw(100)
    coins = [name for name in CLASSES if choices.stream(f"swarm/{name}").draw(_ONE_IN.get(name, 2)) == 1]
    single = CLASSES[draw.draw(len(CLASSES))]
    strongest = 40 <= mood < 50
    if mood < 5:
        chosen: set[str] = set()
    elif strongest:
        chosen = {single}
    elif mood >= 95:
        chosen = set(CLASSES)
    else:
        chosen = set(coins)
    classes = frozenset(chosen - off)

    roll = draw.draw(100)
    voters = 3
    for size, share in VOTERS:
        if roll < share:
            voters = size
            break
        roll -= share
    timeout = draw.scaled(50 * MS, 500 * MS)
    heartbeat = max(1 * MS, timeout // draw.between(3, 8))
    check_quorum = draw.draw(2) == 1
    lease = check_quorum and draw.draw(2) == 1
    drift_ppm = (10_000, 50_000, 200_000)[draw.draw(3)]
    mean = draw.scaled(max(1, timeout // 100), timeout // 6)
    tail = 0 if draw.draw(5) == 0 else draw.scaled(1, 80)
    swarm = Swarm(
        classes=classes,
        features=frozenset(name for name in FEATURES if choices.draw(f"swarm/{name}", 3) == 2) - off,
        voters=voters,
        learners=(0, 0, 0, 1, 2)[draw.draw(5)],
        witnesses=1 if voters >= 3 and draw.draw(8) == 7 else 0,
        timeout=timeout,
        heartbeat=heartbeat,
        pre_vote=draw.draw(2) == 1,
        check_quorum=check_quorum,
        lease_reads=lease,
        drift_ppm=drift_ppm,
        message_bytes=draw.scaled(1, 4096) if draw.draw(2) else 1 << 20,
        inflight=draw.scaled(1, 64),
        inflight_bytes=choices.stream("swarm/window").scaled(100, 4000) if choices.draw("swarm/window", 2) else 1 << 24,
        uncommitted_bytes=draw.scaled(64, 4096) if draw.draw(4) == 3 else 1 << 26,
        apply_bytes=draw.scaled(1, 2048) if draw.draw(2) else 1 << 22,
        snapshot_entries=1 if draw.draw(7) == 6 else draw.scaled(2, 50),
        tail_entries=tail,
        promote_lag=draw.scaled(1, 100),
        request_timeout=timeout * draw.between(1, 8),
        durable_machine=draw.draw(3) == 2,
        incarnations=draw.draw(4) != 0,
        publish=draw.draw(4) == 3,
        segment_bytes=4096 << max(0, draw.draw(6) - 2),
        latency_min=draw.draw(1 + mean // 4),
        latency_mean=mean,
        stream=draw.draw(2) == 1,
        loss=0,
        duplicate=0,
        ghost=0,
        crash_effect=0,
        crash_recovery=0,
        cpu=draw.scaled(10_000, max(20_000, timeout // 200)),
        sync=draw.scaled(20_000, max(40_000, timeout // 5)),
        job=draw.scaled(20_000, max(40_000, timeout // 4)),
        chunk_bytes=draw.scaled(100, 4000),
        clients=draw.between(1, 4),
        think=draw.scaled(max(1, timeout // 8), timeout * 2),
        keys=draw.scaled(2, 16),
        turning_points=3 + choices.draw("swarm/turning points", 3) if "priorities" in classes else 0,
    )
    power = choices.stream("swarm/power of faults")

    def strength(low: int, high: int) -> int:
        return high if strongest else power.scaled(low, high)

    loss, duplicate, ghost = strength(2_000, 300_000), strength(2_000, 500_000), strength(1_000, 20_000)
    effect, recovery = strength(200, 10_000), strength(20_000, 300_000)
    swarm.loss = loss if "loss" in classes else 0
    swarm.duplicate = duplicate if "duplicate" in classes else 0
    swarm.ghost = ghost if "ghost" in classes else 0
    swarm.crash_effect = effect if "crash_effect" in classes else 0
    swarm.crash_recovery = recovery if "crash_recovery" in classes else 0
    assert max(swarm.loss, swarm.duplicate) < MILLION
    for name in TIMED:
        slow = 1 if strongest else power.scaled(1, 20)
        if name in classes:
            swarm.interval[name] = timeout * slow * _RARE.get(name, 1)
    return swarm
