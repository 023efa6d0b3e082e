"""The fast door to a client: what Daphne, autobahn and Twisted know of a connection, and ASGI does not say.

Behind Daphne's ASGI `send` stands autobahn's protocol of the connection, and behind that Twisted's transport
with the socket. Where exactly these are found, a transport sees that the protocol is closed (which Daphne's
`send` passes over in silence), knows how much is buffered (without limit), sends pings and sees pongs,
aborts instead of waiting for ever until a dead peer has read the rest, and writes to the socket at once when
nothing is queued before, which costs a quarter of the way through Twisted's reactor.

Nothing here is needed for correctness: all that is used beyond public names is looked for when a connection
opens, and anything unknown, TLS included, gets an `AsgiTransport`.
"""

import asyncio
import functools
import logging
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from realtime.closing import CloseReason
from realtime.transports.aborting import AbortingTransport
from realtime.transports.asgi import Event, Options, Ping, Send, Shared, Watcher
from realtime.wire import frames, rfc6455

logger = logging.getLogger("realtime.transport")

#: Bytes buffered in this process from which on a handler that sends is made to wait, and how often it looks.
HIGH_WATER = 64 * 1024
#: Digits of the largest number of a ping that is looked at in a pong.
LONGEST_NUMBER = 15
LOOK_INTERVAL = 0.01

#: Twisted's transports that are nothing but a stream socket.
_PLAIN = {("twisted.internet.tcp", "Server"), ("twisted.internet.unix", "Server")}


