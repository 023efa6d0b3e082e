"""The parts that serve the whole operating-system process: its stop, tasks, threads and tuning."""
