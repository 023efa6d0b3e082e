"""Everything that tests and benchmarks share: clients, programs, faults, assertions, doubles, applications.

The docstring of each folder says what is in it. The modules beside the folders are the fixtures of tests with
real servers (`fixtures`), their settings (`live`), the settings of pytest (`settings`), the pairings of
layer, server and database (`pairings`), and helpers for work in parallel (`racing`, `repeating`).
"""
