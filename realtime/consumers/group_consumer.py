"""The consumer that speaks the JSON protocol.

Private: docs/reference.md lists the public names.
"""

import asyncio
import logging
from collections import deque

from django.db import Error as DatabaseFailure

from realtime import conf, metrics, publishing
from realtime.closing import CloseReason
from realtime.consumers.asynchronous import RealtimeConsumer
from realtime.errors import BadFrame, BadTicket, ErrorCode, LayerUnavailable, TooManyGroups
from realtime.history.positions import Joined, Position
from realtime.limits import publishes, refusals, subjects
from realtime.limits.publishes import Outcome
from realtime.presence import apresence
from realtime.serving import lifecycle, permitting
from realtime.wire import frames

logger = logging.getLogger("realtime.consumers")


class GroupConsumer(RealtimeConsumer):
    """The JSON protocol: clients join, leave and publish by frames, as far as the policy allows.

    If the URL route has a `group`, the connection joins that group when it connects.
    """

    own_channel = False
    closes_old_connections = False
    client_parameter = "client"
    takes_notifications = True
    takes_refresh = True
    asks_policy = True

    #: More error frames than this in a minute end the connection.
    MAX_ERRORS_PER_MINUTE = 10

    #: More error frames than this in a minute, because the user publishes too much, end the connection. A
    #: client that goes on regardless only makes work.
    MAX_RATE_ERRORS_PER_MINUTE = 100

    _rate_errors = 0
    _rate_errors_since = 0.0
    _error_times: deque[float] | None = None
    """Made with the first error: most clients make none, and an empty deque is not small."""

    async def connect(self) -> None:
        group = lifecycle.group_of_url(self.connection)
        if group is not None:
            if not frames.valid_group(group):
                await self.refuse(CloseReason.PROTOCOL_ERROR)
                return
            asked_at = permitting.moment(self.connection)
            if not await permitting.may(self.connection, "join", group):
                await self._refuse_group()
                return
            await lifecycle.group_add(self.connection, group)
            if permitting.moment(self.connection) != asked_at and not await permitting.may(
                self.connection, "join", group
            ):
                # Its rights changed during the join.
                await self._refuse_group()
                return
        await self.accept()

    async def _refuse_group(self) -> None:
        known = bool(self.connection.user_id)
        await self.refuse(CloseReason.FORBIDDEN if known else CloseReason.NOT_AUTHENTICATED)

    async def group_add(self, group: str, *, since: Position | None = None) -> Joined | None:
        # A subclass joins a group that it chose itself. The policy is not asked about it, now or later.
        self.connection.unasked = {group, *(self.connection.unasked or ())}
        return await super().group_add(group, since=since)

    async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
        if text_data is None:
            lifecycle.evict(self.connection, CloseReason.PROTOCOL_ERROR)
            return
        try:
            frame = frames.parse(text_data)
        except BadFrame as bad:
            self._refuse_frame(bad.code, bad.detail, bad.ref)
            return
        match frame:
            case frames.Join():
                await self._join(frame)
            case frames.Leave():
                await self._leave(frame)
            case frames.Publish():
                await self._publish(frame)
            case frames.ClientPresence():
                await self._presence(frame)
            case frames.ClientRefresh():
                await self._refresh(frame)
            case frames.ClientPing():
                # The inbox has answered the pings of `realtime.v1` already. Other clients get no pong.
                detail = "Offer the subprotocol realtime.v1 to be answered pings."
                self._refuse_frame(ErrorCode.UNKNOWN_TYPE, detail, None)

    async def _join(self, frame: frames.Join) -> None:
        connection, asked_at = self.connection, permitting.moment(self.connection)
        with permitting.joining(connection, frame.group) as join:
            has_joined = await self._join_if_permitted(frame)
        if connection.gone:
            return
        # If its rights changed meanwhile, the policy is asked again. The client has its answer now.
        changed = permitting.moment(connection) != asked_at
        if join.was_removed or (
            has_joined and changed and not await permitting.may(connection, "join", frame.group)
        ):
            await lifecycle.remove_from(connection, frame.group)

    async def _join_if_permitted(self, frame: frames.Join) -> bool:
        """Answer a join. Return True if the client was told that it is a member."""
        if not await permitting.may(self.connection, "join", frame.group):
            self._refuse_frame(ErrorCode.FORBIDDEN, f"You may not join {frame.group}.", frame.ref)
            return False
        if frame.presence and not await self._may_see(frame.group, frame.ref):
            return False
        since = Position(frame.since.epoch, frame.since.offset) if frame.since is not None else None

        async def look() -> None:
            await lifecycle.prepare_watch(self.connection, frame.group)

        def present() -> frames.Present | None:
            return lifecycle.begin_watch(self.connection, frame.group) if frame.presence else None

        def answer(joined: Joined) -> None:
            # Before the first message, so that the client knows what to expect.
            lifecycle.write(
                self.connection,
                frames.Joined(
                    ref=frame.ref,
                    group=frame.group,
                    epoch=joined.position.epoch,
                    offset=joined.position.offset,
                    recovered=joined.recovered,
                    presence=present(),
                ),
            )

        try:
            joined = await lifecycle.group_add(
                self.connection, frame.group, since, answer, look if frame.presence else None
            )
        except TooManyGroups as error:
            # No error of the protocol: it does not count as one.
            metrics.limited.labels(limit="MAX_GROUPS").inc()
            detail = f"You are in {error.limit} groups already; leave one first."
            answer_too_many = frames.Error(code=ErrorCode.TOO_MANY_GROUPS, detail=detail, ref=frame.ref)
            lifecycle.write(self.connection, answer_too_many)
            return False
        if joined is None:
            lifecycle.write(
                self.connection, frames.Joined(ref=frame.ref, group=frame.group, presence=present())
            )
        return True

    async def _presence(self, frame: frames.ClientPresence) -> None:
        if not await self._may_see(frame.group, frame.ref):
            return
        try:
            found = lifecycle.present(self.connection, frame.group) or await apresence(frame.group)
        except DatabaseFailure as error:
            logger.warning("Who is present could not be read: %s", error, extra=self.connection.log_fields())
            self._refuse_frame(ErrorCode.INTERNAL, "Who is present could not be read; try again.", frame.ref)
            return
        lifecycle.write(
            self.connection,
            frames.Presence(
                frame.group, found.anonymous, found.total, ref=frame.ref, users=tuple(found.users)
            ),
        )

    async def _refresh(self, frame: frames.ClientRefresh) -> None:
        try:
            expires_in = await self.refresh(frame.ticket)
        except BadTicket as error:
            self._refuse_frame(ErrorCode.BAD_TICKET, str(error), frame.ref)
            return
        except LayerUnavailable as error:
            logger.warning("A ticket could not be verified: %s", error, extra=self.connection.log_fields())
            self._refuse_frame(ErrorCode.INTERNAL, "The ticket was not verified; try again.", frame.ref)
            return
        lifecycle.write(self.connection, frames.Refreshed(frame.ref, expires_in))

    async def _may_see(self, group: str, ref: frames.Ref) -> bool:
        """Return True if the client may know who is in a group. Otherwise answer with an error frame."""
        if not conf.get().tracks_presence(group):
            self._refuse_frame(ErrorCode.NO_PRESENCE, f"The users of {group} are not tracked.", ref)
            return False
        if not await permitting.may(self.connection, "presence", group):
            self._refuse_frame(ErrorCode.FORBIDDEN, f"You may not know who is in {group}.", ref)
            return False
        return True

    async def _leave(self, frame: frames.Leave) -> None:
        if frame.group not in self.connection.groups:
            self._refuse_frame(ErrorCode.NOT_JOINED, f"You are not in {frame.group}.", frame.ref)
            return
        await self.group_discard(frame.group)
        lifecycle.write(self.connection, frames.Left(ref=frame.ref, group=frame.group))

    async def _publish(self, frame: frames.Publish) -> None:
        # Before the policy, which may ask the database.
        match await publishes.take(self.channel_layer_alias, self._publisher()):
            case Outcome.REFUSED:
                self._refuse_publish(frame)
                return
            case Outcome.UNKNOWN:
                self._refuse_frame(ErrorCode.INTERNAL, "The message was not published; try again.", frame.ref)
                return
        if not await permitting.may(self.connection, "publish", frame.group):
            self._refuse_frame(ErrorCode.FORBIDDEN, f"You may not publish to {frame.group}.", frame.ref)
            return
        # Clients need not know which groups keep history. In the others, an id has no effect.
        keeps_history = conf.get().retention(frame.group) is not None
        try:
            position = await publishing.apublish(
                frame.group,
                frame.data,
                id=frame.id if keeps_history else None,
                alias=self.channel_layer_alias,
                on_commit=False,
                sender=self.connection.user_id or None,
            )
        except LayerUnavailable as error:
            logger.warning("A publish failed: %s", error, extra=self.connection.log_fields())
            self._refuse_frame(ErrorCode.INTERNAL, "The message was not published; try again.", frame.ref)
            return
        published = frames.Published(ref=frame.ref, group=frame.group)
        if position is not None:
            published = frames.Published(
                ref=frame.ref, group=frame.group, offset=position.offset, epoch=position.epoch
            )
        lifecycle.write(self.connection, published)

    def _publisher(self) -> str:
        """Return the user for which a publish counts. Anonymous clients with one address are one user."""
        connection = self.connection
        if connection.user_id:
            return subjects.of_user(connection.user_id)
        return subjects.network_of(connection.scope, connection.address) or str(connection.id)

    def _refuse_publish(self, frame: frames.Publish) -> None:
        """Answer a publish above the rate. This is no error of the protocol."""
        refusals.note(
            "MAX_PUBLISHES_PER_SECOND",
            refusals.client_in_words(self.connection.address),
            "A user publishes more than this. If your users need more, raise the limit",
        )
        detail = "You publish more than you may; try again later."
        lifecycle.write(
            self.connection, frames.Error(code=ErrorCode.RATE_LIMITED, detail=detail, ref=frame.ref)
        )
        now = asyncio.get_running_loop().time()
        if now - self._rate_errors_since >= 60:
            self._rate_errors, self._rate_errors_since = 0, now
        self._rate_errors += 1
        if self._rate_errors > self.MAX_RATE_ERRORS_PER_MINUTE:
            lifecycle.evict(self.connection, CloseReason.RATE_LIMITED)

    def _refuse_frame(self, code: ErrorCode, detail: str, ref: frames.Ref | None) -> None:
        """Answer with an error frame. If the client makes too many errors, close the connection."""
        lifecycle.write(self.connection, frames.Error(code=code, detail=detail, ref=ref))
        now = asyncio.get_running_loop().time()
        if self._error_times is None:
            self._error_times = deque(maxlen=self.MAX_ERRORS_PER_MINUTE + 1)
        self._error_times.append(now)
        if len(self._error_times) > self.MAX_ERRORS_PER_MINUTE and now - self._error_times[0] < 60:
            lifecycle.evict(self.connection, CloseReason.PROTOCOL_ERROR)