class DaphneTransport(AbortingTransport):
    """Writes to the socket itself while nothing is queued anywhere before it, else behind what is queued."""

    __slots__ = ("_allowed", "_largest", "_protocol", "_ready", "_send_now", "_twisted")

    can_ping = True

    def __init__(
        self,
        send: Send,
        protocol: Any,
        options: Options,
        watcher: Watcher,
    ) -> None:
        super().__init__(send, options, watcher)
        self._protocol = protocol
        self._twisted = protocol.transport
        self._send_now = protocol.transport.socket.send
        self._allowed = options.max_unsent
        # Daphne's own limit holds in both directions, and what it refuses is refused here.
        self._largest: int = protocol.maxMessagePayloadSize or sys.maxsize
        self._ready = False
        """Whether frames made here may be written: from accept on, to the end."""

    def _buffered(self) -> int:
        twisted, chopped = self._twisted, self._protocol.send_queue
        waiting: int = len(twisted.dataBuffer) - twisted.offset + twisted._tempDataLen
        return waiting + sum(len(data) for data, _ in chopped) if chopped else waiting

    async def accept(self, event: Event, first: Event | None = None) -> None:
        if not self.closed:
            # Before the handshake is answered, because a close frame may already wait to be read.
            self._protocol.onPong = self._ponged
            self._protocol.onCloseFrame = functools.partial(self._peer_closes, self._protocol.onCloseFrame)
        await super().accept(event, first)

    def _opened(self) -> None:
        # Daphne negotiates no compression; had it, frames made here would not be what the client expects.
        self._ready = not self.closed and self._protocol._perMessageCompress is None
        if self._ready and _reads_as_known(self._protocol):
            self._protocol.dataReceived = functools.partial(self._received, self._protocol.dataReceived)

    # -- writing -----------------------------------------------------------------------------------

    def write(self, event: Event, size: int) -> None:
        text, data = event.get("text"), event.get("bytes")
        # Anything else, and a lone surrogate, is Daphne's to refuse.
        with suppress(UnicodeEncodeError):
            if isinstance(text, str) and text and not data:
                return self._write_frame(rfc6455.TEXT, text.encode(), event, size)
            if isinstance(data, bytes) and data and not text:
                return self._write_frame(rfc6455.BINARY, data, event, size)
        return super().write(event, size)

    def _write_frame(self, opcode: int, payload: bytes, event: Event, size: int) -> None:
        if self._ready and not self._queue and len(payload) <= self._largest:
            self._write(rfc6455.frame(opcode, payload))
        else:
            super().write(event, size)

    def write_shared(self, shared: Shared) -> None:
        if self._ready and not self._queue and shared.size <= self._largest:
            self._write(shared.wire)
        else:
            super().write_shared(shared)

    def ping(self, ping: Ping) -> None:
        if self._ready and (ping.event is None or not self._queue):
            self._write(ping.wire)
        elif ping.event is not None:
            self.write(ping.event, ping.size)

    def _write(self, wire: bytes) -> None:
        """Write frames, in order with all else that is sent on this connection."""
        protocol, twisted = self._protocol, self._twisted
        if protocol.state != protocol.STATE_OPEN:
            # After the peer's own close frame nothing may be sent, and Daphne reports that end.
            if not protocol.wasClean:
                self._fail(CloseReason.SEND_FAILED, None)
            return
        if twisted._tempDataLen or twisted.dataBuffer or protocol.send_queue:
            protocol.sendData(wire)
            self._watcher.is_behind()
            if self._buffered() > self._allowed:
                self._fail(CloseReason.SLOW_CONSUMER, None)
            return
        try:
            sent = self._send_now(wire)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._fail(CloseReason.SEND_FAILED, error)
            return
        if sent < len(wire):
            rest = wire[sent:]
            # A message that is larger than the cap may be sent to whoever reads.
            self._allowed = self._options.max_unsent + len(rest)
            twisted.write(rest)
            self._watcher.is_behind()

    async def drained(self) -> None:
        """Wait until less than `HIGH_WATER` is buffered.

        Looked at now and then: a producer registered with Twisted to be told would keep a closed connection
        open until it is unregistered.
        """
        await super().drained()
        while self._ready and self._buffered() > HIGH_WATER:  # noqa: ASYNC110 - Twisted has no such event
            await asyncio.sleep(LOOK_INTERVAL)

    # -- ending ------------------------------------------------------------------------------------

    def close(self, event: Event, goodbye: Event | None = None) -> None:
        # Disable autobahn's own timer of 1 s. When to close many connections takes longer, Twisted fires it
        # before the close frames are written, and clients get a RST. `_cut_off_later` replaces it.
        self._protocol.closeHandshakeTimeout = 0
        super().close(event, goodbye)

    def abandon(self) -> None:
        super().abandon()
        self._ready = False
        # With these the protocol would hold on to this transport, which holds on to it.
        for name in ("onPong", "onCloseFrame", "dataReceived"):
            vars(self._protocol).pop(name, None)

    def abort(self) -> None:
        self._twisted.abortConnection()

    def _socket(self) -> Any:
        # Twisted deletes it when the connection has ended.
        return getattr(self._twisted, "socket", None)

    def _is_over(self) -> bool:
        return bool(self._twisted.disconnected)

    def _end_seen(self, reported: int | None = None) -> CloseReason | None:
        # Autobahn drops who breaks the protocol, without a close frame, and reports a transport that broke.
        protocol = self._protocol
        if not protocol.failedByMe:
            return None
        large = protocol.wasMaxMessagePayloadSizeExceeded or protocol.wasMaxFramePayloadSizeExceeded
        return CloseReason.TOO_LARGE if large else CloseReason.PROTOCOL_ERROR

    # -- what autobahn and Twisted call ------------------------------------------------------------

    def _received(self, pass_on: Callable[[bytes], object], data: bytes) -> object:
        """Take a pong that came alone, which is what nearly every read brings; anything else is autobahn's.

        Autobahn, Daphne and the queue behind them take 30 microseconds for a pong, and this two.
        """
        protocol = self._protocol
        if (
            len(data) <= rfc6455.LONGEST_SHORT
            # Nothing was read before that is not yet a whole frame.
            and not protocol.data
            and protocol.current_frame is None
            and protocol.state == protocol.STATE_OPEN
            and (frame := rfc6455.short_frame(data)) is not None
            and self._is_pong(*frame)
        ):
            return None
        return pass_on(data)

    def _is_pong(self, opcode: int, payload: bytes) -> bool:
        """Take a pong of either kind; False for any other frame."""
        if opcode == rfc6455.TEXT and not self._protocol.inside_message:
            n = frames.pong_number(payload)
            if n is None or not self._watcher.ponged(n, v1=True):
                return False
            # Daphne sends pings of its own to clients that have sent it no message for a while.
            self._protocol.last_ping = time.time()
            return True
        return opcode == rfc6455.PONG and _is_number(payload) and self._watcher.ponged(int(payload), v1=False)

    def _ponged(self, payload: bytes) -> None:
        # Ours, Daphne's own, or one that was not asked for.
        if _is_number(payload):
            self._watcher.ponged(int(payload), v1=False)

    def _peer_closes(self, answer: Callable[..., object], code: object, reason: object) -> object:
        """The peer's close frame has come: autobahn answers it, and waits until all before it is read."""
        done = answer(code, reason)
        # A client that closes while it reads is done in a moment; one that does not read would stay for ever.
        self._cut_off_later(self._options.close_limit)
        return done


