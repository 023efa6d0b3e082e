"""Settings of the programs that tests start: the project's own, REALTIME from REALTIME_JSON, a second
channel layer, memory that is tidied at SIGUSR2.
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
CHANNEL_LAYERS["other"] = {**CHANNEL_LAYERS["default"], "CONFIG": {"hosts": [REDIS_URL], "prefix": "other"}}
