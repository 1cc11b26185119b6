"""What all tests share: everything under tests/system starts real processes, so it is marked and runs on one worker."""

from __future__ import annotations

import signal
import threading
from pathlib import Path

import pytest

from oarlock.cli.version import compiled

TESTS = Path(__file__).parent

# A shell that runs something in the background has it ignore SIGINT, and so would every program that tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN and threading.current_thread() is threading.main_thread():
    signal.signal(signal.SIGINT, signal.default_int_handler)
PATCHES = pytest.mark.skip(reason="replaces what a compiled module does not look up again")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark system tests and put them into one group: `--dist loadgroup` then runs them one after the other."""
    for item in items:
        if item.path.is_relative_to(TESTS / "system"):
            item.add_marker(pytest.mark.system)
        if item.get_closest_marker("system") is not None:
            item.add_marker(pytest.mark.xdist_group("system"))
        if compiled() and item.get_closest_marker("interpreted") is not None:
            item.add_marker(PATCHES)
