"""A program's own objects as replicated state: `declare` (`@command`, `@query`), `values` (how Python values travel and
are stored) and `machine` (the object as a state machine). Deterministic, no I/O. (docs/explanation/objects.md)
"""
