"""The bytes of messages between members: frames with their checks (`frames`) and the shapes of their bodies
(`shapes`). Pure functions and a parser without I/O, so that the transport and the simulator share them.
"""
