"""Tell the processes that hold connections what Django's signals say of users, sessions and groups.

Each event is told after the commit of its transaction, so that a process that reads the database sees the
change. Nothing here raises an exception into the application, and nothing waits for longer than a second. An
event that could not be told is found by the processes themselves within a round.

If a user has no open connection, an event costs one query of an index, and no message is sent.

Private: docs/reference.md lists the public names.
"""

import logging
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from importlib import import_module
from typing import Any

from asgiref.sync import sync_to_async
from django.apps import apps
from django.conf import settings
from django.contrib.auth import SESSION_KEY
from django.contrib.auth.signals import user_logged_out
from django.core.signals import request_started
from django.db import connections, router, transaction
from django.db.models.signals import m2m_changed, post_delete, post_save
from django.utils import timezone

from realtime.errors import LayerUnavailable, NoSuchLayer, RealtimeError
from realtime.layers import groups, messages
from realtime.layers.stamped import LAYER_ERRORS
from realtime.process import background_loop, greenlets, tasks
from realtime.records import process_rows
from realtime.rights import users
from realtime.rights.authorization import digest

logger = logging.getLogger("realtime.rights")

#: Seconds that the caller of a signal waits at most.
TELL_TIMEOUT = 1.0
#: After an event that was not told in time, the next ones are left to the rounds for this many seconds. A
#: program that changes many users would wait for each of them.
PAUSE = 5.0
#: Users in one message. If more changed in one transaction, one message says that any may have changed.
MOST_USERS = 500
#: Fields of a user that say nothing about rights. A login writes only these.
_IRRELEVANT = frozenset({"last_login"})

_paused_until = 0.0


def connect() -> None:
    """Connect the receivers. Call it when all models are loaded. A project without users needs none."""
    user = users.model()
    if user is None:
        return
    user_logged_out.connect(_logged_out, dispatch_uid="realtime.rights")
    # The signals name the class that was saved. So they are received for proxies and derived models as well.
    for model in apps.get_models():
        if issubclass(model, user):
            post_save.connect(_user_saved, sender=model, dispatch_uid="realtime.rights")
            post_delete.connect(_user_deleted, sender=model, dispatch_uid="realtime.rights")
    _connect_permissions(user)
    # A receiver of `post_delete` makes `clearsessions` load every expired session, instead of one DELETE for
    # all. That is a program without requests, and such a program should stay as fast as it was. So the
    # receiver is connected by the first request, because the requests of users are what flushes sessions.
    request_started.connect(_first_request, dispatch_uid="realtime.rights")


def _connect_permissions(user: Any) -> None:
    own, memberships = users.relation(user, "user_permissions"), users.relation(user, "groups")
    for field in filter(None, (own, memberships)):
        m2m_changed.connect(_users_related, sender=field.remote_field.through, dispatch_uid="realtime.rights")
    if memberships is not None:
        group = memberships.related_model
        post_delete.connect(_groups_changed, sender=group, dispatch_uid="realtime.rights")
        if (permissions := users.relation(group, "permissions")) is not None:
            through = permissions.remote_field.through
            m2m_changed.connect(_groups_changed, sender=through, dispatch_uid="realtime.rights")


def _first_request(**_: object) -> None:
    request_started.disconnect(_first_request, dispatch_uid="realtime.rights")
    if (model := _session_model()) is not None:
        post_delete.connect(_session_deleted, sender=model, dispatch_uid="realtime.rights")


def _session_model() -> Any:
    """Return the model of the sessions, if the engine of this project keeps them in the database."""
    if not apps.is_installed("django.contrib.sessions"):
        return None
    store = import_module(settings.SESSION_ENGINE).SessionStore
    return store.get_model_class() if hasattr(store, "get_model_class") else None


# -- receivers -----------------------------------------------------------------------------------------


def _never_raises(receiver: Callable[..., None]) -> Callable[..., None]:
    def safe(*arguments: Any, **named: Any) -> None:
        try:
            receiver(*arguments, **named)
        except Exception:
            logger.exception("An event of a user was not told; it is found within a round")

    # Signals keep weak references to receivers, and this module keeps each by its name.
    return safe


@_never_raises
def _logged_out(*, request: Any = None, user: Any = None, **_: object) -> None:
    """End the connections that rely on the session of the request. Other devices stay logged in."""
    session = getattr(request, "session", None)
    key = getattr(session, "session_key", None)
    if user is None or user.pk is None or not key:
        return
    revoke = messages.Revoke(user=str(user.pk), session=digest(key))
    _after_commit(partial(_tell, [revoke.user], revoke), router.db_for_write(type(user)))


@_never_raises
def _session_deleted(*, instance: Any, using: str, **_: object) -> None:
    """End the connections that rely on a session which was flushed."""
    if instance.expire_date <= timezone.now():
        # Its connections have ended with it.
        return
    user = instance.get_decoded().get(SESSION_KEY)
    if user is not None:
        revoke = messages.Revoke(user=str(user), session=digest(instance.session_key))
        _after_commit(partial(_tell, [revoke.user], revoke), using)


