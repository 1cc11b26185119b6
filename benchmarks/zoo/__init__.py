"""The bug zoo: real defects of Raft implementations, planted one at a time in a copy of this source, and hunted.

`make zoo` runs it (docs/reference/zoo.md). Each entry is a change of the source text that must apply exactly; the
simulator runs the changed copy in a process of its own, with asserts off, until an invariant fires or the budget of
seeds is used up. A simulator that stays silent while a planted defect runs is worth nothing: a survivor means that a
fault or an invariant is missing.
"""
