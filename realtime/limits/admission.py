"""Limit the open connections: of a process, of a user, and of a network.

This is asked before the application's `connect` and before any row is written. The counts of all processes
are in Redis; connections of one turn of the event loop share a call. An idle connection costs nothing: each
process renews one key.

Private: docs/reference.md lists the public names.
"""

import asyncio
import logging
import secrets
import weakref
from collections.abc import Iterable
from contextvars import Context
from dataclasses import dataclass
from typing import Any, Protocol

from channels import DEFAULT_CHANNEL_LAYER
from channels.exceptions import InvalidChannelLayerError

from realtime import conf, metrics
from realtime.errors import LayerUnavailable
from realtime.layers import groups
from realtime.layers.stamped import LAYER_ERRORS
from realtime.limits import refusals, subjects
from realtime.limits.counts import Place
from realtime.limits.shared_counts import ID_LENGTH, KEY, NUMBERS_TTL
from realtime.limits.sharing import AWAY, FREE, Call, Request, Sharing
from realtime.process import tasks

logger = logging.getLogger("realtime.limits")

#: Seconds after which a call to Redis is given up. Connections wait for it.
CALL_TIMEOUT = 1.0
#: Seconds for an answer that came in while this process was stalled.
STALL_GRACE = 0.1
#: Seconds between two attempts while Redis is away.
RETRY_EVERY = 1.0
#: Intervals for which a process counts as alive without a call.
LIFETIME_INTERVALS = 3

#: The limit that is named if connections are refused because Redis is away.
WITHOUT_REDIS = "LIMITS_WITHOUT_REDIS"


