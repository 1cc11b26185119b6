"""Rules between options."""

from __future__ import annotations

import pytest

from oarlock.config import load, validate
from oarlock.config.validate import MEMBERS_MAX
from oarlock.config.values import MEMBER_NAME_BYTES_MAX, URLS_MAX
from oarlock.errors import ConfigurationError
from oarlock.node.replica import directory
from oarlock.raft import types

THREE = "n1=http://h1:2380,n2=http://h2:2380,n3=http://h3:2380"
GOOD = {
    "name": "n1",
    "initial-cluster": THREE,
    "initial-advertise-peer-urls": "http://h1:2380",
    "listen-peer-urls": "http://0.0.0.0:2380",
    "listen-client-urls": "http://0.0.0.0:2379",
    "advertise-client-urls": "http://h1:2379",
}
HTTPS = {"listen-client-urls": "https://a:1", "cert-file": "c", "key-file": "k"}
PEER_HTTPS = {"listen-peer-urls": "https://a:1", "peer-cert-file": "c", "peer-key-file": "k"}


def test_a_good_configuration_passes() -> None:
    config = validate(load(GOOD, {}))
    assert [name for name, _ in config.initial_cluster] == ["n1", "n2", "n3"]


def test_values_follow_from_others() -> None:
    config = validate(load({"name": "solo"}, {}))
    assert config.data_dir == "solo.oarlock"
    assert config.initial_cluster == (("solo", ("http://localhost:2380",)),)


def test_the_bounds_are_those_of_the_parts_that_hold_them() -> None:
    """`oarlock.config` imports nothing of ours, so the numbers are written twice."""
    assert MEMBERS_MAX == types.MEMBERS_MAX
    assert URLS_MAX <= directory.URLS_MAX
    assert MEMBER_NAME_BYTES_MAX <= directory.NAME_CHARS_MAX


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"heartbeat-interval": "201"}, "at least 5 times heartbeat-interval, .*give --election-timeout=1005 or more"),
        ({"election-timeout": "499"}, r"499 ms \(from flag --election-timeout\)"),
        ({"advertise-client-urls": None}, "advertise-client-urls is required when listen-client-urls is given"),
        ({"initial-advertise-peer-urls": None}, "initial-advertise-peer-urls is required"),
        ({"name": "n4"}, "does not contain this member's name 'n4': it has n1, n2, n3"),
        ({"name": ""}, "must not be empty"),
        ({"name": "a=b"}, "equals sign"),
        ({"initial-advertise-peer-urls": "http://h9:2380"}, "they must be the same"),
        ({"initial-cluster": THREE + ",n4=http://h2:2380"}, "http://h2:2380 to both n2 and n4"),
        ({"cluster-id": "cdf818194e3a8c32"}, "initial-cluster-state is new"),
        ({"initial-cluster-token": ""}, "token must not be empty"),
        ({"advertise-client-urls": "http://0.0.0.0:2379"}, "an address to listen on"),
        ({"advertise-client-urls": "http://[::]:2379"}, "an address to listen on"),
        ({"listen-client-urls": "http://0.0.0.0:2380"}, "both want 0.0.0.0:2380"),
        ({"listen-client-urls": ""}, "at least one URL"),
        ({"listen-client-urls": "http://a:1,https://a:2", "cert-file": "c", "key-file": "k"}, "mixes http and https"),
        ({"listen-client-urls": "https://a:1"}, "needs cert-file and key-file"),
        ({"cert-file": "c"}, "cert-file is given without key-file"),
        ({"peer-key-file": "k"}, "peer-key-file is given without peer-cert-file"),
        ({"cert-file": "c", "key-file": "k"}, "cert-file is given, but listen-client-urls is http"),
        ({"client-cert-auth": "true"}, "nobody could be asked"),
        ({**HTTPS, "client-cert-auth": "true"}, "client-cert-auth is on, which needs trusted-ca-file"),
        ({"peer-client-cert-auth": "true"}, "nobody could be asked"),
        ({"trusted-ca-file": "ca"}, "trusted-ca-file is given without cert-file"),
        (
            {"listen-peer-urls": "https://a:1", "peer-cert-file": "c", "peer-key-file": "k"},
            "peer-cert-file is given without peer-trusted-ca-file",
        ),
        (
            {**PEER_HTTPS, "peer-trusted-ca-file": "ca"},
            "must both be http or both be https",
        ),
    ],
)
def test_a_broken_rule_is_named(changes: dict[str, str | None], says: str) -> None:
    flags = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    with pytest.raises(ConfigurationError, match=says):
        validate(load(flags, {}))


def test_a_cluster_has_a_bound() -> None:
    members = [f"n{number}=http://h{number}:2380" for number in range(1, MEMBERS_MAX + 2)]
    validate(load({**GOOD, "initial-cluster": ",".join(members[:-1])}, {}))
    with pytest.raises(ConfigurationError, match="at most 64"):
        validate(load({**GOOD, "initial-cluster": ",".join(members)}, {}))


def test_the_least_election_timeout_passes() -> None:
    assert validate(load({"heartbeat-interval": "100", "election-timeout": "500"}, {})).election_timeout == 500


def test_port_0_listens_anywhere_and_advertises_nothing() -> None:
    with pytest.raises(ConfigurationError, match="port 0"):
        validate(load({"initial-advertise-peer-urls": "http://localhost:0"}, {}))
    validate(load({"listen-client-urls": "http://localhost:0", "advertise-client-urls": "http://localhost:0"}, {}))
