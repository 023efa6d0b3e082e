"""Tell the processes that hold connections what Django's signals say of users, sessions and groups.

Private: docs/reference.md lists the public names.
"""
