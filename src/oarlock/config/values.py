"""Kinds of values: how a text (or a TOML value) becomes a Python value, and how it is written again.

Every parser raises `ValueError` with a text that says what was expected; the caller adds the option's name and origin.
Texts are those of Go's flag package where etcd users know them: booleans as `true`/`1`/`t`, durations as `1m30s`.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn
from urllib.parse import urlsplit

Cluster = tuple[tuple[str, tuple[str, ...]], ...]
"""Members in the order given: (name, peer URLs)."""

MEMBER_NAME_BYTES_MAX = 255
URLS_MAX = 16  # of one option; as many as a member's record holds

_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})
_SIZE = re.compile(r"(-?\d+)\s*(|B|KiB|MiB|GiB|TiB)")
_SIZES = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(us|µs|ms|s|m|h)")
_DURATION_MS = {"us": 0.001, "µs": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0, "h": 3_600_000.0}
_HOST_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")


def _bad(expected: str, value: object) -> NoReturn:
    raise ValueError(f"{value!r} is not {expected}")


def parse_text(value: object) -> str:
    if not isinstance(value, str):
        _bad("a text", value)
    if "\0" in value or "\n" in value:
        raise ValueError("a text may hold neither a line break nor a zero byte")
    return value


def parse_bool(value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        if value in _TRUE:
            return True
        if value in _FALSE:
            return False
    _bad("true or false", value)


def parse_int(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,19}", value.strip()):
        return int(value)
    _bad("a whole number", value)


def parse_id(value: object) -> int:
    """A cluster's id in hexadecimal, as the server prints it; a TOML number is taken as it is."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"(0x)?[0-9a-fA-F]{1,16}", value.strip()):
        return int(value, 16)
    _bad("an id of at most 16 hexadecimal digits", value)


def parse_size(value: object) -> int:
    """Bytes: a number, or a number with B, KiB, MiB, GiB or TiB.

    >>> parse_size("64MiB"), parse_size(1024)
    (67108864, 1024)
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())) and len(match[1]) <= 19:
        return int(match[1]) * _SIZES[match[2]]
    _bad("a size in bytes (a number, or one with KiB, MiB, GiB)", value)


def parse_milliseconds(value: object) -> int:
    """Milliseconds as a bare number, as etcd's `--heartbeat-interval` has them; a Go duration is understood too."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        text = value.strip()
        if re.fullmatch(r"[+-]?\d{1,15}", text):
            return int(text)
        return parse_duration(text)
    _bad("a number of milliseconds", value)


def parse_duration(value: object) -> int:
    """A Go duration (`10s`, `1m30s`, `500ms`, `0`) in whole milliseconds.

    >>> parse_duration("1m30s"), parse_duration("500ms"), parse_duration("0")
    (90000, 500, 0)
    """
    if isinstance(value, str):
        text = value.strip()
        if text == "0":
            return 0
        parts = _DURATION_PART.findall(text)
        if parts and "".join(number + unit for number, unit in parts) == text and len(text) <= 40:
            return round(sum(float(number) * _DURATION_MS[unit] for number, unit in parts))
    _bad("a duration with its unit (such as 500ms, 10s or 1m30s)", value)


def parse_url(text: str) -> str:
    """One listen or advertise URL, normalised: scheme and host in lower case, no path. (etcd's rules)"""
    if "@" in text:  # before anything that would repeat the text in a message
        raise ValueError("a URL of a member must not contain a user name or password")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"{text!r} is not a URL: {error}") from error
    if parts.scheme not in ("http", "https"):
        raise ValueError(f"{text!r} must begin with http:// or https://")
    host = parts.hostname
    if not host:
        raise ValueError(f"{text!r} names no host")
    if port is None:
        raise ValueError(f"{text!r} names no port (write {parts.scheme}://{parts.netloc}:2379 or another)")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ValueError(f"{text!r} must not contain a path, query or fragment")
    check_host(host)
    shown = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown}:{port}"


def check_host(host: str) -> None:
    """Raise `ValueError` unless `host` is an IP address or could be a DNS name."""
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        labels = host.rstrip(".").split(".")
        if len(host) > 253 or not all(_HOST_LABEL.fullmatch(label) for label in labels):
            raise ValueError(f"{host!r} is neither an IP address nor a host name") from None


def parse_urls(value: object) -> tuple[str, ...]:
    """Comma-separated URLs, or a list of them; without repetition, in the order given."""
    if isinstance(value, str):
        texts: Sequence[object] = [part.strip() for part in value.split(",")] if value.strip() else []
    elif isinstance(value, list | tuple):
        texts = value
    else:
        _bad("a comma-separated list of URLs", value)
    urls: list[str] = []
    for text in texts:
        if not isinstance(text, str):
            _bad("a URL", text)
        if not text:
            raise ValueError("the list of URLs has an empty place (two commas, or one at an end)")
        url = parse_url(text)
        if url in urls:
            raise ValueError(f"{url} is given twice")
        urls.append(url)
    if len(urls) > URLS_MAX:
        raise ValueError(f"{len(urls)} URLs are too many (at most {URLS_MAX})")
    return tuple(urls)


