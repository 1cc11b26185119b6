"""Consensus inside a Python program: `Node` holds a program's own object (`machines.objects`) and keeps it alike on all
members. `node` is the asyncio face, `sync` the one for threads. (docs/tutorial/replicate-an-object.md)
"""
