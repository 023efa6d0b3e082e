"""Stand-ins that unit and integration tests use instead of real parts."""
