"""Commands and results of the key-value machine: etcd's model, without etcd's wire format.

A command is the MessagePack encoding of one of the tagged arrays below (`encode`, `decode`). This is what the log
holds, so tags and field order are a file format: append fields at the end, never reuse a tag. A key-value in a result
is the *encoded* `mvccpb.KeyValue`, exactly the bytes that the API puts on the wire.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TypeAlias

import msgspec

from oarlock.machines.kv.commands_alarm import (
    AlarmActivate,
    AlarmCommand,
    AlarmDeactivate,
    AlarmResult,
    AuditMark,
    AuditReport,
    AutoCompact,
)
from oarlock.machines.kv.commands_auth import (
    AuthCommand,
    AuthDisable,
    AuthEnable,
    Authenticate,
    AuthResult,
    Checked,
    RoleAdd,
    RoleDelete,
    RoleGrantPermission,
    RoleRevokePermission,
    UserAdd,
    UserChangePassword,
    UserDelete,
    UserGrantRole,
    UserRevokeRole,
)
from oarlock.machines.kv.commands_lease import (
    LeaseCommand,
    LeaseExpire,
    LeaseGrant,
    LeaseRenew,
    LeaseResult,
    LeaseRevoke,
    LeaseTick,
)


class SortOrder(IntEnum):
    NONE = 0
    ASCEND = 1
    DESCEND = 2


class SortTarget(IntEnum):
    KEY = 0
    VERSION = 1
    CREATE = 2
    MOD = 3
    VALUE = 4


class CompareResult(IntEnum):
    EQUAL = 0
    GREATER = 1
    LESS = 2
    NOT_EQUAL = 3


class CompareTarget(IntEnum):
    VERSION = 0
    CREATE = 1
    MOD = 2
    VALUE = 3
    LEASE = 4


class Put(msgspec.Struct, tag=1, array_like=True, gc=False):
    key: bytes
    value: bytes = b""
    lease: int = 0
    prev_kv: bool = False
    ignore_value: bool = False
    ignore_lease: bool = False


class DeleteRange(msgspec.Struct, tag=2, array_like=True, gc=False):
    key: bytes
    range_end: bytes = b""
    prev_kv: bool = False


class Range(msgspec.Struct, tag=3, array_like=True, gc=False):
    """`range_end` as etcd: empty is one key, one zero byte is everything from `key` on."""

    key: bytes
    range_end: bytes = b""
    limit: int = 0
    revision: int = 0
    sort_order: int = 0
    sort_target: int = 0
    keys_only: bool = False
    count_only: bool = False
    min_mod_revision: int = 0
    max_mod_revision: int = 0
    min_create_revision: int = 0
    max_create_revision: int = 0


class Compare(msgspec.Struct, array_like=True, gc=False):
    """`operand` is bytes for VALUE and an int for every other target."""

    target: int
    result: int
    key: bytes
    operand: int | bytes
    range_end: bytes = b""


class Txn(msgspec.Struct, tag=4, array_like=True):
    compare: list[Compare] = []
    success: list[Put | DeleteRange | Range | Txn] = []
    failure: list[Put | DeleteRange | Range | Txn] = []


class Compact(msgspec.Struct, tag=5, array_like=True, gc=False):
    """Forget history below `revision`. The space is freed in slices afterwards, without a stop."""

    revision: int


Op: TypeAlias = Put | DeleteRange | Range | Txn
Command: TypeAlias = (
    Put | DeleteRange | Range | Txn | Compact | LeaseCommand | AuthCommand | Checked | AlarmCommand | AutoCompact
)


class KvError(IntEnum):
    """A refusal, alike on every member; nothing of the command has happened."""

    COMPACTED = 1
    FUTURE_REVISION = 2
    KEY_NOT_FOUND = 3  # ignore_value or ignore_lease on a key that does not exist
    LEASE_NOT_FOUND = 4
    MALFORMED = 5  # the bytes are not a command of this version
    LEASE_EXISTS = 6
    LEASE_TTL_TOO_LARGE = 7
    LEASE_OF_OTHER_TERM = 8  # a command of a leader that has been replaced
    NO_SPACE = 50
    CORRUPT = 51
    UNKNOWN_ALARM = 52
    LEASES_FULL = 19  # `LEASES_MAX` is reached
    # 20-49 authentication
    ROOT_USER_MISSING = 20
    ROOT_ROLE_MISSING = 21  # the user root does not hold the role root
    USER_EXISTS = 22
    USER_EMPTY = 23  # no name; also: nobody is logged in
    USER_NOT_FOUND = 24
    ROLE_EXISTS = 25
    ROLE_NOT_FOUND = 26
    ROLE_EMPTY = 27
    PERMISSION_NOT_GIVEN = 28
    AUTH_FAILED = 29
    PERMISSION_DENIED = 30
    ROLE_NOT_GRANTED = 31
    PERMISSION_NOT_GRANTED = 32
    AUTH_NOT_ENABLED = 33
    INVALID_AUTH_MANAGEMENT = 34
    AUTH_OLD_REVISION = 35
    AUTH_FULL = 36  # a bound of `auth` is reached
    RANGE_TOO_LARGE = 37  # the answer would be over `RANGE_BYTES_MAX`


class Refused(msgspec.Struct, gc=False):
    error: KvError
    revision: int = 0


class PutResult(msgspec.Struct, gc=False):
    revision: int
    prev_kv: bytes | None = None


class DeleteResult(msgspec.Struct):
    revision: int
    deleted: int
    prev_kvs: list[bytes]


class RangeResult(msgspec.Struct):
    revision: int  # the store's revision when this was read
    kvs: list[bytes]
    more: bool
    count: int


class TxnResult(msgspec.Struct):
    revision: int
    succeeded: bool
    responses: list[PutResult | DeleteResult | RangeResult | TxnResult]


class CompactResult(msgspec.Struct, gc=False):
    revision: int


Result: TypeAlias = (
    PutResult
    | DeleteResult
    | RangeResult
    | TxnResult
    | CompactResult
    | LeaseResult
    | AuthResult
    | AlarmResult
    | Refused
)

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Command] = msgspec.msgpack.Decoder(
    Put | DeleteRange | Range | Txn | Compact
    | LeaseGrant | LeaseRevoke | LeaseTick | LeaseRenew | LeaseExpire
    | AlarmActivate | AlarmDeactivate | AuditMark | AuditReport | AutoCompact
    | AuthEnable | AuthDisable | Authenticate | UserAdd | UserDelete | UserChangePassword | UserGrantRole
    | UserRevokeRole | RoleAdd | RoleDelete | RoleGrantPermission | RoleRevokePermission | Checked
)  # fmt: skip

encode = _encoder.encode


def decode(data: bytes) -> Command:
    """The inverse of `encode`. Raises `ValueError` (msgspec's errors are) for anything else."""
    return _decoder.decode(data)
