"""Texts as Go programs read and write them."""

from __future__ import annotations

import doctest
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oarlock.ctl import text


def test_the_examples_in_the_docstrings() -> None:
    assert doctest.testmod(text).failed == 0


@pytest.mark.parametrize(
    ("typed", "base", "wrong"),
    [
        ("", 10, "invalid syntax"), ("1x", 10, "invalid syntax"), ("1_0", 10, "invalid syntax"), (" 1", 10, "invalid"),
        ("0x12", 16, "invalid syntax"), ("zz", 16, "invalid syntax"), ("--1", 10, "invalid syntax"),
        ("9223372036854775808", 10, "value out of range"), ("-9223372036854775809", 10, "value out of range"),
        ("٣", 10, "invalid syntax"), ("08", 0, "invalid syntax"),
    ],
)  # fmt: skip
def test_numbers_that_are_none(typed: str, base: int, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        text.integer(typed, base)


def test_unsigned_numbers() -> None:
    assert text.integer("ffffffffffffffff", 16, signed=False) == (1 << 64) - 1
    with pytest.raises(ValueError, match=r'ParseUint: parsing "-1": invalid syntax'):
        text.integer("-1", 16, signed=False)


@pytest.mark.parametrize(
    ("typed", "wrong"),
    [
        ("", "invalid duration"), ("1", "missing unit"), ("3x", 'unknown unit "x"'), ("s", "invalid duration"),
        ("1s2", "missing unit"), ("-", "invalid duration"), ("1 s", "unknown unit"),
    ],
)  # fmt: skip
def test_durations_that_are_none(typed: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        text.seconds(typed)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(1e-9, "1ns"), (0.0000015, "1.5µs"), (5, "5s"), (3600, "1h0m0s"), (60, "1m0s"), (0.3, "300ms"), (2, "2s")],
)
def test_durations(seconds: float, shown: str) -> None:
    assert text.duration(seconds) == shown
    assert text.seconds(shown) == pytest.approx(seconds)


@given(st.binary())
def test_quoted_bytes_come_back(raw: bytes) -> None:
    shown = text.quoted(raw)
    assert shown.isprintable()
    assert text.unquoted(shown).encode("utf-8", "surrogateescape") == raw


@pytest.mark.parametrize("typed", ["", '"', "a", '"a', '"\\q"', '"\\777"'])
def test_what_is_not_quoted(typed: str) -> None:
    with pytest.raises(ValueError):
        text.unquoted(typed)


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"]))
    )
)
def test_json_is_json(value: dict[str, str]) -> None:
    dumped = text.dumps(value)
    assert json.loads(dumped) == value
    assert not set(b"<>&") & set(dumped)


def test_words_of_a_line() -> None:
    assert text.words('put "a b" \'c "d\' `e\\n` f\\g --x=1') == ["put", "a b", 'c "d', "e\\n", "f\\g", "--x=1"]
    assert text.words("") == []
    for wrong in ('put "\\q"', 'put "a b', "'", 'get "a" `b'):
        with pytest.raises(ValueError):
            text.words(wrong)


def test_a_table() -> None:
    lines = list(text.table(("ID", "LONG NAME"), [("1", "a"), ("1234", "b")]))
    assert lines == [
        b"+------+-----------+", b"|  ID  | LONG NAME |", b"+------+-----------+", b"|    1 |         a |",
        b"| 1234 |         b |", b"+------+-----------+",
    ]  # fmt: skip
    assert len(list(text.table(("ID",), []))) == 3
