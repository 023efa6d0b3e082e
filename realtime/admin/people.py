"""Usernames for the keys that records hold, whatever the project's user model."""

from collections.abc import Iterable
from contextlib import suppress

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError


def usernames(keys: Iterable[str]) -> dict[str, str]:
    """The usernames of those of these keys that users have, in one query."""
    model = get_user_model()
    wanted = {}
    for key in set(keys) - {""}:
        # A key may be of a user model that was replaced since, or of an authentication of its own; and what
        # only looks like a key, as "+7" or other digits do, is not that user's.
        with suppress(ValidationError):
            pk = model._meta.pk.clean(key, None)
            if str(pk) == key:
                wanted[pk] = key
    if not wanted:
        return {}
    # By its own manager, because a project's default manager may hide users.
    found = model._base_manager.filter(pk__in=wanted).values_list("pk", model.USERNAME_FIELD)
    return {wanted[pk]: str(username) for pk, username in found}


def key_of(username: str) -> str | None:
    """The key, as records hold it, of the user of this name; None where there is none."""
    model = get_user_model()
    try:
        name = model._meta.get_field(model.USERNAME_FIELD).to_python(username)  # type: ignore[union-attr]
    except ValidationError:
        return None
    pk = model._base_manager.filter(**{model.USERNAME_FIELD: name}).values_list("pk", flat=True).first()
    return None if pk is None else str(pk)
