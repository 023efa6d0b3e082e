"""Judge from pings and pongs if a connection is alive, without I/O and without reading a clock.

Private: docs/reference.md lists the public names.
"""
