"""lock and elect: one holder at a time, for as long as its lease is kept alive."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any, Final

from oarlock.ctl.app import Run
from oarlock.ctl.client import environment_with, method
from oarlock.ctl.connection import UNAVAILABLE
from oarlock.ctl.failures import CallError, Failure, Interrupted, bad_arguments
from oarlock.ctl.session import LOOK_SECONDS, TTL_DEFAULT, Session, signals_interrupt
from oarlock.ctl.watch import ended, not_started

KILLED: Final = 255


def lock(run: Run) -> int:
    if not run.args:
        raise bad_arguments("lock takes a lock name argument and an optional command to execute")
    with signals_interrupt(), Session(run.client, run.ttl) as session:
        answer = session.wait_turn("v3lockpb.Lock/Lock", name=run.raw(0), lease=session.lease)
        try:
            if run.args[1:]:
                return _command(run, session, answer)
            _show(run, answer.key, "lock lost on init")
            session.hold("")
        except Interrupted:
            pass  # whoever holds a lock ends well this way
        finally:
            run.client.drop()
            if not session.lost.is_set():
                run.client("v3lockpb.Lock/Unlock", key=answer.key)
    return 0


def _command(run: Run, session: Session, answer: Any) -> int:
    environment = environment_with([
        ("ETCD_LOCK_KEY", os.fsdecode(answer.key)), ("ETCD_LOCK_REV", str(answer.header.revision)),
    ])  # fmt: skip
    command = run.args[1:]
    try:
        child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)  # noqa: S603 - the user's own command
    except OSError as error:
        raise Failure(not_started(command[0], error)) from None
    warned = False
    code = None
    while code is None:
        try:
            code = child.wait(LOOK_SECONDS)
        except subprocess.TimeoutExpired:
            if session.lost.is_set() and not warned:
                warned = True
                sys.stderr.write("warning: the lock's lease is lost; another holder may run at the same time\n")
        except Interrupted:
            child.terminate()  # and wait: the lock is held until the command has ended
    if code:
        raise Failure(ended(code), code if code > 0 else KILLED)
    return 0


def elect(run: Run) -> int:
    if not 1 <= len(run.args) <= 2:
        raise bad_arguments("elect takes one election name argument and an optional proposal argument")
    if run.listen:
        if len(run.args) > 1:
            raise bad_arguments("proposal given but -l is set")
        return _observe(run)
    if len(run.args) == 1:
        raise bad_arguments("no proposal argument but -l not set")
    with signals_interrupt(), Session(run.client, TTL_DEFAULT) as session:
        answer = session.wait_turn(
            "v3electionpb.Election/Campaign", name=run.raw(0), lease=session.lease, value=run.raw(1)
        )
        try:
            _show(run, answer.leader.key, "election lost on init")
            session.hold("elect: ")
        except Interrupted:
            pass
        finally:
            run.client.drop()
            if not session.lost.is_set():
                run.client("v3electionpb.Election/Resign", leader=answer.leader)
    return 0


def _show(run: Run, key: bytes, lost: str) -> None:
    found = run.client("KV/Range", repeat=True, key=key)
    if not found.kvs:
        raise Failure(lost, hint="its key was removed by somebody else")
    run.printer(found, lambda: run.printer.pairs(found.kvs))


def _observe(run: Run) -> int:
    """Print who leads, and every later leader."""
    rpc = "v3electionpb.Election/Observe"
    _, request, response = method(rpc)
    result: Any = method("KV/Range")[2]
    seen = (0, 0)
    with signals_interrupt():
        try:
            while True:
                try:
                    call = run.client.open(rpc)
                    call.send(request(name=run.raw(0)).SerializeToString(), end=True)
                    for raw in call.rest():
                        told = response.FromString(raw)
                        at = (told.kv.create_revision, told.kv.mod_revision)
                        if at > seen:  # a member that was asked anew tells the present leader again
                            seen = at
                            shown = result(header=told.header, kvs=[told.kv])
                            run.printer(shown, lambda shown=shown: run.printer.pairs(shown.kvs))
                except CallError as error:
                    if error.code != UNAVAILABLE and "no leader" not in error.text:
                        raise
                run.client.drop()
                time.sleep(LOOK_SECONDS / 5)
        except Interrupted:
            return 0
