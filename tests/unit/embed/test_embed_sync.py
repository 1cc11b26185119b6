"""`oarlock.sync.Node`: the same from threads, without an event loop."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from oarlock.sync import DeadlineExceeded, Node, NotAttached, StateMachine, command, query

FREE = Callable[[int], list[str]]


class Counter(StateMachine):
    def __init__(self) -> None:
        self.value = 0

    @command
    def add(self, n: int = 1) -> int:
        self.value += n
        return self.value

    @command
    def fail(self) -> None:
        raise KeyError("k")

    @query
    def get(self) -> int:
        return self.value


def test_calls_block_and_give_results(tmp_path: Path) -> None:
    with Node(Counter(), data_dir=tmp_path / "n1") as node:
        counter = node.machine
        assert counter.add(5) == 5
        assert counter.get() == 5
        assert counter.add.options(retry_safe=True, timeout=20)(1) == 6
        with pytest.raises(KeyError):
            counter.fail()
        node.ready(120)
        assert node.is_leader and node.leader == "n1" and node.status().role == "leader"
    with pytest.raises(NotAttached):
        counter.add()
    with Node(Counter(), data_dir=tmp_path / "n1") as node:
        assert node.machine.get() == 6


def test_many_threads_on_many_nodes(tmp_path: Path, free_addresses: FREE) -> None:
    peers = dict(zip(("n1", "n2", "n3"), free_addresses(3), strict=True))
    nodes = [Node(Counter(), name, peers=peers, data_dir=tmp_path / name, timeout=120) for name in peers]
    for node in nodes:
        node.start()
    try:
        answers: list[int] = []

        def work(node: Node[Counter]) -> None:
            answers.extend([node.machine.add() for _ in range(50)])

        threads = [threading.Thread(target=work, args=(nodes[n % 3],)) for n in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(answers) == list(range(1, 601))
        assert [node.machine.get() for node in nodes] == [600] * 3
    finally:
        for node in nodes:
            node.close()


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    with Node(Counter(), data_dir=tmp_path / "n1") as node:
        node.machine.add()
    assert set(threading.enumerate()) == before
    with pytest.raises(Exception, match="in use by process"):
        with Node(Counter(), data_dir=tmp_path / "n1"), Node(Counter(), data_dir=tmp_path / "n1"):
            pass
    assert set(threading.enumerate()) == before, "also when the start fails"


def test_it_refuses_inside_a_running_loop(tmp_path: Path) -> None:
    with Node(Counter(), data_dir=tmp_path / "n1") as node:

        async def inside() -> int:
            with pytest.raises(RuntimeError, match=r"oarlock\.Node"):
                node.machine.add()
            with pytest.raises(RuntimeError, match="event loop"):
                node.status()
            return await asyncio.to_thread(node.machine.add)

        assert asyncio.run(inside()) == 1

    async def start() -> None:
        with pytest.raises(RuntimeError, match="event loop"):
            Node(Counter(), data_dir=tmp_path / "n2").start()

    asyncio.run(start())


def test_a_timeout_says_that_the_command_may_have_run(tmp_path: Path, free_addresses: FREE) -> None:
    peers = dict(zip(("n1", "n2"), free_addresses(2), strict=True))
    with Node(Counter(), "n1", peers=peers, data_dir=tmp_path / "n1") as node:
        with pytest.raises(DeadlineExceeded, match="may have been executed"):
            node.machine.add.options(timeout=0.1)()


def test_control_c_interrupts_a_waiting_call(tmp_path: Path, free_addresses: FREE) -> None:
    peers = dict(zip(("n1", "n2"), free_addresses(2), strict=True))
    with Node(Counter(), "n1", peers=peers, data_dir=tmp_path / "n1", timeout=60) as node:
        timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            timer.start()
            node.machine.add()
        timer.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_fork_after_the_start_is_noticed(tmp_path: Path) -> None:
    with Node(Counter(), data_dir=tmp_path / "n1") as node:
        node.machine.add()
        read, write = os.pipe()
        child = os.fork()
        if child == 0:  # what pytest would do at the end of this process must not happen
            try:
                node.machine.add()
                text = "no error"
            except RuntimeError as error:
                text = str(error)
            os.write(write, text.encode())
            os._exit(0)
        os.close(write)
        assert b"before this process was forked" in os.read(read, 1000)
        os.close(read)
        os.waitpid(child, 0)
        assert node.machine.add() == 2, "the parent's node goes on"
