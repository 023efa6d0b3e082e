"""A user with a session."""

import json

from tests.support.programs.site import Site

_LOGIN = """
import json
import os
from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.auth.models import User
from django.contrib.sessions.backends.db import SessionStore
user = User.objects.create_user(os.environ["USER_NAME"])
session = SessionStore()
session[SESSION_KEY] = str(user.pk)
session[BACKEND_SESSION_KEY] = settings.AUTHENTICATION_BACKENDS[0]
session[HASH_SESSION_KEY] = user.get_session_auth_hash()
session.save()
print(json.dumps([user.pk, session.session_key]))
"""


async def logged_in(site: Site, name: str = "gone") -> tuple[int, str]:
    """Create a user of this name who is logged in; return the keys of the user and of the session."""
    made = await site.amanage("shell", "-c", _LOGIN, USER_NAME=name)
    assert made.returncode == 0, made.stderr
    user, session = json.loads(made.stdout.strip().splitlines()[-1])
    return user, session
