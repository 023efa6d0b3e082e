"""The sessions on which connections rely: which one is behind a handshake, and which still exist.

Everything here is synchronous. `read` uses the database, the cache or the files of SESSION_ENGINE.

Private: docs/reference.md lists the public names.
"""

import enum
from collections.abc import Mapping, Sequence
from datetime import datetime
from importlib import import_module
from typing import Any

from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.db import router
from django.utils import timezone

from realtime.rights.authorization import Authorization


class Kind(enum.Enum):
    """The kinds of session engines, by the way in which many sessions are read together."""

    DATABASE = "database"
    """`db`, `cached_db` and their subclasses. One query reads a batch, with the ends of the sessions."""
    CACHE = "cache"
    """`cache`. One call reads a batch. The ends of the sessions are not known."""
    OTHER = "other"
    """Any other engine. Each session is loaded."""


def kind() -> Kind:
    """Return the kind of the engine of this project."""
    store = _store()
    if hasattr(store, "get_model_class"):
        return Kind.DATABASE
    if hasattr(store, "cache_key_prefix"):
        return Kind.CACHE
    return Kind.OTHER


def authorization_of(scope: Mapping[str, Any], user_id: str) -> Authorization | None:
    """Return the authorization of a connection that presents no ticket.

    Args:
        scope: The ASGI scope.
        user_id: The primary key of its user as text; empty for an anonymous client.

    Returns:
        None for an anonymous client. The authorization has a session only if that is the session of the user.
        The end of the session is not read yet.
    """
    if not user_id:
        return None
    return Authorization(user_id=user_id, session=_session_of(scope, user_id))


def _session_of(scope: Mapping[str, Any], user_id: str) -> str:
    """Return the key of the session in which a user is logged in; empty if there is none in the scope."""
    session = scope.get("session")
    # A session that no middleware has loaded is not the one that names the user. To load it here would block.
    if session is None or getattr(session, "_session_cache", None) is None:
        return ""
    return str(session.session_key or "") if str(session.get(SESSION_KEY, "")) == user_id else ""


def read(keys: Sequence[str]) -> dict[str, float | None]:
    """Read a batch of sessions.

    Args:
        keys: The keys of at most a few hundred sessions.

    Returns:
        For each session that exists, its end in seconds since the epoch; None if that is not known.
    """
    match kind():
        case Kind.DATABASE:
            return _read_database(keys)
        case Kind.CACHE:
            return _read_cache(keys)
        case Kind.OTHER:
            return _load_each(keys)


def _store() -> Any:
    return import_module(settings.SESSION_ENGINE).SessionStore


def _read_database(keys: Sequence[str]) -> dict[str, float | None]:
    model = _store().get_model_class()
    # From the database that is written to, because a replica may be behind.
    found = model._default_manager.using(router.db_for_write(model)).filter(session_key__in=keys)
    return {key: end.timestamp() for key, end in found.values_list("session_key", "expire_date")}


def _read_cache(keys: Sequence[str]) -> dict[str, float | None]:
    store = _store()()
    prefix = store.cache_key_prefix
    found = store._cache.get_many([prefix + key for key in keys])
    return {key: None for key in keys if found.get(prefix + key) is not None}


def _load_each(keys: Sequence[str]) -> dict[str, float | None]:
    store, found = _store(), {}
    for key in keys:
        # An engine returns an empty session, or makes a new one, if it has none with this key.
        data = store(key).load()
        if data and SESSION_KEY in data:
            found[key] = _end_of(data)
    return found


def _end_of(data: Mapping[str, Any]) -> float | None:
    """Return the end of a session if its data names a time; as a rule it names an age or nothing."""
    end = data.get("_session_expiry")
    if isinstance(end, str):
        end = datetime.fromisoformat(end)
    if not isinstance(end, datetime):
        return None
    return (timezone.make_aware(end) if settings.USE_TZ and timezone.is_naive(end) else end).timestamp()
