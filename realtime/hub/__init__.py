"""Hold the connections of this process: their groups, their heartbeat, and what arrives for them."""
