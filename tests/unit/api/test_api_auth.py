"""Authentication at the client port: the table of rights row by row, tokens of both kinds, passwords."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Callable
from typing import Any

import bcrypt
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.auth_setup import ALLOWED, ANY, CHEAP, MATRIX, ask, login, m, ok, people, txn
from tests.support.h2_client import H2Client

from oarlock.api import proto
from oarlock.api.etcd import rights, tokens
from oarlock.api.etcd.passwords import _HASH, _NOBODYS_HASH, COST_DEFAULT
from oarlock.api.etcd.tokens import AuthOptions, JwtKeys, JwtTokens, SimpleTokens
from oarlock.api.grpc import Code
from oarlock.api.limits import Limits
from oarlock.machines.base import Context, is_guarded
from oarlock.machines.kv.commands import encode
from oarlock.machines.kv.commands_auth import AuthEnable, RoleAdd, UserAdd, UserGrantRole
from oarlock.machines.kv.machine import KvMachine

EMPTY = (Code.INVALID_ARGUMENT, "etcdserver: user name is empty")
DENIED = (Code.PERMISSION_DENIED, "etcdserver: permission denied")
INVALID = (Code.UNAUTHENTICATED, "etcdserver: invalid auth token")
FAILED = (Code.INVALID_ARGUMENT, "etcdserver: authentication failed, invalid user ID or password")
OLD = (Code.INVALID_ARGUMENT, "etcdserver: revision of auth store is old")


def test_every_rpc_for_everybody(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("ngh2", auth=CHEAP) as served, await H2Client.connect(served.url) as client:
            await ok(client, "KV/Put", m("PutRequest", key=b"a", value=b"1"))
            await ok(client, "KV/Put", m("PutRequest", key=b"z", value=b"26"))
            shown = await people(client)
            before = served.backend.machine.hash()
            for rpc, request, needs in MATRIX:
                for user in ("", "nobody", "reader", "writer", "root"):
                    if user in ALLOWED[needs]:
                        continue
                    answer = await ask(client, rpc, request, shown.get(user))
                    assert (answer.code, answer.text) == (DENIED if user else EMPTY), (rpc, user, request)
                if needs is not ANY:
                    answer = await ask(client, rpc, request, "nonsense")
                    assert (answer.code, answer.text) == INVALID, rpc
            assert served.backend.machine.hash() == before, "what was refused left a trace"
            for rpc, request, needs in MATRIX:
                for user in sorted(ALLOWED[needs], key=lambda name: name == "root"):
                    if rpc.startswith(("Lock/", "Election/")):
                        continue
                    token = await login(client, user) if user and served.backend.machine.auth.enabled else None
                    answer = await ask(client, rpc, request, token)
                    assert (answer.code, answer.text) not in (DENIED, EMPTY, INVALID), (rpc, user, answer.text)

    run(work())


def test_the_matrix_holds_every_rpc() -> None:
    tried = {rpc for rpc, _, _ in MATRIX}
    unary = {
        f"{service.rpartition('.')[2]}/{name}"
        for service, methods in proto.services().items()
        for name, (client_streams, _) in methods.items()
        if not client_streams
    }
    own_tests = {"Auth/Authenticate", "Election/Observe", "Health/Watch"}
    assert unary - tried - own_tests == set()


def test_every_rpc_of_the_schema_has_a_row_and_no_other() -> None:
    rows = rights.table(Limits())
    schema = {(service, name) for service, methods in proto.services().items() for name in methods}
    assert set(rows) == schema
    assert {key for key, row in rows.items() if row is rights.inside} == set(rights.INSIDE)


def test_a_method_without_a_row_is_refused(run: Any, serving: Any) -> None:
    """Deny by default: the test server's own methods have no row."""

    async def work() -> None:
        async with serving("ngh2", auth=CHEAP) as served, await H2Client.connect(served.url) as client:
            assert (await client.unary("/test.Test/Echo", b"x")).code == 0
            shown = await people(client)
            for token in (None, shown["root"]):
                extra = [(b"token", token.encode())] if token else []
                for name in ("Echo", "Chat"):
                    answer = await client.unary(f"/test.Test/{name}", b"x", extra)
                    assert (answer.code, answer.text) == DENIED
            await ok(client, "Auth/AuthDisable", m("AuthDisableRequest"), shown["root"])
            assert (await client.unary("/test.Test/Echo", b"x")).code == 0

    run(work())


