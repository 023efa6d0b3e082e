"""See all processes as a reaper does: rounds, answers, cleanup and comparison.

Private: docs/reference.md lists the public names.
"""
