"""The life of a server process: start, say so, wait for a signal or a fault, stop within a bound, exit with a code.

What is started is a `Running`; `oarlock.cli.member` makes the real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, Protocol

from oarlock.cli.app import fail
from oarlock.cli.exits import Exit
from oarlock.cli.systemd import notify
from oarlock.errors import ConfigurationError, StorageError

log = logging.getLogger(__name__)

_DISK_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR})
_ADDRESS_ERRNOS = frozenset({errno.EADDRINUSE, errno.EADDRNOTAVAIL})


class HaltedError(Exception):
    """The member stopped by the rules: it was removed, or found a state that must not be. The text is for a person."""


class Running(Protocol):
    """A member that serves."""

    def describe(self) -> str:
        """`key=value` fields for the ready line."""

    async def wait_halted(self) -> BaseException:
        """Return, only then, why the member cannot go on: a `StorageError`, or another exception with a reason."""

    async def stop(self) -> None:
        """Stop serving and close everything. Leadership is handed over first."""


def exit_code(error: BaseException) -> Exit:
    """The exit code for what ended the process."""
    if isinstance(error, ConfigurationError):
        cause = error.__cause__
        return Exit.ADDRESS if isinstance(cause, OSError) and cause.errno in _ADDRESS_ERRNOS else Exit.CONFIGURATION
    if isinstance(error, StorageError):
        return Exit.STORAGE
    if isinstance(error, HaltedError):
        return Exit.HALTED
    if isinstance(error, OSError):
        return Exit.STORAGE if error.errno in _DISK_ERRNOS and error.filename is not None else Exit.ADDRESS
    return Exit.INTERNAL


async def live(start: Callable[[], Awaitable[Running]], shutdown_timeout_s: float) -> int:
    """Run what `start` makes until a signal or a fault; returns the exit code. A second signal ends it at once."""
    loop = asyncio.get_running_loop()
    asked: asyncio.Future[signal.Signals] = loop.create_future()

    def on_signal(number: signal.Signals) -> None:
        if asked.done():
            _leave_at_once(number)
        log.info("stopping signal=%s", number.name)
        asked.set_result(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    try:
        return await _live(start, asked, shutdown_timeout_s)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def _live(
    start: Callable[[], Awaitable[Running]], asked: asyncio.Future[signal.Signals], shutdown_timeout_s: float
) -> int:
    starting = asyncio.ensure_future(_as_coroutine(start))
    await _first_of(starting, asked)
    if not starting.done():  # told to stop before we ran: what has been opened is closed by the cancellation
        starting.cancel()
        await asyncio.wait({starting}, timeout=shutdown_timeout_s)
        return Exit.CLEAN if starting.done() else Exit.UNCLEAN
    if starting.exception() is not None:
        return report("could not start", starting.exception())
    running = starting.result()

    # What exists now lives as long as the process: the collector need not look at it ever again.
    gc.collect()
    gc.freeze()
    sys.stdout.write(f"oarlock ready {running.describe()} pid={os.getpid()}\n")
    sys.stdout.flush()
    notify("READY=1")

    halted = asyncio.ensure_future(running.wait_halted())
    await _first_of(halted, asked)
    code: int = Exit.CLEAN
    if halted.done():
        reason = halted.result() if halted.exception() is None else halted.exception()
        code = report("the member had to stop", reason)
    else:
        halted.cancel()
    notify("STOPPING=1")
    stopping = asyncio.ensure_future(running.stop())
    done, _ = await asyncio.wait({stopping}, timeout=shutdown_timeout_s)
    if not done:
        stopping.cancel()
        log.error("stopping took longer than shutdown-timeout seconds=%g; the process ends now", shutdown_timeout_s)
        return code or Exit.UNCLEAN
    if stopping.exception() is not None:
        return code or report("could not stop cleanly", stopping.exception())
    log.info("stopped")
    return code


async def _as_coroutine(start: Callable[[], Awaitable[Running]]) -> Running:
    return await start()


async def _first_of(*futures: asyncio.Future[Any]) -> None:
    await asyncio.wait(set(futures), return_when=asyncio.FIRST_COMPLETED)


def report(what: str, error: BaseException | None) -> int:
    """Say on stderr why the process ends; returns the exit code. Only a bug gets a traceback."""
    assert error is not None
    code = exit_code(error)
    if code is Exit.INTERNAL:
        log.critical("%s: %s", what, error, exc_info=error)
    place = (
        f" ({error.path})" if isinstance(error, StorageError) and error.path and error.path not in str(error) else ""
    )
    return fail(f"{what}: {str(error) or type(error).__name__}{place}", code)


def _leave_at_once(number: signal.Signals) -> NoReturn:
    """End the process without waiting for anything. Everything acknowledged is on disk, so nothing is lost by it."""
    log.error("a second signal: the process ends now signal=%s", number.name)
    with contextlib.suppress(OSError):
        sys.stderr.flush()
    os._exit(Exit.UNCLEAN)
