"""Settings of the programs that tests start: those of the demo project, with REALTIME from REALTIME_JSON.

There is a second channel layer, and SIGUSR2 has the program tidy its memory.
"""

import json
import os

# Only a default: a test of the settings themselves may set another.
os.environ.setdefault("SECRET_KEY", "tests")

from project.settings import *  # noqa: F403 - a settings module extends another by importing all of it
from project.settings import CHANNEL_LAYERS, INSTALLED_APPS, REDIS_URL
from tests.support.programs.tidy import tidy_when_told

tidy_when_told()

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
REALTIME = json.loads(os.environ.get("REALTIME_JSON") or "{}")
CHANNEL_LAYERS["other"] = {**CHANNEL_LAYERS["default"], "CONFIG": {"hosts": [REDIS_URL], "prefix": "other"}}

if "SIGNALS_LOG" in os.environ:
    INSTALLED_APPS += ["tests.support.applications.signals_log.SignalsLog"]
