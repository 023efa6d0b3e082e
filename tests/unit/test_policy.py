"""The default policy, by its table; it is a coroutine that never waits."""

from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser
from django.test import override_settings

from realtime.policy import default_policy


class User:
    is_authenticated = True

    def __init__(self, pk: int, *, is_staff: bool = False) -> None:
        self.pk = pk
        self.is_staff = is_staff


NOBODY, ANNE, STAFF = AnonymousUser(), User(7), User(1, is_staff=True)


def ask(user: object, action: str, group: str) -> bool:
    question = default_policy({"user": user}, action, group)
    with pytest.raises(StopIteration) as answer:
        question.send(None)
    return bool(answer.value.value)


@pytest.mark.parametrize(
    ("user", "action", "group", "allowed"),
    [
        (NOBODY, "join", "public.lobby", True),
        (NOBODY, "join", "public", False),
        (NOBODY, "join", "user.7", False),
        (NOBODY, "join", "user.None", False),
        (NOBODY, "join", "staff.ops", False),
        (NOBODY, "join", "other", False),
        (ANNE, "join", "user.7", True),
        (ANNE, "join", "user.8", False),
        (ANNE, "join", "user.7.inbox", False),
        (ANNE, "join", "staff.ops", False),
        (STAFF, "join", "staff.ops", True),
        (STAFF, "join", "other", False),
        (NOBODY, "presence", "public.lobby", True),
        (ANNE, "presence", "user.7", True),
        (ANNE, "presence", "user.8", False),
        (NOBODY, "presence", "other", False),
        (NOBODY, "publish", "public.lobby", False),
        (ANNE, "publish", "public.lobby", True),
        (ANNE, "publish", "user.7", False),
        (STAFF, "publish", "staff.ops", False),
    ],
)
def test_default_policy(user: object, action: str, group: str, allowed: bool) -> None:
    with override_settings(DEBUG=False):
        assert ask(user, action, group) is allowed


def test_anybody_publishes_to_public_groups_in_debug() -> None:
    with override_settings(DEBUG=True):
        assert ask(NOBODY, "publish", "public.lobby")
        assert not ask(NOBODY, "publish", "staff.ops")


def test_a_scope_without_auth_middleware_is_nobody() -> None:
    question: Any = default_policy({}, "join", "user.1")
    with pytest.raises(StopIteration) as answer:
        question.send(None)
    assert answer.value.value is False
