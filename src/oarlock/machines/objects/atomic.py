"""A command that raises leaves nothing behind: what it may change is copied before it runs, and put back if it raises.

Only what a command may reach is copied. Its code is looked at once: as long as it uses `self` for nothing but its
attributes and methods, the attributes that it and those methods name are all that it can change. Where `self` itself
goes elsewhere (a function, a closure, `super()`), or a part of the object is named, everything below is copied.
"""

from __future__ import annotations

import copy
import dataclasses
import dis
import enum
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from types import FunctionType
from typing import Any, Final

import msgspec

from oarlock.machines.objects.values import IMMUTABLE as _IMMUTABLE

ELEMENTS_MANY: Final = 10_000
"""Copying more than so many values before each call is worth a word in the log."""

BYTES_OF_ELEMENT: Final = 16  # a part that makes its own snapshot is counted by its size

_LOADS: Final = ("LOAD_FAST", "LOAD_FAST_BORROW", "LOAD_FAST_CHECK")  # how the names of instructions end that load
_ATTRIBUTE: Final = frozenset({"LOAD_ATTR", "LOAD_METHOD", "STORE_ATTR", "DELETE_ATTR"})
_METHODS_MAX: Final = 100


def reached(
    cls: type, function: Callable[..., Any], inner: Callable[[object], Callable[..., Any] | None]
) -> frozenset[str] | None:
    """The names of the attributes of an instance of `cls` that `function`, a method, may change; None: perhaps all.

    `inner` gives the function of a declared command or query, which methods reach as `self.name.inline`.
    """
    found: set[str] = set()
    seen: set[object] = set()
    waiting: list[Callable[..., Any]] = [function]
    while waiting:
        method = waiting.pop()
        if method in seen:
            continue
        seen.add(method)
        names = _names_of(method)
        if names is None or len(seen) > _METHODS_MAX:
            return None
        for name in names:
            attribute = _static(cls, name)
            if attribute is None:
                found.add(name)
            elif isinstance(attribute, FunctionType):
                waiting.append(attribute)
            elif (declared := inner(attribute)) is not None:
                waiting.append(declared)
            elif type(attribute) in _IMMUTABLE:
                found.add(name)  # a default of the class, which an attribute of the instance may hide
            elif name not in _HARMLESS:
                return None  # a property, say
    return frozenset(found)


_HARMLESS: Final = frozenset({"context", "note_change", "holder_lives"})
"""What the base class gives its commands."""


def _static(cls: type, name: str) -> object | None:
    if name in _HARMLESS:
        return _HARMLESS
    for each in cls.__mro__:
        if name in vars(each):
            found: object = vars(each)[name]
            return found
    return None


def _names_of(method: Callable[..., Any]) -> set[str] | None:
    """The attributes of its first argument that a function names; None if that goes anywhere else."""
    code = getattr(method, "__code__", None)
    if code is None or not code.co_argcount or code.co_varnames[0] in code.co_cellvars:
        return None
    if "__class__" in code.co_freevars:
        return None  # `super()` takes it from the frame
    me = code.co_varnames[0]
    names: set[str] = set()
    # `self.x += 1` copies the reference before it loads the attribute
    instructions = [each for each in dis.get_instructions(code) if each.opname not in ("CACHE", "EXTENDED_ARG", "COPY")]
    for each, following in zip(instructions, [*instructions[1:], None], strict=True):
        if each.opcode not in _USES_LOCALS:
            continue
        of = each.argval if isinstance(each.argval, tuple) else (each.argval,)  # some instructions are two in one
        if me not in of:
            continue
        if me in of[:-1] or not each.opname.endswith(_LOADS) or following is None or following.opname not in _ATTRIBUTE:
            return None
        names.add(str(following.argval))
    return names


_USES_LOCALS: Final = frozenset(number for name, number in dis.opmap.items() if "FAST" in name or "DEREF" in name)


