"""The JSON gateway of three members as people use it: curl, `etcd3gw`, and schemathesis on our description."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.clusters import cluster_of, find_leader, wait_until

from oarlock.api.etcd import ETCD_VERSION
from oarlock.api.gateway import description
from oarlock.cli.local_cluster import LocalCluster

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]
CHEAP = "--bcrypt-cost=4"
UNKNOWN = 2  # what etcd has no better code for: elections without a leader, for one
LEFT_OUT = (
    "/v3/lock/lock", "/v3/election/campaign", "/v3/auth/enable", "/v3/maintenance/alarm", "/v3/cluster/member/",
)  # fmt: skip
"""What waits for long, or changes what everything else answers."""


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with cluster_of(3, CHEAP) as running:
        yield running


def follower(cluster: LocalCluster) -> str:
    leader = find_leader(cluster)
    return next(member.endpoint for member in cluster.members if member is not leader)


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def curl(endpoint: str, path: str, body: Any = None, *flags: str) -> tuple[int, str]:
    """(status, body) as the program shows them."""
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    data = ["-d", body if isinstance(body, str) else json.dumps(body)] if body is not None else []
    done = subprocess.run(
        ["curl", "-sS", "-m", "60", "-w", "\n%{http_code}", *flags, *data, f"http://{endpoint}{path}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    text, _, status = done.stdout.rpartition("\n")
    return int(status), text


def post(endpoint: str, path: str, body: Any, token: str = "") -> tuple[int, Any]:
    status, text = curl(endpoint, path, body, *(["-H", f"Authorization: {token}"] if token else []))
    return status, json.loads(text)


def test_curl(cluster: LocalCluster) -> None:
    endpoint = follower(cluster)
    others = [member.endpoint for member in cluster.members]
    assert post(endpoint, "/v3/kv/put", {"key": b64("a"), "value": b64("1")})[0] == 200
    for other in others:
        status, answer = post(other, "/v3/kv/range", {"key": b64("a")})
        assert (status, answer["kvs"][0]["value"]) == (200, b64("1")), "a read of any member is linearizable"
        assert curl(other, "/health") == (200, '{"health":"true","reason":""}')
        assert curl(other, "/livez") == (200, "ok\n")
        assert curl(other, "/readyz?verbose")[1].endswith("ok\n")
        assert json.loads(curl(other, "/version")[1])["etcdserver"] == "3.5.0"
        metrics = curl(other, "/metrics")[1]
        assert "etcd_server_has_leader 1.0" in metrics
        assert "etcd_server_proposals_pending 0.0" in metrics
        fsyncs = re.search(
            r'^etcd_disk_wal_fsync_duration_seconds_bucket{le="\+Inf"} ([0-9.]+)$', metrics, re.MULTILINE
        )
        assert fsyncs is not None
        assert float(fsyncs[1]) > 0
        assert json.loads(curl(other, "/openapi.json")[1])["openapi"] == "3.1.0"

    watching = subprocess.Popen(
        ["curl", "-sSN", f"http://{endpoint}/v3/watch", "-d", json.dumps({"create_request": {"key": b64("w")}})],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert watching.stdout is not None
        assert json.loads(watching.stdout.readline())["result"]["created"] is True
        post(others[0], "/v3/kv/put", {"key": b64("w"), "value": b64("seen")})
        event = json.loads(watching.stdout.readline())["result"]["events"][0]
        assert event["kv"]["value"] == b64("seen")
    finally:
        watching.kill()
        watching.wait(120)

    # -- with authentication
    for user in ("root", "app"):
        assert post(endpoint, "/v3/auth/user/add", {"name": user, "password": "pw"})[0] == 200
    assert post(endpoint, "/v3/auth/role/add", {"name": "app"})[0] == 200
    permission = {"permType": "READWRITE", "key": b64("a"), "range_end": b64("b")}
    assert post(endpoint, "/v3/auth/role/grant", {"name": "app", "perm": permission})[0] == 200
    assert post(endpoint, "/v3/auth/user/grant", {"user": "app", "role": "app"})[0] == 200
    assert post(endpoint, "/v3/auth/user/grant", {"user": "root", "role": "root"})[0] == 200
    assert post(endpoint, "/v3/auth/enable", {})[0] == 200
    status, refused = post(endpoint, "/v3/kv/range", {"key": b64("a")})
    assert (status, refused["error"]) == (400, "etcdserver: user name is empty")
    status, shown = post(endpoint, "/v3/auth/authenticate", {"name": "app", "password": "pw"})
    token = shown["token"]
    for other in others:
        assert post(other, "/v3/kv/put", {"key": b64("a"), "value": ""}, token)[0] == 200, "any member knows the token"
        assert post(other, "/v3/kv/put", {"key": b64("z"), "value": ""}, token)[0] == 403
        assert post(other, "/v3/kv/put", {"key": b64("a")}, "nonsense")[0] == 401
    root = post(endpoint, "/v3/auth/authenticate", {"name": "root", "password": "pw"})[1]["token"]
    assert post(endpoint, "/v3/auth/disable", {}, root)[0] == 200
    assert post(endpoint, "/v3/kv/range", {"key": b64("a")})[0] == 200

    # -- without a majority
    for member in cluster.members:
        if member.endpoint != endpoint:
            member.kill()
    wait_until(lambda: curl(endpoint, "/readyz/linearizable_read")[0] == 503, 120, "it says that it is not ready")
    assert curl(endpoint, "/livez")[0] == 200, "but it lives"


def test_etcd3gw(cluster: LocalCluster) -> None:
    library = pytest.importorskip("etcd3gw")
    host, _, port = follower(cluster).partition(":")
    client = library.client(host=host, port=int(port))
    assert "version" in client.status()
    assert len(client.members()) == 3
    assert client.put("k", "v")
    assert client.get("k") == [b"v"]
    assert client.create("once", "1")
    assert not client.create("once", "2")
    assert client.replace("once", "1", "2")
    assert client.get_prefix("on")[0][0] == b"2"
    lease = client.lease(ttl=60)
    client.put("leased", "x", lease=lease)
    assert lease.ttl() > 0
    assert lease.refresh() == 60
    assert lease.keys() == [b"leased"]
    assert lease.revoke()
    assert client.get("leased") == []
    lock, other = client.lock("l", ttl=60), client.lock("l", ttl=60)
    assert lock.acquire()
    assert not other.acquire()
    assert lock.is_acquired()
    assert lock.release()
    assert other.acquire()
    done = client.transaction(
        {
            "compare": [{"key": b64("k"), "result": "EQUAL", "target": "VALUE", "value": b64("v")}],
            "success": [{"request_put": {"key": b64("k"), "value": b64("w")}}],
        }
    )
    assert done["succeeded"] is True
    assert client.get("k") == [b"w"]
    # The library does not say when it watches: it asks for what has happened since.
    revision = int(client.status()["header"]["revision"])
    events, cancel = client.watch_prefix("seen/", start_revision=revision + 1)
    writer = threading.Thread(target=lambda: [client.put(f"seen/{n}", str(n)) for n in range(3)])
    writer.start()
    values = [next(events)["kv"]["value"] for _ in range(3)]
    assert values == [b"0", b"1", b"2"]
    cancel()
    writer.join(120)
    assert client.delete_prefix("seen/")
    assert client.delete("k")


@pytest.mark.slow
def test_schemathesis() -> None:
    """Requests made from the description, right and wrong ones: never a fault of ours, never an answer that it does not
    describe. What ends or stops a member is left out, and so are streams, which would not end."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, settings
    from schemathesis.specs.openapi.checks import response_schema_conformance, status_code_conformance

    document = description(ETCD_VERSION)
    for path, item in list(document["paths"].items()):
        if "one JSON message a line" in item["post"]["summary"] or path.startswith(LEFT_OUT):
            del document["paths"][path]
    with cluster_of(1, CHEAP) as cluster:
        base = f"http://{cluster.members[0].endpoint}"
        schema = schemathesis.openapi.from_dict(document)
        count = 0
        for found in schema.get_all_operations():
            operation = found.ok()

            @settings(
                max_examples=12, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )  # fmt: skip
            @_given(operation)
            def one(case: Any) -> None:
                nonlocal count
                response = case.call(base_url=base, timeout=120)
                count += 1
                assert response.status_code != 500 or response.json()["code"] == UNKNOWN, response.text
                case.validate_response(response, checks=[response_schema_conformance, status_code_conformance])

            one()
        assert count > 200
        assert curl(cluster.members[0].endpoint, "/health")[0] == 200


def _given(operation: Any) -> Any:
    from hypothesis import given
    from schemathesis import GenerationMode

    right, wrong = (operation.as_strategy(generation_mode=mode) for mode in GenerationMode)
    return given(case=right | wrong)
