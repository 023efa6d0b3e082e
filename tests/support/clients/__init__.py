"""Clients of a server, and publishers that talk to them."""
