"""The suites of other projects, run on their own classes and on ours, and compared test by test."""
