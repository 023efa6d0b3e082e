"""The demo page: one connection, by hand."""

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

# The page shows what strangers publish, so nothing but its own files may run in it or load.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    # The condition of the default policy, so that the page says beforehand what the server would refuse.
    may_publish = settings.DEBUG or request.user.is_authenticated
    response = render(request, "index.html", {"may_publish": may_publish})
    response["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    return response
