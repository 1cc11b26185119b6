"""Small things that groups of programs need: numbers, limits of rate, work that is due. Parts of a machine too."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, Final

from oarlock.embed.hold import calls_of, limit, run, runs_blocking
from oarlock.errors import DeadlineExceeded, RaftError
from oarlock.machines.objects.claims import HolderUnknown
from oarlock.machines.objects.declare import command, query, whole
from oarlock.machines.objects.machine import StateMachine

_log = logging.getLogger(__name__)

ID_BLOCK: Final = 1000
RATE_WAIT_MIN_S: Final = 0.001
JOB_RETRY_S: Final = 1.0


class IdGenerator(StateMachine):
    """Numbers that are never given twice. `next` gives them without a gap; `fast_next` takes them from a block that
    this member has reserved: no message for most of them, but not in order between members, and with gaps after a
    restart."""

    atomic_commands: ClassVar[bool] = False  # they look before they change anything

    def __init__(self, first: int = 1) -> None:
        self.upcoming = first

    @command
    def next(self) -> int:
        return self.reserve.inline(1)

    @command
    def reserve(self, count: int) -> int:
        """So many numbers in a row; gives the first."""
        whole(count, f"reserve({count!r})")
        first = self.upcoming
        self.upcoming += count
        return first

    def fast_next(self, block: int = ID_BLOCK) -> Awaitable[int]:
        """A number from this member's block; reserves `block` more when that is used up."""
        return run(self, self._fast_next(block))

    async def _fast_next(self, block: int) -> int:
        calls = calls_of(self)
        memory: dict[str, Any] = calls.memory_of(self)
        lock: asyncio.Lock = memory.setdefault("lock", asyncio.Lock())
        async with lock:
            first, end = memory.get("block", (0, 0))
            if first >= end:
                first = await calls.command(self, IdGenerator.reserve, block, retry_safe=True)
                end = first + block
            memory["block"] = (first + 1, end)
            return int(first)


class RateLimiter(StateMachine):
    """A token bucket: `rate` a second on the average, `burst` at once, over all members together. Its clock is the
    leader's, as stamped in the log; when that jumps ahead at most one burst is given away."""

    atomic_commands: ClassVar[bool] = False  # they look before they change anything

    def __init__(self, rate: float, burst: float) -> None:
        if not 0 < rate < math.inf or not 1 <= burst < math.inf:
            raise ValueError(f"RateLimiter(rate={rate}, burst={burst}): rate must be positive, and burst at least 1")
        self.rate = rate
        self.burst = burst
        self.filled = float(burst)
        self.at_ns = 0

    @command
    def try_acquire(self, amount: float = 1) -> float:
        """0.0 if it was granted; otherwise the seconds after which it may be."""
        if not 0 < amount <= self.burst:
            raise ValueError(f"try_acquire({amount}): it must be more than 0 and at most the burst, {self.burst}")
        now = self.context.time_ns
        elapsed = max(0, now - self.at_ns) if self.at_ns else 0
        self.at_ns = max(now, self.at_ns)
        self.filled = min(self.burst, self.filled + elapsed * self.rate / 1e9)
        if self.filled >= amount:
            self.filled -= amount
            return 0.0
        return (amount - self.filled) / self.rate

    def acquire(self, amount: float = 1, timeout: float | None = None) -> Awaitable[None]:
        """Wait until it is granted. Raises `DeadlineExceeded` after `timeout` seconds."""
        return run(self, self._acquire(amount, timeout))

    async def _acquire(self, amount: float, timeout: float | None) -> None:
        calls = calls_of(self)
        try:
            async with limit(timeout):
                wait: float = await calls.command(self, RateLimiter.try_acquire, amount)
                while wait:
                    await asyncio.sleep(max(wait, RATE_WAIT_MIN_S))
                    wait = await calls.command(self, RateLimiter.try_acquire, amount)
        except TimeoutError:
            raise DeadlineExceeded(f"the rate of {self.rate:g} a second left no room for {timeout:g} s") from None


