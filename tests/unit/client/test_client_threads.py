"""The client for threads: closed while others wait, interrupted in a line, forked."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.support.fake_etcd import FakeEtcd, message, serving
from tests.unit.client.test_client_watching import CREATED, Line, Watched, response

from oarlock.client.sync import Client

pytestmark = pytest.mark.timeout(120)


@contextmanager
def background(server: FakeEtcd) -> Iterator[str]:
    """Serve on a loop of its own."""
    ready, ended = threading.Event(), threading.Event()
    endpoint: list[str] = []

    async def serve() -> None:
        async with serving([server]) as endpoints:
            endpoint.extend(endpoints)
            ready.set()
            while not ended.is_set():
                await asyncio.sleep(0.01)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert ready.wait(30)
        yield endpoint[0]
    finally:
        ended.set()
        thread.join()


def until(condition: Callable[[], object]) -> None:
    pause = threading.Event()
    for _ in range(6000):
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError("it did not come about")


def test_close_frees_every_thread_that_waits() -> None:
    server = FakeEtcd({"Watch": Watched([CREATED])})
    ends: list[BaseException] = []
    before = set(threading.enumerate())
    with background(server) as endpoint:
        client = Client(endpoint, timeout=60)

        def wait_for(call: Callable[[], Any]) -> None:
            try:
                call()
            except BaseException as error:
                ends.append(error)

        watch = client.watch("a").__enter__()
        calls: list[Callable[[], Any]] = [lambda: client.put("a", "b"), lambda: client.get("a"), lambda: next(watch)]
        threads = [threading.Thread(target=wait_for, args=(call,)) for call in calls]
        for thread in threads:
            thread.start()
        until(lambda: server.counts["Put"] and server.counts["Range"])
        closing = [threading.Thread(target=client.close) for _ in range(4)]
        for thread in closing:
            thread.start()
        for thread in [*threads, *closing]:
            thread.join(60)
            assert not thread.is_alive()
        assert len(ends) == 3 and all(isinstance(error, RuntimeError | StopIteration) for error in ends), ends
        with pytest.raises(RuntimeError, match="closed"):
            client.get("a")
        watch.close()
        client.close()
    assert set(threading.enumerate()) <= before


def test_calls_racing_with_close_end() -> None:
    server = FakeEtcd({})
    with background(server) as endpoint:
        for _ in range(20):
            client = Client(endpoint, timeout=60)
            start = threading.Barrier(5)

            def call(client: Client = client, start: threading.Barrier = start) -> None:
                start.wait()
                with pytest.raises(RuntimeError, match="closed"):
                    client.put("a", "b")

            threads = [threading.Thread(target=call) for _ in range(4)]
            for thread in threads:
                thread.start()
            start.wait()
            client.close()
            for thread in threads:
                thread.join(60)
                assert not thread.is_alive()


@pytest.mark.filterwarnings("error")
def test_close_gives_back_what_is_held() -> None:
    line = Line([])
    server = FakeEtcd(line.answers)
    with background(server) as endpoint:
        client = Client(endpoint, timeout=60)
        held = client.lock("l", ttl=60)
        assert held.__enter__().token == 10
        client.close()
        assert server.counts["LeaseRevoke"] == 1
        with pytest.raises(RuntimeError, match="closed"):
            held.__exit__(None, None, None)


def test_an_interrupted_wait_leaves_the_line() -> None:
    line = Line([("l/other", 4)])
    line.watched.streams = [[response(20, created=True)]]
    server = FakeEtcd(line.answers)
    with background(server) as endpoint, Client(endpoint, timeout=60) as client:

        def interrupt() -> None:
            until(lambda: line.watched.calls)
            os.kill(os.getpid(), signal.SIGINT)

        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt), client.lock("l", ttl=60):
            pytest.fail("it is another's")
        thread.join()
        until(lambda: server.counts["LeaseRevoke"] == 1)
        until(lambda: not line.watched.calls[0].open)


def test_what_is_held_is_entered_once() -> None:
    line = Line([])
    with background(FakeEtcd(line.answers)) as endpoint, Client(endpoint, timeout=60) as client:
        lock = client.lock("l", ttl=60)
        with lock, pytest.raises(RuntimeError, match="make another"):
            lock.__enter__()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="fork is not there")
def test_a_forked_process_is_told() -> None:
    server = FakeEtcd({"Put": lambda call: call.answer(message("PutResponse"))})
    with background(server) as endpoint, Client(endpoint, timeout=60) as client:
        client.put("a", "b")
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            try:
                client.put("a", "c")
            except RuntimeError as error:
                os.write(writing, str(error).encode())
            client.close()  # does nothing, and does not wait for a thread that is not there
            os._exit(0)
        os.waitpid(child, 0)
        said = os.read(reading, 1000)
        os.close(reading)
        os.close(writing)
        assert b"forked" in said
        client.put("a", "d")


def test_bad_arguments_leave_no_thread() -> None:
    before = threading.active_count()
    with pytest.raises(ValueError, match="endpoint"):
        Client("ftp://h")
    assert threading.active_count() == before
