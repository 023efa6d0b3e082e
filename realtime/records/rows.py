"""The common rules for writing rows: the database, the size of statements, the order of locks, clean text.

Rows are inserted by statements that are built here, for a quarter of what `bulk_create` costs. `bulk_create`
resolves and compiles every value of every row on its own, for 50 to 70 microseconds a row, of which the
database itself needs 5. In a storm of clients, all of them wait for it.
"""

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any, TypeVar, cast

from django.db import OperationalError, connections, models, router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import QuerySet
from django.db.models.constants import OnConflict
from django.db.models.functions import Now

from realtime.models import Process, Round

BATCH = 500
"""The number of rows that one statement names. A write of more rows is several transactions, so that none is
long; an insert of more is several statements in one.
"""

#: The number of times that a transaction is tried, if other writers are in its way.
TRIES = 5
#: SQLSTATE of transactions that PostgreSQL rolled back because of another: serialization failure, deadlock.
_CONFLICTS = frozenset({"40001", "40P01"})

_T = TypeVar("_T")
_Row = TypeVar("_Row", bound=models.Model)


def database() -> str:
    """Return the alias of the database that is written to."""
    return router.db_for_write(Process)


def again_after_conflict(transact: Callable[[], _T]) -> _T:
    """Call a function that is one transaction. Call it again if PostgreSQL rolled it back for another's sake.

    Writers lock rows in one order, so that deadlocks are rare. They are possible between the records of a
    process that was declared lost although it lives, and the sweep that closes them.

    Args:
        transact: The function. In a transaction of the caller it is called only once.

    Raises:
        django.db.Error: Any other error, or the conflict of the last of `TRIES`.
    """
    tries = 1 if connections[database()].in_atomic_block else TRIES
    for rest in reversed(range(tries)):
        try:
            return transact()
        except OperationalError as error:
            if not rest or not is_conflict(error):
                raise
    raise AssertionError("unreachable")


def is_conflict(error: BaseException) -> bool:
    """Return True if PostgreSQL rolled a transaction back because another writer was in its way."""
    cause = error.__cause__
    return (getattr(cause, "sqlstate", None) or getattr(cause, "pgcode", None)) in _CONFLICTS


def lock(rows: "QuerySet[_Row]") -> None:
    """Lock rows in the order of their keys. Two writers that lock in different orders would deadlock.

    SQLite has one writer at a time, and a read before the write would only make a deferred transaction fail.
    """
    if locks_rows(rows):
        list(rows.order_by("pk").select_for_update(no_key=True).values_list("pk"))


def locks_rows(rows: "QuerySet[_Row]") -> bool:
    """Return True if the database of these rows has locks of rows, and several writers at a time."""
    return connections[rows.db].features.has_select_for_update


def begin_write(using: str) -> None:
    """Begin a transaction that will write after it has read.

    A deferred transaction of SQLite that begins with a read may fail at its first write.
    """
    if not connections[using].features.has_select_for_update:
        # This write changes nothing.
        Round.objects.using(using).filter(pk=0).update(number=0)


def lock_some(rows: "QuerySet[_Row]", limit: int) -> list[uuid.UUID]:
    """Lock the first rows that no other writer has locked, at most `limit`.

    Returns:
        Their keys.
    """
    begin_write(rows.db)
    free = rows.select_for_update(no_key=True, skip_locked=True)
    return list(free.values_list("pk", flat=True)[:limit])


def delete_some(rows: "QuerySet[_Row]", limit: int) -> int:
    """Delete the first rows that no other writer has locked, at most `limit`.

    Returns:
        The number of deleted rows, without the rows of other tables that were deleted with them.
    """
    with transaction.atomic(using=rows.db):
        batch = lock_some(rows, limit)
        _, per_model = rows.model._default_manager.using(rows.db).filter(pk__in=batch).delete()
    return per_model.get(rows.model._meta.label, 0)


