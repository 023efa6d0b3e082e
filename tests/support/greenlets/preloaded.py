"""`green_wsgi`, which has published once in gunicorn's first process, before the workers were forked."""

from realtime import publish
from tests.support.greenlets.wsgi import application

__all__ = ["application"]

publish("g", 0)
