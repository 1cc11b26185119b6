"""Calls to a cluster: which endpoint, with which identity, how long, and when to ask again."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, Final

from oarlock.api import proto
from oarlock.ctl import failures
from oarlock.ctl.connection import DEADLINE_EXCEEDED, UNAVAILABLE, Call, Connection, Endpoint, Metadata, Tls
from oarlock.ctl.failures import CallError, Failure

FAILED_PRECONDITION: Final = 9
INVALID_ARGUMENT: Final = 3
UNAUTHENTICATED: Final = 16
RETRY_SECONDS: Final = 0.1
"""How long to wait after every endpoint was tried."""

OLD_REVISION: Final = "etcdserver: revision of auth store is old"


@cache
def method(rpc: str) -> tuple[str, Any, Any]:
    """`KV/Range` or `v3lockpb.Lock/Lock`: the full name, the classes of request and response."""
    service, _, name = rpc.rpartition("/")
    service = service if "." in service else f"etcdserverpb.{service}"
    found = proto.pool.FindServiceByName(service).methods_by_name[name]
    request, response = (proto.message(kind.full_name) for kind in (found.input_type, found.output_type))
    return f"{service}/{name}", request, response


class Client:
    """Blocking; one connection at a time. Raises `CallError` for calls and `Failure` where no client can be made."""

    def __init__(
        self, endpoints: Sequence[Endpoint], *, user: tuple[str, str] | None = None, dial_s: float = 2.0,
        timeout_s: float = 5.0, debug: bool = False,
    ) -> None:  # fmt: skip
        if not endpoints:
            raise Failure("etcdclient: no available endpoints", failures.BAD_CONNECTION, "give --endpoints=HOST:PORT")
        self.endpoints = list(endpoints)
        self.user = user
        self.dial_s = dial_s
        self.timeout_s = timeout_s
        self.debug = debug
        self.connection: Connection | None = None
        self._next = 0
        self._token: str | None = None
        self.why = ""
        """Why the last endpoint could not be reached."""

    @classmethod
    def of(cls, flags: Mapping[str, Any], *, texts: Sequence[str] | None = None) -> Client:
        """The client that the flags ask for, to other endpoints than theirs if `texts` are given."""
        if flags["debug"]:
            _print_settings(flags)
        tls = tls_of(flags)
        if texts is None:
            texts = flags["endpoints"]
            if flags["discovery_srv"]:
                from oarlock.ctl.discovery import endpoints_of

                texts = endpoints_of(
                    flags["discovery_srv"], flags["discovery_srv_name"], insecure=flags["insecure_discovery"]
                )
        endpoints = [Endpoint(text, tls, flags["keepalive_time"], flags["keepalive_timeout"]) for text in texts]
        return cls(
            endpoints, user=user_of(flags["user"], flags["password"], "Password: "), dial_s=flags["dial_timeout"],
            timeout_s=flags["command_timeout"], debug=flags["debug"],
        )  # fmt: skip

    def to(self, text: str) -> Client:
        """A client like this one to one endpoint."""
        alike = self.endpoints[0]
        one = Client(
            [alike._replace(text=text)], user=self.user, dial_s=self.dial_s, timeout_s=self.timeout_s, debug=self.debug
        )
        one._token = self._token
        return one

    def again(self) -> Client:
        """A client like this one with a connection of its own, for another thread."""
        one = self.to(self.endpoints[0].text)
        one.endpoints = self.endpoints
        return one

    def __call__(self, rpc: str, *, repeat: bool = False, timeout_s: float | None = None, **fields: Any) -> Any:
        """The answer of `rpc` to a request with these fields. `repeat`: asking twice does no harm, so a member that has
        gone or knows no leader is not the end."""
        name, request, response = method(rpc)
        payload = request(**fields).SerializeToString()
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)

        def ask(connection: Connection) -> Any:
            return response.FromString(connection.unary(name, payload, self.metadata(connection, deadline), deadline))

        return self.attempt(ask, deadline, repeat=repeat, what=name)

    def open(self, rpc: str, deadline: float | None = None, *, call_timeout_s: float | None = None) -> Call:
        """Begin a stream. Endpoints are tried until the deadline; without one, for ever."""
        name = method(rpc)[0]

        def begin(connection: Connection) -> Call:
            return connection.begin(name, self.metadata(connection, deadline), call_timeout_s)

        began: Call = self.attempt(begin, deadline, repeat=True, what=name)
        return began

    def attempt(
        self, ask: Callable[[Connection], Any], deadline: float | None, *, repeat: bool = False, what: str = ""
    ) -> Any:
        """What `ask` returns, asked of one endpoint after the other. Raises `CallError` as etcdctl words it."""
        renewed = False
        while True:
            try:
                connection = self.connect(deadline)
                if self.debug:
                    sys.stderr.write(f"debug: {connection.endpoint.text} {what}\n")
                return ask(connection)
            except CallError as error:
                if error.code == DEADLINE_EXCEEDED:
                    self.drop()
                    raise CallError(error.code, error.text, sent=error.sent, hint=error.hint or self.why) from None
                if self._stale(error) and not renewed:
                    renewed, self._token = True, None
                    continue
                if error.code != UNAVAILABLE:
                    raise
                self.why = error.text
                self.drop()
                if error.sent and not repeat:
                    raise
                if deadline is not None and time.monotonic() + RETRY_SECONDS >= deadline:
                    raise CallError(DEADLINE_EXCEEDED, "context deadline exceeded", hint=self._reasons()) from None
                time.sleep(RETRY_SECONDS)

    def connect(self, deadline: float | None = None) -> Connection:
        """The open connection, or a new one to the first endpoint that can be reached. Raises `CallError`."""
        if self.connection is not None and self.connection.broken is None:
            return self.connection
        whys = []
        for _ in self.endpoints:
            endpoint = self.endpoints[self._next % len(self.endpoints)]
            left = self.dial_s if deadline is None else min(self.dial_s, deadline - time.monotonic())
            if left <= 0:
                break
            try:
                self.connection = Connection(endpoint, left)
            except CallError as error:
                self._next += 1
                whys.append(error.text)
            else:
                return self.connection
        raise CallError(UNAVAILABLE, "; ".join(whys) or self.why or "no time to connect", sent=False)

    def drop(self) -> None:
        """Close the connection; the next call asks the next endpoint."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None
            self._next += 1

    def metadata(self, connection: Connection, deadline: float | None) -> Metadata:
        """What says who we are."""
        if self.user is None:
            return ()
        if self._token is None:
            name, request, response = method("Auth/Authenticate")
            payload = request(name=self.user[0], password=self.user[1]).SerializeToString()
            until = time.monotonic() + self.timeout_s if deadline is None else deadline
            try:
                self._token = str(response.FromString(connection.unary(name, payload, (), until)).token)
            except CallError as error:
                if error.code == FAILED_PRECONDITION:  # authentication is off
                    self._token = ""
                elif error.code in (UNAVAILABLE, DEADLINE_EXCEEDED):
                    raise CallError(error.code, error.text, sent=False, hint=error.hint) from None
                else:
                    raise Failure(error.text, failures.BAD_CONNECTION, "check --user and --password") from None
        return (("token", self._token),) if self._token else ()

    def _stale(self, error: CallError) -> bool:
        """Whether a new token may help."""
        return bool(self._token) and (error.code == UNAUTHENTICATED or error.text == OLD_REVISION)

    def _reasons(self) -> str:
        return f"no member answered: {self.why}. Is it running, and is its client URL in --endpoints?"


