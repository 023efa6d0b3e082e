"""Stand-ins that unit and integration tests use instead of real parts: a connection, rows, an event loop."""
