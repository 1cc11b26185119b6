"""Members of different releases in one group, as far as bytes show it.

A member is of this release, of the one before (minor version 0 of the protocol: it sends and knows no message of a
type that came later), or of the one after (it appends a field to every message and to every entry, and sends types that
nobody here knows). What such a member sends goes through the production codec, and so does one message in eight of all
others: what arrives must be what was sent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from oarlock.errors import ProtocolViolation
from oarlock.raft.messages import AppendEntries, Message, ReadIndex
from oarlock.sim.invariants import Violation
from oarlock.wire.frames import HEADER_BYTES, PROTOCOL_MINOR, TYPE_OF, FrameParser, encode_frame, encode_raw

if TYPE_CHECKING:
    from oarlock.sim.world.process import Process

BEFORE, PRESENT, AFTER = -1, 0, 1
ENCODED_MASK: Final = 7  # of messages between members of the present release, those with these bits off go as bytes
FIRST_TYPE_OF_MINOR_1: Final = 15
UNKNOWN_TYPE: Final = 200  # of the release after
NEW_FIELD: Final = b"of a later release"
_WITHOUT_CONFIRMED: Final = 2
_ENTRIES: Final = 4  # where the entries are in the body of an AppendEntries
_GROUP: Final = 0


def carried(sender: Process, receiver: Process | None, message: Message) -> Message | None:
    """What the receiver gets of `message`, through bytes; None if one of the two does not know its type."""
    number = TYPE_OF[type(message)]
    releases = (sender.release, receiver.release if receiver is not None else PRESENT)
    if BEFORE in releases and number >= FIRST_TYPE_OF_MINOR_1:
        return None
    data = bytes(encode_frame(_GROUP, message))
    if sender.release == AFTER:
        data = _of_the_release_after(number, data)
    parser = FrameParser(f"member {sender.id}", minor=PROTOCOL_MINOR + (sender.release == AFTER))
    half = len(data) // 2
    try:
        found = [*parser.feed(data[:half]), *parser.feed(data[half:])]
    except ProtocolViolation as error:
        raise Violation("WIRE", f"{message} of member {sender.id} (release {sender.release:+}): {error}") from error
    if found != [(_GROUP, message)]:
        raise Violation("WIRE", f"member {sender.id} sent {message}, its bytes say {found}")
    return found[0][1]


def _of_the_release_after(number: int, data: bytes) -> bytes:
    """The same message as a later release would write it, behind one of a type that does not exist yet."""
    fields = msgspec.msgpack.decode(data[HEADER_BYTES:])
    if number == TYPE_OF[AppendEntries]:
        fields[_ENTRIES] = [[*entry, NEW_FIELD] for entry in fields[_ENTRIES]]
    if number == TYPE_OF[ReadIndex] and len(fields) == _WITHOUT_CONFIRMED:
        fields.append(False)  # which is left out where nothing follows
    return bytes(encode_raw(UNKNOWN_TYPE, _GROUP, (1, NEW_FIELD)) + encode_raw(number, _GROUP, (*fields, NEW_FIELD)))
