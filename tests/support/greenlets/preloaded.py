"""The application of `wsgi`, after one publish in gunicorn's first process, before its workers are forked."""

from realtime import publish
from tests.support.greenlets.wsgi import application

__all__ = ["application"]

publish("g", 0)
