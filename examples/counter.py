"""A replicated counter. Three copies of this file make a cluster; run each in a terminal of its own:

    python counter.py n1        python counter.py n2        python counter.py n3

Stop one with Ctrl-C or kill -9: the others count on. Start it again: it catches up.
"""

import asyncio
import sys

from oarlock import Node, RaftError, StateMachine, command, query

PEERS = {"n1": "127.0.0.1:7101", "n2": "127.0.0.1:7102", "n3": "127.0.0.1:7103"}


class Counter(StateMachine):
    def __init__(self) -> None:
        self.value = 0

    @command
    def add(self, n: int) -> int:
        self.value += n
        return self.value

    @query
    def get(self) -> int:
        return self.value


async def main(name: str) -> None:
    async with Node(Counter(), name, peers=PEERS, data_dir=f"{name}.oarlock") as node:
        while True:
            try:
                print(await node.machine.add(1), "leader" if node.is_leader else f"by {node.leader}", flush=True)
            except RaftError as error:
                print(error, flush=True)
            await asyncio.sleep(0.2)


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "n1"))
    except KeyboardInterrupt:
        pass