class Image:
    """Copies of values, counted."""

    def __init__(self) -> None:
        self.elements = 0

    def of(self, value: Any) -> Any:
        """A copy of a value that shares nothing with it that can change."""
        kind = type(value)
        if kind in _IMMUTABLE:
            return value
        if kind is dict or kind is OrderedDict or kind is Counter or kind is defaultdict:
            self.elements += len(value)
            made = value.copy()
            if not _IMMUTABLE.issuperset(map(type, value.values())):
                for key, item in value.items():
                    made[key] = self.of(item)
            return made
        if kind is list or kind is deque or kind is set:
            self.elements += len(value)
            if _IMMUTABLE.issuperset(map(type, value)):
                return value.copy()
            return deque(map(self.of, value), value.maxlen) if kind is deque else kind(map(self.of, value))
        if kind is tuple or kind is frozenset:
            self.elements += len(value)
            return value if _IMMUTABLE.issuperset(map(type, value)) else kind(map(self.of, value))
        if isinstance(value, enum.Enum):
            return value
        if isinstance(value, tuple) and hasattr(kind, "_make"):
            return kind._make(self._all(value))
        return self._object(kind, value)

    def _object(self, kind: type, value: Any) -> Any:
        if dataclasses.is_dataclass(kind):
            names: Iterable[str] = [field.name for field in dataclasses.fields(kind)]
        elif issubclass(kind, msgspec.Struct):
            names = kind.__struct_fields__
        else:
            return copy.deepcopy(value)  # a set's mirror, a bytearray: whatever the codec takes
        self.elements += 1
        changeable = {name: item for name in names if type(item := getattr(value, name)) not in _IMMUTABLE}
        if not changeable and _frozen(kind):
            return value
        made = copy.copy(value)
        for name, item in changeable.items():
            if isinstance(made, msgspec.Struct):
                msgspec.structs.force_setattr(made, name, self.of(item))
            else:
                object.__setattr__(made, name, self.of(item))
        return made

    def _all(self, values: Iterable[Any]) -> Iterable[Any]:
        return map(self.of, values)


def _frozen(kind: Any) -> bool:
    if issubclass(kind, msgspec.Struct):
        return bool(kind.__struct_config__.frozen)
    return bool(kind.__dataclass_params__.frozen)


class Plan:
    """What has to be copied before a command: of each part that it may reach, some attributes or all.

    `parts`: the part; the names, None for all but `but`; and whether it has a `snapshot` of its own, which then is its
    copy.
    """

    def __init__(self, parts: Iterable[tuple[object, frozenset[str] | None, frozenset[str], bool]]) -> None:
        self._parts = tuple(parts)
        self.elements = 0
        """How many values the last copy had."""

        self.told = False
        """Whether somebody was told that they are many."""

    def take(self) -> list[Any]:
        """Copies of all that the command may change."""
        image = Image()
        of = image.of
        taken: list[Any] = []
        for part, names, but, custom in self._parts:
            if custom:
                data: bytes = part.snapshot()  # type: ignore[attr-defined]
                image.elements += len(data) // BYTES_OF_ELEMENT
                taken.append(data)
                continue
            state = vars(part)
            if names is None:
                taken.append(({name: of(value) for name, value in state.items() if name not in but}, tuple(state)))
            else:
                taken.append(({name: of(state[name]) for name in names if name in state}, tuple(state)))
        self.elements = image.elements
        return taken

    def put_back(self, taken: list[Any]) -> None:
        """Make the parts what they were when the copies were taken. The copies are used up."""
        for (part, _, _, custom), saved in zip(self._parts, taken, strict=True):
            if custom:
                part.restore(saved)  # type: ignore[attr-defined]
                continue
            state = vars(part)
            copies, order = saved
            state.update(copies)
            if tuple(state) != order:  # attributes are written into snapshots in their order
                now = dict(state)
                state.clear()
                state.update({name: now[name] for name in order})

    def changed(self, taken: list[Any], encode: Callable[[Any], bytes]) -> bool:
        """Whether the parts are not what they were."""
        return [encode(each) for each in self.take()] != [encode(each) for each in taken]
