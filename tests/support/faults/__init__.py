"""Faults that tests cause: lost packets, a cut connection, stalls, wrong clocks, and the plan of a churn."""
