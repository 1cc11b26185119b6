"""The three HTTP/2 engines, side by side: what one client says means the same to all, however the network cuts it.

The client is libnghttp2's, or frames made by hand with the `hpack` package's encoder for what it never sends (padding,
CONTINUATION, priorities, changes of the table's size).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import hpack
import ngh2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oarlock.api.http2 import ENGINES, ConnectionFailed, Engine, engine_factory
from oarlock.api.http2.engine import PREFACE, Headers
from oarlock.api.http2.header_blocks import BadHeaderBlock, BlockDecoder, HeadersTooLarge, encode_block
from oarlock.api.limits import Limits

LIMITS = replace(Limits(), streams_per_connection_max=50, stream_window_bytes=70_000, connection_window_bytes=100_000)
RESPONSE = ((b":status", b"200"), (b"content-type", b"application/grpc"))
TRAILERS = ((b"grpc-status", b"0"), (b"grpc-message", b""))


@dataclass
class Sink:
    """Notes what an engine says. Pieces of one body count as one: how they are cut is not the engine's promise."""

    requests: dict[int, Headers] = field(default_factory=dict)
    bodies: dict[int, bytes] = field(default_factory=dict)
    ended: set[int] = field(default_factory=set)
    closed: list[tuple[int, int]] = field(default_factory=list)
    controls: list[str] = field(default_factory=list)

    def on_request(self, stream_id: int, headers: Headers, end_stream: bool) -> None:
        assert stream_id not in self.requests, "a request comes once"
        self.requests[stream_id] = tuple(headers)
        self.bodies[stream_id] = b""
        if end_stream:
            self.ended.add(stream_id)

    def on_data(self, stream_id: int, data: bytes, end_stream: bool) -> None:
        assert stream_id not in self.ended, "nothing comes after the end"
        self.bodies[stream_id] += data
        if end_stream:
            self.ended.add(stream_id)

    def on_end(self, stream_id: int) -> None:
        assert stream_id not in self.ended, "a request ends once"
        self.ended.add(stream_id)

    def on_closed(self, stream_id: int, error_code: int) -> None:
        self.closed.append((stream_id, error_code))

    def on_control(self, kind: str) -> None:
        self.controls.append(kind)

    def on_pong(self) -> None:
        self.controls.append("pong")

    def on_goaway(self) -> None:
        self.controls.append("goaway")


def made(name: str, limits: Limits = LIMITS) -> tuple[Engine, Sink]:
    sink = Sink()
    return engine_factory(name)(sink, limits), sink


