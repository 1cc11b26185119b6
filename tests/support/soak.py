"""A cluster on hosts of its own, clients of every kind that write everything down, and what goes wrong meanwhile.

`Lab` is the cluster: five hosts, of which three are members at a time; one has a small disk of its own. `Load` is the
clients, `Leases` keeps leases alive and lets them go, `Faults` is the mischief. The judging is the test's.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, Self

import grpc
from tests.support.clusters import program_under_test, status_of, wait_until
from tests.support.etcd_wire import EtcdClient
from tests.support.namespaces import OUTSIDE, Network
from tests.support.soak_clients import KINDS, PAUSES, Caller, Lost, Refused

from oarlock.check import Cas, Read, Recorder, Swap, Write
from oarlock.cli.exits import Exit
from oarlock.cli.local_cluster import LocalCluster, MemberProcess, find_program

HOSTS: Final = ("m1", "m2", "m3", "m4", "m5")
SIZE: Final = 3
STAYS: Final = "m1"
"""The member that is never killed nor removed: what its process holds is looked at for leaks."""
SMALL: Final = "m2"
"""The host with the small disk."""
DISK_MB: Final = 700
LARGE: Final = 80
"""So many values of 1 MB are written while the disk is full for the first time: a log's preallocated space is used up.
They stay in the history, of which the hash takes 0.08 s for each; later the clients' own writes must do."""
CLIENT_PORT, PEER_PORT = 2379, 2380

SHARED: Final = "shared/"
OWN: Final = "own/"
LEASED: Final = "lease/"
SHARED_KEYS: Final = 5
EPOCH_SECONDS: Final = 10.0
"""So long the clients fight about the same keys: the calls of unknown outcome on a key stay few enough to be judged."""

QUIET_SECONDS: Final = 240.0
"""How long the cluster may need, on a busy machine, to serve again after a fault."""


