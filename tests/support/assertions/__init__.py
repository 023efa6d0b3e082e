"""Waits, counts and comparisons: `eventually`, metrics, members of groups, figures of a run."""