def frame(kind: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream_id.to_bytes(4, "big") + payload


def feed(engine: Engine, data: bytes, cuts: list[int]) -> bytes:
    """Everything that comes back."""
    out, at = b"", 0
    for cut in [*sorted(cut % (len(data) + 1) for cut in cuts), len(data)]:
        engine.feed(data[at:cut])
        out += engine.take(1 << 20)
        at = cut
    return out


names = st.sampled_from([b"x-a", b"x-b", b"grpc-timeout", b"user-agent", b"authorization"])
values = st.one_of(st.sampled_from([b"1", b"5S", b"abc"]), st.binary(max_size=40).map(lambda b: b.hex().encode()))
fields = st.lists(st.tuples(names, values), max_size=5)
messages = st.one_of(st.binary(max_size=40), st.integers(0, 60_000).map(bytes))
cuts = st.lists(st.integers(0, 1 << 20), max_size=6)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[bytes, dict[int, tuple[list[tuple[bytes, bytes]], bytes, bool]]]:
    """What a correct but odd client sends, and the requests that it means."""
    encoder = hpack.Encoder()
    data = PREFACE + frame(4, 0, 0)
    meant = {}
    budget = 60_000  # no window runs out, whatever the engine grants back
    for number in range(draw(st.integers(1, 8))):
        stream = 2 * number + 1
        if draw(st.booleans()):
            encoder.header_table_size = draw(st.sampled_from([0, 64, 256, 4096]))
        headers = [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", b"/a/b"),
            (b":authority", b"h"),
            *draw(fields),
        ]
        block = encoder.encode(headers, huffman=draw(st.booleans()))
        body = draw(messages)[:budget]
        budget -= len(body)
        trailers = draw(st.booleans())
        flags, payload = 0, block
        pieces = [payload]
        if draw(st.booleans()) and len(block) > 2:
            middle = draw(st.integers(1, len(block) - 1))
            pieces = [block[:middle], block[middle:]]
        first = pieces[0]
        if draw(st.booleans()):
            flags |= 0x20
            first = b"\0\0\0\0\x10" + first
        if draw(st.booleans()):
            flags |= 0x8
            padding = draw(st.integers(0, 9))
            first = bytes((padding,)) + first + bytes(padding)
        if not body and not trailers:
            flags |= 0x1
        data += frame(1, flags | (0x4 if len(pieces) == 1 else 0), stream, first)
        if len(pieces) > 1:
            data += frame(9, 0x4, stream, pieces[1])
        at = 0
        while at < len(body):
            size = draw(st.integers(1, 16_000))
            part, at = body[at : at + size], at + size
            last = 0x1 if at >= len(body) and not trailers else 0
            if draw(st.booleans()):
                data += frame(0, last | 0x8, stream, b"\x03" + part + bytes(3))
                budget -= 4
            else:
                data += frame(0, last, stream, part)
        if trailers:
            data += frame(1, 0x5, stream, encoder.encode([(b"x-trailer", b"1")]))
        if draw(st.booleans()):
            data += frame(2, 0, stream, bytes(5)) + frame(0x77, 3, 0, b"unknown") + frame(8, 0, 0, b"\0\0\0\x05")
        meant[stream] = (headers, body, trailers)
    return data, meant


@settings(max_examples=60, deadline=None)
@given(conversations(), cuts, st.data())
def test_all_engines_understand_the_same(talk: Any, where: list[int], data: st.DataObject) -> None:
    sent, meant = talk
    answers = {stream: data.draw(messages, label=f"answer {stream}") for stream in meant}
    seen = []
    for name in ENGINES:
        engine, sink = made(name)
        feed(engine, sent, where)
        assert sink.requests == {stream: tuple(headers) for stream, (headers, _, _) in meant.items()}, name
        assert sink.bodies == {stream: body for stream, (_, body, _) in meant.items()}, name
        assert sink.ended == set(meant), name
        for stream, body in answers.items():
            engine.answer(stream, RESPONSE, body, TRAILERS)
        out = engine.take(1 << 24)
        seen.append(b"".join(frame_[9:] for frame_ in frames(out) if frame_[3] == 0))
    total = sum(map(len, answers.values()))
    if total < 60_000:  # all of it fits into the windows that a client has before it grants anything
        assert list(map(len, seen)) == [total] * len(ENGINES)


def frames(data: bytes) -> list[bytes]:
    found = []
    while data:
        end = 9 + int.from_bytes(data[:3], "big")
        found.append(data[:end])
        data = data[end:]
    return found


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(fields, messages, messages), min_size=1, max_size=8),
    st.sampled_from([1000, 16_384, 65_535, 1 << 20]),
    st.integers(2000, 100_000),
)
@pytest.mark.parametrize("name", ENGINES)
def test_libnghttp2s_client_gets_every_answer_whole(name: str, calls: Any, window: int, amount: int) -> None:
    """Whatever windows the client grants and however little is taken at a time."""
    engine, sink = made(name)
    client = ngh2.Connection(ngh2.Role.CLIENT, ngh2.Configuration(auto_window_update=True))
    client.initiate_connection({ngh2.Setting.ENABLE_PUSH: 0, ngh2.Setting.INITIAL_WINDOW_SIZE: window})
    streams, got, trailers, answered = [], {}, {}, set()
    for extra, body, _ in calls:
        headers = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/x"), (b":authority", b"h"), *extra]
        stream = client.send_request(headers, end_stream=False)
        client.send_data(stream, body, end_stream=True)
        streams.append(stream)
        got[stream] = b""
    for _ in range(4000):
        quiet = True
        data = client.data_to_send()
        if data:
            quiet = False
            engine.feed(data)
        for stream, (_, _, answer) in zip(streams, calls, strict=True):
            if stream in sink.ended and stream not in answered:
                answered.add(stream)
                engine.answer(stream, RESPONSE, answer, TRAILERS)
        data = engine.take(amount)
        if data:
            quiet = False
            client.receive_data(data)
        for event in client.events():
            match event:
                case ngh2.DataReceived():
                    got[event.stream_id] += event.data
                case ngh2.TrailersReceived():
                    trailers[event.stream_id] = tuple(event.headers)
        if quiet:
            break
    assert got == {stream: answer for stream, (_, _, answer) in zip(streams, calls, strict=True)}
    assert trailers == dict.fromkeys(streams, TRAILERS)
    assert engine.unsent() == 0
    assert [sink.bodies[stream] for stream in streams] == [body for _, body, _ in calls]


