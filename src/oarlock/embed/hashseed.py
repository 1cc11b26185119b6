"""In development: the same commands in a second process, whose texts and bytes have other hashes.

Within one process a set of texts has one order, so a command that iterates over one does the same on every copy of the
state there, and something else on another member. The second process is told each entry with its results and a digest
of the state afterwards, and speaks only if it finds something else.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import logging
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import IO, Any, Final

import msgspec

from oarlock.machines.base import Context
from oarlock.machines.objects.machine import NotDeterministic, ObjectMachine

_log = logging.getLogger(__name__)

FRAME_BYTES_MAX: Final = 1 << 30
END_S: Final = 5.0
_LENGTH: Final = struct.Struct("<I")
_MAIN: Final = "oarlock_program"  # what the program's main file is called in the second process


class SecondProcess:
    """The `Mirror` of a machine. Begins with the first entry; `close` ends the process."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._off = False
        self.found = ""

    def before(self, machine: ObjectMachine) -> None:
        """An entry will be applied. Raises `NotDeterministic` if an earlier one did something else there."""
        if self.found:
            raise NotDeterministic(self.found)
        if self._process is None and not self._off:
            self._begin(machine)

    def applied(
        self, context: Context, commands: Sequence[bytes], results: Sequence[object], state: bytes, shown: str
    ) -> None:
        """An entry was applied, with these results; the state is that now. `shown` names the commands for a person."""
        self._send([context.index, context.term, context.time_ns, list(commands), list(results), _digest(state), shown])

    def loaded(self, machine: ObjectMachine) -> None:
        """The state is another one: begin with that."""
        self.close()
        self._off = False

    def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None and self._reader is not None
        try:
            process.stdin.close()
        except OSError:
            pass
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._reader.join()
        process.stdout.close()

    def _begin(self, machine: ObjectMachine) -> None:
        job, reason = _job(machine)
        if reason:
            self._off = True
            _log.info("development mode does not try other hash seeds: %s", reason)
            return
        seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
        paths = os.pathsep.join(path for path in sys.path if path)
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from oarlock.embed.hashseed import main; main()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths},
            start_new_session=True,  # Ctrl-C is for the program; this one ends with it
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()
        self._send(job)

    def _send(self, frame: object) -> None:
        if self._process is None:
            return
        assert self._process.stdin is not None
        data = msgspec.msgpack.encode(frame)
        try:
            self._process.stdin.write(_LENGTH.pack(len(data)) + data)
            self._process.stdin.flush()
        except OSError:  # it has ended; what it said is read
            self._off = True
            self.close()

    def _read(self, output: IO[bytes]) -> None:
        text = output.read().decode(errors="replace").strip()
        kind, _, rest = text.partition(" ")
        if kind == "differs":
            self.found = rest
        elif text:
            _log.info("development mode does not try other hash seeds: %s", text)


def _digest(state: bytes) -> bytes:
    return hashlib.blake2b(state, digest_size=16).digest()


def _job(machine: ObjectMachine) -> tuple[dict[str, Any], str]:
    """What the second process needs to make the same machine; or the reason why it cannot."""
    parts: list[tuple[str, str, str, str]] = []
    for path, part in machine.spec.parts:
        cls = type(part)
        module = sys.modules.get(cls.__module__)
        file = getattr(module, "__file__", None) or ""
        if "<locals>" in cls.__qualname__:
            return {}, f"{cls.__qualname__} is defined inside a function"
        if cls.__module__ == "__main__" and not (file and _guarded(file)):
            return {}, 'the main file has no `if __name__ == "__main__":` around what it does'
        parts.append((path, cls.__module__, file, cls.__qualname__))
    state = [bytes(each) for each in machine.dump()]
    return {"path": sys.path, "parts": parts, "index": machine.applied_index, "state": state}, ""


def _guarded(file: str) -> bool:
    """Whether a file can be loaded without running what it does, as `multiprocessing` asks for too."""
    try:
        with open(file, encoding="utf-8") as source:
            body = ast.parse(source.read()).body
    except (OSError, ValueError, SyntaxError):
        return False
    return any(isinstance(each, ast.If) and "__name__" in ast.unparse(each.test) for each in body)


# -- the second process


def _class_of(module: str, file: str, name: str) -> Any:
    if module == "__main__":
        if _MAIN not in sys.modules:
            spec = importlib.util.spec_from_file_location(_MAIN, file)
            assert spec is not None and spec.loader is not None, file
            sys.modules[_MAIN] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(sys.modules[_MAIN])
        found: Any = sys.modules[_MAIN]
    else:
        found = importlib.import_module(module)
    for each in name.split("."):
        found = getattr(found, each)
    assert isinstance(found, type), f"{module}.{name} is no class"
    return found


def _make(job: dict[str, Any]) -> ObjectMachine:
    sys.path[:] = job["path"]
    objects: dict[str, Any] = {}
    builtin: dict[str, object] = {}
    for path, module, file, name in job["parts"]:
        cls = _class_of(module, file, name)
        made = objects[path] = cls.__new__(cls)
        if not path:
            continue
        above, _, own = path.removesuffix(".").rpartition(".")
        if own.startswith("@"):
            builtin[own] = made
        else:
            vars(objects[f"{above}." if above else ""])[own] = made
    machine = ObjectMachine(objects[""], builtin=builtin)
    machine.load(job["state"])
    machine._applied_index = job["index"]
    return machine


def _frames(source: IO[bytes]) -> Any:
    while len(head := source.read(_LENGTH.size)) == _LENGTH.size:
        (length,) = _LENGTH.unpack(head)
        data = source.read(length)
        if len(data) < length:
            return
        yield msgspec.msgpack.decode(data)


def main() -> None:
    """Says `differs ...` and ends with the first entry that does something else here."""
    frames = _frames(sys.stdin.buffer)
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what the program prints while it is loaded is no answer of ours
    try:
        machine = _make(next(frames))
    except Exception as error:  # whatever a program's module does when it is loaded
        out.write(f"its classes cannot be made in a second process: {type(error).__name__}: {error}")
        return
    for index, term, time_ns, commands, expected, digest, shown in frames:
        results = machine.apply(Context(index, term, time_ns), commands)
        if results != expected:
            place = next(n for n, (one, other) in enumerate(zip(expected, results, strict=True)) if one != other)
            texts = [machine.result_text(each[place]) for each in (expected, results)]
            out.write(f"differs {shown} gave {texts[0]} in one process and {texts[1]} in another: ")
        elif _digest(b"".join(machine.dump())) != digest:
            out.write(f"differs after {shown} the state is another one in a second process: ")
        else:
            continue
        out.write("the order of a set of texts or bytes differs from process to process; use a dict, or sorted()")
        return
