"""Python values as bytes and back, exactly: what a command's arguments, its result and a machine's state are made of.

MessagePack carries what it has natively (None, bool, int of 64 bits, float, str, bytes, list, dict with str or int
keys); everything else is a MessagePack extension, so a tuple stays a tuple and a set a set, without annotations.
Classes (dataclasses, `msgspec.Struct`, named tuples, enums) are known by name through a `Registry`; nothing else is
ever built, and no bytes can name code to run. Equal values give equal bytes: sets are written in the order of their
elements' bytes.

References shared between two places come back as two copies; a value that contains itself is refused.
"""

from __future__ import annotations

import dataclasses
import enum
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec.msgpack import Ext

DEPTH_MAX: Final = 64
"""How deep values nest. Deeper ones, and those that contain themselves, are refused."""

_ATOMS: Final = frozenset({type(None), bool, float, str, bytes})
IMMUTABLE: Final = _ATOMS | {int, complex, datetime, date, time, timedelta, Decimal, Fraction, UUID}
"""Types of values that cannot change and hold no others."""

_INT_MIN, _INT_MAX = -(2**63), 2**64

# Extension codes: a wire and file format. Never reuse one.
_TUPLE, _SET, _FROZENSET, _DICT, _BIG_INT, _BYTEARRAY, _DEQUE = 1, 2, 3, 4, 5, 6, 7
_ORDERED, _DEFAULT, _COUNTER, _COMPLEX = 8, 9, 10, 11
_DATETIME, _DATE, _TIME, _TIMEDELTA, _DECIMAL, _FRACTION, _UUID = 16, 17, 18, 19, 20, 21, 22
_OBJECT, _ENUM = 32, 33

_FACTORIES: Final[dict[str, Callable[[], Any]]] = {
    "int": int, "float": float, "str": str, "bytes": bytes, "bool": bool, "list": list, "dict": dict, "set": set,
    "tuple": tuple, "deque": deque, "Counter": Counter,
}  # fmt: skip
"""What a `defaultdict` may make by itself."""

_FACTORY_NAMES: Final = {factory: name for name, factory in _FACTORIES.items()}


class Unencodable(TypeError):
    """A value that cannot be replicated or stored. The text has the way to it and what to use instead."""


class Undecodable(ValueError):
    """Bytes that `Codec.encode` did not write, or that name a class which this program does not have."""


class MirroredSet(set[Any]):
    """A set that is iterated the other way round: a second copy of a state holds these, so that a result which depends
    on the order of a set shows."""

    def __iter__(self) -> Iterator[Any]:
        return iter(list(super().__iter__())[::-1])


class Registry:
    """The classes of a program that may be part of replicated values, by name."""

    def __init__(self, classes: Iterable[type] = ()) -> None:
        self._classes: dict[str, type] = {}
        for each in classes:
            self.add(each)

    def add(self, cls: type) -> None:
        """Raises `Unencodable` for a class that is neither a dataclass, a struct, a named tuple nor an enum, and
        `ValueError` if another class of that name is known."""
        if not is_value_class(cls):
            raise Unencodable(
                f"{cls.__qualname__} is no value: make it a dataclass, a msgspec.Struct, a NamedTuple or an Enum"
            )
        known = self._classes.setdefault(cls.__qualname__, cls)
        if known is not cls:
            raise ValueError(
                f"two classes are called {cls.__qualname__} ({known.__module__} and {cls.__module__}): rename one"
            )

    def name_of(self, cls: type) -> str | None:
        name = cls.__qualname__
        return name if self._classes.get(name) is cls else None

    def get(self, name: str) -> type | None:
        return self._classes.get(name)

    @property
    def names(self) -> list[str]:
        return sorted(self._classes)