def tls_of(flags: Mapping[str, Any], prefix: str = "") -> Tls:
    """TLS as the flags ask for it; wrong files end the command before any call."""
    cacert, cert, key = (flags[prefix + name] for name in ("cacert", "cert", "key"))
    if bool(cert) != bool(key):
        raise failures.bad_arguments(f"KeyFile and CertFile must both be present[key: {key}, cert: {cert}]",
                                     "give --cert and --key together")  # fmt: skip
    for file in (cacert, cert, key):
        if file:
            try:
                with open(file, "rb"):
                    pass
            except OSError as error:
                raise failures.bad_arguments(f"open {file}: {str(error.strerror).lower()}") from None
    skip = flags["insecure_skip_tls_verify"] and not prefix
    wanted = bool(cacert or cert or skip) or not flags[prefix + "insecure_transport"]
    tls = Tls(cacert, cert, key, skip, wanted)
    if cacert or cert:
        try:
            tls.context()
        except OSError as error:
            reason = getattr(error, "reason", None) or error
            files = " or ".join(filter(None, (cacert, cert)))
            hint = "certificates and keys are PEM files, and a key fits its certificate"
            raise failures.bad_arguments(f"tls: {files} cannot be used: {reason}", hint) from None
    return tls


def user_of(user: str, password: str, prompt: str) -> tuple[str, str] | None:
    """Name and password; asks for a password that is not given."""
    if not user:
        return None
    if password:
        return user, password
    name, colon, inline = user.partition(":")
    if colon:
        return name, inline
    from oarlock.ctl.ask import secret

    return name, secret(prompt)


def _print_settings(flags: Mapping[str, Any]) -> None:
    from oarlock.ctl.verbs import GLOBAL

    for flag in GLOBAL:
        value = "(hidden)" if flag.name in ("password", "user") and flags[flag.field] else flags[flag.field]
        sys.stderr.write(f"OARLOCKCTL_{flag.field.upper()}={value}\n")


def hint_for(text: str) -> str:
    """What to do about an error that a server often gives."""
    for part, hint in HINTS:
        if part in text:
            return hint
    return ""


HINTS: Final = (
    ("required revision has been compacted", "older revisions are gone; `get KEY -w fields` shows the newest one"),
    ("required revision is a future revision", "this revision has not happened yet; --rev=0 is now"),
    ("requested lease not found", "it has expired, or was revoked; `lease list` shows those that are left"),
    ("user name is empty", "authentication is on: give --user=NAME:PASSWORD"),
    ("permission denied", "`user get NAME --detail` shows what a user may do"),
    ("database space exceeded", "compact and defragment, then `alarm disarm`; or raise --quota-backend-bytes"),
    ("request is too large", "the servers' bound is --max-request-bytes"),
    ("no leader", "a majority of the members has to run and reach each other; see `endpoint status --cluster`"),
    ("member not found", "`member list` shows the members and their IDs"),
    ("root user does not exist", "first: user add root; role add root; user grant-role root root"),
    ("key is not provided", "an empty KEY is taken only with --prefix or --from-key: all keys"),
    ("can only promote a learner", "wait until it has caught up; see `endpoint status --cluster`"),
    (
        "unhealthy cluster",
        "a member that cannot be reached would make the change unsafe; see `endpoint health --cluster`",
    ),
)


def environment_with(extra: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The environment for a command that a verb runs."""
    return {**os.environ, **dict(extra)}
