"""Usernames for the keys in records, with any user model."""

from collections.abc import Iterable
from contextlib import suppress

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError


def usernames(keys: Iterable[str]) -> dict[str, str]:
    """Look up usernames in one query.

    Args:
        keys: Primary keys as text, as they stand in records.

    Returns:
        The username of each key that a user has.
    """
    model = get_user_model()
    wanted = {}
    for key in set(keys) - {""}:
        # A key may belong to a user model that was replaced since, or to another kind of authentication. A
        # text that only reads as a key, like "+7" or digits of another script, is not that user's key.
        with suppress(ValidationError):
            pk = model._meta.pk.clean(key, None)
            if str(pk) == key:
                wanted[pk] = key
    if not wanted:
        return {}
    # With the base manager, because a project's default manager may hide users.
    found = model._base_manager.filter(pk__in=wanted).values_list("pk", model.USERNAME_FIELD)
    return {wanted[pk]: str(username) for pk, username in found}


def key_of(username: str) -> str | None:
    """Return the key of the user with this name, as it stands in records; None if there is no such user."""
    model = get_user_model()
    try:
        name = model._meta.get_field(model.USERNAME_FIELD).to_python(username)  # type: ignore[union-attr]
    except ValidationError:
        return None
    pk = model._base_manager.filter(**{model.USERNAME_FIELD: name}).values_list("pk", flat=True).first()
    return None if pk is None else str(pk)
