"""Consensus, pure: one member of one group as a function from events and time to effects.

It imports nothing but the standard library, reads no clock, draws no randomness of its own and does no I/O. Public:
`Raft` and `RaftConfig` (`core`, `config`), the values of the protocol (`types`), the messages between members
(`messages`), events and effects (`events`), quorum arithmetic (`quorum`), `RaftStatus` (`status`), `Trace` (`trace`).
"""
