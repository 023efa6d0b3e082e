"""Fixtures of the tests of limits."""

from tests.integration.conftest import realtime_settings

__all__ = ["realtime_settings"]
