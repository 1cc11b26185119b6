"""Real members on this machine's loopback, with the shortest timings that a busy machine can keep."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable

import pytest

from oarlock.cli.local_cluster import free_ports


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a coroutine test in an event loop of its own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


def _free_addresses(count: int) -> list[str]:
    return [f"127.0.0.1:{port}" for port in free_ports(count)]


@pytest.fixture
def free_addresses() -> Callable[[int], list[str]]:
    return _free_addresses
