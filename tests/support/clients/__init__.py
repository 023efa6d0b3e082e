"""Clients of a server, in this process (`websocket`, `raw`) or in their own, and publishers of messages."""
