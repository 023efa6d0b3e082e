"""What belongs to the whole operating-system process: its stop, its tasks, its threads, its tuning."""
