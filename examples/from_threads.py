"""The same from threads, without an event loop: a shared dictionary in a program of one member.

python from_threads.py
"""

import tempfile
import threading

from oarlock.sync import Node, StateMachine, command, query


class Votes(StateMachine):
    def __init__(self) -> None:
        self.votes: dict[str, int] = {}

    @command
    def vote(self, name: str) -> int:
        self.votes[name] = self.votes.get(name, 0) + 1
        return self.votes[name]

    @query
    def result(self) -> dict[str, int]:
        return self.votes


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, Node(Votes(), data_dir=f"{directory}/n1") as node:
        votes = node.machine
        threads = [
            threading.Thread(target=votes.vote, args=(name,)) for name in ("ada", "bob", "ada") for _ in range(5)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        print(sorted(votes.result().items()))


if __name__ == "__main__":
    main()
