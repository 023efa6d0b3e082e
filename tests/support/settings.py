"""The project's settings for pytest: a database file that every thread can open, and loud logs."""

import atexit
import shutil
import tempfile
from pathlib import Path

from project.settings import *  # noqa: F403 - a settings module extends another by importing all of it
from project.settings import DATABASES

DEBUG = False
SECRET_KEY = "tests"
# Each test names the settings that it needs; most have groups without history.
REALTIME = {}
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

if DATABASES["default"]["ENGINE"] == "django.db.backends.sqlite3":
    # A file, because an in-memory database belongs to one thread. The folder of this run is deleted at the
    # end, with what SQLite leaves beside the file if a thread has not closed its connection.
    _folder = Path(tempfile.mkdtemp(prefix="realtime-tests-"))
    atexit.register(shutil.rmtree, _folder, ignore_errors=True)
    DATABASES["default"]["TEST"] = {"NAME": _folder / "test.sqlite3"}
