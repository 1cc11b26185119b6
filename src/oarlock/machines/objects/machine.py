"""A user's own object as a replicated state machine.

A command in the log is the encoding of `[path and name, arguments]`; the names are those of the class, so the order of
its methods does not matter. Each result is bytes: what the method returned, or what it raised, which is a result like
any other, alike on every member. The state is the object's `__dict__`, unless it has methods `snapshot` and `restore`.

Names that begin with `$` are ours: they carry which code version each member runs (`$announce`) and which one all of
them have reached (`$activate`), and the life of holders (`leases`: `$tick`, `$renew`, `$end`).
"""

from __future__ import annotations

import builtins
import copy
import inspect
import logging
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from oarlock.errors import RaftError, Rejected
from oarlock.machines.base import Context
from oarlock.machines.objects.atomic import ELEMENTS_MANY, Plan, reached
from oarlock.machines.objects.declare import BINDING, Attached, Binding, Command, Query
from oarlock.machines.objects.leases import Leases
from oarlock.machines.objects.values import Codec, MirroredSet, Registry, Undecodable, Unencodable, is_value_class
from oarlock.machines.volatile import VolatileMachine

_log = logging.getLogger(__name__)

ANNOUNCE: Final = "$announce"
ACTIVATE: Final = "$activate"
TICK: Final = "$tick"
RENEW: Final = "$renew"
END: Final = "$end"
ANY_TERM: Final = 0
"""The term of a tick that counts whoever leads: of simulated clients. A leader gives its own, which is greater."""

STATE_FORMAT: Final = 1
POSITION_BITS: Final = 20  # of a command in its entry: a batch of 1 MiB holds fewer commands than this counts
PARTS_DEPTH_MAX: Final = 8
_NO_STATE: Final = frozenset({BINDING, "__orig_class__"})  # the latter is what `typing` leaves on `Generic[...]()`

HOLDER_PATH: Final = "$holder"
"""The path under which the end of a holder is noted; the key is the holder."""

EVERYTHING: Final = ("$all", None)
"""The note after a snapshot has replaced the state."""

RETURNED, RAISED, REFUSED = b"\0", b"\1", b"\2"
"""The first byte of a result: the encoded value; `[class, arguments, text]` of an exception; `[reason, text]`."""


class CommandError(RaftError):
    """A command raised an exception that this program cannot build again. `type_name` and the text say what it was."""

    def __init__(self, type_name: str, text: str) -> None:
        super().__init__(f"{type_name}: {text}")
        self.type_name = type_name

    outcome = Rejected.outcome


class NotDeterministic(AssertionError):
    """A command did not do the same on a second copy of the same state. This member must not go on."""


class HalfMadeChange(AssertionError):
    """A command that was declared `atomic=False` raised after it had changed something. This member must not go on."""


class CodeTooOld(RuntimeError):
    """The group uses commands of a newer version of this program's class. Start a newer version of the program."""


