"""What gives a client the right to its connection, and how long it lasts: users, sessions and tickets.

Private: docs/reference.md lists the public names.
"""
