"""Judge from pings and pongs if a connection is alive, without I/O and without reading a clock."""
