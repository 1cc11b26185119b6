"""A running member: `replica` is the deterministic part, `runtime` drives it with real time, disks and sockets,
`bootstrap` opens or makes its data directory, `backend` shows it to the API.
"""
