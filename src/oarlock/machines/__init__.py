"""Replicated state: what a machine is (`base`), the ordered stores that machines keep their state in (`store`,
`memory_store`, `lmdb_store`), a base for machines that live in memory (`volatile`) and the key-value machine (`kv`).

Deterministic and free of clocks; of ours, imports the errors and nothing else from outside this folder. Public:
`base.Machine`, `base.Context`, `base.Capture`, `base.Checkpoint`, `volatile.VolatileMachine`, `kv.KvMachine`.
"""
