"""The JSON protocol and WebSocket frames, without I/O.

Private: docs/reference.md lists the public names.
"""
