"""Settings of the programs that tests start: those of the demo project, with REALTIME from REALTIME_JSON.

The hosts of the channel layers come from REDIS_HOSTS_JSON, otherwise from REDIS_URL. There is a second
channel layer, and SIGUSR2 has the program tidy its memory.
"""

import json
import os

# Only a default: a test of the settings themselves may set another.
os.environ.setdefault("SECRET_KEY", "tests")

from project.settings import *  # noqa: F403 - a settings module extends another by importing all of it
from project.settings import CHANNEL_LAYERS, REDIS_URL
from tests.support.programs.tidy import tidy_when_told

tidy_when_told()

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
REALTIME = json.loads(os.environ.get("REALTIME_JSON") or "{}")
HOSTS = json.loads(os.environ.get("REDIS_HOSTS_JSON") or json.dumps([REDIS_URL]))
CHANNEL_LAYERS["default"]["CONFIG"]["hosts"] = HOSTS
CHANNEL_LAYERS["other"] = {**CHANNEL_LAYERS["default"], "CONFIG": {"hosts": HOSTS, "prefix": "other"}}
