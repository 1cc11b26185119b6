"""Small scopes: groups of the production core with bounds so tight that every reachable state can be visited, and the
production log through every crash. (docs/explanation/simulation.md, "Small scopes")

`capture` turns a core into a value and back, `member` steps one member, `explore` visits the states of a group,
`checks` says what must hold, `catalog` names the scopes A to G, `wal` is scope H.
"""
