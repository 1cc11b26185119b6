"""Precedence, origins, and the names that nothing knows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from oarlock.config import OPTIONS, Origin, load, show, validate
from oarlock.config.load import CONFIG_FILE_BYTES_MAX
from oarlock.config.options import BY_NAME, ETCD_ONLY
from oarlock.errors import ConfigurationError


def write(path: Path, text: str) -> str:
    file = path / "oarlock.toml"
    file.write_text(text)
    return str(file)


def test_flags_over_environment_over_file_over_defaults(tmp_path: Path) -> None:
    file = write(tmp_path, 'name = "file"\nmax-txn-ops = 2\nlog-level = "debug"\n')
    loaded = load(
        {"config-file": file, "name": "flag"},
        {"OARLOCK_NAME": "environment", "OARLOCK_MAX_TXN_OPS": "3", "PATH": "/bin"},
    )
    assert (loaded.config.name, loaded.config.max_txn_ops, loaded.config.log_level) == ("flag", 3, "debug")
    assert loaded.sources["name"].origin is Origin.FLAG
    assert str(loaded.sources["max_txn_ops"]) == "environment OARLOCK_MAX_TXN_OPS"
    assert str(loaded.sources["log_level"]) == f"file {file}"
    assert loaded.sources["storage"].origin is Origin.DEFAULT
    assert loaded.config.storage == "lmdb"


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_every_option_can_be_given_in_every_way(option: object, tmp_path: Path) -> None:
    name = option.name  # type: ignore[attr-defined]
    entry = BY_NAME[name]
    text = {
        "text": "word",
        "path": "some/where",
        "boolean": "false" if entry.default else "true",
        "number": "7",
        "id": "cdf818194e3a8c32",
        "size": "8192",
        "milliseconds": "777",
        "duration": "7s",
        "URLs": "http://a:1,http://b:2",
        "host names": "a.example.org,b",
        "words": "a,b",
        "members": "a=http://a:1,b=http://b:2",
    }[entry.kind.name]
    if entry.choices:
        text = entry.choices[-1]
    expected = entry.parse(text)
    assert expected != entry.default
    toml = text if entry.kind.name in ("boolean", "number", "size", "milliseconds") else json.dumps(text)
    ways = [
        ({name: text}, {}, Origin.FLAG),
        ({}, {entry.environment: text}, Origin.ENVIRONMENT),
        ({"config-file": write(tmp_path, f"{name} = {toml}\n")}, {}, Origin.FILE),
    ]
    if entry.etcd_environment:
        ways.append(({}, {entry.etcd_environment: text}, Origin.ENVIRONMENT))
    for flags, environ, origin in ways:
        loaded = load(flags, environ)
        assert getattr(loaded.config, entry.field) == expected
        assert loaded.sources[entry.field].origin is origin


def test_both_names_in_the_environment_must_agree() -> None:
    assert load({}, {"OARLOCK_NAME": "a", "ETCD_NAME": "a"}).config.name == "a"
    with pytest.raises(ConfigurationError, match="OARLOCK_NAME and ETCD_NAME say different things"):
        load({}, {"OARLOCK_NAME": "a", "ETCD_NAME": "b"})


def test_the_file_can_be_named_in_the_environment(tmp_path: Path) -> None:
    file = write(tmp_path, "[initial-cluster]\na = 'http://a:1'\nb = ['http://b:1', 'http://b:2']\n")
    loaded = load({}, {"OARLOCK_CONFIG_FILE": file})
    assert loaded.config.initial_cluster == (("a", ("http://a:1",)), ("b", ("http://b:1", "http://b:2")))


@pytest.mark.parametrize(
    ("flags", "environ", "says"),
    [
        ({"nme": "x"}, {}, r"unknown flag --nme \(did you mean --name\?\)"),
        ({}, {"OARLOCK_ELECTION_TIMOUT": "1"}, r"OARLOCK_ELECTION_TIMOUT .*did you mean OARLOCK_ELECTION_TIMEOUT"),
        ({"max-txn-ops": "high"}, {}, r"max-txn-ops \(from flag --max-txn-ops\): 'high' is not a whole number"),
        ({"max-txn-ops": "100001"}, {}, "out of range: 1 to 100000"),
        ({"cluster-id": "xyz"}, {}, "hexadecimal"),
        ({"storage": "bolt"}, {}, "'bolt' is none of lmdb, memory"),
        ({"max-request-bytes": "1023"}, {}, "out of range"),
        ({"snapshot-count": "0"}, {}, "at least 1"),
        ({"election-timeout": "50001"}, {}, "out of range"),
        ({"config-file": ""}, {}, "names no file"),
        ({"config-file": "/nonexistent/x.toml"}, {}, "cannot read /nonexistent/x.toml .*No such file"),
        ({"wal-dir": "/fast"}, {}, "does not have this option of etcd"),
        ({}, {"ETCD_ENABLE_V2": "true"}, "does not have this option of etcd"),
    ],
)
def test_what_is_wrong_is_named(flags: dict[str, str], environ: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigurationError, match=says):
        load(flags, environ)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("nam = 'x'", r"unknown key nam in .*did you mean name"),
        ("config-file = 'x'", "unknown key config-file"),
        ("[member]\nname = 'x'", "unknown key member"),
        ("name = ", "not valid TOML"),
        ("name = 1", "is not a text"),
        ("pre-vote = 'maybe'", "true or false"),
        ("name = '\\u0000'", "name"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=says):
        load({"config-file": write(tmp_path, text if "\\u" not in text else 'name = "a\\u0000b"')}, {})


def test_an_enormous_file_is_refused(tmp_path: Path) -> None:
    body = 'name = "x"\n'
    file = write(tmp_path, body + "#" * (CONFIG_FILE_BYTES_MAX - len(body)))
    assert load({"config-file": file}, {}).config.name == "x"
    file = write(tmp_path, body + "#" * (CONFIG_FILE_BYTES_MAX - len(body) + 1))
    with pytest.raises(ConfigurationError, match="at most"):
        load({"config-file": file}, {})


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_bytes(b"name = '\xff'")
    with pytest.raises(ConfigurationError, match="not valid TOML"):
        load({"config-file": str(file)}, {})


def test_kubernetes_service_variables_are_not_options() -> None:
    environ = {
        "OARLOCK_SERVICE_HOST": "10.0.0.1",
        "OARLOCK_SERVICE_PORT_CLIENT": "2379",
        "OARLOCK_PORT": "tcp://10.0.0.1:2379",
        "OARLOCK_PORT_2379_TCP_ADDR": "10.0.0.1",
        "OARLOCK_HEADLESS_SERVICE_HOST": "10.0.0.1",
        "ETCD_PORT_2379_TCP": "tcp://10.0.0.1:2379",
    }
    assert load({}, environ).ignored == ()


def test_empty_variables_count_as_not_given_and_foreign_ones_are_reported() -> None:
    loaded = load({}, {"OARLOCK_NAME": "", "ETCD_UNSUPPORTED_ARCH": "arm64", "ETCD_LOGGER": "zap"})
    assert not loaded.given("name")
    assert any("ETCD_UNSUPPORTED_ARCH" in line for line in loaded.ignored)
    assert any("ETCD_LOGGER" in line for line in loaded.ignored)


@pytest.mark.parametrize("name", sorted(ETCD_ONLY))
def test_flags_of_etcd_are_accepted_when_they_ask_for_nothing(name: str) -> None:
    assert name not in BY_NAME
    for neutral in ETCD_ONLY[name]:
        assert load({name: neutral}, {}).ignored
    with pytest.raises(ConfigurationError, match=f"{name} .*does not have this option"):
        load({name: "something"}, {})


def test_config_show_prints_values_and_origins() -> None:
    loaded = load({"name": "n1"}, {"ETCD_PRE_VOTE": "false"})
    lines = show.table(loaded, validate(loaded), origin=True).splitlines()
    assert len(lines) == len(OPTIONS)
    assert any(line.split() == ["name", "=", "n1", "#", "flag", "--name"] for line in lines)
    assert any(line.split() == ["pre-vote", "=", "false", "#", "environment", "ETCD_PRE_VOTE"] for line in lines)
    document = json.loads(show.as_json(loaded, validate(loaded), origin=True))
    assert document["name"] == {"value": "n1", "origin": "flag", "detail": "--name"}
    assert document["data-dir"] == {"value": "n1.oarlock", "origin": "default", "detail": ""}
    assert json.loads(show.as_json(loaded, validate(loaded), origin=False))["pre-vote"] is False
