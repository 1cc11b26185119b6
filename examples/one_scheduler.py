"""APScheduler in every process, at work in one of them; when that one dies another takes over.

    python one_scheduler.py n1                          # three copies that need nothing else: n1, n2, n3
    python one_scheduler.py n1 127.0.0.1:2379           # or any number of copies beside a server, Oarlock or etcd

Needs `pip install apscheduler`, and `oarlock[client]` for the second form. What a job writes goes with the leader's
token, so that a copy that was paused, and is no leader any more when it wakes, writes nothing.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from oarlock import Node, ReplicatedCounter
from oarlock.client import Client, EtcdError, LeaseExpired
from oarlock.fencing import Fenced, check_sqlite

PEERS = {"n1": "127.0.0.1:7301", "n2": "127.0.0.1:7302", "n3": "127.0.0.1:7303"}
TTL_S = 3  # how long a leader may be silent before it is replaced


def write(name: str, token: int) -> None:
    connection = sqlite3.connect("runs.db", isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        check_sqlite(connection, "runs", token)
        connection.execute("CREATE TABLE IF NOT EXISTS runs (token INTEGER, name TEXT)")
        connection.execute("INSERT INTO runs VALUES (?, ?)", (token, name))
        connection.execute("COMMIT")
    finally:
        connection.close()


async def job(name: str, token: int) -> None:
    try:
        await asyncio.to_thread(write, name, token)
        print(f"{name} ran with token {token}", flush=True)
    except Fenced as error:
        print(f"{name} is late: {error}", flush=True)


async def schedule(name: str, token: int) -> None:
    """The leader's work: until it is cancelled, because leadership has gone."""
    scheduler = AsyncIOScheduler()
    scheduler.add_job(job, "interval", seconds=0.2, args=[name, token], coalesce=True, misfire_grace_time=1)
    scheduler.start()
    print(f"{name} leads with token {token}", flush=True)
    try:
        await asyncio.Event().wait()
    finally:
        scheduler.shutdown(wait=False)
        print(f"{name} leads no more", flush=True)


async def embedded(name: str) -> None:
    async with Node(ReplicatedCounter(), name, peers=PEERS, data_dir=f"{name}.oarlock", lease_ttl=TTL_S) as node:
        node.on_leader(lambda token: schedule(name, token))
        await asyncio.Event().wait()


async def with_a_server(name: str, members: list[str]) -> None:
    async with Client(members) as client:
        while True:
            try:
                async with client.election("scheduler", ttl=TTL_S).campaign(name) as leadership:
                    await schedule(name, leadership.token)
            except (LeaseExpired, EtcdError) as error:
                print(f"{name}: {error}", flush=True)
                await asyncio.sleep(0.2)


if __name__ == "__main__":
    try:
        asyncio.run(with_a_server(sys.argv[1], sys.argv[2].split(",")) if len(sys.argv) > 2 else embedded(sys.argv[1]))
    except KeyboardInterrupt:
        pass
