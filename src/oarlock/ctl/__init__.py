"""`oarlockctl`: etcdctl's verbs, flags, environment, output formats and exit codes, started fast.

`verbs` is the table of everything that can be typed; a module for each family of verbs does the work and is loaded when
one of its verbs runs. One blocking connection carries the calls: no event loop, and no parser of command lines that
takes longer to load than a call takes. (docs/reference/oarlockctl.md)

Public: `main`, the console script.
"""

from oarlock.ctl.app import main

__all__ = ["main"]