def is_value_class(cls: object) -> bool:
    """Whether instances of `cls` are plain values that a registry may hold."""
    return isinstance(cls, type) and (
        dataclasses.is_dataclass(cls)
        or issubclass(cls, msgspec.Struct | enum.Enum)
        or (issubclass(cls, tuple) and hasattr(cls, "_fields"))
    )


class Codec:
    """Encodes and decodes with one registry."""

    def __init__(self, registry: Registry | None = None) -> None:
        self.registry = registry if registry is not None else Registry()
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(ext_hook=self._unpack)

    def encode(self, value: object, name: str = "the value") -> bytes:
        """Raises `Unencodable`, which names the place within `name`."""
        try:
            kind = type(value)
            if kind in _ATOMS or (kind is int and _INT_MIN <= value < _INT_MAX):  # type: ignore[operator]
                return self._encoder.encode(value)  # what most results are
            return self._encoder.encode(self._pack(value, 0))
        except (Unencodable, UnicodeEncodeError, OverflowError):
            raise Unencodable(self._explain(value, name, 0) or f"{name} cannot be encoded") from None

    def encode_plain(self, name: str, args: tuple[Any, ...]) -> bytes | None:
        """`encode([name, list(args)])` where nothing in `args` needs a look inside; None otherwise."""
        for value in args:
            kind = type(value)
            if kind not in _ATOMS and not (kind is int and _INT_MIN <= value < _INT_MAX):
                return None
        try:
            return self._encoder.encode((name, args))
        except UnicodeEncodeError:
            return None

    def decode(self, data: bytes | memoryview) -> Any:
        """Raises `Undecodable`."""
        try:
            return self._decoder.decode(data)
        except Undecodable:
            raise
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
            raise Undecodable(f"not an encoded value: {error}") from error

    # -- towards MessagePack

    def _pack(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind in _ATOMS:
            return value
        if kind is int:
            return value if _INT_MIN <= value < _INT_MAX else _big_int(value)
        if depth >= DEPTH_MAX:
            raise Unencodable("too deep")
        pack = self._pack
        depth += 1
        if kind is list:
            return [pack(item, depth) for item in value]
        if kind is dict:
            for key in value:
                if type(key) is not str and not (type(key) is int and _INT_MIN <= key < _INT_MAX):
                    return self._pairs(_DICT, value, depth)
            return {key: pack(item, depth) for key, item in value.items()}
        if kind is tuple:
            return self._ext(_TUPLE, [pack(item, depth) for item in value])
        if kind is set or kind is frozenset:
            return self._set(_SET if kind is set else _FROZENSET, value, depth)
        return self._pack_other(kind, value, depth)

    def _pack_other(self, kind: type, value: Any, depth: int) -> Ext:
        pack = self._pack
        if kind is MirroredSet:
            return self._set(_SET, value, depth)
        if kind is bytearray:
            return Ext(_BYTEARRAY, bytes(value))
        if kind is deque:
            return self._ext(_DEQUE, [value.maxlen, [pack(item, depth) for item in value]])
        if kind is OrderedDict:
            return self._pairs(_ORDERED, value, depth)
        if kind is Counter:
            return self._pairs(_COUNTER, value, depth)
        if kind is defaultdict:
            factory = value.default_factory
            if factory is not None and factory not in _FACTORY_NAMES:
                raise Unencodable("factory")
            name = None if factory is None else _FACTORY_NAMES[factory]
            return self._ext(_DEFAULT, [name, [[pack(k, depth), pack(v, depth)] for k, v in value.items()]])
        if kind is datetime:
            offset = value.utcoffset()
            if value.tzinfo is not None and value.tzinfo is not UTC and offset != timedelta(0):
                value = value.astimezone(UTC)
            return Ext(_DATETIME, value.isoformat().encode())
        if kind is date:
            return Ext(_DATE, value.isoformat().encode())
        if kind is time:
            if value.tzinfo is not None and value.utcoffset() is None:
                raise Unencodable("zone")  # its offset depends on a date, so nothing would be left of it
            return Ext(_TIME, value.isoformat().encode())
        if kind is timedelta:
            return self._ext(_TIMEDELTA, [value.days, value.seconds, value.microseconds])
        if kind is Decimal:
            return Ext(_DECIMAL, str(value).encode())
        if kind is Fraction:
            return Ext(_FRACTION, str(value).encode())
        if kind is UUID:
            return Ext(_UUID, value.bytes)
        if kind is complex:
            return self._ext(_COMPLEX, [value.real, value.imag])
        name = self.registry.name_of(kind)
        if name is None:
            raise Unencodable("class")
        if issubclass(kind, enum.Flag):
            return self._ext(_ENUM, [name, pack(value.value, depth)])  # several flags at once have no name
        if issubclass(kind, enum.Enum):
            return self._ext(_ENUM, [name, value.name])
        return self._ext(_OBJECT, [name, {field: pack(item, depth) for field, item in _fields(kind, value)}])

    def _ext(self, code: int, content: Any) -> Ext:
        return Ext(code, self._encoder.encode(content))

    def _pairs(self, code: int, value: Mapping[Any, Any], depth: int) -> Ext:
        return self._ext(code, [[self._pack(k, depth), self._pack(v, depth)] for k, v in value.items()])

    def _set(self, code: int, value: Iterable[Any], depth: int) -> Ext:
        encode = self._encoder.encode
        return self._ext(code, [msgspec.Raw(raw) for raw in sorted(encode(self._pack(item, depth)) for item in value)])

    # -- from MessagePack

    def _unpack(self, code: int, data: memoryview) -> Any:
        if code == _BIG_INT:
            return int.from_bytes(data, "big", signed=True)
        if code == _BYTEARRAY:
            return bytearray(data)
        if code in (_DATETIME, _DATE, _TIME, _DECIMAL, _FRACTION):
            text = bytes(data).decode("ascii")
            return _FROM_TEXT[code](text)
        if code == _UUID:
            return UUID(bytes=bytes(data))
        content = self._decoder.decode(data)
        match code:
            case 1:
                return tuple(content)
            case 2:
                return set(content)
            case 3:
                return frozenset(content)
            case 4:
                return {key: value for key, value in content}  # noqa: C416 - dict() takes other shapes too
            case 7:
                return deque(content[1], content[0])
            case 8:
                return OrderedDict([(key, value) for key, value in content])
            case 9:
                factory = None if content[0] is None else _FACTORIES[content[0]]
                return defaultdict(factory, [(key, value) for key, value in content[1]])
            case 10:
                return Counter({key: value for key, value in content})  # noqa: C416
            case 11:
                return complex(*content)
            case 19:
                return timedelta(*content)
            case 32 | 33:
                return self._instance(code, content)
            case _:
                raise Undecodable(f"extension {code} is not known to this version of Oarlock: upgrade this program")

    def _instance(self, code: int, content: Any) -> Any:
        name, content = content
        cls = self.registry.get(name)
        if cls is None:
            raise Undecodable(
                f"the class {name!r} is not known to this program (it knows "
                f"{', '.join(self.registry.names) or 'none'}): name it in an annotation of the machine"
            )
        if code == _ENUM:
            return cls[content] if isinstance(content, str) else cls(content)  # type: ignore[index]
        try:
            return _build(cls, content)
        except (MemoryError, Undecodable):
            raise
        except Exception as error:  # the program's own __init__
            raise Undecodable(f"{name} cannot be built again: {type(error).__name__}: {error}") from error

    # -- errors

    def _explain(self, value: Any, path: str, depth: int) -> str | None:
        """The first place in `value` that cannot be encoded, with the reason; None if all of it can."""
        try:
            self._encoder.encode(self._pack(value, depth))
            return None
        except (Unencodable, UnicodeEncodeError, OverflowError):
            pass
        kind = type(value)
        if depth >= DEPTH_MAX:
            return f"{path[:200]}... is nested deeper than DEPTH_MAX ({DEPTH_MAX}), or contains itself"
        parts: Iterable[tuple[str, Any]] = ()
        if isinstance(value, Mapping):
            parts = [(f"{path}[{_short(key)}]", item) for key, item in value.items()]
            parts = [*((f"the key {_short(key)} of {path}", key) for key in value), *parts]
        elif kind in (list, tuple, deque):
            parts = [(f"{path}[{n}]", item) for n, item in enumerate(value)]
        elif kind in (set, frozenset):
            parts = [(f"an element of {path}", item) for item in value]
        elif self.registry.name_of(kind) is not None:
            parts = [(f"{path}.{field}", item) for field, item in _fields(kind, value)]
        for where, item in parts:
            if (found := self._explain(item, where, depth + 1)) is not None:
                return found
        if kind is str:
            return f"{path} is a string with lone surrogates, which is no text"
        if kind is time:
            return f"{path} is a time in a zone whose offset depends on the date: use a datetime, or a fixed offset"
        if kind is defaultdict:
            return f"{path} is a defaultdict whose factory is none of {', '.join(_FACTORIES)}"
        if is_value_class(kind):
            return f"{path} is a {kind.__qualname__}, which this machine does not know: name it in an annotation"
        return (
            f"{path} is a {kind.__module__}.{kind.__qualname__}, which cannot be replicated: use builtin values, "
            "dataclasses, msgspec structs, named tuples or enums"
        )


def _big_int(value: int) -> Ext:
    return Ext(_BIG_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


_FROM_TEXT: Final[dict[int, Callable[[str], Any]]] = {
    _DATETIME: datetime.fromisoformat,
    _DATE: date.fromisoformat,
    _TIME: time.fromisoformat,
    _DECIMAL: Decimal,
    _FRACTION: Fraction,
}


def _fields(cls: type, value: Any) -> list[tuple[str, Any]]:
    """The fields of an instance of a value class, in the order of their declaration."""
    if dataclasses.is_dataclass(cls):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(cls)]
    if issubclass(cls, msgspec.Struct):
        return [(name, getattr(value, name)) for name in cls.__struct_fields__]
    return list(zip(cls._fields, value, strict=True))  # type: ignore[attr-defined]


def _build(cls: type, content: Mapping[str, Any]) -> Any:
    """An instance with exactly these fields. A field that the class no longer has is left out, one that is new takes
    its default: so a class may gain and lose fields between two versions of a program.

    Its `__init__` and `__post_init__` run, for what they make beside the fields; then every field is set to what it
    was, whatever they did to it. A class that cannot be called with its fields is built without them.
    """
    if dataclasses.is_dataclass(cls):
        fields = {field.name: field for field in dataclasses.fields(cls)}
        kept = {name: item for name, item in content.items() if name in fields}
        try:
            made = cls(**{name: item for name, item in kept.items() if fields[name].init})
        except MemoryError:
            raise
        except Exception:  # an InitVar or an __init__ of its own wants something else, or a check: it was there before
            made = object.__new__(cls)
            missing = [name for name in fields if name not in kept]
            kept = {**{name: _default(cls, fields[name]) for name in missing}, **kept}
        for name, item in kept.items():
            if getattr(made, name, fields) is not item:
                object.__setattr__(made, name, item)
        return made
    if issubclass(cls, msgspec.Struct):
        struct = cls(**{name: content[name] for name in cls.__struct_fields__ if name in content})
        for name in cls.__struct_fields__:
            if name in content and getattr(struct, name) is not content[name]:
                msgspec.structs.force_setattr(struct, name, content[name])
        return struct
    known: Iterable[str] = cls._fields  # type: ignore[attr-defined]
    return cls(**{name: content[name] for name in known if name in content})


def _default(cls: type, field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    raise Undecodable(f"{cls.__qualname__} has a field {field.name!r} without a default that the value does not have")
