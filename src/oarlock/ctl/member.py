"""member add, list, promote, remove and update."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from oarlock.ctl import text
from oarlock.ctl.app import Run
from oarlock.ctl.failures import Failure, bad_arguments
from oarlock.ctl.show import plain, rows

NO_URLS = "member peer urls not provided"
HEADS = ("ID", "STATUS", "NAME", "PEER ADDRS", "CLIENT ADDRS", "IS LEARNER")


def member_list(run: Run) -> None:
    answer = run.client("Cluster/MemberList", repeat=True, linearizable=True)
    found = [
        (f"{member.ID:x}", "started" if member.name else "unstarted", member.name, ",".join(member.peerURLs),
         ",".join(member.clientURLs), "true" if member.isLearner else "false")
        for member in answer.members
    ]  # fmt: skip
    if run.write_out in ("table", "simple"):
        rows(run.printer, HEADS, found)
    else:
        run.printer(answer, list, _hexadecimal(answer) if run.hex else None)


def _hexadecimal(answer: Any) -> Any:
    """The JSON of `--hex`, in etcdctl's own spelling."""
    shown = plain(answer, hexadecimal_ids=True)
    for member in shown.get("members", ()):
        if "clientURLs" in member:
            member["clientURLS"] = member.pop("clientURLs")
    return shown


def member_add(run: Run) -> None:
    if not run.args:
        raise bad_arguments("member name not provided")
    if len(run.args) > 1:
        extra = run.args[1]
        raise bad_arguments(
            f"too many arguments, did you mean --peer-urls={extra}" if not run.peer_urls else "too many arguments"
        )
    answer = run.client("Cluster/MemberAdd", peerURLs=_urls(run), isLearner=run.learner)
    run.printer(answer, lambda: _added(run.args[0], answer))


def _added(name: str, answer: Any) -> Iterator[bytes]:
    new = answer.member.ID
    yield _changed("added to", answer, new)
    yield b""
    cluster = ",".join(
        f"{name if new == member.ID else member.name}={url}" for member in answer.members for url in member.peerURLs
    )
    for variable, value in (
        ("NAME", name), ("INITIAL_CLUSTER", cluster),
        ("INITIAL_ADVERTISE_PEER_URLS", ",".join(answer.member.peerURLs)), ("INITIAL_CLUSTER_STATE", "existing"),
    ):  # fmt: skip
        yield f'ETCD_{variable}="{value}"'.encode("utf-8", "surrogateescape")


def member_update(run: Run) -> None:
    member = _id(run)
    answer = run.client("Cluster/MemberUpdate", ID=member, peerURLs=_urls(run))
    run.printer(answer, lambda: [_changed("updated in", answer, member)])


def member_remove(run: Run) -> None:
    member = _id(run)
    answer = run.client("Cluster/MemberRemove", ID=member)
    run.printer(answer, lambda: [_changed("removed from", answer, member)])


def member_promote(run: Run) -> None:
    member = _id(run)
    answer = run.client("Cluster/MemberPromote", ID=member)
    run.printer(answer, lambda: [_changed("promoted in", answer, member)])


def _changed(how: str, answer: Any, member: int) -> bytes:
    return f"Member {member:16x} {how} cluster {answer.header.cluster_id:16x}".encode()


def _id(run: Run) -> int:
    if len(run.args) != 1:
        raise bad_arguments("member ID is not provided", "`member list` shows the IDs")
    try:
        return text.integer(run.args[0], 16, signed=False)
    except ValueError as error:
        raise bad_arguments(
            f"bad member ID arg ({error}), expecting ID in Hex", "`member list` shows the IDs"
        ) from None


def _urls(run: Run) -> list[str]:
    if not run.peer_urls:
        raise bad_arguments(NO_URLS, "give --peer-urls=http://HOST:PORT")
    urls = run.peer_urls.split(",")
    for url in urls:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise Failure(f"{error}: {url}") from None
        if parts.scheme not in ("http", "https", "unix", "unixs"):
            raise Failure(f"URL scheme must be http, https, unix, or unixs: {url}")
        if parts.scheme in ("http", "https") and (not parts.hostname or port is None):
            raise Failure(f'URL address does not have the form "host:port": {url}')
        if parts.path and parts.scheme in ("http", "https"):
            raise Failure(f"URL must not contain a path: {url}")
    return [str(url) for url in urls]