class Lab:
    """The members. `members` are those that belong to the cluster now, whether they run or not."""

    def __init__(self, network: Network, directory: Path) -> None:
        self.network = network
        self.cluster = LocalCluster(program_under_test(), 1, directory=directory)
        self.cluster.members.clear()
        self.hosts: dict[str, MemberProcess] = {}
        for name in HOSTS:
            member = self.cluster.add(name)
            member.host, member.client_port, member.peer_port = network.address(name), CLIENT_PORT, PEER_PORT
            member.before = network.inside(name)
            member.initial_cluster_state = "new"
            self.hosts[name] = member
        self.cluster.members[:] = [self.hosts[name] for name in HOSTS[:SIZE]]
        self.cluster.initial_cluster = ",".join(f"{m.name}={m.peer_url}" for m in self.members)
        self.small = directory / "small"
        self.hosts[SMALL].data_dir = self.small / "data"
        self.samples: dict[tuple[str, int], list[tuple[float, int, int]]] = {}  # seconds, bytes, descriptors

    @property
    def members(self) -> list[MemberProcess]:
        return self.cluster.members

    @property
    def endpoints(self) -> list[str]:
        return [member.endpoint for member in self.hosts.values()]

    def __enter__(self) -> Self:
        self.small.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "tmpfs", str(self.small)], check=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.cluster.close()
        subprocess.run(["umount", "-l", str(self.small)], check=True)

    def leader(self) -> MemberProcess | None:
        best: tuple[int, MemberProcess] | None = None
        for member in self.members:
            status = status_of(member, timeout=1.0)
            if status is None or not status.leader == status.header.member_id != 0:
                continue
            if best is None or status.raftTerm > best[0]:
                best = (status.raftTerm, member)
        return best[1] if best is not None else None

    def restart(self, member: MemberProcess) -> None:
        if not member.running:
            member.start()

    def ctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        endpoints = ",".join(member.endpoint for member in self.members if member.running)
        command = [find_program("etcdctl"), f"--endpoints={endpoints}", "--command-timeout=20s", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    def listed(self) -> dict[str, Any]:
        """The members as the cluster lists them, by peer URL; empty when it does not answer."""
        done = self.ctl("member", "list", "-w", "json")
        if done.returncode:
            return {}
        return {member["peerURLs"][0]: member for member in json.loads(done.stdout)["members"]}

    def sample(self, began: float) -> None:
        """Note what every member's process holds now."""
        for member in self.hosts.values():
            if (pid := member.pid) and (held := held_by(pid)) is not None:
                self.samples.setdefault((member.name, pid), []).append((time.monotonic() - began, *held))


def held_by(pid: int) -> tuple[int, int] | None:
    """Bytes of its own (the store's file, which is mapped, left out) and open descriptors of a process; None when it is
    gone."""
    try:
        found = re.search(r"^RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found is not None else 0, len(os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return None


class Load:
    """Clients, each a thread of one kind that asks one member until that fails or it feels like another."""

    def __init__(self, endpoints: list[str], kinds: list[str], seed: int) -> None:
        self.endpoints = endpoints
        self.recorder = Recorder(clock=time.monotonic)
        self.acknowledged: dict[str, str] = {}
        self.answered: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.errors: list[BaseException] = []
        self._began = time.monotonic()
        self._seed = seed
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._edge, args=(number, kind), daemon=True) for number, kind in enumerate(kinds)
        ]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait_progress(self, calls: int) -> None:
        goal = self.answered.total() + calls
        wait_until(lambda: bool(self.errors) or self.answered.total() >= goal, QUIET_SECONDS, f"{calls} more answers")
        if self.errors:
            raise self.errors[0]

    def _edge(self, number: int, kind: str) -> None:
        try:
            self._client(number, kind)
        except BaseException as error:  # the outer edge of the thread; the test raises it
            self.errors.append(error)

    def _client(self, number: int, kind: str) -> None:
        rng = random.Random(f"{self._seed}-{number}")
        caller: Caller | None = None
        count = 0
        while not self._stop.is_set():
            if caller is None:
                caller = KINDS[kind](rng.choice(self.endpoints))
            count += 1
            try:
                self._one(caller, rng, number, f"{number}.{count}")
                self.answered[kind] += 1
                leave = rng.random() < 0.02
            except (Refused, Lost) as error:
                self.failed[f"{kind} {type(error).__name__}"] += 1
                leave = True
            if leave:
                caller.close()
                caller = None
            self._stop.wait(rng.uniform(0, 2 * PAUSES[kind]))
        if caller is not None:
            caller.close()

    def _one(self, caller: Caller, rng: random.Random, number: int, unique: str) -> None:
        if rng.random() < 0.3:
            caller.put(OWN + unique, unique)
            self.acknowledged[OWN + unique] = unique
            return
        epoch = int((time.monotonic() - self._began) / EPOCH_SECONDS)
        key = f"{SHARED}{epoch:04}/{rng.randrange(SHARED_KEYS)}"
        what = rng.choices(["put", "get", "swap", "delete"], [35, 30, 25, 10])[0]
        match what:
            case "put":
                self._recorded(number, Write(unique), key, lambda: caller.put(key, unique))
            case "get":
                self._recorded(number, Read(), key, lambda: caller.get(key))
            case "delete":
                self._recorded(number, Swap(None), key, lambda: caller.delete(key))
            case _:
                before = self._recorded(number, Read(), key, lambda: caller.get(key))
                self._recorded(number, Cas(before, unique), key, lambda: caller.swap(key, before, unique))

    def _recorded(self, number: int, call: Any, key: str, send: Callable[[], Any]) -> Any:
        ticket = self.recorder.begin(number, call, key)
        try:
            result = send()
        except Refused:
            self.recorder.not_executed(ticket)
            raise
        self.recorder.ok(ticket, result)
        return result


class Leases:
    """Leases with a key each that are renewed for a while and then left alone.

    `promised` says, for each key, up to when the cluster has promised that it is there: by the clock of this process,
    counted from before the promise was asked for.
    """

    TTL: Final = 8

    def __init__(self, endpoints: list[str], seed: int, keepers: int = 4) -> None:
        self.endpoints = endpoints
        self.promised: dict[str, float] = {}
        self.renewals = 0
        self.errors: list[BaseException] = []
        self._seed = seed
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._edge, args=(n,), daemon=True) for n in range(keepers)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _edge(self, number: int) -> None:
        try:
            rng = random.Random(f"{self._seed}-lease-{number}")
            count = 0
            while not self._stop.is_set():
                count += 1
                self._one(rng, (number + 1) * 1_000_000 + count)
        except BaseException as error:
            self.errors.append(error)

    def _one(self, rng: random.Random, lease: int) -> None:
        """A lease's life."""
        key = f"{LEASED}{lease}"
        until = time.monotonic() + rng.uniform(0, 4 * self.TTL)
        granted = False
        while not self._stop.is_set():
            with EtcdClient(rng.choice(self.endpoints), timeout=3.0) as client, contextlib.suppress(grpc.RpcError):
                if not granted:
                    sent = time.monotonic()
                    client.lease_grant(self.TTL, lease)
                    client.put(key.encode(), b"x", lease=lease)
                    granted, self.promised[key] = True, sent + self.TTL
                while not self._stop.is_set() and time.monotonic() < until:
                    sent = time.monotonic()
                    if client.keep_alive(lease)[0].TTL == 0:
                        return
                    self.promised[key] = sent + self.TTL
                    self.renewals += 1
                    self._stop.wait(self.TTL / 4)
            if granted and time.monotonic() >= until:
                return
            if not granted:
                return  # whether there is such a lease is not known: the next one
            self._stop.wait(0.1)


