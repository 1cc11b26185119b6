"""The state of an object as a value: taken apart, compared, hashed, and put together again.

`freeze` walks everything that an object holds, by its slots and its dictionary, so no attribute can be forgotten: one
of a kind that this module does not know is an error. `thaw` gives back an equal object, with the same parts shared.
`tests/simulation/test_scopes.py` proves it complete: a run through captures is, step for step, the run of live objects.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import is_dataclass
from enum import Enum
from typing import Any, Final, TypeAlias

Frozen: TypeAlias = Hashable

_PLAIN: Final = (int, str, bytes, bool, type(None), Enum)
# The first word of what stands for a container or an object; a tuple of the program is wrapped, too.
_LIST, _DICT, _SET, _DEQUE, _TUPLE, _OBJECT, _AGAIN = "list", "dict", "set", "deque", "tuple", "object", "again"

_kinds: dict[type, str] = {}
_names: dict[type, tuple[str, ...]] = {}


class Immutable:
    """A class whose objects never change: they are their own frozen form. They must have a hash."""

    __slots__ = ()


def attributes(cls: type) -> tuple[str, ...]:
    """The names of everything that an object of this class may hold in slots (those of a compiled class included)."""
    found = _names.get(cls)
    if found is None:
        names: list[str] = []
        for base in cls.__mro__:
            slots = base.__dict__.get("__slots__", ())
            names += [slots] if isinstance(slots, str) else slots
            names += base.__dict__.get("__mypyc_attrs__", ())
        found = _names[cls] = tuple(sorted({name for name in names if name not in ("__dict__", "__weakref__")}))
    return found


def _kind(cls: type) -> str:
    if issubclass(cls, Immutable) or issubclass(cls, _PLAIN) or cls is frozenset:
        return "atom"
    if is_dataclass(cls):
        parameters = cls.__dataclass_params__  # type: ignore[attr-defined]
        if parameters.frozen or parameters.unsafe_hash:  # the latter have `Final` fields
            return "atom"
    for builtin, kind in ((list, _LIST), (dict, _DICT), (set, _SET), (deque, _DEQUE), (tuple, _TUPLE)):
        if issubclass(cls, builtin):
            return kind
    if cls.__module__.startswith("oarlock."):
        return _OBJECT
    raise TypeError(f"no rule says how to capture a {cls.__module__}.{cls.__qualname__}")


def freeze(value: Any) -> Frozen:
    """A hashable value that says everything about `value`. The order of a dictionary is not part of it: nothing may
    rest on that order, and the keys come back sorted."""
    return _freeze(value, {})


def _freeze(value: Any, seen: dict[int, int]) -> Frozen:
    cls = value.__class__
    kind = _kinds.get(cls)
    if kind is None:
        kind = _kinds[cls] = _kind(cls)
    if kind == "atom":
        return value  # type: ignore[no-any-return]
    if kind == _TUPLE:
        return (_TUPLE, *[_freeze(item, seen) for item in value])
    number = seen.get(id(value))
    if number is not None:
        return (_AGAIN, number)
    seen[id(value)] = len(seen)
    if kind == _OBJECT:
        parts = [(name, _freeze(getattr(value, name), seen)) for name in attributes(cls) if hasattr(value, name)]
        extra = getattr(value, "__dict__", None)
        if extra:
            parts += [(name, _freeze(extra[name], seen)) for name in sorted(extra)]
        return (_OBJECT, cls, tuple(parts))
    if kind == _LIST:
        return (_LIST, *[_freeze(item, seen) for item in value])
    if kind == _DICT:
        return (_DICT, *[(key, _freeze(value[key], seen)) for key in sorted(value)])
    if kind == _SET:
        return (_SET, *sorted(value))
    return (_DEQUE, value.maxlen, *[_freeze(item, seen) for item in value])


def thaw(frozen: Frozen) -> Any:
    """A new object that `freeze` describes alike; nothing that can change is shared with any other."""
    return _thaw(frozen, [])


def _thaw(frozen: Any, made: list[Any]) -> Any:
    if frozen.__class__ is not tuple:
        return frozen
    kind = frozen[0]
    if kind == _TUPLE:
        return tuple([_thaw(item, made) for item in frozen[1:]])
    if kind == _AGAIN:
        return made[frozen[1]]
    if kind == _OBJECT:
        value = frozen[1].__new__(frozen[1])
        made.append(value)
        for name, part in frozen[2]:
            setattr(value, name, _thaw(part, made))
        return value
    if kind == _LIST:
        items: list[Any] = []
        made.append(items)
        items += [_thaw(item, made) for item in frozen[1:]]
        return items
    if kind == _DICT:
        table: dict[Any, Any] = {}
        made.append(table)
        for key, part in frozen[1:]:
            table[key] = _thaw(part, made)
        return table
    if kind == _SET:
        members = set(frozen[1:])
        made.append(members)
        return members
    assert kind == _DEQUE, f"not a frozen value: {frozen!r}"
    row: deque[Any] = deque(maxlen=frozen[1])
    made.append(row)
    row.extend([_thaw(item, made) for item in frozen[2:]])
    return row
