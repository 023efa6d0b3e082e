"""Hold the connections of this process: their groups, their heartbeat, and what arrives for them.

Private: docs/reference.md lists the public names.
"""
