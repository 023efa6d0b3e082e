"""Judge from pings and proofs when a connection is dead, without I/O or clock."""
