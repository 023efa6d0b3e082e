"""The policy: may this client join this group, publish to it, or know who is in it?

A policy is a function `policy(scope, action, group) -> bool`, sync or async. `scope` is the ASGI scope with
`user` from Channels' auth middleware, `action` is "join", "publish" or "presence", and `group` is a valid
group name. A synchronous policy runs in Django's thread for synchronous code, so it may use the ORM.
"""

import inspect
from collections.abc import Callable
from functools import cache
from typing import Any

from channels.db import database_sync_to_async
from django.conf import settings
from django.utils.module_loading import import_string

from realtime import conf

__all__ = ["default_policy"]


async def default_policy(scope: dict[str, Any], action: str, group: str) -> bool:
    """Allow any client to join `public.*`, a user to join `user.<pk>`, and staff to join `staff.*`.

    A client may publish to `public.*` if it is logged in, or if DEBUG is on. A client that may join a group
    may know who is in it.

    Args:
        scope: The ASGI scope, with `user`.
        action: "join", "publish" or "presence".
        group: A valid group name.
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
    """Ask the configured policy.

    Args:
        scope: The ASGI scope, with `user`.
        action: "join", "publish" or "presence".
        group: A valid group name.
    """
    policy, is_async = _configured(conf.get().POLICY)
    if is_async:
        return bool(await policy(scope, action, group))
    return bool(await database_sync_to_async(policy)(scope, action, group))


@cache
def _configured(path: str) -> tuple[Callable[..., Any], bool]:
    policy = import_string(path)
    return policy, inspect.iscoroutinefunction(policy)
