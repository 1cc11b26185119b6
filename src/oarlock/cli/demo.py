"""`oarlock demo`: three members, real data, the leader killed in the middle, and a comparison of every key at the end.

The data are loaded with a stock `etcdctl`: a program that knows nothing of us, in the state in which users have it.
Each batch is one transaction of up to 128 puts guarded by "none of these keys exists", so a batch whose answer was lost
with the leader can be sent again: if it had been executed after all, the guard fails and nothing is doubled. The
version of every key, compared at the end, would show it.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import itertools
import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol

import click

from oarlock.cli.exits import Exit
from oarlock.cli.local_cluster import (
    ClusterError,
    LocalCluster,
    MemberProcess,
    Program,
    ProgramMissing,
    dies_with_parent,
    etcd_program,
    find_program,
    oarlock_program,
    wait_until,
)

KEY_PREFIX: Final = "airports/"
MEMBERS: Final = 3
BATCH_OPERATIONS: Final = 128
"""Puts in one transaction: as many as a server takes by default (`--max-txn-ops`)."""

LOADERS: Final = 4
ATTEMPT_SECONDS: Final = 0.5
"""Patience for one attempt at a batch; after `ATTEMPTS_PATIENT` attempts it doubles with each, up to
`ATTEMPT_SECONDS_MAX`.

A request caught by the failure of the leader may never be answered, so this bounds how late a loader notices that
another leads; a machine too slow for it still gets through with the doubled ones.
"""

ATTEMPTS_PATIENT: Final = 8

ATTEMPT_SECONDS_MAX: Final = 4.0

BATCH_SECONDS: Final = 60.0
"""Patience for one batch over all its attempts."""

RETRY_PAUSE_SECONDS: Final = 0.05
KILL_AT_SHARE: Final = 0.4
CATCH_UP_SECONDS: Final = 60.0
DIFFERENCES_SHOWN: Final = 5


EXIT_DIFFERENT: Final = 1  # something was lost or doubled, or the cluster did not go on serving
EXIT_MISSING: Final = 2  # a program or a package that it needs


class DemoFailed(Exception):
    """The demonstration could not go on; the text says why."""


@dataclass(slots=True)
class MemberReport:
    """One member at the end: where it is, what it says of itself, and how its keys compare with the source."""

    name: str
    endpoint: str
    role: str
    term: int
    applied_index: int
    revision: int
    db_bytes: int
    keys: int = 0
    missing: int = 0
    unexpected: int = 0
    different: int = 0
    doubled: int = 0

    @property
    def equal(self) -> bool:
        """Whether every key is there once, with the right value, and no other."""
        return not (self.missing or self.unexpected or self.different or self.doubled)


@dataclass(slots=True)
class Summary:
    """The figures of one run. Times in seconds, the rate in keys a second over the whole load, failover included."""

    program: str
    keys: int
    batches: int
    attempts: int
    load_seconds: float
    keys_per_second: float
    killed: str
    failover_seconds: float
    rejoin_seconds: float
    catch_up_seconds: float
    members: list[MemberReport]
    ok: bool


class Etcdctl:
    """The stock command-line client, one process for each call."""

    def __init__(self, path: str, endpoints: Sequence[str]) -> None:
        self.path = path
        self.endpoints = tuple(endpoints)
        self._before = dies_with_parent()  # each call waits for its process, in the thread that started it

    def run(
        self, *arguments: str, stdin: str = "", seconds: float, endpoints: Sequence[str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run one command; the caller looks at the exit code.

        A client that takes longer than `seconds` is killed and counts as failed: `etcdctl txn` pays no heed to its own
        `--command-timeout`.
        """
        command = [
            *self._before,
            self.path,
            f"--endpoints={','.join(endpoints or self.endpoints)}",
            f"--command-timeout={seconds:g}s",
            f"--dial-timeout={seconds:g}s",
            *arguments,
        ]
        try:
            return subprocess.run(  # noqa: S603
                command, input=stdin, capture_output=True, text=True, timeout=seconds, check=False
            )
        except subprocess.TimeoutExpired:
            return subprocess.CompletedProcess(
                command, returncode=124, stdout="", stderr=f"no answer within {seconds:g} s"
            )

    def status(self, member: MemberProcess, *, seconds: float = 2.0) -> dict[str, Any] | None:
        """What the member says of itself, in etcd's names; `None` while it does not answer."""
        done = self.run("endpoint", "status", "-w", "json", seconds=seconds, endpoints=[member.endpoint])
        if done.returncode != 0:
            return None
        try:
            status = json.loads(done.stdout)[0]["Status"]
        except (ValueError, LookupError, TypeError):
            return None
        return status if isinstance(status, dict) else None


