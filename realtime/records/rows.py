"""How rows are written: in which database, how many at once, locked in which order; what a column takes."""

import uuid
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import islice
from typing import Any, TypeVar, cast

from django.db import connections, models, router, transaction
from django.db.models import QuerySet

from realtime.models import Process
from realtime.records import bulk

BATCH = 500
"""How many rows one statement names; updates of more are several transactions, so that none is long."""

_T = TypeVar("_T")
_Row = TypeVar("_Row", bound=models.Model)


def database() -> str:
    """The alias of the database that is written to."""
    return router.db_for_write(Process)


def lock(rows: "QuerySet[_Row]") -> None:
    """Take row locks in the order of the keys: two writers that meet in different orders would deadlock.

    SQLite has one writer at a time, and a read before the write would only make a deferred transaction fail.
    """
    if connections[rows.db].features.has_select_for_update:
        list(rows.order_by("pk").select_for_update(no_key=True).values_list("pk"))


def lock_some(rows: "QuerySet[_Row]", limit: int) -> list[uuid.UUID]:
    """The keys of the first rows that no other writer has locked, locked."""
    free = rows.select_for_update(no_key=True, skip_locked=True)
    return list(free.values_list("pk", flat=True)[:limit])


def delete_some(rows: "QuerySet[_Row]", limit: int) -> int:
    """Delete the first rows that no other writer has locked; how many, without those that went with them."""
    with transaction.atomic(using=rows.db):
        batch = lock_some(rows, limit)
        _, per_model = rows.model._default_manager.using(rows.db).filter(pk__in=batch).delete()
    return per_model.get(rows.model._meta.label, 0)


def insert(
    model: type[models.Model], names: Sequence[str], rows: Sequence[Sequence[Any]], now: Sequence[str]
) -> None:
    using = database()
    with transaction.atomic(using=using, savepoint=False):
        for batch in batches(rows):
            bulk.insert_new(model, names, batch, now=now, using=using)


def batches(items: Iterable[_T]) -> Iterator[list[_T]]:
    rest = iter(items)
    while batch := list(islice(rest, BATCH)):
        yield batch


@cache
def _length(model: type[models.Model], field: str) -> int | None:
    return cast("models.CharField[str, str]", model._meta.get_field(field)).max_length


def cut(text: str, model: type[models.Model], field: str) -> str:
    """What every database stores: no NUL (PostgreSQL refuses it), no lone surrogate, cut to the column."""
    limit = _length(model, field)
    if not text.isascii() or "\0" in text:
        text = text.replace("\0", "\ufffd").encode("utf-8", errors="replace").decode("utf-8")
    return text[:limit]
