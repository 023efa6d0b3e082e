"""Serve one connection from its first event to its last.

Private: docs/reference.md lists the public names.
"""
