"""ASGI applications that the servers of tests run."""