class Connection(Protocol):
    """The attributes of a connection that this module uses.

    Attributes:
        place: The place that it takes of a network; empty if it takes none, and None if it is not counted.
        user_place: The place that it takes of its user.
    """

    scope: dict[str, Any]
    address: str
    client_id: str
    place: Place | None
    user_place: Place | None

    @property
    def user_id(self) -> str: ...
    @property
    def gone(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit that a connection must keep.

    Attributes:
        setting: The name of the setting.
        number: Its value.
        place: The place that the connection wants.
        subject: The subject in words for the log.
        by_user: True if the subject is a user.
    """

    setting: str
    number: int
    place: Place
    subject: str
    by_user: bool = False


class Admission:
    """The connections of this event loop, counted together with those of other processes.

    Args:
        alias: The alias of the channel layer that has the counts in its Redis; None if there is none. Then
            the connections of this process are all that count.
    """

    def __init__(self, alias: str | None) -> None:
        self._alias = alias
        self._sharing = Sharing(conf.get().ROUND_INTERVAL * LIFETIME_INTERVALS)
        self._answers: dict[Request, asyncio.Future[int]] = {}
        self._calling: asyncio.Task[None] | None = None
        self._held = 0
        self._asking = 0
        self._ticks = False
        self._retries = False
        self._written_at = asyncio.get_running_loop().time()

    @property
    def held(self) -> int:
        """The connections that are counted."""
        return self._held

    async def admit(self, connection: Connection) -> str | None:
        """Count a new connection.

        Returns:
            The name of the setting that refuses it; None if it may go on. A refusal is logged and counted.

        Raises:
            asyncio.CancelledError: The caller was cancelled. Then the connection is not counted.
        """
        settings = conf.get()
        self._sharing.lifetime = settings.ROUND_INTERVAL * LIFETIME_INTERVALS
        self._sharing.opens = settings.LIMITS_WITHOUT_REDIS == "accept" or self._alias is None
        most = settings.MAX_CONNECTIONS
        if most is not None and self._held + self._asking >= most:
            remedy = f"It holds {most} connections. Raise it, or start more processes"
            refusals.note("MAX_CONNECTIONS", "connections to this process", remedy)
            return "MAX_CONNECTIONS"
        limits = limits_of(connection, settings)
        answer = FREE
        if limits:
            self._asking += 1
            try:
                answer = await self._ask(limits)
            finally:
                self._asking -= 1
        if answer != FREE:
            return _refuse(limits, answer)
        self._held += 1
        connection.place = next((limit.place for limit in limits if not limit.by_user), "")
        connection.user_place = next((limit.place for limit in limits if limit.by_user), None)
        if connection.gone:
            self.give_back(connection)
        self._tick_later()
        return None

    def give_back(self, connection: Connection) -> None:
        """Give back the places of a connection that has ended. A second call does nothing."""
        if connection.place is None:
            return
        places = [place for place in (connection.place, connection.user_place) if place]
        connection.place = connection.user_place = None
        self._held -= 1
        if places:
            self._give_back(places)

    async def leave(self) -> None:
        """Give back the places of all connections, which are about to end: their clients come back soon.

        This waits for Redis at most as long as a call may take.
        """
        self._sharing.leave()
        self._call()
        if self._calling is not None:
            await asyncio.wait([self._calling], timeout=CALL_TIMEOUT + STALL_GRACE)

    async def _ask(self, limits: list[Limit]) -> int:
        request, answer = self._sharing.ask([(limit.place, limit.number) for limit in limits])
        if answer is not None:
            return answer
        decided: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._answers[request] = decided
        self._call()
        try:
            return await decided
        except asyncio.CancelledError:
            if self._sharing.withdraw(request):
                del self._answers[request]
            raise

    def _give_back(self, places: Iterable[Place]) -> None:
        self._sharing.give_back(places)
        self._call()

    # -- calls to Redis ----------------------------------------------------------------------------

    def _call(self) -> None:
        """Make the calls that are due, from the next turn of the loop on."""
        if self._calling is None:
            # A context of its own: it would keep that of a connection alive.
            self._calling = tasks.start(self._make_calls(), context=Context())

    async def _make_calls(self) -> None:
        try:
            while (call := self._sharing.next_call(_new_id())) is not None:
                was_away = self._sharing.away
                try:
                    answer = await self._bounded(call)
                    decisions = self._sharing.answered(call, answer)
                except (LayerUnavailable, *LAYER_ERRORS) as error:
                    decisions = self._sharing.failed(call)
                    self._note_failure(error, was_away=was_away)
                except Exception as error:
                    # Any exception at all: the connections that wait must be answered.
                    decisions = self._sharing.failed(call)
                    logger.exception("Connections could not be counted")
                    self._note_failure(error, was_away=was_away)
                if was_away and not self._sharing.away:
                    logger.warning("Redis is back: connections of all processes are counted again")
                for decision in decisions:
                    self._decided(*decision)
        finally:
            self._calling = None

    async def _bounded(self, call: Call) -> Any:
        """Make one call.

        Raises:
            TimeoutError: There was no answer in time.
        """
        if self._alias is None:
            # The memory of this process stands for Redis.
            raise LayerUnavailable("There is no channel layer.")
        layer = groups.layer(self._alias)
        calling = tasks.create(layer.run_script(call.script, KEY, call.arguments))
        clock = asyncio.get_running_loop().time
        deadline = clock() + CALL_TIMEOUT
        try:
            await asyncio.wait([calling], timeout=CALL_TIMEOUT)
            if not calling.done() and clock() > deadline + STALL_GRACE:
                # This process was stalled, and the answer may be here.
                await asyncio.wait([calling], timeout=STALL_GRACE)
            if calling.done():
                return calling.result()
            raise TimeoutError(f"no answer within {CALL_TIMEOUT:g} s")
        finally:
            calling.add_done_callback(tasks.retrieve_exception)
            calling.cancel()

    def _note_failure(self, error: BaseException, *, was_away: bool) -> None:
        if self._alias is None:
            return
        metrics.layer_errors.labels(call="count connections").inc()
        if not was_away:
            what = "each process counts only its own" if self._sharing.opens else "new ones are refused"
            logger.warning(
                "The connections of all processes cannot be counted, so %s until Redis answers "
                "(LIMITS_WITHOUT_REDIS): %s: %s",
                what,
                type(error).__name__,
                error,
            )
        self._retry_later()

    def _decided(self, request: Request, answer: int) -> None:
        decided = self._answers.pop(request)
        if not decided.done():
            decided.set_result(answer)
        elif answer == FREE:
            # The connection ended while it waited.
            self._give_back([place for place, _ in request.wanted])

    # -- times -------------------------------------------------------------------------------------

    def _tick_later(self) -> None:
        if not self._ticks and self._alias is not None:
            self._ticks = True
            asyncio.get_running_loop().call_later(conf.get().ROUND_INTERVAL, self._tick)

    def _tick(self) -> None:
        self._ticks = False
        if not self._held:
            return
        now = asyncio.get_running_loop().time()
        if now - self._written_at > NUMBERS_TTL / 3:
            self._written_at = now
            self._sharing.write_all()
        self._sharing.renew()
        self._call()
        self._tick_later()

    def _retry_later(self) -> None:
        if not self._retries:
            self._retries = True
            asyncio.get_running_loop().call_later(RETRY_EVERY, self._retry)

    def _retry(self) -> None:
        self._retries = False
        self._sharing.try_again()
        self._call()


def limits_of(connection: Connection, settings: conf.Settings) -> list[Limit]:
    """Return the limits that a connection must keep, with the places that it wants."""
    found: list[Limit] = []
    user_id, client = _user_of(connection), connection.client_id
    if user_id and (number := settings.MAX_CONNECTIONS_PER_USER) is not None:
        subject = subjects.of_user(user_id)
        place: Place = (subject, client) if client else subject
        found.append(Limit("MAX_CONNECTIONS_PER_USER", number, place, f"user {user_id}", by_user=True))
    setting = "MAX_USER_CONNECTIONS_PER_ADDRESS" if user_id else "MAX_CONNECTIONS_PER_ADDRESS"
    number = getattr(settings, setting)
    if number is not None and (network := subjects.network_of(connection.scope, connection.address)):
        subject = subjects.of_users_at(network) if user_id else network
        # Clients of different users may have the same id.
        name = f"{user_id} {client}" if client and user_id else client
        place = (subject, name) if name else subject
        found.append(Limit(setting, number, place, refusals.client_in_words(network)))
    return found


def _user_of(connection: Connection) -> str:
    """Return the id of the user; empty if that is not known yet.

    A middleware of the application may leave an object that only the application's `connect` can complete.
    """
    try:
        return connection.user_id
    except Exception as error:
        logger.debug("A connection counts as anonymous: its user could not be read: %r", error)
        return ""


_here: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Admission] = weakref.WeakKeyDictionary()


def here() -> Admission:
    """Return the admission of this event loop."""
    loop = asyncio.get_running_loop()
    if loop not in _here:
        _here[loop] = Admission(_alias())
    return _here[loop]


def _alias() -> str | None:
    """Return the alias of the layer that has the counts in its Redis: one layer for all connections."""
    try:
        ours = groups.aliases()
    except InvalidChannelLayerError:
        return None
    return DEFAULT_CHANNEL_LAYER if DEFAULT_CHANNEL_LAYER in ours else next(iter(ours), None)


_BY_ADDRESS = (
    "{} connections of {} with this address are open. If these are many clients behind one proxy, name it "
    "in TRUSTED_PROXIES; if they are behind one address, raise the limit"
)
_REMEDIES = {
    "MAX_CONNECTIONS_PER_USER": "{} connections of {} are open. Raise the limit if your users need more",
    "MAX_CONNECTIONS_PER_ADDRESS": _BY_ADDRESS,
    "MAX_USER_CONNECTIONS_PER_ADDRESS": _BY_ADDRESS,
}
_WHOSE = {
    "MAX_CONNECTIONS_PER_USER": "this user",
    "MAX_CONNECTIONS_PER_ADDRESS": "anonymous clients",
    "MAX_USER_CONNECTIONS_PER_ADDRESS": "users",
}


def _refuse(limits: list[Limit], answer: int) -> str:
    if answer == AWAY:
        remedy = "Redis is away, so they cannot be counted. Repair it, or set LIMITS_WITHOUT_REDIS to accept"
        refusals.note(WITHOUT_REDIS, "connections to this process", remedy)
        return WITHOUT_REDIS
    limit = limits[answer - 1]
    refusals.note(
        limit.setting, limit.subject, _REMEDIES[limit.setting].format(limit.number, _WHOSE[limit.setting])
    )
    return limit.setting


def _new_id() -> str:
    return secrets.token_hex(ID_LENGTH // 2)
