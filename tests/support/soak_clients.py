"""Clients of every kind behind one face, and watchers of every kind: what the soak lets loose on a cluster.

A call ends with an answer, with `Refused` (it certainly was not executed) or with `Lost` (nobody knows). Keys and
values are ASCII, so that every program can carry them.
"""

from __future__ import annotations

import base64
import contextlib
import json
import random
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import grpc
from tests.support.etcd_wire import EtcdClient, never_sent
from tests.support.watch_client import WatchClient

from oarlock.cli.local_cluster import find_program
from oarlock.client import EtcdError, Outcome
from oarlock.client.sync import Client as OwnClient

CALL_SECONDS: Final = 4
SILENCE_SECONDS: Final = 6.0
"""After so long without a word a watcher that cannot tell goes on with another member."""


class Refused(Exception):
    """The call was not executed."""


class Lost(Exception):
    """The call may have been executed, or may be still."""


class Caller(Protocol):
    """One client of one member."""

    def put(self, key: str, value: str) -> None: ...
    def get(self, key: str) -> str | None: ...
    def delete(self, key: str) -> str | None: ...
    def swap(self, key: str, expected: str | None, value: str) -> bool: ...
    def close(self) -> None: ...


def _text(value: bytes | str | None) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


class Wire:
    """grpcio, with messages of the tests' own."""

    def __init__(self, endpoint: str) -> None:
        self._client = EtcdClient(endpoint, timeout=CALL_SECONDS)

    def _ask(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except grpc.RpcError as failed:
            error: Any = failed
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED or never_sent(error):
                raise Refused(str(error.details())) from error
            if error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED):
                raise
            raise Lost(str(error.details())) from error

    def put(self, key: str, value: str) -> None:
        self._ask(lambda: self._client.put(key.encode(), value.encode()))

    def get(self, key: str) -> str | None:
        kvs = self._ask(lambda: self._client.get(key.encode())).kvs
        return _text(kvs[0].value) if kvs else None

    def delete(self, key: str) -> str | None:
        answer = self._ask(lambda: self._client.delete(key.encode(), prev_kv=True))
        return _text(answer.prev_kvs[0].value) if answer.deleted else None

    def swap(self, key: str, expected: str | None, value: str) -> bool:
        before = expected.encode() if expected is not None else None
        return bool(self._ask(lambda: self._client.compare_and_swap(key.encode(), before, value.encode())).succeeded)

    def close(self) -> None:
        self._client.close()