class Show(Protocol):
    """Where progress goes."""

    def say(self, text: str) -> None: ...

    def progress(self, done: int, total: int) -> None: ...


class PlainShow:
    """Lines for a log or a pipe; the load is reported at every tenth."""

    def __init__(self, *, stderr: bool) -> None:
        self._stderr = stderr
        self._started = time.monotonic()
        self._tenth = 0

    def say(self, text: str) -> None:
        click.echo(f"{time.monotonic() - self._started:6.1f} s  {text}", err=self._stderr)

    def progress(self, done: int, total: int) -> None:
        tenth = 10 * done // total
        if tenth > self._tenth:
            self._tenth = tenth
            self.say(f"loaded {done:,} of {total:,} keys")


class RichShow:
    """A bar at a terminal. (rich is imported only here: it costs more than the rest of the command.)"""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]} keys/s"),
            TimeElapsedColumn(),
        )
        self._task = self.bar.add_task("loading airports", total=None, rate="-")
        self._started = time.monotonic()

    def say(self, text: str) -> None:
        self.bar.console.print(f"[dim]{time.monotonic() - self._started:6.1f} s[/dim]  {text}", highlight=False)

    def progress(self, done: int, total: int) -> None:
        seconds = time.monotonic() - self._started
        self.bar.update(self._task, completed=done, total=total, rate=f"{done / seconds:,.0f}")


def load_airports() -> dict[str, str]:
    """The airports as key and JSON text. Raises `DemoFailed` when the package is missing."""
    if importlib.util.find_spec("airportsdata") is None:
        raise DemoFailed("the data set is not installed: pip install airportsdata")
    import airportsdata

    return {
        f"{KEY_PREFIX}{code}": json.dumps(airport, ensure_ascii=False, sort_keys=True)
        for code, airport in sorted(airportsdata.load().items())
    }


def batches_of(data: Mapping[str, str], size: int) -> Iterator[list[tuple[str, str]]]:
    """The items in lists of `size`; the last may be shorter."""
    items = iter(data.items())
    while batch := list(itertools.islice(items, size)):
        yield batch


def transaction_text(batch: Sequence[tuple[str, str]]) -> str:
    """What `etcdctl txn` reads: if no key of the batch exists, put all of them; else do nothing."""
    compares = "".join(f'create({_quoted(key)}) = "0"\n' for key, _ in batch)
    puts = "".join(f"put {_quoted(key)} {_quoted(value)}\n" for key, value in batch)
    return f"{compares}\n{puts}\n\n"


def _quoted(text: str) -> str:
    """In double quotes as Go reads them: JSON's escapes are a part of Go's."""
    return json.dumps(text, ensure_ascii=False)


