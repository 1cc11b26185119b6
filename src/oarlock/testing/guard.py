"""Watches a user's code while it runs in the world: what it calls, whether it ends, what it raises.

A machine may depend on its state, the command and the context only. While it runs, every call of a C function is
looked at (`sys.setprofile`): one that asks for the time, for randomness, for the outside world, or for what differs
between processes is noted with the user's line. A timer counts the CPU time of each call.
"""

from __future__ import annotations

import builtins
import datetime
import gc
import io
import linecache
import os
import random
import signal
import socket
import sys
import sysconfig
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, TypeVar

from oarlock.sim.invariants import Violation

T = TypeVar("T")

SECONDS_MAX: Final = 2.0  # of CPU time that one call of a machine may take

_CLOCK: Final = "the time is not the same on every member; use `context.time_ns`, which the leader stamped"
_CHANCE: Final = "randomness is not the same on every member; draw it before the command is sent"
_WORLD: Final = "the outside is not the same on every member; look before the command is sent"
_PROCESS: Final = "it differs between processes"

_FORBIDDEN: Final[dict[Any, tuple[str, str]]] = {
    **{
        getattr(time, name): (f"time.{name}", _CLOCK)
        for name in (
            "time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time",
            "process_time_ns", "thread_time", "localtime", "gmtime", "ctime", "asctime", "strftime", "sleep",
            "clock_gettime", "clock_gettime_ns",
        )
        if hasattr(time, name)
    },
    datetime.datetime.now: ("datetime.now", _CLOCK),
    datetime.datetime.utcnow: ("datetime.utcnow", _CLOCK),
    datetime.datetime.today: ("datetime.today", _CLOCK),
    datetime.date.today: ("date.today", _CLOCK),
    **{
        getattr(random._inst, name): (f"random.{name}", _CHANCE)
        for name in ("random", "getrandbits", "seed", "getstate")
    },
    os.urandom: ("os.urandom", _CHANCE),
    **{
        getattr(os, name): (f"os.{name}", _WORLD)
        for name in ("getpid", "open", "read", "write", "stat", "listdir", "scandir", "getcwd", "getloadavg", "times")
    },
    io.open: ("open", _WORLD),
    **{getattr(socket, name): (f"socket.{name}", _WORLD) for name in ("gethostname", "gethostbyname")},
    builtins.input: ("input", _WORLD),
    builtins.id: ("id", _PROCESS),
    builtins.hash: ("hash", f"{_PROCESS} for texts and bytes"),
}  # fmt: skip
if hasattr(os, "getrandom"):
    _FORBIDDEN[os.getrandom] = ("os.getrandom", _CHANCE)

_STANDARD: Final = (sysconfig.get_paths()["stdlib"], "<frozen ")
_OURS: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_HARMLESS: Final = ("importlib", "logging", "linecache", "traceback", "warnings")
"""Parts of the standard library that look at the clock or at files for reasons of their own."""


class _Endless(BaseException):
    """The timer rang."""


def _is_foreign(frame: FrameType) -> bool:
    """Whether the frame is neither the user's nor of a package that the user called."""
    name = frame.f_code.co_filename
    return name.startswith((_OURS, _STANDARD[1])) or (name.startswith(_STANDARD[0]) and "site-packages" not in name)


def _users_frame(frame: FrameType | None) -> FrameType | None:
    while frame is not None and _is_foreign(frame):
        frame = frame.f_back
    return frame


def place(filename: str, line: int, function: str) -> str:
    """`counter.py:12 in command: self.total += random.random()`."""
    text = linecache.getline(filename, line).strip()
    return f"{filename}:{line} in {function}" + (f": {text}" if text else "")


def _place_of(frame: FrameType) -> str:
    return place(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name)


class Guard:
    """Runs a user's code. What is wrong with it comes out as a `Violation`."""

    def __init__(self, seconds_max: float = SECONDS_MAX) -> None:
        self._seconds_max = seconds_max
        self._impure = ""
        self._depth = 0
        self._where = ""
        self.doing: Callable[[], str] = lambda: ""  # says which command is being applied

    def run(self, what: str, function: Callable[..., T], *arguments: Any) -> T:
        """Call it. `what` names the call for a person: `apply`, `read`, ..."""
        if self._depth:  # the user's code called what is guarded: the outer call watches
            return function(*arguments)
        self._depth = 1
        self._impure = ""
        profile = sys.getprofile()
        timed = threading.current_thread() is threading.main_thread()
        old: Any = None
        if timed:
            old = signal.signal(signal.SIGVTALRM, self._ring)
            signal.setitimer(signal.ITIMER_VIRTUAL, self._seconds_max)
        callbacks, gc.callbacks[:] = gc.callbacks[:], []  # of other tools: they come in the middle of anything
        try:
            sys.setprofile(self._called)
            try:
                return self._purely(what, function(*arguments))
            finally:
                sys.setprofile(profile)
                gc.callbacks[:] = callbacks
                if timed:
                    signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
                    signal.signal(signal.SIGVTALRM, old)
                self._depth = 0
        except _Endless:
            raise Violation(
                "LOOPS",
                f"{what} did not end within {self._seconds_max:g} s of CPU time{self._while()}; "
                f"it was at {self._where}",
            ) from None
        except Violation:
            raise
        except AssertionError as error:
            if what == "check":
                raise Violation(
                    "CHECK", f"{str(error) or 'an assertion failed'}{_raised_at(error)}{self._while()}"
                ) from error
            raise self._raised(what, error) from error
        except Exception as error:
            raise self._raised(what, error) from error

    def _purely(self, what: str, result: T) -> T:
        if self._impure:
            raise Violation("IMPURE", f"{what} called {self._impure}")
        return result

    def _raised(self, what: str, error: Exception) -> Violation:
        if self._impure:
            return Violation("IMPURE", f"{what} called {self._impure}")
        return Violation("RAISES", f"{what} raised {type(error).__name__}: {error}{_raised_at(error)}{self._while()}")

    def _while(self) -> str:
        doing = self.doing()
        return f"; the command was {doing}" if doing else ""

    def _ring(self, signal_number: int, frame: FrameType | None) -> None:
        users = _users_frame(frame)
        self._where = _place_of(users) if users is not None else "an unknown place"
        raise _Endless

    def _called(self, frame: FrameType, event: str, argument: Any) -> None:
        if event != "c_call" or self._impure:
            return
        try:
            found = _FORBIDDEN.get(argument)
        except TypeError:  # of an object that cannot be hashed
            return
        if found is None:
            return
        name, why = found
        if _is_foreign(frame) and (argument is builtins.hash or argument is builtins.id):
            return  # a copy, a generated __hash__, ...: not the user's idea
        if argument is builtins.hash and frame.f_code.co_name == "__hash__":
            return
        users: FrameType | None = frame
        while users is not None and _is_foreign(users):
            if users.f_code.co_filename.startswith(_OURS) or any(
                part in users.f_code.co_filename for part in _HARMLESS
            ):
                return
            users = users.f_back
        where = f" at {_place_of(users)}" if users is not None else ""
        self._impure = f"{name}(){where} ({why}){self._while()}"


def _raised_at(error: BaseException) -> str:
    """Where it was raised, as far as that is the user's own code."""
    last = ""
    for row in traceback.extract_tb(error.__traceback__):
        if not row.filename.startswith(_OURS) and row.lineno is not None:
            last = f" at {place(row.filename, row.lineno, row.name)}"
    return last