def insert_new(
    model: type[models.Model], names: Sequence[str], rows: Sequence[Sequence[Any]], *, now: Sequence[str]
) -> None:
    """Insert rows in one transaction, except rows that exist already by any unique constraint.

    Args:
        model: The model of the rows.
        names: The attributes of the fields that `rows` give a value for.
        rows: One sequence of values for each row.
        now: The attributes of the fields that get the time of the database's clock. All other fields get
            their defaults.

    Raises:
        django.db.Error: The database cannot be reached or refuses a row.
    """
    using = database()
    with transaction.atomic(using=using, savepoint=False):
        insertion = _insertion(connections[using], model, names, now)
        with insertion.connection.cursor() as cursor:
            for batch in batches(rows, insertion.limit):
                cursor.execute(insertion.statement(len(batch)), insertion.values(batch))


@dataclass(frozen=True, slots=True)
class _Insertion:
    """The parts of a statement that inserts any number of rows."""

    connection: BaseDatabaseWrapper
    head: str
    row: str
    """The placeholders of one row."""
    tail: str
    prepare: Sequence[Callable[[Any, BaseDatabaseWrapper], Any]]
    """For each value of a row, the function that makes it what the database takes."""
    defaults: Sequence[Any]
    limit: int
    """The largest number of rows in one statement. Some databases limit the number of its values."""

    def statement(self, count: int) -> str:
        return f"{self.head}{', '.join([self.row] * count)} {self.tail}"

    def values(self, rows: Iterable[Sequence[Any]]) -> list[Any]:
        return [
            value
            for row in rows
            for value in (
                *(prepare(each, self.connection) for prepare, each in zip(self.prepare, row, strict=True)),
                *self.defaults,
            )
        ]


def _insertion(
    connection: BaseDatabaseWrapper, model: type[models.Model], names: Sequence[str], now: Sequence[str]
) -> _Insertion:
    fields = [field for field in model._meta.concrete_fields if not isinstance(field, models.AutoField)]
    by_name = {field.attname: field for field in fields}
    defaults = {
        name: field.get_db_prep_save(field.get_default(), connection)
        for name, field in by_name.items()
        if name not in names and name not in now
    }
    clock = now_sql(connection)
    quote = connection.ops.quote_name
    columns = ", ".join(quote(str(by_name[name].column)) for name in (*names, *defaults, *now))
    values = len(names) + len(defaults)
    most = connection.features.max_query_params
    return _Insertion(
        connection=connection,
        head=(
            f"{connection.ops.insert_statement(on_conflict=OnConflict.IGNORE)} {quote(model._meta.db_table)}"
            f" ({columns}) VALUES "
        ),
        row=f"({', '.join(['%s'] * values + [clock] * len(now))})",
        tail=connection.ops.on_conflict_suffix_sql(fields, OnConflict.IGNORE, (), ()),
        prepare=[by_name[name].get_db_prep_save for name in names],
        defaults=tuple(defaults.values()),
        limit=min(BATCH, most // values) if most else BATCH,
    )


def now_sql(connection: BaseDatabaseWrapper) -> str:
    """Return the time of the database's clock as SQL, for statements that are written here."""
    compiler = Process._default_manager.using(connection.alias).query.get_compiler(connection.alias)
    return str(compiler.compile(Now())[0])


def batches(items: Iterable[_T], size: int = BATCH) -> Iterator[list[_T]]:
    """Yield the items in lists of `size`; the last one may be shorter."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


@cache
def _length(model: type[models.Model], field: str) -> int | None:
    return cast("models.CharField[str, str]", model._meta.get_field(field)).max_length


def user_key(user: Any) -> str:
    """Return the primary key of a user as text, as records have it.

    Args:
        user: A user, or the primary key of one.

    Raises:
        ValueError: The user is anonymous or not saved, or the key is empty.
    """
    key = getattr(user, "pk", user)
    if key is None or not (text := str(key)):
        raise ValueError("A user is needed: anonymous users have no primary key.")
    return text


def cut(text: str, model: type[models.Model], field: str) -> str:
    """Return a text that every database stores in the column of a field.

    It has no NUL (PostgreSQL refuses it) and no lone surrogate, and is cut to the length of the column.
    """
    limit = _length(model, field)
    if not text.isascii() or "\0" in text:
        text = text.replace("\0", "\ufffd").encode("utf-8", errors="replace").decode("utf-8")
    return text[:limit]
