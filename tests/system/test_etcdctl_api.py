"""Stock clients against the API over one in-memory machine: etcdctl 3.4 and 3.5, grpcio, h2load; with and without
uvloop."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from oarlock.api import proto

ROOT = Path(__file__).parents[2]
BESIDE = Path(sys.executable).with_name("etcdctl")
ETCDCTLS = sorted({str(p) for p in (BESIDE, Path("/usr/bin/etcdctl")) if p.exists()})


@pytest.fixture(params=["asyncio", "uvloop", "h2"])
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    command = [sys.executable, str(ROOT / "tests" / "support" / "single_backend.py")]
    if request.param == "uvloop":
        pytest.importorskip("uvloop")
        command.append("--uvloop")
    if request.param == "h2":
        command += ["--engine", "h2"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip().removeprefix("http://")
    finally:
        process.terminate()
        process.wait(10)
        process.stdout.close()


@pytest.mark.parametrize(
    "etcdctl", ETCDCTLS or [pytest.param("", marks=pytest.mark.skip(reason="no etcdctl is installed"))]
)
@pytest.mark.parametrize("scheme", ["", "http://"], ids=["bare", "url"])
def test_etcdctl(address: str, etcdctl: str, scheme: str) -> None:
    """With a URL as its endpoint, etcdctl 3.4 sends a URL for an `:authority` in some of its calls."""

    def ctl(*arguments: str, given: str = "", fails: bool = False) -> str:
        done = subprocess.run(
            [etcdctl, f"--endpoints={scheme}{address}", *arguments],
            input=given,
            text=True,
            capture_output=True,
            timeout=120,
            env={**os.environ, "ETCDCTL_API": "3"},
            check=False,
        )
        assert (done.returncode != 0) == fails, f"{arguments}: {done.stdout}{done.stderr}"
        return done.stderr if fails else done.stdout

    assert ctl("put", "a1", "one") == "OK\n"
    assert ctl("put", "a1", "uno", "--prev-kv") == "OK\na1\none\n"
    for key in ("a2", "a3", "b1"):
        ctl("put", key, f"value of {key}")
    assert ctl("get", "a1") == "a1\nuno\n"
    assert ctl("get", "a1", "--print-value-only") == "uno\n"
    assert ctl("get", "a1", "--rev=2") == "a1\none\n"
    assert ctl("get", "a", "--prefix", "--keys-only").split() == ["a1", "a2", "a3"]
    assert ctl("get", "a2", "b").splitlines()[::2] == ["a2", "a3"]
    assert ctl("get", "--from-key", "a3", "--keys-only").split() == ["a3", "b1"]
    assert ctl("get", "", "--prefix", "--limit=2", "--keys-only").split() == ["a1", "a2"]
    assert ctl("get", "a", "--prefix", "--order=DESCEND", "--sort-by=KEY", "--keys-only").split() == ["a3", "a2", "a1"]
    assert ctl("get", "a", "--prefix", "--order=DESCEND", "--sort-by=VERSION", "--keys-only").split()[0] == "a1"
    assert ctl("get", "a1", "--consistency=s") == "a1\nuno\n"
    shown = json.loads(ctl("get", "a", "--prefix", "-w", "json"))
    assert shown["count"] == 3
    assert shown["header"]["revision"] == 6
    assert ctl("get", "missing") == ""
    assert "required revision is a future revision" in ctl("get", "a1", "--rev=99", fails=True)
    assert "SUCCESS" in ctl("txn", "-i", given='value("a1") = "uno"\n\nput a1 "eins"\nget a2\n\nput a1 nope\n\n')
    assert ctl("get", "a1", "--print-value-only") == "eins\n"
    assert "SUCCESS" in ctl("txn", given='mod("missing") = "0"\n\ndel a2\n\nget a1\n\n')
    assert "FAILURE" in ctl("txn", given='version("a1") > "99"\n\nput x y\n\nget a1\n\n')
    assert "duplicate key" in ctl("txn", given='version("a1") > "0"\n\nput x y\nput x z\n\n\n', fails=True)
    assert ctl("del", "a3") == "1\n"
    assert ctl("del", "b", "--prefix", "--prev-kv") == "1\nb1\nvalue of b1\n"
    assert ctl("del", "nothing") == "0\n"
    assert "compacted revision 5" in ctl("compaction", "5")
    assert "has been compacted" in ctl("compaction", "5", fails=True)
    assert "has been compacted" in ctl("get", "a1", "--rev=2", fails=True)
    assert "8e9e05c52164694d, started, default, http://localhost:2380, http://localhost:2379, false" in ctl(
        "member", "list"
    )
    assert "true" in ctl("endpoint", "status", "-w", "table")
    ctl("endpoint", "health")  # its verdict is the exit status
    assert "bad leader transferee" in ctl("move-leader", "77", fails=True)
    assert "Leadership transferred" in ctl("move-leader", "8e9e05c52164694d")
    assert "granted with TTL(60s)" in ctl("lease", "grant", "60")
    big = ctl("put", "big", given="x" * 1_600_000, fails=True)
    assert "request is too large" in big


def test_grpcio(address: str) -> None:
    grpc = pytest.importorskip("grpc")
    put, put_answer = proto.message("etcdserverpb.PutRequest"), proto.message("etcdserverpb.PutResponse")
    get, get_answer = proto.message("etcdserverpb.RangeRequest"), proto.message("etcdserverpb.RangeResponse")
    with grpc.insecure_channel(address, options=[("grpc.max_receive_message_length", -1)]) as channel:

        def rpc(name: str, answer: type) -> grpc.UnaryUnaryMultiCallable:
            return channel.unary_unary(
                f"/etcdserverpb.KV/{name}",
                request_serializer=lambda m: m.SerializeToString(),
                response_deserializer=answer.FromString,
            )  # type: ignore[attr-defined]

        puts = [
            rpc("Put", put_answer).future(put(key=b"k%04d" % n, value=b"v" * 30_000), timeout=120) for n in range(300)
        ]
        assert sorted(p.result().header.revision for p in puts) == list(range(2, 302))
        everything = rpc("Range", get_answer)(get(key=b"\0", range_end=b"\0"), timeout=120)
        assert (everything.count, len(everything.kvs)) == (300, 300)
        with pytest.raises(grpc.RpcError) as refused:
            rpc("Put", put_answer)(put(), timeout=120)
        assert (refused.value.code(), refused.value.details()) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "etcdserver: key is not provided",
        )


@pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load is not installed")
def test_h2load(address: str, tmp_path: Path) -> None:
    message = b"\x0a\x01k\x12\x01v"
    (tmp_path / "put").write_bytes(b"\0" + len(message).to_bytes(4, "big") + message)
    done = subprocess.run(
        [
            "h2load",
            "-n",
            "2000",
            "-c",
            "8",
            "-m",
            "16",
            "-d",
            str(tmp_path / "put"),
            "-H",
            "content-type: application/grpc",
            "-H",
            "te: trailers",
            f"http://{address}/etcdserverpb.KV/Put",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "2000 succeeded, 0 failed, 0 errored, 0 timeout" in done.stdout
