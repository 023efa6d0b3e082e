"""Who may join and publish: the default, and how a project's own is found.

A policy is `policy(scope, action, group) -> bool`, sync or async, where `scope` is the ASGI scope with
`user` from Channels' auth middleware, `action` is "join" or "publish", and `group` is a valid group name. A
synchronous policy runs in Django's thread for synchronous code, so it may use the ORM.
"""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from channels.db import database_sync_to_async
from django.conf import settings
from django.utils.module_loading import import_string

from realtime import conf


async def default_policy(scope: dict[str, Any], action: str, group: str) -> bool:
    """Anyone joins `public.*`, a user `user.<pk>`, staff `staff.*`; clients publish to `public.*` when known
    or in DEBUG.
    """
    user: Any = scope.get("user")
    known = user is not None and bool(user.is_authenticated)
    if action == "publish":
        return group.startswith("public.") and (known or settings.DEBUG)
    if group.startswith("public."):
        return True
    if group.startswith("user."):
        return known and group == f"user.{user.pk}"
    return known and group.startswith("staff.") and bool(user.is_staff)


async def allows(scope: dict[str, Any], action: str, group: str) -> bool:
    """What the configured policy says."""
    policy, is_async = _configured(conf.get().POLICY)
    if is_async:
        return bool(await policy(scope, action, group))
    return bool(await database_sync_to_async(policy)(scope, action, group))


@cache
def _configured(path: str) -> tuple[Callable[..., Any], bool]:
    policy = import_string(path)
    return policy, inspect.iscoroutinefunction(policy)
