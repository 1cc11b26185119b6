"""Development mode: what differs between processes is found, and who cannot be looked at is left in peace."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from tests.unit.embed.hashed_words import Words

from oarlock import Node, NotDeterministic, StateMachine, command
from oarlock.embed.hashseed import SecondProcess
from oarlock.machines.base import Context
from oarlock.machines.objects.machine import ObjectMachine

TEXT = " ".join(f"word{n}" for n in range(40))
"""Forty words: two hash seeds agree on which is first once in forty, and tests try several lists of other words."""


def machine_of(root: object) -> tuple[ObjectMachine, SecondProcess]:
    machine = ObjectMachine(root, check=True)
    machine.mirror = second = SecondProcess()
    return machine, second


def apply(machine: ObjectMachine, index: int, *calls: bytes) -> None:
    machine.apply(Context(index, 1, index), list(calls))


def test_the_order_of_a_set_within_a_command_is_found() -> None:
    for method, text in ((Words.any_of, "gave"), (Words.kept, "the state is another one")):
        machine, second = machine_of(Words())
        for index in range(1, 9):  # eight entries, as two seeds may agree on one
            apply(machine, index, machine.encode_call("", method, (TEXT.replace("word", f"word{index}-"),), {}))
        second.close()
        assert text in second.found and method.name in second.found, second.found
        with pytest.raises(NotDeterministic, match="use a dict, or sorted"):
            apply(machine, 9, machine.encode_call("", Words.in_order, ("a",), {}))


def test_what_is_deterministic_is_not_complained_about_also_after_another_state_came() -> None:
    words = Words()
    machine, second = machine_of(words)
    apply(machine, 1, machine.encode_call("", Words.in_order, (TEXT,), {}))
    apply(machine, 2, *(machine.encode_call("", Words.in_order, (text,), {}) for text in ("b a", "c")))
    machine.load([bytes(each) for each in machine.dump()])
    apply(machine, 3, machine.encode_call("", Words.in_order, ("d",), {}))
    apply(machine, 4, machine.encode_call("lock.", type(words.lock).enter, ("nobody",), {}))
    second.close()
    assert second.found == ""


def test_a_second_process_that_is_gone_is_no_harm() -> None:
    machine, second = machine_of(Words())
    apply(machine, 1, machine.encode_call("", Words.in_order, (TEXT,), {}))
    assert second._process is not None
    second._process.kill()
    second._process.wait()
    for index in range(2, 5):
        apply(machine, index, machine.encode_call("", Words.in_order, (TEXT,), {}))
    second.close()
    assert second.found == ""


def test_a_class_inside_a_function_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Inside(StateMachine):
        @command
        def nothing(self) -> None:
            pass

    machine, second = machine_of(Inside())
    with caplog.at_level(logging.INFO):
        for index in range(1, 4):
            apply(machine, index, machine.encode_call("", Inside.nothing, (), {}))
    second.close()
    assert caplog.text.count("is defined inside a function") == 1


async def test_the_node_stops_or_says_so_when_it_closes(tmp_path: Path) -> None:
    with pytest.raises(NotDeterministic, match=r"any_of\(.* gave .* in one process and"):
        async with Node(Words(), data_dir=tmp_path / "n1", development=True, timeout=30) as node:
            for number in range(8):
                await node.machine.any_of(TEXT.replace("word", f"word{number}-"))
    async with Node(Words(), data_dir=tmp_path / "n2", development=True, timeout=30) as node:
        assert await node.machine.in_order(TEXT) == "word0"
        async with node.machine.lock:
            pass


PROGRAM = """
import asyncio, logging, sys
from oarlock import Node, StateMachine, command

class Words(StateMachine):
    @command
    def any_of(self, text: str) -> str:
        return next(iter(set(text.split())))

async def main() -> None:
    logging.basicConfig(level=logging.INFO, stream=sys.stdout)
    async with Node(Words(), data_dir=sys.argv[1], development=True, timeout=30) as node:
        for number in range(8):
            await node.machine.any_of(sys.argv[2].replace("word", f"word{number}-"))

"""


@pytest.mark.parametrize(
    ("guard", "text"), [("if __name__ == '__main__': ", "NotDeterministic"), ("", "no `if __name__")]
)
def test_a_main_file_is_loaded_only_behind_its_guard(guard: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(f"{PROGRAM}{guard}asyncio.run(main())\n")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "n1"), TEXT],
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert text in done.stdout + done.stderr
    assert (done.returncode != 0) == bool(guard)
