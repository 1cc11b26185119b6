"""A job that exactly one of several processes does, writing where an old writer is refused.

    python one_writer.py n1        python one_writer.py n2        python one_writer.py n3

The lock's token goes with every write. A process that was paused while it held the lock finds its writes refused.
"""

import asyncio
import sqlite3
import sys

from oarlock import LeaseLost, Lock, Node, RaftError
from oarlock.fencing import Fenced, check_sqlite

PEERS = {"n1": "127.0.0.1:7201", "n2": "127.0.0.1:7202", "n3": "127.0.0.1:7203"}


def write(token: int, text: str) -> None:
    connection = sqlite3.connect("out.db", isolation_level=None)
    try:
        connection.execute("BEGIN IMMEDIATE")
        check_sqlite(connection, "out", token)
        connection.execute("CREATE TABLE IF NOT EXISTS lines (token INTEGER, text TEXT)")
        connection.execute("INSERT INTO lines VALUES (?, ?)", (token, text))
        connection.execute("COMMIT")
    finally:
        connection.close()


async def main(name: str) -> None:
    async with Node(Lock(), name, peers=PEERS, data_dir=f"{name}.oarlock", lease_ttl=3) as node:
        while True:
            try:
                async with node.machine as held:
                    for n in range(10):
                        await asyncio.to_thread(write, held.token, f"{name} wrote {n}")
                        print(f"{name} wrote with token {held.token}", flush=True)
                        await asyncio.sleep(0.1)
            except (LeaseLost, Fenced, RaftError) as error:
                print(f"{name}: {error}", flush=True)
                await asyncio.sleep(0.1)


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "n1"))
    except KeyboardInterrupt:
        pass
