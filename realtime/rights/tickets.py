"""Issue tickets, and verify those that clients present.

Private: docs/reference.md lists the public names.
"""

import asyncio
import hashlib
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from channels import DEFAULT_CHANNEL_LAYER
from channels.db import database_sync_to_async
from django.contrib.auth import get_user_model
from django.core.exceptions import ObjectDoesNotExist, ValidationError
from msgspec import UNSET, UnsetType

from realtime import conf, metrics
from realtime.errors import BadTicket, LayerUnavailable
from realtime.layers import groups
from realtime.layers.stamped import LAYER_ERRORS
from realtime.rights import signing
from realtime.rights.authorization import Authorization
from realtime.rights.signing import Ticket
from realtime.scripts import Argument, KeyScript, Script

#: Seconds for the answer of Redis. A client waits for it.
ANSWER_TIMEOUT = 1.0
#: Seconds for which a used ticket is remembered beyond its end: the clocks of two hosts may differ.
REMEMBER_LONGER = 60.0

_SPEND = Script("""
if redis.call('SET', KEYS[1], 1, 'NX', 'PX', ARGV[2]) then
  return 1
end
return 0
""")


@dataclass(slots=True)
class _Spent:
    """The tickets that were used, in the memory of a process."""

    until: dict[str, float] = field(default_factory=dict)
    """The time at which each is forgotten."""
    sweep_at: int = 1_000
    """The number of tickets with which the next sweep is due. Each sweep is paid for by as many tickets."""


def _spend_in_memory(store: dict[str, Any], key: str, arguments: Sequence[Argument], now: float) -> int:
    spent: _Spent = store.setdefault("tickets", _Spent())
    if len(spent.until) >= spent.sweep_at:
        spent.until = {each: until for each, until in spent.until.items() if now < until}
        spent.sweep_at = max(1_000, 2 * len(spent.until))
    if now < spent.until.get(key, now):
        return 0
    spent.until[key] = now + float(arguments[0]) / 1000
    return 1


#: Notes that a ticket is used. Returns 1, or 0 if it was used before. The argument is a time in ms.
SPEND = KeyScript(_SPEND, _spend_in_memory, "SET")


@dataclass(frozen=True, slots=True)
class Verified:
    """The outcome of a valid ticket."""

    user: Any
    """The user, read from the database; None if the ticket names none."""
    authorization: Authorization


def issue(
    user: Any,
    groups_: Iterable[str] | None,
    ttl: float | None,
    connection_ttl: float | UnsetType | None,
    now: float,
) -> str:
    """Return the text of a new ticket. `realtime.tickets.ticket` describes the arguments.

    Raises:
        ValueError: An argument is wrong.
        BadGroup: No group can have one of the names.
    """
    settings = conf.get()
    ttl = settings.TICKET_TTL if ttl is None else ttl
    connection_ttl = settings.CONNECTION_TTL if connection_ttl is UNSET else connection_ttl
    for name, seconds in (("ttl", ttl), ("connection_ttl", connection_ttl)):
        if seconds is not None and not seconds > 0:
            raise ValueError(f"{name} is {seconds}; set a number of seconds above zero.")
    names = None if groups_ is None else sorted(set(groups_))
    for name in names or ():
        groups.require_valid(name)
    known = user is not None and bool(getattr(user, "is_authenticated", False))
    if known and user.pk is None:
        raise ValueError("A ticket needs a user that is saved, or None for an anonymous client.")
    return signing.sign(
        Ticket(
            user_id=str(user.pk) if known else None,
            auth=auth_of(user) if known else "",
            groups=names,
            expires=now + ttl,
            connection_ttl=connection_ttl,
        )
    )


def auth_of(user: Any) -> str:
    """Return a digest that changes with the password of a user; empty if the user has no password."""
    get_hash = getattr(user, "get_session_auth_hash", None)
    return "" if get_hash is None else hashlib.sha256(get_hash().encode()).hexdigest()[:32]


async def verify(text: str) -> Verified:
    """Verify a ticket, and note that it is used.

    In this order, a text that was not signed here costs neither Redis nor the database anything.

    Args:
        text: The text that a client presents.

    Raises:
        BadTicket: It gives no right to connect.
        LayerUnavailable: Redis cannot say if it was used before, and TICKETS_WITHOUT_REDIS is "refuse".
    """
    try:
        ticket = signing.read(text, time.time())
        await _spend(ticket)
        user = None if ticket.user_id is None else await _user_of(ticket)
    except BadTicket:
        metrics.tickets.labels(outcome="refused").inc()
        raise
    except LayerUnavailable:
        metrics.tickets.labels(outcome="unknown").inc()
        raise
    metrics.tickets.labels(outcome="accepted").inc()
    ttl = ticket.connection_ttl
    return Verified(
        user,
        Authorization(
            user_id=ticket.user_id or "",
            is_ticket=True,
            groups=None if ticket.groups is None else frozenset(ticket.groups),
            expires_at=None if ttl is None else time.time() + ttl,
        ),
    )


async def _spend(ticket: Ticket) -> None:
    """Note that a ticket is used.

    Raises:
        BadTicket: It was used before.
        LayerUnavailable: Redis cannot say it.
    """
    left = max(0.0, ticket.expires - time.time()) + REMEMBER_LONGER
    home = groups.layer(next(iter(groups.aliases()), DEFAULT_CHANNEL_LAYER))
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT):
            first = await home.run_script(SPEND, f"ticket:{ticket.nonce}", [round(left * 1000)])
    except LAYER_ERRORS as error:
        if conf.get().TICKETS_WITHOUT_REDIS == "accept":
            return
        raise groups.unavailable("note a ticket", error) from error
    if not first:
        raise BadTicket("The ticket was used before.")


async def _user_of(ticket: Ticket) -> Any:
    user = await database_sync_to_async(_find)(ticket.user_id)
    if user is None:
        raise BadTicket("The user of the ticket does not exist.")
    if not getattr(user, "is_active", True):
        raise BadTicket("The user of the ticket is not active.")
    if auth_of(user) != ticket.auth:
        raise BadTicket("The password of the user was changed.")
    return user


def _find(user_id: Any) -> Any:
    try:
        return get_user_model()._default_manager.get(pk=user_id)
    except (ObjectDoesNotExist, ValidationError, ValueError, TypeError):
        return None
