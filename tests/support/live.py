"""Settings of the programs that tests start: those of the demo project, with REALTIME from REALTIME_JSON.

The hosts of the channel layers come from REDIS_HOSTS_JSON, otherwise from REDIS_URL, and their other options
from LAYER_CONFIG_JSON. There is a second channel layer, and SIGUSR2 has the program tidy its memory. With
LIBRARY_LAYER, the default layer is that of channels_redis.
"""

import json
import os

# Only a default: a test of the settings themselves may set another.
os.environ.setdefault("SECRET_KEY", "tests")

from project.settings import *  # noqa: F403 - a settings module extends another by importing all of it
from project.settings import CHANNEL_LAYERS, INSTALLED_APPS, REDIS_URL
from tests.support.programs.tidy import tidy_when_told
from tests.support.unlimited import UNLIMITED

tidy_when_told()

PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
# Tests of limits name the limits that they need. The clients of all tests have one address.
# Some tests ask for metrics from another network namespace.
EVERYWHERE = {"OPERATORS": ["0.0.0.0/0", "::/0"]}
REALTIME = {**UNLIMITED, **EVERYWHERE, **json.loads(os.environ.get("REALTIME_JSON") or "{}")}
HOSTS = json.loads(os.environ.get("REDIS_HOSTS_JSON") or json.dumps([REDIS_URL]))
CONFIG = {"hosts": HOSTS, **json.loads(os.environ.get("LAYER_CONFIG_JSON") or "{}")}
CHANNEL_LAYERS["default"]["CONFIG"] = CONFIG
CHANNEL_LAYERS["other"] = {**CHANNEL_LAYERS["default"], "CONFIG": {**CONFIG, "prefix": "other"}}

if os.environ.get("LIBRARY_LAYER"):
    # A process from before the move to `realtime`: Channels' consumers on the layer of channels_redis itself.
    CHANNEL_LAYERS["default"] = {
        **CHANNEL_LAYERS["default"],
        "BACKEND": {
            "realtime.layers.PubSubLayer": "channels_redis.pubsub.RedisPubSubChannelLayer",
            "realtime.layers.CoreLayer": "channels_redis.core.RedisChannelLayer",
        }[str(CHANNEL_LAYERS["default"]["BACKEND"])],
    }

if "SIGNALS_LOG" in os.environ:
    INSTALLED_APPS += ["tests.support.applications.signals_log.SignalsLog"]
