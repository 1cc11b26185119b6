"""Kinds of values: what they accept, what they refuse, and that what is shown can be read again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oarlock.config import values
from oarlock.config.options import OPTIONS


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://localhost:2379", "http://localhost:2379"),
        ("HTTPS://Node-1.Example.org:443/", "https://node-1.example.org:443"),
        ("http://[::1]:2380", "http://[::1]:2380"),
        ("http://10.0.0.1:0", "http://10.0.0.1:0"),
    ],
)
def test_urls_are_normalised(text: str, url: str) -> None:
    assert values.parse_url(text) == url


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("localhost:2379", "must begin with http"),
        ("ftp://a:1", "must begin with http"),
        ("unix://a:1", "must begin with http"),
        ("http://a", "names no port"),
        ("http://:2379", "names no host"),
        ("http://a:99999", "is not a URL"),
        ("http://a:x", "is not a URL"),
        ("http://a:1/path", "path"),
        ("http://a:1?x=y", "path"),
        ("http://a b:1", "neither an IP address nor a host name"),
        ("http://-a:1", "neither an IP address nor a host name"),
    ],
)
def test_bad_urls_say_why(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        values.parse_url(text)


def test_a_password_in_a_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError) as caught:
        values.parse_url("http://root:hunter2@a:1")
    assert "hunter2" not in str(caught.value)


def test_a_cluster_keeps_the_order_and_joins_a_members_urls() -> None:
    parsed = values.parse_cluster("b=http://b:1, a=http://a:1,b=http://b:2")
    assert parsed == (("b", ("http://b:1", "http://b:2")), ("a", ("http://a:1",)))
    assert values.parse_cluster({"b": ["http://b:1", "http://b:2"], "a": "http://a:1"}) == parsed
    assert values.parse_cluster(values.show_cluster(parsed)) == parsed


@pytest.mark.parametrize(
    "text", ["http://a:1", "=http://a:1", "a b=http://a:1", "a=http://a:1,a=http://a:1", "a=http://a:1,,"]
)
def test_bad_clusters_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        values.parse_cluster(text)


def test_the_bounds_of_names_and_url_lists_are_reached() -> None:
    values.check_member_name("n" * values.MEMBER_NAME_BYTES_MAX)
    with pytest.raises(ValueError, match="at most 255 bytes"):
        values.check_member_name("n" * (values.MEMBER_NAME_BYTES_MAX + 1))
    many = [f"http://a:{port}" for port in range(1, values.URLS_MAX + 2)]
    assert len(values.parse_urls(many[:-1])) == values.URLS_MAX
    with pytest.raises(ValueError, match="too many"):
        values.parse_urls(many)


@pytest.mark.parametrize("text", ["1", "t", "T", "true", "TRUE", "True"])
def test_gos_true(text: str) -> None:
    assert values.parse_bool(text) is True


@pytest.mark.parametrize("value", ["yes", "on", "", 1, None])
def test_not_a_boolean(value: object) -> None:
    with pytest.raises(ValueError, match="true or false"):
        values.parse_bool(value)


@pytest.mark.parametrize("value", ["1.5", "1e3", "", "x", True, 1.0, "9" * 30])
def test_not_a_number(value: object) -> None:
    with pytest.raises(ValueError, match="whole number"):
        values.parse_int(value)


@given(st.integers(min_value=0, max_value=10**12))
def test_a_shown_duration_reads_back(milliseconds: int) -> None:
    assert values.parse_duration(values.show_duration(milliseconds)) == milliseconds


@pytest.mark.parametrize("text", ["10", "s", "1 s", "-1s", "1x", "1s2", ""])
def test_a_duration_needs_its_unit(text: str) -> None:
    with pytest.raises(ValueError, match="with its unit"):
        values.parse_duration(text)


def test_every_default_reads_back_as_itself() -> None:
    """So that `config show` prints what can be put into a flag, a variable or a file."""
    for option in OPTIONS:
        if option.default_text:
            continue
        assert option.parse(option.kind.show(option.default)) == option.default, option.name
