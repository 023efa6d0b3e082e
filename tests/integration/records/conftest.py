"""Tests of one kind of database: `make test` runs all of these tests on SQLite, and again on PostgreSQL."""

import pytest
from django.db import connection


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that are marked for the other database with `only_on("sqlite")`."""
    of_others = [
        item
        for item in items
        if (mark := item.get_closest_marker("only_on")) is not None and mark.args[0] != connection.vendor
    ]
    if of_others:
        config.hook.pytest_deselected(items=of_others)
        items[:] = [item for item in items if item not in of_others]
