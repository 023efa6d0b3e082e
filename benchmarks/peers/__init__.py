"""Servers that are not Channels, for comparison: Socket.IO and `ws` on Node, `websockets` in Python."""
