"""Attacks on a whole installation. SECURITY.md lists the attackers, and the test for each."""