class Load:
    """The loaders: threads that take batches and send each until it is acknowledged.

    `acknowledged` counts keys. `first_after(moment)` is the time of the first acknowledgement of an attempt that began
    after `moment`: an answer that the dead leader had sent before it died does not count.
    """

    def __init__(self, client: Etcdctl, data: Mapping[str, str], on_progress: Callable[[int, int], None]) -> None:
        self.total = len(data)
        self.batches = 0
        self.attempts = 0
        self.acknowledged = 0
        self.error: Exception | None = None
        self._client = client
        self._on_progress = on_progress
        self._work: queue.SimpleQueue[list[tuple[str, str]]] = queue.SimpleQueue()
        for batch in batches_of(data, BATCH_OPERATIONS):
            self._work.put(batch)
            self.batches += 1
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._stop = threading.Event()
        self._acknowledgements: list[tuple[float, float]] = []  # when the attempt began and when it was answered
        self._threads = [threading.Thread(target=self._loader, name=f"loader-{n}", daemon=True) for n in range(LOADERS)]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ask the loaders to end after their present attempt, and wait for them."""
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def wait(self, enough: Callable[[], bool], what: str) -> None:
        """Wait until `enough()`, asked after every acknowledgement. Raises `DemoFailed` if a loader gave up."""
        with self._changed:
            while not enough():
                if self.error is not None:
                    raise DemoFailed(f"{what}: {self.error}") from self.error
                if not self._changed.wait(BATCH_SECONDS + 10):
                    raise DemoFailed(f"{what}: nothing was acknowledged for {BATCH_SECONDS + 10:g} s")

    def first_after(self, moment: float) -> float | None:
        answers = [answered for began, answered in self._acknowledgements if began >= moment]
        return min(answers, default=None)

    def _loader(self) -> None:
        while not self._stop.is_set():
            try:
                batch = self._work.get_nowait()
            except queue.Empty:
                return
            try:
                self._send(batch)
            except Exception as error:  # the outer edge of the thread: whoever waits raises it
                with self._changed:
                    self.error = error
                    self._changed.notify_all()
                self._stop.set()
                return

    def _send(self, batch: Sequence[tuple[str, str]]) -> None:
        text = transaction_text(batch)
        deadline = time.monotonic() + BATCH_SECONDS
        patience = ATTEMPT_SECONDS
        for attempt in itertools.count(1):
            if self._stop.is_set():
                return
            began = time.monotonic()
            done = self._client.run("txn", stdin=text, seconds=patience)
            answered = time.monotonic()
            # SUCCESS: the puts were made. FAILURE: the keys exist, so an earlier attempt of ours was executed.
            acknowledged = done.returncode == 0 and done.stdout.startswith(("SUCCESS", "FAILURE"))
            with self._changed:
                self.attempts += 1
                if acknowledged:
                    self.acknowledged += len(batch)
                    self._acknowledgements.append((began, answered))
                    self._on_progress(self.acknowledged, self.total)
                    self._changed.notify_all()
            if acknowledged:
                return
            if answered > deadline:
                raise DemoFailed(f"a batch was refused for {BATCH_SECONDS:g} s; the last answer: {done.stderr.strip()}")
            if attempt >= ATTEMPTS_PATIENT:
                patience = min(2 * patience, ATTEMPT_SECONDS_MAX)
            self._stop.wait(RETRY_PAUSE_SECONDS)


def find_leader(client: Etcdctl, cluster: LocalCluster, *, seconds: float = 20.0) -> MemberProcess:
    """The member that calls itself the leader. Raises `ClusterError` when none does for `seconds`."""
    found: list[MemberProcess] = []

    def look() -> bool:
        for member in cluster.members:
            status = client.status(member) if member.running else None
            if status is not None and status.get("leader") == status["header"]["member_id"]:
                found.append(member)
                return True
        return False

    wait_until(look, seconds, "a member that leads")
    return found[-1]


def compare(client: Etcdctl, member: MemberProcess, data: Mapping[str, str], report: MemberReport) -> list[str]:
    """Read every key of this very member (serializable) and compare; fills the report, returns first differences."""
    done = client.run(
        "get", KEY_PREFIX, "--prefix", "--consistency=s", "-w", "json", seconds=60, endpoints=[member.endpoint]
    )
    if done.returncode != 0:
        raise DemoFailed(f"cannot read the keys of {member.name}: {done.stderr.strip()}")
    differences: list[str] = []
    seen: set[str] = set()
    for kv in json.loads(done.stdout).get("kvs", []):
        key = base64.b64decode(kv["key"]).decode()
        value = base64.b64decode(kv.get("value", "")).decode()
        if key in seen or kv["version"] != 1:
            report.doubled += 1
            differences.append(f"{member.name}: {key} was written {kv['version']} times")
        seen.add(key)
        if key not in data:
            report.unexpected += 1
            differences.append(f"{member.name}: {key} is not in the source")
        elif data[key] != value:
            report.different += 1
            differences.append(f"{member.name}: {key} is {value!r}, not {data[key]!r}")
    missing = sorted(data.keys() - seen)
    differences.extend(f"{member.name}: {key} is missing" for key in missing)
    report.keys = len(seen)
    report.missing = len(missing)
    return differences[:DIFFERENCES_SHOWN]


def run_demo(cluster: LocalCluster, client: Etcdctl, data: Mapping[str, str], show: Show) -> tuple[Summary, list[str]]:
    """The whole story on a cluster that is not started yet; returns the figures and the first differences found.

    Raises `ClusterError` and `DemoFailed`. The members are left running for the caller to look at.
    """
    show.say(f"starting {len(cluster.members)} members of {cluster.program.name} in {cluster.directory}")
    cluster.start()
    show.say(f"ready: {', '.join(cluster.endpoints)}")
    load = Load(client, data, show.progress)
    started = time.monotonic()
    load.start()
    try:
        kill_at = int(KILL_AT_SHARE * len(data))
        load.wait(lambda: load.acknowledged >= kill_at, "loading")
        victim = find_leader(client, cluster)
        killed_at = time.monotonic()
        victim.kill()
        gone_at = time.monotonic()  # what began before may have been acknowledged by the leader in its last moment
        show.say(f"killed the leader {victim.name} with SIGKILL at {load.acknowledged:,} keys; the load goes on")
        load.wait(lambda: load.first_after(gone_at) is not None, "waiting for the first write after the kill")
        answered = load.first_after(gone_at)
        assert answered is not None, "load.wait saw it"
        show.say(f"first acknowledged write {answered - killed_at:.2f} s after the kill")
        restarted_at = time.monotonic()
        victim.start()
        victim.wait_ready()
        rejoin_seconds = time.monotonic() - restarted_at
        show.say(f"{victim.name} is back after {rejoin_seconds:.2f} s")
        load.wait(lambda: load.acknowledged == load.total, "loading")
        load_seconds = time.monotonic() - started
    finally:
        load.stop()
    show.say(f"all {load.total:,} keys are acknowledged: {load.total / load_seconds:,.0f} keys/s")
    reports = _wait_caught_up(client, cluster)
    catch_up_seconds = max(0.0, time.monotonic() - started - load_seconds)
    show.say("every member has applied everything; comparing every key on every member with the source")
    differences: list[str] = []
    for member, report in zip(cluster.members, reports, strict=True):
        differences.extend(compare(client, member, data, report))
    summary = Summary(
        program=cluster.program.name,
        keys=load.total,
        batches=load.batches,
        attempts=load.attempts,
        load_seconds=round(load_seconds, 3),
        keys_per_second=round(load.total / load_seconds, 1),
        killed=victim.name,
        failover_seconds=round(answered - killed_at, 3),
        rejoin_seconds=round(rejoin_seconds, 3),
        catch_up_seconds=round(catch_up_seconds, 3),
        members=reports,
        ok=all(report.equal and report.keys == load.total for report in reports),
    )
    return summary, differences


def _wait_caught_up(client: Etcdctl, cluster: LocalCluster) -> list[MemberReport]:
    """Wait until all members have applied what any has committed; their reports. Raises `ClusterError`."""
    latest: list[MemberReport] = []

    def caught_up() -> bool:
        statuses = [client.status(member) for member in cluster.members]
        if any(status is None for status in statuses):
            return False
        known = [status for status in statuses if status is not None]
        latest[:] = [
            MemberReport(
                name=member.name,
                endpoint=member.endpoint,
                role="leader" if status.get("leader") == status["header"]["member_id"] else "follower",
                term=status["raftTerm"],
                applied_index=status["raftAppliedIndex"],
                revision=status["header"]["revision"],
                db_bytes=status.get("dbSize", 0),
            )
            for member, status in zip(cluster.members, known, strict=True)
        ]
        committed = max(status["raftIndex"] for status in known)
        return all(report.applied_index >= committed for report in latest)

    wait_until(caught_up, CATCH_UP_SECONDS, "all members applying what is committed")
    return latest


def report_lines(summary: Summary) -> list[str]:
    """The status table and the figures as plain lines."""
    rows: list[tuple[str, ...]] = [
        ("member", "endpoint", "role", "term", "applied", "revision", "db MB", "keys", "verdict")
    ]
    for one in summary.members:
        found = [
            f"{count} {what}"
            for what in ("missing", "unexpected", "different", "doubled")
            if (count := getattr(one, what))
        ]
        verdict = "equal" if one.equal else ", ".join(found)
        cells = (one.term, one.applied_index, one.revision)
        rows.append(
            (one.name, one.endpoint, one.role, *map(str, cells), f"{one.db_bytes / 1e6:.1f}", f"{one.keys:,}", verdict)
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    retries = summary.attempts - summary.batches
    lines += [
        "",
        f"load      {summary.keys:,} keys in {summary.load_seconds:.1f} s: {summary.keys_per_second:,.0f} keys/s",
        f"          {summary.batches} transactions, {retries} sent again",
        f"failover  {summary.failover_seconds:.2f} s from SIGKILL of {summary.killed} to the first acknowledged write",
        f"rejoin    {summary.rejoin_seconds:.2f} s until {summary.killed} served again",
        f"          {summary.catch_up_seconds:.2f} s from the end of the load until all members were level",
        f"result    {'nothing lost, nothing doubled' if summary.ok else 'THE MEMBERS DIFFER FROM THE SOURCE'}",
    ]
    return lines


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM leaves through the same clean-up as Ctrl-C."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@click.command(name="demo")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON on stdout; progress goes to stderr.")
@click.option(
    "--stay/--no-stay",
    default=None,
    help="Keep the cluster up until Ctrl-C. [default: only at a terminal, without --json]",
)
@click.option(
    "--server",
    type=click.Choice(["oarlock", "etcd"]),
    default="oarlock",
    show_default=True,
    help="What to run: this server, or a real etcd for comparison.",
)
def demo(*, as_json: bool, stay: bool | None, server: str) -> None:
    """A three-member cluster on this machine: load real data, kill the leader, compare everything.

    Loads the airports of the world with a stock etcdctl, kills the leader with SIGKILL in the middle, restarts it, and
    compares every key on every member with the source. Exits with 0 if nothing was lost and nothing doubled, with 1 if
    something was, with 2 if something needed is missing.
    """
    terminal = sys.stdout.isatty() and not as_json
    stays = terminal if stay is None else stay
    try:
        data = load_airports()
        program: Program = oarlock_program() if server == "oarlock" else etcd_program()
        etcdctl = find_program("etcdctl")
    except (DemoFailed, ProgramMissing) as error:
        click.echo(f"error: {error}", err=True)
        raise SystemExit(EXIT_MISSING) from None
    with _terminated_as_interrupted():
        try:
            with LocalCluster(program, MEMBERS) as cluster:
                summary = _tell(cluster, Etcdctl(etcdctl, cluster.endpoints), data, as_json=as_json, terminal=terminal)
                if stays:
                    click.echo(
                        "\nThe cluster stays up until Ctrl-C. Try:\n"
                        f"  {etcdctl} --endpoints={','.join(cluster.endpoints)} get {KEY_PREFIX}EDDB"
                    )
                    with contextlib.suppress(KeyboardInterrupt):
                        threading.Event().wait()
        except KeyboardInterrupt:
            click.echo("interrupted; the cluster is stopped", err=True)
            raise SystemExit(Exit.INTERRUPTED) from None
    raise SystemExit(0 if summary.ok else EXIT_DIFFERENT)


def _tell(cluster: LocalCluster, client: Etcdctl, data: Mapping[str, str], *, as_json: bool, terminal: bool) -> Summary:
    """Run it with the right kind of progress, print the outcome; on failure print the ends of the logs and exit."""
    try:
        if terminal and importlib.util.find_spec("rich") is not None:
            rich_show = RichShow()
            with rich_show.bar:
                summary, differences = run_demo(cluster, client, data, rich_show)
        else:
            summary, differences = run_demo(cluster, client, data, PlainShow(stderr=as_json))
    except (DemoFailed, ClusterError) as error:
        click.echo(f"error: {error}\n{cluster.logs()}", err=True)
        raise SystemExit(EXIT_DIFFERENT) from None
    if as_json:
        click.echo(json.dumps(asdict(summary), indent=2))
    else:
        click.echo("\n" + "\n".join(report_lines(summary)))
    for difference in differences:
        click.echo(f"difference: {difference}", err=True)
    return summary