@settings(max_examples=300, deadline=None)
@given(conversations(), st.lists(st.tuples(st.integers(24, 1 << 17), st.integers(0, 255)), max_size=6), cuts)
def test_broken_bytes_are_refused_alike_however_they_are_cut(talk: Any, changes: Any, where: list[int]) -> None:
    """Our engine knows one way to refuse, and its judgement does not depend on where reads end."""
    sent = bytearray(talk[0])
    for at, value in changes:
        sent[24 + at % (len(sent) - 24)] = value
    told = []
    for pieces in ([], where, [1 << 10, 1 << 11, 25, 33, 40]):
        engine, sink = made("own")
        failure = ""
        try:
            feed(engine, bytes(sent), pieces)
        except ConnectionFailed as error:
            failure = str(error)
            assert engine.finished
            assert frames(engine.take(1 << 20))[-1][3] == 7, "a GOAWAY says why"
        told.append((failure, sink.requests, sink.bodies, sink.ended))
    assert told[0] == told[1] == told[2]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=4))
def test_any_bytes_are_a_header_block_or_refused(blocks: list[bytes]) -> None:
    """And where hpack's own decoder takes a block, ours gives the same fields."""
    ours, theirs = BlockDecoder(10_000), hpack.Decoder(max_header_list_size=10_000)
    for block in blocks:
        try:
            found = ours.decode(block)
        except HeadersTooLarge:
            return
        except BadHeaderBlock:
            with pytest.raises(Exception):  # noqa: B017 (UnicodeDecodeError, too, from some of its versions)
                theirs.decode(block, raw=True)
            return
        try:
            expected = theirs.decode(block, raw=True)
        except hpack.HPACKError:
            return  # it is stricter about where a change of the table's size may stand
        assert found == tuple((bytes(name), bytes(value)) for name, value in expected)


def test_a_block_is_remembered_only_while_the_table_stands() -> None:
    encoder = hpack.Encoder()
    decoder = BlockDecoder(10_000)
    fields_ = [(b":method", b"POST"), (b"x-a", b"1")]
    first = encoder.encode(fields_)
    decoder.remember(first, decoder.decode(first))
    assert decoder.known(first) is None, "the first block changed the table"
    second = encoder.encode(fields_)
    decoder.remember(second, decoder.decode(second))
    assert decoder.known(second) == tuple(fields_)
    decoder.decode(encoder.encode([(b"x-b", b"2")]))
    assert decoder.known(second) is None, "what its indexes point at has moved"
    assert decoder.decode(encoder.encode(fields_)) == tuple(fields_)