class Own:
    """`oarlock.client` from a thread."""

    def __init__(self, endpoint: str) -> None:
        self._client = OwnClient([endpoint], timeout=CALL_SECONDS)

    def _ask(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except EtcdError as error:
            if error.outcome is Outcome.NOT_EXECUTED:
                raise Refused(error.text) from error
            raise Lost(error.text) from error

    def put(self, key: str, value: str) -> None:
        self._ask(lambda: self._client.put(key, value))

    def get(self, key: str) -> str | None:
        found = self._ask(lambda: self._client.get(key))
        return found.text if found is not None else None

    def delete(self, key: str) -> str | None:
        answer = self._ask(lambda: self._client.delete(key, previous=True))
        return str(answer.previous[0].text) if answer.count else None

    def swap(self, key: str, expected: str | None, value: str) -> bool:
        if expected is None:
            return bool(self._ask(lambda: self._client.create(key, value)))
        return bool(self._ask(lambda: self._client.compare_and_set(key, expected, value)))

    def close(self) -> None:
        self._client.close()


def _b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _unb64(text: str) -> str:
    return base64.b64decode(text).decode()


class _Json:
    """Calls as the JSON gateway takes them; how they get there is the subclass's affair."""

    def post(self, path: str, body: Any) -> Any:
        raise NotImplementedError

    def put(self, key: str, value: str) -> None:
        self.post("/v3/kv/put", {"key": _b64(key), "value": _b64(value)})

    def get(self, key: str) -> str | None:
        kvs = self.post("/v3/kv/range", {"key": _b64(key)}).get("kvs", [])
        return _unb64(kvs[0].get("value", "")) if kvs else None

    def delete(self, key: str) -> str | None:
        kvs = self.post("/v3/kv/deleterange", {"key": _b64(key), "prev_kv": True}).get("prev_kvs", [])
        return _unb64(kvs[0].get("value", "")) if kvs else None

    def swap(self, key: str, expected: str | None, value: str) -> bool:
        compare: dict[str, Any] = {"key": _b64(key), "result": "EQUAL"}
        if expected is None:
            compare |= {"target": "CREATE", "create_revision": "0"}
        else:
            compare |= {"target": "VALUE", "value": _b64(expected)}
        success = [{"request_put": {"key": _b64(key), "value": _b64(value)}}]
        return bool(self.post("/v3/kv/txn", {"compare": [compare], "success": success}).get("succeeded", False))

    def close(self) -> None: ...


class Curl(_Json):
    """The JSON gateway by the program curl."""

    NOT_CONNECTED = 7

    def __init__(self, endpoint: str) -> None:
        self._url = f"http://{endpoint}"

    def post(self, path: str, body: Any) -> Any:
        command = ["curl", "-sS", "-m", str(CALL_SECONDS), "-w", "\n%{http_code}", "-d", json.dumps(body)]
        done = subprocess.run([*command, self._url + path], capture_output=True, text=True, timeout=60, check=False)
        if done.returncode == self.NOT_CONNECTED:
            raise Refused(done.stderr)
        text, _, status = done.stdout.rpartition("\n")
        if done.returncode or status != "200":
            raise Lost(f"{status} {text} {done.stderr}")
        return json.loads(text)


class Gw(_Json):
    """The JSON gateway by the library etcd3gw."""

    def __init__(self, endpoint: str) -> None:
        import etcd3gw

        host, _, port = endpoint.rpartition(":")
        self._client = etcd3gw.client(host=host, port=int(port), timeout=CALL_SECONDS, api_path="/v3/")

    def post(self, path: str, body: Any) -> Any:
        from etcd3gw import exceptions

        try:
            return self._client.post(self._client.get_url(path.removeprefix("/v3")), json=body)
        except (exceptions.Etcd3Exception, OSError) as error:  # of etcd3gw, of requests
            raise Lost(str(error)) from error

    def close(self) -> None:
        self._client.session.close()


class Ctl:
    """The program etcdctl."""

    def __init__(self, endpoint: str) -> None:
        limits = [f"--dial-timeout={CALL_SECONDS}s", f"--command-timeout={CALL_SECONDS}s"]
        self._command = [find_program("etcdctl"), f"--endpoints={endpoint}", *limits, "-w", "json"]

    def _ask(self, *arguments: str, given: str | None = None) -> Any:
        done = subprocess.run(
            [*self._command, *arguments], input=given, capture_output=True, text=True, timeout=60, check=False
        )
        if done.returncode:
            raise Lost(done.stderr.strip()[-200:])
        return json.loads(done.stdout.splitlines()[-1])

    def put(self, key: str, value: str) -> None:
        self._ask("put", key, value)

    def get(self, key: str) -> str | None:
        kvs = self._ask("get", key).get("kvs", [])
        return _unb64(kvs[0]["value"]) if kvs else None

    def delete(self, key: str) -> str | None:
        kvs = self._ask("del", key, "--prev-kv").get("prev_kvs", [])
        return _unb64(kvs[0]["value"]) if kvs else None

    def swap(self, key: str, expected: str | None, value: str) -> bool:
        compare = f'create("{key}") = "0"' if expected is None else f'value("{key}") = "{expected}"'
        return bool(self._ask("txn", given=f"{compare}\n\nput {key} {value}\n\n\n").get("succeeded", False))

    def close(self) -> None: ...


KINDS: Final[dict[str, Callable[[str], Caller]]] = {
    "grpcio": Wire,
    "own": Own,
    "curl": Curl,
    "etcd3gw": Gw,
    "etcdctl": Ctl,
}
PAUSES: Final = {"grpcio": 0.02, "own": 0.02, "curl": 0.2, "etcd3gw": 0.05, "etcdctl": 0.3}
"""Seconds between calls, so that programs that start for each call do not take the machine from the members."""


# -- watchers

Seen = tuple[int, str, str | None]
"""Revision, key, and the value; None for a deletion."""


class Watcher:
    """Follows a prefix from revision 1 on, over as many streams as it takes. `seen` is all it was told, in order."""

    kind = ""

    def __init__(self, prefix: str, endpoints: Sequence[str], seed: int) -> None:
        self.prefix = prefix
        self.endpoints = list(endpoints)
        self.seen: list[Seen] = []
        self.streams = 0
        self.error: BaseException | None = None
        self._rng = random.Random(f"{self.kind}-{seed}")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def revision(self) -> int:
        return self.seen[-1][0] if self.seen else 0

    def close(self) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.streams += 1
                self._follow(self._rng.choice(self.endpoints), self.revision + 1)
                self._stop.wait(0.05)
        except BaseException as error:  # the outer edge of the thread; the test looks at it
            self.error = error

    def _follow(self, endpoint: str, revision: int) -> None:
        """One stream, until it ends or seems to have."""
        raise NotImplementedError


class WireWatcher(Watcher):
    """grpcio; `times` are the moments at which the events of `seen` came."""

    kind = "grpcio"

    def __init__(self, prefix: str, endpoints: Sequence[str], seed: int) -> None:
        super().__init__(prefix, endpoints, seed)
        self.times: list[float] = []

    def _follow(self, endpoint: str, revision: int) -> None:
        with grpc.insecure_channel(endpoint, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            stream = WatchClient(channel, (("hasleader", "true"),))
            try:
                end = self.prefix[:-1] + chr(ord(self.prefix[-1]) + 1)
                stream.create(self.prefix.encode(), range_end=end.encode(), start_revision=revision)
                taken, moved = 0, time.monotonic()
                while not (self._stop.is_set() or stream.ended.is_set() or time.monotonic() > moved + SILENCE_SECONDS):
                    fresh = stream.answers[taken:]
                    taken += len(fresh)
                    for event in (event for answer in fresh for event in answer.events):
                        moved = time.monotonic()
                        self.times.append(moved)
                        value = None if event.type else event.kv.value.decode()
                        self.seen.append((event.kv.mod_revision, event.kv.key.decode(), value))
                    self._stop.wait(0.01)
            finally:
                stream.close()


class OwnWatcher(Watcher):
    """`oarlock.client`, which goes on by itself."""

    kind = "own"

    def _run(self) -> None:
        try:
            with OwnClient(self.endpoints, timeout=60, keepalive=2.0, keepalive_timeout=2.0) as client:
                self.streams = 1
                with client.watch(self.prefix, prefix=True, start_revision=1) as watch:
                    threading.Thread(target=self._end, args=(watch,), daemon=True).start()
                    for event in watch:
                        value = event.kv.text if event.kind == "put" else None
                        self.seen.append((event.kv.mod_revision, event.kv.key.decode(), value))
        except BaseException as error:
            if not self._stop.is_set():
                self.error = error

    def _end(self, watch: Any) -> None:
        self._stop.wait()
        with contextlib.suppress(Exception):
            watch.close()


class _LinesWatcher(Watcher):
    """A program that prints a JSON message a line."""

    def command(self, endpoint: str, revision: int) -> list[str]:
        raise NotImplementedError

    def events(self, message: Any) -> list[Any]:
        raise NotImplementedError

    def _follow(self, endpoint: str, revision: int) -> None:
        process = subprocess.Popen(
            self.command(endpoint, revision), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        moved = time.monotonic()
        assert process.stdout is not None
        stdout = process.stdout

        def read() -> None:
            nonlocal moved
            with contextlib.suppress(ValueError):  # a line that was cut off with its process, or the closed pipe
                for line in stdout:
                    moved = time.monotonic()
                    for event in self.events(json.loads(line)):
                        kv = event["kv"]
                        gone = event.get("type") in (1, "DELETE")
                        value = None if gone else _unb64(kv.get("value", ""))
                        self.seen.append((int(kv["mod_revision"]), _unb64(kv["key"]), value))

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        while reader.is_alive() and not self._stop.is_set() and time.monotonic() < moved + SILENCE_SECONDS:
            self._stop.wait(0.05)
        process.kill()
        process.wait()
        reader.join()
        stdout.close()


class CtlWatcher(_LinesWatcher):
    """etcdctl, with all members to choose from."""

    kind = "etcdctl"

    def command(self, endpoint: str, revision: int) -> list[str]:
        endpoints = f"--endpoints={','.join(self.endpoints)}"
        return [find_program("etcdctl"), endpoints, "watch", self.prefix, "--prefix", f"--rev={revision}", "-w", "json"]

    def events(self, message: Any) -> list[Any]:
        return message.get("Events") or []


class CurlWatcher(_LinesWatcher):
    """curl on the JSON gateway."""

    kind = "curl"

    def command(self, endpoint: str, revision: int) -> list[str]:
        end = self.prefix[:-1] + chr(ord(self.prefix[-1]) + 1)
        body = {"key": _b64(self.prefix), "range_end": _b64(end), "start_revision": str(revision)}
        return ["curl", "-sSN", "-d", json.dumps({"create_request": body}), f"http://{endpoint}/v3/watch"]

    def events(self, message: Any) -> list[Any]:
        return message.get("result", {}).get("events", [])


WATCHERS: Final = (WireWatcher, OwnWatcher, CtlWatcher, CurlWatcher)
