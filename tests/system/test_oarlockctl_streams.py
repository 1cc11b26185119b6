"""`oarlockctl` while things happen: watches, leases, locks, elections, mirrors, members that go away, TLS, signals."""

from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.support.ctl import OARLOCKCTL, environment
from tests.support.etcd_wire import EtcdClient
from tests.system.test_tls import Server, of, pki, served

from oarlock.cli.local_cluster import LocalCluster, etcd_program, oarlock_program, wait_until

__all__ = ["pki"]  # fixture
pytestmark = pytest.mark.timeout(400)
SECONDS = 120.0


class Running:
    """A command that runs; what it prints is collected."""

    def __init__(self, endpoint: str, *arguments: str, **variables: str) -> None:
        command = [*OARLOCKCTL, f"--endpoints={endpoint}", "--command-timeout=60s", *arguments]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=pipe, env={**environment(), **variables}
        )
        self.out = b""
        self.err = b""
        self._threads = [threading.Thread(target=self._read, args=(name,)) for name in ("out", "err")]
        for thread in self._threads:
            thread.start()

    def _read(self, name: str) -> None:
        stream = self.process.stdout if name == "out" else self.process.stderr
        assert stream is not None
        while data := os.read(stream.fileno(), 65536):
            setattr(self, name, getattr(self, name) + data)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.end()

    def type(self, text: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def until(self, condition: Callable[[], bool], what: str) -> None:
        wait_until(lambda: condition() or self.process.poll() is not None, SECONDS, what)
        assert condition(), f"{what}: {self.out!r} {self.err!r}"

    def prints(self, text: bytes) -> None:
        self.until(lambda: text in self.out, f"{text!r} on stdout")

    def signal(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.end()

    def end(self) -> int:
        """The exit code, once it has ended."""
        code = self.process.wait(SECONDS)
        for thread in self._threads:
            thread.join(SECONDS)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
        return code


def once(endpoint: str, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [*OARLOCKCTL, f"--endpoints={endpoint}", "--command-timeout=60s", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, timeout=SECONDS, check=False, env=environment())


@pytest.fixture(scope="module", params=["oarlock", "etcd"])
def endpoint(request: pytest.FixtureRequest) -> Iterator[str]:
    with LocalCluster({"oarlock": oarlock_program, "etcd": etcd_program}[request.param](), 1) as cluster:
        cluster.start()
        yield cluster.endpoints[0]


@pytest.fixture
def client(endpoint: str) -> Iterator[EtcdClient]:
    with EtcdClient(endpoint, timeout=60) as connected:
        yield connected


def put_until(client: EtcdClient, key: bytes, seen: Callable[[], bool]) -> None:
    """Put until a watch that was just begun shows it."""
    deadline = time.monotonic() + SECONDS
    while not seen():
        assert time.monotonic() < deadline, "the watch shows nothing"
        client.put(key, b"begun")
        time.sleep(0.05)


def test_a_watch_prints_changes(endpoint: str, client: EtcdClient) -> None:
    revision = client.put(b"w/1", b"first").header.revision
    client.put(b"w/1", b"second")
    client.delete(b"w/1")
    with Running(endpoint, "watch", "w/", "--prefix", f"--rev={revision}", "--prev-kv") as watch:
        watch.prints(b"PUT\nw/1\nfirst\nPUT\nw/1\nfirst\nw/1\nsecond\nDELETE\nw/1\nsecond\nw/1\n\n")
        client.put(b"w/2", b"later")
        watch.prints(b"PUT\nw/2\nlater\n")
        assert watch.signal(signal.SIGINT) == -signal.SIGINT
        assert watch.err == b""


def test_formats_of_a_watch(endpoint: str, client: EtcdClient) -> None:
    revision = client.put(b"f\xff\n", b"<>").header.revision
    start = f"--rev={revision}"
    with Running(endpoint, "watch", "f", "g", start, "-w", "json") as watch:
        watch.prints(b"}\n")
        shown = json.loads(watch.out)
    assert shown["Header"]["revision"] == revision and (shown["Canceled"], shown["Created"]) == (False, False)
    assert base64.b64decode(shown["Events"][0]["kv"]["key"]) == b"f\xff\n"
    with Running(endpoint, "watch", "f", "--prefix", start, "-w", "fields") as watch:
        watch.prints(b'"Type" : PUT\n"Key" : "f\\xff\\n"\n')
        watch.prints(b'"Value" : "<>"\n"Lease" : 0\n')
    with Running(endpoint, "watch", "f", "--prefix", start, "--hex") as watch:
        watch.prints(b"PUT\n\\x66\\xff\\x0a\n\\x3c\\x3e\n")


def test_a_watch_runs_a_command(endpoint: str, client: EtcdClient) -> None:
    revision = client.put(b"c/key", b'a "value"').header.revision
    client.delete(b"c/key")
    script = "echo $ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY $ETCD_WATCH_VALUE $ETCD_WATCH_REVISION; cat"
    with Running(endpoint, "watch", "c/key", f"--rev={revision}", "--", "sh", "-c", script) as watch:
        # both changes may come in one answer, whose header has the later revision
        watch.prints(b'"PUT" "c/key" "a \\"value\\"" ')
        watch.prints(b'"DELETE" "c/key" "" %d\n' % (revision + 1))
    done = once(endpoint, "watch", "c/key", f"--rev={revision}", "--", "false")
    assert (done.returncode, done.stderr) == (1, b'command ["false"] error (exit status 1)\n')
    done = once(endpoint, "watch", "c/key", f"--rev={revision}", "--", "no-such-command")
    assert done.returncode == 1 and b"executable file not found in $PATH" in done.stderr


def test_watches_from_stdin(endpoint: str, client: EtcdClient) -> None:
    revision = client.put(b"i/1", b"one").header.revision
    with Running(endpoint, "watch", "-i") as watch:
        watch.type('nonsense\nwatch\nwatch "i/1 --prefix\nwatch i/1 i/2 --prefix\nwatch --help\n')
        watch.until(lambda: watch.err.count(b"\n") >= 5, "five complaints")
        assert b"Invalid command nonsense (only support watch)" in watch.err
        watch.type(f'watch "i/" --prefix --rev={revision}\n')
        watch.prints(b"PUT\ni/1\none\n")
        watch.type(f"watch i/1 --rev={revision} -- echo ran\nprogress\n")
        watch.prints(b"ran\n")
        watch.prints(b"progress notify: ")
        client.put(b"i/2", b"two")
        watch.prints(b"PUT\ni/2\ntwo\n")
        assert watch.process.stdin is not None
        watch.process.stdin.close()
        watch.process.stdin = open(os.devnull, "wb")  # noqa: SIM115 - closed by `end`
        assert watch.end() == 3
        assert watch.err.endswith(b"Error: error reading watch request line: EOF\n")


def test_the_environment_says_what_to_watch(endpoint: str, client: EtcdClient) -> None:
    with Running(endpoint, "watch", ETCDCTL_WATCH_KEY="env/", ETCDCTL_WATCH_RANGE_END="env0") as watch:
        put_until(client, b"env/1", lambda: b"env/1\nbegun\n" in watch.out)


def test_a_compacted_watch_ends(endpoint: str, client: EtcdClient) -> None:
    for _ in range(3):
        revision = client.put(b"compacted", b"1").header.revision
    client.call("Compact", revision=revision)
    done = once(endpoint, "watch", "compacted", "--rev=1")
    assert done.returncode == 5
    assert b"watch was canceled (etcdserver: mvcc: required revision has been compacted)\n" in done.stderr
    assert b"Error: watch is canceled by the server\n" in done.stderr


def test_a_reader_that_goes_away_ends_a_watch_without_a_word(endpoint: str, client: EtcdClient) -> None:
    with Running(endpoint, "watch", "gone", "--rev=1") as watch:
        assert watch.process.stdout is not None
        os.dup2(os.open(os.devnull, os.O_RDONLY), watch.process.stdout.fileno())  # closes the pipe's only reader
        deadline = time.monotonic() + SECONDS
        while watch.process.poll() is None and time.monotonic() < deadline:
            client.put(b"gone", b"x" * 100_000)
            time.sleep(0.05)
        assert watch.process.wait(SECONDS) in (-signal.SIGPIPE, 5)  # 5: what came before was compacted
        assert b"Traceback" not in watch.err


def test_a_stdout_that_takes_nothing(endpoint: str) -> None:
    once(endpoint, "put", "full", "1")
    shell = ["sh", "-c", 'exec "$@" > /dev/full', "sh", *OARLOCKCTL, f"--endpoints={endpoint}", "--command-timeout=60s"]
    done = subprocess.run([*shell, "get", "full"], capture_output=True, check=False, env=environment())
    assert (done.returncode, done.stderr) == (5, b"Error: write /dev/stdout: no space left on device\n")
    shell[2] = 'exec "$@" <&- >&- 2>&-'
    assert subprocess.run([*shell, "get", "full"], check=False, env=environment()).returncode == 0
    assert subprocess.run([*shell, "put", "full"], check=False, env=environment()).returncode == 128


def test_a_lease_is_kept_alive(endpoint: str, client: EtcdClient) -> None:
    lease = client.lease_grant(6)
    with Running(endpoint, "lease", "keep-alive", f"{lease:x}") as keeper:
        keeper.until(lambda: keeper.out.count(b"keepalived with TTL(6)\n") >= 3, "three renewals")
        client.call("LeaseRevoke", ID=lease)
        keeper.prints(f"lease {lease:016x} expired or revoked.\n".encode())
        assert keeper.end() == 0
    done = once(endpoint, "lease", "timetolive", f"{client.lease_grant(500):x}")
    assert b"granted with TTL(500s), remaining(" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_lock_is_held_and_let_go(endpoint: str, client: EtcdClient, number: signal.Signals) -> None:
    with Running(endpoint, "lock", "held") as first, Running(endpoint, "lock", "held") as second:
        first.until(lambda: bool(first.out or second.out), "one has it")
        holder, waiter = (first, second) if first.out else (second, first)
        assert holder.out.startswith(b"held/")
        wait_until(lambda: client.get(b"held/", range_end=b"held0").count == 2, SECONDS, "the other queues")
        assert holder.signal(number) == 0
        waiter.prints(b"held/")
        assert waiter.signal(number) == 0
        assert (first.err, second.err) == (b"", b"")
    assert client.get(b"held/", range_end=b"held0").count == 0


def test_who_waits_for_a_lock_may_give_up(endpoint: str, client: EtcdClient) -> None:
    with Running(endpoint, "lock", "busy") as holder:
        holder.prints(b"busy/")
        with Running(endpoint, "lock", "busy", "true") as waiter:
            wait_until(lambda: client.get(b"busy/", range_end=b"busy0").count == 2, SECONDS, "it queues")
            assert waiter.signal(signal.SIGINT) == 1
            assert waiter.err == b"Error: context canceled\n"
        wait_until(lambda: client.get(b"busy/", range_end=b"busy0").count == 1, SECONDS, "its place is gone")


def test_a_lock_that_is_lost_ends_the_command(endpoint: str, client: EtcdClient) -> None:
    with Running(endpoint, "lock", "lost", "--ttl=3", "-w", "json") as holder:
        holder.prints(b"\n")
        lease = json.loads(holder.out)["kvs"][0]["lease"]
        client.call("LeaseRevoke", ID=lease)
        assert holder.end() == 1
        assert holder.err.startswith(b"Error: session expired\n")


def test_a_lease_that_is_lost_is_told_while_the_command_runs(endpoint: str, client: EtcdClient) -> None:
    script = "echo $ETCD_LOCK_KEY; while :; do sleep 0.1; done"
    with Running(endpoint, "lock", "warned", "--ttl=3", "--", "sh", "-c", script) as holder:
        holder.prints(b"warned/")
        client.call("LeaseRevoke", ID=int(holder.out.split()[0].partition(b"/")[2], 16))
        holder.until(lambda: b"the lock's lease is lost" in holder.err, "a warning")
        assert holder.signal(signal.SIGTERM) == 255
        assert holder.err.endswith(b"Error: signal: terminated\n")


def test_a_command_under_a_lock_is_ended_by_sigterm(endpoint: str, client: EtcdClient) -> None:
    script = "trap 'echo ending; exit 9' TERM; echo begun; while :; do sleep 0.1; done"
    with Running(endpoint, "lock", "command", "--", "sh", "-c", script) as holder:
        holder.prints(b"begun")
        assert holder.signal(signal.SIGTERM) == 9
        assert b"ending" in holder.out and holder.err == b"Error: exit status 9\n"
    assert client.get(b"command/", range_end=b"command0").count == 0


def test_an_election(endpoint: str) -> None:
    with Running(endpoint, "elect", "-l", "seat") as observer, Running(endpoint, "elect", "seat", "one") as one:
        one.prints(b"seat/")
        observer.prints(b"one\n")
        with Running(endpoint, "elect", "seat", "two") as two:
            assert one.signal(signal.SIGINT) == 0
            two.prints(b"\ntwo\n")
            observer.prints(b"\ntwo\n")
            assert two.signal(signal.SIGTERM) == 0
        assert observer.signal(signal.SIGINT) == 0
        lines = observer.out.splitlines()
        assert lines[1::2] == [b"one", b"two"] and all(line.startswith(b"seat/") for line in lines[::2])


def test_odd_keys_and_values(endpoint: str) -> None:
    raw = {
        b"odd/\xff\xfe\n": b"\x01\x80\n\n",
        b"odd/ \t\"'\\": b"--flag",
        "odd/é☃".encode(): b"-",
        b"odd/-": "ü".encode(),
    }
    for key, value in raw.items():
        words = [os.fsdecode(word) for word in (key, value)]
        assert once(endpoint, "put", "--", *words).stdout == b"OK\n"
        assert once(endpoint, "get", "--", words[0]).stdout == key + b"\n" + value + b"\n"
    found = json.loads(once(endpoint, "get", "odd/", "--prefix", "--json").stdout)
    assert {base64.b64decode(kv["key"]): base64.b64decode(kv["value"]) for kv in found["kvs"]} == raw
    assert once(endpoint, "put", "odd/null", stdin=b"a\0b").stdout == b"OK\n"
    assert once(endpoint, "get", "odd/null", "--print-value-only").stdout == b"a\0b\n"
    assert once(endpoint, "del", "odd/", "--prefix").stdout == b"5\n"


def test_huge_values(endpoint: str) -> None:
    value = os.urandom(1_000_000)
    for number in range(12):
        assert once(endpoint, "put", f"huge/{number:02}", stdin=value).stdout == b"OK\n"
    found = once(endpoint, "get", "huge/", "--prefix", "--print-value-only")
    assert found.stdout == (value + b"\n") * 12
    refused = once(endpoint, "put", "huge/x", stdin=value * 2)
    assert refused.returncode == 1 and refused.stderr.startswith(b"Error: etcdserver: request is too large\n")
    assert once(endpoint, "del", "huge/", "--prefix").stdout == b"12\n"


def test_protobuf_is_the_answer_itself(endpoint: str) -> None:
    from oarlock.api import proto

    once(endpoint, "put", "pb", "1")
    answer = proto.message("etcdserverpb.RangeResponse").FromString(
        once(endpoint, "get", "pb", "-w", "protobuf").stdout
    )
    assert (answer.kvs[0].key, answer.kvs[0].value) == (b"pb", b"1")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [([], "m/"), (["--dest-prefix=copy/"], "copy/"), (["--no-dest-prefix"], "")],
    ids=["same", "other", "none"],
)
def test_a_mirror(endpoint: str, client: EtcdClient, flags: list[str], expected: str) -> None:
    client.delete(b"m/", range_end=b"m0")
    for number in range(2500):
        client.put(b"m/%04d" % number, b"%d" % number)
    with LocalCluster(oarlock_program(), 1) as destination:
        destination.start()
        with (
            EtcdClient(destination.endpoints[0], timeout=60) as there,
            Running(endpoint, "make-mirror", "--prefix=m/", *flags, destination.endpoints[0]) as mirror,
        ):
            wait_until(lambda: there.everything().count == 2500, SECONDS, "all is there")
            client.put(b"m/0001", b"changed")
            client.delete(b"m/0002")
            client.put(b"unrelated", b"x")
            client.put(b"m/last", b"x")
            wait_until(lambda: there.get(f"{expected}last".encode()).count == 1, SECONDS, "the last change is there")
            assert there.everything().count == 2500
            assert there.get(f"{expected}0001".encode()).kvs[0].value == b"changed"
            assert there.get(f"{expected}0002".encode()).count == 0
            assert mirror.signal(signal.SIGINT) == -signal.SIGINT
            assert mirror.err == b""


def test_a_snapshot(endpoint: str, tmp_path: Path) -> None:
    once(endpoint, "put", "snap", "1")
    file = tmp_path / "file"
    done = once(endpoint, "snapshot", "save", str(file))
    assert (done.returncode, done.stdout) == (0, f"Snapshot saved at {file}\n".encode())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    status = once(endpoint, "snapshot", "status", str(file), "-w", "json")
    if status.returncode:  # of a real etcd
        assert b"etcd's own database" in status.stderr
        return
    assert json.loads(status.stdout)["totalSize"] == file.stat().st_size
    shown = once(endpoint, "snapshot", "status", str(file)).stdout.decode().split(", ")
    assert len(shown) == 4
    restored = tmp_path / "restored"
    done = once(endpoint, "snapshot", "restore", str(file), f"--data-dir={restored}")
    assert done.returncode == 0 and restored.is_dir(), done
    again = once(endpoint, "snapshot", "restore", str(file), f"--data-dir={restored}")
    assert again.returncode == 1 and b"not empty" in again.stderr
    damaged = bytearray(file.read_bytes())
    damaged[600] ^= 1
    file.write_bytes(damaged)
    assert once(endpoint, "snapshot", "status", str(file)).returncode == 1


def test_members_that_go_away() -> None:
    """A watch, a holder and a waiter of a lock outlive the member that they are connected to; no change is lost."""
    with LocalCluster(oarlock_program(), 3) as cluster:
        cluster.start()
        first, others = cluster.endpoints[0], cluster.endpoints[1:]
        everywhere = ",".join([first, *others])
        with (
            EtcdClient(others[0], timeout=60) as client,
            Running(everywhere, "watch", "k", "--rev=1") as watch,
            Running(everywhere, "lock", "l", "--ttl=60") as holder,
        ):
            client.put(b"k", b"before")
            watch.prints(b"PUT\nk\nbefore\n")
            holder.prints(b"l/")
            with Running(everywhere, "lock", "l", "--ttl=60") as waiter:
                wait_until(lambda: client.get(b"l/", range_end=b"l0").count == 2, SECONDS, "it queues")
                cluster.members[0].kill()
                done = once(everywhere, "put", "k", "after", "--command-timeout=60s")
                assert done.stdout == b"OK\n", done
                watch.prints(b"PUT\nk\nafter\n")
                assert watch.out == b"PUT\nk\nbefore\nPUT\nk\nafter\n"
                assert holder.signal(signal.SIGINT) == 0
                waiter.prints(b"l/")
                assert waiter.signal(signal.SIGINT) == 0
        health = once(everywhere, "endpoint", "health", "--command-timeout=5s")
        assert health.returncode == 1 and health.stdout.count(b" is healthy: ") == 2
        assert b"is unhealthy: failed to commit proposal: context deadline exceeded" in health.stderr
        status = once(everywhere, "endpoint", "status", "--command-timeout=5s", "-w", "json")
        assert status.returncode == 1 and len(json.loads(status.stdout)) == 2
        done = once(first, "get", "k", "--command-timeout=500ms")
        assert done.returncode == 1 and done.stderr.startswith(b"Error: context deadline exceeded\n")
        assert b"Connection refused" in done.stderr


def test_tls(pki: Path, tmp_path: Path) -> None:
    with Server(tmp_path, *served(pki), "--client-cert-auth") as server:
        mine = of(pki, "alice")
        assert once(server.endpoint, "put", "k", "v", *mine).stdout == b"OK\n"
        bare = server.endpoint.removeprefix("https://")  # the files say that TLS is meant
        assert once(bare, "get", "k", *mine).stdout == b"k\nv\n"
        assert once(server.endpoint, "get", "k", *mine[1:], "--insecure-skip-tls-verify").stdout == b"k\nv\n"
        for wrong in (mine[:1], mine[1:], []):  # no certificate; an unknown authority; neither
            done = once(server.endpoint, "get", "k", *wrong, "--command-timeout=3s")
            assert done.returncode == 1 and done.stderr.startswith(b"Error: context deadline exceeded\n"), done
        plain = once(f"http://{bare}", "get", "k", "--command-timeout=3s")
        assert plain.returncode == 1 and b"Traceback" not in plain.stderr
        done = once(server.endpoint, "get", "k", f"--cacert={pki}/ca-key.pem")
        assert done.returncode == 128 and b"cannot be used" in done.stderr
        with Running(server.endpoint, "watch", "k", "--rev=1", *mine) as watch:
            watch.prints(b"PUT\nk\nv\n")


def test_what_is_no_member(tmp_path: Path) -> None:
    """A port that says nothing, one that closes, and one that speaks something else."""

    def talk(listener: socket.socket, says: bytes | None) -> None:
        held = []
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                break
            if says is not None:
                connection.recv(100)
                connection.sendall(says)
                connection.close()
            held.append(connection)
        for connection in held:
            connection.close()

    for says in (None, b"", b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n", b"\0" * 50, b"\xff" * 50):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = threading.Thread(target=talk, args=(listener, says))
            thread.start()
            done = once(f"127.0.0.1:{listener.getsockname()[1]}", "get", "k", "--command-timeout=1s")
            listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        assert done.returncode == 1 and done.stderr.startswith(b"Error: "), (says, done)
        assert b"Traceback" not in done.stderr


def test_the_first_endpoint_may_be_silent(endpoint: str) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        done = once(f"127.0.0.1:1,nonsense,{endpoint}", "put", "k", "v")
        assert done.stdout == b"OK\n", done
        done = once(f"{address},{endpoint}", "endpoint", "health", "--command-timeout=2s")
        assert done.returncode == 1 and b" is healthy: " in done.stdout and address.encode() in done.stderr


@pytest.mark.slow
def test_checks_of_a_cluster(endpoint: str) -> None:
    done = once(endpoint, "check", "datascale", "--auto-compact", "--auto-defrag", "--load=small")
    assert b"PASS: Approximate system memory used : " in done.stdout, done
    assert once(endpoint, "get", "/etcdctl-check", "--prefix").stdout == b""
    once(endpoint, "put", "/etcdctl-check-perf/x", "1")
    done = once(endpoint, "check", "perf")
    assert done.returncode == 3 and b'Error: prefix "/etcdctl-check-perf/" has keys.' in done.stderr


def test_check_perf_judges(endpoint: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Two seconds instead of a minute; what it says depends on the machine, its form does not."""
    from oarlock.ctl import app, check
    from oarlock.ctl.flags import parse
    from oarlock.ctl.verbs import BY_WORDS, GLOBAL

    verb = BY_WORDS["check", "perf"]
    words = [f"--endpoints={endpoint}", "--prefix=perf/", "--command-timeout=60s"]
    code = check.check_perf(app.Run(verb, parse(words, (*GLOBAL, *verb.flags))), seconds=2)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == ("FAIL" if code else "PASS") and len(lines) == 4
    assert "Throughput" in lines[0] and "lowest request" in lines[1] and "Stddev" in lines[2]
    assert once(endpoint, "get", "perf/", "--prefix").stdout == b""
