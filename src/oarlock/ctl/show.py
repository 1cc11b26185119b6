"""How answers are printed: simple, fields, json, protobuf and table, as etcdctl prints them.

What an answer has in `fields` and in a table is here, for every kind of answer; the lines of `simple` are the verb's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from oarlock.ctl import text

STRINGS: Final = 9  # FieldDescriptor.TYPE_STRING
BYTES: Final = 12
ENUM: Final = 14


class Printer:
    """Prints in one format. `hex` shows keys and values as hexadecimal numbers in `simple`."""

    def __init__(self, format: str, hex: bool) -> None:
        self.format = format
        self.hex = hex

    def __call__(self, answer: Any, simple: Callable[[], Iterable[bytes]], json: Any = None) -> None:
        """Print one answer. `json` is its JSON value where etcdctl's is not the message's own."""
        if self.format == "simple":
            self.lines(simple())
        elif self.format == "json":
            self.lines([text.dumps(plain(answer) if json is None else json)])
        elif self.format == "fields":
            self.lines(line.encode() for line in fields(answer))
        else:
            self.write(answer.SerializeToString())

    def lines(self, lines: Iterable[bytes]) -> None:
        self.write(b"".join(line + b"\n" for line in lines))

    def write(self, data: bytes) -> None:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    def raw(self, data: bytes) -> bytes:
        """A key or a value."""
        return text.hexadecimal(data) if self.hex else data

    def pairs(self, kvs: Iterable[Any]) -> Iterator[bytes]:
        for kv in kvs:
            yield self.raw(kv.key)
            yield self.raw(kv.value)


def plain(message: Any, *, hexadecimal_ids: bool = False) -> dict[str, Any]:
    """A message as the value that `text.dumps` takes: numbers as numbers, bytes in base64, what is empty left out."""
    import base64

    found: dict[str, Any] = {}

    def one(field: Any, value: Any) -> Any:
        if field.message_type is not None:
            return plain(value, hexadecimal_ids=hexadecimal_ids)
        if field.type == BYTES:
            return base64.b64encode(value).decode("ascii")
        if hexadecimal_ids and field.name in ("ID", "cluster_id", "member_id"):
            return f"{value:x}"
        return value

    for field, value in message.ListFields():
        many = not isinstance(value, str | bytes | int) and not hasattr(value, "ListFields")
        shown = [one(field, item) for item in value] if many else one(field, value)
        choice = field.containing_oneof
        if choice is not None:
            found["".join(part.capitalize() for part in choice.name.split("_"))] = {field.name: shown}
        else:
            found[field.name] = shown
    return found


def with_header(answer: Any, **more: Any) -> dict[str, Any]:
    """The JSON of etcdctl's lease verbs: the header's fields beside the others."""
    return {**plain(answer.header), **more}


# -- fields


def fields(answer: Any) -> Iterator[str]:
    """The lines of `--write-out=fields`."""
    yield from header(answer.header)
    match answer.DESCRIPTOR.name:
        case "RangeResponse":
            for kv in answer.kvs:
                yield from pair("", kv)
            yield f'"More" : {_word(answer.more)}'
            yield f'"Count" : {answer.count}'
        case "PutResponse":
            if answer.HasField("prev_kv"):
                yield from pair("Prev", answer.prev_kv)
        case "DeleteRangeResponse":
            yield f'"Deleted" : {answer.deleted}'
            for kv in answer.prev_kvs:
                yield from pair("Prev", kv)
        case "TxnResponse":
            yield f'"Succeeded" : {_word(answer.succeeded)}'
            for response in answer.responses:
                yield from fields(getattr(response, response.WhichOneof("response")))
        case "WatchResponse":
            for event in answer.events:
                yield f'"Type" : {"DELETE" if event.type else "PUT"}'
                if event.HasField("prev_kv"):
                    yield from pair("Prev", event.prev_kv)
                yield from pair("", event.kv)
        case "LeaseGrantResponse" | "LeaseKeepAliveResponse":
            yield f'"ID" : {answer.ID}'
            yield f'"TTL" : {answer.TTL}'
        case "LeaseTimeToLiveResponse":
            yield f'"ID" : {answer.ID}'
            yield f'"TTL" : {answer.TTL}'
            yield f'"GrantedTTL" : {answer.grantedTTL}'
            for key in answer.keys:
                yield f'"Key" : {text.quoted(key)}'
        case "LeaseLeasesResponse":
            for lease in answer.leases:
                yield f'"ID" : {lease.ID}'
        case "MemberListResponse":
            for member in answer.members:
                yield from _member(member)
        case "AlarmResponse":
            for alarm in answer.alarms:
                yield f'"MemberID" : {alarm.memberID}'
                yield f'"AlarmType" : {alarm_name(alarm)}'
                yield ""
        case "AuthRoleGetResponse":
            for permission in answer.perm:
                yield f'"PermType" :  {permission_name(permission)}'
                yield f'"Key" : {text.quoted(permission.key)}'
                yield f'"RangeEnd" : {text.quoted(permission.range_end)}'
        case "AuthRoleListResponse":
            yield " ".join(['"Roles" :', *(text.quoted(role.encode()) for role in answer.roles)])
        case "StatusResponse":
            yield f'"Version" : {text.quoted(answer.version.encode())}'
            yield f'"DBSize" : {answer.dbSize}'
            yield f'"Leader" : {answer.leader}'
            yield f'"IsLearner" : {_word(answer.isLearner)}'
            yield f'"RaftIndex" : {answer.raftIndex}'
            yield f'"RaftTerm" : {answer.raftTerm}'
            yield f'"RaftAppliedIndex" : {answer.raftAppliedIndex}'
            yield f'"Errors" : [{" ".join(answer.errors)}]'
        case _:
            return


def header(found: Any) -> Iterator[str]:
    yield f'"ClusterID" : {found.cluster_id}'
    yield f'"MemberID" : {found.member_id}'
    yield f'"Revision" : {found.revision}'
    yield f'"RaftTerm" : {found.raft_term}'


def pair(prefix: str, kv: Any) -> Iterator[str]:
    yield f'"{prefix}Key" : {text.quoted(kv.key)}'
    yield f'"{prefix}CreateRevision" : {kv.create_revision}'
    yield f'"{prefix}ModRevision" : {kv.mod_revision}'
    yield f'"{prefix}Version" : {kv.version}'
    yield f'"{prefix}Value" : {text.quoted(kv.value)}'
    yield f'"{prefix}Lease" : {kv.lease}'


def _member(member: Any) -> Iterator[str]:
    yield f'"ID" : {member.ID}'
    yield f'"Name" : {text.quoted(member.name.encode())}'
    for url in member.peerURLs:
        yield f'"PeerURL" : {text.quoted(url.encode())}'
    for url in member.clientURLs:
        yield f'"ClientURL" : {text.quoted(url.encode())}'
    yield f'"IsLearner" : {_word(member.isLearner)}'
    yield ""


def _word(value: bool) -> str:
    return "true" if value else "false"


def alarm_name(alarm: Any) -> str:
    return str(alarm.DESCRIPTOR.fields_by_name["alarm"].enum_type.values_by_number[alarm.alarm].name)


def permission_name(permission: Any) -> str:
    return str(permission.DESCRIPTOR.fields_by_name["permType"].enum_type.values_by_number[permission.permType].name)


# -- rows


def rows(printer: Printer, heads: Sequence[str], found: Sequence[Sequence[str]]) -> None:
    """Print rows as `simple` (commas) or as a table."""
    if printer.format == "table":
        printer.lines(text.table(heads, found))
    else:
        printer.lines(", ".join(row).encode() for row in found)
