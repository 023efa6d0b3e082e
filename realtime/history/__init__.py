"""The recent messages of groups: where a group stands, what it keeps, and what a client has missed.

Private: docs/reference.md lists the public names.
"""
