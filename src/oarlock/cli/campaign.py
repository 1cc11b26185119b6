"""Many seeds at once: on the cores of this machine, or on the workers of a dask.distributed cluster.

A seed gives the same outcome wherever it runs. What goes to a worker and comes back is text (JSON): which seeds, and
what came of each.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict
from multiprocessing import get_context
from typing import Any, Final

from oarlock import __version__
from oarlock.errors import ConfigurationError
from oarlock.sim.world import Outcome, run_seed

SEEDS_A_TASK: Final = 4
TASKS_AHEAD: Final = 3  # for each process or worker
DASK_CONNECT_SECONDS: Final = 15


def run_task(text: str) -> str:
    """Run the seeds that `text` names, up to the first that fails."""
    task = json.loads(text)
    outcomes: list[dict[str, Any]] = []
    for seed in range(task["first"], task["first"] + task["count"]):
        outcome = run_seed(seed, events=task["events"], off=frozenset(task["off"]), markers=task["markers"])
        outcomes.append(asdict(outcome))
        if outcome.failed:
            break
    return json.dumps({"version": __version__, "outcomes": outcomes})


def _tasks(seeds: range, events: int, off: frozenset[str], markers: bool) -> Iterator[tuple[int, str]]:
    same = {"events": events, "off": sorted(off), "markers": markers}
    for at in range(0, len(seeds), SEEDS_A_TASK):
        part = seeds[at : at + SEEDS_A_TASK]
        yield part[0], json.dumps({"first": part[0], "count": len(part), **same})


def _outcomes(text: str, where: str) -> list[Outcome]:
    found = json.loads(text)
    if found["version"] != __version__:
        raise ConfigurationError(
            f"{where} runs oarlock {found['version']}, this is {__version__}: a seed means something else there. "
            "Install the same version on all workers"
        )
    return [Outcome(**outcome) for outcome in found["outcomes"]]


def campaign(seeds: range, events: int, off: frozenset[str], jobs: int, *, markers: bool = False) -> Iterator[Outcome]:
    """Outcomes as they come, from `jobs` processes. Nothing new is begun after a failure; what comes before the
    failing seed is finished, so that the lowest failing seed is always among the outcomes."""
    if jobs == 1:
        for seed in seeds:
            outcome = run_seed(seed, events=events, off=off, markers=markers)
            yield outcome
            if outcome.failed:
                return
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("fork"), initializer=_leave_interrupts_alone) as pool:
        try:
            yield from _feed(_tasks(seeds, events, off, markers), lambda text: pool.submit(run_task, text), jobs)
        except (KeyboardInterrupt, GeneratorExit):
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _leave_interrupts_alone() -> None:
    """Ctrl-C reaches every process of the terminal; the first one decides what becomes of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _feed(tasks: Iterator[tuple[int, str]], submit: Callable[[str], Future[str]], workers: int) -> Iterator[Outcome]:
    under_way: dict[Future[str], int] = {}
    failed_at: int | None = None
    while True:
        while failed_at is None and len(under_way) < workers * TASKS_AHEAD and (task := next(tasks, None)) is not None:
            under_way[submit(task[1])] = task[0]
        if not under_way:
            return
        done, _ = wait(under_way, return_when=FIRST_COMPLETED)
        for future in done:
            del under_way[future]
            if future.cancelled():
                continue
            for outcome in _outcomes(future.result(), "a process"):
                yield outcome
                if outcome.failed:
                    failed_at = min(outcome.seed, failed_at if failed_at is not None else outcome.seed)
        if failed_at is not None:
            for future, first in under_way.items():
                if first > failed_at:
                    future.cancel()


def dask_campaign(
    seeds: range, events: int, off: frozenset[str], address: str, *, markers: bool = False
) -> Iterator[Outcome]:
    """The same on the workers of the scheduler at `address`, which must be running. Raises `ConfigurationError`."""
    try:
        import distributed
    except ImportError as error:
        raise ConfigurationError('--dask needs dask.distributed: pip install "oarlock[dask]"') from error
    try:
        connect: Any = distributed.Client
        client = connect(address, timeout=DASK_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"--dask {address}: there is no scheduler: {error}") from error
    with client:
        workers = len(client.scheduler_info(n_workers=-1)["workers"])
        if not workers:
            raise ConfigurationError(
                f"--dask {address}: the scheduler has no workers; start some (`dask worker {address}`)"
            )
        yield from _feed_dask(distributed, client, _tasks(seeds, events, off, markers), workers)


def _feed_dask(distributed: Any, client: Any, tasks: Iterator[tuple[int, str]], workers: int) -> Iterator[Outcome]:
    under_way: dict[Any, int] = {}
    failed_at: int | None = None
    try:
        while True:
            while failed_at is None and len(under_way) < workers * TASKS_AHEAD:
                task = next(tasks, None)
                if task is None:
                    break
                # pure=False: the scheduler must not answer from what it remembers of an earlier campaign
                under_way[client.submit(run_task, task[1], pure=False)] = task[0]
            if not under_way:
                return
            with client.as_current():
                done = distributed.wait(list(under_way), return_when="FIRST_COMPLETED").done
            for future in sorted(done, key=lambda one: under_way[one]):
                del under_way[future]
                for outcome in _outcomes(future.result(), "a worker"):
                    yield outcome
                    if outcome.failed:
                        failed_at = min(outcome.seed, failed_at if failed_at is not None else outcome.seed)
            if failed_at is not None:
                late = [future for future, first in under_way.items() if first > failed_at]
                client.cancel(late)
                for future in late:
                    del under_way[future]
    finally:
        client.cancel(list(under_way))