@dataclass(slots=True)
class ApplyContext:
    """Where in the log the running command stands. The only time and the only chance that a command may use."""

    index: int
    term: int
    time_ns: int
    position: int = 0
    """Of the command within its log entry."""

    @property
    def token(self) -> int:
        """A number that is greater than that of every command before: a fencing token."""
        return self.index << POSITION_BITS | self.position

    @property
    def time(self) -> float:
        """Seconds since 1970 by the clock of the leader that took the command; never goes back."""
        return self.time_ns / 1e9

    @property
    def seed(self) -> int:
        """A number of 64 bits that is another one for every command and the same on every member: for
        `random.Random(self.context.seed)`."""
        x = self.token + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        x = (x ^ x >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        return x ^ x >> 31


class StateMachine:
    """An optional base for machines: gives the commands `self.context`, and says the class's `code_version`."""

    code_version: typing.ClassVar[int] = 1
    """Raise it whenever a program with new commands is rolled out. See `command(since=...)`."""

    atomic_commands: typing.ClassVar[bool] = True
    """Whether a command that raises leaves nothing changed: `command(atomic=...)` for all commands that stand in this
    very class; subclasses say it anew."""

    @property
    def context(self) -> ApplyContext:
        """Time, place in the log and a seed for chance, while a command runs."""
        found = getattr(self, BINDING, None)
        context = found.machine.context if isinstance(found, Attached) else None
        if not isinstance(context, ApplyContext):
            raise RuntimeError("self.context exists only while a command runs on a machine")
        return context

    def holder_ended(self, holder: str) -> None:
        """Called within the log, like a command: a holder (`leases`) has given up or was not heard of in time. A part
        that keeps things for holders lets go of those of this one here."""

    def holder_lives(self, holder: str) -> bool:
        """Within a command: whether a holder may be given anything."""
        found = getattr(self, BINDING, None)
        return (
            isinstance(found, Attached)
            and isinstance(found.machine, ObjectMachine)
            and (holder in found.machine.holders.deadlines)
        )

    def note_change(self, key: object = None) -> None:
        """Within a command: whoever waits on this member for `key` of this object looks again. No part of the state."""
        found = getattr(self, BINDING, None)
        if isinstance(found, Attached) and isinstance(found.machine, ObjectMachine):
            found.machine.changed[found.path, key] = None


@dataclass(frozen=True, slots=True)
class Version:
    """One implementation of a command, used from code version `since` on."""

    since: int
    function: Callable[..., Any]
    atomic: bool
    plan: Plan
    """What it may change."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One command of a machine: the object that it belongs to, and its implementations by code version."""

    target: object
    name: str
    versions: tuple[Version, ...]  # ascending


class Spec:
    """What a machine object offers: its commands and those of its parts. Raises for a class that cannot be used."""

    def __init__(self, root: object, builtin: Mapping[str, object] | None = None) -> None:
        self.root = root
        self.code_version = getattr(type(root), "code_version", 1)
        self.entries: dict[str, Entry] = {}
        self.parts: list[tuple[str, object]] = []
        classes: dict[type, None] = {}
        waiting: list[_Declared] = []
        self._collect(root, "", classes, waiting, 0)
        if not waiting:
            raise TypeError(f"{type(root).__qualname__} has no @command: there is nothing to replicate")
        for name, part in (builtin or {}).items():
            self._collect(part, f"{name}.", classes, waiting, 0)
        for path, target, name, versions in waiting:
            self.entries[path + name] = Entry(
                target,
                name,
                tuple(
                    Version(each.since, each.function, each.atomic, self._plan(path, target, each)) for each in versions
                ),
            )
        self.registry = Registry(_value_classes(classes))
        self.exceptions = _exceptions(classes)
        self.codec = Codec(self.registry)

    def _collect(
        self, target: object, path: str, classes: dict[type, None], waiting: list[_Declared], depth: int
    ) -> None:
        cls = type(target)
        if depth > PARTS_DEPTH_MAX:
            raise TypeError(f"the parts of {type(self.root).__qualname__} contain each other")
        if not hasattr(target, "__dict__"):
            raise TypeError(f"{cls.__qualname__} has __slots__ and no __dict__: a node cannot hold it; leave slots out")
        for known, part in self.parts:
            if part is target:
                raise TypeError(
                    f"{type(self.root).__qualname__} holds one {cls.__qualname__} at two places, "
                    f"{known or 'itself'} and {path}: make two, or hold it once"
                )
        self.parts.append((path, target))
        classes[cls] = None
        commands = {name: each for name, each in inspect.getmembers_static(cls) if isinstance(each, Command)}
        for name, declared in sorted(commands.items()):
            if declared.since > self.code_version:
                raise TypeError(
                    f"{cls.__qualname__}.{name} is there since code version {declared.since}, but the code_version of "
                    f"{type(self.root).__qualname__} is {self.code_version}: raise it"
                )
            later = sorted(
                (other for other in commands.values() if other.instead_of == name), key=lambda other: other.since
            )
            if declared.instead_of and declared.instead_of not in commands:
                raise TypeError(f"{cls.__qualname__}.{name} stands in for {declared.instead_of!r}, which is no command")
            versions = [declared, *later]
            if len({each.since for each in versions}) != len(versions):
                raise TypeError(f"{cls.__qualname__}.{name} has two implementations for one code version")
            waiting.append((path, target, name, versions))
        for name, part in vars(target).items():
            if name != BINDING and has_commands(part):
                self._collect(part, f"{path}{name}.", classes, waiting, depth + 1)

    def _plan(self, path: str, target: object, declared: Command[Any, ..., Any]) -> Plan:
        """What a command may change: of its own part what it names, and of parts that it names everything."""

        def below(prefix: str) -> Iterator[tuple[object, frozenset[str] | None, frozenset[str], bool]]:
            for place, part in self.parts:
                if place.startswith(prefix):
                    named = {name for name, value in vars(part).items() if has_commands(value)}
                    yield part, None, _NO_STATE | named, has_own_snapshot(part)

        if has_own_snapshot(target):
            return Plan(below(path))
        names = reached(
            type(target), declared.function, lambda each: each.function if isinstance(each, Command | Query) else None
        )
        if names is None:
            return Plan(below(path))
        parts = sorted(name for name in names if has_commands(vars(target).get(name)))
        own = (target, names - set(parts), _NO_STATE, False)
        return Plan([own, *(each for name in parts for each in below(f"{path}{name}."))])

    def state_of(self, target: object) -> dict[str, Any]:
        """The attributes of a part that are its own state."""
        return {
            name: value for name, value in vars(target).items() if name not in _NO_STATE and not has_commands(value)
        }


_Declared = tuple[str, object, str, list[Command[Any, ..., Any]]]  # path, part, name, implementations


def has_own_snapshot(part: object) -> bool:
    """Whether a part makes its snapshot by itself. Commands and queries called `snapshot` and `restore` are others."""
    found = [inspect.getattr_static(part, name, None) for name in ("snapshot", "restore")]
    return all(each is not None and not isinstance(each, Command | Query) for each in found)


def has_commands(value: object) -> bool:
    """Whether an object is a machine of its own."""
    return any(isinstance(each, Command | Query) for cls in type(value).__mro__ for each in vars(cls).values())


def _value_classes(machines: Iterable[type]) -> list[type]:
    """The value classes that machines name in annotations, or that stand in their modules."""
    found: dict[type, None] = {}

    def visit(hint: object) -> None:
        if isinstance(hint, type) and is_value_class(hint):
            if hint in found:
                return
            found[hint] = None
            for inner in _hints(hint).values():
                visit(inner)
        for argument in typing.get_args(hint):
            visit(argument)

    for machine in machines:
        for cls in machine.__mro__:
            for hint in _hints(cls).values():
                visit(hint)
            for each in vars(cls).values():
                if isinstance(each, Command | Query):
                    for hint in _hints(each.function).values():
                        visit(hint)
        module = sys.modules.get(machine.__module__)
        for value in list(vars(module).values()) if module is not None else []:
            if is_value_class(value) and value.__module__ == machine.__module__ and not has_commands_class(value):
                visit(value)
    return list(found)


def has_commands_class(cls: type) -> bool:
    return any(isinstance(each, Command | Query) for base in cls.__mro__ for each in vars(base).values())


def _hints(of: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(of)
    except (NameError, TypeError, AttributeError):
        return {}  # a name that exists for type checkers only: what it stands for has to be found in the module


def _exceptions(machines: Iterable[type]) -> dict[str, type[BaseException]]:
    """The exceptions that may be raised again by name: the builtin ones, ours, and those of the machines' modules."""
    found: dict[str, type[BaseException]] = {
        name: value
        for name, value in vars(builtins).items()
        if isinstance(value, type) and issubclass(value, Exception)
    }
    for machine in machines:
        for base in machine.__mro__:  # a part of a program's own that extends one of ours raises ours as well
            module = sys.modules.get(base.__module__)
            for value in list(vars(module).values()) if module is not None else []:
                if isinstance(value, type) and issubclass(value, Exception):
                    found.setdefault(value.__qualname__, value)
    return found


class Mirror(Protocol):
    """Somebody else who is told of everything that a machine with `check` applies."""

    def before(self, machine: ObjectMachine) -> None: ...

    def applied(
        self, context: Context, commands: Sequence[bytes], results: Sequence[object], state: bytes, shown: str
    ) -> None: ...

    def loaded(self, machine: ObjectMachine) -> None: ...


class ObjectMachine(VolatileMachine):
    """`root` and its parts as one machine. With `check`, every command also runs on a second copy, which must end in
    the same state with the same result (`NotDeterministic` otherwise): twice the work, for development. `builtin` are
    further parts under names that are no Python names."""

    def __init__(self, root: object, *, check: bool = False, builtin: Mapping[str, object] | None = None) -> None:
        super().__init__()
        self.spec = Spec(root, builtin)
        self._builtin = dict(builtin or {})
        self.codec = self.spec.codec
        self.active_version = 1
        self.announced: dict[str, int] = {}
        """Which code version each member last said that it runs."""

        self.holders = Leases()
        self.changed: dict[tuple[str, object], None] = {}
        """What `StateMachine.note_change` has named since `on_changes` was last called."""

        self.on_changes: Callable[[], object] | None = None
        self.context: ApplyContext | None = None
        self.on_announced: Callable[[], object] | None = None
        self._entries = self.spec.entries
        self._at = 0
        self._position = 0
        self._custom = [has_own_snapshot(part) for _, part in self.spec.parts]
        self._shadow: ObjectMachine | None = None
        self._check = check
        self.mirror: Mirror | None = None
        for _, part in self.spec.parts:
            if BINDING in vars(part):
                raise RuntimeError(
                    f"this {type(part).__qualname__} belongs to a node already: make another one for a second node"
                )
        self._dump_checked()
        for path, part in self.spec.parts:
            vars(part)[BINDING] = Attached(self, path)

    def bind(self, binding: Binding) -> None:
        """Let the calls on the object and its parts go through `binding`."""
        for _, part in self.spec.parts:
            vars(part)[BINDING].binding = binding

    def unbind(self) -> None:
        """From now on the objects belong to no machine."""
        for _, part in self.spec.parts:
            found = vars(part).get(BINDING)
            if isinstance(found, Attached) and found.machine is self:  # not another's by now
                del vars(part)[BINDING]

    # -- commands

    def encode_call(self, path: str, declared: Command[Any, ..., Any], args: tuple[Any, ...],
                    kwargs: dict[str, Any]) -> bytes:  # fmt: skip
        """A command for the log. Raises `TypeError` for arguments that do not fit the method's signature, and
        `Unencodable`."""
        if not kwargs and (plain := self.codec.encode_plain(path + declared.name, args)) is not None:
            return plain
        if kwargs:
            bound = inspect.signature(declared.function).bind(None, *args, **kwargs)
            args, kwargs = bound.args[1:], bound.kwargs
        content = [path + declared.name, list(args), kwargs] if kwargs else [path + declared.name, list(args)]
        try:
            return self.codec.encode(content)
        except Unencodable:
            pass
        names = list(inspect.signature(declared.function).parameters.values())[1:]
        for place, value in enumerate(args):
            last = names[min(place, len(names) - 1)] if names else None
            self.codec.encode(value, f"the argument {(last.name if last else place)!r} of {declared.name}")
        for name, value in kwargs.items():
            self.codec.encode(value, f"the argument {name!r} of {declared.name}")
        raise AssertionError("each argument can be encoded, and all together cannot")

    def command(self, context: Context, command: bytes) -> bytes:
        if self._at != context.index:
            self._at, self._position = context.index, 0
        else:
            self._position += 1
        try:
            call = self.codec.decode(command)
            name, args = call[0], call[1]
            kwargs: dict[str, Any] | None = call[2] if len(call) > 2 else None
            if type(name) is not str or type(args) is not list or not (kwargs is None or type(kwargs) is dict):
                raise Undecodable("not a call")
        except (Undecodable, ValueError, TypeError, LookupError) as error:
            return REFUSED + self.codec.encode(["malformed", f"not a command of this program: {error}"])
        if name.startswith("$"):
            return self._own(context, name, args)
        entry = self._entries.get(name)
        if entry is None or entry.versions[0].since > self.active_version:
            return REFUSED + self.codec.encode(self._unknown(name, entry))
        version = entry.versions[0]
        if len(entry.versions) > 1:
            for later in entry.versions:
                if later.since <= self.active_version:
                    version = later
        function = version.function
        before = version.plan.take() if version.atomic or self._check else None
        self.context = ApplyContext(context.index, context.term, context.time_ns, self._position)
        try:
            result = RETURNED + self.codec.encode(
                function(entry.target, *args, **kwargs) if kwargs else function(entry.target, *args),
                f"the result of {entry.name}",
            )
        except (MemoryError, NotDeterministic):
            raise  # of this member, not of the command: it must not go on
        except (Exception, SystemExit) as error:  # the outer edge of a command: what it raises is its result
            result = RAISED + self._encode_exception(error)
            if version.atomic:
                assert before is not None
                version.plan.put_back(before)
            elif before is not None and version.plan.changed(before, self.codec.encode):
                raise HalfMadeChange(
                    f"{self._call_text(command)} raised {type(error).__name__} after it had changed something, and is "
                    "declared atomic=False: look before you change anything, or leave that out"
                ) from error
        finally:
            self.context = None
        if before is not None and version.plan.elements > ELEMENTS_MANY and not version.plan.told:
            version.plan.told = True
            _log.warning(
                "each call of %s copies %d values first, so that it leaves nothing behind if it raises; a command that "
                "looks before it changes anything can be declared @command(atomic=False)",
                name, version.plan.elements,
            )  # fmt: skip
        return result

    def apply(self, context: Context, commands: Sequence[bytes]) -> list[object]:
        results = self._apply_checked(context, commands) if self._check else super().apply(context, commands)
        if self.changed:
            if self.on_changes is not None:
                self.on_changes()
            self.changed = {}
        return results

    def _apply_checked(self, context: Context, commands: Sequence[bytes]) -> list[object]:
        if self._shadow is None:
            self._shadow = self._copy()
        shadow = self._shadow
        if self.mirror is not None:
            self.mirror.before(self)
        results = super().apply(context, commands)
        again = shadow.apply(context, commands)
        for data, first, second in zip(commands, results, again, strict=True):
            if first != second:
                raise NotDeterministic(
                    f"{self._call_text(data)} gave {self.result_text(first)} on one copy of the state and "
                    f"{self.result_text(second)} on another: a command may use only its state, its arguments and "
                    "self.context (not the clock, random, id(), hash() or the order of a set)"
                )
        state = b"".join(self.dump())
        calls = ", ".join(map(self._call_text, commands[:5]))
        if state != b"".join(shadow.dump()):
            raise NotDeterministic(
                f"after {calls} two copies of the same state differ{self._difference(shadow)}: a command may use only "
                "its state, its arguments and self.context (not the clock, random, id(), hash() or the order of a set)"
            )
        if self.mirror is not None:
            self.mirror.applied(context, commands, results, state, calls)
        return results

    def _own(self, context: Context, name: str, args: list[Any]) -> bytes:
        """A command of ours. An unknown one is of a newer version, which would do something with it."""
        result: object = None
        if name == ANNOUNCE:
            member, version = args
            self.announced[str(member)] = int(version)
            if self.on_announced is not None:
                self.on_announced()
        elif name == ACTIVATE:
            version = int(args[0])
            if version > self.spec.code_version:
                raise self._too_old(version)
            self.active_version = max(self.active_version, version)
        elif name == TICK:
            term, elapsed_ns = args
            if term in (context.term, ANY_TERM):  # measured by the leader whose entry this is
                self._end_holders(context, self.holders.advance(int(elapsed_ns)))
        elif name == RENEW:
            holder, ttl_ns, begin = args
            result = self.holders.renew(str(holder), int(ttl_ns), begin=bool(begin))
            if result and begin:
                result = ApplyContext(context.index, context.term, context.time_ns, self._position).token
        elif name == END:
            self._end_holders(context, self.holders.end(str(args[0])))
        else:
            raise CodeTooOld(f"the log holds the command {name!r}, which this version of Oarlock does not know")
        return RETURNED + self.codec.encode(result)

    def _end_holders(self, context: Context, holders: Sequence[str]) -> None:
        """Whatever these holders held is free now."""
        if not holders:
            return
        self.context = ApplyContext(context.index, context.term, context.time_ns, self._position)
        try:
            for holder in holders:
                self.changed[HOLDER_PATH, holder] = None
                for _, part in self.spec.parts:
                    if isinstance(part, StateMachine):
                        part.holder_ended(holder)
        finally:
            self.context = None

    def _too_old(self, version: int) -> CodeTooOld:
        return CodeTooOld(
            f"the group has reached code version {version} of {type(self.spec.root).__qualname__}, and this program "
            f"has code_version {self.spec.code_version}: start the newer program on this member"
        )

    def _unknown(self, name: str, entry: Entry | None) -> list[str]:
        if entry is None:
            return ["unknown_command", f"this program's {type(self.spec.root).__qualname__} has no command {name!r}"]
        text = (
            f"{name} needs code version {entry.versions[0].since} on every member; the group is at "
            f"{self.active_version}: upgrade the other members first"
        )
        return ["not_active", text]

    # -- results

    def _encode_exception(self, error: BaseException) -> bytes:
        name = type(error).__qualname__
        if isinstance(error, Unencodable):
            return self.codec.encode(["TypeError", [str(error)], str(error)])
        try:
            text = str(error)[:4096].encode("utf-8", "replace").decode()
        except Exception as broken:  # its __str__ is the program's too
            text = f"its text could not be made ({type(broken).__qualname__})"
        if self.spec.exceptions.get(name) is type(error):
            more = [vars(error)] if vars(error) else []
            try:
                return self.codec.encode([name, list(error.args), text, *more])
            except Unencodable:
                pass
        return self.codec.encode([name, None, text])

    def decode_outcome(self, result: bytes) -> Any:
        """What a result stands for: gives the value, or raises what the command raised."""
        kind, value = result[:1], self.codec.decode(memoryview(result)[1:])
        if kind == RETURNED:
            return value
        if kind == REFUSED:
            raise Rejected(value[0], value[1])
        name, args, text, *more = value
        cls = self.spec.exceptions.get(name)
        if cls is None or args is None:
            raise CommandError(name, text)
        try:
            error = _again(cls, args, more[0] if more else {})
        except Exception:  # it can be built in a way of its own only
            raise CommandError(name, text) from None
        raise error

    def encode_result(self, result: object) -> bytes:
        """For a session: results are bytes already. (`replica.sessions.ResultCodec`)"""
        assert isinstance(result, bytes), f"a result is {type(result).__name__}"
        return result

    def decode_result(self, data: bytes) -> object:
        return data

    # -- the state

    def dump(self) -> Iterator[bytes]:
        encode = self.codec.encode
        yield encode([STATE_FORMAT, self.active_version, self.announced, self.holders.state()])
        for (path, part), custom in zip(self.spec.parts, self._custom, strict=True):
            state = part.snapshot() if custom else self.spec.state_of(part)  # type: ignore[attr-defined]
            name = type(part).__name__
            if custom and not isinstance(state, bytes):
                raise Unencodable(f"{name}.snapshot() gave {type(state).__name__}: it must give bytes")
            try:
                piece = encode([path, state])
            except Unencodable:
                for attribute, value in state.items():
                    encode(value, f"{name}.{attribute}")
                raise
            yield piece

    def load(self, pieces: Sequence[bytes]) -> None:
        decoded = [self.codec.decode(piece) for piece in pieces]
        if not decoded or not isinstance(decoded[0], list) or decoded[0][0] != STATE_FORMAT:
            raise ValueError("the snapshot's format is not known to this version of Oarlock")
        _, version, announced, leases = decoded[0]
        if version > self.spec.code_version:
            raise self._too_old(version)
        states = dict(decoded[1:])
        for (path, part), custom in zip(self.spec.parts, self._custom, strict=True):
            if path not in states:
                continue  # a part that this version of the program has added: as its constructor made it
            if custom:
                part.restore(states[path])  # type: ignore[attr-defined]
                continue
            for name in self.spec.state_of(part):
                if name not in states[path]:
                    continue  # an attribute that this version has added keeps what the constructor gave it
                delattr(part, name)
            vars(part).update(states[path])
        self.active_version = version
        self.announced = announced
        self.holders = Leases(*leases)
        if self.on_changes is not None:
            self.changed = {EVERYTHING: None}
            self.on_changes()
            self.changed = {}
        if self._check:
            self._shadow = self._copy()
        if self.mirror is not None:
            self.mirror.loaded(self)

    def _dump_checked(self) -> None:
        """At the start: the state must go through a snapshot and come back the same. Raises `Unencodable`."""
        pieces = list(self.dump())
        for piece in pieces:
            self.codec.decode(piece)

    def _copy(self) -> ObjectMachine:
        """A second machine in the same state, whose sets are iterated the other way round."""
        builtin = {name: _blank(part) for name, part in self._builtin.items()}
        other = ObjectMachine(_blank(self.spec.root), builtin=builtin)
        other.load(list(self.dump()))
        other._applied_index = self._applied_index
        for _, part in other.spec.parts:
            for name, value in other.spec.state_of(part).items():
                vars(part)[name] = _mirrored(value)
        return other

    # -- texts for what went wrong

    def _call_text(self, command: bytes) -> str:
        try:
            name, args, *rest = self.codec.decode(command)
            shown = [*map(repr, args), *(f"{key}={value!r}" for kwargs in rest for key, value in kwargs.items())]
        except (Undecodable, ValueError, TypeError):
            return f"a malformed command of {len(command)} bytes"
        text = f"{name}({', '.join(shown)})"
        return text if len(text) <= 200 else text[:197] + "..."

    def result_text(self, result: object) -> str:
        assert isinstance(result, bytes)
        text = repr(self.codec.decode(memoryview(result)[1:]))
        text = text if len(text) <= 200 else text[:197] + "..."
        return text if result[:1] == RETURNED else f"an error: {text}"

    def _difference(self, other: ObjectMachine) -> str:
        """The first attribute in which two machines differ."""
        for (path, mine), (_, theirs) in zip(self.spec.parts, other.spec.parts, strict=True):
            first, second = self.spec.state_of(mine), other.spec.state_of(theirs)
            for name in first:
                if name in second and self.codec.encode(first[name]) != self.codec.encode(second[name]):
                    return f" in {path}{name} ({_short(first[name])} and {_short(second[name])})"
        return ""


def _again(cls: type[BaseException], args: list[Any], attributes: dict[str, Any]) -> BaseException:
    """An exception with these `args` and attributes. Its `__init__` is not called where it may take other things."""
    if "__init__" in vars(cls) and cls.__module__ == "builtins":
        error = cls(*args)
    else:
        error = cls.__new__(cls, *args)
        error.args = tuple(args)
    vars(error).update(attributes)
    return error


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _blank(target: object) -> object:
    """A shallow copy of an object and its parts that belongs to no machine."""
    made = copy.copy(target)
    vars(made).pop(BINDING, None)
    for name, value in list(vars(made).items()):
        if has_commands(value):
            vars(made)[name] = _blank(value)
    return made


def _mirrored(value: object) -> object:
    """`value` with every set in it that containers lead to mirrored."""
    if type(value) is set:
        return MirroredSet(value)
    if type(value) is dict:
        return {key: _mirrored(item) for key, item in value.items()}
    if type(value) is list:
        return [_mirrored(item) for item in value]
    return value
