"""The rights of users as the database has them, read in bulk and without instances of models.

Everything here is synchronous and uses the database, except `known_of`, `without_caches` and `readable`.

Private: docs/reference.md lists the public names.
"""

import copy
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

from django.contrib.auth import get_user_model
from django.core.exceptions import FieldDoesNotExist, ImproperlyConfigured
from django.db import connections, models, router
from django.utils.functional import LazyObject

#: The attributes in which Django keeps the permissions of a user once they were asked for.
_CACHES = ("_perm_cache", "_user_perm_cache", "_group_perm_cache", "_prefetched_objects_cache")
#: The columns that decide about the connections of a user, as far as the user model has them.
_COLUMNS = ("password", "is_active", "is_staff", "is_superuser")


class Standing(NamedTuple):
    """What was read of one user. Texts and lists are kept as hashes, because there may be many users."""

    password: int
    is_active: bool
    flags: int
    """Staff and superuser."""
    permissions: int
    """The groups, the permissions of these groups, and the permissions of the user."""


class Known(NamedTuple):
    """What the object of a user says that a middleware has read. None stands for what it does not say."""

    password: int | None
    is_active: bool | None
    flags: int | None


def _object_of(user: Any) -> Any:
    # A middleware of Channels wraps the user. If another middleware has put a user into the scope, it sets
    # `_wrapped` on that object, to the user of the session. So only the `_wrapped` of a lazy object is read.
    return user._wrapped if isinstance(user, LazyObject) else user


def model() -> Any:
    """Return the user model; None if the project has none, as without `django.contrib.auth`."""
    try:
        return get_user_model()
    except ImproperlyConfigured:
        return None


def readable(user: object) -> bool:
    """Return True if a user was read from the table of the project's user model.

    A middleware may make an object of a user that has no row, such as one that another service knows.
    """
    user_model = model()
    return user_model is not None and isinstance(user, user_model) and not _object_of(user)._state.adding


def are_in_memory() -> bool:
    """Return True if the table of users is in a SQLite database in memory, which only a test has.

    While another thread reads such a table, the test cannot write to it: SQLite does not wait, but raises.
    """
    user_model = model()
    if user_model is None:
        return False
    connection: Any = connections[router.db_for_write(user_model)]
    return connection.vendor == "sqlite" and bool(connection.is_in_memory_db())


def known_of(user: Any) -> Known:
    """Return what an object of the user model says, without a query."""
    # A manager may defer columns.
    values = vars(_object_of(user))
    password = values.get("password")
    staff, superuser = values.get("is_staff"), values.get("is_superuser")
    return Known(
        None if password is None else hash(password), values.get("is_active"), hash((staff, superuser))
    )


def without_caches(user: Any) -> Any:
    """Return the user if it keeps no permissions, otherwise a copy that keeps none.

    A copy, because a policy may read the user in another thread.
    """
    values = vars(_object_of(user))
    if not any(name in values for name in _CACHES):
        return user
    fresh = copy.copy(user)
    for name in _CACHES:
        vars(fresh).pop(name, None)
    return fresh


def read(keys: Sequence[Any], groups: dict[Any, int] | None = None) -> dict[str, Standing]:
    """Read a batch of users: one query for the users, and at most three for their permissions.

    Args:
        keys: The primary keys of at most a few hundred users.
        groups: The permissions of groups that earlier batches of one reading have read. It is added to.

    Returns:
        The standing of each user that exists, by the primary key as text.
    """
    user_model = get_user_model()
    columns = _columns(user_model)
    rows = _of(user_model).filter(pk__in=keys).values_list("pk", *columns)
    of_groups, own = _permissions(user_model, keys, {} if groups is None else groups)
    found = {}
    for pk, *values in rows.iterator(chunk_size=len(keys) or 1):
        value = dict(zip(columns, values, strict=True))
        found[str(pk)] = Standing(
            hash(value.get("password")),
            bool(value.get("is_active", True)),
            hash((value.get("is_staff"), value.get("is_superuser"))),
            hash((frozenset(of_groups.get(pk, ())), frozenset(own.get(pk, ())))),
        )
    return found


def load(keys: Sequence[Any]) -> dict[str, Any]:
    """Return the objects of a batch of users that exist, by the primary key as text."""
    return {str(user.pk): user for user in _of(get_user_model()).filter(pk__in=keys)}


def _of(model: type[models.Model]) -> Any:
    """Return the rows that Django's own authentication sees, in the database that is written to."""
    return model._default_manager.using(router.db_for_write(model))


@cache
def _columns(model: type[models.Model]) -> tuple[str, ...]:
    names = {field.name for field in model._meta.concrete_fields}
    return tuple(name for name in _COLUMNS if name in names)


def _permissions(
    user_model: type[models.Model], keys: Sequence[Any], of_groups: dict[Any, int]
) -> tuple[dict[Any, list[Any]], dict[Any, list[Any]]]:
    """Return for each user the groups with a hash of their permissions, and the user's own permissions."""
    memberships = _pairs(relation(user_model, "groups"), keys)
    unread = {group for theirs in memberships.values() for group in theirs} - of_groups.keys()
    if unread:
        model = relation(user_model, "groups")
        permissions = _pairs(relation(model.related_model, "permissions") if model else None, list(unread))
        of_groups.update({group: hash(frozenset(permissions.get(group, ()))) for group in unread})
    with_permissions = {
        user: [(group, of_groups[group]) for group in theirs] for user, theirs in memberships.items()
    }
    return with_permissions, _pairs(relation(user_model, "user_permissions"), keys)


def _pairs(field: Any, keys: Iterable[Any]) -> dict[Any, list[Any]]:
    """Return the rows of a relation between many and many, by the key on the side of the field."""
    found: dict[Any, list[Any]] = defaultdict(list)
    if field is not None:
        through = field.remote_field.through
        near = through._meta.get_field(field.m2m_field_name()).attname
        far = through._meta.get_field(field.m2m_reverse_field_name()).attname
        rows = through._base_manager.using(router.db_for_write(through)).filter(**{f"{near}__in": keys})
        for one, other in rows.values_list(near, far):
            found[one].append(other)
    return found


def relation(model: Any, name: str) -> Any:
    """Return the field of this name if it relates many to many, otherwise None."""
    try:
        field = model._meta.get_field(name)
    except FieldDoesNotExist:
        return None
    return field if isinstance(field, models.ManyToManyField) else None
