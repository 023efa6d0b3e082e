"""A WSGI application that publishes the number in its path, /<group>/<number>, or says why it could not."""

from collections.abc import Callable, Iterable
from typing import Any

from django.core.wsgi import get_wsgi_application

from realtime import publish
from realtime.errors import RealtimeError

get_wsgi_application()


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    _, group, number = environ["PATH_INFO"].split("/")
    status, said = "200 OK", "published"
    try:
        publish(group, int(number))
    except RealtimeError as error:
        status, said = "503 Service Unavailable", str(error)
    start_response(status, [("Content-Type", "text/plain")])
    return [said.encode()]
