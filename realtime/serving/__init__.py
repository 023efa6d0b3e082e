"""Serve one connection from its first event to its last."""
