"""Run entries: one changed copy of the source and one fresh process for each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.zoo.arena import NO_PROOF
from benchmarks.zoo.entry import Arena, Entry
from benchmarks.zoo.tree import ROOT, SOURCE, base, copy

TEST_SECONDS_MAX: Final = 300
HASH_SEEDS: Final = ("1", "77")


@dataclass(slots=True)
class Result:
    """What came of one entry. `seeds` counts those that were run, the killing one included."""

    id: str
    invariant: str = ""  # that fired; empty: it survived
    what: str = ""
    seeds: int = 0
    seconds: float = 0.0
    unproven: dict[str, int] = field(default_factory=dict)  # seeds that ended in an exception of the defect itself
    asserts: str = ""  # what the members' own asserts say of the killing seed, if they are on

    @property
    def killed(self) -> bool:
        return bool(self.invariant)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def hunt(entry: Entry, budget: int, start: int = 0, unchanged: Path = SOURCE) -> Result:
    """One entry, up to `budget` seeds from `start` on, in a changed copy of `unchanged`."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"zoo-{entry.id}-") as directory:
        source = copy(Path(directory), entry.edits, unchanged)
        if entry.arena is Arena.TESTS:
            result = _test(entry, source)
        elif entry.arena is Arena.SCOPE:
            result = Result(entry.id)
            for line in _lines(source, ["--scope"]):
                _count(result, line)
        elif entry.arena is Arena.HASHES:
            result = _two_hash_seeds(entry, source, budget, start)
        else:
            result = Result(entry.id)
            for line in _seeds(source, start, budget):
                _count(result, line)
            if result.killed:
                seed = start + result.seeds - 1
                (again,) = _seeds(source, seed, 1, asserts=True)
                if again["invariant"] in ("ASSERT", "error", "CRASH"):
                    result.asserts = again["what"]
    result.seconds = round(time.monotonic() - began, 1)
    return result


def hunt_all(entries: list[Entry], budget: int, jobs: int) -> Iterator[Result]:
    """All of them, as they come."""
    with tempfile.TemporaryDirectory(prefix="zoo-") as directory, ThreadPoolExecutor(jobs) as pool:
        unchanged = base(Path(directory))
        hunts = [pool.submit(hunt, entry, budget, 0, unchanged) for entry in entries]
        for future in as_completed(hunts):
            yield future.result()


def baseline(seeds: int, start: int = 0) -> Result:
    """The same seeds on the source as it is: nothing may fire, and nothing may end in an exception."""
    result = Result("none")
    began = time.monotonic()
    for line in _seeds(SOURCE, start, seeds):
        _count(result, line)
    result.seconds = round(time.monotonic() - began, 1)
    return result


def _count(result: Result, line: dict[str, Any]) -> None:
    result.seeds += 1
    invariant = line["invariant"]
    if invariant in NO_PROOF:
        result.unproven[invariant] = result.unproven.get(invariant, 0) + 1
        result.what = result.what or line["what"]
    elif invariant:
        result.invariant, result.what = invariant, line["what"]


def _environment(source: Path, hash_seed: str = "0") -> dict[str, str]:
    path = os.pathsep.join((str(source), str(ROOT)))
    return {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": hash_seed, "PYTHONDONTWRITEBYTECODE": "1"}


def _seeds(
    source: Path, start: int, seeds: int, *, asserts: bool = False, hash_seed: str = "0", everything: bool = False
) -> Generator[dict[str, Any], None, None]:
    arguments = ["--start", str(start), "--seeds", str(seeds), *(["--all"] if everything else [])]
    yield from _lines(source, arguments, asserts=asserts, hash_seed=hash_seed)


def _lines(
    source: Path, arguments: list[str], *, asserts: bool = False, hash_seed: str = "0"
) -> Generator[dict[str, Any], None, None]:
    """What the arena says."""
    command = [sys.executable, *([] if asserts else ["-O"]), "-m", "benchmarks.zoo.arena", *arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, env=_environment(source, hash_seed), stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            yield json.loads(line)
    if process.returncode:
        yield {"seed": 0, "invariant": "error", "what": f"the process ended with {process.returncode}"}


def _two_hash_seeds(entry: Entry, source: Path, budget: int, start: int) -> Result:
    result = Result(entry.id)
    runs = [_seeds(source, start, budget, hash_seed=hash_seed, everything=True) for hash_seed in HASH_SEEDS]
    for one, other in zip(*runs, strict=False):
        result.seeds += 1
        if one["digest"] != other["digest"]:
            result.invariant, result.what = "DIGEST", f"seed {one['seed']} is not the same in two processes"
            break
    for run in runs:
        run.close()  # a generator: its process ends with its pipe
    return result


def _test(entry: Entry, source: Path) -> Result:
    """The test that must fail. It counts only if it fails in a check of its own, not in the defect's exception."""
    result = Result(entry.id, seeds=1)
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--no-header", "--tb=line"]
    command += ["-o", f"pythonpath={source}", *(str(ROOT / test) for test in entry.tests)]
    done = subprocess.run(
        command, cwd=ROOT, env=_environment(source), capture_output=True, text=True, timeout=TEST_SECONDS_MAX,
        check=False,
    )  # fmt: skip
    failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
    if done.returncode == 1 and failed:
        result.invariant = "test"
        result.what = failed[0].removeprefix("FAILED ").replace(f"{ROOT}/", "")[:300]
    elif done.returncode:
        result.unproven["error"] = 1
        result.what = done.stdout[-300:]
    return result