@given(fields)
def test_what_we_encode_any_decoder_reads(extra: list[tuple[bytes, bytes]]) -> None:
    decoder = hpack.Decoder()
    for _ in range(2):
        assert [tuple(f) for f in decoder.decode(encode_block([*RESPONSE, *extra]), raw=True)] == [*RESPONSE, *extra]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from([b"x-a", b"x-bb"]), st.integers(0, 1500)),
            st.sampled_from([0, 50, 1000, 4096]),
        ),
        min_size=1, max_size=20,
    )
)  # fmt: skip
def test_the_dynamic_table_is_hpacks(steps: list[Any]) -> None:
    """Also where it overflows: what is evicted too late or too early is a wrong header in some later request."""
    encoder, theirs, ours = hpack.Encoder(), hpack.Decoder(max_header_list_size=10_000), BlockDecoder(10_000)
    for step in steps:
        if isinstance(step, int):
            if step != encoder.header_table_size:  # hpack's encoder forgets to announce a size that it is given twice
                encoder.header_table_size = step
            continue
        block = encoder.encode([(step[0], b"v" * step[1])], huffman=False)
        assert ours.decode(block) == tuple(theirs.decode(block, raw=True))
        table = [(bytes(name), bytes(value)) for name, value in theirs.header_table.dynamic_entries]
        assert list(ours._table) == table
        assert ours._bytes == sum(len(name) + len(value) + 32 for name, value in table)


def opened(name: str, window: int, streams: int) -> Engine:
    """An engine whose client grants `window` bytes to each of `streams` requests, all complete."""
    engine, sink = made(name)
    encoder = hpack.Encoder()
    engine.feed(PREFACE + frame(4, 0, 0, b"\0\x04" + window.to_bytes(4, "big")))
    for number in range(streams):
        headers = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/x"), (b":authority", b"h")]
        engine.feed(frame(1, 0x5, 2 * number + 1, encoder.encode(headers)))
    assert len(sink.ended) == streams
    engine.take(1 << 20)
    return engine


def sent_to(engine: Engine) -> dict[int, int]:
    """Bytes of DATA for each stream in what the engine has to send."""
    sent: dict[int, int] = {}
    while data := engine.take(1 << 20):
        for frame_ in frames(data):
            if frame_[3] == 0:
                stream = int.from_bytes(frame_[5:9], "big")
                sent[stream] = sent.get(stream, 0) + len(frame_) - 9
    return sent


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("size", [5000, 50_000])
def test_a_streams_window_is_kept(name: str, size: int) -> None:
    engine = opened(name, 1000, 1)
    engine.answer(1, RESPONSE, bytes(size), TRAILERS)
    assert sent_to(engine) == {1: 1000}
    assert engine.unsent(1) == size - 1000
    engine.feed(frame(8, 0, 1, (500).to_bytes(4, "big")))
    assert sent_to(engine) == {1: 500}
    engine.feed(frame(4, 0, 0, b"\0\x04" + (500).to_bytes(4, "big")))  # the client takes 500 back ...
    engine.feed(frame(8, 0, 1, (600).to_bytes(4, "big")))  # ... so of these, 100 are left
    assert sent_to(engine) == {1: 100}
    engine.feed(frame(8, 0, 1, (size).to_bytes(4, "big")))
    assert sent_to(engine) == {1: size - 1600}
    assert engine.unsent() == 0


@pytest.mark.parametrize("name", ENGINES)
def test_the_connections_window_is_kept(name: str) -> None:
    engine = opened(name, 1 << 20, 5)
    for number in range(5):
        engine.answer(2 * number + 1, RESPONSE, bytes(16_000), TRAILERS)
    assert sum(sent_to(engine).values()) == 65_535
    engine.feed(frame(8, 0, 0, (1000).to_bytes(4, "big")))
    assert sum(sent_to(engine).values()) == 1000
    engine.feed(frame(8, 0, 0, (1 << 20).to_bytes(4, "big")))
    assert sum(sent_to(engine).values()) == 80_000 - 66_535
    assert engine.unsent() == 0
