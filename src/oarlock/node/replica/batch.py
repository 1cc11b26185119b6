"""The payload of a NORMAL entry: one turn's commands, of everybody who had some. (docs/explanation/life-of-a-write.md)

MessagePack: `[format, stamp_ns, [group, ...]]`, a group being `[origin, boot, first, [command, ...]]`: the commands
that member `origin`, in the life of its process numbered `boot`, proposed as `first`, `first + 1`, ... A group is
encoded once, by its origin: the same bytes go through a `Propose` into the leader's batch, all logs and all sockets.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from oarlock.errors import Overloaded

BATCH_FORMAT: Final = 1
BATCH_BYTES_MAX: Final = 1 << 20  # of encoded groups in one entry; one larger group goes alone
COMMAND_BYTES_MAX: Final = 2 << 20  # of one command; nothing larger is proposed or accepted from a peer
GROUP_BYTES_MAX: Final = COMMAND_BYTES_MAX + 1024  # of one encoded group, as a peer may send it
GROUP_COMMANDS_MAX: Final = 1 << 16  # commands of one group

U64 = Annotated[int, Meta(ge=0)]  # MessagePack has none above 2**64 - 1


class Group(msgspec.Struct, array_like=True, gc=False):
    """The commands of one member in a batch. `(origin, boot, first)` is never used twice for different commands."""

    origin: U64
    boot: U64
    first: U64
    commands: list[bytes]


class Batch(msgspec.Struct, array_like=True, gc=False):
    """`stamp_ns` is the leader's wall clock when it appended the entry."""

    format: int
    stamp_ns: U64
    groups: list[Group]


class _Outgoing(msgspec.Struct, array_like=True, gc=False):
    format: int
    stamp_ns: int
    groups: list[msgspec.Raw]


_encoder: Final = msgspec.msgpack.Encoder()
_batch_decoder: Final = msgspec.msgpack.Decoder(Batch)
_group_decoder: Final = msgspec.msgpack.Decoder(Group)


def encode_group(origin: int, boot: int, first: int, commands: list[bytes]) -> bytes:
    """One group. Raises `Overloaded` for a command over `COMMAND_BYTES_MAX`."""
    for command in commands:
        if len(command) > COMMAND_BYTES_MAX:
            raise Overloaded("COMMAND_BYTES_MAX", COMMAND_BYTES_MAX)
    return _encoder.encode((origin, boot, first, commands))


def decode_group(data: bytes) -> Group:
    """The inverse of `encode_group`, for groups that come from a peer. Raises `ValueError` for anything else."""
    if len(data) > GROUP_BYTES_MAX:
        raise ValueError(f"a group of {len(data)} bytes (at most {GROUP_BYTES_MAX})")
    group = _group_decoder.decode(data)
    if not 1 <= len(group.commands) <= GROUP_COMMANDS_MAX:
        raise ValueError(f"a group of {len(group.commands)} commands (1 to {GROUP_COMMANDS_MAX})")
    return group


def encode_batch(stamp_ns: int, groups: Sequence[bytes]) -> bytes:
    """The payload for `groups`, each as `encode_group` made it."""
    return _encoder.encode(_Outgoing(BATCH_FORMAT, stamp_ns, [msgspec.Raw(group) for group in groups]))


def decode_batch(payload: bytes) -> Batch:
    """The inverse of `encode_batch`. Raises `ValueError` for anything else, also for a newer format."""
    batch = _batch_decoder.decode(payload)
    if batch.format != BATCH_FORMAT:
        raise ValueError(
            f"the entry has batch format {batch.format}, this version knows {BATCH_FORMAT}: upgrade this member"
        )
    return batch


def split(commands: Sequence[bytes]) -> list[list[bytes]]:
    """Cut `commands` into runs that fit a group: at most `BATCH_BYTES_MAX`, but at least one command, in each.

    >>> [len(run) for run in split([b"x" * 600_000, b"y" * 600_000, b"z"])]
    [1, 2]
    """
    if 0 < len(commands) <= GROUP_COMMANDS_MAX and sum(map(len, commands)) <= BATCH_BYTES_MAX:
        return [list(commands)]  # nearly always
    runs: list[list[bytes]] = []
    size = 0
    for command in commands:
        size += len(command)
        if not runs or size > BATCH_BYTES_MAX or len(runs[-1]) >= GROUP_COMMANDS_MAX:
            runs.append([])
            size = len(command)
        runs[-1].append(command)
    return runs
