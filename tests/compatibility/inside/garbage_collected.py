"""A pytest plugin that collects garbage before each test.

Consumers of earlier tests that listen to signals of Django are otherwise heard until they are collected, at a
moment that depends on everything else in the process.
"""

import gc

import pytest


@pytest.fixture(autouse=True)
def _garbage_collected() -> None:
    gc.collect()
