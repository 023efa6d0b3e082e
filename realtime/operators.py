"""The requests of operators: programs and persons who may see metrics and readiness.

A request that a proxy has forwarded is judged by the client that the proxy names, and only if the proxy is in
TRUSTED_PROXIES. Any other forwarded request is one of a stranger, also if its peer is this machine: a proxy
that was not declared must not make an operator of each client on the internet.

Private: docs/reference.md lists the public names.
"""

import logging
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeAlias

from django.http import HttpRequest, HttpResponse, HttpResponseForbidden

from realtime import addresses, conf
from realtime.addresses import PROXIES

logger = logging.getLogger("realtime.views")

#: Headers by which proxies say that a request is not their own. A client may send them, too: each of them
#: only takes rights away.
MARKS = ("HTTP_FORWARDED", "HTTP_VIA", "HTTP_X_REAL_IP")
MARKS_BEGIN = "HTTP_X_FORWARDED_"
#: Seconds between two refusals in the log.
SILENT_FOR = 60.0

P = ParamSpec("P")
View: TypeAlias = Callable[Concatenate[HttpRequest, P], Coroutine[Any, Any, HttpResponse]]


def is_operator(peer: str, forwarded: str | None, trusted: Sequence[str], operators: Sequence[str]) -> bool:
    """Return True if a request is one of an operator.

    Args:
        peer: The address at the other end of the socket; empty for a Unix socket.
        forwarded: The header X-Forwarded-For; empty if a proxy has forwarded the request without it; None if
            no header says that the request was forwarded.
        trusted: TRUSTED_PROXIES.
        operators: OPERATORS.
    """
    if forwarded is None:
        is_proxy = PROXIES in operators and addresses.matches(peer, trusted)
        return is_proxy or addresses.matches(peer, operators)
    if not addresses.matches(peer, trusted):
        return False
    client = addresses.named_client(forwarded, trusted)
    return client is not None and addresses.matches(client, operators)


class Refusals:
    """Logs refused requests, but not each of many.

    Args:
        silent_for: Seconds between two lines in the log.
        clock: Returns the time in seconds, and never goes back.
    """

    def __init__(self, silent_for: float = SILENT_FOR, clock: Callable[[], float] = time.monotonic) -> None:
        self._silent_for = silent_for
        self._clock = clock
        self._next = float("-inf")
        self._unlogged = 0

    def note(self, path: str, client: str, was_forwarded: bool) -> None:
        """Count a refusal, and log it with the number of earlier ones that were not logged.

        Args:
            path: The path of the request.
            client: The client in words.
            was_forwarded: True if a header says that a proxy has forwarded the request.
        """
        now = self._clock()
        if now < self._next:
            self._unlogged += 1
            return
        self._next = now + self._silent_for
        logger.warning(
            'Refused %s to %s: it is not in REALTIME["OPERATORS"]%s%s',
            path,
            client,
            ', or came through a proxy that is not in REALTIME["TRUSTED_PROXIES"]' if was_forwarded else "",
            f" ({self._unlogged} more since the last such line)" if self._unlogged else "",
        )
        self._unlogged = 0


refusals = Refusals()


def only_operators(view: View[P]) -> View[P]:
    """Answer 403 to requests of strangers. The answer says nothing of the state of the process."""

    @wraps(view)
    async def guarded(request: HttpRequest, /, *arguments: P.args, **options: P.kwargs) -> HttpResponse:
        settings = conf.get()
        peer, forwarded = str(request.META.get("REMOTE_ADDR") or ""), _forwarded(request)
        if is_operator(peer, forwarded, settings.TRUSTED_PROXIES, settings.OPERATORS):
            response = await view(request, *arguments, **options)
        else:
            client = addresses.client(peer, forwarded or "", settings.TRUSTED_PROXIES)
            refusals.note(request.path, _in_words(client), forwarded is not None)
            response = HttpResponseForbidden("Only operators may see this.\n", content_type="text/plain")
        # A proxy must not keep the answer for strangers.
        response["Cache-Control"] = "no-store"
        return response

    return guarded


def _forwarded(request: HttpRequest) -> str | None:
    """Return the header X-Forwarded-For: empty if only other headers say so, None if none does."""
    is_marked = any(name in MARKS or name.startswith(MARKS_BEGIN) for name in request.META)
    return str(request.META.get("HTTP_X_FORWARDED_FOR", "")) if is_marked else None


def _in_words(client: str) -> str:
    """Return the address of a client for a log line, as far as CLIENT_DETAILS allows."""
    if addresses.address(client) is None:
        # A Unix socket, or a text that a server took from a header.
        return "a client without an address"
    return addresses.reduced(client, conf.get().CLIENT_DETAILS) or "a client"