@_never_raises
def _user_saved(
    *, instance: Any, created: bool, raw: bool, using: str, update_fields: Collection[str] | None, **_: object
) -> None:
    if raw or created or (update_fields is not None and _IRRELEVANT.issuperset(update_fields)):
        return
    _note([instance.pk], using)


@_never_raises
def _user_deleted(*, instance: Any, using: str, **_: object) -> None:
    _note([instance.pk], using)


@_never_raises
def _users_related(
    *, instance: Any, action: str, reverse: bool, pk_set: Collection[Any] | None, using: str, **_: object
) -> None:
    """Take a change of the groups or of the permissions of users."""
    if action not in ("post_add", "post_remove", "post_clear") or (pk_set is not None and not pk_set):
        return
    if not reverse:
        _note([instance.pk], using)
    else:
        # From the side of a group or a permission. After a clear, the users are not known.
        _note(None if pk_set is None else pk_set, using)


@_never_raises
def _groups_changed(*, using: str, action: str = "post_delete", **_: object) -> None:
    """Take a change of the permissions of groups, or the end of a group."""
    if action.startswith("post_"):
        _note(None, using)


# -- after the commit ----------------------------------------------------------------------------------


def _note(keys: Collection[Any] | None, using: str) -> None:
    """Have the rights of users read again after the commit; None stands for users that are not known.

    All users of one transaction are told together. Those of a savepoint that was rolled back are told, too:
    their rights are read and found to be unchanged.
    """
    connection = connections[using]
    noted: _Noted | None = getattr(connection, "_realtime_noted", None)
    if noted is None or not noted.is_waiting(connection):
        noted = _Noted()
        connection._realtime_noted = noted  # type: ignore[attr-defined]
    noted.add(keys)
    _after_commit(noted.tell, using)


class _Noted:
    """The users that may have changed in one transaction."""

    def __init__(self) -> None:
        self._users: set[str] = set()
        self._unknown = False
        self._told = False

    def is_waiting(self, connection: Any) -> bool:
        """Return True if they will be told after the commit of the current transaction."""
        # Backwards, because the last event was as a rule one of these.
        return any(callback == self.tell for _, callback, *_ in reversed(connection.run_on_commit))

    def add(self, keys: Collection[Any] | None) -> None:
        if keys is None:
            self._unknown = True
        else:
            self._users.update(map(str, keys))

    def tell(self) -> None:
        """Tell of all users, at the first event of the transaction that was not rolled back."""
        if self._told:
            return
        self._told = True
        several = sorted(self._users)
        if self._unknown or len(several) > MOST_USERS:
            _tell(None, messages.Recheck(changed_only=True))
        if 0 < len(several) <= MOST_USERS:
            _tell(several, messages.Recheck(users=several))


def _after_commit(tell: Callable[[], None], using: str) -> None:
    """Call a function after the commit of the transaction that is open; immediately if none is open."""
    transaction.on_commit(tell, using=using, robust=True)


# -- telling -------------------------------------------------------------------------------------------


def _tell(names: Sequence[str] | None, message: messages.Control) -> None:
    """Tell the processes that hold connections of some users, or all processes."""
    if time.monotonic() < _paused_until:
        return
    if greenlets.runs_below_a_loop():
        # With DJANGO_ALLOW_ASYNC_UNSAFE, transactions run on a loop, which must not be blocked.
        tasks.start(_tell_from_loop(names, message))
        return
    addresses = _addresses(names)
    if not addresses:
        return
    try:
        background_loop.require_blocking("This signal", "sync_to_async")
        told = dict.fromkeys(addresses, message)
        failed = background_loop.shared.run(groups.tell_all(told), within=TELL_TIMEOUT)
    except (*LAYER_ERRORS, RealtimeError) as error:
        _not_told(error)
    else:
        _look_at(failed)


async def _tell_from_loop(names: Sequence[str] | None, message: messages.Control) -> None:
    try:
        addresses = await sync_to_async(_addresses)(names)
        _look_at(await groups.tell_all(dict.fromkeys(addresses, message)))
    except Exception:
        logger.exception("An event of a user was not told; it is found within a round")


def _addresses(names: Sequence[str] | None) -> list[str]:
    if names is None:
        return process_rows.addresses()
    return process_rows.addresses_of_users(names)


def _look_at(failed: Mapping[str, LayerUnavailable]) -> None:
    for error in failed.values():
        _not_told(error)
        break


def _not_told(error: BaseException) -> None:
    global _paused_until
    if not isinstance(error, NoSuchLayer):
        _paused_until = time.monotonic() + PAUSE
    logger.warning(
        "Processes were not told of a change of a user, and find it within a round: %s: %s",
        type(error).__name__,
        error,
    )