def test_own_user_and_role_may_be_seen(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("ngh2", auth=CHEAP) as served, await H2Client.connect(served.url) as client:
            shown = await people(client)
            answer = await ok(client, "Auth/UserGet", m("AuthUserGetRequest", name="reader"), shown["reader"])
            assert m("AuthUserGetResponse").FromString(answer.messages[0]).roles == ["r"]
            answer = await ok(client, "Auth/RoleGet", m("AuthRoleGetRequest", role="r"), shown["reader"])
            (perm,) = m("AuthRoleGetResponse").FromString(answer.messages[0]).perm
            assert (perm.permType, perm.key, perm.range_end) == (0, b"a", b"c")
            for rpc, request in (
                ("Auth/UserGet", m("AuthUserGetRequest", name="writer")),
                ("Auth/UserGet", m("AuthUserGetRequest", name="")),
                ("Auth/RoleGet", m("AuthRoleGetRequest", role="w")),
            ):
                answer = await ask(client, rpc, request, shown["reader"])
                assert (answer.code, answer.text) == DENIED

    run(work())


def test_locks_and_elections_need_the_keys_that_they_use(run: Any, serving: Any) -> None:
    """Under a name within [a, c), who may write there locks, campaigns and resigns; who may only read, looks."""

    async def work() -> None:
        async with serving("ngh2", auth=CHEAP) as served, await H2Client.connect(served.url) as client:
            shown = await people(client)
            before = served.backend.machine.revision
            for user in ("reader", "nobody"):
                for rpc, request in (
                    ("Lock/Lock", m("v3lockpb.LockRequest", name=b"a")),
                    ("Election/Campaign", m("v3electionpb.CampaignRequest", name=b"a")),
                ):
                    answer = await ask(client, rpc, request, shown[user])
                    assert "permission denied" in answer.text, (user, rpc, answer)
            assert served.backend.machine.revision == before
            answer = await ok(client, "Lock/Lock", m("v3lockpb.LockRequest", name=b"a"), shown["writer"])
            key = m("v3lockpb.LockResponse").FromString(answer.messages[0]).key
            answer = await ask(client, "Lock/Unlock", m("v3lockpb.UnlockRequest", key=key), shown["reader"])
            assert "permission denied" in answer.text
            await ok(client, "Lock/Unlock", m("v3lockpb.UnlockRequest", key=key), shown["writer"])
            campaign = m("v3electionpb.CampaignRequest", name=b"b", value=b"1")
            answer = await ok(client, "Election/Campaign", campaign, shown["writer"])
            leader = m("v3electionpb.CampaignResponse").FromString(answer.messages[0]).leader
            proclaim = m("v3electionpb.ProclaimRequest", leader=leader, value=b"2")
            resign = m("v3electionpb.ResignRequest", leader=leader)
            for rpc, request in (("Election/Proclaim", proclaim), ("Election/Resign", resign)):
                assert "permission denied" in (await ask(client, rpc, request, shown["reader"])).text
            await ok(client, "Election/Proclaim", proclaim, shown["writer"])
            answer = await ok(client, "Election/Leader", m("v3electionpb.LeaderRequest", name=b"b"), shown["reader"])
            assert m("v3electionpb.LeaderResponse").FromString(answer.messages[0]).kv.value == b"2"
            answer = await ask(client, "Election/Observe", m("v3electionpb.LeaderRequest", name=b"b"), shown["nobody"])
            assert (answer.code, answer.text) == DENIED
            await ok(client, "Election/Resign", resign, shown["writer"])

    run(work())


def test_the_revision_is_a_metric(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("ngh2", auth=CHEAP) as served, await H2Client.connect(served.url) as client:
            await people(client)
            revision = served.backend.machine.auth.revision
            shown = served.metrics.text().decode()
            assert revision > 1 and f"etcd_debugging_auth_revision {float(revision)}" in shown

    run(work())


def test_tokens(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("ngh2", auth=CHEAP) as served, await H2Client.connect(served.url) as client:
            get = m("RangeRequest", key=b"a")
            shown = await people(client)
            token = shown["reader"]
            prefix, _, index = token.partition(".")
            assert len(prefix) == tokens.PREFIX_LETTERS and index.isdigit()
            assert (await ask(client, "KV/Range", get, token, b"token")).code == 0
            assert (await ask(client, "KV/Range", get, token, b"authorization")).code == 0
            assert (await ask(client, "KV/Range", get, f"Bearer {token}", b"authorization")).code == 0
            for wrong in (
                "", "x", prefix, f"{prefix}.", f"{prefix}.0", f"{prefix}.{int(index) + 1}", f"{prefix}.{index}.1",
                f"{prefix}.-{index}", f"{prefix}. {index}", f"bearer {token}", f"{'a' * 32}.{index}", "a" * 9000,
                f"{prefix}.{'9' * 21}", f"{prefix}.9999999", "Bearer", "Bearer Bearer x.1",
            ):  # fmt: skip
                answer = await ask(client, "KV/Range", get, wrong)
                assert (answer.code, answer.text) == INVALID, wrong
            # the field `token` goes first, also when it is wrong and the other is right
            both = [(b"authorization", token.encode()), (b"token", b"x.1")]
            answer = await client.unary("/etcdserverpb.KV/Range", get.SerializeToString(), both)
            assert answer.code == Code.UNAUTHENTICATED
            # a token ends with its user's password, and all end with authentication
            change = m("AuthUserChangePasswordRequest", name="reader", password="reader's password")
            await ok(client, "Auth/UserChangePassword", change, shown["root"])
            assert (await ask(client, "KV/Range", get, token)).code == Code.UNAUTHENTICATED
            assert (await ask(client, "KV/Range", get, await login(client, "reader"))).code == 0
            await ok(client, "Auth/AuthDisable", m("AuthDisableRequest"), shown["root"])
            assert (await ask(client, "KV/Range", get)).code == 0
            await ok(client, "Auth/AuthEnable", m("AuthEnableRequest"))
            assert (await ask(client, "KV/Range", get, shown["writer"])).code == Code.UNAUTHENTICATED

    run(work())


def test_a_simple_token_lives_from_use_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    wall = [50_000.0]
    monkeypatch.setattr(tokens.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(tokens.time, "time_ns", lambda: int(wall[0] * 1e9))

    def later(seconds: float) -> None:
        now[0] += seconds
        wall[0] += seconds

    auth = KvMachine.in_memory().auth
    prefix, digest = SimpleTokens.make()
    from oarlock.machines.kv.auth import Token

    auth._remember(digest, Token("u", 7, int(wall[0] * 1e9)))
    token = f"{prefix}.7".encode()
    here, there = SimpleTokens(auth, 300, 100), SimpleTokens(auth, 300, 100)
    later(200)
    assert here.resolve(token) == ("u", 1)
    later(200)
    assert here.resolve(token) == ("u", 1), "use prolongs it"
    assert there.resolve(token) is None, "it was issued 400 s ago, and not used there since"
    later(301)
    assert here.resolve(token) is None
    assert here.resolve(token) is None
    # a member whose clock is behind or ahead of the leader's takes a fresh token all the same
    for skew in (-200, 200):
        prefix, digest = SimpleTokens.make()
        auth._remember(digest, Token("u", 8, int((wall[0] + skew) * 1e9)))
        assert there.resolve(f"{prefix}.8".encode()) == ("u", 1)


def test_what_a_lagging_member_does_not_know_yet_is_not_refused(run: Any, serving: Any) -> None:
    """Token, role and permission given by another member a moment ago: it catches up before it refuses."""

    async def work() -> None:
        async with serving("ngh2", auth=CHEAP) as served, await H2Client.connect(served.url) as client:
            shown = await people(client)
            backend = served.backend
            get = m("RangeRequest", key=b"x")
            assert (await ask(client, "KV/Range", get, shown["reader"])).code == Code.PERMISSION_DENIED
            # from here on this member hears of nothing, until a barrier makes it catch up
            from oarlock.machines.base import Context
            from oarlock.machines.kv.commands import encode
            from oarlock.machines.kv.commands_auth import (
                Authenticate,
                Checked,
                Permission,
                RoleGrantPermission,
                UserChangePassword,
            )

            auth = backend.machine.auth
            prefix, digest = SimpleTokens.make()
            real_barrier = backend.read_barrier
            caught = []

            def catch_up(done: Any) -> None:
                if not caught:
                    caught.append(1)
                    change = encode(RoleGrantPermission("r", Permission(0, b"x")))
                    again = encode(UserChangePassword("nobody", b""))
                    login = Authenticate("reader", digest, auth.revision + 2)
                    backend.index += 1
                    commands = [
                        encode(Checked("root", auth.revision, change)),
                        encode(Checked("root", auth.revision, again)),
                        encode(login),
                    ]
                    backend.machine.apply(Context(backend.index, 2, time.time_ns()), commands)
                real_barrier(done)

            backend.read_barrier = catch_up
            token = f"{prefix}.{backend.index + 1}"
            answer = await ask(client, "KV/Range", get, token)
            assert answer.code == 0, answer.text
            assert caught
            # nobody who shows nothing makes it catch up
            del caught[:]
            await ask(client, "KV/Range", get)
            await ask(client, "KV/Range", get, "junk")
            await ask(client, "KV/Range", get, f"{'a' * 32}.1")
            assert not caught

    run(work())


def test_a_read_that_waited_while_rights_changed_is_refused(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("ngh2", auth=CHEAP) as served, await H2Client.connect(served.url) as client:
            shown = await people(client)
            backend = served.backend
            real_barrier = backend.read_barrier

            def slow(done: Any) -> None:
                backend.machine.auth.revision += 1  # as if something had been taken away
                real_barrier(done)

            backend.read_barrier = slow
            for rpc, request in (
                ("KV/Range", m("RangeRequest", key=b"a")),
                ("KV/Txn", txn(m("RangeRequest", key=b"a"))),
            ):
                answer = await ask(client, rpc, request, shown["reader"])
                assert (answer.code, answer.text) == OLD
            backend.machine.auth._save_state()

    run(work())


def test_passwords(run: Any, serving: Any) -> None:
    async def work() -> None:
        options = AuthOptions(bcrypt_cost=4, password_length_min=4)
        async with serving("ngh2", auth=options) as served, await H2Client.connect(served.url) as client:
            add = lambda **fields: ask(client, "Auth/UserAdd", m("AuthUserAddRequest", **fields))  # noqa: E731
            assert "at least 4" in (await add(name="u", password="abc")).text
            assert "at least 4" in (await add(name="u")).text
            assert "at most 72" in (await add(name="u", password="x" * 73)).text
            assert "at most 72" in (await add(name="u", password="ü" * 37)).text
            assert (await add(name="", password="abcd")).text == EMPTY[1]
            for bad in ("x", "!!!!", base64.b64encode(b"$2a$04$short").decode(),
                        base64.b64encode(b"$2a$31$" + b"a" * 53).decode()):  # fmt: skip
                assert "hashedPassword" in (await add(name="u", hashedPassword=bad)).text
            made = bcrypt.hashpw(b"made elsewhere", bcrypt.gensalt(4))
            assert (await add(name="hashed", hashedPassword=base64.b64encode(made).decode())).code == 0
            no_password = m("AuthUserAddRequest", name="cn", password="ignored")
            no_password.options.no_password = True
            await ok(client, "Auth/UserAdd", no_password)
            for name in ("root", "null"):
                assert (await add(name=name, password=f"{name}\0's password")).code == 0
            await ok(client, "Auth/UserGrantRole", m("AuthUserGrantRoleRequest", user="root", role="root"))

            async def enter(name: str, password: str) -> tuple[int | None, str]:
                request = m("AuthenticateRequest", name=name, password=password)
                answer = await ask(client, "Auth/Authenticate", request)
                return answer.code, answer.text

            assert await enter("root", "x") == (
                Code.FAILED_PRECONDITION, "etcdserver: authentication is not enabled"
            )  # fmt: skip
            await ok(client, "Auth/AuthEnable", m("AuthEnableRequest"))
            assert await enter("hashed", "made elsewhere") == (0, "")
            assert await enter("null", "null\0's password") == (0, "")
            assert await enter("null", "null") == FAILED
            assert await enter("ghost", "x") == FAILED
            assert await enter("", "") == FAILED
            assert await enter("hashed", "x" * 1_000_000) == FAILED
            assert await enter("cn", "ignored") == (
                Code.UNKNOWN, "auth: authentication failed, password was given for no password user"
            )  # fmt: skip

    run(work())


def test_a_hash_nobody_has_is_one() -> None:
    """A login of a user who does not exist must take as long as any other."""
    hashed = _NOBODYS_HASH % COST_DEFAULT
    assert _HASH.fullmatch(hashed) and bcrypt.checkpw(b"x", _NOBODYS_HASH % 4) is False


def test_guessing_is_slowed_down(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("ngh2", auth=CHEAP, wrong_passwords_max=3) as served:
            async with await H2Client.connect(served.url) as client:
                await people(client)
                wrong = m("AuthenticateRequest", name="root", password="guess")
                answers = [(await ask(client, "Auth/Authenticate", wrong)).text for _ in range(4)]
                assert answers == [FAILED[1]] * 3 + ["etcdserver: too many requests"]
                # who was right a moment ago gets in all the same, and other users are not concerned
                await login(client, "root")
                await login(client, "reader")

    run(work())


def test_only_so_many_passwords_wait(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("ngh2", auth=AuthOptions(bcrypt_cost=10), passwords_waiting_max=2) as served:
            async with await H2Client.connect(served.url) as client:
                import asyncio

                adds = [
                    ask(client, "Auth/UserAdd", m("AuthUserAddRequest", name=f"u{n}", password="password"))
                    for n in range(6)
                ]
                codes = [answer.code for answer in await asyncio.gather(*adds)]
                assert codes.count(Code.RESOURCE_EXHAUSTED) == 4
                assert codes.count(0) == 2

    run(work())


# -- JWT

KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER = rsa.generate_private_key(public_exponent=65537, key_size=2048)
KEYS = JwtKeys("RS256", KEY, KEY.public_key(), 300.0)


def claims(**changes: Any) -> dict[str, Any]:
    whole = {"username": "root", "revision": 1, "exp": int(time.time()) + 60, **changes}
    return {name: value for name, value in whole.items() if value is not None}


BAD_JWTS: list[tuple[str, str]] = [
    ("expired", jwt.encode(claims(exp=int(time.time()) - 1), KEY, "RS256")),
    ("no expiry", jwt.encode(claims(exp=None), KEY, "RS256")),
    ("no username", jwt.encode(claims(username=None), KEY, "RS256")),
    ("no revision", jwt.encode(claims(revision=None), KEY, "RS256")),
    ("username is a number", jwt.encode(claims(username=7), KEY, "RS256")),
    ("username is empty", jwt.encode(claims(username=""), KEY, "RS256")),
    ("revision is a text", jwt.encode(claims(revision="1"), KEY, "RS256")),
    ("revision is true", jwt.encode(claims(revision=True), KEY, "RS256")),
    ("revision is 0", jwt.encode(claims(revision=0), KEY, "RS256")),
    ("revision is negative", jwt.encode(claims(revision=-1), KEY, "RS256")),
    ("revision is a fraction", jwt.encode(claims(revision=1.5), KEY, "RS256")),
    ("a revision this cluster has not had", jwt.encode(claims(revision=99), KEY, "RS256")),
    ("another cluster's key", jwt.encode(claims(), OTHER, "RS256")),
    ("alg none", jwt.encode(claims(), None, "none")),  # type: ignore[arg-type]
    ("another algorithm", jwt.encode(claims(), KEY, "PS256")),
    ("signed with the public key as a secret", jwt.encode(claims(), "x" * 64, "HS256")),
    ("not yet", jwt.encode(claims(nbf=int(time.time()) + 100), KEY, "RS256")),
    ("cut", jwt.encode(claims(), KEY, "RS256")[:-3]),
    ("nothing", ""),
    ("dots", ".."),
    ("too long", "a" * (tokens.TOKEN_BYTES_MAX + 1)),
]


def test_jwt(run: Any, serving: Any) -> None:
    async def work() -> None:
        options = AuthOptions(bcrypt_cost=4, jwt=KEYS)
        async with serving("ngh2", auth=options) as served, await H2Client.connect(served.url) as client:
            shown = await people(client)
            get = m("RangeRequest", key=b"a")
            revision = served.backend.machine.auth.revision
            assert jwt.decode(shown["reader"], KEY.public_key(), ["RS256"])["revision"] == revision
            assert (await ask(client, "KV/Range", get, shown["reader"])).code == 0
            assert (await ask(client, "KV/Range", get, f"Bearer {shown['reader']}", b"authorization")).code == 0
            for what, token in BAD_JWTS:
                answer = await ask(client, "KV/Range", get, token)
                assert (answer.code, answer.text) == INVALID, what
            # a token outlives a change of rights only as far as management, as in etcd
            await ok(client, "Auth/RoleAdd", m("AuthRoleAddRequest", name="new"), shown["root"])
            answer = await ask(client, "KV/Range", get, shown["reader"])
            assert (answer.code, answer.text) == OLD
            await ok(client, "Auth/RoleAdd", m("AuthRoleAddRequest", name="newer"), shown["root"])
            assert (await ask(client, "KV/Range", get, await login(client, "reader"))).code == 0
            # a user who was deleted has a valid signature and no rights
            await ok(client, "Auth/UserDelete", m("AuthUserDeleteRequest", name="reader"), shown["root"])
            ghost = jwt.encode(claims(username="reader", revision=served.backend.machine.auth.revision), KEY, "RS256")
            for rpc, request in (("KV/Range", get), ("Maintenance/Status", m("StatusRequest"))):
                assert (await ask(client, rpc, request, ghost)).code == Code.PERMISSION_DENIED

    run(work())


def test_a_member_with_the_public_key_only_checks_tokens(run: Any, serving: Any) -> None:
    async def work() -> None:
        options = AuthOptions(bcrypt_cost=4, jwt=JwtKeys("RS256", None, KEY.public_key()))
        async with serving("ngh2", auth=options) as served, await H2Client.connect(served.url) as client:
            for name in ("root",):
                await ok(client, "Auth/UserAdd", m("AuthUserAddRequest", name=name, password="password"))
            await ok(client, "Auth/UserGrantRole", m("AuthUserGrantRoleRequest", user="root", role="root"))
            await ok(client, "Auth/AuthEnable", m("AuthEnableRequest"))
            answer = await ask(client, "Auth/Authenticate", m("AuthenticateRequest", name="root", password="password"))
            assert answer.text == "auth: token signing attempted with verify-only key"
            token = jwt.encode(claims(revision=served.backend.machine.auth.revision), KEY, "RS256")
            assert (await ask(client, "KV/Range", m("RangeRequest", key=b"a"), token)).code == 0

    run(work())


def _parsers() -> list[Any]:
    auth = KvMachine.in_memory().auth
    return [SimpleTokens(auth, 300, 10), JwtTokens(auth, KEYS, 10)]


GOOD_JWT = jwt.encode(claims(), KEY, "RS256").encode()


PIECES = [b'{"alg":"none"}', b'{"alg":"RS256"}', b"[" * 999, b'{"exp":1e999}', b'{"username":1}']


def _joined(parts: list[bytes]) -> bytes:
    return b".".join(base64.urlsafe_b64encode(part).rstrip(b"=") for part in parts)


def _changed(at: int, new: bytes) -> bytes:
    return GOOD_JWT[:at] + new + GOOD_JWT[at + len(new) :]


_PREFIXES = st.sampled_from([b"a" * 32, b"\xff" * 32, "ü".encode() * 16])
_PARTS = st.lists(st.one_of(st.binary(max_size=60), st.sampled_from(PIECES)), min_size=2, max_size=4)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.builds(lambda prefix, rest: prefix + b"." + rest, _PREFIXES, st.binary()),
        st.builds(_changed, st.integers(0, 600), st.binary(max_size=3)),
        st.builds(_joined, _PARTS),
    )
)
def test_no_bytes_make_a_token_parser_fail(data: bytes) -> None:
    """etcd's had a type assertion that stopped the server (ADA-06)."""
    for parser in _parsers():
        identity = parser.resolve(data)
        assert identity is None or data == GOOD_JWT
        assert isinstance(parser.may_come(data, 5), bool)
        parser.sweep()


def test_a_right_that_is_gone_moves_no_leader(run: Any, serving: Any) -> None:
    """It is asked again after a read barrier: what this member knew before may be what a leader of the past knew."""

    async def work() -> None:
        async with serving("ngh2", auth=CHEAP) as served, await H2Client.connect(served.url) as client:
            tokens = await people(client)
            moved: list[int] = []

            def move(target: int, done: Callable[[object], None]) -> None:
                moved.append(target)
                done(None)

            served.backend.transfer_leadership = move
            grant = m("AuthUserGrantRoleRequest", user="nobody", role="root")
            await ok(client, "Auth/UserGrantRole", grant, tokens["root"])
            request = m("MoveLeaderRequest", targetID=7)
            assert (await ask(client, "Maintenance/MoveLeader", request, tokens["nobody"])).code == 0
            assert moved == [7]
            served.backend.hold = True
            asked = asyncio.create_task(ask(client, "Maintenance/MoveLeader", request, tokens["nobody"]))
            await served.until(lambda: len(served.backend.held) == 1, "the barrier")
            served.backend.hold = False
            revoke = m("AuthUserRevokeRoleRequest", name="nobody", role="root")
            await ok(client, "Auth/UserRevokeRole", revoke, tokens["root"])
            served.backend.held.pop()()
            assert (await asked).text == "etcdserver: revision of auth store is old"
            assert moved == [7]

    run(work())


def test_who_changes_the_membership_is_told_to_whoever_decides(run: Any, serving: Any) -> None:
    async def work() -> None:
        async with serving("ngh2", auth=CHEAP) as served, await H2Client.connect(served.url) as client:
            askers: list[str] = []

            def change(*arguments: Any) -> int:
                askers.append(arguments[-2])
                arguments[-1](None)
                return 7

            for name in ("add_member", "remove_member", "update_member", "promote_member"):
                setattr(served.backend, name, change)
            calls = {
                "MemberAdd": m("MemberAddRequest", peerURLs=["http://a:1"]),
                "MemberRemove": m("MemberRemoveRequest", ID=7),
                "MemberUpdate": m("MemberUpdateRequest", ID=7, peerURLs=["http://a:1"]),
                "MemberPromote": m("MemberPromoteRequest", ID=7),
            }
            for name, request in calls.items():
                await ok(client, f"Cluster/{name}", request)
            assert askers == [""] * 4
            tokens = await people(client)
            for name, request in calls.items():
                await ok(client, f"Cluster/{name}", request, tokens["root"])
                assert (await ask(client, f"Cluster/{name}", request, tokens["writer"])).code == Code.PERMISSION_DENIED
            assert askers[4:] == ["root"] * 4

    run(work())


def test_the_machine_says_who_may_change_the_membership() -> None:
    machine = KvMachine.in_memory()
    assert is_guarded(machine) and machine.refuse_operator("") == ""
    commands = [UserAdd("root", b"", True), RoleAdd("root"), UserGrantRole("root", "root"), UserAdd("other", b"", True)]
    machine.apply(Context(1, 1, 0), [encode(command) for command in [*commands, AuthEnable()]])
    assert machine.auth.enabled
    assert [machine.refuse_operator(user) for user in ("", "root", "other", "none")] == [
        "no_user", "", "not_permitted", "unknown_user",
    ]  # fmt: skip