def _is_number(payload: bytes) -> bool:
    return payload.isdigit() and len(payload) <= LONGEST_NUMBER


def _reads_as_known(protocol: Any) -> bool:
    """Return true if what is looked at before a pong is taken is there, once the handshake is complete."""
    return (
        isinstance(getattr(protocol, "data", None), bytes)
        and getattr(protocol, "current_frame", protocol) is None
        and getattr(protocol, "inside_message", None) is False
        and isinstance(getattr(protocol, "last_ping", None), float)
        and callable(getattr(protocol, "dataReceived", None))
    )


def protocol_behind(send: Any) -> Any:
    """Autobahn's protocol of the connection, when this is Daphne's own callable; None where it is not, or
    where anything differs from what is used here.
    """
    if type(send) is not functools.partial or send.keywords or len(send.args) != 1:
        return None
    names = getattr(send.func, "__module__", ""), getattr(send.func, "__name__", "")
    if names != ("daphne.server", "handle_reply"):
        return None
    (protocol,) = send.args
    try:
        return protocol if _is_known(protocol) and _is_plain(protocol.transport) else None
    except (AttributeError, TypeError) as error:
        logger.debug("Not the Daphne that is known here: %s", error)
        return None


def _is_known(protocol: Any) -> bool:
    """Raises AttributeError when something is missing."""
    return (
        type(protocol).__module__ == "daphne.ws_protocol"
        # Its callbacks are replaced on the object.
        and isinstance(vars(protocol), dict)
        and isinstance(protocol.state, int)
        and isinstance(protocol.STATE_OPEN, int)
        and isinstance(protocol.wasClean, bool)
        and isinstance(protocol.failedByMe, bool)
        and isinstance(protocol.wasMaxMessagePayloadSizeExceeded, bool)
        and isinstance(protocol.wasMaxFramePayloadSizeExceeded, bool)
        and len(protocol.send_queue) == 0
        and protocol._perMessageCompress is None
        and not protocol.maskServerFrames
        and not protocol.autoFragmentSize
        and not protocol.logOctets
        and not protocol.logFrames
        and isinstance(protocol.maxMessagePayloadSize, int)
        and all(map(callable, (protocol.sendData, protocol.onPong, protocol.onCloseFrame)))
    )


def _is_plain(twisted: Any) -> bool:
    """Raises AttributeError when something is missing."""
    return (
        (type(twisted).__module__, type(twisted).__qualname__) in _PLAIN
        and not twisted.TLS
        and isinstance(twisted.dataBuffer, bytes)
        and isinstance(twisted.offset, int)
        and isinstance(twisted._tempDataLen, int)
        and twisted.disconnected in (False, True)
        and all(map(callable, (twisted.write, twisted.abortConnection, twisted.socket.send)))
    )
