"""The Content-Security-Policy of all pages of the demo project, those of the admin included.

Only files of the site itself may run or load in a page, and no script or style inside of the page: text of a
client that became HTML by a mistake could still run nothing. Django 6 has a middleware for this; the demo
project runs on Django 5.2 too.
"""

from collections.abc import Awaitable, Callable
from http import HTTPStatus

from asgiref.sync import iscoroutinefunction
from django.conf import settings
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.utils.decorators import sync_and_async_middleware

HEADER = "Content-Security-Policy"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)

Handler = Callable[[HttpRequest], HttpResponseBase] | Callable[[HttpRequest], Awaitable[HttpResponseBase]]


@sync_and_async_middleware
def content_security_policy(get_response: Handler) -> Handler:
    """Add the policy to each response."""
    if iscoroutinefunction(get_response):

        async def handle(request: HttpRequest) -> HttpResponseBase:
            return _with_policy(await get_response(request))

        return handle

    def handle_sync(request: HttpRequest) -> HttpResponseBase:
        return _with_policy(get_response(request))  # type: ignore[arg-type]

    return handle_sync


def _with_policy(response: HttpResponseBase) -> HttpResponseBase:
    # With DEBUG, Django's pages about errors have scripts and styles inside.
    explains = settings.DEBUG and response.status_code in (
        HTTPStatus.NOT_FOUND,
        HTTPStatus.INTERNAL_SERVER_ERROR,
    )
    if not explains:
        response.headers.setdefault(HEADER, POLICY)
    return response