class Faults:
    """Everything that goes wrong, one at a time, each healed before it returns."""

    def __init__(self, lab: Lab, load: Load, seed: int) -> None:
        self.lab, self.load = lab, load
        self.rng = random.Random(f"{seed}-faults")
        self.done: Counter[str] = Counter()
        self.slowest = 0.0  # seconds from the end of a fault until all clients were served again
        self.kinds: list[Callable[[], None]] = [
            self.kill_one, self.kill_leader, self.kill_all_but_one, self.stop_in_order, self.pause_leader,
            self.pause_one, self.isolate_leader, self.isolate_one, self.cut_off_with_clients, self.one_way_to_leader,
            self.one_way_from_leader, self.bridge, self.full_disk, self.replace_member,
        ]  # fmt: skip

    def one(self, kind: Callable[[], None] | None = None) -> None:
        kind = kind or self.rng.choice(self.kinds)
        self.done[kind.__name__] += 1
        kind()
        self.lab.network.heal()
        ended = time.monotonic()
        for member in self.lab.members:
            self.lab.restart(member)
        for member in self.lab.members:
            member.wait_ready(seconds=QUIET_SECONDS)
        self.load.wait_progress(50)
        self.slowest = max(self.slowest, time.monotonic() - ended)

    # -- whom

    def _leader(self) -> MemberProcess:
        return self.lab.leader() or self.rng.choice(self.lab.members)

    def _mortal(self) -> MemberProcess:
        return self.rng.choice([member for member in self.lab.members if member.name != STAYS])

    def _others(self, member: MemberProcess) -> list[str]:
        return [other.name for other in self.lab.members if other is not member]

    def _while(self) -> None:
        time.sleep(self.rng.uniform(1.0, 6.0))

    # -- processes

    def kill_one(self) -> None:
        victim = self._mortal()
        victim.kill()
        self._while()

    def kill_leader(self) -> None:
        leader = self._leader()
        if leader.name == STAYS:
            leader = self._mortal()
        leader.kill()
        self._while()

    def kill_all_but_one(self) -> None:
        for member in self.lab.members:
            if member.name != STAYS:
                member.kill()
        self._while()

    def pause_leader(self) -> None:
        self._pause(self._leader())

    def pause_one(self) -> None:
        self._pause(self.rng.choice(self.lab.members))

    def _pause(self, member: MemberProcess) -> None:
        member.signal(signal.SIGSTOP)
        try:
            self._while()
        finally:
            member.signal(signal.SIGCONT)

    def stop_in_order(self) -> None:
        victim = self._mortal()
        code = victim.terminate(seconds=QUIET_SECONDS)
        assert code == 0, f"{victim.name} ended with {code}\n{victim.log_tail()}"

    # -- the network

    def isolate_leader(self) -> None:
        """Both directions; its clients still reach it."""
        leader = self._leader()
        self.lab.network.part([leader.name], self._others(leader))
        self._while()

    def isolate_one(self) -> None:
        member = self.rng.choice(self.lab.members)
        self.lab.network.part([member.name], self._others(member))
        self._while()

    def cut_off_with_clients(self) -> None:
        """From everybody, the clients too."""
        member = self.rng.choice(self.lab.members)
        self.lab.network.part([member.name], [*self._others(member), OUTSIDE])
        self._while()

    def one_way_to_leader(self) -> None:
        """The leader is heard and hears nobody."""
        leader = self._leader()
        for other in self._others(leader):
            self.lab.network.cut(other, [leader.name])
        self._while()

    def one_way_from_leader(self) -> None:
        """The leader hears everybody and is not heard."""
        leader = self._leader()
        self.lab.network.cut(leader.name, self._others(leader))
        self._while()

    def bridge(self) -> None:
        """Two members hear the third and not each other."""
        one, other = self.rng.sample([member.name for member in self.lab.members], 2)
        self.lab.network.part([one], [other])
        self._while()

    # -- the disk

    def full_disk(self) -> None:
        member = self.lab.hosts[SMALL]
        if member not in self.lab.members:
            self.done["full_disk"] -= 1
            return
        filler = self.lab.small / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 20))
        if self.done["full_disk"] == 1:
            with EtcdClient(self._leader().endpoint, timeout=3.0) as client:
                for number in range(LARGE):
                    with contextlib.suppress(grpc.RpcError):
                        client.put(b"large/%d" % (number % 10), bytes(1_000_000))
        self._while()
        filler.unlink()
        if not member.running:
            assert member.exit_code == Exit.STORAGE, f"ended with {member.exit_code}\n{member.log_tail()}"

    # -- membership

    def replace_member(self) -> None:
        """A learner joins and is promoted, and another member goes."""
        lab = self.lab
        fresh = lab.hosts[self.rng.choice([name for name in HOSTS if lab.hosts[name] not in lab.members])]
        self._empty(fresh)
        fresh.initial_cluster, fresh.initial_cluster_state = self._add(fresh), "existing"
        fresh.start()
        lab.members.append(fresh)
        wait_until(lambda: self._promoted(fresh), QUIET_SECONDS, f"{fresh.name} promoted\n{fresh.log_tail()}", poll=0.2)
        gone = self.rng.choice([m for m in lab.members if m is not fresh and m.name != STAYS])
        wait_until(lambda: self._removed(gone), QUIET_SECONDS, f"{gone.name} removed", poll=0.2)
        lab.members.remove(gone)
        assert gone.wait_exit(seconds=QUIET_SECONDS) != 0, f"{gone.name} was removed"
        self._empty(gone)

    def _add(self, fresh: MemberProcess) -> str:
        """Add it as a learner; the initial cluster to start it with."""

        def added() -> bool:
            done = self.lab.ctl("member", "add", fresh.name, "--learner", f"--peer-urls={fresh.peer_url}")
            return done.returncode == 0 or "already exists" in done.stderr

        wait_until(added, QUIET_SECONDS, f"{fresh.name} added", poll=0.2)
        listed: dict[str, Any] = {}
        wait_until(
            lambda: bool(listed.update(self.lab.listed()) or listed), QUIET_SECONDS, "a list of members", poll=0.2
        )
        return ",".join(f"{member.get('name') or fresh.name}={url}" for url, member in listed.items())

    def _promoted(self, fresh: MemberProcess) -> bool:
        member = self.lab.listed().get(fresh.peer_url)
        if member is None:
            return False
        if not member.get("isLearner"):
            return True
        self.lab.ctl("member", "promote", f"{member['ID']:x}")
        return False

    def _removed(self, gone: MemberProcess) -> bool:
        listed = self.lab.listed()
        if not listed:
            return False
        member = listed.get(gone.peer_url)
        if member is None:
            return True
        self.lab.ctl("member", "remove", f"{member['ID']:x}")
        return False

    @staticmethod
    def _empty(member: MemberProcess) -> None:
        if member.data_dir.exists():
            shutil.rmtree(member.data_dir)


@contextlib.contextmanager
def sampling(lab: Lab, began: float, every: float = 2.0) -> Iterator[None]:
    stop = threading.Event()

    def run() -> None:
        while not stop.wait(every):
            lab.sample(began)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def hashes(lab: Lab) -> dict[str, tuple[int, int]]:
    """Every member's hash of the same revision, with that revision."""
    revisions: dict[str, int] = {}
    found: dict[str, tuple[int, int]] = {}
    for member in lab.members:
        with EtcdClient(member.endpoint) as client:
            revisions[member.name] = client.get(b"x").header.revision  # linearizable: it has applied everything
    revision = min(revisions.values())
    for member in lab.members:
        with EtcdClient(member.endpoint) as client:
            found[member.name] = (revision, client.call("HashKV", revision=revision, timeout=600).hash)
    return found


def errors_in(log: str) -> list[str]:
    """Lines of a member's log that no fault explains."""
    return [line for line in log.splitlines() if re.search(r"Traceback|AssertionError|Exception in|diverged", line)]