_Job = tuple[float, Callable[[], Awaitable[object]], bool]


class Schedule(StateMachine):
    """Work that is due at fixed times and must be done by one member, once.

        schedule.every(60, "clean up", clean_up)     # on every member; one of them does it
        await schedule.run()

    Each time belongs to whoever asks first. If that member ends in the middle the time is not made up for, unless
    `again` was asked for; a job that is still at work when it is due again is left out.
    """

    atomic_commands: ClassVar[bool] = False  # they look before they change anything

    def __init__(self) -> None:
        self.last: dict[str, int] = {}
        """Of each job, the number of the last time that was taken."""

        self.at_work: dict[str, tuple[str, int]] = {}
        """Of each job, the holder that does it and which time it is."""

        self.again: dict[str, int] = {}
        """Times whose holder ended, to be done again."""

    @command
    def claim(self, job: str, slot: int, holder: str, again: bool = False) -> int:
        """The number of the time that the caller is to do: `slot`, an earlier one that is to be done again, or -1."""
        if not self.holder_lives(holder):
            raise HolderUnknown(holder)
        if job in self.at_work:
            return -1
        if again and job in self.again:
            slot = self.again.pop(job)
        elif slot > self.last.get(job, -1):
            self.last[job] = slot
        else:
            return -1
        self.at_work[job] = (holder, slot)
        return slot

    @command
    def finished(self, job: str, holder: str) -> bool:
        """The caller's work on a job has ended."""
        if self.at_work.get(job, ("", 0))[0] != holder:
            return False
        del self.at_work[job]
        return True

    def holder_ended(self, holder: str) -> None:
        for job in [job for job, (who, _) in self.at_work.items() if who == holder]:
            self.again[job] = self.at_work.pop(job)[1]

    @query
    def running(self) -> dict[str, tuple[str, int]]:
        """Of each job at work, the holder and the number of the time."""
        return dict(self.at_work)

    def every(self, seconds: float, job: str, work: Callable[[], Awaitable[object]], *, again: bool = False) -> None:
        """Have `work` done every `seconds`, counted from 1970 so that all members mean the same times. On a node for
        threads it is a plain function, called in a thread."""
        if not 0 < seconds < math.inf:
            raise ValueError(f"every({seconds}): give a positive number of seconds")
        jobs: dict[str, tuple[float, Callable[[], Awaitable[object]], bool]] = (
            calls_of(self).memory_of(self).setdefault("jobs", {})
        )
        if job in jobs:
            raise ValueError(f"there is a job {job!r} already")
        jobs[job] = (seconds, work, again)

    def run(self) -> Awaitable[None]:
        """Do what is due, until cancelled; on a node for threads, until Ctrl-C or the node's end."""
        return run(self, self._run())

    async def _run(self) -> None:
        jobs = calls_of(self).memory_of(self).get("jobs", {})
        async with asyncio.TaskGroup() as group:
            for job, (seconds, work, again) in jobs.items():
                group.create_task(self._run_job(job, seconds, work, again), name=f"oarlock job {job}")

    async def _run_job(self, job: str, seconds: float, work: Callable[[], Awaitable[object]], again: bool) -> None:
        calls = calls_of(self)
        while True:
            now = time.time()
            slot = int(now // seconds)
            try:
                holder = await calls.holders.holder()
                mine = await calls.command(self, Schedule.claim, job, slot, holder.name, again, retry_safe=True)
            except (RaftError, HolderUnknown):
                await asyncio.sleep(JOB_RETRY_S)
                continue
            if mine >= 0:
                try:
                    if runs_blocking(self):
                        await asyncio.to_thread(work)
                    else:
                        await work()
                except Exception:  # the outer edge of a job: the next time is due all the same
                    _log.exception("job failed job=%s time=%d", job, mine)
                finally:
                    await asyncio.shield(
                        calls.background(calls.command(self, Schedule.finished, job, holder.name, retry_safe=True))
                    )
            await asyncio.sleep(max(0.0, (int(time.time() // seconds) + 1) * seconds - time.time()))
