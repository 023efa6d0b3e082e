"""The parts that serve the whole operating-system process: its stop, tasks, threads and tuning.

Private: docs/reference.md lists the public names.
"""