def parse_names(value: object) -> tuple[str, ...]:
    """Comma-separated host names, or a list of them; `*` stands for any, and nothing at all does too. (etcd's rule)"""
    if isinstance(value, str):
        texts: Sequence[object] = [part.strip() for part in value.split(",")] if value.strip() else ["*"]
    elif isinstance(value, list | tuple):
        texts = value or ["*"]
    else:
        _bad("a comma-separated list of host names", value)
    for text in texts:
        if not isinstance(text, str):
            _bad("a host name", text)
        if text != "*":
            check_host(text)
    return tuple(str(text) for text in texts)


def parse_words(value: object) -> tuple[str, ...]:
    """Comma-separated words, or a list of them; empty for none."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    if isinstance(value, list | tuple) and all(isinstance(part, str) for part in value):
        return tuple(value)
    _bad("a comma-separated list of words", value)


def check_member_name(name: str) -> None:
    if not name:
        raise ValueError("a member's name must not be empty")
    if len(name.encode()) > MEMBER_NAME_BYTES_MAX:
        raise ValueError(f"a member's name has at most {MEMBER_NAME_BYTES_MAX} bytes")
    if any(character in ",=" or character.isspace() or not character.isprintable() for character in name):
        raise ValueError(f"member name {name!r} contains a comma, an equals sign, a space or an unprintable character")


def parse_cluster(value: object) -> Cluster:
    """`n1=http://a:2380,n2=http://b:2380`; a name given several times has several URLs. In TOML also a table.

    >>> parse_cluster("n1=http://a:2380,n2=http://b:2380,n1=http://c:2380")
    (('n1', ('http://a:2380', 'http://c:2380')), ('n2', ('http://b:2380',)))
    """
    pairs: list[tuple[str, str]] = []
    if isinstance(value, str):
        for part in value.split(",") if value.strip() else []:
            name, equals, url = part.strip().partition("=")
            if not equals:
                raise ValueError(f"{part.strip()!r} is not of the form name=http://host:port")
            pairs.append((name, url))
    elif isinstance(value, Mapping):
        for name, urls in value.items():
            if not isinstance(name, str):
                _bad("a member's name", name)
            for url in urls if isinstance(urls, list) else [urls]:
                if not isinstance(url, str):
                    _bad("a URL", url)
                pairs.append((name, url))
    else:
        _bad("a list name=URL,name=URL", value)
    members: dict[str, list[str]] = {}
    for name, url in pairs:
        check_member_name(name)
        normal = parse_url(url)
        if normal in members.setdefault(name, []):
            raise ValueError(f"{name}={normal} is given twice")
        members[name].append(normal)
    return tuple((name, tuple(urls)) for name, urls in members.items())


def show_plain(value: object) -> str:
    return str(value)


def show_bool(value: object) -> str:
    return "true" if value else "false"


def show_id(value: object) -> str:
    assert isinstance(value, int)
    return f"{value:x}"


def show_duration(value: object) -> str:
    """The shortest exact Go duration of a number of milliseconds.

    >>> show_duration(10_000), show_duration(1500), show_duration(7_200_000)
    ('10s', '1500ms', '2h')
    """
    assert isinstance(value, int)
    if value == 0:
        return "0s"
    for unit, factor in (("h", 3_600_000), ("m", 60_000), ("s", 1000)):
        if value % factor == 0:
            return f"{value // factor}{unit}"
    return f"{value}ms"


def show_urls(value: object) -> str:
    assert isinstance(value, tuple)
    return ",".join(value)


def show_cluster(value: object) -> str:
    assert isinstance(value, tuple)
    return ",".join(f"{name}={url}" for name, urls in value for url in urls)


@dataclass(frozen=True, slots=True)
class Kind:
    """How values of one kind are read and written. `metavar` stands for the value in help texts."""

    name: str
    metavar: str
    parse: Callable[[object], object]
    show: Callable[[object], str] = show_plain


TEXT = Kind("text", "TEXT", parse_text)
PATH = Kind("path", "PATH", parse_text)
BOOL = Kind("boolean", "BOOL", parse_bool, show_bool)
INT = Kind("number", "N", parse_int)
ID = Kind("id", "HEX", parse_id, show_id)
SIZE = Kind("size", "BYTES", parse_size)
MILLISECONDS = Kind("milliseconds", "MS", parse_milliseconds)
DURATION = Kind("duration", "DURATION", parse_duration, show_duration)
URLS = Kind("URLs", "URL,URL", parse_urls, show_urls)
WORDS = Kind("words", "WORD,WORD", parse_words, show_urls)
NAMES = Kind("host names", "NAME,NAME", parse_names, show_urls)
CLUSTER = Kind("members", "NAME=URL,NAME=URL", parse_cluster, show_cluster)
