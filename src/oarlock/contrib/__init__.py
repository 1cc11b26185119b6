"""What lets other people's frameworks use Oarlock, each with an extra of its own; nothing here is imported by the rest.

`django`: a cache, sessions and locks for Django.
"""
