"""Faults that tests cause: lost packets, stalls, wrong clocks."""
