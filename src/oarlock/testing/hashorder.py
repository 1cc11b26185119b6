"""Does the order of hashes decide? The committed log of a run, applied in two processes with different hash seeds.

In one process all members share a hash seed, so the order of a set of texts is often alike on all of them, and the
simulated world cannot see that it would not be between real processes.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from oarlock.machines.base import Context
from oarlock.testing.workload import Workload, commands_text

HASH_SEEDS: Final = ("1", "2")
SECONDS_MAX: Final = 60.0


@dataclass(frozen=True, slots=True)
class HashOrder:
    """`difference` is empty if there is none; `said` is how it was looked at, or why not."""

    difference: str
    said: str


def compare_hash_seeds(workload: type[Workload], entries: Sequence[tuple[Context, list[bytes]]]) -> HashOrder:
    """Apply `entries` to a fresh machine in each of two processes, and compare states and results after each."""
    if "<locals>" in workload.__qualname__:
        return HashOrder("", "the order of hashes was not looked at: the workload is defined inside a function")
    try:
        file = inspect.getfile(workload)
    except (TypeError, OSError):
        return HashOrder("", "the order of hashes was not looked at: the workload has no file")
    job = {
        "path": sys.path,
        "module": workload.__module__,
        "file": file,
        "name": workload.__qualname__,
        "entries": [[c.index, c.term, c.time_ns, [command.hex() for command in commands]] for c, commands in entries],
    }
    text = json.dumps(job)
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", "from oarlock.testing.hashorder import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONHASHSEED": seed,
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            },
        )
        for seed in HASH_SEEDS
    ]
    outputs = []
    try:
        for process in processes:
            out, err = process.communicate(text, timeout=SECONDS_MAX)
            if process.returncode:
                last = err.strip().splitlines()[-1] if err.strip() else f"exit code {process.returncode}"
                return HashOrder("", f"the order of hashes was not looked at: a process of its own said {last}")
            outputs.append(out.splitlines())
    except subprocess.TimeoutExpired:
        return HashOrder("", f"the order of hashes was not looked at: it took more than {SECONDS_MAX:g} s")
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
    for (context, commands), first, second in zip(entries, *outputs, strict=False):
        if first != second:
            how = _difference(json.loads(first), json.loads(second))
            return HashOrder(
                f"entry {context.index} ({commands_text(commands)}) gives {how} "
                f"with PYTHONHASHSEED {HASH_SEEDS[0]} and {HASH_SEEDS[1]}",
                "the order of hashes decides",
            )
    return HashOrder("", "states and results do not depend on PYTHONHASHSEED")


def _difference(first: list[Any], second: list[Any]) -> str:
    for name, one, other in zip(("results", "state"), first, second, strict=True):
        if one != other:
            return f"{name} {str(one)[:120]} and {str(other)[:120]}"
    return "differences"


def _load(job: dict[str, Any]) -> type[Workload]:
    sys.path[:] = job["path"]
    module: Any = None
    if job["module"] != "__main__":
        try:
            module = importlib.import_module(job["module"])
        except ImportError:
            module = None
    if module is None:
        spec = importlib.util.spec_from_file_location("oarlock_workload", job["file"])
        assert spec is not None and spec.loader is not None, job["file"]
        module = importlib.util.module_from_spec(spec)
        sys.modules["oarlock_workload"] = module
        spec.loader.exec_module(module)
    found: Any = module
    for name in job["name"].split("."):
        found = getattr(found, name)
    assert issubclass(found, Workload), found
    return found  # type: ignore[no-any-return]


def main() -> None:
    """One line for each entry: what it answered, and the state after it."""
    from oarlock.testing.application import MachineApplication

    job = json.loads(sys.stdin.read())
    application = MachineApplication(_load(job)())
    machine = application.machine(None, "", durable=False)  # type: ignore[arg-type]
    out = sys.stdout
    for index, term, time_ns, commands in job["entries"]:
        results = machine.apply(Context(index, term, time_ns), [bytes.fromhex(command) for command in commands])
        state = machine.state()
        told = [_told(application.plain(result)) for result in results]
        out.write(json.dumps([told, [repr(piece) for piece in state] if state is not None else None]) + "\n")


def _told(result: object) -> str:
    """A result as text, unless it is an object that prints its address."""
    text = repr(result)
    return text if " object at 0x" not in text else type(result).__name__
