"""See all processes as a reaper does: rounds, answers, cleanup and comparison."""
