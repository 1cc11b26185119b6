"""endpoint health, status and hashkv: each member asked by itself."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from oarlock.ctl import text
from oarlock.ctl.app import Run
from oarlock.ctl.client import Client
from oarlock.ctl.failures import CallError, Failure
from oarlock.ctl.show import alarm_name, fields, plain, rows

STATUS_HEADS: Final = (
    "ENDPOINT", "ID", "VERSION", "DB SIZE", "IS LEADER", "IS LEARNER", "RAFT TERM", "RAFT INDEX", "RAFT APPLIED INDEX",
    "ERRORS",
)  # fmt: skip
PERMISSION_DENIED: Final = "etcdserver: permission denied"


def clients(run: Run) -> list[Client]:
    """A client for each endpoint: those given, or with --cluster every member's."""
    client: Client = run.client
    texts = [endpoint.text for endpoint in client.endpoints]
    if run.cluster:
        members = client("Cluster/MemberList", repeat=True, linearizable=True).members
        texts = list(dict.fromkeys(url for member in members for url in member.clientURLs))
    return [client.to(one) for one in texts]


def of_each(found: list[Client], ask: Callable[[Client], Any]) -> list[Any]:
    """What `ask` gives for each, asked at the same time; a `CallError` or `Failure` in its place where it ends so."""
    results: list[Any] = [None] * len(found)

    def one(number: int) -> None:
        try:
            results[number] = ask(found[number])
        except (CallError, Failure) as error:
            results[number] = error

    threads = [threading.Thread(target=one, args=(number,), daemon=True) for number in range(len(found))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def endpoint_health(run: Run) -> int:
    found = clients(run)

    def ask(client: Client) -> tuple[float, str]:
        began = time.monotonic()
        wrong = ""
        try:
            client("KV/Range", repeat=True, key=b"health")
        except CallError as error:
            wrong = "" if error.text == PERMISSION_DENIED else error.text
        except Failure as failure:
            wrong = failure.text
        took = time.monotonic() - began
        if not wrong:
            try:
                alarms = client("Maintenance/Alarm", repeat=True, action=0).alarms
                names = [alarm_name(alarm) for alarm in alarms]
                wrong = f"Active Alarm(s): {', '.join(names)}" if names else ""
            except CallError as error:
                wrong = "" if error.text == PERMISSION_DENIED else "Unable to fetch the alarm list"
        return took, wrong

    results = [(client.endpoints[0].text, *result) for client, result in zip(found, of_each(found, ask), strict=True)]
    match run.write_out:
        case "json":
            shown = []
            for name, took, wrong in results:
                one = {"endpoint": name, "health": not wrong, "took": text.duration(took)}
                shown.append({**one, "error": wrong} if wrong else one)
            run.printer.lines([text.dumps(shown)])
        case "table":
            rows(run.printer, ("ENDPOINT", "HEALTH", "TOOK", "ERROR"), [
                (name, "false" if wrong else "true", text.duration(took), wrong) for name, took, wrong in results
            ])  # fmt: skip
        case "fields":
            for name, took, wrong in results:
                run.printer.lines(line.encode() for line in (
                    f'"Endpoint" : {text.quoted(name.encode())}', f'"Health" : {"false" if wrong else "true"}',
                    f'"Took" : {text.duration(took)}', f'"Error" : {wrong}', "",
                ))  # fmt: skip
        case _:
            for name, took, wrong in results:
                if wrong:
                    sys.stderr.write(f"{name} is unhealthy: failed to commit proposal: {wrong}\n")
                else:
                    line = f"{name} is healthy: successfully committed proposal: took = {text.duration(took)}"
                    run.printer.lines([line.encode()])
    if any(wrong for _, _, wrong in results):
        raise Failure("unhealthy cluster", hint="; ".join(sorted({c.why for c in found if c.why})))
    return 0


def endpoint_status(run: Run) -> int:
    found = clients(run)
    answers, failed = _answers(found, lambda client: client("Maintenance/Status", repeat=True), "status")
    match run.write_out:
        case "json":
            run.printer.lines([text.dumps([{"Endpoint": name, "Status": plain(one)} for name, one in answers])])
        case "fields":
            for name, one in answers:
                lines = [*fields(one), f'"Endpoint" : {text.quoted(name.encode())}', ""]
                run.printer.lines(line.encode() for line in lines)
        case _:
            rows(run.printer, STATUS_HEADS, [
                (name, f"{one.header.member_id:x}", one.version, text.size(one.dbSize),
                 str(one.leader == one.header.member_id).lower(), str(one.isLearner).lower(), str(one.raftTerm),
                 str(one.raftIndex), str(one.raftAppliedIndex), ", ".join(one.errors))
                for name, one in answers
            ])  # fmt: skip
    return 1 if failed else 0


def endpoint_hashkv(run: Run) -> int:
    found = clients(run)
    answers, failed = _answers(
        found, lambda client: client("Maintenance/HashKV", repeat=True, revision=run.rev), "hash"
    )
    match run.write_out:
        case "json":
            run.printer.lines([text.dumps([{"Endpoint": name, "HashKV": plain(one)} for name, one in answers])])
        case "fields":
            for name, one in answers:
                lines = [*fields(one), f'"Endpoint" : {text.quoted(name.encode())}', f'"Hash" : {one.hash}', ""]
                run.printer.lines(line.encode() for line in lines)
        case _:
            rows(run.printer, ("ENDPOINT", "HASH"), [(name, str(one.hash)) for name, one in answers])
    if failed is not None:
        raise failed
    return 0


def _answers(
    found: list[Client], ask: Callable[[Client], Any], what: str
) -> tuple[list[tuple[str, Any]], Exception | None]:
    """The answers by endpoint, and an error if there was one; each is told on stderr."""
    answers, failed = [], None
    for client, result in zip(found, of_each(found, ask), strict=True):
        name = client.endpoints[0].text
        if isinstance(result, CallError | Failure):
            failed = result
            sys.stderr.write(f"Failed to get the {what} of endpoint {name} ({result})\n")
            if client.why:
                sys.stderr.write(f"{client.why}\n")
        else:
            answers.append((name, result))
    return answers, failed
