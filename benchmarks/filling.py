"""A database full of open records, as in a large installation, made by a few statements."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connection, models

from realtime.models import Connection, Membership
from realtime.records import process_rows


def fill(processes: list[uuid.UUID], rows: int) -> None:
    """Insert `rows` open connections, spread evenly over these processes, each in a group of its own."""
    with much_cache():
        _fill(processes, rows // len(processes))


def _fill(processes: list[uuid.UUID], each: int) -> None:
    for number, process in enumerate(processes):
        _insert(
            Connection,
            each,
            {
                "id": _random_uuid(),
                "process_id": _literal(process),
                "user_id": _text("u", number * each),
                "path": "'/ws/'",
                "remote_address": "'192.0.2.1'",
                "user_agent": "'Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0'",
                "subprotocol": "'realtime.v1'",
                "opened_at": "CURRENT_TIMESTAMP",
                "last_seen_at": "CURRENT_TIMESTAMP",
            },
        )
    # One statement for all, so that the order of the keys is as random as that of real ones.
    quoted = connection.ops.quote_name
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {Membership._meta.db_table}"
            f" (connection_id, process_id, {quoted('group')}, joined_at, connection_closed)"
            f" SELECT id, process_id, 'user.' || user_id, CURRENT_TIMESTAMP, {_false()}"
            f" FROM {Connection._meta.db_table}"
        )
        if connection.vendor == "postgresql":
            cursor.execute("ANALYZE")


@contextmanager
def much_cache() -> Iterator[None]:
    """Enlarge the cache of SQLite, which otherwise writes each page of each index many times."""
    if connection.vendor != "sqlite":
        yield
        return
    with connection.cursor() as cursor:
        (before,) = cursor.execute("PRAGMA cache_size").fetchone()
        cursor.execute("PRAGMA cache_size = -2000000")
    yield
    with connection.cursor() as cursor:
        cursor.execute(f"PRAGMA cache_size = {before}")


def start_processes(channels: list[str], host: str) -> list[uuid.UUID]:
    numbered = enumerate(channels, start=1)
    return [process_rows.start_process(channel, host, number) for number, channel in numbered]


def _insert(model: type[models.Model], rows: int, values: dict[str, str]) -> None:
    """Insert rows. `values` are SQL expressions of `n`, the number of the row; other columns get defaults."""
    for field in model._meta.concrete_fields:
        if field.column not in values and not field.null:
            values[field.column] = _literal(field.get_default())
    columns = ", ".join(connection.ops.quote_name(column) for column in values)
    with connection.cursor() as cursor:
        cursor.execute(
            f"{_numbers(rows)} INSERT INTO {model._meta.db_table} ({columns})"
            f" SELECT {', '.join(values.values())} FROM numbers"
        )


def _numbers(count: int) -> str:
    """Return SQL for a table `numbers` with the column n, from 0."""
    if connection.vendor == "postgresql":
        return f"WITH numbers(n) AS (SELECT generate_series(0, {count - 1}))"
    return (
        f"WITH RECURSIVE numbers(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count - 1})"
    )


def _random_uuid() -> str:
    return "lower(hex(randomblob(16)))" if connection.vendor == "sqlite" else "gen_random_uuid()"


def _text(prefix: str, first: int) -> str:
    return f"'{prefix}' || (n + {first})"


def _false() -> str:
    return "0" if connection.vendor == "sqlite" else "false"


def _literal(value: Any) -> str:
    if isinstance(value, uuid.UUID):
        return f"'{value.hex}'"
    if isinstance(value, bool):
        return ("1" if value else "0") if connection.vendor == "sqlite" else str(value).lower()
    return f"'{value}'" if isinstance(value, str) else str(value)
