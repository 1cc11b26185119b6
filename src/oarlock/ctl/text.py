"""Texts as etcdctl, a Go program, reads and writes them: numbers, durations, sizes, quoted bytes, JSON, tables."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

_UNITS: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART: Final = r"(\d+\.?\d*|\.\d+)([^\d.]*)"  # compiled when it is used: most runs use none
_ESCAPES: Final = {7: "\\a", 8: "\\b", 12: "\\f", 10: "\\n", 13: "\\r", 9: "\\t", 11: "\\v", 92: "\\\\", 34: '\\"'}
_UNESCAPES: Final = {text[1]: chr(code) for code, text in _ESCAPES.items()}
_ESCAPED: Final = r"(?s)\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([0-7]{3})|(.))"


def integer(text: str, base: int = 10, *, signed: bool = True) -> int:
    """A 64-bit integer. Base 0 reads the prefixes 0x, 0o, 0b and 0. Raises `ValueError` in Go's words.

    >>> integer("ff", 16), integer("0x10", 0), integer("-010", 0)
    (255, 16, -8)
    """
    name = f'strconv.Parse{"Int" if signed else "Uint"}: parsing "{text}"'
    digits = text[1:] if signed and text[:1] in ("-", "+") else text
    if base == 0 and re.fullmatch(r"0[0-7]+", digits):
        digits = "0o" + digits[1:]
    allowed = {0: r"[0-9a-zA-Z_]+", 10: r"[0-9]+", 16: r"[0-9a-fA-F]+"}[base]
    try:
        if not re.fullmatch(allowed, digits):
            raise ValueError
        value = int(digits, base)
    except ValueError:
        raise ValueError(f"{name}: invalid syntax") from None
    value = -value if text[:1] == "-" else value
    low, high = (-(1 << 63), (1 << 63) - 1) if signed else (0, (1 << 64) - 1)
    if not low <= value <= high:
        raise ValueError(f"{name}: value out of range")
    return value


def seconds(text: str) -> float:
    """A duration such as "5s", "300ms" or "1h30m". Raises `ValueError` in Go's words.

    >>> seconds("1m30s"), seconds("-1.5s"), seconds("0")
    (90.0, -1.5, 0.0)
    """
    rest = text[1:] if text[:1] in ("-", "+") else text
    if rest == "0":
        return 0.0
    total, at = 0.0, 0
    while at < len(rest) or not rest:
        part = re.compile(_PART).match(rest, at)
        if part is None:
            raise ValueError(f'time: invalid duration "{text}"')
        if not part[2]:
            raise ValueError(f'time: missing unit in duration "{text}"')
        if part[2] not in _UNITS:
            raise ValueError(f'time: unknown unit "{part[2]}" in duration "{text}"')
        total += float(part[1]) * _UNITS[part[2]]
        at = part.end()
    return -total if text[:1] == "-" else total


def duration(value: float) -> str:
    """Seconds as Go prints a duration.

    >>> duration(0.003172131), duration(1.000673969), duration(90.5), duration(0)
    ('3.172131ms', '1.000673969s', '1m30.5s', '0s')
    """
    nanoseconds = round(value * 1e9)
    for unit, factor in (("ns", 1), ("µs", 1_000), ("ms", 1_000_000)):
        if 0 < nanoseconds < factor * 1000:
            return f"{_decimal(nanoseconds, factor)}{unit}"
    minutes, rest = divmod(nanoseconds, 60_000_000_000)
    hours, minutes = divmod(minutes, 60)
    shown = f"{_decimal(rest, 1_000_000_000)}s"
    return f"{hours}h{minutes}m{shown}" if hours else f"{minutes}m{shown}" if minutes else shown


def _decimal(value: int, factor: int) -> str:
    whole, part = divmod(value, factor)
    digits = str(part).rjust(len(str(factor)) - 1, "0").rstrip("0") if part else ""
    return f"{whole}.{digits}" if digits else str(whole)


def size(value: int) -> str:
    """Bytes as etcdctl prints sizes.

    >>> size(999), size(20_512), size(2_400_000)
    ('999 B', '20 kB', '2.4 MB')
    """
    amount, unit = float(value), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 1000 or unit == "TB":
            break
        amount /= 1000
    amount = math.floor(amount * 10 + 0.5) / 10
    return f"{amount:.1f} {unit}" if unit != "B" and amount < 10 else f"{amount:.0f} {unit}"


def quoted(raw: bytes) -> str:
    r"""Bytes between double quotes: what prints stays, everything else is escaped.

    >>> print(quoted(b'a"\n\xff\x00'))
    "a\"\n\xff\x00"
    """
    parts = []
    for char in raw.decode("utf-8", "surrogateescape"):
        code = ord(char)
        if code in _ESCAPES:
            parts.append(_ESCAPES[code])
        elif 0xDC80 <= code <= 0xDCFF:
            parts.append(f"\\x{code - 0xDC00:02x}")
        elif char.isprintable():
            parts.append(char)
        elif code < 0x80:
            parts.append(f"\\x{code:02x}")
        else:
            parts.append(f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}")
    return f'"{"".join(parts)}"'


def unquoted(text: str) -> str:
    r"""What stands between double quotes or backquotes; bytes that are no text are surrogates. Raises `ValueError`.

    >>> unquoted('"a\\x41\\n"'), unquoted('`a\\n`')
    ('aA\n', 'a\\n')
    """
    if len(text) >= 2 and text[0] == text[-1] == "`":
        return text[1:-1]
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        raise ValueError(f"{text} is not in double quotes")

    def plain(found: re.Match[str]) -> str:
        byte, short, long, octal, other = found.groups()
        if short or long:
            return chr(int(short or long, 16))
        if byte or octal:
            code = int(byte, 16) if byte else int(octal, 8)
            if code > 255:
                raise ValueError(f"\\{octal} is more than a byte")
            return bytes([code]).decode("utf-8", "surrogateescape")
        if other not in _UNESCAPES:
            raise ValueError(f"\\{other} is no escape")
        return _UNESCAPES[other]

    shown = re.sub(_ESCAPED, plain, text[1:-1])
    # bytes given one by one may make up a character together
    return shown.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")


def hexadecimal(raw: bytes) -> bytes:
    r"""Bytes as --hex prints them.

    >>> hexadecimal(b"a\xff")
    b'\\x61\\xff'
    """
    return "".join(f"\\x{byte:02x}" for byte in raw).encode()


def dumps(value: Any) -> bytes:
    """JSON as Go writes it: no spaces, HTML's special characters escaped."""
    import json

    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text.encode("utf-8", "replace")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[bytes]:
    """A table with a frame: heads in the middle of their columns, cells to the right."""
    widths = [max(len(cell) for cell in column) for column in zip(heads, *rows, strict=True)]
    line = "+" + "+".join("-" * (width + 2) for width in widths) + "+"
    yield line.encode()
    yield ("|" + "|".join(f" {_centred(h, w)} " for h, w in zip(heads, widths, strict=True)) + "|").encode()
    yield line.encode()
    for row in rows:
        yield ("|" + "|".join(f" {cell:>{w}} " for cell, w in zip(row, widths, strict=True)) + "|").encode()
    if rows:
        yield line.encode()


def _centred(text: str, width: int) -> str:
    left = (width - len(text)) // 2
    return " " * left + text + " " * (width - len(text) - left)


def prefix_end(prefix: bytes) -> bytes:
    """The first key behind all that begin with `prefix`; one zero byte if there is none.

    >>> prefix_end(b"ab"), prefix_end(b"a\\xff"), prefix_end(b"\\xff")
    (b'ac', b'b', b'\\x00')
    """
    cut = prefix.rstrip(b"\xff")
    return cut[:-1] + bytes([cut[-1] + 1]) if cut else b"\0"


_WORD: Final = r'"(?:[^"\\]|\\.)*"|\'[^\']*\'|`[^`]*`|[^\'"\s]\S*'


def words(line: str) -> list[str]:
    """A line as words; what stands in quotes is one of them. Raises `ValueError`.

    >>> words('put "a b" \\'c d\\' -- -x')
    ['put', 'a b', 'c d', '--', '-x']
    """
    if re.sub(_WORD, "", line).strip():
        raise ValueError("a quote has no end")
    found = []
    for word in re.findall(_WORD, line):
        if word[0] == "'":
            found.append(word[1:-1])
        else:
            found.append(unquoted(word) if word[0] in '"`' else word)
    return found
