"""An event loop in a daemon thread of its own, for the faces that block: calls from any thread, and an end that leaves
no thread waiting."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

T = TypeVar("T")

END_S: Final = 2.0
"""Seconds that what still runs at the end may take to be cancelled."""


class LoopEnded(RuntimeError):
    """The thread has ended, or ended while the call was under way."""


class LoopThread:
    """`what` is said in errors: the thing that the thread belongs to."""

    def __init__(self, name: str, what: str) -> None:
        self._what = what
        self._pid = os.getpid()
        self._guard = threading.RLock()  # a signal handler may call while its thread is within
        self._ending = False
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_forever()
        finally:
            self.loop.close()

    @property
    def ended(self) -> bool:
        return self._ending

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run `work` there and wait for it. Raises `LoopEnded` once `end` was called, also if that happens meanwhile.
        A signal handler that raises (Ctrl-C) ends the waiting, and `work` is cancelled."""
        with self._guard:
            if self._ending:
                work.close()
                raise LoopEnded(f"{self._what} is closed: make another")
            future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            if self._ending:
                raise LoopEnded(f"{self._what} was closed while the call was under way") from None
            raise
        except BaseException:
            future.cancel()
            raise

    def end(self, last: Coroutine[Any, Any, object] | None = None, *, cancel_first: bool = False) -> None:
        """Take no more calls, run `last`, cancel what still runs (with `cancel_first` before `last` too), end the
        thread. What `last` raises is raised here. Called again, or from several threads, it waits for the end."""
        if os.getpid() != self._pid or threading.current_thread() is self.thread:
            if last is not None:
                last.close()
            return
        with self._guard:
            first, self._ending = not self._ending, True
            future = asyncio.run_coroutine_threadsafe(self._end(last, cancel_first), self.loop) if first else None
        if future is None and last is not None:
            last.close()
        try:
            if future is not None:
                future.result()
        finally:
            self.thread.join()

    async def _end(self, last: Coroutine[Any, Any, object] | None, cancel_first: bool) -> None:
        try:
            if cancel_first:
                await self._cancel_others()
            if last is not None:
                await last
        finally:
            try:
                await self._cancel_others()
                await self.loop.shutdown_asyncgens()
            finally:
                self.loop.call_soon(self.loop.stop)

    @staticmethod
    async def _cancel_others() -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        if others:
            await asyncio.wait(others, timeout=END_S)
