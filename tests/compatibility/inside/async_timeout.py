"""A stand-in for the package of this name, which the suites import: Python 3.11 has its own timeout."""

from asyncio import timeout

__all__ = ["timeout"]
