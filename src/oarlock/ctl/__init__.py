"""`oarlockctl`: the key-value verbs of etcdctl, started fast: one blocking connection, no event loop.

Public: `main`, the console script.
"""

from oarlock.ctl.app import main

__all__ = ["main"]
