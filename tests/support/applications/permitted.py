"""A policy that relies on rows: permissions of Django, and rooms that may be closed."""

from typing import Any

from django.contrib.auth.models import Group


def policy(scope: dict[str, Any], action: str, group: str) -> bool:
    """Allow `secret.*` to users with a permission, `room.N` until `closed.N` exists, `public.*` to all."""
    kind, _, name = group.partition(".")
    if kind == "secret":
        return bool(scope["user"].has_perm("auth.view_user"))
    if kind == "room":
        return not Group.objects.filter(name=f"closed.{name}").exists()
    return kind == "public"
