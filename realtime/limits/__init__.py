"""Limits on what a client may have and send: connections, groups, frames, bytes and messages.

Private: docs/reference.md lists the public names.
"""
